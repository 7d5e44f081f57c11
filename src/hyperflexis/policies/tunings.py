"""What a comparison tries of each rival before it takes the best: constants that its paper or its engine leaves open.

Everything is named in the policy's own file. The empty one is the defaults, which are the published form where there is
one. A comparison that reports a rival reports the best of these for each load, and says which.
"""

from __future__ import annotations

from collections.abc import Mapping

Tuning = Mapping[str, object]

CHUNKS: tuple[Tuning, ...] = ({"chunk": 512}, {"chunk": 2048}, {"chunk": 8192})
"""Of engines with fixed chunks."""


def _with(*tunings: Tuning) -> tuple[Tuning, ...]:
    """The chunks, and each further tuning with those of them that are ever the best."""
    return (*CHUNKS, *({**tuning, **chunk} for tuning in tunings for chunk in CHUNKS[1:]))


TUNINGS: dict[str, tuple[Tuning, ...]] = {
    "hyperflexis": ({},),
    "round_robin": _with(),
    "least_tokens": _with({"count": "requests"}, {"count": "prompts"}),
    "power_of_two": _with({"count": "outstanding"}),
    "prefix_affinity": _with({"margin_tokens": 65_536, "overload": 3.0}),
    "llumnix_v0": _with({"engine": "priority"}),
    "llumnix_v1": _with({"lowest": "tpot"}, {"engine": "priority"}),
    "llm_d": _with({"strategy": "most"}, {"strategy": "most", "draws": False}),
    "polyserve": (
        {},
        {"credit_spend_max": 0.0, "chunk": 8192},
        {"credit_spend_max": 0.0, "packs": False, "chunk": 8192},
        {"credit_spend_max": 0.0, "late_last": True, "chunk": 8192},
        {"credit_spend_max": 0.0, "late_last": True, "packs": False, "chunk": 8192},
        {"credit_spend_max": 0.0, "late_last": True, "packs": False, "split": "equal", "chunk": 8192},
        {"credit_spend_max": 0.0, "late_last": True, "packs": False, "split": "none", "chunk": 8192},
    ),
    "proserve": (
        {},
        {"credit_spend_max": 0.0, "chunk": 8192},
        {"credit_spend_max": 0.0, "routing": "least_tokens", "chunk": 8192},
        {"credit_spend_max": 0.0, "routing": "least_tokens", "slack_share": 1.0, "chunk": 8192},
    ),
    "slos_serve": ({}, {"chunk": 8192}, {"asks": "least", "chunk": 8192}),
    "hfx_faithful": ({}, {"late_last": True, "chunk": 8192}, {"late_last": True, "choice": "ratio", "chunk": 8192}),
    "distserve": ({},),
    "splitwise": ({}, {"queue_tokens": 2048}, {"queue_tokens": 32_768}),
    "arrow": ({}, {"target_share": 0.9}, {"target_share": 0.7}),
    "llumnix_pd": ({}, {"threshold": 0.7}, {"threshold": 0.95}),
    "taichi": (
        {},
        {"chunk_d": 256},
        {"chunk_p": 1024, "chunk_d": 128},
        {"chunk_p": 512, "chunk_d": 256},
        {"chunk_p": 512, "chunk_d": 512},
    ),
    "tokenscale": ({}, {"convertibles": 2}, {"convertibles": 8}, {"plans": False}, {"plans": False, "convertibles": 8}),
    "dynamo_pd": ({}, {"queue_max": 8}, {"local_tokens": 256, "queue_max": 8}, {"worker": "turn"}),
    "hfx_reactive": (
        {},
        {"step": 2},
        {"step": 4, "headroom": 0.6},
        {"step": 2, "headroom": 0.6, "cool_down_s": 60.0},
        {"step": 2, "headroom": 0.5, "cool_down_s": 120.0},
        {"step": 4, "headroom": 0.4, "cool_down_s": 240.0},
    ),
    "dynamo_planner": (
        {},
        {"throughput_s": 60.0, "headroom": 0.8},
        {"throughput_s": 30.0, "load_s": 2.0, "headroom": 0.8},
        {"throughput_s": 30.0, "load_s": 2.0, "headroom": 0.6},
        {"throughput_s": 30.0, "load_s": 2.0, "headroom": 0.45},
        {"throughput_s": 60.0, "headroom": 0.35},
    ),
    "blitzscale": (
        {},
        {"scale": 1.3},
        {"scale": 0.8},
        {"scale": 0.65},
        {"idle_s": 15.0},
        {"idle_s": 240.0},
    ),
    "tokenscale_scaler": (
        {},
        {"headroom": 1.3},
        {"headroom": 0.8},
        {"headroom": 0.8, "cool_down_s": 30.0},
        {"headroom": 0.6, "cool_down_s": 30.0},
        {"headroom": 0.8, "cool_down_s": 240.0},
    ),
    "chiron": (
        {},
        {"pressure": 0.85},
        {"pressure": 0.7},
        {"pressure": 0.55},
        {"pressure": 0.7, "cool_down_s": 60.0},
        {"pressure": 0.55, "cool_down_s": 240.0},
    ),
    "kpa": (
        {},
        {"target": 48.0},
        {"target": 32.0},
        {"target": 24.0},
        {"target": 24.0, "stable_s": 20.0},
        {"target": 12.0, "stable_s": 30.0},
    ),
    "llm_d_saturation": (
        {},
        {"pace": 4.0},
        {"pace": 12.0, "window_s": 15.0},
        {"high": 0.75, "low": 0.55, "pace": 12.0},
    ),
}
"""Policy → keyword arguments of its `policy` function."""
