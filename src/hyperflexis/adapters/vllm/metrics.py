"""The few numbers that are read of a vLLM server's `/metrics`.

That page is long and read often, so its lines are looked for, not parsed. Gauges are as old as the last step that vLLM
has handled: half a second into a burst they may still read 0. What is read is a correction, never the count itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_VALUE = rb"(?:\{[^}]*\})? ([0-9.eE+-]+|NaN)"
_LABEL = re.compile(rb'(\w+)="([^"]*)"')
_CONFIG = re.compile(rb"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
_NAMES = (
    "process_start_time_seconds",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
)
_LINES = {name: re.compile(rb"^" + name.encode() + _VALUE, re.MULTILINE) for name in _NAMES}


class Gauges(NamedTuple):
    """One look at the page. None: that line is not there."""

    started_s: float | None
    """When the process began, on its host's clock."""
    running: float | None
    waiting: float | None
    kv_used: float | None
    """Share of the KV blocks that requests hold."""
    tokens: float
    """Computed since the process began, prompts and answers."""

    def is_younger_than(self, before: Gauges) -> bool:
        """Whether this is another process than before: it began at another time, or has counted less."""
        if self.started_s is not None and before.started_s is not None:
            return self.started_s != before.started_s
        return self.tokens < before.tokens


def read(page: bytes) -> Gauges:
    """Read a page; sums over engines behind one address."""
    sums = {name: _sum(_LINES[name], page) for name in _NAMES}
    used = [float(each) for each in _LINES["vllm:kv_cache_usage_perc"].findall(page)]
    return Gauges(
        started_s=sums["process_start_time_seconds"],
        running=sums["vllm:num_requests_running"],
        waiting=sums["vllm:num_requests_waiting"],
        kv_used=sum(used) / len(used) if used else None,
        tokens=(sums["vllm:generation_tokens_total"] or 0.0) + (sums["vllm:prompt_tokens_total"] or 0.0),
    )


def cache_config(page: bytes) -> Mapping[str, str]:
    """The labels of `cache_config_info`; empty if there is none."""
    found = _CONFIG.search(page)
    if found is None:
        return {}
    return {name.decode(): value.decode("utf-8", "replace") for name, value in _LABEL.findall(found[1])}


def engines(page: bytes) -> int:
    """How many engines stand behind the address, each with KV of its own."""
    return max(1, len(_CONFIG.findall(page)))


def _sum(line: re.Pattern[bytes], page: bytes) -> float | None:
    values = [float(each) for each in line.findall(page)]
    return sum(values) if values else None
