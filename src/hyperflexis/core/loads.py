"""The loads of all ready instances side by side, so that a choice among a thousand costs little more than among ten.

One column for each instance, in the order of their launch; only those of instances that changed since the last look are
made again. What does not depend on the newcomer is worked out here, once, and not at every choice. A view: what it says
is the instances' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hyperflexis.core.instance import Instance, Role

Floats = npt.NDArray[np.float64]

PACE_CAP_S = 0.2
"""Looser paces than this bind an instance no less than this one."""
CONTEXT_SHARE = 0.1
"""What a token of context counts for among prefill tokens that wait: it slows every step to come."""


class Load(NamedTuple):
    """One instance's column, or the rows of many: floats or arrays of them."""

    step_s: Any
    """A step of its decodes and one more, without that one's context."""
    peak_step_s: Any
    """The same when all that is there has its expected length."""
    context_token_s: Any
    prefill_token_s: Any
    prefill_pair_s: Any
    pace_s: Any
    """The strictest there, capped."""
    queued_s: Any
    """Prefill work that waits there, and a share of the contexts."""
    requests: Any
    dispatches: Any


class Loads:
    """The columns. `changed` is the set in which instances note that they did."""

    def __init__(self, changed: set[Instance]) -> None:
        self._changed = changed
        self._instances: list[Instance] = []
        self._columns: list[Load] = []
        self._table: Floats = np.zeros((0, 0))
        self._part: tuple[Sequence[Instance], npt.NDArray[np.intp]] = ((), np.zeros(0, dtype=np.intp))
        """The last part of the instances that was asked for, and its rows."""

    def reset(self, ready: Sequence[Instance]) -> None:
        """These are the instances from now on."""
        for instance in self._instances:
            instance.row = -1
        self._instances = list(ready)
        self._columns = [load_of(instance) for instance in ready]
        self._table = np.array(self._columns, dtype=np.float64).T.copy() if ready else np.zeros((len(Load._fields), 0))
        for row, instance in enumerate(ready):
            instance.row = row
        self._part = ((), np.zeros(0, dtype=np.intp))
        self._changed.clear()

    def refresh(self) -> None:
        """Look again at what has changed."""
        for instance in self._changed:
            if instance.row >= 0:
                column = load_of(instance)
                self._columns[instance.row] = column
                self._table[:, instance.row] = column
        self._changed.clear()

    def column(self, instance: Instance) -> Load:
        """One instance's, as of the last `refresh`."""
        return self._columns[instance.row]

    def table(self, instances: Sequence[Instance]) -> Load:
        """Rows [n] of these instances, as of the last `refresh`."""
        if len(instances) == len(self._instances):
            return Load(*self._table)
        if instances is not self._part[0]:
            self._part = (instances, np.array([instance.row for instance in instances], dtype=np.intp))
        return Load(*self._table[:, self._part[1]])


def load_of(instance: Instance) -> Load:
    """Work out one column."""
    model = instance.latency.model
    factor = instance.latency.correction.factor("decode")
    base_s, seq_s, token_s = model.decode_base_s * factor, model.decode_seq_s * factor, model.context_token_s * factor
    seqs, context, requests = len(instance.decoding), instance.context_tokens, instance.requests
    pace_s = min(pace_cap_s(instance), instance.strictest_pace_s())
    step_s = base_s + seq_s * (seqs + 1) + token_s * context
    peak_step_s = base_s + seq_s * (requests + 1) + token_s * instance.planned_tokens
    if instance.role is Role.PREFILL:  # A newcomer decodes elsewhere.
        step_s, token_s, peak_step_s = (step_s - seq_s if seqs else 0.0), 0.0, 0.0
    return Load(
        step_s=step_s,
        peak_step_s=peak_step_s,
        context_token_s=token_s,
        prefill_token_s=model.prefill_token_s,
        prefill_pair_s=model.prefill_pair_s,
        pace_s=pace_s,
        queued_s=instance.waiting_s() + CONTEXT_SHARE * model.prefill_token_s * context,
        requests=requests,
        dispatches=instance.dispatches,
    )


def pace_cap_s(instance: Instance) -> float:
    """Looser promises count as this one."""
    return max(PACE_CAP_S, 4 * instance.latency.model.decode_base_s)
