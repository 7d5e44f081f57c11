"""A server that answers like `vllm serve` and computes nothing, to try things with where there is no vLLM.

    python -m hyperflexis.adapters.vllm.standin MODEL_DIRECTORY --port 8000

What it copies was executed against vLLM 0.32, oddities included: an overload is HTTP 503, or within a stream HTTP 200
and an error event; ids of requests are "cmpl-<X-Request-Id>-0" and unknown ones are aborted with 200; gauges move only
when a step's output is handled; the KV that is kept for another server is given away after its lease too, but holds
something else then. Tokens are a hash of all tokens before them (and, if sampled, of the seed and of their number), in
the vocabulary of the model whose directory is given. Faults can be switched on by the test that owns the server, or by
`POST /standin/fault {"hang": true}`.
"""
