"""What stands behind a URL: which vLLM, which model, how much KV, whose tokenizer; and whether that is what was meant.

Asked once, when an instance is attached. What a server does not tell is assumed, and said. Answers that show that it is
the wrong server are errors that say which and whose.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from hyperflexis.adapters.vllm import metrics
from hyperflexis.adapters.vllm.completion import fault_of
from hyperflexis.adapters.vllm.endpoint import Answer, Endpoint, UnreachableError
from hyperflexis.adapters.vllm.metrics import Gauges

log = logging.getLogger(__name__)

PROBE_S = 10.0
"""So long each question may take."""


class WrongServerError(Exception):
    """What answers there is not what was configured; nothing but a person can mend that."""


class TokenProbe(NamedTuple):
    """A text, and what our tokenizer makes of it."""

    text: str
    ids: Sequence[int]


class Expected(NamedTuple):
    """What a server has to be."""

    model: str = ""
    """The name by which it serves the model; empty: the only, or first, that it serves."""
    tokens: TokenProbe | None = None
    seqs_max: int = 256
    block_tokens: int = 16
    """Assumed where a server does not tell."""
    kv_tokens: int | None = None
    """The same; None assumes that what the model's longest text needs is there, for as many as a few."""
    kv_token_bytes: int = 0
    """0 where nothing is known."""
    version: str = ""
    """Of the others, where it is known; another one is told, and no reason to stay out."""
    context_tokens_min: int = 0
    """A server that takes only shorter texts does not belong to the others."""


class Behind(NamedTuple):
    """What was found."""

    version: str
    model: str
    root: str
    """Where that server has it from, as it says: two with the same are the same to vLLM's connectors."""
    context_tokens_max: int
    block_tokens: int
    blocks: int
    cache_dtype: str
    caches_prefixes: bool
    gauges: Gauges | None
    """None: it has no metrics."""
    lacks: tuple[str, ...]
    """What it does not tell or cannot do, and what that means here."""

    @property
    def kv_tokens(self) -> int:
        return self.blocks * self.block_tokens


class _Model(msgspec.Struct):
    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_ASSUMED_SEQS = 8
_CONTEXT_TOKENS = 8192


async def probe(endpoint: Endpoint, expected: Expected) -> Behind:
    """Ask a server for all that we want to know of it.

    Raises:
        UnreachableError: it does not answer, or is not ready yet.
        WrongServerError: it is not what was expected.
    """
    health = await endpoint.get("/health", PROBE_S)
    if not health.is_ok:
        raise UnreachableError(f"{endpoint.url} is not healthy (HTTP {health.status})")
    lacks: list[str] = []
    model = await _model(endpoint, expected)
    version = await _version(endpoint, lacks)
    if expected.version and version and version != expected.version:
        log.warning(
            "%s is vLLM %s, others are %s; KV does not pass between them", endpoint.url, version, expected.version
        )
    context_tokens = model.max_model_len or _CONTEXT_TOKENS
    if model.max_model_len is None:
        lacks.append(f"it does not tell the longest text; {context_tokens} tokens are assumed")
    if context_tokens < expected.context_tokens_min:
        raise WrongServerError(
            f"{endpoint.url} takes texts of {context_tokens} tokens, the others of {expected.context_tokens_min}: "
            "start it with their --max-model-len"
        )
    page = await _page(endpoint, lacks)
    config = metrics.cache_config(page) if page else {}
    block_tokens, blocks = _capacity(config, metrics.engines(page), expected, context_tokens, lacks)
    await _check_tokenizer(endpoint, model.id, expected.tokens, lacks)
    await _look_around(endpoint, lacks)
    return Behind(
        version=version,
        model=model.id,
        root=model.root or model.id,
        context_tokens_max=context_tokens,
        block_tokens=block_tokens,
        blocks=blocks,
        cache_dtype=config.get("cache_dtype", ""),
        caches_prefixes=config.get("enable_prefix_caching", "True") != "False",
        gauges=metrics.read(page) if page else None,
        lacks=tuple(lacks),
    )


async def _model(endpoint: Endpoint, expected: Expected) -> _Model:
    answer = await endpoint.get("/v1/models", PROBE_S)
    if answer.status in (401, 403):
        raise WrongServerError(f"{endpoint.url} asks for an API key, or for another one: set vllm.api_key_file")
    try:
        models: list[_Model] = _decoded(answer, _Models).data
    except ValueError:
        raise WrongServerError(
            f"{endpoint.url} is no vLLM server: /v1/models gives HTTP {answer.status} and no list of models"
        ) from None
    wanted = [model for model in models if expected.model in ("", model.id)]
    if not wanted:
        served = ", ".join(model.id for model in models) or "nothing"
        raise WrongServerError(
            f"{endpoint.url} serves {served}, not {expected.model}: the URL leads to another server, or that one was "
            "started with another model"
        )
    return wanted[0]


async def _version(endpoint: Endpoint, lacks: list[str]) -> str:
    answer = await endpoint.get("/version", PROBE_S)
    try:
        return str(_decoded(answer, dict[str, Any])["version"])
    except (ValueError, KeyError):
        lacks.append("it does not tell its version; links to other versions are not refused")
        return ""


async def _page(endpoint: Endpoint, lacks: list[str]) -> bytes:
    try:
        answer = await endpoint.get("/metrics", PROBE_S)
    except UnreachableError:
        answer = Answer(0, b"")
    if answer.is_ok and b"vllm:" in answer.body:
        return answer.body
    lacks.append("it has no metrics; its load is what we gave it, and a restart is noticed by broken connections only")
    return b""


def _capacity(config: Any, engines: int, expected: Expected, context_tokens: int, lacks: list[str]) -> tuple[int, int]:
    """Tokens per block, and blocks."""
    block_tokens = _whole(config.get("block_size")) or expected.block_tokens
    blocks = _whole(config.get("num_gpu_blocks"))
    if blocks:
        return block_tokens, blocks * engines
    kv_tokens = expected.kv_tokens or _ASSUMED_SEQS * context_tokens
    origin = "as configured" if expected.kv_tokens else "set kv_tokens beside its URL"
    lacks.append(f"it does not tell its KV cache; {kv_tokens} tokens in blocks of {block_tokens} are assumed, {origin}")
    return block_tokens, max(2, kv_tokens // block_tokens)


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


async def _check_tokenizer(endpoint: Endpoint, model: str, ours: TokenProbe | None, lacks: list[str]) -> None:
    if ours is None:
        return
    body = {"model": model, "prompt": ours.text, "add_special_tokens": False}
    answer = await endpoint.post("/tokenize", body, PROBE_S)
    if not answer.is_ok:
        lacks.append(f"its tokenizer cannot be compared with ours (HTTP {answer.status}: {fault_of(answer.body)})")
        return
    theirs = _decoded(answer, dict[str, Any]).get("tokens")
    if theirs != list(ours.ids):
        raise WrongServerError(
            f"{endpoint.url} has another tokenizer than the one given here: {ours.text[:20]!r}... is {_few(theirs)} "
            f"there and {_few(ours.ids)} here; give `serve` the directory of the model that this server serves"
        )


def _few(ids: Any) -> str:
    return f"{list(ids)[:4]}..." if isinstance(ids, Sequence) else repr(ids)


async def _look_around(endpoint: Endpoint, lacks: list[str]) -> None:
    """Name what is switched off there that could be of use."""
    if not (await endpoint.get("/load", PROBE_S)).is_ok:
        lacks.append("it does not track its load (--enable-server-load-tracking); nothing here needs it")
    if (await endpoint.post("/inference/v1/generate", {}, PROBE_S)).status in (403, 404):
        lacks.append(
            "it has no token interface (--enable-scale-out); completions with token ids do, at some more CPU there"
        )


def _decoded(answer: Answer, kind: Any) -> Any:
    """Raises ValueError where it is not that."""
    if not answer.is_ok:
        raise ValueError(f"HTTP {answer.status}")
    return msgspec.json.decode(answer.body, type=kind)
