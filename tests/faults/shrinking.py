"""Less of a plan that breaks something: as few asks and faults as still break it, and each as plain as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

from faults.plan import Ask, Fault, Plan, Setting

TRIES_MAX = 600
T = TypeVar("T")


def shrink(plan: Plan, breaks: Callable[[Plan], bool], tries_max: int = TRIES_MAX) -> Plan:
    """The plainest plan found that still `breaks`; no part of it can be left out, unless the tries did not suffice."""
    left = tries_max
    is_done = False
    while not is_done:
        is_done = True
        for less in _less(plan):
            if not left:
                return plan
            left -= 1
            if breaks(less):
                plan, is_done = less, False
                break
    return plan


def _less(plan: Plan) -> Iterator[Plan]:
    """Plans with a little less in them, the boldest cuts first."""
    for name in ("asks", "faults"):
        parts = getattr(plan, name)
        yield from (replace(plan, **{name: fewer}) for fewer in _fewer(parts))
    yield from (replace(plan, setting=setting) for setting in _plainer(plan.setting, Setting()))
    for name, plainest in (("asks", Ask(0.0)), ("faults", None)):
        for index, part in enumerate(getattr(plan, name)):
            for plainer in _plainer(part, plainest or Fault(0.0, part.kind)):
                parts = getattr(plan, name)
                yield replace(plan, **{name: (*parts[:index], plainer, *parts[index + 1 :])})


def _fewer(parts: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    size = len(parts)
    while size:
        for start in range(0, len(parts), size):
            yield parts[:start] + parts[start + size :]
        size //= 2


def _plainer(thing: Any, plainest: Any) -> Iterator[Any]:
    for field in fields(thing):
        value, plain = getattr(thing, field.name), getattr(plainest, field.name)
        if value == plain:
            continue
        yield replace(thing, **{field.name: plain})
        if isinstance(value, int) and not isinstance(value, bool) and isinstance(plain, int) and abs(value - plain) > 1:
            yield replace(thing, **{field.name: (value + plain) // 2})
        if isinstance(value, float) and value != round(value, 1):
            yield replace(thing, **{field.name: round(value, 1)})
