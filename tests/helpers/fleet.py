"""A fleet whose instances take requests from each other: the real control plane, real ends of moves, and no clock.

What the driver and an instance say to each other comes in order and when the caller wants; links come up or fail, and
copies end, when it wants. Performs commands as the live driver does, and watches that they can be performed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from helpers.bodies import Answered, Body, Ends, Order, Told, Word
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.cadence import Cadence
from hyperflexis.core.commands import (
    Abandon,
    AssignRole,
    Cancel,
    Command,
    Conclude,
    Dispatch,
    Launch,
    Link,
    Migrate,
    Reject,
    Stay,
    Stop,
    Unlink,
)
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import (
    Arrival,
    Event,
    InstanceDrained,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    Linked,
    LinkFailed,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TransferFailed,
    Wakeup,
)
from hyperflexis.core.handover import Failure
from hyperflexis.core.instance import Capacity, InstanceState
from hyperflexis.core.latency import LatencyModel, OnlineLatency, StepShape
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence, StepScheduler

STEP_S = 0.01


class Taken(NamedTuple):
    """It has been told where a request goes on."""

    request_id: int


class Relay(NamedTuple):
    """A peer's word."""

    peer_id: int
    word: Word


class Said(NamedTuple):
    """What an instance says when a step has ended."""

    shape: StepShape
    steps: int
    tokens: dict[int, int]
    started: list[int]
    began: list[int]
    preempted: list[int]
    ended: list[int]
    told: Told
    rules_version: int


@dataclass
class Asked:
    """What the driver remembers of a request that has not ended."""

    prompt: int
    max_tokens: int
    answer_tokens: int
    slo: Slo
    arrived_s: float
    emitted: list[int] = field(default_factory=list)
    first_token_s: float | None = None
    offer: tuple[int, Answered] | None = None


@dataclass
class Member:
    """An instance, and what is on its way to and from it."""

    ends: Ends
    inbox: deque[Any] = field(default_factory=deque)
    outbox: deque[Any] = field(default_factory=deque)
    cadence: Cadence = field(default_factory=Cadence)
    rules_version: int = 0
    has_changed: bool = False


class Fleet:
    """`control.check` runs after every event."""

    def __init__(self, control: ControlPlane, capacity: Capacity, model: LatencyModel) -> None:
        self.control = control
        self.capacity = capacity
        self.model = model
        self.now = 0.0
        self.starting: list[int] = []
        self.members: dict[int, Member] = {}
        self.peers: dict[int, Ends] = {}
        self.links: list[Link] = []
        """Ordered, and neither up nor failed."""
        self.up: set[tuple[int, int, int]] = set()
        self.asked: dict[int, Asked] = {}
        self.answers: dict[int, list[int]] = {}
        """Of those that have ended, what their clients have."""
        self.ends: dict[int, Conclude | Reject] = {}
        self.commands: list[Command] = []
        """All so far."""
        self.feed(Wakeup())

    # -- what happens

    def feed(self, event: Event) -> list[Command]:
        commands = self.control.handle(event, self.now)
        self.control.check()
        self.commands += commands
        for command in commands:
            self._perform(command)
        return commands

    def arrive(self, prompt: int, max_tokens: int, answer_tokens: int, slo: Slo = Slo()) -> int:  # noqa: B008  # frozen
        number = len(self.asked) + len(self.ends)
        self.asked[number] = Asked(prompt, max_tokens, min(max_tokens, answer_tokens), slo, self.now)
        self.feed(RequestArrived(number, prompt, max_tokens, slo))
        return number

    def cancel(self, number: int) -> None:
        for member in self.members.values():
            member.ends.body.unread.add(number)
        self.feed(RequestCancelled(number, len(self.asked[number].emitted)))

    def become_ready(self, number: int) -> None:
        self.starting.remove(number)
        capacity = self.capacity
        pool = BlockPool(capacity.blocks, capacity.block_tokens)
        rules = self.control.policy.rules
        scheduler = StepScheduler(pool, capacity.seqs_max, OnlineLatency(self.model), rules)
        ends = Ends(number, Body(scheduler), self.peers, partial(self._say, number), partial(self._fail, number))
        self.members[number], self.peers[number] = Member(ends), ends
        self.feed(InstanceReady(number, capacity, self.model))

    def lose(self, number: int, *, is_heard: bool = False) -> None:
        """An instance dies; what it has said and nobody has heard is lost, unless `is_heard`."""
        if number in self.members:
            while is_heard and self.members[number].outbox:
                self.hear(number)
            del self.members[number], self.peers[number]
        else:
            self.starting.remove(number)
        self.up = {link for link in self.up if number not in link[:2]}
        self.feed(InstanceLost(number))

    def drain(self, number: int) -> None:
        """An instance is to end."""
        self.feed(InstanceDrained(number))

    def link_up(self, link: Link) -> None:
        """It is up, whether anyone still wants it or not."""
        self.links.remove(link)
        if link.source_id in self.members and link.target_id in self.members:
            self.up.add((link.source_id, link.target_id, link.version))
        self.feed(Linked(link.source_id, link.target_id, link.version))

    def link_down(self, source_id: int, target_id: int, version: int) -> None:
        self.links = [each for each in self.links if each.version != version]
        self.up.discard((source_id, target_id, version))
        self.feed(LinkFailed(source_id, target_id, version))

    def wait(self, seconds: float) -> None:
        """Time passes; the driver wakes the control plane when it wants to be."""
        end_s = self.now + seconds
        while (wakeup_s := self.control.next_wakeup()) is not None and wakeup_s <= end_s:
            self.now = max(self.now, wakeup_s)
            self.feed(Wakeup())
            following_s = self.control.next_wakeup()
            assert following_s is None or following_s > self.now, "the wakeup stays in the past"
        self.now = end_s

    def step(self, number: int) -> None:
        """An instance takes a step, even an empty one, and says what came of it."""
        member = self.members[number]
        body = member.ends.body
        member.ends.answer()
        before = set(body.ended)
        plan = body.step()
        self.now += STEP_S
        tokens = {c.sequence.id: 899 + c.sequence.emitted for c in plan.chunks if c.samples}
        ended = [each for each in body.ended if each not in before]
        told, letters = member.ends.end_step(plan.handed_off)
        has_news = bool(plan.prefills or plan.preempted or ended or member.has_changed or any(told))
        member.has_changed = False
        started, began = [each for each, _ in plan.started], [each.id for each in plan.began]
        steps = member.cadence.count(1, has_news)
        shape = StepShape(sum(c.tokens for c in plan.prefills), 0, len(plan.decodes), 0)
        said = Said(shape, steps, tokens, started, began, plan.preempted, ended, told, member.rules_version)
        member.outbox += [said, *((to, word) for to, word in letters)]

    def tell(self, number: int) -> None:
        """An instance reads one message."""
        member = self.members[number]
        ends, message = member.ends, member.inbox.popleft()
        scheduler = ends.body.scheduler
        if isinstance(message, Sequence):
            scheduler.add(message)
        elif isinstance(message, Order):
            ends.take_in(message)
        elif isinstance(message, Cancel):
            ends.cancel(message.request_id)
        elif isinstance(message, Stay):
            ends.stay(message.request_id, message.move)
        elif isinstance(message, Abandon):
            ends.abandon(message.request_id)
        elif isinstance(message, Taken):
            ends.taken(message.request_id)
        elif isinstance(message, AssignRole):
            scheduler.reconfigure(message.rules)
            member.rules_version, member.has_changed = message.version, True
        else:
            assert isinstance(message, Relay)
            ends.hear(message.peer_id, message.word)
        ends.check()

    def hear(self, number: int) -> None:
        """The driver reads one message of an instance."""
        message = self.members[number].outbox.popleft()
        if isinstance(message, Said):
            self._hear_step(number, message)
        elif isinstance(message, Failure):
            self.feed(TransferFailed(message.request_id, number, message.why))
        else:
            to, word = message
            self._order(to, Relay(number, word))

    def settle(self) -> None:
        """Nothing fails, and everything that is on its way is there."""
        for number in list(self.starting):
            self.become_ready(number)
        for link in list(self.links):
            self.link_up(link)
        for number, member in self.members.items():
            self.step(number)
            for copy in list(member.ends.copies):
                member.ends.end_copy(copy)
        for number, member in self.members.items():
            while member.outbox:
                self.hear(number)
        for number, member in self.members.items():
            while member.inbox:
                self.tell(number)

    def finish(self, rounds_max: int = 3000) -> None:
        """Let everything end, and be gone."""
        for _ in range(rounds_max):
            if not self.asked:
                break
            self.wait(0.05)
            self.settle()
        assert not self.asked, f"never ended: {self.control.cluster.requests!r}"
        for _ in range(4):
            self.settle()
        self.wait(1.0)
        assert not any(i.state is InstanceState.DRAINING for i in self.control.cluster.instances.values())
        self.control.check()
        assert not self.control.migrations.under_way
        for instance in self.control.cluster.instances.values():
            assert (instance.requests, len(instance.standing), instance.planned_blocks) == (0, 0, 0)
        for member in self.members.values():
            member.ends.check_empty()

    # -- the driver

    def _say(self, number: int, to: int, word: Word) -> None:
        self.members[number].outbox.append((to, word))

    def _fail(self, number: int, failure: Failure) -> None:
        self.members[number].outbox.append(failure)

    def _order(self, number: int, message: object) -> None:
        if number in self.members:
            self.members[number].inbox.append(message)

    def _hear_step(self, number: int, said: Said) -> None:
        told = said.told
        for request_id, offer in told.offers.items():
            if asked := self.asked.get(request_id):
                asked.offer = number, offer
        for arrived in told.arrived:
            self._order(arrived.source_id, Taken(arrived.request_id))
        if said.steps:
            self.feed(
                InstanceReported(
                    number,
                    said.shape,
                    STEP_S,
                    said.steps,
                    said.started,
                    said.began,
                    said.preempted,
                    resumed=told.resumed,
                    arrived=[Arrival(*arrived) for arrived in told.arrived],
                    suspended=told.suspended,
                    rules_version=said.rules_version,
                )
            )
        for request_id, token in said.tokens.items():
            if asked := self.asked.get(request_id):
                assert token == 900 + len(asked.emitted), f"request {request_id} has a token twice, or lacks one"
                asked.emitted.append(token)
                asked.first_token_s = self.now if asked.first_token_s is None else asked.first_token_s
        for request_id in said.ended:
            emitted = len(asked.emitted) if (asked := self.asked.get(request_id)) else 0
            self.feed(RequestFinished(number, request_id, emitted))

    def _perform(self, command: Command) -> None:
        if isinstance(command, Launch):
            self.starting.append(command.instance_id)
        elif isinstance(command, Dispatch):
            asked = self.asked[command.request_id]
            asked.offer = None
            self._order(command.instance_id, self._sequence(command.request_id, command.expected_tokens))
        elif isinstance(command, Cancel):
            self._order(command.instance_id, command)
        elif isinstance(command, Migrate):
            self._migrate(command)
        elif isinstance(command, Stay):
            if command.move is None and (asked := self.asked.get(command.request_id)):
                asked.offer = None
            self._order(command.instance_id, command)
        elif isinstance(command, Abandon):
            self._order(command.target_id, command)
        elif isinstance(command, AssignRole):
            self._order(command.instance_id, command)
        elif isinstance(command, Link):
            self.links.append(command)
        elif isinstance(command, Stop):
            del self.members[command.instance_id], self.peers[command.instance_id]
            self.up = {link for link in self.up if command.instance_id not in link[:2]}
        elif isinstance(command, Unlink):
            self.up.discard((command.source_id, command.target_id, command.version))
        elif isinstance(command, Conclude | Reject):
            assert command.request_id not in self.ends, f"request {command.request_id} ended twice"
            self.ends[command.request_id] = command
            self.answers[command.request_id] = self.asked.pop(command.request_id).emitted

    def _migrate(self, command: Migrate) -> None:
        link = (command.source_id, command.target_id, command.link_version)
        assert link in self.up, f"there is no such link: {command}"
        assert command.source_id in self.members
        assert command.target_id in self.members
        asked = self.asked[command.request_id]
        standing_at, offer = asked.offer or (None, None)
        asked.offer = None
        order = Order(
            command.request_id,
            command.move,
            command.source_id,
            command.tokens,
            asked.prompt + asked.max_tokens,
            command.at_first_token,
            offer if standing_at == command.source_id else None,
            recomputes=command.recomputes,
        )
        self._order(command.target_id, order)

    def _sequence(self, number: int, expected_tokens: int) -> Sequence:
        asked = self.asked[number]
        prompt = [1_000_000 * (number + 1) + i for i in range(asked.prompt)]
        return Sequence(
            number,
            [*prompt, *asked.emitted],
            asked.prompt,
            asked.max_tokens,
            asked.slo,
            asked.arrived_s,
            expected_tokens=expected_tokens,
            stop_ids=frozenset({899 + asked.answer_tokens}),
            first_token_s=asked.first_token_s,
            reuses_prefix=number % 3 > 0,
        )
