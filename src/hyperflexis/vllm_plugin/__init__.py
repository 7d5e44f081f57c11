"""What vLLM loads into its own processes: weights from peers, and steps that are chosen by promises.

Only `plugin`, `scheduler` and `loader` import vLLM, and only inside it; all else here runs and is tested without.
"""
