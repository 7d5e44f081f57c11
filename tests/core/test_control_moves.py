"""The control plane where requests move: links, hand-offs and roles, whatever is lost or late."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import SIMPLE, capacity
from helpers.fleet import Fleet
from hyperflexis.core.binding import Binder, LeastPace
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Conclude, Reason, Why
from hyperflexis.core.control import ControlPlane, FixedFleet, Policy
from hyperflexis.core.dispatch import Dispatcher, Placement, SloDispatcher
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.relief import Relief
from hyperflexis.core.request import Request
from hyperflexis.core.roles import GrowthPlanner, PlannerRules, RoleChange, RolePlanner
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import StepRules

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


@dataclass
class AnyBinder:
    """Anything that a binder may say."""

    random: random.Random

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        choices = [None, source, *targets, *targets, *targets]
        chosen = self.random.choice(choices)
        return None if chosen is None else Placement(chosen, Reason(Why.PREFILLED))


@dataclass
class AnyDispatcher:
    random: random.Random

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        return Placement(self.random.choice(instances), Reason(Why.IN_TURN))


@dataclass
class AnyPlanner:
    random: random.Random
    share: float = 0.2

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        if not cluster.ready or self.random.random() > self.share:
            return []
        instance = self.random.choice(cluster.ready)
        role = self.random.choice([role for role in Role if role is not instance.role])
        return [RoleChange(instance, role, Reason(Why.BALANCES))]


class Act(NamedTuple):
    """Something that happens; the numbers choose among what is possible then."""

    name: str
    which: int
    where: int
    size: int


ACTS = [*["step"] * 8, *["tell"] * 8, *["hear"] * 8, *["copy"] * 5, *["arrive"] * 4, *["wait"] * 3]
ACTS += [*["start"] * 3, *["link"] * 5, "unlink", "cancel", "lose", "drain", "settle"]
SLOS = [Slo(), Slo(0.05, 0.02), Slo(0.5, 0.1), Slo(e2e_s=1.0)]


@dataclass
class Play:
    """Acts upon a fleet."""

    fleet: Fleet

    def play(self, acts: list[Act]) -> None:
        for number in list(self.fleet.starting):
            self.fleet.become_ready(number)
        for act in acts:
            getattr(self, act.name)(act)
        self.fleet.finish()
        for number, end in self.fleet.ends.items():
            if isinstance(end, Conclude) and end.reason.why is Why.ENDED:
                self.check_answer(number, end)

    def check_answer(self, number: int, end: Conclude) -> None:
        answer = self.fleet.answers[number]
        assert answer == [900 + i for i in range(len(answer))]
        assert end.verdict is not None
        assert end.verdict.timeline.tokens == len(answer)
        if end.verdict.migrations:
            event("moved, or begun again")

    def step(self, act: Act) -> None:
        for _ in range(1 + act.size % 3):
            if members := sorted(self.fleet.members):
                self.fleet.step(members[act.where % len(members)])

    def tell(self, act: Act) -> None:
        able = [number for number, member in self.fleet.members.items() if member.inbox]
        for _ in range(1 + act.size % 4 if able else 0):
            if self.fleet.members[able[act.where % len(able)]].inbox:
                self.fleet.tell(able[act.where % len(able)])

    def hear(self, act: Act) -> None:
        able = [number for number, member in self.fleet.members.items() if member.outbox]
        for _ in range(1 + act.size % 4 if able else 0):
            if self.fleet.members[able[act.where % len(able)]].outbox:
                self.fleet.hear(able[act.where % len(able)])

    def copy(self, act: Act) -> None:
        copies = [(m.ends, copy) for m in self.fleet.members.values() for copy in m.ends.copies]
        for ends, copy in copies[act.which % len(copies) :][:1] if copies else []:
            ends.end_copy(copy)

    def arrive(self, act: Act) -> None:
        prompt, most = 1 + act.size % 20, 1 + act.which % 12
        self.fleet.arrive(prompt, most, 1 + act.where * 2, SLOS[act.where % len(SLOS)])

    def wait(self, act: Act) -> None:
        self.fleet.wait((0.02, 0.3, 2.0, 6.0)[act.which % 4])

    def start(self, act: Act) -> None:
        for number in self.fleet.starting[:1]:
            self.fleet.become_ready(number)

    def link(self, act: Act) -> None:
        """Most come up; none are forgotten, wanted or not."""
        for link in self.fleet.links[act.where : act.where + 1 + act.size % 3]:
            if act.which % 5:
                self.fleet.link_up(link)
            else:
                self.fleet.link_down(link.source_id, link.target_id, link.version)

    def unlink(self, act: Act) -> None:
        for link in sorted(self.fleet.up)[act.which % 6 :][:1]:
            self.fleet.link_down(*link)

    def cancel(self, act: Act) -> None:
        for number in sorted(self.fleet.asked)[act.which % 5 :][:1]:
            self.fleet.cancel(number)

    def lose(self, act: Act) -> None:
        members = sorted([*self.fleet.members, *self.fleet.starting])
        if members and act.size % 2:
            self.fleet.lose(members[act.where % len(members)], is_heard=act.which % 2 > 0)

    def drain(self, act: Act) -> None:
        members = sorted(self.fleet.members)
        if members and act.size % 2:
            self.fleet.drain(members[act.where % len(members)])

    def settle(self, act: Act) -> None:
        self.fleet.settle()


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    instances = draw(st.integers(1, 4))
    roles = draw(st.lists(st.sampled_from([P, P, D, M]), max_size=instances))
    dice = random.Random(draw(st.integers(0, 99)))
    dispatcher: Dispatcher = draw(
        st.builds(SloDispatcher) | st.builds(SloDispatcher, converts=st.just(False)) | st.just(AnyDispatcher(dice))
    )
    binder: Binder = draw(st.builds(LeastPace, stays=st.booleans()) | st.just(AnyBinder(dice)))
    hasty = PlannerRules(dwell_s=0.3, windows_s=(0.5, 1.0), near=2.0)
    planner: RolePlanner | None = draw(st.none() | st.builds(GrowthPlanner, st.just(hasty)) | st.just(AnyPlanner(dice)))
    rules = StepRules(prefill_tokens_max=draw(st.integers(3, 24)), prefill_tokens_floor=2)
    relief = draw(st.none() | st.builds(Relief))
    policy = Policy("any", dispatcher, rules, binder=binder, planner=planner, relief=relief)
    plane = ControlPlane(policy, FixedFleet(instances, roles, launch_attempts_max=100))
    return Fleet(plane, capacity(draw(st.integers(16, 40)) // 2, 2, draw(st.integers(2, 5))), SIMPLE)


@settings(max_examples=100)
@given(
    fleets(),
    st.lists(
        st.builds(Act, st.sampled_from(ACTS), st.integers(0, 30), st.integers(0, 5), st.integers(0, 30)),
        min_size=60,
        max_size=120,
    ),
)
def test_everyone_ends_once_with_every_token_whatever_is_lost_or_late(fleet: Fleet, acts: list[Act]) -> None:
    Play(fleet).play(acts)
