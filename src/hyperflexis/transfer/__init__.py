"""Moves bytes between processes, one-sidedly: whoever has them exposes them, whoever wants them pulls them.

`Source.expose(buffer)` gives a region and its descriptor, a few hundred bytes that anybody may carry; `Receiver.pull`
takes a descriptor, a list of (source offset, target offset, length) and a resident target, and returns a handle. There
is no group to join or leave. Knows buffers and bytes: no shapes of tensors, no tokens, no requests, no reasons.
"""
