"""The HTTP interface as an OpenAPI document, made from the types that bodies are read as.

So what it says of a body is what is read. Ranges and meaning are not in types, and not here: docs/api.md tells them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hyperflexis import __version__
from hyperflexis.gateway.openai_types import AttachBody, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

_JSON = "application/json"
_EVENTS = "text/event-stream"


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """Every refusal."""

    error: ErrorDetail


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class GenerationAnswer(msgspec.Struct):
    """What chat and completions have in common; in a stream it comes in pieces."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage
    hyperflexis: dict[str, Any] | list[dict[str, Any]]


class Model(msgspec.Struct):
    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int


class Models(msgspec.Struct):
    object: str
    data: list[Model]


class Tokenized(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(msgspec.Struct):
    prompt: str


class Alive(msgspec.Struct):
    status: str


class Ready(msgspec.Struct):
    ready: bool
    draining: bool


class Accepted(msgspec.Struct):
    """What is to come or go will."""


@dataclass(frozen=True, slots=True)
class _Operation:
    method: str
    path: str
    summary: str
    answer: type | None
    """None: text."""
    body: type | None = None
    ok: int = 200
    refusals: Sequence[int] = ()
    streams: bool = False
    is_open: bool = False


_BODIED = (400, 408, 413)
_COUNTED = (*_BODIED, 403, 404, 429, 500, 503)
_CLIENT_OPERATIONS = (
    _Operation("post", "/v1/chat/completions", "Answer a chat", GenerationAnswer, ChatBody, 200, _COUNTED, True),
    _Operation("post", "/v1/completions", "Go on with a text", GenerationAnswer, CompletionBody, 200, _COUNTED, True),
    _Operation("get", "/v1/models", "What is served", Models, refusals=(403,)),
    _Operation("get", "/v1/models/{model}", "One of them", Model, refusals=(403, 404)),
    _Operation("post", "/tokenize", "Text or messages to ids", Tokenized, TokenizeBody, 200, (*_BODIED, 403, 404, 429)),
    _Operation("post", "/detokenize", "Ids to text", Detokenized, DetokenizeBody, 200, (*_BODIED, 403, 404, 429)),
    _Operation("get", "/health", "The process lives", Alive, is_open=True),
    _Operation("get", "/live", "The process lives", Alive, is_open=True),
    _Operation("get", "/ready", "At least one instance takes requests", Ready, refusals=(503,), is_open=True),
)
_ADMIN_OPERATIONS = (
    _Operation("get", "/metrics", "Prometheus", None, refusals=(403,)),
    _Operation("post", "/instances", "Attach a server", Accepted, AttachBody, 202, (*_BODIED, 403)),
    _Operation("delete", "/instances/{name}", "Detach an instance", Accepted, None, 202, (403, 404, 409)),
)


def describe(*, has_keys: bool) -> dict[str, Any]:
    """The document."""
    operations = (*_CLIENT_OPERATIONS, *_ADMIN_OPERATIONS)
    kinds = {ErrorBody: None} | dict.fromkeys(
        kind for each in operations for kind in (each.body, each.answer) if kind is not None
    )
    schemas, components = msgspec.json.schema_components(list(kinds), ref_template="#/components/schemas/{name}")
    references = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method] = _spelled(each, references, has_keys=has_keys)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "HyperFlexis", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _spelled(operation: _Operation, references: dict[type, dict[str, Any]], *, has_keys: bool) -> dict[str, Any]:
    content = {"text/plain": {}} if operation.answer is None else {_JSON: {"schema": references[operation.answer]}}
    if operation.streams:
        content[_EVENTS] = {}
    refusal = {"description": "Refused", "content": {_JSON: {"schema": references[ErrorBody]}}}
    refusals = (*operation.refusals, *((401,) if has_keys and not operation.is_open else ()))
    responses = {str(operation.ok): {"description": operation.summary, "content": content}}
    responses |= {str(status): refusal for status in sorted(refusals)}
    if operation.path == "/ready":
        responses["503"] = {"description": "None does", "content": content}
    told: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.body is not None:
        told["requestBody"] = {"required": True, "content": {_JSON: {"schema": references[operation.body]}}}
    if "{" in operation.path:
        name = operation.path.partition("{")[2].rstrip("}")
        told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.is_open:
        told["security"] = []
    return told
