"""How long instances have been there, by role and state, and what that costs. Knows nothing of why they come and go."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from hyperflexis.core.fleet import SECONDS_PER_HOUR, Prices
from hyperflexis.core.instance import InstanceState, Role

Standing = tuple[Role, InstanceState]


@dataclass(slots=True)
class _Present:
    """One instance that is there, and since when it has been as it is."""

    role: Role
    state: InstanceState
    since_s: float


class Presence:
    """All instances, from the launch of each to its end. Changes of unknown ones are ignored."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self._present: dict[int, _Present] = {}
        self._passed_s: defaultdict[Standing, float] = defaultdict(float)

    def begin(self, instance_id: int, role: Role, now: float) -> None:
        """It is launched."""
        self._present[instance_id] = _Present(role, InstanceState.STARTING, now)

    def change(
        self, instance_id: int, now: float, *, state: InstanceState | None = None, role: Role | None = None
    ) -> None:
        """It is in another state, or has another role, from now on."""
        if (present := self._present.get(instance_id)) is not None:
            self._pass(present, now)
            present.state = state or present.state
            present.role = role or present.role

    def end(self, instance_id: int, now: float) -> InstanceState | None:
        """It is no more; returns the state that it was in."""
        present = self._present.pop(instance_id, None)
        if present is None:
            return None
        self._pass(present, now)
        return present.state

    def role(self, instance_id: int) -> Role | None:
        present = self._present.get(instance_id)
        return None if present is None else present.role

    def state(self, instance_id: int) -> InstanceState | None:
        present = self._present.get(instance_id)
        return None if present is None else present.state

    def counts(self) -> Counter[Standing]:
        """How many there are now."""
        return Counter((each.role, each.state) for each in self._present.values())

    def seconds(self, now: float) -> dict[Standing, float]:
        """Instance-seconds so far."""
        found = defaultdict(float, self._passed_s)
        for each in self._present.values():
            found[each.role, each.state] += max(0.0, now - each.since_s)
        return dict(found)

    def cost(self, now: float) -> float:
        """In the currency of the prices."""
        asleep_s = awake_s = 0.0
        for (_, state), seconds in self.seconds(now).items():
            if state is InstanceState.ASLEEP:
                asleep_s += seconds
            else:
                awake_s += seconds
        return (awake_s * self._prices.active_per_hour + asleep_s * self._prices.asleep_per_hour) / SECONDS_PER_HOUR

    def _pass(self, present: _Present, now: float) -> None:
        self._passed_s[present.role, present.state] += now - present.since_s
        present.since_s = now
