"""Weights from whoever has them: a donor lends a filled buffer, a recipient asks candidates in order and takes it.

Built on regions, leases and pulls; knows bytes, what they are called and how they are checked, no tensors. On one host
the recipient is handed the sealed memory itself and copies nothing; elsewhere it pulls chunk by chunk, and lends what
has settled at once, so that a chain of recipients takes hardly longer than one.
"""
