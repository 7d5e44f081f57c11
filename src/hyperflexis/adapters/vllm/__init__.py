"""A stock, unpatched `vllm serve` as an instance: spoken to over HTTP, tokens in and tokens out.

Imports nothing of vLLM. What is known of its interface was executed against vLLM 0.32; what a black box cannot do is
said where it matters, and in docs/vllm.md.
"""
