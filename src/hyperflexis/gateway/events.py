"""The spelling that all answers share: JSON, the head of an answer, and the parts of a server-sent event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

DONE = b"data: [DONE]\n\n"
LOGPROB_MIN = -9999.0

encode_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Heading:
    """What every object of one answer repeats."""

    answer_id: str
    created: int
    model: str
    service_class: str
    include_usage: bool

    def members(self, kind: str) -> dict[str, Any]:
        """The first members of an object of this kind."""
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}

    def event_head(self, kind: str) -> bytes:
        """An event up to its choices."""
        return b"data: " + encode_json(self.members(kind))[:-1] + b',"choices":['

    @property
    def event_end(self) -> bytes:
        """What follows an event's choices; where usage comes at the end, the events before it say that it is null."""
        return b'],"usage":null}\n\n' if self.include_usage else b"]}\n\n"


def data_event(payload: bytes) -> bytes:
    """Frame an encoded object as an event."""
    return b"data: " + payload + b"\n\n"


def with_members(event: bytes, told: Mapping[str, Any]) -> bytes:
    """Add members to an event's object."""
    if not told:
        return event
    end = b"}\n\n"
    return event[: -len(end)] + b"," + encode_json(told)[1:] + b"\n\n"


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for impossible tokens."""
    return max(logprob, LOGPROB_MIN)
