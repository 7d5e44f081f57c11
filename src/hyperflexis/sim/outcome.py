"""What a simulation gave: one row per request, as columns, and what the fleet cost meanwhile.

Columns, because a million requests have to fit into memory. Only holds; `cli` tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Usage(NamedTuple):
    """What instances were there for, from the first arrival to the last end; each from its launch to its end."""

    awake_s: float
    """Instance-seconds: starting, serving and draining."""
    asleep_s: float
    cost: float
    """At the fleet's prices."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All columns have one entry per request, in order of arrival. Times are seconds, NaN where there is none."""

    classes: tuple[str, ...]
    service_class: npt.NDArray[np.int64]
    """Index into `classes`."""
    arrived_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    attained: npt.NDArray[np.bool_]
    """Every promise of its class was kept. A rejected or unfinished request attains nothing."""
    rejected: npt.NDArray[np.bool_]
    finished: npt.NDArray[np.bool_]
    output_tokens: npt.NDArray[np.int64]
    usage: Usage
    migrations: int
    role_changes: int
    scale_events: int
    sim_seconds: float
    """Virtual time from the first arrival to the last end."""
