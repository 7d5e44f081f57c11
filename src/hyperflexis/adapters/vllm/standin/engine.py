"""What happens inside a stand-in: requests wait, run and end step by step, and KV is kept and fetched.

Knows no HTTP but for fetching KV from another stand-in.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp

VERSION = "0.32.0+standin"
FIRST_TOKEN_ID = 9
"""Those below it are special ones of the demo model."""


@dataclass(slots=True)
class Traits:
    """What the server is like."""

    model: str = "demo"
    root: str = ""
    version: str = VERSION
    vocabulary: int = 3072
    context_tokens_max: int = 2048
    block_tokens: int = 16
    blocks: int = 4096
    seqs_max: int = 64
    step_s: float = 0.005
    prefill_tokens_max: int = 2048
    queued_max: int | None = None
    """As --max-num-queued-reqs."""
    has_connector: bool = False
    """As --kv-transfer-config with the NixlConnector."""
    lease_s: float = 30.0
    api_key: str = ""


@dataclass(slots=True)
class Faults:
    """What is wrong with it now."""

    hang: bool = False
    """Neither steps nor answers, and closes nothing."""
    unhealthy: bool = False
    no_metrics: bool = False
    refuse: bool = False
    """Every request is one too many."""
    cut: bool = False
    """The next event of every stream is its last, without an end."""
    done_without_reason: bool = False
    """The next event of every stream is [DONE]."""
    mute: bool = False
    """Who would get a token now gets none, and never will; nothing is closed."""
    abort: bool = False
    """The next token of every stream ends it with "abort"."""
    wrong_first_token: bool = False
    """Of requests whose KV came from elsewhere."""


@dataclass(slots=True)
class Job:
    """One request."""

    id: str
    prompt: list[int]
    body: dict[str, Any]
    priority: int
    context_hash: int = 0
    output: list[int] = field(default_factory=list)
    computed: int = 0
    """Of the prompt."""
    events: asyncio.Queue[tuple[int, str | None] | None] = field(default_factory=asyncio.Queue)
    """(token, reason to end with it); None: it is cut off."""
    params: dict[str, Any] | None = None
    """Of KV that is to be fetched, once it is its turn."""
    fetching: asyncio.Task[None] | None = None
    error: str = ""
    is_mute: bool = False

    @property
    def max_tokens(self) -> int:
        return int(self.body["max_tokens"])


def hash_of(tokens: list[int], start: int = 1) -> int:
    """Of a text; goes on from that of the text before."""
    value = start
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % 2_305_843_009_213_693_951
    return value


def next_token(context_hash: int, vocabulary: int, salt: int = 0) -> int:
    """What follows a text with this hash."""
    return FIRST_TOKEN_ID + (context_hash * 31 + salt) % 1_000_000_007 % (vocabulary - FIRST_TOKEN_ID)


class Engine:
    """All requests of one server."""

    def __init__(self, traits: Traits, faults: Faults) -> None:
        self._traits = traits
        self._faults = faults
        self.waiting: list[tuple[int, int, Job]] = []
        self.running: dict[str, Job] = {}
        self.kept: dict[str, tuple[list[int], float]] = {}
        """Request → its tokens, and until when they are kept for another server."""
        self.started_s = time.time()
        self.tokens = 0
        """Computed so far."""
        self.told = (0, 0, 0.0)
        """Gauges as of the last step: running, waiting, share of the KV."""
        self._arrivals = itertools.count()
        self._engine_id = str(uuid.uuid4())
        self._wake = asyncio.Event()

    def add(self, job: Job) -> None:
        """Let it wait for its turn."""
        heapq.heappush(self.waiting, (job.priority, next(self._arrivals), job))
        self._wake.set()

    def forget_all(self) -> None:
        """Be another process, which knows nothing of before."""
        self.waiting.clear()
        self.running.clear()
        self.kept.clear()
        self.started_s = time.time() + 1.0
        self.tokens, self.told = 0, (0, 0, 0.0)

    async def run(self) -> None:
        """Step for ever."""
        due_s = time.monotonic()
        while True:
            if not self.waiting and not self.running:
                self._wake.clear()
                await self._wake.wait()
                due_s = time.monotonic()
            due_s = max(due_s + self._traits.step_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            if not self._faults.hang:
                self._step()

    def _step(self) -> None:
        traits = self._traits
        while self.waiting and len(self.running) < traits.seqs_max:
            _, _, job = heapq.heappop(self.waiting)
            self.running[job.id] = job
            if job.params is not None:
                job.fetching = asyncio.get_running_loop().create_task(self._take_kv(job))
        budget = traits.prefill_tokens_max
        for job in list(self.running.values()):
            if job.is_mute or (job.fetching is not None and not job.fetching.done()):
                continue
            left = len(job.prompt) - job.computed
            chunk = min(left, budget)
            budget -= chunk
            job.computed += chunk
            self.tokens += chunk
            if job.computed == len(job.prompt):
                self._emit(job)
        held = sum(-(-(len(job.prompt) + len(job.output)) // traits.block_tokens) for job in self.running.values())
        self.told = (len(self.running), len(self.waiting), held / traits.blocks)

    def _emit(self, job: Job) -> None:
        if self._faults.mute:
            job.is_mute = True
            return
        if self._faults.cut or self._faults.done_without_reason:
            self.end(job)
            job.events.put_nowait(None)
            return
        sampled = float(job.body.get("temperature", 1.0)) > 0
        salt = hash_of([int(job.body.get("seed") or 0) & 0xFFFF, len(job.output)]) if sampled else 0
        token = next_token(job.context_hash, self._traits.vocabulary, salt)
        if self._faults.wrong_first_token and job.params is not None and not job.output:
            token = FIRST_TOKEN_ID + (token + 1) % 100
        job.output.append(token)
        job.context_hash = hash_of([token], job.context_hash)
        self.tokens += 1
        reason = "length" if len(job.output) >= job.max_tokens else None
        is_stop = token in job.body.get("stop_token_ids", ()) or (token == 0 and not job.body.get("ignore_eos"))
        if is_stop and len(job.output) > job.body.get("min_tokens", 0):
            reason = "stop"
        if self._faults.abort:
            reason = "abort"
        if reason is not None:
            self.end(job)
        job.events.put_nowait((token, reason))

    def end(self, job: Job) -> None:
        """Compute it no more."""
        self.running.pop(job.id, None)
        self.waiting = [each for each in self.waiting if each[2] is not job]
        heapq.heapify(self.waiting)

    # -- KV between servers

    def keep_kv(self, job: Job, port: int) -> dict[str, Any]:
        """What leads another server to the KV of its prompt."""
        self.kept[job.id] = (job.prompt, time.monotonic() + self._traits.lease_s)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(-(-len(job.prompt) // self._traits.block_tokens)))],
            "remote_engine_id": self._engine_id,
            "remote_request_id": job.id,
            "remote_host": "127.0.0.1",
            "remote_port": port,
            "tp_size": 1,
            "remote_num_tokens": len(job.prompt),
            "remote_blocks_expiry_time": None,
        }

    def give_kv(self, name: str) -> list[int] | None:
        """What the other server reads: after the lease, what was put into those blocks since."""
        kept = self.kept.pop(name, None)
        if kept is None:
            return None
        tokens, until_s = kept
        return tokens if time.monotonic() < until_s else tokens[::-1]

    async def _take_kv(self, job: Job) -> None:
        """Fetch the KV of its prompt, and decode on from that, whatever it is."""
        params = job.params or {}
        where = f"http://{params['remote_host']}:{params['remote_port']}/standin/kv/{params['remote_request_id']}"
        try:
            async with aiohttp.ClientSession() as session, session.get(where) as answer:
                answer.raise_for_status()
                job.context_hash = hash_of(await answer.json())
                job.computed = len(job.prompt)
        except (aiohttp.ClientError, OSError) as error:
            job.error = f"remote KV load failed: {error}"
            self.end(job)
            job.events.put_nowait(None)
