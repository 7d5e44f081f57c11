"""Engines that share a process, each with its scheduler, and a plain mover that carries sequences between them.

It does what an instance and a transfer would: steps are planned, computed and committed, and a move copies runs of
bytes from one pool's tensor into the other's. Nothing else passes from engine to engine than what can be sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.latency import LatencyModel, OnlineLatency
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence, StepRules, StepScheduler
from hyperflexis.engine.arena import flat_bytes
from hyperflexis.engine.batch import SequenceSlice
from hyperflexis.engine.kv import ranges
from hyperflexis.engine.runner import Runner
from hyperflexis.wire.messages import Sampling, SequenceState, TokenLogprobs

LATENCY = LatencyModel(0.01, 0.01, 0.001, 0.0, 0.001, 0.0)
GARBAGE = 1e4
"""What lies in blocks that wait for a sequence: large, so that attending to it cannot go unseen."""


@dataclass
class Request:
    """What a client asked for, and what it got."""

    number: int
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    slo: Slo = field(default_factory=Slo)
    priority: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    ends: int = 0

    def fresh(self) -> Request:
        return Request(self.number, self.prompt, self.max_tokens, self.sampling, self.slo, self.priority)


class Engine:
    """One scheduler and one runner, stepping by a clock of its own."""

    def __init__(self, runner: Runner, blocks: int, seqs_max: int, rules: StepRules) -> None:
        assert blocks <= runner.pool.blocks
        self.runner = runner
        self.scheduler = StepScheduler(
            BlockPool(blocks, runner.pool.block_tokens), seqs_max, OnlineLatency(LATENCY), rules
        )
        self.now = 0.0
        self.preempted = 0

    def submit(self, request: Request) -> bool:
        try:
            self.scheduler.add(sequence_of(request, request.prompt, self.now))
        except ValueError:
            return False
        self.runner.open(request.number, request.sampling, request.prompt, [])
        return True

    def cancel(self, number: int) -> bool:
        was_here = self.scheduler.cancel(number)
        if was_here:
            self.runner.close(number)
        return was_here

    def step(self, requests: dict[int, Request]) -> None:
        """One step; the requests are told what it gave."""
        plan = self.scheduler.plan(self.now)
        self.preempted += len(plan.preempted)
        chunks = plan.chunks
        slices = [
            SequenceSlice(one.id, one.tokens[start : start + tokens], start, one.blocks, samples)
            for one, start, tokens, samples in chunks
        ]
        result = self.runner.step(slices)
        assert not result.errors
        sampling = [each.sequence for each in slices if each.sample]
        for index, (number, token) in enumerate(zip(sampling, result.tokens, strict=True)):
            requests[number].tokens.append(token)
            if index in result.logprobs:
                requests[number].logprobs.append(result.logprobs[index])
        for number, read in result.prompt_logprobs.items():
            assert requests[number].prompt_logprobs is None, "prompt log-probabilities came twice"
            requests[number].prompt_logprobs = read
        self.now += LATENCY.step_s(plan.shape)
        for end in self.scheduler.commit(plan, dict(zip(sampling, result.tokens, strict=True)), self.now):
            self.runner.close(end.sequence_id)
            requests[end.sequence_id].ends += 1
        self.scheduler.check()

    def assert_empty(self) -> None:
        assert self.scheduler.is_idle()
        assert not self.scheduler.moves.expected
        assert self.scheduler.pool.blocks_free == self.scheduler.pool.blocks
        assert not self.runner._open


def sequence_of(request: Request, tokens: list[int], now: float, first_token_s: float | None = None) -> Sequence:
    return Sequence(
        request.number,
        list(tokens),
        len(request.prompt),
        request.max_tokens,
        request.slo,
        now,
        priority=request.priority,
        stop_ids=frozenset(request.sampling.stop_ids),
        first_token_s=first_token_s,
        reuses_prefix=not request.sampling.prompt_logprobs,
    )


class Move:
    """A sequence under way: rounds of `precopy`, then `suspend` and `finish`; or `abandon` at any point."""

    def __init__(self, request: Request, source: Engine, target: Engine, headroom: int) -> None:
        self.request, self.source, self.target = request, source, target
        self.number = request.number
        held = source.scheduler.held(self.number)
        assert held is not None
        self.tenure, self.copied, self.is_over = held.tenure, 0, False
        self.blocks: list[int] = []
        self.is_over = not self._expect(held.computed + headroom)

    def precopy(self) -> None:
        """Copy what is full by now while the sequence goes on."""
        held = self.source.scheduler.held(self.number, self.copied)
        if held is None:
            self.abandon()
        elif held.tenure != self.tenure:
            self.tenure, self.copied = held.tenure, 0
        else:
            settled = held.settled(self.source.runner.pool.block_tokens)
            self._copy(settled[: len(self.blocks) - self.copied])

    def suspend(self) -> bool:
        """Stop it; False (and the move is over) if it is gone."""
        if self.source.scheduler.held(self.number) is None:
            self.abandon()
        elif self.number not in self.source.scheduler.moves.suspended:
            self.source.scheduler.suspend(self.number)
        return not self.is_over

    def finish(self) -> str | None:
        """Copy the rest and let it go on at the target; returns what it was doing, or None if it did not move."""
        if not self.suspend():
            return None
        held = self.source.scheduler.held(self.number)
        assert held is not None
        if not self._expect(held.computed):
            self.abandon()
            return None
        self.copied = self.copied if held.tenure == self.tenure else 0
        self._copy(held.blocks[self.copied :])
        one = self._adopt(held.computed)
        assert self.source.cancel(self.number)
        self.is_over = True
        if one.decodes is not None:
            return "decoding"
        return "prefilling" if held.computed else "waiting"

    def abandon(self) -> None:
        if self.number in self.source.scheduler.moves.suspended:
            self.source.scheduler.resume(self.number)
        assert self.target.scheduler.release(self.number)
        self.is_over = True

    def _adopt(self, computed: int) -> Sequence:
        old = next(each for each in self.source.scheduler.sequences() if each.id == self.number)
        exported = self.source.runner.export(self.number, old.tokens[old.prompt_tokens :])
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(exported), type=SequenceState)
        age_s = None if old.first_token_s is None else self.source.now - old.first_token_s
        first_token_s = None if age_s is None else self.target.now - age_s
        one = sequence_of(self.request, state.prompt + state.emitted, self.target.now, first_token_s)
        self.target.scheduler.adopt(one, computed, self.target.now)
        self.target.runner.adopt(self.number, state)
        return one

    def _expect(self, tokens: int) -> bool:
        longest = len(self.request.prompt) + self.request.max_tokens
        blocks = self.target.scheduler.expect(self.number, tokens, longest)
        if blocks is None:
            return False
        if fresh := blocks[len(self.blocks) :]:
            self.target.runner.pool.data[fresh] = GARBAGE
        self.blocks = blocks
        return True

    def _copy(self, blocks: list[int]) -> None:
        here, there = self.source.runner.pool, self.target.runner.pool
        source, target = flat_bytes(here.data), flat_bytes(there.data)
        into = self.blocks[self.copied : self.copied + len(blocks)]
        for at, to, size in ranges(blocks, into, here.bytes_per_block):
            target[to : to + size] = source[at : at + size]
        self.copied += len(blocks)
