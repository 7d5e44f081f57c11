"""One entry: an event, the instant that it was given, and the commands that it led to; and entries as bytes.

Entries are msgpack arrays, in which each event and each command is a number for its type and its fields in order.
Floats are stored whole, so that what is read is what was there, to the last bit. Hashes of blocks stand together at the
end: they are what does not compress, and nobody needs them to find a request.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple, get_args

import msgspec

from hyperflexis.core import commands as core_commands
from hyperflexis.core import events as core_events
from hyperflexis.core.commands import Command, Reason
from hyperflexis.core.events import Arrival, Event, InstanceReported, RequestArrived
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.slo import Slo, Timeline, Verdict
from hyperflexis.core.step import StepRules


class Gap(NamedTuple):
    """Here events are missing: they could not be written."""

    events: int
    until_s: float
    """The instant of the last of them."""
    why: str


class Entry(NamedTuple):
    """One event, or a gap."""

    now: float
    event: Event | Gap
    commands: Sequence[Command] = ()
    name: str = ""
    """What its client calls a request that arrives."""


EVENTS: tuple[type, ...] = (*get_args(core_events.Event), Gap)
COMMANDS: tuple[type, ...] = get_args(core_commands.Command)
_EVENT_NUMBERS = {kind: number for number, kind in enumerate(EVENTS)}
_COMMAND_NUMBERS = {kind: number for number, kind in enumerate(COMMANDS)}
_WITHIN = (Arrival, Capacity, LatencyModel, Reason, Slo, StepRules, StepShape, Timeline, Verdict)
_HASHES = RequestArrived._fields.index("block_hashes")
_NAMES_REQUEST = frozenset(kind for kind in (*EVENTS, *COMMANDS) if "request_id" in getattr(kind, "_fields", ()))


class JournalError(Exception):
    """What was asked for is no journal that can be read, or cannot be written; the message says why."""


class CutError(JournalError):
    """It ends in the middle of a frame, as it does where its process was killed."""


def schema() -> str:
    """A digest of all that entries are made of. Where it is another one, numbers and fields mean something else."""
    text = ";".join(f"{kind.__name__}({','.join(_fields(kind))})" for kind in (*EVENTS, *COMMANDS, *_WITHIN))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fields(kind: Any) -> Sequence[str]:
    return [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind._fields


def requests_of(event: Event | Gap, commands: Iterable[Command]) -> Iterator[int]:
    """The requests that an entry speaks of, some of them twice."""
    if type(event) in _NAMES_REQUEST:
        yield event.request_id  # type: ignore[union-attr]
    elif type(event) is InstanceReported:
        yield from event.started
        yield from event.began
        yield from event.preempted
        yield from event.resumed
        yield from event.suspended
        for arrival in event.arrived:
            yield arrival.request_id
    for command in commands:
        if type(command) in _NAMES_REQUEST:
            yield command.request_id  # type: ignore[union-attr]


def _plain(value: object) -> object:
    """What numpy's numbers are as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a journal")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


def encode(entries: Sequence[Entry]) -> bytes:
    """Entries as bytes.

    Raises:
        TypeError: something is in them that has no place there.
    """
    rows: list[tuple[object, ...]] = []
    hashes: list[bytes] = []
    for now, event, commands, name in entries:
        fields: Sequence[object] = event
        if type(event) is RequestArrived and event.block_hashes:
            hashes += event.block_hashes
            fields = (*event[:_HASHES], len(event.block_hashes), *event[_HASHES + 1 :])
        told = [(_COMMAND_NUMBERS[type(each)], each) for each in commands]
        rows.append((now, _EVENT_NUMBERS[type(event)], fields, told, name))
    return _encoder.encode((rows, bytes(map(len, hashes)), b"".join(hashes)))


def decode(data: bytes, *, only: int | None = None, names: bool = False) -> Iterator[Entry]:
    """Entries from bytes, all of them or those that speak of one request; or those that name one.

    Raises:
        JournalError: they are none.
    """
    try:
        rows, lengths, hashes = msgspec.msgpack.decode(data)
        at = place = 0
        for now, number, fields, told, name in rows:
            kind = EVENTS[number]
            if kind is RequestArrived and fields[_HASHES]:
                count = fields[_HASHES]
                ends = lengths[place : place + count]
                place += count
                chain = []
                for length in ends:
                    chain.append(hashes[at : at + length])
                    at += length
                fields[_HASHES] = chain
            if names and not name:
                continue
            if only is not None and only not in _raw_requests(kind, fields, told):
                continue
            commands = [msgspec.convert(each, COMMANDS[command]) for command, each in told]
            yield Entry(now, msgspec.convert(fields, kind), commands, name)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise JournalError(f"an entry cannot be read: {error}") from error


_REQUEST_AT = {
    kind: kind._fields.index("request_id")  # type: ignore[attr-defined]
    for kind in _NAMES_REQUEST
}
_LISTS = tuple(
    InstanceReported._fields.index(name) for name in ("started", "began", "preempted", "resumed", "suspended")
)
_ARRIVED = InstanceReported._fields.index("arrived")


def _raw_requests(kind: type, fields: Sequence[Any], told: Sequence[tuple[int, Sequence[Any]]]) -> Iterator[int]:
    """The same as `requests_of`, of an entry that has not been made into objects."""
    if kind in _REQUEST_AT:
        yield fields[_REQUEST_AT[kind]]
    elif kind is InstanceReported:
        for place in _LISTS:
            yield from fields[place]
        for arrival in fields[_ARRIVED]:
            yield arrival[0]
    for number, each in told:
        command = COMMANDS[number]
        if command in _REQUEST_AT:
            yield each[_REQUEST_AT[command]]


def same(one: Command, other: Command) -> bool:
    """Whether two commands are the same to the last bit; of numbers that are none, too."""
    return type(one) is type(other) and (one == other or _encoder.encode(one) == _encoder.encode(other))


def told(value: object) -> Any:
    """An event or a command as JSON can hold it, its type beside it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = {name: told(each) for name, each in zip(value._fields, value, strict=True)}
        is_kind = type(value) in _EVENT_NUMBERS or type(value) in _COMMAND_NUMBERS
        return {"type": type(value).__name__, **fields} if is_kind else fields
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: told(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    return value
