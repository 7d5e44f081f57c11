"""What is decided. Drivers perform these and add nothing. Every command says why, in words and numbers."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from hyperflexis.core.instance import Role, StartSource
from hyperflexis.core.slo import Verdict
from hyperflexis.core.step import StepRules


class Why(Enum):
    FEASIBLE = "fits every promise there"
    LEAST_HARM = "fits nowhere; does the least harm there"
    IN_TURN = "next in turn"
    LEAST_LOADED = "has the least to do"
    HAS_PREFIX = "holds most of its prompt"
    BEST_EFFORT = "fits nowhere; gets what is left there"
    NO_INSTANCE = "no instance is ready"
    TOO_LATE = "its promises could not be kept"
    QUEUE_FULL = "too many requests are unfinished"
    DISPLACED = "too many requests are unfinished, and a more important one has come"
    TOO_LARGE = "no instance could hold it"
    CLIENT_LEFT = "the client cancelled"
    FLEET_SHORT = "fewer instances than the fleet should have"
    FLEET_LARGE = "more instances than the fleet should have"
    DEMAND = "what is asked for, and what may be asked for before more could help"
    BACKLOG = "work waits that the present instances would do too late"
    IDLE = "nothing has been asked for"
    FIRST = "a request waits, and there is no instance"
    START_LATE = "it has not started in time"
    INSTANCE_LOST = "its instance died"
    RETURNED = "its instance gave it back"
    LOST_TOO_OFTEN = "every instance that had it died or gave it back"
    START_FAILS = "instances keep failing to start"
    FAILED = "its instance could not compute it"
    PREFILLED = "its first token is out, and another instance decodes"
    PREFILLING = "its prefill will end, and another instance decodes"
    NO_DECODE = "no instance for decoding takes it"
    MOVE_FAILED = "it could not be moved"
    TARGET_LOST = "the instance that was to take it died"
    SOURCE_LOST = "the instance that had it died"
    RELIEVES = "its instance is too slow for what it promised"
    EVACUATES = "its instance is to hold nothing"
    DEFRAGMENTS = "makes room for a large prompt"
    SWITCH_FAILED = "it has not taken its new role"
    BALANCES = "more prefill is needed, or less"
    DRAINED = "it holds nothing any more, and was to end"
    MEMBERSHIP = "instances may take from each other"
    ENDED = "the last token is out"


class Reason(NamedTuple):
    """Why, and the numbers it rests on, by name (units in the names)."""

    why: Why
    numbers: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in self.numbers)
        return f"{self.why.value} ({numbers})" if numbers else self.why.value


class Dispatch(NamedTuple):
    request_id: int
    instance_id: int
    reason: Reason
    expected_tokens: int = 0
    """How long its answer is believed to become; 0 where nothing is known."""


class Hold(NamedTuple):
    """The request stays in the control plane's queue for now."""

    request_id: int
    reason: Reason


class Reject(NamedTuple):
    """Refuse it; `retry_after_s` is when another should be taken, None where waiting would not help."""

    request_id: int
    reason: Reason
    retry_after_s: float | None = None


class Cancel(NamedTuple):
    """Stop computing it there."""

    request_id: int
    instance_id: int
    reason: Reason


class Conclude(NamedTuple):
    """It has ended: tell whoever waits for it. The verdict is None where no token was emitted."""

    request_id: int
    verdict: Verdict | None
    reason: Reason


class Resize(NamedTuple):
    """Say that the fleet is to have another size. Others carry it out; nothing does where it is only proposed."""

    role: Role
    have: int
    want: int
    reason: Reason
    is_proposal: bool = False


class Launch(NamedTuple):
    """Start an instance under this id."""

    instance_id: int
    role: Role
    reason: Reason
    source: StartSource = StartSource.DISK
    donor_id: int | None = None
    """Whose memory its weights are to come from, if a peer's."""


class Drain(NamedTuple):
    """The instance takes no new work; it is to end, or to sleep, when it holds nothing."""

    instance_id: int
    reason: Reason


class Retain(NamedTuple):
    """It takes work again."""

    instance_id: int
    reason: Reason


class Sleep(NamedTuple):
    """The instance, which holds nothing, is to give its memory back and be quick to wake."""

    instance_id: int
    reason: Reason


class Wake(NamedTuple):
    """Ready a sleeping instance."""

    instance_id: int
    role: Role
    reason: Reason


class Migrate(NamedTuple):
    """The target is to take it from the source, while it runs."""

    request_id: int
    source_id: int
    target_id: int
    tokens: int
    """Room that it needs now."""
    at_first_token: bool
    """It is handed off: it stands still with its first token, and not before."""
    link_version: int
    move: int
    """The number of this attempt."""
    reason: Reason
    expected_tokens: int = 0
    recomputes: bool = False
    """Its KV is to be computed anew there, and not copied."""


class Abandon(NamedTuple):
    """The target is to say at once whether it has taken it, and not to wait for the source."""

    request_id: int
    target_id: int
    reason: Reason


class Stay(NamedTuple):
    """It goes on where it stands."""

    request_id: int
    instance_id: int
    reason: Reason
    move: int | None = None
    """Only if it stands still for this attempt to move it. It may have been handed off by now, and be called for."""


class AssignRole(NamedTuple):
    """Put these rules in force there, which make the role, and say so."""

    instance_id: int
    role: Role
    rules: StepRules
    version: int
    reason: Reason


class Stop(NamedTuple):
    """End the instance, which holds nothing any more."""

    instance_id: int
    reason: Reason


class Link(NamedTuple):
    """Let the target take what the source has, from now on and without delay."""

    source_id: int
    target_id: int
    version: int
    reason: Reason


class Unlink(NamedTuple):
    """Nothing is taken there any more."""

    source_id: int
    target_id: int
    version: int
    reason: Reason


Command = (
    Dispatch
    | Hold
    | Reject
    | Cancel
    | Conclude
    | Migrate
    | Abandon
    | Stay
    | AssignRole
    | Link
    | Unlink
    | Resize
    | Launch
    | Drain
    | Retain
    | Sleep
    | Wake
    | Stop
)
