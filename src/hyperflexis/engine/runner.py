"""The engine's face: open a sequence, step, close it. One forward pass per step for everything that enters it.

It keeps what must persist between steps, rows of block tables and sampling states, and decides nothing: which sequences
enter a step, with how many tokens and in which blocks, is the caller's. It knows no clock, no request and no SLO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hyperflexis.engine.attention import to_device
from hyperflexis.engine.batch import BlockTables, PackedBatch, SequenceSlice, pack
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.errors import EngineError
from hyperflexis.engine.kv import KvPool
from hyperflexis.engine.linear import PACKED_BYTES_MAX
from hyperflexis.engine.model import Model, StepInput
from hyperflexis.engine.paged_attention import choose_attention
from hyperflexis.engine.sampler import NO_TOKEN, Sampler, SamplingState, token_logprobs
from hyperflexis.wire.messages import Sampling, SequenceState, TokenLogprobs

PROMPT_LOGITS_ROWS_MAX = 128
"""Prompt log-probabilities pass through the vocabulary so many rows at a time."""


@dataclass(slots=True)
class StepResult:
    """What one step computed."""

    tokens: list[int]
    """For each slice with `sample`, in order; `NO_TOKEN` where the sequence failed."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By index into `tokens`."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """By sequence, once, when its prompt is complete: positions 1 to the end of the prompt."""
    errors: dict[int, str] = field(default_factory=dict)
    """By sequence: why it cannot go on. It stays open until it is closed."""


@dataclass(slots=True)
class _Open:
    """One open sequence."""

    row: int
    state: SamplingState
    prompt: list[int]
    prompt_logprobs: list[TokenLogprobs] | None
    """Gathered so far; None where they are not wanted, or handed out already."""


class Runner:
    """A model with its KV pool, ready to step."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, torch.Tensor],
        *,
        blocks: int,
        block_tokens: int = 16,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        threads: int | None = None,
        packed_bytes_max: int = PACKED_BYTES_MAX,
        kv_memory: memoryview | None = None,
    ) -> None:
        """Allocate the pool, or lay it into `kv_memory` (see `KvPool`), and bind the weights.

        They are of `ArenaLayout.views`, on the device, in the dtype.
        On a CPU, weights of up to `packed_bytes_max` are copied into faster layouts (see `linear`).
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        dtype = weights["embed"].dtype if dtype is None else dtype
        wrong = [name for name, view in weights.items() if (view.dtype, view.device.type) != (dtype, self._device.type)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {weights[wrong[0]].dtype} on {weights[wrong[0]].device}, not {dtype}")
        self.config = config
        # An ordinary tensor: transfers write into it, and they need not know of inference mode.
        self.pool = KvPool(
            config, blocks=blocks, block_tokens=block_tokens, dtype=dtype, device=self._device, memory=kv_memory
        )
        with torch.inference_mode():
            self.attention = choose_attention(config, self.pool)
            self._sampler = Sampler(config.vocab_size, self._device)
        self._packed_bytes_max = packed_bytes_max
        self.rebind(weights)
        self._tables = BlockTables(block_tokens, self.pool.planes_per_block)
        self._open: dict[int, _Open] = {}

    @property
    def is_packed(self) -> bool:
        """Whether products run on a packed copy of the weights."""
        return self._model.is_packed

    def rebind(self, weights: dict[str, torch.Tensor]) -> None:
        """Use other weights of the same layout, or the same after their bytes changed.

        What the pool holds was computed with the old ones: sequences that go on must start again at 0.
        """
        with torch.inference_mode():
            self._model = Model(self.config, weights, self.pool, self.attention, self._packed_bytes_max)

    def unbind(self) -> None:
        """Let go of the weights; nothing may be computed until `rebind`."""
        del self._model

    def open(self, sequence: int, sampling: Sampling, prompt: list[int], emitted: list[int]) -> None:
        """Register a sequence. Emitted tokens mean that it was begun elsewhere: penalties and draws go on.

        Raises:
            EngineError: the sequence is open already, its prompt is empty, or a token is outside the vocabulary.
        """
        if sequence in self._open:
            raise EngineError(f"sequence {sequence} is open already")
        if not prompt:
            raise EngineError(f"sequence {sequence} has an empty prompt")
        for tokens in (prompt, emitted):
            if tokens and not (min(tokens) >= 0 and max(tokens) < self.config.vocab_size):
                raise EngineError(f"sequence {sequence} has a token outside the vocabulary of {self.config.vocab_size}")
        state = SamplingState(sampling, prompt, emitted, self.config.vocab_size)
        wants_prompt = sampling.prompt_logprobs and not emitted
        self._open[sequence] = _Open(self._tables.open(), state, prompt, [] if wants_prompt else None)

    def export(self, sequence: int, emitted: list[int]) -> SequenceState:
        """Return what another engine needs, besides the KV, to go on with a sequence that has emitted these tokens."""
        one = self._open[sequence]
        known = one.state.emitted
        assert len(emitted) == known, f"sequence {sequence} has emitted {known} tokens, not {len(emitted)}"
        read = one.prompt_logprobs
        return SequenceState(one.prompt, list(emitted), one.state.sampling, None if read is None else list(read))

    def adopt(self, sequence: int, state: SequenceState) -> None:
        """Register a sequence that another engine exported. Its KV is the caller's to bring.

        Raises:
            EngineError: as `open` does.
        """
        self.open(sequence, state.sampling, state.prompt, state.emitted)
        self._open[sequence].prompt_logprobs = None if state.prompt_logprobs is None else list(state.prompt_logprobs)

    def close(self, sequence: int) -> None:
        """Forget a sequence."""
        self._tables.close(self._open.pop(sequence).row)

    def close_all(self) -> None:
        """Forget all sequences."""
        for sequence in list(self._open):
            self.close(sequence)

    @torch.inference_mode()
    def step(self, slices: Sequence[SequenceSlice]) -> StepResult:
        """Compute all slices' tokens in one forward pass and draw what is wanted."""
        if not slices:
            return StepResult([])
        opened = [self._open[each.sequence] for each in slices]
        for each, one in zip(slices, opened, strict=True):
            self._tables.update(one.row, each.blocks, each.start, each.start + len(each.tokens))
        batch = pack(slices, [one.row for one in opened], self._tables)
        sampled = [index for index, each in enumerate(slices) if each.sample]
        reading = [index for index, one in enumerate(opened) if one.prompt_logprobs is not None]
        wanted, prompt_rows = self._wanted(batch, slices, opened, sampled, reading)
        hidden = self._model.forward(
            StepInput(
                ids=to_device(batch.ids, self._device),
                positions=to_device(batch.positions, self._device),
                position_max=batch.position_max,
                slots=to_device(batch.slots, self._device),
                plan=self.attention.plan(batch, self._tables),
                wanted=None
                if wanted == list(range(len(batch.ids)))
                else torch.tensor(wanted, dtype=torch.int64, device=self._device),
            )
        )
        result = StepResult([])
        if sampled:
            self._draw(result, slices, opened, sampled, hidden[: len(sampled)])
        at = len(sampled)
        for index, count in zip(reading, prompt_rows, strict=True):
            self._read_prompt(result, slices[index], opened[index], hidden[at : at + count])
            at += count
        return result

    def _wanted(
        self,
        batch: PackedBatch,
        slices: Sequence[SequenceSlice],
        opened: Sequence[_Open],
        sampled: list[int],
        reading: list[int],
    ) -> tuple[list[int], list[int]]:
        """Return the packed tokens whose logits are wanted, samples first, and how many follow per prompt read."""
        segment_of = [0] * len(slices)
        for segment, index in enumerate(batch.order):
            segment_of[index] = segment
        offsets: list[int] = batch.offsets.tolist()
        wanted = [offsets[segment_of[index]] + len(slices[index].tokens) - 1 for index in sampled]
        counts = []
        for index in reading:
            # The logits at position p speak of prompt token p + 1.
            rows = min(len(slices[index].tokens), len(opened[index].prompt) - 1 - slices[index].start)
            counts.append(max(rows, 0))
            first = offsets[segment_of[index]]
            wanted.extend(range(first, first + rows))
        return wanted, counts

    def _draw(
        self,
        result: StepResult,
        slices: Sequence[SequenceSlice],
        opened: Sequence[_Open],
        sampled: list[int],
        hidden: torch.Tensor,
    ) -> None:
        draws = self._sampler.draw(self._model.logits(hidden), [opened[index].state for index in sampled])
        result.tokens = draws.tokens
        result.logprobs = draws.logprobs
        for place, reason in draws.errors.items():
            failed = slices[sampled[place]]
            result.errors[failed.sequence] = reason
            self.pool.scrub(failed.blocks)

    def _read_prompt(self, result: StepResult, each: SequenceSlice, one: _Open, hidden: torch.Tensor) -> None:
        read = one.prompt_logprobs
        assert read is not None
        assert each.start <= len(read), "a prompt whose log-probabilities are wanted must be computed from its start"
        del read[each.start :]  # a preempted sequence starts again
        width = one.state.sampling.logprobs or 0
        for at in range(0, hidden.shape[0], PROMPT_LOGITS_ROWS_MAX):
            rows = hidden[at : at + PROMPT_LOGITS_ROWS_MAX]
            first = each.start + at + 1
            tokens = one.prompt[first : first + rows.shape[0]]
            read.extend(token_logprobs(self._model.logits(rows), tokens, [width] * len(tokens)))
        if each.start + len(each.tokens) >= len(one.prompt):
            result.prompt_logprobs[each.sequence] = read
            one.prompt_logprobs = None


__all__ = ["NO_TOKEN", "Runner", "SequenceSlice", "StepResult"]
