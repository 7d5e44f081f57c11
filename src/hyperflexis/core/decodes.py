"""The sequences of one instance that emit a token in every step, kept so that a step costs no more the more they are.

Every step advances all of them by one token. So what a step needs to know of them are sums that grow evenly (context),
and orders that do not change while they advance together: with due = f + k Q, all sequences of one pace Q keep their
order, and who needs a new KV block comes round every `block_tokens` steps. Joining and leaving cost a logarithm, a step
next to nothing, and many steps at once no more than one.

Knows nothing of waiting work, nor of who owns which block; but for bodies without tensors, which name no block that an
answer fills, it counts them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection
from typing import TYPE_CHECKING

from hyperflexis.core import budget

if TYPE_CHECKING:
    from hyperflexis.core.step import Sequence


class Decodes:
    """Counts steps, and holds each sequence by what does not change between them."""

    def __init__(self, block_tokens: int) -> None:
        self.steps = 0
        """Steps that this instance has taken. Sequences count their tokens by it."""
        self.context_tokens = 0
        self.covered = 0
        """The step before which everyone has blocks enough, where blocks are only counted."""
        self.sequences: dict[int, Sequence] = {}
        self._block_tokens = block_tokens
        self._by_pace: dict[float, list[tuple[float, int, Sequence]]] = {}
        """Pace → (due instant less what steps add to it, id, sequence), in order."""
        self._by_phase: list[dict[int, Sequence]] = [{} for _ in range(block_tokens)]
        """Step modulo `block_tokens` → who needs a new block in it."""
        self._crossings = [0] * 2 * block_tokens
        """How many these are, twice over, so that any stretch of steps is a slice."""

    def __len__(self) -> int:
        return len(self.sequences)

    def join(self, sequence: Sequence) -> None:
        """From now on it emits a token in every step."""
        self.sequences[sequence.id] = sequence
        self.context_tokens += sequence.context_tokens
        sequence.joined = self.steps - sequence.emitted
        sequence.decodes = self
        phase = self._phase(sequence)
        self._by_phase[phase][sequence.id] = sequence
        self._count_crossings(phase, 1)
        if sequence.pace_s is not None:
            insort(self._by_pace.setdefault(sequence.pace_s, []), self._entry(sequence))

    def leave(self, sequence: Sequence) -> None:
        """It has ended, or falls back behind the others."""
        del self.sequences[sequence.id]
        phase = self._phase(sequence)
        del self._by_phase[phase][sequence.id]
        self._count_crossings(phase, -1)
        if sequence.pace_s is not None:
            entries = self._by_pace[sequence.pace_s]
            del entries[bisect_left(entries, self._entry(sequence))]
            if not entries:
                del self._by_pace[sequence.pace_s]
        self.context_tokens -= sequence.context_tokens
        sequence.count(sequence.emitted)

    def advance(self, steps: int) -> None:
        """Everyone emits `steps` tokens."""
        self.steps += steps
        self.context_tokens += steps * len(self.sequences)
        self.covered = max(self.covered, self.steps)

    def cover(self, steps: int) -> int:
        """See to it that everyone has blocks enough for the next so many steps; returns how many that takes."""
        block_tokens = self._block_tokens
        start = self.covered % block_tokens
        rounds, rest = divmod(self.steps + steps - self.covered, block_tokens)
        self.covered = self.steps + steps
        return rounds * len(self.sequences) + sum(self._crossings[start : start + rest])

    def blocks_covered(self, sequence: Sequence) -> int:
        """All blocks that a sequence has by that, those of its prompt among them."""
        tokens = sequence.prompt_tokens + self.covered - 1 - sequence.joined
        return -(-tokens // self._block_tokens)

    def crossing(self, steps_ahead: int = 0) -> Collection[Sequence]:
        """Those whose tokens fill their blocks now, or `steps_ahead` steps from now: each then needs one more."""
        return self._by_phase[(self.steps + steps_ahead) % self._block_tokens].values()

    def strictest_pace_s(self) -> float:
        """Infinite where no pace was promised."""
        return min(self._by_pace, default=math.inf)

    def slack_s(self, now: float, step_s: float) -> float:
        """Least time until a token is due, of the sequences that are not lost; infinite without any promise.

        `step_s` is a step of these decodes alone.
        """
        least_s = math.inf
        for pace_s, entries in self._by_pace.items():
            gained_s = self.steps * pace_s - now
            for offset_s, _, sequence in entries:
                slack_s = offset_s + gained_s
                if slack_s >= step_s or not self._is_lost(sequence, slack_s, pace_s, step_s):
                    least_s = min(least_s, slack_s)
                    break
        return least_s

    def _is_lost(self, sequence: Sequence, slack_s: float, pace_s: float, step_s: float) -> bool:
        left = sequence.max_tokens - sequence.emitted
        return budget.is_decode_lost(slack_s, 0.0, pace_s, left, step_s)

    def _count_crossings(self, phase: int, count: int) -> None:
        self._crossings[phase] += count
        self._crossings[phase + self._block_tokens] += count

    def _phase(self, sequence: Sequence) -> int:
        # Its blocks are full whenever all but the last of its tokens, which is not computed yet, fill whole blocks.
        return (sequence.joined - sequence.prompt_tokens + 1) % self._block_tokens

    def _entry(self, sequence: Sequence) -> tuple[float, int, Sequence]:
        assert sequence.pace_s is not None
        return (sequence.anchor_s - sequence.joined * sequence.pace_s, sequence.id, sequence)

    def check(self) -> None:
        """Sums and orders agree with the sequences themselves."""
        contexts = [sequence.context_tokens for sequence in self.sequences.values()]
        assert sum(contexts) == self.context_tokens, f"context {self.context_tokens}, really {sum(contexts)}"
        assert all(sequence.decodes is self for sequence in self.sequences.values())
        paced = {entry[1] for entries in self._by_pace.values() for entry in entries}
        assert paced == {s.id for s in self.sequences.values() if s.pace_s is not None}, f"paces of others: {paced}"
        assert all(entries == sorted(entries) for entries in self._by_pace.values())
        phased = [sequence_id for phase in self._by_phase for sequence_id in phase]
        assert sorted(phased) == sorted(self.sequences), f"phases of others: {phased}"
