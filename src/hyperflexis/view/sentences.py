"""Decisions, and what forced them, in sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hyperflexis.core.commands import (
    AssignRole,
    Command,
    Conclude,
    Dispatch,
    Drain,
    Hold,
    Launch,
    Migrate,
    Reason,
    Reject,
    Resize,
    Retain,
    Sleep,
    Stop,
    Wake,
    Why,
)
from hyperflexis.core.events import Event, InstanceDrained, InstanceLost, InstanceReady, LinkFailed, TransferFailed
from hyperflexis.core.instance import StartSource
from hyperflexis.journal.story import kept, reason, seconds

_FROM = {
    StartSource.SLEEPER: "from sleep",
    StartSource.PEER: "with a peer's weights",
    StartSource.CACHE: "from the page cache",
    StartSource.DISK: "from disk",
}


def _dispatch(command: Dispatch) -> str:
    numbers = tuple((name, value) for name, value in command.reason.numbers if name != "ttft_s")
    predicted_s = dict(command.reason.numbers).get("ttft_s")
    predicted = "" if predicted_s is None else f"; first token predicted after {seconds(predicted_s)}"
    return f"sent to i{command.instance_id}: {reason(Reason(command.reason.why, numbers))}{predicted}"


def _reject(command: Reject) -> str:
    retry = "" if command.retry_after_s is None else f"; try again after {seconds(command.retry_after_s)}"
    return f"refused: {reason(command.reason)}{retry}"


def _conclude(command: Conclude) -> str:
    if command.verdict is None or command.reason.why is Why.FAILED:
        return f"ended: {command.reason}"
    return kept(command.verdict)


def _migrate(command: Migrate) -> str:
    when = " with its first token" if command.at_first_token else ""
    return f"moves i{command.source_id} → i{command.target_id}{when}: {reason(command.reason)}"


def _resize(command: Resize) -> str:
    verb = "should have" if command.is_proposal else "is to have"
    return f"the fleet {verb} {command.want} {command.role.value} (has {command.have}): {reason(command.reason)}"


def _launch(command: Launch) -> str:
    donor = "" if command.donor_id is None else f" (i{command.donor_id})"
    return f"starts as {command.role.value} {_FROM[command.source]}{donor}: {reason(command.reason)}"


def _ready(event: InstanceReady) -> str:
    capacity = event.capacity
    return f"is ready: {capacity.blocks} KV blocks of {capacity.block_tokens} tokens, {capacity.seqs_max} at a time"


_SENTENCES: dict[type, Callable[[Any], str]] = {
    Dispatch: _dispatch,
    Hold: lambda command: f"held: {reason(command.reason)}",
    Reject: _reject,
    Conclude: _conclude,
    Migrate: _migrate,
    TransferFailed: lambda event: f"could not be moved to i{event.target_id}: {event.why or 'no reason given'}",
    Resize: _resize,
    Launch: _launch,
    InstanceReady: _ready,
    AssignRole: lambda command: f"is to be {command.role.value}: {reason(command.reason)}",
    InstanceDrained: lambda event: "is to drain: somebody asked for it",
    Drain: lambda command: f"drains: {reason(command.reason)}",
    Retain: lambda command: f"takes work again: {reason(command.reason)}",
    Sleep: lambda command: f"sleeps: {reason(command.reason)}",
    Wake: lambda command: f"wakes as {command.role.value}: {reason(command.reason)}",
    Stop: lambda command: f"stops: {reason(command.reason)}",
    InstanceLost: lambda event: f"is lost: {event.why or 'no reason given'}",
    LinkFailed: lambda event: f"no KV goes to i{event.target_id}: {event.why or 'no reason given'}",
}


def sentence(what: Command | Event) -> str:
    """What is said of a request, an instance or the fleet, without naming it."""
    return _SENTENCES[type(what)](what)
