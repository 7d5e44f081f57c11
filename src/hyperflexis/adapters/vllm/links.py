"""Which servers may take from which: what one tells of itself, and what the other makes of it.

KV passes between servers only if vLLM's connectors agree on everything that they hash: vLLM's version, the model as it
was spelled, block size, number format. They check by themselves, but late and with an error for a client; so it is
checked here, as far as servers tell. Requests that are computed anew need no more than the same model.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

import msgspec

from hyperflexis.adapters.vllm.probe import Behind
from hyperflexis.wire.messages import Exposed, ExposeKv, Linked, LinkFailed, LinkTo, News, Reclaim, Unlink

log = logging.getLogger(__name__)


class Described(msgspec.Struct, frozen=True, array_like=True):
    """What a server tells its peers of itself."""

    url: str
    version: str
    model: str
    root: str
    block_tokens: int
    cache_dtype: str
    transfers: bool


class Body(Protocol):
    """The adapter, as links see it."""

    @property
    def url(self) -> str: ...

    @property
    def behind(self) -> Behind | None: ...

    @property
    def transfers(self) -> bool: ...

    def say(self, news: News) -> None: ...


class _Link(NamedTuple):
    version: int
    passes_kv: bool


class Links:
    """Those that lead to one server."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._links: dict[int, _Link] = {}
        self._told: dict[int, str] = {}

    def order(self, order: ExposeKv | LinkTo | Unlink | Reclaim) -> None:
        ours = self._described()
        if isinstance(order, ExposeKv):
            self._body.say(Exposed(order.peer, order.version, msgspec.msgpack.encode(ours)))
        elif isinstance(order, LinkTo):
            theirs = msgspec.msgpack.decode(order.descriptor, type=Described)
            why = unlike(theirs, ours)
            if why:
                if self._told.get(order.peer) != why:  # It is tried again a few times.
                    log.warning("%s", why)
                self._told[order.peer] = why
                self._body.say(LinkFailed(order.peer, order.version, why))
            else:
                self._links[order.peer] = _Link(order.version, theirs.transfers and ours.transfers)
                self._body.say(Linked(order.peer, order.version))
        elif isinstance(order, Unlink) and self._links.get(order.peer, _Link(-1, False)).version == order.version:
            del self._links[order.peer]

    def refusal(self, peer: int, version: int) -> str:
        """Why nothing can be taken from there by this link; empty if it can."""
        link = self._links.get(peer)
        return "" if link is not None and link.version == version else f"there is no such link with i{peer}"

    def passes_kv(self, peer: int) -> bool:
        link = self._links.get(peer)
        return link is not None and link.passes_kv

    def _described(self) -> Described:
        behind = self._body.behind
        assert behind is not None, "linked before it was ready"
        return Described(
            self._body.url,
            behind.version,
            behind.model,
            behind.root,
            behind.block_tokens,
            behind.cache_dtype,
            self._body.transfers,
        )


def unlike(source: Described, target: Described) -> str:
    """Why the target can take nothing of the source's; empty if it can."""
    if source.model != target.model:
        return f"{source.url} serves {source.model} and {target.url} serves {target.model}"
    if not (source.transfers and target.transfers):
        return ""
    for name, word in (
        ("version", "vLLM version"),
        ("root", "model path"),
        ("block_tokens", "block size"),
        ("cache_dtype", "KV number format"),
    ):
        theirs, ours = getattr(source, name), getattr(target, name)
        if theirs != ours and theirs and ours:
            return f"KV cannot pass: {word} is {theirs} at {source.url} and {ours} at {target.url}"
    return ""
