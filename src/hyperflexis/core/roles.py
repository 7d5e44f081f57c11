"""What an instance may do, and when that changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason
from hyperflexis.core.instance import Instance, Role


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Give an instance another role."""

    instance: Instance
    role: Role
    reason: Reason


class RolePlanner(Protocol):
    """One of a policy's decisions."""

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        """Say which roles are to change now. Asked every `control.TICK_S` while there is work."""
