"""What can happen. Drivers turn the outside world into these; nothing else reaches the control plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.slo import Slo


class RequestArrived(NamedTuple):
    request_id: int
    prompt_tokens: int
    max_tokens: int
    slo: Slo
    priority: int = 0
    service_class: str = "default"
    block_hashes: tuple[bytes, ...] = ()
    refuses_late: bool = False
    """Reject it if its promises cannot be kept, instead of serving it late."""
    is_part: bool = False
    """Its client gets it with others or not at all, so it is not given up once those may have begun."""


class RequestCancelled(NamedTuple):
    """Its client left, having seen so many tokens of the answer."""

    request_id: int
    emitted_tokens: int = 0


class RequestFinished(NamedTuple):
    """Its answer, so long, is complete; or its instance could not compute it."""

    instance_id: int
    request_id: int
    emitted_tokens: int
    failed: bool = False


class RequestReturned(NamedTuple):
    """An instance that lives on gives a request back unfinished; its client has so many tokens of the answer."""

    instance_id: int
    request_id: int
    emitted_tokens: int
    was_refused: bool = False
    """It never began there, as the instance takes no more for now."""


class InstanceReady(NamedTuple):
    instance_id: int
    capacity: Capacity
    latency: LatencyModel


class Arrival(NamedTuple):
    """A request goes on at another instance than before, with so many tokens computed and emitted."""

    request_id: int
    source_id: int
    computed_tokens: int
    emitted_tokens: int
    copied_tokens: int = 0
    copied_s: float = 0.0
    """What copying these took, waiting not counted."""


class InstanceReported(NamedTuple):
    """Steps ended, the last of them just now. In each, everything that decodes there emitted one token.

    All but the last were of decodes alone and changed nothing else (`core.cadence` says how many such steps go
    unreported); `shape` and `duration_s` are the last one's.
    """

    instance_id: int
    shape: StepShape
    duration_s: float
    steps: int = 1
    started: Sequence[int] = ()
    """Requests whose prefill began with the last step."""
    began: Sequence[int] = ()
    """Requests whose prefill ended with it: each emitted a token and decodes from now on."""
    preempted: Sequence[int] = ()
    """Requests that lost their blocks before it."""
    latency: LatencyModel | None = None
    """A new model of itself, where the instance has fitted one."""
    resumed: Sequence[int] = ()
    """Requests that stood still and took part in it again."""
    arrived: Sequence[Arrival] = ()
    """Requests that came from elsewhere and could take part in it."""
    suspended: Sequence[int] = ()
    """Requests that stand still from its end on, to go on elsewhere."""
    rules_version: int = 0
    """Which of the rules that were assigned are in force."""


class FleetChanged(NamedTuple):
    """There are to be other numbers of instances than before."""

    fleet: FleetBounds


class InstanceDrained(NamedTuple):
    """An instance is to take no new work, give away what it has, and end."""

    instance_id: int


class InstanceLost(NamedTuple):
    """An instance is gone, or never came."""

    instance_id: int
    why: str = ""
    untold_steps: int = 0
    """Its last ones, of decodes alone, that it had no reason to report: in each, every decode emitted a token."""


class TransferFailed(NamedTuple):
    """A request was not moved, and nothing of it is left at the target."""

    request_id: int
    target_id: int
    why: str = ""


class Linked(NamedTuple):
    """The target can take what the source has."""

    source_id: int
    target_id: int
    version: int


class LinkFailed(NamedTuple):
    """It cannot, or can no more."""

    source_id: int
    target_id: int
    version: int
    why: str = ""


class Wakeup(NamedTuple):
    """The instant that `next_wakeup` named has come. Also what a driver sends first, to begin."""


Event = (
    RequestArrived
    | RequestCancelled
    | RequestFinished
    | RequestReturned
    | InstanceReady
    | InstanceReported
    | FleetChanged
    | InstanceDrained
    | InstanceLost
    | TransferFailed
    | Linked
    | LinkFailed
    | Wakeup
)
