"""Load for an endpoint that speaks OpenAI's HTTP API, at the instants of a trace, and what its client sees of it.

Knows no scenario, no policy and no server of ours in particular: what is asked for comes as jobs.
"""
