"""The queues that only count: equal to a plain model of them, whatever arrives."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.shadow import FEWEST, LEVELS_S, MEMORY_S, Shadow, Split

WHOLE = Split(math.inf, 4)
SPLITS = [Split(0.06, 1), Split(0.06, 2), Split(0.12, 3), WHOLE]


class Arrival(NamedTuple):
    gap_s: float
    service_class: str
    pace_s: float
    promise_s: float
    work_s: float


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.sampled_from([0.0, 0.01, 0.3, 2.0]),
        st.sampled_from("abc"),
        st.sampled_from([0.03, 0.05, 0.1, 0.2]),
        st.sampled_from([0.05, 0.5, 0.7, 2.0, 500.0]),
        st.floats(0.001, 1.0),
    ),
    max_size=60,
)


class Queue:
    """One group of one split, as a list of what is queued: (level, seconds)."""

    def __init__(self, instances: int, speed: float) -> None:
        self.rate, self.speed = instances * speed, speed
        self.queued_s = dict.fromkeys(range(len(LEVELS_S)), 0.0)

    def drain(self, seconds: float) -> None:
        left_s = seconds * self.rate
        for level, queued_s in self.queued_s.items():
            done_s = min(queued_s, left_s)
            self.queued_s[level] -= done_s
            left_s -= done_s

    def takes(self, level: int, each: Arrival) -> bool:
        if not self.rate:
            return False
        ahead_s = sum(queued_s for other, queued_s in self.queued_s.items() if other <= level)
        return ahead_s / self.rate + each.work_s / self.speed <= each.promise_s


def late_shares(split: Split, arrivals: list[Arrival], speeds: tuple[float, float]) -> float:
    """The worst class's share of late arrivals, the slow way."""
    strict, others = Queue(split.strict, speeds[0]), Queue(4 - split.strict, speeds[1])
    late: dict[str, float] = {}
    seen: dict[str, float] = {}
    for number, each in enumerate(arrivals):
        gap_s = each.gap_s if number else 0.0
        fades = math.exp(-gap_s / MEMORY_S)
        late = {name: count * fades for name, count in late.items()}
        seen = {name: count * fades for name, count in seen.items()}
        strict.drain(gap_s)
        others.drain(gap_s)
        level = next((i for i, upper_s in enumerate(LEVELS_S) if each.promise_s <= upper_s), len(LEVELS_S) - 1)
        tried = [strict] if each.pace_s < split.below_s else [others, strict]
        taken = next((queue for queue in tried if queue.takes(level, each)), None)
        if taken is not None:
            taken.queued_s[level] += each.work_s
        late[each.service_class] = late.get(each.service_class, 0.0) + (taken is None)
        seen[each.service_class] = seen.get(each.service_class, 0.0) + 1
    return max((late[name] / max(FEWEST, seen[name]) for name in seen), default=0.0)


def play(arrivals: list[Arrival], speeds: tuple[float, float] = (0.4, 0.7)) -> Shadow:
    shadow = Shadow(SPLITS, 4)
    shadow.set_speed(np.array([[speeds[0]] * len(SPLITS), [speeds[1]] * len(SPLITS)]))
    now = 5.0
    for number, each in enumerate(arrivals):
        now += each.gap_s if number else 0.0
        shadow.arrive(each.service_class, each.pace_s, each.promise_s, each.work_s, now)
    return shadow


@given(ARRIVALS)
def test_equals_queues_that_are_played_one_by_one(arrivals: list[Arrival]) -> None:
    shares = play(arrivals).late_shares()
    assert shares.tolist() == pytest.approx([late_shares(split, arrivals, (0.4, 0.7)) for split in SPLITS])


def test_nobody_has_arrived_so_nobody_is_late() -> None:
    assert play([]).late_shares().tolist() == [0.0] * len(SPLITS)


def test_strict_work_waits_for_its_own_instances_and_loose_work_spills_into_them() -> None:
    strict = [Arrival(0.0, "strict", 0.05, 1.0, 0.2)] * 20
    assert play(strict).late_shares()[0] > play(strict).late_shares()[1] > play(strict).late_shares()[3] > 0
    loose = [Arrival(0.0, "loose", 0.2, 1.0, 0.28)] * 6
    assert play(loose).late_shares()[0] == pytest.approx(0.0), "five on three instances, one on the strict one"


def test_who_was_promised_more_time_delays_nobody_with_less() -> None:
    batch = [Arrival(0.0, "batch", 0.2, 100.0, 10.0)] * 4
    chat = Arrival(0.0, "chat", 0.2, 0.5, 0.1)
    assert play([*batch, chat]).late_shares()[3] == 0.0
    hasty = [each._replace(promise_s=0.4, work_s=0.1) for each in batch] * 4
    assert play([*hasty, chat]).late_shares()[3] > 0.0


def test_what_would_be_late_is_not_queued_and_old_lateness_fades() -> None:
    hopeless = [Arrival(0.0, "a", 0.05, 0.05, 1.0)] * 10
    assert play([*hopeless, Arrival(0.0, "b", 0.05, 1.0, 0.3)]).late_shares().tolist() == [1.0] * len(SPLITS)
    calm = [Arrival(MEMORY_S, "a", 0.05, 1.0, 0.1)] * 9
    assert play([*hopeless, *calm]).late_shares().max() < 1e-3
