"""Tokens and log-probabilities equal those of transformers, however the work is cut into steps."""

from __future__ import annotations

import pytest
import torch
from engine_models import Checkpoint, load, random_runner
from engine_player import Job, Player, mixed_prompts

from hyperflexis.engine.attention import TILE_TOKENS
from hyperflexis.engine.runner import SequenceSlice
from hyperflexis.wire.messages import Sampling, TokenLogprobs

GREEDY = Sampling(temperature=0.0)


def _jobs(prompts: list[list[int]], tokens_max: int = 10, **sampling: object) -> list[Job]:
    settings = Sampling(**{"temperature": 0.0, **sampling})
    return [Job(key, prompt, tokens_max, settings) for key, prompt in enumerate(prompts, start=100)]


def test_every_family_emits_the_tokens_of_transformers(any_checkpoint: Checkpoint) -> None:
    jobs = _jobs(mixed_prompts(32, 199, seed=1))
    Player(load(any_checkpoint.path, blocks=700)).play(jobs)
    for job in jobs:
        any_checkpoint.assert_greedy(job.prompt, job.output)


@pytest.mark.parametrize("name", ["llama_tied", "qwen3", "llama_rope_llama3"])
@pytest.mark.parametrize("block_tokens", [1, 3, 16])
def test_chunks_company_and_preemption_change_no_token(checkpoints, name: str, block_tokens: int) -> None:
    checkpoint = checkpoints(name)
    jobs = _jobs(mixed_prompts(12, 199, seed=2))
    runner = load(checkpoint.path, blocks=1000, block_tokens=block_tokens)
    player = Player(runner, seed=block_tokens, chunk_tokens_max=17, idle_share=0.4, preempt_share=0.03)
    player.play(jobs)
    assert any(job.preempted for job in jobs)
    for job in jobs:
        checkpoint.assert_greedy(job.prompt, job.output)


def test_a_reused_prefix_changes_no_token(checkpoints) -> None:
    """The second sequence's first blocks were computed by the first one, with company in between."""
    checkpoint = checkpoints("llama_tied")
    runner = load(checkpoint.path)
    prefix, tails = mixed_prompts(3, 199, seed=3)[2][:12] + [7] * 12, [[5, 6, 7], [9, 8], [4]]
    prefix = prefix[:12]
    runner.open(0, GREEDY, [*prefix, *tails[0]], [])
    first = SequenceSlice(0, [*prefix, *tails[0]], 0, [9, 8, 7, 6, 5], sample=True)
    outputs = {0: runner.step([first]).tokens}
    sharers = [(1, [9, 8, 7, 20, 21]), (2, [9, 8, 7, 30, 31])]
    for key, _ in sharers:
        runner.open(key, GREEDY, [*prefix, *tails[key]], [])
    slices = [SequenceSlice(key, tails[key], 12, blocks, sample=True) for key, blocks in sharers]
    outputs |= {each.sequence: [token] for each, token in zip(slices, runner.step(slices).tokens, strict=True)}
    tables = {0: first.blocks, **dict(sharers)}
    for _ in range(4):
        slices = [
            SequenceSlice(key, output[-1:], 12 + len(tails[key]) + len(output) - 1, tables[key], sample=True)
            for key, output in outputs.items()
        ]
        for each, token in zip(slices, runner.step(slices).tokens, strict=True):
            outputs[each.sequence].append(token)
    for key, output in outputs.items():
        checkpoint.assert_greedy([*prefix, *tails[key]], output)


def test_a_long_prompt_in_large_chunks(checkpoints) -> None:
    """Chunks beyond a tile, continuing a context, beside short ones that continue theirs."""
    checkpoint = checkpoints("llama_rope_linear")
    long = [(7 * index) % 199 for index in range(3 * TILE_TOKENS + 40)]
    prompts = [long, *mixed_prompts(4, 199, seed=4)]
    runner = load(checkpoint.path, blocks=2000)
    for chunk in (TILE_TOKENS + 70, 2 * TILE_TOKENS + 1):
        jobs = _jobs(prompts, tokens_max=4)
        player = Player(runner, seed=chunk, chunk_tokens_max=chunk)
        player.random.randint = lambda low, high: high  # type: ignore[method-assign]
        player.play(jobs)
        for job in jobs:
            checkpoint.assert_greedy(job.prompt, job.output)


def test_a_sequence_begun_elsewhere_goes_on(checkpoints) -> None:
    checkpoint = checkpoints("qwen2_tied")
    sampling = {"temperature": 1.3, "seed": 11, "repetition_penalty": 1.3, "frequency_penalty": 0.4}
    prompts = mixed_prompts(4, 199, seed=5)
    whole = Player(load(checkpoint.path)).play(_jobs(prompts, 12, **sampling))
    resumed = _jobs(prompts, 12, **sampling)
    for job, output in zip(resumed, whole, strict=True):
        job.output = output[:5]
    assert Player(load(checkpoint.path), seed=1, chunk_tokens_max=6).play(resumed) == whole


def test_log_probabilities_are_those_of_transformers(checkpoints) -> None:
    checkpoint = checkpoints("qwen2_tied")
    jobs = _jobs(mixed_prompts(8, 199, seed=6), logprobs=3, prompt_logprobs=True)
    jobs += [Job(1, [5], 3, Sampling(temperature=0.0, logprobs=0, prompt_logprobs=True))]
    Player(load(checkpoint.path), chunk_tokens_max=9, idle_share=0.3, preempt_share=0.05).play(jobs)
    for job in jobs:
        tokens = [*job.prompt, *job.output]
        expected = checkpoint.logits(tokens[:-1]).log_softmax(-1)
        actual = [*(job.prompt_logprobs or []), *job.logprobs]
        assert job.prompt_logprobs is not None
        assert [each.token for each in actual] == tokens[1:]
        for row, each in zip(expected, actual, strict=True):
            _assert_logprobs(row, each, job.sampling.logprobs or 0)


def _assert_logprobs(row: torch.Tensor, actual: TokenLogprobs, width: int) -> None:
    assert actual.logprob == pytest.approx(float(row[actual.token]), abs=1e-4)
    assert actual.top_logprobs == pytest.approx(row.topk(width).values.tolist(), abs=1e-4)
    # Which of two that are equal but for rounding comes first depends on the processor.
    assert len(set(actual.top_tokens)) == width
    assert actual.top_logprobs == pytest.approx(row[actual.top_tokens].tolist(), abs=1e-4)


def test_bfloat16_runs_and_is_repeatable(checkpoints) -> None:
    prompts = mixed_prompts(9, 199, seed=7)
    path = checkpoints("llama_tied").path
    outputs = [Player(load(path, torch.bfloat16), chunk_tokens_max=20).play(_jobs(prompts)) for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert all(len(output) == 10 for output in outputs[0])


def test_the_same_steps_give_the_same_tokens() -> None:
    prompts = mixed_prompts(8, 97, seed=8)
    outputs = [
        Player(random_runner(), chunk_tokens_max=9, idle_share=0.3).play(_jobs(prompts, temperature=1.0, seed=4))
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
