"""One request's life in words and numbers: what happened to it, what was decided about it, and why.

Made of the entries that speak of it and of nothing else. Every chapter is an instant, a sentence, and the event or
command behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hyperflexis.core.commands import (
    Abandon,
    Cancel,
    Command,
    Conclude,
    Dispatch,
    Hold,
    Migrate,
    Reason,
    Reject,
    Stay,
    Why,
)
from hyperflexis.core.events import (
    Arrival,
    Event,
    InstanceLost,
    InstanceReported,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TransferFailed,
)
from hyperflexis.core.slo import Slo, Verdict
from hyperflexis.journal.entries import Entry, Gap, told


@dataclass(frozen=True, slots=True)
class Chapter:
    """One thing that happened to it, or was decided."""

    at_s: float
    text: str
    behind: Any
    """The event or command, as JSON can hold it."""


@dataclass(slots=True)
class Story:
    """All of it that the journal has."""

    request_id: int
    name: str = ""
    arrived_s: float | None = None
    """None where its arrival is not in the journal any more."""
    verdict: Verdict | None = None
    ending: str = "has not ended yet"
    chapters: list[Chapter] = field(default_factory=list)


def tell(request_id: int, entries: Iterable[Entry]) -> Story:
    """The story of a request, of the entries that speak of it."""
    teller = _Teller(Story(request_id))
    for entry in entries:
        teller.hear(entry)
    teller.story.chapters.sort(key=lambda chapter: chapter.at_s)  # What a step's end tells of its begin comes last.
    return teller.story


class _Teller:
    """What it has heard so far decides how it goes on."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self._now = 0.0
        self._slo = Slo()
        self._held: tuple[float, str] | None = None
        """Since when it is held, and why."""
        self._sent_s: float | None = None
        self._predicted_ttft_s: float | None = None
        self._has_token = False
        self._events: dict[type, Callable[[Any], None]] = {
            RequestArrived: self._arrived,
            RequestCancelled: self._cancelled,
            RequestFinished: self._finished,
            InstanceReported: self._reported,
            InstanceLost: self._lost,
            TransferFailed: self._not_moved,
        }
        self._commands: dict[type, Callable[[Any], None]] = {
            Dispatch: self._dispatched,
            Hold: self._hold,
            Reject: self._rejected,
            Cancel: self._stopped,
            Conclude: self._concluded,
            Migrate: self._moving,
            Abandon: self._abandoned,
            Stay: self._stays,
        }

    def hear(self, entry: Entry) -> None:
        self._now = entry.now
        if entry.name:
            self.story.name = entry.name
        event: Event | Gap = entry.event
        if type(event) in self._events:
            self._events[type(event)](event)
        for command in entry.commands:
            if getattr(command, "request_id", None) == self.story.request_id:
                self._command(command)

    def _command(self, command: Command) -> None:
        if type(command) in self._commands:
            self._commands[type(command)](command)

    def _say(self, text: str, behind: object, at_s: float | None = None) -> None:
        self.story.chapters.append(Chapter(self._now if at_s is None else at_s, text, told(behind)))

    def _since_arrival(self) -> str:
        arrived_s = self.story.arrived_s
        return "" if arrived_s is None else f" after {seconds(self._now - arrived_s)}"

    # -- what happened

    def _arrived(self, event: RequestArrived) -> None:
        if event.request_id != self.story.request_id:
            return
        self.story.arrived_s = self._now
        self._slo = event.slo
        cached = f", {len(event.block_hashes)} whole blocks" if event.block_hashes else ""
        refuses = "; to be refused rather than late" if event.refuses_late else ""
        self._say(
            f"arrived: {event.prompt_tokens} prompt tokens{cached}, at most {event.max_tokens} more; "
            f"class {event.service_class}, priority {event.priority}, {promises(event.slo)}{refuses}",
            event,
        )

    def _cancelled(self, event: RequestCancelled) -> None:
        if event.request_id == self.story.request_id:
            self._say(f"its client left with {_tokens(event.emitted_tokens)}", event)

    def _finished(self, event: RequestFinished) -> None:
        if event.request_id == self.story.request_id and event.failed:
            self._say(f"i{event.instance_id} could not compute it", event)

    def _reported(self, event: InstanceReported) -> None:
        number, name = self.story.request_id, f"i{event.instance_id}"
        for arrival in event.arrived:
            if arrival.request_id == number:
                self._moved(event.instance_id, arrival)
        if number in event.resumed:
            self._say(f"goes on at {name}", event)
        if number in event.preempted:
            self._say(f"lost its blocks at {name}, which others needed; its KV is computed again", event)
        if number in event.started:
            begun_s = self._now - event.duration_s
            waited = (
                "" if self._sent_s is None else f", where it had waited {seconds(max(0.0, begun_s - self._sent_s))}"
            )
            again = " again" if self._has_token else ""
            self._say(f"its prefill began{again} at {name}{waited}", event, begun_s)
        if number in event.began:
            if not self._has_token:
                self._first_token(event)
            self._has_token = True
        if number in event.suspended:
            self._say(f"stands still at {name}, to go on elsewhere", event)

    def _first_token(self, event: InstanceReported) -> None:
        predicted_s, promised_s = self._predicted_ttft_s, self._slo.ttft_s
        compared = [
            *((f"predicted {seconds(predicted_s)}",) if predicted_s is not None else ()),
            *((f"promised {seconds(promised_s)}",) if promised_s is not None else ()),
        ]
        beside = f" ({', '.join(compared)})" if compared else ""
        self._say(f"first token{self._since_arrival()}{beside}", event)

    def _moved(self, target_id: int, arrival: Arrival) -> None:
        copied = "its KV was computed anew"
        if arrival.copied_tokens:
            copied = f"{arrival.copied_tokens} tokens of KV copied in {seconds(arrival.copied_s)}"
        emitted = _tokens(arrival.emitted_tokens)
        self._say(f"moved i{arrival.source_id} → i{target_id} with {emitted}; {copied}", arrival)

    def _lost(self, event: InstanceLost) -> None:
        why = f": {event.why}" if event.why else ""
        self._say(f"i{event.instance_id} was lost{why}", event)

    def _not_moved(self, event: TransferFailed) -> None:
        if event.request_id == self.story.request_id:
            self._say(f"could not be moved to i{event.target_id}: {event.why or 'no reason given'}", event)

    # -- what was decided

    def _dispatched(self, command: Dispatch) -> None:
        numbers = dict(command.reason.numbers)
        predicted_s = numbers.get("ttft_s")
        if self._sent_s is None:
            self._predicted_ttft_s = predicted_s
        if self._held is not None:
            since_s, why = self._held
            self._say(f"was held {seconds(self._now - since_s)}: {why}", command)
            self._held = None
        self._sent_s = self._now
        others = Reason(command.reason.why, tuple((k, v) for k, v in numbers.items() if k != "ttft_s"))
        of = "" if self._slo.ttft_s is None else f" of {seconds(self._slo.ttft_s)} promised"
        predicted = "" if predicted_s is None else f"; predicted first token after {seconds(predicted_s)}{of}"
        again = " again" if self._has_token else ""
        length = f"; {command.expected_tokens} tokens expected" if command.expected_tokens else ""
        self._say(f"sent{again} to i{command.instance_id}: {reason(others)}{predicted}{length}", command)

    def _hold(self, command: Hold) -> None:
        self._held = self._now, reason(command.reason)
        self._say(f"held: {reason(command.reason)}", command)

    def _rejected(self, command: Reject) -> None:
        retry = "" if command.retry_after_s is None else f"; worth trying again after {seconds(command.retry_after_s)}"
        self.story.ending = f"refused{self._since_arrival()}: {reason(command.reason)}"
        self._say(f"{self.story.ending}{retry}", command)

    def _stopped(self, command: Cancel) -> None:
        self._say(f"i{command.instance_id} is told to stop: {reason(command.reason)}", command)

    def _moving(self, command: Migrate) -> None:
        way = "its KV to be computed anew" if command.recomputes else f"{command.tokens} tokens of KV"
        when = "with its first token" if command.at_first_token else "while it runs"
        self._say(
            f"to move i{command.source_id} → i{command.target_id} {when} ({way}): {reason(command.reason)}", command
        )

    def _abandoned(self, command: Abandon) -> None:
        self._say(f"i{command.target_id} is to say at once whether it has it: {reason(command.reason)}", command)

    def _stays(self, command: Stay) -> None:
        self._say(f"stays at i{command.instance_id}: {reason(command.reason)}", command)

    def _concluded(self, command: Conclude) -> None:
        verdict = command.verdict
        self.story.verdict = verdict
        word = {Why.ENDED: "done", Why.CLIENT_LEFT: "ended", Why.FAILED: "failed"}.get(command.reason.why, "ended")
        if verdict is None:
            self.story.ending = f"{word} without a token: {command.reason}"
        else:
            self.story.ending = f"{word}: {_tokens(verdict.timeline.tokens)}{self._since_arrival()}, {kept(verdict)}"
        self._say(self.story.ending, command)


def promises(slo: Slo) -> str:
    """What was promised, in words."""
    found = [
        f"{label} {seconds(target)}"
        for label, target in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s), ("e2e", slo.e2e_s))
        if target is not None
    ]
    return f"promised {', '.join(found)}" if found else "nothing promised"


def kept(verdict: Verdict) -> str:
    """Whether its promises were kept, and by how much each was not."""
    times, slo = verdict.timeline, verdict.slo
    pairs = (("ttft", times.ttft_s, slo.ttft_s), ("tpot", times.tpot_s, slo.tpot_s), ("e2e", times.e2e_s, slo.e2e_s))
    broken = [
        f"{label} {seconds(actual)} of {seconds(target)}"
        for label, actual, target in pairs
        if actual is not None and target is not None and actual > target
    ]
    if broken:
        return f"broken: {', '.join(broken)}"
    return "kept" if slo != Slo() else "nothing was promised"


def reason(given: Reason) -> str:
    """Why, with its numbers in units that a person reads."""
    numbers = ", ".join(_number(name, value) for name, value in given.numbers)
    return f"{given.why.value} ({numbers})" if numbers else given.why.value


def _number(name: str, value: float) -> str:
    words = name.removesuffix("_s").replace("_", " ")
    return f"{words} {seconds(value)}" if name.endswith("_s") else f"{words} {value:.4g}"


def seconds(value: float) -> str:
    """A duration: 840 µs, 84 ms, 1.25 s."""
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.4g} ms" if size < 1 else f"{value:.2f} s"


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"
