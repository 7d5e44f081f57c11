"""The runner's face: what is refused, what fails alone, what a step costs in memory."""

from __future__ import annotations

import pytest
import torch
from engine_models import random_runner, tiny_config
from engine_player import Job, Player, mixed_prompts

from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.errors import EngineError
from hyperflexis.engine.kv import KvPool
from hyperflexis.engine.runner import NO_TOKEN, Runner, SequenceSlice
from hyperflexis.engine.weights import random_weights
from hyperflexis.wire.messages import Sampling

GREEDY = Sampling(temperature=0.0)


def test_what_cannot_be_opened_says_why() -> None:
    runner = random_runner()
    runner.open(1, GREEDY, [1], [])
    for arguments, reason in [
        ((1, GREEDY, [1], []), "open already"),
        ((2, GREEDY, [], []), "empty prompt"),
        ((2, GREEDY, [1, 97], []), "outside the vocabulary of 97"),
        ((2, GREEDY, [-1], []), "outside the vocabulary"),
        ((2, GREEDY, [1], [97]), "outside the vocabulary"),
        ((2, Sampling(logit_bias={97: 1.0}), [1], []), "logit_bias"),
    ]:
        with pytest.raises(EngineError, match=reason):
            runner.open(*arguments)
    runner.close(1)
    runner.open(1, GREEDY, [1], [])


def test_a_step_of_nothing_is_nothing() -> None:
    assert random_runner().step([]).tokens == []


def test_a_step_that_samples_nothing_still_fills_the_pool() -> None:
    runner = random_runner()
    runner.open(1, GREEDY, [1, 2, 3], [])
    blocks = [5]
    assert runner.step([SequenceSlice(1, [1, 2], 0, blocks, sample=False)]).tokens == []
    assert int((runner.pool.data[5] != 0).any(-1).any(-1).sum()) == 2 * 2 * 2
    whole = random_runner()
    whole.open(1, GREEDY, [1, 2, 3], [])
    expected = whole.step([SequenceSlice(1, [1, 2, 3], 0, [0], sample=True)]).tokens
    assert runner.step([SequenceSlice(1, [3], 2, blocks, sample=True)]).tokens == expected


def test_tokens_come_in_the_order_of_the_slices() -> None:
    """Packing reorders; the caller never sees it."""
    prompts = mixed_prompts(9, 97, seed=2)
    runner = random_runner()
    alone = []
    for key, prompt in enumerate(prompts):
        runner.open(key, GREEDY, prompt, [])
        alone += runner.step([SequenceSlice(key, prompt, 0, list(range(16)), sample=True)]).tokens
    slices = [
        SequenceSlice(key, prompt, 0, list(range(20 * key, 20 * key + 16)), sample=key % 3 != 1)
        for key, prompt in enumerate(prompts)
    ]
    assert runner.step(slices).tokens == [token for key, token in enumerate(alone) if key % 3 != 1]


def test_a_poisoned_sequence_fails_alone_and_leaves_clean_blocks() -> None:
    runner = random_runner()
    for key in (1, 2):
        runner.open(key, GREEDY, [3, 4, 5], [])
    first = runner.step([SequenceSlice(key, [3, 4, 5], 0, [10 * key], sample=True) for key in (1, 2)]).tokens
    assert first[0] == first[1]
    runner.pool.data[10, 1, 1, 0] = float("nan")
    slices = [SequenceSlice(key, first[:1], 3, [10 * key], sample=True) for key in (1, 2)]
    result = runner.step(slices)
    assert list(result.errors) == [1]
    assert "not finite" in result.errors[1]
    assert result.tokens[0] == NO_TOKEN != result.tokens[1]
    assert runner.pool.data.isfinite().all()
    runner.close(1)
    runner.open(1, GREEDY, [3, 4, 5], [])
    assert runner.step([SequenceSlice(1, [3, 4, 5], 0, [10], sample=True)]).tokens == first[:1]


def test_prompt_log_probabilities_come_once_and_survive_preemption() -> None:
    runner = random_runner()
    prompt = [5, 6, 7, 8]
    sampling = Sampling(temperature=0.0, prompt_logprobs=True, logprobs=1)
    runner.open(1, sampling, prompt, [])
    whole = runner.step([SequenceSlice(1, prompt, 0, [1], sample=True)])
    assert [each.token for each in whole.prompt_logprobs[1]] == [6, 7, 8]
    again = runner.step([SequenceSlice(1, [*prompt, *whole.tokens], 0, [2, 3], sample=True)])
    assert again.prompt_logprobs == {}
    runner.open(2, sampling, prompt, [])
    assert runner.step([SequenceSlice(2, prompt[:2], 0, [4], sample=False)]).prompt_logprobs == {}
    assert runner.step([SequenceSlice(2, prompt[:3], 0, [5], sample=False)]).prompt_logprobs == {}
    last = runner.step([SequenceSlice(2, prompt[3:], 3, [5], sample=True)])
    assert [each.token for each in last.prompt_logprobs[2]] == [6, 7, 8]
    for one, other in zip(last.prompt_logprobs[2], whole.prompt_logprobs[1], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    runner.open(3, sampling, prompt, [9])
    resumed = runner.step([SequenceSlice(3, [*prompt, 9], 0, [6, 7], sample=True)])
    assert resumed.prompt_logprobs == {}


def test_weights_of_another_dtype_are_refused() -> None:
    config = tiny_config()
    layout = ArenaLayout.of(config, torch.bfloat16)
    with pytest.raises(ValueError, match="embed is"):
        Runner(config, layout.views(layout.allocate()), blocks=1, dtype=torch.float32)


@pytest.mark.parametrize("packed_bytes_max", [0, 1 << 28])
def test_other_weights_in_the_same_arena_are_used_after_rebinding(packed_bytes_max: int) -> None:
    config = tiny_config()
    layout = ArenaLayout.of(config, torch.float32)
    arena = layout.allocate()

    def emitted(runner: Runner) -> list[list[int]]:
        return Player(runner).play([Job(key, prompt, 6) for key, prompt in enumerate(mixed_prompts(4, 97, seed=1))])

    random_weights(config, layout, arena, seed=1, scale=0.2)
    runner = Runner(config, layout.views(arena), blocks=100, packed_bytes_max=packed_bytes_max)
    before = emitted(runner)
    random_weights(config, layout, arena, seed=2, scale=0.2)
    runner.rebind(layout.views(arena))
    fresh = Runner(config, layout.views(arena), blocks=100, packed_bytes_max=packed_bytes_max)
    assert before != emitted(runner) == emitted(fresh)


def test_memory_is_the_arena_and_the_pool() -> None:
    """Unpacked, no tensor of a runner that has worked is large besides its weights and its pool."""
    config = tiny_config(vocab_size=2000, hidden_size=128, intermediate_size=256, head_dim=32)
    layout = ArenaLayout.of(config, torch.float32)
    arena = layout.allocate()
    random_weights(config, layout, arena, seed=1)
    parameters = sum(view.numel() for view in layout.views(arena).values())
    assert 4 * parameters <= layout.bytes <= 4 * parameters + 256 * len(layout.entries)
    runner = Runner(config, layout.views(arena), blocks=300, packed_bytes_max=0)
    assert runner.pool.bytes == 300 * KvPool.block_bytes(config, 16, torch.float32)
    prompts = mixed_prompts(8, 2000, seed=3)
    Player(runner).play([Job(key, prompt, 4) for key, prompt in enumerate(prompts)])
    known = {arena.untyped_storage().data_ptr(), runner.pool.data.untyped_storage().data_ptr()}
    others = {
        storage.data_ptr(): storage.nbytes()
        for tensor in _tensors(runner)
        if (storage := tensor.untyped_storage()).data_ptr() not in known
    }
    # Rotary tables (context × 2 × head_dim), the gather buffer and the sampler's rows.
    rope = 4 * 512 * 2 * 32
    gathered = 4 * 2 * (8 * 4 * 3 // 2) * 16 * 2 * 32  # keys and values; 8 sequences of up to 4 blocks, half more
    assert sum(others.values()) <= rope + gathered + 4 * 2 * 8 * 2000 + 4 * 512 * 300 + 8 * 1000


def _tensors(root: object) -> list[torch.Tensor]:
    """Every tensor reachable through attributes and containers of this package's objects."""
    found, seen, queue = [], set(), [root]
    while queue:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, dict):
            queue += each.values()
        elif isinstance(each, list | tuple):
            queue += each
        elif type(each).__module__.startswith("hyperflexis"):
            slots = getattr(type(each), "__slots__", ())
            queue += [getattr(each, name) for name in slots if hasattr(each, name)]
            queue += getattr(each, "__dict__", {}).values()
    return found
