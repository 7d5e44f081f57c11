"""An attached vLLM server as an instance: submits become completions, their tokens become reports.

vLLM schedules inside: step rules have no effect there but that a prefilling instance hands off. What a report says of
load is what we gave it, corrected by its gauges where those cannot be old; see `rounds` for what it says of steps.
A request that the server refuses for now, aborts, or whose stream breaks, goes back to be placed again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from hyperflexis.adapters.contract import Listener
from hyperflexis.adapters.vllm.answer import End, Impossible, Reading, Refused, Unfinished, Whole
from hyperflexis.adapters.vllm.attaching import Complaints, find
from hyperflexis.adapters.vllm.completion import PREFILL_ONLY
from hyperflexis.adapters.vllm.connection import Pool
from hyperflexis.adapters.vllm.endpoint import Endpoint
from hyperflexis.adapters.vllm.gate import Gate
from hyperflexis.adapters.vllm.learned import Learned
from hyperflexis.adapters.vllm.metrics import Gauges
from hyperflexis.adapters.vllm.moves import Moves
from hyperflexis.adapters.vllm.pending import Pending
from hyperflexis.adapters.vllm.probe import Behind, Expected
from hyperflexis.adapters.vllm.rounds import NOTHING, Rounds
from hyperflexis.adapters.vllm.running import Running
from hyperflexis.adapters.vllm.watch import Watch, WatchRules
from hyperflexis.core.latency import Sample
from hyperflexis.wire.messages import (
    Awake,
    FinishReason,
    News,
    Order,
    Ready,
    Sleep,
    StepReport,
    Submit,
    TokenLogprobs,
    Wake,
)

log = logging.getLogger(__name__)

GATHER_S = 0.001
"""Tokens of streams that go on wait so long for those of other streams: a step's tokens come one after the other."""
GAUGES_LAG_S = 1.0
"""A gauge that is younger than our last change by less than this may not show it yet."""


class Manner(NamedTuple):
    """How an instance is attached and treated."""

    expected: Expected
    watch: WatchRules = WatchRules()
    samples: Sequence[Sample] = ()
    """A profile's."""
    block_tokens: int | None = None
    """In which the control plane counts; None: the server's own."""
    transfers: bool = False
    """Whether these servers were started with a connector that passes KV."""
    lease_s: float = 30.0
    """How long a server keeps the KV of a prompt for another one."""


class VllmAdapter:
    """One server, from the first try to attach it until it is lost or closed."""

    def __init__(
        self,
        listener: Listener,
        endpoint: Endpoint,
        manner: Manner,
        complaints: Complaints,
        *,
        clock: Callable[[], float] = time.monotonic,
        when_closed: Callable[[], None] | None = None,
    ) -> None:
        """`when_closed` is called once, when it is closed or lost."""
        self._listener: Listener | None = listener
        self._when_closed = when_closed
        self._endpoint = endpoint
        self._manner = manner
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(endpoint.url, endpoint.headers)
        self._behind: Behind | None = None
        self._blocks = 0
        self._rounds = Rounds(1, clock())
        self._learned = Learned(manner.samples)
        self._running: dict[int, Running] = {}
        self._readings: set[Reading] = set()
        self._gate = Gate(self._send)
        self._moves = Moves(self, self, clock, manner.lease_s)
        self._pending = Pending()
        self._flush: asyncio.Handle | None = None
        """The next report, once one is due."""
        self._doubtful: list[tuple[Running, Unfinished]] = []
        """Those that broke off, until it is known whether the server lives."""
        self._rules_version = 0
        self._hands_off = False
        self._sent = 0
        self._gauges: Gauges | None = None
        self._changed_s = clock()
        self._watch: Watch | None = None
        self._attaching = self._loop.create_task(self._attach(complaints))

    @property
    def url(self) -> str:
        return self._endpoint.url

    @property
    def is_closed(self) -> bool:
        """Whether it is lost, or was closed."""
        return self._listener is None

    @property
    def behind(self) -> Behind | None:
        """What the server is, once it is attached."""
        return self._behind

    # -- contract.Adapter

    def submit(self, submit: Submit) -> None:
        if self._listener is None:
            return
        why = self._impossible(submit)
        if why:
            self.fail(submit.request, why)
            return
        is_handed_off = self._hands_off and len(submit.emitted) + 1 < submit.max_tokens
        self.run(Running(self, submit, transfer=PREFILL_ONLY if is_handed_off else None))

    def cancel(self, request_id: int) -> None:
        self._moves.cancelled(request_id)
        if self.drop(request_id) is not None:
            self._pending.has_changed = True
            self.report_soon()

    def configure(self, rules: Mapping[str, str | int | float | bool], version: int = 0) -> None:
        self._hands_off = bool(rules.get("hands_off", False))
        self._pending.has_changed |= version != self._rules_version
        self._rules_version = version
        if self._pending.has_changed:
            self.report_soon()

    def order(self, order: Order) -> None:
        if self._listener is None:
            return
        if isinstance(order, Sleep):
            self.say(Awake(why="a vLLM server that is attached is not put to sleep"))
        elif isinstance(order, Wake):
            self.say(Awake())
        else:
            self._moves.order(order)

    def close(self) -> None:
        self._listener = None
        self._attaching.cancel()
        if self._watch is not None:
            self._watch.close()
        self._gate.close()
        self._running.clear()
        for reading in list(self._readings):
            reading.close()
        self._pool.close()
        when_closed, self._when_closed = self._when_closed, None
        if when_closed is not None:
            when_closed()

    # -- for moves

    def run(self, running: Running) -> None:
        """Have the server compute it, unless nothing is left of it."""
        if (reason := running.complete()) is not None:
            self._pending.finished[running.id] = reason
            self.report_soon()
            return
        now = self._clock()
        self._running[running.id] = running
        self._changed_s = now
        self._rounds.enter(running.id, running.prompt(), now)
        self._gate.enter(running)

    def find(self, request_id: int) -> Running | None:
        """A request that the server computes, or will."""
        return self._running.get(request_id)

    def drop(self, request_id: int) -> Running | None:
        """Have the server stop computing it, and say no more of it; returns it if it was there."""
        running = self._running.get(request_id)
        self._pending.drop(request_id)
        if running is not None:
            running.close()
            self._forget(running)
        return running

    def stop(self, request_id: int) -> Running | None:
        """The same, but what has come of it is told."""
        if request_id in self._running:
            self.report()
        running = self._running.get(request_id)  # It may have ended with that.
        if running is not None:
            running.close()
            self._forget(running)
        return running

    def fail(self, request_id: int, why: str) -> None:
        """It can never be computed here."""
        self._pending.finished[request_id] = FinishReason.FAILED
        self._pending.errors[request_id] = why
        self.report_soon()

    @property
    def pending(self) -> Pending:
        return self._pending

    @property
    def transfers(self) -> bool:
        return self._manner.transfers

    def later(self, action: Callable[[], None], delay_s: float = 0.0) -> None:
        """Do that after this turn of the loop, unless it is closed by then."""
        self._loop.call_later(delay_s, lambda: action() if self._listener is not None else None)

    def say(self, news: News) -> None:
        """Tell the listener, not before this turn of the loop is over."""
        self._loop.call_soon(self._tell, news)

    def _tell(self, news: News) -> None:
        if self._listener is not None:
            self._listener.on_news(news)

    # -- running.Owner

    def on_tokens(self, running: Running, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        running.heard_s = self._clock()
        if running.id in self._moves.taking:
            self._moves.arrived(running)
        self._pending.add(running.id, tokens, logprobs)
        if self._flush is None:
            if self._rounds.has_begun(running.id):
                self._flush = self._loop.call_later(GATHER_S, self._report_due)
            else:
                self.report_soon()

    def on_prompt_logprobs(self, running: Running, logprobs: list[TokenLogprobs]) -> None:
        self._pending.prompt_logprobs[running.id] = logprobs

    def on_differs(self, running: Running) -> None:
        log.warning(
            "%s continues request %d otherwise than the server before it; it computes it anew", self.url, running.id
        )
        running.close()
        self._forget(running)
        self._moves.recompute(running)

    def on_end(self, running: Running, end: End) -> None:
        if self._running.get(running.id) is not running:
            return
        if not isinstance(end, Whole) and (reason := running.complete()) is not None:
            end = Whole(reason)
        if isinstance(end, Refused):
            self._gate.refused(running)
        if self._moves.ended(running, end):
            return
        if isinstance(end, Whole):
            self._pending.finished[running.id] = end.reason
        elif isinstance(end, Impossible) and end.is_unknown:
            self.on_gone(
                f"{self.url} does not serve {self._behind.model if self._behind else 'it'} any more: {end.why}"
            )
            return
        elif isinstance(end, Impossible):
            self.fail(running.id, f"vLLM at {self.url} refuses it: {end.why}")
        else:
            self._give_back(running, end)
        self.report_soon()

    def _give_back(self, running: Running, end: End) -> None:
        if isinstance(end, Unfinished) and self._watch is not None:
            # Not yet: it could be sent to where nobody is any more, again and again.
            self._doubtful.append((running, end))
            self._watch.doubt()
        else:
            self._return(running, getattr(end, "why", ""), was_refused=True)

    def _return(self, running: Running, why: str, *, was_refused: bool) -> None:
        log.debug("request %d goes back from %s: %s", running.id, self.url, why)
        self._pending.returned[running.id] = was_refused
        self.report_soon()

    # -- watch.Watched

    def is_busy(self) -> bool:
        return bool(self._running)

    def on_alive(self) -> None:
        doubtful, self._doubtful = self._doubtful, []
        for running, end in doubtful:
            if self._running.get(running.id) is running:
                self._return(running, end.why, was_refused=False)
        stalled_s = self._clock() - self._manner.watch.stalled_s
        for running in list(self._running.values()):
            if running.heard_s is not None and running.heard_s < stalled_s:
                self._break_off(running)

    def _break_off(self, running: Running) -> None:
        """Its server has forgotten it, or computes others before it. Which cannot be told, so nobody is blamed."""
        end = Unfinished(f"no token for {self._manner.watch.stalled_s:.0f} s")
        log.warning("%s leaves request %d standing: %s", self.url, running.id, end.why)
        running.close()
        if not self._moves.ended(running, end):
            self._return(running, end.why, was_refused=True)

    def on_gauges(self, gauges: Gauges) -> None:
        has_changed = self._gauges is None or gauges[1:4] != self._gauges[1:4]
        self._gauges = gauges
        if has_changed and self._clock() - self._changed_s > GAUGES_LAG_S:
            self.report_soon()

    def on_gone(self, why: str) -> None:
        self.report()  # Tokens that have come are the clients'.
        listener = self._listener
        if listener is not None:
            self.close()
            listener.on_lost(why)

    # -- from the first try to the first request

    async def _attach(self, complaints: Complaints) -> None:
        behind = await find(self._endpoint, self._manner.expected, complaints)
        for each in behind.lacks:
            log.info("%s: %s", self.url, each)
        if self._learned.is_guess:
            log.info("%s: nothing is known of its speed (engine.profile); a guess is corrected as it works", self.url)
        block_tokens = self._manner.block_tokens or behind.block_tokens
        self._behind, self._blocks = behind, behind.kv_tokens // block_tokens
        self._rounds = Rounds(block_tokens, self._clock())
        self._watch = Watch(self._endpoint, self, self._manner.watch, behind.gauges, self._clock)
        if self._listener is not None:
            self._listener.on_ready(
                Ready(
                    blocks=self._blocks,
                    block_tokens=block_tokens,
                    seqs_max=self._manner.expected.seqs_max,
                    latency=asdict(self._learned.model),
                    samples=[((*shape,), actual_s) for shape, actual_s in self._manner.samples],
                    device=f"vLLM {behind.version or 'of unknown version'} at {self.url}",
                    kv_token_bytes=self._manner.expected.kv_token_bytes,
                )
            )

    def _impossible(self, submit: Submit) -> str:
        """Why no server like this one could ever compute it; empty if it could."""
        assert self._behind is not None, "submitted before it was ready"
        tokens, context_max = len(submit.prompt) + submit.max_tokens, self._behind.context_tokens_max
        blocks = -(-tokens // self._rounds.block_tokens)
        if blocks > self._blocks:
            return f"it needs {blocks} KV blocks, and {self.url} has {self._blocks}"
        if tokens > context_max:
            return f"prompt and answer have {tokens} tokens, and {self.url} takes {context_max}"
        return ""

    def _send(self, running: Running) -> None:
        assert self._behind is not None
        self._sent += 1
        reading = running.open(self._pool, self._behind.model, f"hfx-{running.id}-{self._sent}")
        self._readings.add(reading)
        reading.when_over(self._readings.discard)

    def _forget(self, running: Running) -> None:
        self._gate.leave(running)
        self._rounds.leave(running.id)
        self._running.pop(running.id, None)
        self._changed_s = self._clock()

    # -- reports

    def report_soon(self) -> None:
        """When all that has come by now has been read."""
        if isinstance(self._flush, asyncio.TimerHandle):
            self._flush.cancel()
            self._flush = None
        if self._flush is None:
            self._flush = self._loop.call_soon(self._report_due)

    def _report_due(self) -> None:
        self._flush = None
        self.report()
        self._moves.say_letters()

    def report(self) -> None:
        """Tell what has come since the last time."""
        if self._listener is None or self._behind is None:
            return
        now, pending = self._clock(), self._pending
        self._pending = Pending()
        rounds, began = self._advance(pending, now)
        for request_id in (*pending.finished, *pending.returned, *pending.suspended):
            self._end(request_id)
        shape = self._rounds.shape
        is_new_model = shape is not NOTHING and self._learned.observe(shape, self._rounds.duration_s)
        steps = self._rounds.told(rounds, has_news=bool(began) or pending.has_news or is_new_model)
        self._listener.on_report(
            StepReport(
                duration_s=self._rounds.duration_s,
                prefill_tokens=shape.prefill_tokens,
                prefill_pairs=shape.prefill_pairs,
                decode_seqs=shape.decode_seqs,
                context_tokens=shape.context_tokens,
                requests=pending.requests,
                tokens=pending.tokens,
                finished=list(pending.finished),
                reasons=[int(reason) for reason in pending.finished.values()],
                started=began,
                cached_tokens=[0] * len(began),
                preempted=pending.preempted,
                began=began,
                steps=steps,
                waiting_seqs=self._rounds.waiting,
                waiting_tokens=self._rounds.waiting_tokens,
                running_seqs=len(self._rounds) - self._rounds.waiting,
                blocks_free=self._blocks_free(now),
                logprobs=pending.logprobs,
                prompt_logprobs=pending.prompt_logprobs,
                errors=pending.errors,
                latency=asdict(self._learned.model) if is_new_model else None,
                resumed=pending.resumed,
                arrived=pending.arrived,
                suspended=pending.suspended,
                offers=pending.offers,
                rules_version=self._rules_version,
                returned=pending.returned,
            )
        )

    def _advance(self, pending: Pending, now: float) -> tuple[int, list[int]]:
        """Count what has come; returns the rounds that ended and the requests that began to decode."""
        if not pending.requests:
            self._rounds.advance((), now)
            return 0, []
        if self._watch is not None:
            self._watch.heard()
        fresh = [each for each in dict.fromkeys(pending.requests) if not self._rounds.has_begun(each)]
        rounds = self._rounds.advance(pending.requests, now)
        if fresh:
            self._gate.taken()
        decoding = {each.request for each in pending.arrived if each.computed_tokens}
        return rounds, [each for each in fresh if each not in decoding]

    def _end(self, request_id: int) -> None:
        running = self._running.pop(request_id, None)
        if running is not None:
            self._gate.leave(running)
        self._rounds.leave(request_id, is_at_end=True)
        self._changed_s = self._clock()

    def _blocks_free(self, now: float) -> int:
        free = max(0, self._blocks - self._rounds.blocks())
        gauges = self._gauges
        if gauges is not None and gauges.kv_used is not None and now - self._changed_s > GAUGES_LAG_S:
            free = min(free, int(self._blocks * (1 - gauges.kv_used)))  # Others may use that server too.
        return free
