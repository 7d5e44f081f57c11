"""How many instances a policy, made fresh, would want of a hand-made fleet."""

from __future__ import annotations

from helpers.builders import cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Role
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.policies import create


class Asked:
    """Ready and empty instances, as many as are wanted at first. None ever comes or goes."""

    def __init__(self, name: str, instances: int = 2, least: int = 0, most: int = 40, **limits: int) -> None:
        """A name may carry tuning."""
        self.policy = create(name, 512)
        self.cluster = cluster(instances, **limits)
        self.sizing = Sizing(FleetBounds({Role.MIXED: Range(least, most)}), self.cluster)
        self.want(instances)

    def want(self, instances: int) -> None:
        self.sizing.want(Wanted({Role.MIXED: instances}, Reason(Why.DEMAND)))

    def at(self, *instants_s: float) -> int:
        """What is wanted once it was asked at all of these."""
        assert self.policy.scaler is not None
        for now in instants_s:
            wanted = self.policy.scaler.plan(self.cluster, self.sizing, now)
            if wanted is not None:
                self.sizing.want(wanted)
        return self.sizing.wanted
