"""On which node of a cluster an instance goes: where its partners are, or where fewest others are.

The choice is a wish: other programs use the nodes too, and whoever places in the end knows what they take. Knows names,
no cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

Strategy = Literal["auto", "pack", "spread"]


class Node(NamedTuple):
    """What a node has in all, used or not."""

    id: str
    cpus: float
    gpus: float


class Need(NamedTuple):
    """What an instance takes."""

    cpus: float
    gpus: float

    def fits(self, node: Node, instances: int) -> bool:
        """Whether that many of them have room on an empty node."""
        return self.cpus * instances <= node.cpus and self.gpus * instances <= node.gpus

    def sharers(self, node: Node, instances: int) -> int:
        """How many of so many instances may come to share the memory that they compute in: a device's or the node's."""
        if self.gpus > 0:
            most = int(1 / self.gpus)
        elif self.cpus > 0:
            most = int(node.cpus / self.cpus)
        else:
            most = instances
        return max(1, min(most, instances))


def choose(
    nodes: Sequence[Node],
    seated: Mapping[str, Sequence[str]],
    warm: Collection[str],
    *,
    role: str,
    need: Need,
    strategy: Strategy,
) -> str | None:
    """Return the id of the node that suits best; None where no node has room, as far as is known.

    Args:
        seated: roles of the instances on each node.
        warm: nodes that have the weights: an instance starts there in a moment.
    """
    fitting = [node for node in nodes if need.fits(node, len(seated.get(node.id, ())) + 1)]
    if not fitting:
        return None
    is_packed = strategy == "pack" or (strategy == "auto" and role != "mixed")
    rank = _packed if is_packed else _spread
    return min(fitting, key=lambda node: (*rank(seated.get(node.id, ()), role), node.id not in warm)).id


def _spread(there: Sequence[str], _role: str) -> tuple[int, ...]:
    return (len(there),)


def _packed(there: Sequence[str], role: str) -> tuple[int, ...]:
    """With a partner if there is one, and not all of one role together: KV then need not leave the node."""
    roles = Counter(there)
    if role == "mixed":
        return (-len(there),)
    partners = len(there) - roles[role]
    return (0 if partners else 1, roles[role] - partners)
