"""How long simulated instances take to start, by where they take their weights from.

    ready = schedule + boot + weights + post

Those that read the same thing at once share its bandwidth: a disk that all hosts read, a peer that several ask. In a
chain, where each receiver passes on what it has, a further one takes only a chunk longer. The parts and what is typical
of them are DeepServe's and ServerlessLLM's (published systems); see `docs/simulate.md` for figures.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial

from hyperflexis.core.instance import StartSource
from hyperflexis.sim.kernel import Kernel, to_ticks_s

EXACT_S = 1e-9


@dataclass(frozen=True, slots=True)
class StartPhases:
    """Seconds of a start that is alone."""

    schedule_s: float = 0.0
    """Until there is a place for it."""
    boot_s: float = 0.0
    """Process, libraries, device."""
    weights_s: float = 0.0
    post_s: float = 0.0
    """Warm-up, memory, graphs."""

    @property
    def total_s(self) -> float:
        return self.schedule_s + self.boot_s + self.weights_s + self.post_s


@dataclass(frozen=True, slots=True)
class StartupSpec:
    """All starts of a simulation. A source that is not named takes as long as the slowest one that is."""

    phases: Mapping[StartSource, StartPhases] = field(default_factory=dict, hash=False)
    is_chained: bool = True
    """Whether receivers of a peer's weights pass them on."""
    chunk_share: float = 0.02
    """Of the weights, what a receiver has before it passes it on."""

    @classmethod
    def constant(cls, seconds: float) -> StartupSpec:
        """The same whatever it starts from, and however many start at once."""
        return cls({source: StartPhases(boot_s=seconds) for source in StartSource})

    def of(self, source: StartSource) -> StartPhases:
        known = self.phases.get(source)
        if known is not None:
            return known
        return max(self.phases.values(), key=lambda phases: phases.total_s, default=StartPhases())

    def seconds(self) -> dict[StartSource, float]:
        """What each takes alone."""
        return {source: phases.total_s for source, phases in self.phases.items()}

    def together_s(self, starts: int) -> float:
        """By when so many that begin at once are there, whatever they start from: all may read one thing."""
        return max((each.total_s + max(0, starts - 1) * each.weights_s for each in self.phases.values()), default=0.0)


class Starts:
    """Those under way."""

    def __init__(self, spec: StartupSpec, kernel: Kernel) -> None:
        self._spec = spec
        self._kernel = kernel
        self._readers: dict[Hashable, Shared] = {}
        self._chain_s: dict[int, float] = {}
        """Donor → when the last receiver of its chain has its weights."""

    def begin(self, source: StartSource, donor_id: int | None, ready: Callable[[], None]) -> None:
        """Call `ready` when a start that is decided now would be."""
        phases = self._spec.of(source)
        if not phases.weights_s:
            self._after(phases.total_s, ready)
        else:
            read = partial(self._read, source, donor_id, phases, ready)
            self._after(phases.schedule_s + phases.boot_s, read)

    def _read(self, source: StartSource, donor_id: int | None, phases: StartPhases, ready: Callable[[], None]) -> None:
        weights_s, now = phases.weights_s, self._kernel.now
        if donor_id is not None and self._spec.is_chained:
            behind_s = self._chain_s.get(donor_id, now) + self._spec.chunk_share * weights_s
            self._chain_s[donor_id] = max(now + weights_s, behind_s)
            self._after(self._chain_s[donor_id] - now + phases.post_s, ready)
        else:
            shared = self._readers.setdefault((source, donor_id), Shared(self._kernel))
            shared.add(weights_s, partial(self._after, phases.post_s, ready))

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        self._kernel.at(to_ticks_s(self._kernel.now + seconds), then)


class Shared:
    """Work that shares one way evenly: with n at it, each gets an nth."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._left: list[tuple[float, Callable[[], None]]] = []
        """Seconds alone that are left of each, and what follows."""
        self._at_s = 0.0
        self._version = 0

    def add(self, seconds: float, then: Callable[[], None]) -> None:
        self._advance()
        self._left.append((seconds, then))
        self._arm()

    def _advance(self) -> None:
        passed_s = (self._kernel.now - self._at_s) / max(1, len(self._left))
        self._left = [(left_s - passed_s, then) for left_s, then in self._left]
        self._at_s = self._kernel.now

    def _arm(self) -> None:
        self._version += 1
        if self._left:
            version, first_s = self._version, min(left_s for left_s, _ in self._left)
            ends_s = self._kernel.now + max(0.0, first_s) * len(self._left)
            self._kernel.at(max(self._kernel.now, to_ticks_s(ends_s)), lambda: self._end(version))

    def _end(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        ended = [then for left_s, then in self._left if left_s <= EXACT_S]
        self._left = [(left_s, then) for left_s, then in self._left if left_s > EXACT_S]
        self._arm()
        for then in ended:
            then()
