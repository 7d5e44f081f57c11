"""Steps of a server that tells only tokens: which of them were emitted together, and which steps teach something.

vLLM emits one token of every running request per step, each on a connection of its own, so that a step's tokens come
one after the other. A request that comes again begins the next round. The control plane counts by rounds; where it has
to be told of something between two of them, the round that this costs is saved later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyperflexis.core.cadence import Cadence
from hyperflexis.core.latency import StepShape

NOTHING = StepShape()
"""A step of which only that it ended is known; nobody learns from it."""
PREFIXES_MAX = 4096
"""First blocks that are remembered, as what begins with one of them may have been found in a cache."""


@dataclass(slots=True)
class _Here:
    context_tokens: int
    submitted_s: float
    is_alone: bool
    prefix: int
    has_begun: bool = False


class Rounds:
    """Follows the requests of one server. Instants are seconds on any one clock."""

    def __init__(self, block_tokens: int, now: float) -> None:
        self.block_tokens = block_tokens
        self._here: dict[int, _Here] = {}
        self._waiting = 0
        self._prefixes: dict[int, None] = {}
        self._emitted: set[int] = set()
        """Those that have emitted in this round."""
        self._round_s = now
        self._is_clear = False
        """Whether, since this round began, every step was one of decodes and of these alone."""
        self._cadence = Cadence()
        self._owed = 0
        """Rounds that were told although they were none."""
        self.shape, self.duration_s = NOTHING, 0.0
        """Of the last step."""

    def __len__(self) -> int:
        return len(self._here)

    @property
    def waiting(self) -> int:
        """Of these, those that have no token yet."""
        return self._waiting

    @property
    def waiting_tokens(self) -> int:
        return sum(each.context_tokens for each in self._here.values() if not each.has_begun)

    def blocks(self) -> int:
        """What they have to hold, as far as we know."""
        return sum(-(-each.context_tokens // self.block_tokens) for each in self._here.values())

    def enter(self, request_id: int, tokens: list[int], now: float) -> None:
        """A request is there from now on, with these tokens to be computed first."""
        if not self._here:
            self._round_s = now  # What was before was no step.
        prefix = hash(tuple(tokens[: self.block_tokens]))
        self._here[request_id] = _Here(len(tokens), now, not self._here, prefix)
        if len(self._here) > 1:
            for each in self._here.values():
                each.is_alone = False
        self._waiting += 1
        self._is_clear = False

    def leave(self, request_id: int, *, is_at_end: bool = False) -> None:
        """It has ended there, or was taken away."""
        here = self._here.pop(request_id, None)
        if here is None:
            return
        self._waiting -= not here.has_begun
        self._emitted.discard(request_id)
        self._is_clear &= is_at_end  # What is cancelled may be in further steps until the server hears of that.

    def has_begun(self, request_id: int) -> bool:
        return self._here[request_id].has_begun

    def advance(self, emitted: Iterable[int], now: float) -> int:
        """These requests have emitted a token each, in this order; returns how many rounds that began."""
        rounds, self.shape = 0, NOTHING
        since_s, self.duration_s = self._round_s, max(1e-6, now - self._round_s)
        contexts: list[tuple[int, int]] = []
        for request_id in emitted:
            here = self._here[request_id]
            if request_id in self._emitted or not self._emitted:
                rounds += 1
                self._emitted.clear()
                decodes = [each.context_tokens for each in self._here.values() if each.has_begun]
                contexts.append((len(decodes), sum(decodes)))
            self._emitted.add(request_id)
            if here.has_begun:
                here.context_tokens += 1
            else:
                self._begin(here, now)
        if rounds:
            if self._is_clear:
                self.shape = StepShape(0, 0, *contexts[-1])
                self.duration_s = max(1e-6, (now - since_s) / rounds)
            self._round_s = now
            self._is_clear = not self._waiting
        return rounds

    def _begin(self, here: _Here, now: float) -> None:
        if here.is_alone and here.prefix not in self._prefixes:
            tokens = here.context_tokens
            self.shape, self.duration_s = StepShape(tokens, tokens * tokens), max(1e-6, now - here.submitted_s)
            self._is_clear = False
        else:
            # Its prefill began after it was sent, which is all that is known of that.
            self.duration_s = min(self.duration_s, max(1e-6, now - here.submitted_s))
        self._prefixes.pop(here.prefix, None)
        self._prefixes[here.prefix] = None
        if len(self._prefixes) > PREFIXES_MAX:
            del self._prefixes[next(iter(self._prefixes))]
        here.has_begun = True
        here.context_tokens += 1
        self._waiting -= 1
        self._is_clear = False

    def told(self, rounds: int, *, has_news: bool) -> int:
        """How many steps the control plane is to hear of now; see `core.cadence`."""
        saved = min(rounds, self._owed)
        self._owed -= saved
        steps = self._cadence.count(rounds - saved, has_news)
        if has_news and not steps:
            self._owed += 1
            return 1
        return steps
