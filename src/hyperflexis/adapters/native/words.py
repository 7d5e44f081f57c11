"""A name for the language that gateway, zygote and instances speak: equal names, and they understand each other.

Covers the fields of every message, and of what travels in messages by the names of its fields.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import msgspec

from hyperflexis.adapters.native.messages import FromZygote, ToZygote
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.step import StepRules
from hyperflexis.wire.messages import FromInstance, ToInstance

_MEANING = 1
"""To be raised when fields stay what they are and mean something else."""


def words() -> str:
    """A digest."""
    messages = msgspec.json.schema_components([ToInstance, FromInstance, ToZygote, FromZygote])
    within = [[field.name for field in dataclasses.fields(kind)] for kind in (StepRules, LatencyModel)]
    text = json.dumps([_MEANING, _bare(messages), within], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bare(schema: Any) -> Any:
    """Without what is for people."""
    if isinstance(schema, dict):
        return {key: _bare(value) for key, value in schema.items() if key != "description"}
    return [_bare(each) for each in schema] if isinstance(schema, list | tuple) else schema
