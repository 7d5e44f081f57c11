"""The instances that exist now: their adapters, what they said when they became ready, and their last report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.core.instance import Role
from hyperflexis.wire.messages import Ready, StepReport


class Launcher(Protocol):
    """Makes instances somewhere."""

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        """Begin to start an instance. Success and failure are heard of through the listener."""


State = Literal["starting", "ready", "draining", "asleep"]


@dataclass(slots=True)
class Member:
    """One instance."""

    adapter: Adapter
    role: Role
    state: State = "starting"
    ready: Ready | None = None
    """What it said when it was ready for the first time."""
    report: StepReport | None = None
    untold_steps: int = 0
    """Steps since the last report that said how many the control plane is to hear of."""

    def note_steps(self, report: StepReport) -> None:
        """Count a step that is not told, if it is a whole one: servers that tell only tokens may tell one in parts."""
        if report.steps:
            self.untold_steps = 0
        elif report.decode_seqs and len(report.requests) >= report.decode_seqs:
            self.untold_steps += 1

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests, or still ends some."""
        return self.state in ("ready", "draining")


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """One instance as operators see it."""

    name: str
    state: str
    role: str
    waiting_seqs: int
    running_seqs: int
    blocks: int
    blocks_free: int


def status_of(name: str, member: Member) -> InstanceStatus:
    ready, report = member.ready, member.report
    blocks = ready.blocks if ready else 0
    return InstanceStatus(
        name=name,
        state=member.state,
        role=member.role.value,
        waiting_seqs=report.waiting_seqs if report else 0,
        running_seqs=report.running_seqs if report else 0,
        blocks=blocks,
        blocks_free=report.blocks_free if report else blocks,
    )
