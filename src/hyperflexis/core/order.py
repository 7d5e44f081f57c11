"""In which order waiting prefills are computed, and which are given up so that the others are in time.

Ours is Moore and Hodgson's rule (1968: the fewest late jobs on one machine), by weight and priority: walk in order of
deadlines, adding up the work; where a deadline would be missed, give up the request with the most work for its promise
(`density`). Priority decides who is given up, never who goes first: a level of priority is fitted in around those above
it, all of which stay. So urgent work of low priority does not wait for important work that has time, and important work
never misses because of others. What is given up goes to the back, by priority and arrival.

Orders of published systems stand beside it: `timely_deadline`, `timely_slack`, `most_gain` and `admitted`.

Knows nothing of blocks, steps or decodes; the stretch of a prefill beside decodes comes as a number.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperflexis.core.step import Sequence as Waiting


PROMISE_EXPONENT = 2.0


def fewest_late(
    waiting: Sequence[Waiting], start_s: float, stretch: float, work_s: Callable[[Waiting], float]
) -> tuple[list[Waiting], list[Waiting]]:
    """Moore and Hodgson's rule, level by level of priority. Returns those that go first and those behind, in order.

    `waiting` is in order of deadlines; `start_s` the instant from which the next step could begin, with its fixed part;
    a request takes `stretch * work_s(request)`.
    """
    works = {each.id: stretch * work_s(each) for each in waiting}
    levels = {each.priority for each in waiting}
    kept: list[Waiting] = []
    lost: list[Waiting] = []
    if len(levels) == 1:
        kept, lost = _fit(waiting, start_s, works, levels.pop())
    else:
        for level in sorted(levels, reverse=True):
            above = {each.id for each in kept}
            candidates = [each for each in waiting if each.priority == level or each.id in above]
            kept, given_up = _fit(candidates, start_s, works, level)
            lost += given_up
    lost.sort(key=back_key)
    return kept, lost


def back_key(each: Waiting) -> tuple[int, float, int]:
    """The order of what has been given up."""
    return (-each.priority, each.arrived_s, each.id)


def _fit(
    candidates: Sequence[Waiting], start_s: float, works: dict[int, float], level: int
) -> tuple[list[Waiting], list[Waiting]]:
    """Walk in order of deadlines, giving up work of one level where a deadline would be missed.

    What has begun to answer is never given up: its client is reading already.
    """
    end_s = start_s
    expendable: list[tuple[float, int, Waiting]] = []
    given_up: dict[int, Waiting] = {}
    for each in candidates:
        work_s = works[each.id]
        is_expendable = each.priority == level and each.first_token_s is None
        if start_s + work_s > each.deadline_s:  # Late whatever is done.
            if is_expendable:
                given_up[each.id] = each
            else:
                end_s += work_s
            continue
        if is_expendable:
            heapq.heappush(expendable, (-density(work_s, each.deadline_s - each.arrived_s), each.id, each))
        end_s += work_s
        while end_s > each.deadline_s and expendable:
            _, _, victim = heapq.heappop(expendable)
            end_s -= works[victim.id]
            given_up[victim.id] = victim
    return [each for each in candidates if each.id not in given_up], list(given_up.values())


def density(work_s: float, promised_s: float) -> float:
    """How much of others' time a request takes for what it was promised: the most is given up first.

    Plain work would always give up those whose promise is long because their work is; work per promised second still
    does, as they have met more newcomers when their time runs out. The exponent was measured (decision 9).
    """
    return work_s / promised_s**PROMISE_EXPONENT if promised_s > 0 else math.inf


def timely_deadline(
    waiting: Sequence[Waiting], start_s: float, stretch: float, work_s: Callable[[Waiting], float]
) -> tuple[list[Waiting], list[Waiting]]:
    """By deadline; behind, what would be late even alone."""
    return _split_late(waiting, start_s, {each.id: stretch * work_s(each) for each in waiting})


def timely_slack(
    waiting: Sequence[Waiting], start_s: float, stretch: float, work_s: Callable[[Waiting], float]
) -> tuple[list[Waiting], list[Waiting]]:
    """By priority, then least slack; behind, what would be late even alone."""
    works = {each.id: stretch * work_s(each) for each in waiting}
    timely, late = _split_late(waiting, start_s, works)
    return sorted(timely, key=lambda each: (-each.priority, each.deadline_s - works[each.id], each.id)), late


def _split_late(
    waiting: Sequence[Waiting], start_s: float, works: dict[int, float]
) -> tuple[list[Waiting], list[Waiting]]:
    """What could be in time if it went first, as it is ordered, and what could not, by priority and arrival."""
    late = [each for each in waiting if each.first_token_s is None and start_s + works[each.id] > each.deadline_s]
    is_late = {each.id for each in late}
    return [each for each in waiting if each.id not in is_late], sorted(late, key=back_key)


GAIN_BASE = 2.0
"""A priority level weighs so many times the one below it."""


def most_gain(
    waiting: Sequence[Waiting], start_s: float, stretch: float, work_s: Callable[[Waiting], float]
) -> tuple[list[Waiting], list[Waiting]]:
    """Urgent work by gain per second of work, then the rest by deadline; behind, what is late whatever is done.

    A reading of ProServe's sliding boundary: urgent is what would be late if all else that waits went before it, so
    that without a backlog nothing is, and deadlines decide, and in a long one everything is, and density does.
    """
    works = {each.id: stretch * work_s(each) for each in waiting}
    timely, late = _split_late(waiting, start_s, works)
    backlog_s = sum(works[each.id] for each in timely)
    urgent = [each for each in timely if start_s + backlog_s > each.deadline_s]
    is_urgent = {each.id for each in urgent}
    urgent.sort(key=lambda each: (-(GAIN_BASE**each.priority) / max(1e-9, works[each.id]), each.deadline_s, each.id))
    return urgent + [each for each in timely if each.id not in is_urgent], late


def admitted(
    waiting: Sequence[Waiting], start_s: float, stretch: float, work_s: Callable[[Waiting], float]
) -> tuple[list[Waiting], list[Waiting]]:
    """In order of deadlines, what can be in time with all that was admitted before; behind, best effort.

    A reading of SLOs-Serve: who has been admitted is never given up for a newcomer. Of several newcomers the one with
    the least work is looked at first, which admits the most of them. What has begun to answer is in.
    """
    works = {each.id: stretch * work_s(each) for each in waiting}
    planned: list[Waiting] = [each for each in waiting if each.is_admitted or each.first_token_s is not None]
    newcomers = [each for each in waiting if not each.is_admitted and each.first_token_s is None]
    declined: list[Waiting] = []
    for each in sorted(newcomers, key=lambda each: (works[each.id], each.id)):
        extended = sorted([*planned, each], key=lambda other: (other.deadline_s, other.arrived_s, other.id))
        if _harms_nobody(extended, start_s, works, each):
            each.is_admitted = True
            planned = extended
        else:
            declined.append(each)
    return planned, sorted(declined, key=back_key)


def _harms_nobody(planned: Sequence[Waiting], start_s: float, works: dict[int, float], newcomer: Waiting) -> bool:
    """Whether the newcomer is in time, and nobody behind it becomes late by it."""
    end_s = start_s
    is_behind = False
    for each in planned:
        end_s += works[each.id]
        is_behind = is_behind or each is newcomer
        before_s = end_s if each is newcomer else end_s - works[newcomer.id]
        was_timely = each is newcomer or before_s <= each.deadline_s
        if is_behind and was_timely and end_s > each.deadline_s and each.first_token_s is None:
            return False
    return True
