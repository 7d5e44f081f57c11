"""How much demand may grow within a horizon, learned from how it grew lately; and how cautious one has to be.

Without a model of arrivals: with N(t) the need at instant t and M(t) its level, a decaying mean, both in instances,

    growth over a horizon h    g(t) = (max of N over (t, t + h] + c) / (M(t) + c)

is known h later, and the factor for the next h is a quantile of the g of the last minutes, of instants that were like
this one: in which N / M was about as large. In a lull that is how likely a burst is to come, in a burst how it goes on.
No more is expected than would have been enough within these minutes, in hindsight, and some more: a need answers what
has begun to come as if it went on, and most of it does not. What may come before help could arrive is so held ready:
little where starts are quick or demand is smooth, and near the peak where they are slow and it is not.

Who has seen little cannot learn so. If one instant is like another, the highest need of T seconds is exceeded within
the next h with probability h / (T + h) (law of records), and x-fold with 1 / x^3 of that (a heavy tail, as demand has).
With l the share of work that is late after it, and s the share that may be, a slow start calls for

    the unseen     x = (l h / ((T + h) s))^(1/3) / (what it has risen by since)     times what would have been enough

Which quantile, how much more than was enough, how far what has begun to come is taken to go on, and how much of a term
is lost to what the need leaves out (prefills that cannot be split, queues that are not even), is found by feedback. Of
each class's work a small share may be placed where it will be late; while it is more, caution rises, else it falls
(adaptive conformal inference, Gibbs and Candes 2021). Knows no instances and no requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

SMOOTHING = 0.5
"""c, instances: small fleets are not to be ruled by ratios of small numbers."""
SEEN_MIN = 20
"""Growths that have to have been seen for their quantile to count; else it is the prior."""
PRIOR = 1.25
STATES = (0.7, 0.9, 1.1, 1.4, 1.8, 2.5, 3.5)
"""Of the need over its level, between what is told apart."""
TAIL = 3.0
"""Exponent of how high peaks are that nobody has seen."""
LATE_OF_UNSEEN = 0.25
"""l: most of what comes within a horizon is served all the same, or comes before the peak and after it."""
UNSEEN_MAX = 8.0
"""Times what would have been enough: no more is held for what nobody has seen."""
LEVEL_MIN_S, LEVEL_HORIZONS = 5.0, 2.0
"""The level decays over so many horizons, and no faster than that."""


class Growths:
    """Those seen lately, in order of size."""

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, growth: float) -> None:
        insort(self._sorted, growth)

    def remove(self, growth: float) -> None:
        del self._sorted[bisect_left(self._sorted, growth)]

    def quantile(self, share: float) -> float:
        seen = len(self._sorted)
        return self._sorted[min(seen - 1, int(share * seen))]


class Surge:
    """Growth over one horizon."""

    def __init__(self, horizon_s: float, memory_s: float, begun_s: float = math.inf) -> None:
        """What came within the last `memory_s` counts; demand has been looked at since `begun_s`, or now."""
        self.horizon_s = horizon_s
        self.need = self.level = 0.0
        self.risen = 1.0
        """By what factor the last observation has raised what is known to have been enough."""
        self._memory_s = memory_s
        self._level_s = max(LEVEL_MIN_S, LEVEL_HORIZONS * horizon_s)
        self._at_s = -math.inf
        self._begun_s = begun_s
        self._risen_in_all = 1.0
        self._open: deque[tuple[float, float, int]] = deque()
        """(instant, level, state) whose horizon has not passed."""
        self._peaks: deque[tuple[float, float]] = deque()
        """(instant, need) in falling order of needs: the first is the largest since the oldest open instant."""
        self._enough: deque[tuple[float, float]] = deque()
        """The same of what would have been enough, over all the memory."""
        self._seen: deque[tuple[float, float, int]] = deque()
        self._all = Growths()
        self._by_state = [Growths() for _ in range(len(STATES) + 1)]

    def observe(self, now: float, need: float, enough: float) -> None:
        """Note a need and how much would have been enough so far, at instants in order."""
        passed_s = min(now - self._at_s, 1e6)
        self.level += (need - self.level) * (1 - math.exp(-passed_s / self._level_s))
        self.need, self._at_s = need, now
        self._begun_s = min(self._begun_s, now)
        while self._peaks and self._peaks[-1][1] <= need:
            self._peaks.pop()
        self._peaks.append((now, need))
        before = self.enough()
        while self._enough and self._enough[-1][1] <= enough:
            self._enough.pop()
        self._enough.append((now, enough))
        while self._enough[0][0] < now - self._memory_s:
            self._enough.popleft()
        self._open.append((now, self.level, self._state()))
        while self._open and self._open[0][0] <= now - self.horizon_s:
            instant_s, then, state = self._open.popleft()
            while self._peaks[0][0] <= instant_s:
                self._peaks.popleft()
            growth = (self._peaks[0][1] + SMOOTHING) / (then + SMOOTHING)
            self._seen.append((now, growth, state))
            self._all.add(growth)
            self._by_state[state].add(growth)
        self.risen = max(1.0, self.enough() / before) if 0 < before < math.inf else 1.0
        self._risen_in_all *= self.risen
        while self._seen and self._seen[0][0] < now - self._memory_s:
            _, growth, state = self._seen.popleft()
            self._all.remove(growth)
            self._by_state[state].remove(growth)

    def _ratio(self) -> float:
        return (self.need + SMOOTHING) / (self.level + SMOOTHING)

    def _state(self) -> int:
        return bisect_left(STATES, self._ratio())

    def factor(self, quantile: float) -> float:
        """What the level may be multiplied by within the horizon, so sure."""
        alike = self._by_state[self._state()]
        if len(alike) >= SEEN_MIN:
            return alike.quantile(quantile)
        known = self._all.quantile(quantile) if len(self._all) >= SEEN_MIN else PRIOR
        return max(known, self._ratio())

    def most(self, quantile: float, headroom: float) -> float:
        """The need to be ready for, so sure, where starts are quick: what has begun to come is answered."""
        return max(self.need, min(self._grown(quantile), headroom * self.enough()))

    def most_ahead(self, quantile: float, headroom: float, held: float, late_share: float) -> float:
        """The same where they are slow: no peak is answered that will be over, but what is held now is, and what has
        never been seen is expected.
        """
        unseen = self.unseen(late_share)
        grown = max(self._grown(quantile), unseen * (self.level + SMOOTHING) - SMOOTHING)
        return min(max(self.need, grown), max(held, max(headroom, unseen) * self.enough()))

    def unseen(self, late_share: float) -> float:
        """How many times more may come than has been seen, if so little may be late."""
        age_s = max(0.0, self._at_s - self._begun_s)
        chance = self.horizon_s / (age_s + self.horizon_s)
        most = min(UNSEEN_MAX, math.pow(LATE_OF_UNSEEN * chance / late_share, 1.0 / TAIL))
        return max(1.0, most / self._risen_in_all)

    def enough(self) -> float:
        """With which all that came within the memory would have been in time; infinite before much is known."""
        return self._enough[0][1] if len(self._all) >= SEEN_MIN else math.inf

    def _grown(self, quantile: float) -> float:
        """The need that may come within the horizon."""
        return self.factor(quantile) * (self.level + SMOOTHING) - SMOOTHING


class Dial:
    """A number that rises while too much of what is placed will be late, and falls slowly else."""

    MEAN_WEIGHT = 0.02
    """Of each new count, in the mean of what is placed at a time."""

    def __init__(self, late_share: float, gain: float, bounds: tuple[float, float], begins: float) -> None:
        """`late_share` is what may be late."""
        self._late_share = late_share
        self._gain = gain
        self._bounds = bounds
        self._mean = 1.0
        self.value = begins

    def scale(self, factor: float) -> None:
        """Multiply the number, within its bounds."""
        low, high = self._bounds
        self.value = max(low, min(high, self.value * factor))

    def observe(self, placed: int, late: int) -> None:
        """So much more was placed, so much of it where it will be late."""
        if placed:
            self._mean += self.MEAN_WEIGHT * (placed - self._mean)
            risen = self.value + self._gain * (late - self._late_share * placed) / max(1.0, self._mean)
            low, high = self._bounds
            self.value = max(low, min(high, risen))


class Caution:
    """How sure to be, and how much more a need is than the formula says: by what came of both, for one service class.

    What is late while there were fewer instances than were needed was not foreseen: the quantile rises, and where
    starts are slow the headroom. That falls when what it was for has come: a peak three times as high as any before
    says that three times as much may come, and not three times as much as that. What is late although there were as
    many needs more than was thought: the margin rises, as if so many seconds of a term were lost. While nothing is late
    it falls below none, and the need towards what is enough in hindsight. Where starts are quick the quantile does not
    rise far: to answer what has come costs less than to hold ready what may come.
    """

    QUANTILE_BOUNDS, QUANTILE_BEGINS, QUANTILE_GAIN = (0.3, 0.98), 0.5, 0.02
    MARGIN_BOUNDS_S, MARGIN_BEGINS_S, MARGIN_GAIN = (-4.0, 4.0), 2.0, 0.6
    HEADROOM_BOUNDS, HEADROOM_BEGINS, HEADROOM_GAIN = (1.0, 4.0), 1.25, 0.02
    QUICK_QUANTILE = 0.9

    def __init__(self, late_share: float) -> None:
        self.late_share = late_share
        self._placed = self._late = 0
        self._quantile = Dial(late_share, self.QUANTILE_GAIN, self.QUANTILE_BOUNDS, self.QUANTILE_BEGINS)
        self._quantile_max = 1.0
        self._margin = Dial(late_share, self.MARGIN_GAIN, self.MARGIN_BOUNDS_S, self.MARGIN_BEGINS_S)
        self._headroom = Dial(late_share, self.HEADROOM_GAIN, self.HEADROOM_BOUNDS, self.HEADROOM_BEGINS)

    @property
    def quantile(self) -> float:
        return min(self._quantile.value, self._quantile_max)

    @property
    def margin_s(self) -> float:
        return max(0.0, self._margin.value)

    @property
    def goes_on(self) -> float:
        """To what share it is taken to go on that has begun to come, beyond what is enough in hindsight."""
        return min(1.0, 1.0 - self._margin.value / self.MARGIN_BOUNDS_S[0])

    @property
    def headroom(self) -> float:
        """How much more is expected than would have been enough."""
        return self._headroom.value

    def has_come(self, risen: float) -> None:
        """So many times more has come than ever would have been enough: so much less is to be expected beyond it."""
        self._headroom.scale(1.0 / risen)

    def overlook(self, placed: int, late: int) -> None:
        """Learn nothing of what was placed so far."""
        self._placed, self._late = placed, late

    def observe(self, placed: int, late: int, *, was_short: bool, is_quick: bool) -> None:
        """So much was placed so far, so much of it where it will be late."""
        new, new_late = placed - self._placed, late - self._late
        self._placed, self._late = placed, late
        self._quantile.observe(new, new_late if was_short else 0)
        self._margin.observe(new, 0 if was_short else new_late)
        self._quantile_max = self.QUICK_QUANTILE if is_quick else 1.0
        if not is_quick:
            self._headroom.observe(new, new_late if was_short else 0)
