"""vLLM servers that run already, as instances: a launch attaches one that is free, and its end leaves it alone.

Servers that do not answer are tried again until they do; nobody here starts or stops them. The first that answers says
what the others have to be: the same model, by the same name unless another one is configured, and as long texts.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.vllm.adapter import Manner, VllmAdapter
from hyperflexis.adapters.vllm.attaching import Complaints, find
from hyperflexis.adapters.vllm.endpoint import Endpoint, open_session
from hyperflexis.adapters.vllm.probe import Behind, Expected, TokenProbe
from hyperflexis.adapters.vllm.watch import WatchRules
from hyperflexis.core.instance import Role
from hyperflexis.core.latency import Sample

log = logging.getLogger(__name__)

OTHERS_S = 2.0
"""Once one server has answered, the others get so long to be known from the start too."""


class AttachError(Exception):
    """No server can be attached; the message and the hint are for an operator."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class Target(NamedTuple):
    """One server."""

    url: str
    role: Role = Role.MIXED
    model: str = ""
    """The name by which it serves the model; empty: that of the others."""
    kv_tokens: int | None = None
    """What its KV cache holds, where it does not tell."""


@dataclass(frozen=True, slots=True)
class AttachSpec:
    """All servers, and how they are treated."""

    targets: Sequence[Target]
    tokens: TokenProbe | None = None
    seqs_max: int = 256
    block_tokens: int = 16
    """Assumed where servers do not tell."""
    kv_token_bytes: int = 0
    samples: Sequence[Sample] = ()
    watch: WatchRules = field(default_factory=WatchRules)
    passes_kv: bool = False
    lease_s: float = 30.0
    api_key: str = ""


class AttachedLauncher:
    """Make with `start`."""

    def __init__(self, spec: AttachSpec, complaints: Complaints | None = None) -> None:
        self._spec = spec
        self._targets = list(spec.targets)
        self._session = open_session()
        self.complaints = complaints or Complaints()
        self._adapters: dict[str, VllmAdapter] = {}
        """By URL, the last one of each."""
        self._turns = itertools.count()
        self._launched: dict[str, int] = {}
        """By URL: how recently it was taken."""
        self.first: Behind
        """The server that the others are compared with."""
        self.context_tokens_max = 0
        """The longest text that all servers known at the start take."""

    @classmethod
    async def start(cls, spec: AttachSpec, complaints: Complaints | None = None) -> AttachedLauncher:
        """Wait until a server answers.

        Raises:
            AttachError: all of them answer and are not what was configured.
        """
        launcher = cls(spec, complaints)
        try:
            await launcher._find_first()
        except BaseException:
            await launcher.close()
            raise
        return launcher

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        """Attach a server that is free, with this role if there is one, and the one that was left longest ago.

        Raises:
            OSError: all are taken.
        """
        free = [target for target in self._targets if self._is_free(target)]
        if not free:
            raise OSError("every server is attached already")
        target = min(free, key=lambda each: (each.role is not role, self._launched.get(each.url, -1)))
        self._launched[target.url] = next(self._turns)
        log.info("i%d is to be %s", instance_id, target.url)
        return self.attach(listener, target)

    def attach(self, listener: Listener, target: Target, when_closed: Callable[[], None] | None = None) -> VllmAdapter:
        """Attach this server, now or as soon as it answers."""
        manner = Manner(
            expected=self._expected(target),
            watch=self._spec.watch,
            samples=self._spec.samples,
            block_tokens=self.block_tokens,
            transfers=self._spec.passes_kv,
            lease_s=self._spec.lease_s,
        )
        adapter = VllmAdapter(listener, self._endpoint(target), manner, self.complaints, when_closed=when_closed)
        self._adapters[target.url] = adapter
        return adapter

    @property
    def targets(self) -> Sequence[Target]:
        return self._targets

    def add(self, target: Target) -> None:
        """Attach this server too, with the next launch.

        Raises:
            ValueError: it is among them already.
        """
        if any(each.url == target.url for each in self._targets):
            raise ValueError(f"{target.url} is attached already")
        self._targets.append(target)

    def without(self, adapter: Adapter) -> list[Target]:
        """All servers but the one that this adapter speaks to."""
        return [each for each in self._targets if self._adapters.get(each.url) is not adapter]

    def keep(self, targets: Sequence[Target]) -> None:
        """Attach no others any more; those that are attached stay so until they are closed."""
        self._targets = list(targets)

    async def close(self) -> None:
        """Leave all servers alone."""
        for adapter in self._adapters.values():
            adapter.close()
        await self._session.close()

    @property
    def block_tokens(self) -> int:
        """Of all instances, whatever their own blocks: the control plane compares prompts by them."""
        return self.first.block_tokens

    @property
    def caches_prefixes(self) -> bool:
        return self.first.caches_prefixes

    async def _find_first(self) -> None:
        targets = self._targets
        looking = [asyncio.ensure_future(self._look(target)) for target in targets]
        try:
            while not any(each.done() for each in looking):
                if len(self.complaints.wrong) == len(targets):
                    raise AttachError("\n".join(self.complaints.wrong.values()), "see docs/vllm.md")
                self.complaints.changed.clear()
                changed = asyncio.ensure_future(self.complaints.changed.wait())
                await asyncio.wait((*looking, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            await asyncio.wait(looking, timeout=OTHERS_S)
            found = [each.result() for each in looking if each.done()]
        finally:
            for each in looking:
                each.cancel()
            await asyncio.gather(*looking, return_exceptions=True)
        self.first = found[0]
        same = [each for each in found if each.model == self.first.model]
        self.context_tokens_max = min(each.context_tokens_max for each in same)

    async def _look(self, target: Target) -> Behind:
        return await find(self._endpoint(target), self._known(target), self.complaints)

    def _known(self, target: Target) -> Expected:
        """What is expected of a server before any other has answered."""
        spec = self._spec
        return Expected(
            model=target.model,
            tokens=spec.tokens,
            seqs_max=spec.seqs_max,
            block_tokens=spec.block_tokens,
            kv_tokens=target.kv_tokens,
            kv_token_bytes=spec.kv_token_bytes,
        )

    def _expected(self, target: Target) -> Expected:
        return self._known(target)._replace(
            model=target.model or self.first.model,
            version=self.first.version,
            context_tokens_min=self.context_tokens_max,
        )

    def _endpoint(self, target: Target) -> Endpoint:
        return Endpoint(self._session, target.url, self._spec.api_key)

    def _is_free(self, target: Target) -> bool:
        adapter = self._adapters.get(target.url)
        return adapter is None or adapter.is_closed
