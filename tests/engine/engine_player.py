"""Plays scheduler for a runner: random chunks, random company, preemptions. It owns the blocks as one would."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hyperflexis.engine.runner import Runner, SequenceSlice
from hyperflexis.wire.messages import Sampling, TokenLogprobs


@dataclass
class Job:
    """One request as the player sees it."""

    key: int
    prompt: list[int]
    tokens_max: int
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    output: list[int] = field(default_factory=list)
    """What it holds at the start was emitted elsewhere."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] | None = None
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    preempted: int = 0

    @property
    def is_done(self) -> bool:
        return len(self.output) >= self.tokens_max


class Player:
    """Steps a runner until every job is done."""

    def __init__(
        self,
        runner: Runner,
        seed: int = 0,
        *,
        chunk_tokens_max: int = 1000,
        idle_share: float = 0.0,
        preempt_share: float = 0.0,
    ) -> None:
        self.runner = runner
        self.random = random.Random(seed)
        self.chunk_tokens_max = chunk_tokens_max
        self.idle_share = idle_share
        self.preempt_share = preempt_share
        self.free = list(range(runner.pool.blocks))
        self.random.shuffle(self.free)

    def play(self, jobs: list[Job]) -> list[list[int]]:
        """Return the outputs, in the order of the jobs."""
        for job in jobs:
            self.runner.open(job.key, job.sampling, job.prompt, job.output)
        while any(not job.is_done for job in jobs):
            active = [job for job in jobs if not job.is_done and self.random.random() >= self.idle_share]
            self.random.shuffle(active)
            self._step(active)
        for job in jobs:
            self.runner.close(job.key)
            self._release(job)
        return [job.output for job in jobs]

    def _step(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.computed and self.random.random() < self.preempt_share:
                self._release(job)
                job.preempted += 1
        slices = [self._slice(job) for job in jobs]
        result = self.runner.step(slices)
        assert not result.errors
        sampled = [job for job, each in zip(jobs, slices, strict=True) if each.sample]
        for index, (job, token) in enumerate(zip(sampled, result.tokens, strict=True)):
            job.output.append(token)
            if index in result.logprobs:
                job.logprobs.append(result.logprobs[index])
        for job in jobs:
            if job.key in result.prompt_logprobs:
                assert job.prompt_logprobs is None
                job.prompt_logprobs = result.prompt_logprobs[job.key]

    def _slice(self, job: Job) -> SequenceSlice:
        tokens = [*job.prompt, *job.output]
        end = min(job.computed + self.random.randint(1, self.chunk_tokens_max), len(tokens))
        while len(job.blocks) * self.runner.pool.block_tokens < end:
            job.blocks.append(self.free.pop())
        start, job.computed = job.computed, end
        return SequenceSlice(job.key, tokens[start:end], start, job.blocks, sample=end == len(tokens))

    def _release(self, job: Job) -> None:
        self.free.extend(job.blocks)
        self.random.shuffle(self.free)
        job.computed = 0
        if self.random.random() < 0.5:
            job.blocks.clear()  # a scheduler may keep its list, or make another
        else:
            job.blocks = []


def mixed_prompts(count: int, vocab_size: int, seed: int, tokens_max: int = 60) -> list[list[int]]:
    """Prompts from one token to many, the first two of the shortest lengths."""
    chance = random.Random(seed)
    lengths = [1, 2, *(chance.randint(1, tokens_max) for _ in range(count - 2))]
    return [[chance.randrange(vocab_size) for _ in range(length)] for length in lengths]
