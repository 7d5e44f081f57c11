"""The control plane under whatever may happen: nobody is lost, nobody is served twice, and everyone hears an end."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers import soak
from helpers.builders import SIMPLE, arrival, capacity, slo
from helpers.world import STOP, Job, World, relabelled
from hyperflexis.core.cadence import STEPS_MAX
from hyperflexis.core.commands import Cancel, Command, Conclude, Dispatch, Launch, Reject, Why
from hyperflexis.core.control import PROGRESS_TOKENS, TRIES_MAX, ControlPlane, Policy
from hyperflexis.core.dispatch import SloDispatcher
from hyperflexis.core.events import (
    Event,
    FleetChanged,
    InstanceDrained,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestReturned,
    Wakeup,
)
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.latency import StepShape
from hyperflexis.core.request import RequestState
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import StepRules
from hyperflexis.policies import create

CAPACITY = capacity(blocks=100, block_tokens=4, seqs_max=8)


def control(instances: int = 1, requests_max: int = 1000, **fleet: float) -> ControlPlane:
    return ControlPlane(
        Policy("test", SloDispatcher(), StepRules()),
        FleetBounds.fixed(instances, **fleet),
        requests_max,
    )


def feed(plane: ControlPlane, *events: Event, now: float = 0.0) -> list[Command]:
    """Hand in events at one instant; every state in between must be sound."""
    commands = []
    for event in events:
        commands += plane.handle(event, now)
        plane.check()
    return commands


def ready(instance_id: int) -> InstanceReady:
    return InstanceReady(instance_id, CAPACITY, SIMPLE)


def running(instances: int = 1, **limits: float) -> ControlPlane:
    """A control plane whose whole fleet is ready."""
    plane = control(instances, **limits)
    feed(plane, Wakeup(), *(ready(number) for number in range(instances)))
    return plane


def summary(commands: list[Command]) -> list[tuple[str, int, Why]]:
    """(kind, id, why): what a command is about, without its numbers."""
    return [
        (type(c).__name__, c.instance_id if isinstance(c, Launch) else c.request_id, c.reason.why) for c in commands
    ]


def reported(instance_id: int = 0, steps: int = 1, **news: tuple[int, ...]) -> InstanceReported:
    return InstanceReported(instance_id, StepShape(10, 100), 0.02, steps, **news)


def first_token(request_id: int, instance_id: int = 0) -> InstanceReported:
    """Its whole prefill in one step."""
    return reported(instance_id, started=(request_id,), began=(request_id,))


# Requests.


def test_first_wakeup_launches_the_fleet() -> None:
    plane = control(2)
    assert summary(feed(plane, Wakeup())) == [("Launch", 0, Why.FLEET_SHORT), ("Launch", 1, Why.FLEET_SHORT)]
    assert feed(plane, Wakeup()) == []
    assert plane.next_wakeup() is None


def test_request_is_held_until_an_instance_is_ready() -> None:
    plane = control()
    feed(plane, Wakeup())
    assert summary(feed(plane, arrival(5))) == [("Hold", 5, Why.NO_INSTANCE)]
    assert summary(feed(plane, ready(0))) == [("Dispatch", 5, Why.FEASIBLE)]


def test_held_requests_are_dispatched_in_order() -> None:
    plane = control()
    feed(plane, Wakeup(), arrival(1), arrival(2, slo=slo(ttft_s=1.0)), arrival(3, priority=1))
    assert [c.request_id for c in feed(plane, ready(0)) if isinstance(c, Dispatch)] == [3, 2, 1]


def test_life_of_a_request() -> None:
    plane = running()
    assert summary(feed(plane, arrival(1, max_tokens=3, slo=Slo(1.0, 0.1)))) == [("Dispatch", 1, Why.FEASIBLE)]
    feed(plane, first_token(1), now=0.5)
    (end,) = feed(plane, reported(steps=2), RequestFinished(0, 1, 3), now=0.6)
    assert isinstance(end, Conclude)
    assert end.verdict is not None
    assert end.verdict.attained
    timeline = end.verdict.timeline
    assert (timeline.prefill_started_s, timeline.first_token_s, timeline.last_token_s) == (0.48, 0.5, 0.6)
    assert (timeline.tokens, timeline.predicted_ttft_s, end.verdict.instance) == (3, pytest.approx(0.020), "i0")
    assert not plane.cluster.requests


def test_answers_teach_how_long_answers_are() -> None:
    plane = running()
    feed(plane, arrival(1, max_tokens=50), first_token(1), RequestFinished(0, 1, 1))
    feed(plane, arrival(2, max_tokens=50), reported(started=(2,)), RequestFinished(0, 2, 0, failed=True))
    (dispatch,) = feed(plane, arrival(3, max_tokens=50))
    assert isinstance(dispatch, Dispatch)
    assert dispatch.expected_tokens == plane.cluster.expected_tokens(plane.cluster.requests[3]) == 1


def test_request_too_large_for_every_instance_is_refused() -> None:
    plane = running()
    assert summary(feed(plane, arrival(1, prompt_tokens=399, max_tokens=2))) == [("Reject", 1, Why.TOO_LARGE)]
    assert summary(feed(plane, arrival(2, prompt_tokens=399, max_tokens=1))) == [("Dispatch", 2, Why.FEASIBLE)]


def test_too_many_unfinished_requests_are_refused_with_a_hint() -> None:
    plane = running(requests_max=2)
    feed(plane, arrival(1), arrival(2))
    (refusal,) = feed(plane, arrival(3))
    assert isinstance(refusal, Reject)
    assert refusal.reason.why is Why.QUEUE_FULL
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s > 0
    feed(plane, RequestCancelled(1))
    assert summary(feed(plane, arrival(4))) == [("Dispatch", 4, Why.FEASIBLE)]


def test_more_important_ones_take_the_places_of_those_that_have_not_begun() -> None:
    plane = running(requests_max=2)
    feed(plane, arrival(1), arrival(2))
    assert summary(feed(plane, arrival(3))) == [("Reject", 3, Why.QUEUE_FULL)]
    commands = feed(plane, arrival(4, priority=1))
    told = [("Dispatch", 4, Why.FEASIBLE), ("Cancel", 2, Why.DISPLACED), ("Reject", 2, Why.DISPLACED)]
    assert summary(commands) == told
    refusal = commands[-1]
    assert isinstance(refusal, Reject)
    assert refusal.retry_after_s is not None
    assert sorted(plane.cluster.requests) == [1, 4]
    feed(plane, first_token(1))
    assert summary(feed(plane, arrival(5, priority=1))) == [("Reject", 5, Why.QUEUE_FULL)]


def test_nobody_goes_for_one_that_is_refused_all_the_same() -> None:
    plane = running(requests_max=1)
    feed(plane, arrival(1))
    commands = feed(plane, arrival(2, prompt_tokens=399, max_tokens=2, priority=1))
    assert summary(commands) == [("Reject", 2, Why.TOO_LARGE)]
    assert sorted(plane.cluster.requests) == [1]


def test_request_that_rather_hears_no_is_refused_where_it_would_be_late() -> None:
    plane = running()
    late, timely = slo(ttft_s=0.019), slo(ttft_s=0.021)
    (refusal,) = feed(plane, arrival(1, slo=late, refuses_late=True))
    assert isinstance(refusal, Reject)
    assert refusal.reason.why is Why.TOO_LATE
    assert refusal.retry_after_s == pytest.approx(0.001)
    assert not plane.cluster.requests
    assert summary(feed(plane, arrival(2, slo=late))) == [("Dispatch", 2, Why.LEAST_HARM)]
    plane = running()
    assert summary(feed(plane, arrival(3, slo=timely, refuses_late=True))) == [("Dispatch", 3, Why.FEASIBLE)]


def test_request_that_had_an_instance_is_never_refused_as_late() -> None:
    plane = running()
    feed(plane, arrival(1, slo=slo(ttft_s=0.1), refuses_late=True))
    feed(plane, InstanceLost(0), now=60.0)
    assert summary(feed(plane, ready(1), now=90.0)) == [("Dispatch", 1, Why.LEAST_HARM)]


def test_cancelled_while_held() -> None:
    plane = control()
    feed(plane, Wakeup(), arrival(1))
    assert summary(feed(plane, RequestCancelled(1))) == [("Conclude", 1, Why.CLIENT_LEFT)]
    assert feed(plane, RequestCancelled(1)) == []
    assert feed(plane, ready(0)) == []


def test_cancelled_while_decoding_stops_the_work_and_says_what_there_was() -> None:
    plane = running()
    feed(plane, arrival(1), first_token(1))
    cancel, end = feed(plane, RequestCancelled(1, 1))
    assert isinstance(cancel, Cancel)
    assert isinstance(end, Conclude)
    assert end.verdict is not None
    assert (end.verdict.instance, end.verdict.timeline.tokens) == ("i0", 1)


def test_late_messages_about_a_cancelled_request_are_ignored() -> None:
    plane = running()
    feed(plane, arrival(1), RequestCancelled(1))
    late = [reported(started=(1,), preempted=(1,)), first_token(1), RequestFinished(0, 1, 1)]
    assert feed(plane, *late) == []


def test_late_messages_about_a_moved_request_are_ignored() -> None:
    plane = running(2)
    feed(plane, arrival(1), first_token(1), InstanceLost(0), now=60.0)
    assert plane.cluster.requests[1].instance_id == 1
    late = [reported(2, started=(1,), preempted=(1,)), first_token(1, 2), RequestFinished(2, 1, 2)]
    feed(plane, ready(2), now=60.0)
    assert feed(plane, *late, now=60.0) == []
    assert plane.cluster.requests[1].emitted_tokens == 1


def test_preempted_request_starts_again_and_keeps_its_first_instants() -> None:
    plane = running()
    feed(plane, arrival(1), first_token(1), now=1.0)
    feed(plane, reported(preempted=(1,)), now=2.0)
    assert list(plane.cluster.instances[0].waiting) == [1]
    feed(plane, first_token(1), now=3.0)
    one = plane.cluster.requests[1]
    assert (one.emitted_tokens, one.first_token_s, one.prefill_started_s) == (2, 1.0, 0.98)


def test_prefill_preempted_before_its_first_token_may_restart_in_the_same_step() -> None:
    plane = running()
    feed(plane, arrival(1), reported(started=(1,)), reported(started=(1,), began=(1,), preempted=(1,)))
    assert list(plane.cluster.instances[0].decoding) == [1]


def test_steps_told_together_count_for_those_that_decoded_in_each() -> None:
    """Who was preempted lacks the last step's token; who began has that one only."""
    plane = running()
    feed(plane, arrival(1, max_tokens=50), arrival(2, max_tokens=50), arrival(3, max_tokens=50))
    feed(plane, reported(started=(1, 2), began=(1, 2)))
    feed(plane, reported(steps=5, started=(3,), began=(3,), preempted=(2,)))
    assert {number: each.emitted_tokens for number, each in plane.cluster.requests.items()} == {1: 6, 2: 5, 3: 1}
    feed(plane, reported(steps=16))
    assert {number: each.emitted_tokens for number, each in plane.cluster.requests.items()} == {1: 22, 2: 5, 3: 17}
    assert plane.cluster.instances[0].context_tokens == 10 + 22 + 10 + 17


def test_client_that_leaves_says_how_much_it_had() -> None:
    """Steps that nobody was told of have given it tokens."""
    plane = running()
    feed(plane, arrival(1), first_token(1), now=1.0)
    _, end = feed(plane, RequestCancelled(1, 7), now=2.0)
    assert isinstance(end, Conclude)
    assert end.verdict is not None
    assert (end.verdict.timeline.tokens, end.verdict.timeline.last_token_s) == (7, 2.0)


def test_answer_longer_than_planned_is_planned_anew() -> None:
    plane = running()
    feed(plane, arrival(1, max_tokens=50), first_token(1), RequestFinished(0, 1, 3))
    feed(plane, arrival(2, max_tokens=50), first_token(2), RequestFinished(0, 2, 9))
    feed(plane, arrival(3, max_tokens=50), first_token(3))
    instance = plane.cluster.instances[0]
    assert instance.planned_tokens == 10 + 3, "the upper quantile of two, rounded down"
    feed(plane, reported(steps=2))
    assert instance.planned_tokens == 10 + 9, "answers longer than three tokens had nine"
    feed(plane, reported(steps=6))
    assert instance.planned_tokens == 10 + 50, "nothing so long has been seen"


def test_request_may_fail_before_it_begins() -> None:
    plane = running()
    feed(plane, arrival(1))
    (end,) = feed(plane, RequestFinished(0, 1, 0, failed=True))
    assert isinstance(end, Conclude)
    assert end.verdict is None


def test_request_that_arrives_twice_is_our_own_bug() -> None:
    plane = running()
    feed(plane, arrival(1))
    with pytest.raises(AssertionError, match="arrived twice"):
        feed(plane, arrival(1))


# Instances.


def test_lost_instance_is_replaced_and_its_requests_go_elsewhere_with_what_they_have() -> None:
    plane = running(2)
    feed(plane, arrival(1), first_token(1))
    commands = feed(plane, InstanceLost(0), now=5.0)
    assert summary(commands) == [
        ("Hold", 1, Why.INSTANCE_LOST),
        ("Launch", 2, Why.FLEET_SHORT),
        ("Dispatch", 1, Why.FEASIBLE),
    ]
    one = plane.cluster.requests[1]
    assert (one.instance_id, one.emitted_tokens, one.dispatches) == (1, 1, 2)
    assert one.planned_tokens == one.prompt_tokens + one.max_tokens, "what it has emitted is part of its answer"


def test_last_instance_lost_holds_its_requests_for_the_next() -> None:
    plane = running()
    feed(plane, arrival(1), arrival(2))
    feed(plane, InstanceLost(0), now=60.0)
    assert [each.id for each in plane.cluster.queue] == [1, 2]
    assert [c.request_id for c in feed(plane, ready(1)) if isinstance(c, Dispatch)] == [1, 2]


def test_request_that_survived_too_many_instances_is_refused() -> None:
    """It may be what kills them."""
    plane = running()
    feed(plane, arrival(1))
    for number in range(TRIES_MAX - 1):
        now = 60.0 * (number + 1)
        assert ("Hold", 1, Why.INSTANCE_LOST) in summary(feed(plane, InstanceLost(number), now=now))
        feed(plane, ready(number + 1), now=now)
    last = feed(plane, InstanceLost(TRIES_MAX - 1), now=60.0 * TRIES_MAX)
    assert ("Reject", 1, Why.LOST_TOO_OFTEN) in summary(last)
    assert not plane.cluster.requests


@pytest.mark.parametrize("untold", [True, False])
def test_request_that_gets_further_on_each_instance_is_never_given_up(untold: bool) -> None:
    """It is not what kills them, whether or not they had told of its last tokens when they died."""
    plane = running()
    feed(plane, arrival(1, max_tokens=300))
    for number in range(3 * TRIES_MAX):
        now = 60.0 * (number + 1)
        feed(plane, first_token(1, number), now=now)
        if not untold:
            feed(plane, reported(number, PROGRESS_TOKENS - 1), now=now)
        lost = feed(plane, InstanceLost(number, untold_steps=(PROGRESS_TOKENS - 1) * untold), now=now)
        assert ("Hold", 1, Why.INSTANCE_LOST) in summary(lost)
        feed(plane, ready(number + 1), now=now)
    assert plane.cluster.requests[1].emitted_tokens == 3 * TRIES_MAX * PROGRESS_TOKENS


def test_request_that_hardly_gets_further_before_each_instance_dies_is_given_up() -> None:
    plane = running()
    feed(plane, arrival(1, max_tokens=300))
    for number in range(TRIES_MAX):
        now = 60.0 * (number + 1)
        feed(plane, first_token(1, number), now=now)
        lost = feed(plane, InstanceLost(number, untold_steps=PROGRESS_TOKENS - 2), now=now)
        feed(plane, ready(number + 1), now=now)
    assert ("Reject", 1, Why.LOST_TOO_OFTEN) in summary(lost)


def test_instance_that_dies_as_soon_as_it_is_ready_is_replaced_after_a_pause() -> None:
    plane = running()
    assert feed(plane, InstanceLost(0), now=0.5) == []
    assert plane.next_wakeup() == 1.5
    assert summary(feed(plane, Wakeup(), now=1.5)) == [("Launch", 1, Why.FLEET_SHORT)]


def test_instances_that_fail_to_start_together_count_as_one_failure() -> None:
    plane = control(3, launch_attempts_max=2)
    feed(plane, Wakeup())
    feed(plane, *(InstanceLost(number) for number in range(3)), now=5.0)
    assert plane.sizing.is_startable()
    assert len(feed(plane, Wakeup(), now=6.0)) == 3
    feed(plane, InstanceLost(3), now=7.0)
    assert not plane.sizing.is_startable()


def test_launching_backs_off_doubling_and_gives_up() -> None:
    plane = control(1, launch_attempts_max=4, launch_backoff_s=1.0)
    feed(plane, Wakeup(), arrival(1))
    now, pauses = 0.0, []
    for number in range(3):
        assert feed(plane, InstanceLost(number), now=now) == []
        wakeup_s = plane.next_wakeup()
        assert wakeup_s is not None
        assert feed(plane, Wakeup(), now=math.nextafter(wakeup_s, 0)) == [], "not before its time"
        assert summary(feed(plane, Wakeup(), now=wakeup_s)) == [("Launch", number + 1, Why.FLEET_SHORT)]
        pauses.append(wakeup_s - now)
        now = wakeup_s
    assert pauses == [1.0, 2.0, 4.0]
    assert summary(feed(plane, InstanceLost(3), now=now)) == [("Reject", 1, Why.START_FAILS)]
    assert not plane.sizing.is_startable()
    assert plane.next_wakeup() is None
    assert summary(feed(plane, arrival(2), now=now + 1)) == [("Reject", 2, Why.START_FAILS)]


def test_success_forgets_failures() -> None:
    plane = control(1, launch_attempts_max=2)
    feed(plane, Wakeup(), InstanceLost(0))
    feed(plane, Wakeup(), ready(1), now=10.0)
    feed(plane, InstanceLost(1), now=20.0)
    feed(plane, InstanceLost(2), now=30.0)
    assert plane.sizing.is_startable()


def test_giving_up_on_more_instances_keeps_those_that_run() -> None:
    plane = control(2, launch_attempts_max=1)
    feed(plane, Wakeup(), ready(0), InstanceLost(1))
    assert not plane.sizing.is_startable()
    assert summary(feed(plane, arrival(1))) == [("Dispatch", 1, Why.FEASIBLE)]


def test_check_finds_work_that_waits_beside_a_ready_instance() -> None:
    plane = running()
    feed(plane, arrival(1))
    one = plane.cluster.requests[1]
    plane.cluster.instances[0].remove(one)
    one.state, one.instance_id = type(one.state).QUEUED, None
    plane.cluster.enqueue(one)
    with pytest.raises(AssertionError, match="waits although an instance is ready"):
        plane.check()


# Whatever may happen.

SLOS = [Slo(), Slo(0.05, 0.02), Slo(0.5, 0.1), Slo(e2e_s=1.0)]


# Requests that an instance gives back.


def dispatched_to(commands: list[Command]) -> list[tuple[int, int]]:
    return [(c.request_id, c.instance_id) for c in commands if isinstance(c, Dispatch)]


def test_returned_request_goes_elsewhere_with_what_its_client_has() -> None:
    plane = running(2)
    ((_, first),) = dispatched_to(feed(plane, arrival(1, max_tokens=9), now=0.0))
    feed(plane, reported(first, started=(1,), began=(1,)), now=0.5)
    commands = feed(plane, RequestReturned(first, 1, emitted_tokens=3), now=0.6)
    assert summary(commands)[0] == ("Hold", 1, Why.RETURNED)
    assert dispatched_to(commands) == [(1, 1 - first)]
    assert plane.cluster.requests[1].emitted_tokens == 3
    assert plane.cluster.instances[first].is_empty


def test_returned_request_goes_back_where_there_is_no_other() -> None:
    plane = running()
    feed(plane, arrival(1))
    assert dispatched_to(feed(plane, RequestReturned(0, 1, 0, was_refused=True))) == [(1, 0)]


def test_request_that_is_returned_again_and_again_is_given_up() -> None:
    plane = running(2)
    commands = feed(plane, arrival(1))
    for _ in range(TRIES_MAX):
        ((_, at),) = dispatched_to(commands)
        commands = feed(plane, RequestReturned(at, 1, 0))
    assert summary(commands) == [("Reject", 1, Why.LOST_TOO_OFTEN)]


def test_request_that_is_refused_for_want_of_room_is_never_given_up() -> None:
    plane = running(2)
    commands = feed(plane, arrival(1))
    for _ in range(5 * TRIES_MAX):
        ((_, at),) = dispatched_to(commands)
        commands = feed(plane, RequestReturned(at, 1, 0, was_refused=True))
    assert plane.cluster.requests[1].dispatches == 1


def test_return_of_what_is_elsewhere_or_nowhere_is_ignored() -> None:
    plane = running(2)
    ((_, at),) = dispatched_to(feed(plane, arrival(1)))
    assert feed(plane, RequestReturned(1 - at, 1, 0), RequestReturned(at, 7, 0)) == []


# Fleets that become others.


def test_larger_fleet_is_launched_and_a_smaller_one_is_drained_to() -> None:
    plane = running(2)
    assert summary(feed(plane, FleetChanged(FleetBounds.fixed(3)))) == [("Launch", 2, Why.FLEET_SHORT)]
    feed(plane, ready(2))
    assert feed(plane, FleetChanged(FleetBounds.fixed(2))) == []
    commands = feed(plane, InstanceDrained(1))
    assert [type(each).__name__ for each in commands] == ["Stop"]
    assert sorted(plane.cluster.instances) == [0, 2]


def test_fleet_that_had_been_given_up_is_tried_again_when_it_changes() -> None:
    plane = control(1, launch_attempts_max=1)
    feed(plane, Wakeup(), InstanceLost(0))
    assert not plane.sizing.is_startable()
    assert summary(feed(plane, FleetChanged(FleetBounds.fixed(1)), now=60.0)) == [("Launch", 1, Why.FLEET_SHORT)]


class Anything(RuleBasedStateMachine):
    """A world of tiny instances in which everything comes at any time: the events of a step after what they are late
    for, losses in the middle of steps, launches that fail. Instances are real step schedulers.
    """

    @initialize(
        instances=st.integers(1, 3),
        blocks=st.integers(4, 10) | st.integers(40, 60),
        policy=st.sampled_from(["hyperflexis", "round_robin"]),
        requests_max=st.sampled_from([3, 100]),
        attempts=st.sampled_from([2, 100]),
    )
    def start(self, instances: int, blocks: int, policy: str, requests_max: int, attempts: int) -> None:
        fleet = FleetBounds.fixed(instances, launch_attempts_max=attempts)
        plane = ControlPlane(create(policy, 16), fleet, requests_max)
        self.world = World(plane, capacity(blocks, 4, 4), SIMPLE, checks=True)
        self.now = 0.0
        self.arrived = 0
        self.jobs: dict[int, Job] = {}
        self.losses: dict[int, int] = {}
        self.world.feed(Wakeup(), self.now)

    @property
    def starting(self) -> list[int]:
        return [number for number, body in self.world.bodies.items() if body.scheduler is None]

    @property
    def serving(self) -> list[int]:
        return [number for number, body in self.world.bodies.items() if body.scheduler is not None]

    @rule(
        prompt=st.tuples(st.integers(1, 30), st.integers(0, 30)),
        lengths=st.tuples(st.integers(1, 12), st.integers(1, 12))
        | st.tuples(st.integers(60, 160), st.integers(1, 160)),
        slo=st.sampled_from(SLOS),
        priority=st.integers(0, 1),
    )
    def arrive(self, prompt: tuple[int, int], lengths: tuple[int, int], slo: Slo, priority: int) -> None:
        """A prompt of so many tokens, of which so many are shared; answers as long as asked, and as they really are."""
        tokens, shared = prompt[0], min(prompt)
        text = [*range(100, 100 + shared), *(1000 * self.arrived + i for i in range(tokens - shared))]
        job = Job(self.arrived, text, lengths[0], slo, priority, "chat", lengths[1])
        self.jobs[job.id] = job
        self.arrived += 1
        self.world.arrive(job, self.now)

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world.cancel(data.draw(st.sampled_from(sorted(self.world.live))), self.now)

    @precondition(lambda self: self.starting)
    @rule(data=st.data())
    def become_ready(self, data: st.DataObject) -> None:
        self.world.become_ready(data.draw(st.sampled_from(self.starting)), self.now)
        assert not self.world.control.cluster.queue

    @precondition(lambda self: self.serving)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Begin a step, or end the one that runs; in between, anything may happen."""
        body = self.world.bodies[data.draw(st.sampled_from(self.serving))]
        if body.plan is None:
            body.begin(self.now)
        else:
            self.world.end_step(body, SIMPLE.step_s(body.plan.shape), self.now)

    @precondition(lambda self: self.serving)
    @rule(data=st.data(), steps=st.integers(1, 2 * STEPS_MAX))
    def step_often(self, data: st.DataObject, steps: int) -> None:
        """Many steps, of which most go untold."""
        body = self.world.bodies[data.draw(st.sampled_from(self.serving))]
        for _ in range(steps):
            if body.plan is None and body.begin(self.now) is None:
                break
            assert body.plan is not None
            self.world.end_step(body, SIMPLE.step_s(body.plan.shape), self.now)

    @precondition(lambda self: self.world.bodies)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.bodies)))
        held = self.world.control.cluster.instances[number]
        for request_id in [*held.waiting, *held.decoding]:
            self.losses[request_id] = self.losses.get(request_id, 0) + 1
        self.world.lose(number, self.now)

    @property
    def returnable(self) -> list[int]:
        """Requests at instances that are between two steps."""
        idle = {number for number in self.serving if self.world.bodies[number].plan is None}
        live = self.world.control.cluster.requests
        return [number for number in sorted(self.world.live) if live[number].instance_id in idle]

    @precondition(lambda self: self.returnable)
    @rule(data=st.data(), was_refused=st.booleans())
    def give_back(self, data: st.DataObject, was_refused: bool) -> None:
        number = data.draw(st.sampled_from(self.returnable))
        self.losses[number] = self.losses.get(number, 0) + (not was_refused)
        self.world.give_back(number, self.now, was_refused=was_refused)

    @rule(seconds=st.sampled_from([0.01, 0.5, 5.0]))
    def wait(self, seconds: float) -> None:
        """Time passes; the driver sleeps until the wakeup that was asked for."""
        end = self.now + seconds
        for _ in range(3):
            wakeup_s = self.world.control.next_wakeup()
            if wakeup_s is None or wakeup_s > end:
                break
            self.now = max(self.now, wakeup_s)
            self.world.feed(Wakeup(), self.now)
        else:
            raise AssertionError("the wakeup stays in the past")
        self.now = end

    @invariant()
    def everyone_is_somewhere(self) -> None:
        if not hasattr(self, "world"):
            return
        plane = self.world.control
        assert {*self.world.live} == {*plane.cluster.requests}
        assert {*self.world.live, *self.world.ends} == set(range(self.arrived))
        assert {*self.world.bodies} == {*plane.cluster.instances}
        assert len(plane.cluster.requests) <= plane.admission.requests_max
        for number, live in self.world.live.items():
            one = plane.cluster.requests[number]
            untold = 0
            if one.state is RequestState.DECODING:
                assert one.instance_id is not None
                untold = self.world.bodies[one.instance_id].untold_steps
            assert one.emitted_tokens + untold == len(live.emitted)
            assert one.first_token_s == live.first_token_s
            assert one.dispatches <= self.losses.get(number, 0) + 1
            assert one.tries <= TRIES_MAX
        for number, end in self.world.ends.items():
            if isinstance(end, Reject) and end.reason.why is Why.LOST_TOO_OFTEN:
                assert self.losses[number] >= TRIES_MAX
            if isinstance(end, Reject) and end.reason.why is Why.DISPLACED:
                assert not self.world.tokens.get(number), "its client had seen something"

    def teardown(self) -> None:
        """Nothing new comes and nothing more fails: all that lives must end, with the very tokens that it should."""
        if not hasattr(self, "world"):
            return
        plane = self.world.control
        for _ in range(4000):
            if not self.world.live:
                break
            self.wait(20.0)
            for number in self.starting:
                self.world.become_ready(number, self.now)
            for number in self.serving:
                body = self.world.bodies[number]
                if body.plan is not None or body.begin(self.now) is not None:
                    assert body.plan is not None
                    self.world.end_step(body, SIMPLE.step_s(body.plan.shape), self.now)
        assert not self.world.live, f"never ended: {plane.cluster.requests!r}"
        for number, end in self.world.ends.items():
            if isinstance(end, Conclude) and end.reason.why is Why.ENDED:
                self.check_answer(number, end)
        for rename in (1, 3):
            self.check_replay(rename)

    def check_replay(self, rename: int) -> None:
        """The same events give the same commands, and ids are only labels: stretched in order, they change no more."""
        plane = self.world.control
        twin = ControlPlane(create(plane.policy.name, 16), plane.sizing.fleet, plane.admission.requests_max)
        for now, event, commands in self.world.journal:
            renamed = [relabelled(command, rename) for command in commands]
            assert twin.handle(relabelled(event, rename), now) == renamed

    def check_answer(self, number: int, end: Conclude) -> None:
        tokens = self.world.tokens[number]
        job = self.jobs[number]
        assert job.answer_tokens is not None
        assert end.verdict is not None
        assert end.verdict.timeline.tokens == len(tokens)
        assert tokens[:-1] == list(range(len(tokens) - 1)), "a token was repeated or is missing"
        assert len(tokens) == min(job.answer_tokens, job.max_tokens)
        assert (tokens[-1] == STOP) == (len(tokens) == job.answer_tokens)


TestAnything = pytest.mark.soak(Anything.TestCase)
TestAnything.settings = settings(max_examples=soak.examples(150), stateful_step_count=40)


def test_arrival_event_carries_what_the_request_is() -> None:
    plane = control()
    event = RequestArrived(4, 7, 9, Slo(1.0), 2, "chat", (b"x",))
    feed(plane, Wakeup(), event, now=3.0)
    one = plane.cluster.requests[4]
    assert (one.prompt_tokens, one.max_tokens, one.slo, one.priority) == (7, 9, Slo(1.0), 2)
    assert (one.service_class, one.block_hashes, one.arrived_s) == ("chat", (b"x",), 3.0)
