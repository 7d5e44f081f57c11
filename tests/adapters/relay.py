"""Two or more instances and what is between them: what a driver does about links and moves, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from adapters.fleets import PATIENCE_S, Fleet, Heard, submission
from hyperflexis.adapters.contract import Adapter
from hyperflexis.wire.messages import (
    Exposed,
    ExposeKv,
    FromPeer,
    Linked,
    LinkFailed,
    LinkTo,
    MoveFailed,
    News,
    Ready,
    StepReport,
    Submit,
    TakeIn,
    Taken,
    ToPeer,
)


class Instance(Heard):
    """One of them: hears, remembers, and passes on what is for others."""

    def __init__(self, relay: Relay, number: int) -> None:
        super().__init__()
        self.relay = relay
        self.number = number
        self.adapter: Adapter
        self.links: dict[int, str] = {}
        """By source: why its link has failed, or nothing."""
        self.exposed: list[Exposed] = []

    def on_report(self, report: StepReport) -> None:
        super().on_report(report)
        self.relay.hear(self, report)
        self.relay.news.set()

    def on_ready(self, ready: Ready) -> None:
        super().on_ready(ready)
        self.relay.news.set()

    def on_lost(self, why: str) -> None:
        super().on_lost(why)
        self.relay.news.set()

    def on_news(self, news: News) -> None:
        super().on_news(news)
        if isinstance(news, ToPeer):
            self.relay.tell(news.peer, FromPeer(self.number, news.payload))
        elif isinstance(news, Exposed):
            self.exposed.append(news)
            if self.relay.passes_descriptors:
                self.relay.tell(news.peer, LinkTo(self.number, news.version, news.descriptor))
        elif isinstance(news, MoveFailed):
            self.relay.under_way.pop(news.request, None)
            self.relay.failed.setdefault(news.request, []).append(news.why)
        elif isinstance(news, Linked):
            self.links[news.peer] = ""
        elif isinstance(news, LinkFailed):
            self.links[news.peer] = news.why
        self.relay.news.set()


class Relay:
    """Begins with so many instances. Knows where each request is, and what its client has."""

    def __init__(self, fleet: Fleet, instances: int = 2) -> None:
        self.fleet = fleet
        self.news = asyncio.Event()
        self.passes_descriptors = True
        self.instances = [Instance(self, number) for number in range(instances)]
        for each in self.instances:
            each.adapter = fleet.start(each)
        self.submits: dict[int, Submit] = {}
        self.homes: dict[int, int] = {}
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.prompt_logprobs: dict[int, list[Any]] = {}
        self.ended: set[int] = set()
        self.failed: dict[int, list[str]] = {}
        self.offers: dict[int, bytes] = {}
        self.moves = 0
        self.under_way: dict[int, tuple[int, int]] = {}
        """Request → source and target."""

    async def linked(self, version: int = 1) -> None:
        """Wait until all are ready and linked, both ways."""
        for each in self.instances:
            await each.until_ready()
        for source in self.instances:
            for target in self.instances:
                if source is not target:
                    await self.link(source.number, target.number, version)

    async def link(self, source: int, target: int, version: int) -> str:
        """Link two; returns why that failed."""
        self.instances[target].links.pop(source, None)
        self.instances[source].adapter.order(ExposeKv(target, version))
        await self.until(lambda: source in self.instances[target].links)
        return self.instances[target].links[source]

    def tell(self, number: int, order: Any) -> None:
        if not self.instances[number].lost:
            self.instances[number].adapter.order(order)

    def submit(self, number: int, submit: Submit) -> None:
        self.submits[submit.request] = submit
        self.homes[submit.request] = number
        self.instances[number].adapter.submit(submit)

    def move(self, request: int, target: int, *, at_first_token: bool = False, link_version: int = 1) -> None:
        """Order a move."""
        submit, source = self.submits[request], self.homes[request]
        self.moves += 1
        self.under_way[request] = source, target
        has = self.tokens.get(request, [])
        tokens = len(submit.prompt) + len(has)
        offer = self.offers.pop(request, b"")
        order = TakeIn(submit, source, self.moves, tokens, link_version, at_first_token, offer)
        self.tell(target, order)

    def hear(self, instance: Instance, report: StepReport) -> None:
        for arrived in report.arrived:
            assert self.under_way.pop(arrived.request) == (arrived.source, instance.number)
            assert arrived.emitted_tokens == len(self.tokens.get(arrived.request, []))
            self.homes[arrived.request] = instance.number
            self.tell(arrived.source, Taken(arrived.request))
        self.offers.update(report.offers)
        for request, read in report.prompt_logprobs.items():
            assert request not in self.prompt_logprobs, "prompt log-probabilities came twice"
            self.prompt_logprobs[request] = read
        for index, (request, token) in enumerate(zip(report.requests, report.tokens, strict=True)):
            assert self.homes[request] == instance.number, "a token from where it is not"
            self.tokens.setdefault(request, []).append(token)
            if index in report.logprobs:
                self.logprobs.setdefault(request, []).append(report.logprobs[index])
        self.ended.update(report.finished)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait; it is looked at whenever an instance has said anything."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def until_ended(self, *requests: int) -> None:
        await self.until(lambda: self.ended >= set(requests))

    async def until_heard(self, request: int, tokens: int) -> None:
        await self.until(lambda: len(self.tokens.get(request, ())) >= tokens)

    async def until_settled(self, request: int) -> None:
        """Wait until a move is over."""
        await self.until(lambda: request not in self.under_way)

    async def check_empty(self) -> None:
        """Nothing is left of anything, in all that live."""
        for each in self.instances:
            if each.lost:
                continue
            probe = 10_000 + each.number
            self.submit(each.number, submission(probe, [1], 1))
            await self.until_ended(probe)
            assert each.ready is not None
            last = each.reports[-1]
            assert (last.running_seqs, last.waiting_seqs, last.blocks_free) == (0, 0, each.ready.blocks)

    def close(self) -> None:
        for each in self.instances:
            each.adapter.close()
