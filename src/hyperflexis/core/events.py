"""What can happen. Drivers turn the outside world into these; nothing else reaches the control plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.slo import Slo


@dataclass(frozen=True, slots=True)
class RequestArrived:
    request_id: int
    prompt_tokens: int
    max_tokens: int
    slo: Slo
    priority: int = 0
    service_class: str = "default"
    block_hashes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    request_id: int


@dataclass(frozen=True, slots=True)
class TokensEmitted:
    """One step's tokens: an id stands once for each of its tokens."""

    instance_id: int
    request_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class RequestFinished:
    instance_id: int
    request_id: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class InstanceReady:
    instance_id: int
    capacity: Capacity
    latency: LatencyModel


@dataclass(frozen=True, slots=True)
class InstanceReported:
    """A step ended. `started` are requests whose prefill began with it, `preempted` those that lost their blocks."""

    instance_id: int
    shape: StepShape
    duration_s: float
    started: Sequence[int] = ()
    preempted: Sequence[int] = ()
    latency: LatencyModel | None = None
    """A new model of itself, where the instance has fitted one."""


@dataclass(frozen=True, slots=True)
class InstanceLost:
    """An instance is gone, or never came."""

    instance_id: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Wakeup:
    """The instant that `next_wakeup` named has come. Also what a driver sends first, to begin."""


Event = (
    RequestArrived
    | RequestCancelled
    | TokensEmitted
    | RequestFinished
    | InstanceReady
    | InstanceReported
    | InstanceLost
    | Wakeup
)
