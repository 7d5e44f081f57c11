"""Which step of which life was met, and which event found its subject in which state: in how many worlds each.

The lives of requests and instances are tables in the core. What becomes of links, of moves, of the two ends of a move
and of starts is no table there: their states and events are named here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hyperflexis.core import instance as instances
from hyperflexis.core import request as requests
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import (
    Event,
    InstanceDrained,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    RequestCancelled,
    RequestFinished,
    RequestReturned,
    TransferFailed,
)
from hyperflexis.core.handover import Answer, Giver, Taker
from hyperflexis.core.instance import Instance, InstanceState, InstanceStep, StartSource
from hyperflexis.core.links import Links
from hyperflexis.core.migration import Migrations
from hyperflexis.core.request import Request, RequestState, RequestStep

GONE = "gone"
ELSEWHERE = "elsewhere"
LIVE = [
    state.value
    for state in RequestState
    if state not in (RequestState.FINISHED, RequestState.CANCELLED, RequestState.REJECTED)
]


Pairs = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Table:
    title: str
    states: Sequence[str]
    events: Sequence[str]
    absent: frozenset[tuple[str, str]] = frozenset()
    """What the core's own table does not have."""
    impossible: Pairs = field(default_factory=dict)
    """What cannot be, and why not."""


def _life(
    title: str, transitions: dict[Any, dict[Any, Any]], steps: Iterable[Any], impossible: Pairs | None = None
) -> Table:
    lives = {state: ways for state, ways in transitions.items() if ways}
    absent = {(state.value, step.value) for state in lives for step in steps if step not in lives[state]}
    states, events = [state.value for state in lives], [step.value for step in steps]
    return Table(title, states, events, frozenset(absent), impossible or {})


def _all(states: Iterable[str], events: Iterable[str], why: str) -> dict[tuple[str, str], str]:
    return {(state, event): why for state in states for event in events}


AT_INSTANCE = ["finished", "returned", "started", "began", "preempted", "suspended", "resumed", "arrived"]
REQUESTS = _life(
    "Steps of requests",
    requests.TRANSITIONS,
    list(RequestStep),
    {
        **_all(
            ["waiting"], ["go on"], "vLLM servers alone do so: what they resume waits for its blocks, and may move on"
        ),
        **_all(["standing"], ["finish"], "what stands still is in no step that it could fail in"),
    },
)
INSTANCES = _life("Steps of instances", instances.TRANSITIONS, list(InstanceStep))
ABOUT_REQUESTS = Table(
    "Events about requests, and the state that they find",
    [*LIVE, ELSEWHERE, GONE],
    ["cancelled", "transfer failed", *AT_INSTANCE],
    impossible={
        **_all(["queued"], ["transfer failed", *AT_INSTANCE], "who is queued is at no instance, and moves nowhere"),
        **_all(["decoding"], ["resumed", "arrived"], "it stands still before, and that is reported before"),
        **_all(["standing"], ["finished"], "what stands still is in no step"),
        **_all(["standing"], ["returned"], "its blocks are leased to who copies them"),
        **_all([ELSEWHERE], ["cancelled", "transfer failed"], "these name no instance that has it"),
    },
)
ABOUT_INSTANCES = Table(
    "Events about instances, and the state that they find",
    [*(state.value for state in instances.TRANSITIONS if instances.TRANSITIONS[state]), GONE],
    ["ready", "reported", "drained", "lost"],
    impossible={
        **_all(["linking", "ready", "draining", "asleep"], ["ready"], "it is said once for each start"),
        **_all([GONE], ["ready", "reported", "lost"], "nothing is heard of an instance after its end"),
    },
)
LINKS = Table(
    "Links",
    ["pending", "up", "failed", "replaced", GONE],
    ["up", "down", "silent", "tried again", "end gone"],
    impossible={
        **_all(["up", "failed", "replaced", GONE], ["silent"], "only what is pending is waited for"),
        **_all(["pending", "up", "replaced", GONE], ["tried again"], "only what has failed is tried again"),
        **_all(["up"], ["up"], "it is said once for each version"),
        **_all(["replaced", GONE], ["end gone"], "there is no such link any more"),
    },
)
MOVES = Table(
    "Moves, by the state of what moves",
    [*(state for state in LIVE if state != RequestState.QUEUED.value), GONE],
    ["done", "failed", "source lost", "given back", "target lost", "cancelled"],
    impossible={
        **_all(["decoding"], ["done"], "it stands still before it arrives"),
        **_all(["standing"], ["given back"], "its blocks are leased to who copies them"),
        **_all(["in transit"], ["source lost", "given back"], "its source has lost it already"),
        **_all([GONE], ["given back", "cancelled"], "it has ended"),
    },
)
GIVERS = Table(
    "The giving end, by what is there",
    ["absent", "computed", "called for", "stopped", "handed off"],
    ["call", "left", "stay", "taken", "forget"],
    impossible={
        **_all(["computed", "called for"], ["taken"], "it stands still before it is taken"),
    },
)
TAKERS = Table(
    "The taking end, by what it waits for",
    ["nothing", "answer", "copy"],
    ["settled", "last", GONE, "copied", "given up"],
    impossible={
        **_all(
            ["nothing"],
            ["settled", "last", GONE, "copied", "given up"],
            "words of moves that are over are dropped before",
        ),
        **_all(["copy"], ["settled", "last", GONE], "what is heard meanwhile is kept until the copy has ended"),
        **_all(["answer"], ["copied"], "nothing is being copied"),
    },
)
STARTS = Table("Starts", [source.value for source in StartSource], ["ready", "lost", "given up"])
TABLES = [REQUESTS, INSTANCES, ABOUT_REQUESTS, ABOUT_INSTANCES, LINKS, MOVES, GIVERS, TAKERS, STARTS]


class Coverage:
    """Counts worlds. Within `watching` it sees what happens in one."""

    def __init__(self) -> None:
        self.worlds: Counter[tuple[str, str, str]] = Counter()
        self._met: set[tuple[str, str, str]] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what happens meanwhile as that of one world."""
        self._met.clear()
        with ExitStack() as stack:
            for owner, name, look in self._looks():
                stack.enter_context(_looking(owner, name, look))
            yield
        self.worlds.update(self._met)

    def never(self, table: Table) -> list[tuple[str, str]]:
        """What was not met although the table has it."""
        pairs = [(state, event) for state in table.states for event in table.events]
        cannot = table.absent | table.impossible.keys()
        return [pair for pair in pairs if pair not in cannot and not self.worlds[table.title, *pair]]

    def unforeseen(self) -> list[tuple[str, str, str]]:
        """What was met although it cannot be."""
        return [
            (table.title, *pair) for table in TABLES for pair in table.impossible if self.worlds[table.title, *pair]
        ]

    def markdown(self) -> str:
        """All tables: in how many worlds each pair was met. Empty: there is no such step. A dash: it cannot be."""
        return "\n".join(line for table in TABLES for line in self._rows(table))

    def _rows(self, table: Table) -> Iterator[str]:
        yield f"**{table.title}**\n"
        yield f"| | {' | '.join(table.events)} |"
        yield "|---" * (1 + len(table.events)) + "|"
        for state in table.states:
            yield f"| {state} | {' | '.join(self._cell(table, state, event) for event in table.events)} |"
        yield ""
        for why in dict.fromkeys(table.impossible.values()):
            pairs = [f"{event} while {state}" for (state, event), each in table.impossible.items() if each == why]
            yield f"- {', '.join(pairs)}: {why}."
        if table.impossible:
            yield ""

    def _cell(self, table: Table, state: str, event: str) -> str:
        if count := self.worlds[table.title, state, event]:
            return str(count)
        return "" if (state, event) in table.absent else "–" if (state, event) in table.impossible else "never"

    def _note(self, table: Table, state: str, event: str) -> None:
        self._met.add((table.title, state, event))

    # -- events

    def note_event(self, control: ControlPlane, event: Event) -> None:
        """Look at what an event finds."""
        if isinstance(event, InstanceReady | InstanceReported | InstanceDrained | InstanceLost):
            instance = control.cluster.instances.get(event.instance_id)
            name = type(event).__name__.removeprefix("Instance").lower()
            self._note(ABOUT_INSTANCES, GONE if instance is None else instance.state.value, name)
        if isinstance(event, InstanceReported):
            for name in ("started", "began", "preempted", "suspended", "resumed"):
                for request_id in getattr(event, name):
                    self._note_request(control, request_id, event.instance_id, name)
            for arrival in event.arrived:
                self._note_request(control, arrival.request_id, arrival.source_id, "arrived")
        elif isinstance(event, RequestFinished | RequestReturned):
            name = type(event).__name__.removeprefix("Request").lower()
            self._note_request(control, event.request_id, event.instance_id, name)
        elif isinstance(event, RequestCancelled):
            self._note_request(control, event.request_id, None, "cancelled")
        elif isinstance(event, TransferFailed):
            self._note_request(control, event.request_id, None, "transfer failed")

    def _note_request(self, control: ControlPlane, request_id: int, instance_id: int | None, name: str) -> None:
        request = control.cluster.requests.get(request_id)
        state = GONE if request is None else request.state.value
        if request is not None and request.instance_id is not None and instance_id not in (None, request.instance_id):
            state = ELSEWHERE
        self._note(ABOUT_REQUESTS, state, name)

    # -- what is looked at inside

    def _looks(self) -> list[tuple[type, str, Callable[..., None]]]:
        return [
            (Request, "step", lambda one, step: self._note(REQUESTS, one.state.value, step.value)),
            (Instance, "step", self._on_instance_step),
            (Links, "up", lambda links, *words: self._note(LINKS, _link_state(links, *words), "up")),
            (Links, "down", self._on_link_down),
            (Links, "_make", self._on_link_made),
            (Links, "disconnect", self._on_disconnect),
            (Migrations, "done", lambda moves, event, target: self._on_move(moves, event.request_id, "done", target)),
            (Migrations, "failed", lambda moves, number, target: self._on_move(moves, number, "failed", target)),
            (Migrations, "lose_request", lambda moves, request: self._on_move(moves, request.id, "given back")),
            (Migrations, "lose_source", lambda moves, one: self._on_end_lost(moves, "source", one)),
            (Migrations, "lose_target", lambda moves, one: self._on_end_lost(moves, "target", one)),
            (Migrations, "cancel", lambda moves, request, _: self._on_move(moves, request.id, "cancelled")),
            (Giver, "call", lambda giver, call: self._note(GIVERS, _at_giver(giver, call.request_id), "call")),
            *(
                (Giver, name, lambda giver, number, *_, name=name: self._note(GIVERS, _at_giver(giver, number), name))
                for name in ("left", "stay", "taken", "forget")
            ),
            (Taker, "take", self._on_take),
            (Taker, "copied", lambda taker, number, *_: self._note(TAKERS, _at_taker(taker, number), "copied")),
            (Taker, "fail", lambda taker, number, _: self._note(TAKERS, _at_taker(taker, number), "given up")),
        ]

    def _on_instance_step(self, instance: Instance, step: InstanceStep) -> None:
        self._note(INSTANCES, instance.state.value, step.value)
        ends = {InstanceStep.LINK: "ready", InstanceStep.READY: "ready", InstanceStep.LOSE: "lost"}
        if instance.state is InstanceState.STARTING:
            self._note(STARTS, instance.tenure.source.value, ends.get(step, "given up"))

    def _on_link_down(self, links: Links, source_id: int, target_id: int, version: int, now: float) -> None:
        link = links._links.get((source_id, target_id))
        is_silent = link is not None and link.version == version and not link.is_up and now >= link.until_s
        state = _link_state(links, source_id, target_id, version)
        self._note(LINKS, state, "silent" if is_silent else "down")

    def _on_link_made(self, links: Links, pair: tuple[int, int], failures: int, _: float) -> None:
        if failures:
            self._note(LINKS, _link_state(links, *pair), "tried again")

    def _on_disconnect(self, links: Links, instance_id: int) -> None:
        for pair in links._links:
            if instance_id in pair:
                self._note(LINKS, _link_state(links, *pair), "end gone")

    def _on_move(self, moves: Migrations, request_id: int, event: str, target_id: int | None = None) -> None:
        moved = moves.under_way.get(request_id)
        if moved is not None and target_id in (None, moved.target.id):
            request = moved.request
            is_live = moves._cluster.requests.get(request_id) is request
            self._note(MOVES, request.state.value if is_live else GONE, event)

    def _on_end_lost(self, moves: Migrations, end: str, instance: Instance) -> None:
        for request_id, moved in moves.under_way.items():
            if getattr(moved, end) is instance:
                self._on_move(moves, request_id, f"{end} lost")

    def _on_take(self, taker: Taker, answer: Answer) -> None:
        kind = GONE if answer.is_gone else "last" if answer.is_last else "settled"
        self._note(TAKERS, _at_taker(taker, answer.request_id), kind)


def _link_state(links: Links, source_id: int, target_id: int, version: int | None = None) -> str:
    link = links._links.get((source_id, target_id))
    if link is None:
        return GONE
    if version not in (None, link.version):
        return "replaced"
    return "up" if link.is_up else "pending" if link.retry_s is None else "failed"


def _at_giver(giver: Giver, sequence_id: int) -> str:
    if giver._scheduler.find(sequence_id) is None:
        return "absent"
    if sequence_id in giver._stopped:
        return "stopped"
    if sequence_id in giver._scheduler.moves.suspended:
        return "handed off"
    return "called for" if sequence_id in giver._calls else "computed"


def _at_taker(taker: Taker, sequence_id: int) -> str:
    taking = taker._taking.get(sequence_id)
    if taking is None:
        return "nothing"
    return "answer" if taking.pulling is None else "copy"


@contextmanager
def _looking(owner: type, name: str, look: Callable[..., None]) -> Iterator[None]:
    """Have every call of a method looked at first."""
    method = getattr(owner, name)

    def looked_at(self: Any, *words: Any, **named: Any) -> Any:
        look(self, *words, *named.values())
        return method(self, *words, **named)

    with patch.object(owner, name, looked_at):
        yield
