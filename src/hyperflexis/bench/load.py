"""Requests at their instants, whatever becomes of those before them: an open loop.

A request is due when the trace says, and all times count from then: where this client, its connections or the server's
are late, the answer is. A client that waited for answers before asking on would not see the waiting that it causes
(coordinated omission). Only a later turn of a session is due after the answer before it has ended, as in the trace.

How late the client itself was is measured: at every request, and by a timer that only watches the loop, which is what
the instants of tokens hang upon. Knows nothing of promises but what is to be sent of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import aiohttp

from hyperflexis.bench.answer import Answer, Stream
from hyperflexis.bench.endpoint import Endpoint, Members
from hyperflexis.bench.prompts import Prompts
from hyperflexis.sim.job import Job

EARLY_S = 5e-5
"""Nearer to its instant than this, a request is due: timers are no finer."""
TICK_S = 0.05
START_S = 0.1
"""From the call to second 0."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Promise:
    """What is sent with each request of a class."""

    headers: Mapping[str, str] = field(default_factory=dict)
    members: Members = field(default_factory=dict)
    """Of the body."""


@dataclass(frozen=True, slots=True)
class Limits:
    timeout_s: float = 600.0
    """From its instant until a request is given up."""
    requests_max: int = 10_000
    """At one time. More wait for their turn, which is told: the load is then not what was asked for."""


class Load:
    """One run: made once, played once."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        prompts: Prompts,
        promises: Mapping[str, Promise],
        *,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._prompts = prompts
        self._headers = {name: dict(promise.headers) for name, promise in promises.items()}
        self._tails = {name: endpoint.tail(promise.members) for name, promise in promises.items()}
        self._clock = clock
        self._timeout_s = limits.timeout_s
        self._room = asyncio.Semaphore(limits.requests_max)
        self._start_s = 0.0
        self._bodies = 0
        self.answers: list[Answer] = []
        """Of all that have been due, in that order; those without an `ended_s` are still awaited."""
        self.behind_s: list[float] = []
        """How late the loop was, each time that it was looked at."""

    async def play(self, jobs: Iterable[Job], until_s: float) -> None:
        """Ask for everything that is due before `until_s`, and wait for what was asked for."""
        self._start_s = self._clock() + START_S
        watch = asyncio.create_task(self._watch())
        asked: set[asyncio.Task[None]] = set()
        try:
            for job in jobs:
                body = self._body(job)
                await self._wait(job.at_s)
                task = asyncio.create_task(self._session_of(job, body, until_s))
                asked.add(task)
                task.add_done_callback(asked.discard)
            await asyncio.gather(*asked)
        finally:
            for task in (watch, *asked):
                task.cancel()
            await asyncio.gather(watch, *asked, return_exceptions=True)

    @property
    def now_s(self) -> float:
        """Since second 0."""
        return self._clock() - self._start_s

    async def _wait(self, at_s: float) -> None:
        while (left_s := at_s - self.now_s) > EARLY_S:  # noqa: ASYNC110 an instant, no event
            await asyncio.sleep(left_s)

    async def _watch(self) -> None:
        while True:
            due_s = self.now_s + TICK_S
            await asyncio.sleep(TICK_S)
            self.behind_s.append(max(0.0, self.now_s - due_s))

    def _body(self, job: Job) -> bytes:
        self._bodies += 1
        prompt = self._prompts.of(self._bodies, job.prompt_tokens, job.block_hashes)
        return self._endpoint.body(prompt, job.output_tokens, self._tails[job.service_class])

    async def _session_of(self, job: Job, body: bytes, until_s: float) -> None:
        """A request, and those that follow from it."""
        following: Job | None = job
        while following is not None and following.at_s < until_s:
            job = following
            answer = Answer(job.service_class, job.at_s, job.prompt_tokens, job.output_tokens)
            self.answers.append(answer)
            async with self._room:
                await self._ask(answer, body)
            following = job.follow_up(answer.ended_s) if job.follow_up is not None else None
            if following is not None:
                body = self._body(following)
                await self._wait(min(following.at_s, until_s))

    async def _ask(self, answer: Answer, body: bytes) -> None:
        answer.sent_s = self.now_s
        try:
            async with asyncio.timeout(max(0.0, answer.due_s + self._timeout_s - answer.sent_s)):
                await self._read(answer, body)
        except TimeoutError:
            answer.break_off("timeout")
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            answer.break_off("connection", str(error) or type(error).__name__)
        answer.ended_s = self.now_s

    async def _read(self, answer: Answer, body: bytes) -> None:
        headers = self._headers[answer.service_class]
        async with self._session.post(self._endpoint.address, data=body, headers=headers) as response:
            if response.status != 200:
                answer.refuse(response.status, await response.text(), response.headers.get("Retry-After"))
                return
            stream = Stream(answer)
            async for data in response.content.iter_any():
                stream.feed(data, self.now_s)
            stream.close()
