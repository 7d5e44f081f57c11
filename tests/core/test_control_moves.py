"""The control plane where requests move: links, hand-offs and roles, whatever is lost or late."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import SIMPLE, capacity
from helpers.fleet import Fleet
from hyperflexis.core import recent
from hyperflexis.core.binding import Binder, LeastPace
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Abandon, AssignRole, Cancel, Conclude, Migrate, Reason, Stay, Why
from hyperflexis.core.control import MOVE_TRIES_MAX, STANDING_MAX_S, SWITCH_MAX_S, ControlPlane, Policy
from hyperflexis.core.dispatch import Dispatcher, Placement, SloDispatcher
from hyperflexis.core.events import Linked, LinkFailed, RequestCancelled, RequestFinished, TransferFailed
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Instance, InstanceState, Role
from hyperflexis.core.links import PENDING_MAX_S, RETRY_S
from hyperflexis.core.relief import Relief
from hyperflexis.core.request import Request, RequestState
from hyperflexis.core.roles import GrowthPlanner, PlannerRules, RoleChange, RolePlanner
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import StepRules

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


@pytest.fixture(autouse=True, scope="module")
def _knows_soon() -> Iterator[None]:
    """What is asked for is known at once, so that roles are planned in tests as short as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent, "FIRST", 3.0)
        patch.setattr(recent, "ENOUGH", 6.0)
        patch.setattr(recent, "SHORTEST_S", 0.3)
        patch.setattr(recent, "SAMPLE_S", 0.2)
        yield


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
    hasty = PlannerRules(dwell_s=0.3, near=2.0, error=0.0)
    planner: RolePlanner | None = draw(st.none() | st.builds(GrowthPlanner, st.just(hasty)) | st.just(AnyPlanner(dice)))
    rules = StepRules(prefill_tokens_max=draw(st.integers(3, 24)), prefill_tokens_floor=2)
    relief = draw(st.none() | st.builds(Relief))
    policy = Policy("any", dispatcher, rules, binder=binder, planner=planner, relief=relief)
    plane = ControlPlane(policy, FleetBounds.fixed(instances, roles, launch_attempts_max=100))
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


# By hand. Instance 0 prefills, 1 and 2 decode as well.


@dataclass
class Chosen:
    """Binds to the instance that the test says, by id; None to hold."""

    target: int | None = 1

    def choose(
        self, request: Request, source: Instance, targets: Sequence[Instance], cluster: Cluster, now: float
    ) -> Placement | None:
        able = [each for each in [*targets, source] if each.id == self.target]
        return Placement(able[0], Reason(Why.PREFILLED)) if able else None


def running(
    *roles: Role, target: int | None = 1, relief: Relief | None = None, linked: bool = True
) -> tuple[Fleet, Chosen]:
    """A whole fleet. Nothing is bound before its first token is out."""
    binder = Chosen(None)
    policy = Policy("test", SloDispatcher(converts=False), StepRules(), binder=binder, relief=relief)
    made = Fleet(ControlPlane(policy, FleetBounds.fixed(len(roles), roles)), capacity(100, 4, 8), SIMPLE)
    for number in list(made.starting):
        made.become_ready(number)
    for link in list(made.links) if linked else []:
        made.link_up(link)
    made.wait(2.0)
    binder.target = target
    return made, binder


def told(fleet: Fleet, kind: type) -> list[Any]:
    return [command for command in fleet.commands if isinstance(command, kind)]


def exchange(fleet: Fleet) -> None:
    """Everyone hears everything; nobody takes a step."""
    for number, member in fleet.members.items():
        while member.outbox:
            fleet.hear(number)
        while member.inbox:
            fleet.tell(number)


def prefilled(fleet: Fleet, number: int = 0) -> int:
    """A request whose first token is out there, and told."""
    request_id = fleet.arrive(20, 8, 8)
    exchange(fleet)
    fleet.step(number)
    fleet.hear(number)
    return request_id


def test_instance_takes_work_when_its_links_are_up_or_have_failed() -> None:
    made, _ = running(P, M, linked=False)
    states = [each.state for each in made.control.cluster.instances.values()]
    assert states == [InstanceState.READY, InstanceState.LINKING], "the first one had nobody to be linked with"
    there, back = made.links
    made.link_up(there)
    assert [each.id for each in made.control.cluster.ready] == [0]
    made.link_down(back.source_id, back.target_id, back.version)
    assert [each.id for each in made.control.cluster.ready] == [0, 1]
    made.arrive(20, 8, 8)
    made.finish()


def test_instance_does_not_wait_for_links_with_one_that_never_answers() -> None:
    """The first one hangs. The second one takes work without it, and is linked with it once it says something."""
    made, _ = running(M, M, linked=False)
    there, back = made.links
    made.link_up(there)
    made.wait(PENDING_MAX_S - 2.5)
    assert [each.id for each in made.control.cluster.ready] == [0]
    made.wait(0.8)
    assert [each.id for each in made.control.cluster.ready] == [0, 1]
    made.wait(RETRY_S)
    again = made.links[-1]
    assert (again.source_id, again.target_id) == (back.source_id, back.target_id)
    first, second = made.control.cluster.ready
    assert made.control.migrations.can(first, second)
    assert not made.control.migrations.can(second, first)
    made.link_up(again)
    assert made.control.migrations.can(second, first)
    made.arrive(20, 8, 8)
    made.finish()


def test_roles_are_told_to_instances_and_acknowledged() -> None:
    made, _ = running(P, M)
    (assigned,) = told(made, AssignRole)
    assert (assigned.instance_id, assigned.role, assigned.rules.hands_off) == (0, P, True)
    exchange(made)
    made.step(0)
    made.hear(0)
    assert made.control.cluster.instances[0].rules_in_force == assigned.version


def test_first_token_is_handed_off_and_the_answer_goes_on_elsewhere() -> None:
    made, _ = running(P, M)
    number = prefilled(made)
    (order,) = told(made, Migrate)
    assert (order.source_id, order.target_id, order.at_first_token) == (0, 1, True)
    assert made.control.cluster.requests[number].state is RequestState.STANDING
    made.finish()
    assert made.answers[number] == [900 + i for i in range(8)]
    end = made.ends[number]
    assert isinstance(end, Conclude)
    assert end.verdict is not None
    assert (end.verdict.instance, end.verdict.migrations) == ("i1", 1)


def test_what_is_to_be_handed_off_is_sent_for_as_soon_as_its_prefill_has_begun() -> None:
    made, _ = running(P, M)
    made.control.policy = replace(made.control.policy, rules=StepRules(prefill_tokens_max=8))
    exchange(made)
    made.members[0].ends.body.scheduler.reconfigure(StepRules(prefill_tokens_max=8, hands_off=True))
    number = prefilled(made)
    (order,) = told(made, Migrate)
    assert order.reason.why is Why.PREFILLING
    assert made.control.cluster.requests[number].state is RequestState.PREFILLING
    made.finish()
    assert len(told(made, Migrate)) == 1


@pytest.mark.parametrize("early", [True, False])
def test_target_that_dies_leaves_it_to_be_bound_again(early: bool) -> None:
    made, binder = running(P, M, M)
    number = prefilled(made)
    if not early:
        for _ in range(2):
            exchange(made)
            for copy in list(made.members[1].ends.copies):
                made.members[1].ends.end_copy(copy)
        made.step(1)  # It has been adopted there, and that is not told.
        assert made.members[1].ends.body.scheduler.find(number) is not None
    binder.target = 2
    made.lose(1)
    made.wait(0.3)
    assert [order.target_id for order in told(made, Migrate)] == [1, 2]
    made.finish()
    assert made.answers[number] == [900 + i for i in range(8)]


@pytest.mark.parametrize("has_all", [True, False])
def test_source_that_dies_leaves_it_to_its_target_if_that_has_everything(has_all: bool) -> None:
    made, _ = running(P, M)
    number = prefilled(made)
    exchange(made)
    if has_all:
        for copy in list(made.members[1].ends.copies):
            made.members[1].ends.end_copy(copy)
        assert made.members[1].ends.body.scheduler.find(number) is not None
    made.lose(0)
    (abandon,) = told(made, Abandon)
    assert (abandon.request_id, abandon.target_id) == (number, 1)
    assert made.control.cluster.requests[number].state is RequestState.IN_TRANSIT
    made.finish()
    end = made.ends[number]
    assert isinstance(end, Conclude)
    assert end.verdict is not None
    assert made.answers[number] == [900 + i for i in range(8)]
    assert end.verdict.timeline.tokens == 8


def test_client_that_leaves_during_a_move_is_told_to_the_target_first() -> None:
    made, _ = running(P, M)
    number = prefilled(made)
    exchange(made)
    made.cancel(number)
    assert [(cancel.request_id, cancel.instance_id) for cancel in told(made, Cancel)] == [(number, 1), (number, 0)]
    made.finish()
    assert len(made.ends) == 1


def test_move_that_fails_so_often_is_not_tried_again() -> None:
    made, _ = running(P, M)
    number = prefilled(made)
    for tries in range(MOVE_TRIES_MAX):
        assert len(told(made, Migrate)) == tries + 1
        made.feed(TransferFailed(number, 1, "so the test says"))
        made.members[1].inbox.clear()
        made.wait(0.3)
    (stay,) = told(made, Stay)
    assert (stay.request_id, stay.instance_id, stay.reason.why) == (number, 0, Why.NO_DECODE)
    made.finish()
    assert len(told(made, Migrate)) == MOVE_TRIES_MAX


def test_what_stands_still_for_too_long_goes_on() -> None:
    made, _ = running(P, M, target=None)
    number = prefilled(made)
    made.wait(STANDING_MAX_S - 0.3)
    assert told(made, Stay) == []
    made.wait(0.6)
    (stay,) = told(made, Stay)
    assert stay.request_id == number
    made.finish()


def test_what_ends_while_it_stands_still_is_bound_no_more() -> None:
    made, _ = running(P, M, target=None)
    number = prefilled(made)
    made.feed(RequestFinished(0, number, 1, failed=True))
    made.control.check()
    made.wait(STANDING_MAX_S + 0.3)
    assert told(made, Stay) == told(made, Migrate) == []


def test_without_a_link_to_anyone_it_stays_at_once() -> None:
    made, _ = running(P, M)
    made.link_down(*next(link for link in made.up if link[:2] == (0, 1)))
    number = prefilled(made)
    (stay,) = told(made, Stay)
    assert (stay.request_id, stay.move) == (number, None)
    made.finish()


def test_link_that_failed_is_used_again_when_it_is_up_again_as_another_version() -> None:
    made, _ = running(P, M)
    lost = next(link for link in made.up if link[:2] == (0, 1))
    made.link_down(*lost)
    made.wait(RETRY_S + 0.3)
    (again,) = made.links
    assert again.version > lost[2]
    assert made.feed(Linked(*lost)) == [], "the old one"
    assert not made.control.migrations.can(*made.control.cluster.ready)
    made.link_up(again)
    prefilled(made)
    (order,) = told(made, Migrate)
    assert order.link_version == again.version
    made.feed(LinkFailed(*lost))
    made.finish()


def test_words_of_moves_that_are_over_change_nothing() -> None:
    made, _ = running(P, M)
    number = prefilled(made)
    made.finish()
    assert made.feed(TransferFailed(number, 1)) == []
    assert made.feed(RequestCancelled(number)) == []
    assert made.feed(TransferFailed(55, 0)) == []


@dataclass
class Wanted:
    """Has one instance change its role."""

    number: int
    role: Role

    def plan(self, cluster: Cluster, now: float) -> list[RoleChange]:
        wanted = [each for each in cluster.ready if each.id == self.number and each.role is not self.role]
        return [RoleChange(each, self.role, Reason(Why.BALANCES)) for each in wanted]


def relabel(fleet: Fleet, number: int, role: Role) -> None:
    fleet.control.policy = replace(fleet.control.policy, planner=Wanted(number, role))
    fleet.wait(0.3)


def test_role_that_changes_lets_what_stands_still_go_on_there() -> None:
    made, _ = running(P, M, target=None)
    number = prefilled(made)
    relabel(made, 0, M)
    (stay,) = told(made, Stay)
    assert (stay.request_id, stay.reason.why) == (number, Why.BALANCES)
    assert told(made, AssignRole)[-1].rules.hands_off is False
    made.finish()
    assert told(made, Migrate) == []


def test_what_only_waits_leaves_an_instance_that_prefills_no_more() -> None:
    """What has begun ends there, with what decodes."""
    made, _ = running(M, M, target=None)
    numbers = [made.arrive(20, 8, 8) for _ in range(8)]
    exchange(made)
    instance = made.control.cluster.instances[0]
    began = [each for each in numbers if each in instance.waiting]
    assert len(began) == 4
    made.step(0)
    made.hear(0)
    late = [made.arrive(20, 8, 8) for _ in range(6)]
    waiting = [each for each in late if each in instance.waiting]
    assert waiting
    relabel(made, 0, D)
    orders = told(made, Migrate)
    assert [(each.request_id, each.source_id, each.target_id) for each in orders] == [(each, 0, 1) for each in waiting]
    assert all(each.reason.why is Why.BALANCES and not each.at_first_token for each in orders)
    exchange(made)
    for number in (0, 1, 0):
        made.step(number)
        exchange(made)
    assert not instance.waiting
    made.finish()
    homes = {
        number: end.verdict.instance for number, end in made.ends.items() if isinstance(end, Conclude) and end.verdict
    }
    assert {homes[each] for each in waiting} == {"i1"}
    assert {homes[each] for each in began} == {"i0"}


def test_what_waits_stays_where_nobody_else_would_prefill_it() -> None:
    made, _ = running(M, M, target=None)
    lost = next(link for link in made.up if link[:2] == (0, 1))
    made.link_down(*lost)
    for _ in range(4):
        made.arrive(20, 8, 8)
    relabel(made, 0, D)
    assert told(made, Migrate) == []
    made.finish()


@dataclass
class First:
    """Chooses among all that there are, whomever it is asked about."""

    def choose(self, request: Request, instances: Sequence[Instance], cluster: Cluster, now: float) -> Placement:
        return Placement(cluster.ready[0], Reason(Why.IN_TURN))


def test_what_waits_stays_where_the_dispatcher_puts_it_even_if_that_was_not_asked() -> None:
    made, _ = running(M, M, target=None)
    made.control.policy = replace(made.control.policy, dispatcher=First())
    for _ in range(4):
        made.arrive(20, 8, 8)
    assert len(made.control.cluster.instances[0].waiting) == 4
    relabel(made, 0, D)
    assert told(made, Migrate) == []
    made.finish()


def test_instance_that_does_not_take_its_new_role_has_the_old_one() -> None:
    made, _ = running(M, M)
    made.arrive(20, 8, 8)
    instance = made.control.cluster.instances[1]
    change = RoleChange(instance, P, Reason(Why.BALANCES))
    made.commands.extend(made.control._change_role(change, made.now))
    assert instance.role is P
    made.wait(SWITCH_MAX_S - 1.0)
    assert instance.role is P
    made.wait(2.0)
    assert instance.role is M
    last = told(made, AssignRole)[-1]
    assert (last.instance_id, last.role, last.reason.why) == (1, M, Why.SWITCH_FAILED)
    made.finish()


def test_instance_that_drains_in_a_quiet_fleet_is_stopped_and_replaced() -> None:
    made, _ = running(P, M)
    number = prefilled(made)
    made.drain(1)
    assert 1 in made.members, "it is to take one more"
    made.finish()
    assert 1 not in made.members
    assert sorted([*made.members, *made.starting]) == [0, 2]
    assert len(made.answers[number]) == 8
    made.drain(0)
    assert 0 not in made.members, "at once"


def test_planner_says_nothing_of_a_link_that_is_due_between_two_ticks() -> None:
    made, _ = running(P, M)
    made.arrive(20, 8, 8)
    made.wait(0.15)
    made.link_down(*next(iter(made.up)))
    made.wait(RETRY_S + 1.0)
    assert made.links
    made.finish()
