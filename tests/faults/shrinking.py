"""Less of a plan that breaks something: as few asks and faults as still break it, and each as plain as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, Literal

from faults.plan import Ask, Fault, Plan, Setting

TRIES_MAX = 400
Part = Literal["asks", "faults"]


def shrink(plan: Plan, breaks: Callable[[Plan], bool], tries_max: int = TRIES_MAX) -> Plan:
    """The plainest plan found that still `breaks`; no part of it can be left out, unless the tries did not suffice."""
    return _Shrinking(plan, breaks, tries_max).run()


class _Shrinking:
    def __init__(self, plan: Plan, breaks: Callable[[Plan], bool], tries_max: int) -> None:
        self._plan = plan
        self._breaks = breaks
        self._left = tries_max

    def run(self) -> Plan:
        before = None
        while self._plan != before and self._left:
            before = self._plan
            self._leave_out("faults")
            self._leave_out("asks")
            for setting in _plainer(self._plan.setting, Setting()):
                self._try(replace(self._plan, setting=setting(self._plan.setting)))
            self._make_plain("faults")
            self._make_plain("asks")
        return self._plan

    def _try(self, less: Plan) -> bool:
        if less == self._plan or not self._left:
            return False
        self._left -= 1
        is_enough = self._breaks(less)
        if is_enough:
            self._plan = less
        return is_enough

    def _leave_out(self, name: Part) -> None:
        """Halves, quarters, and at last one by one."""
        size = len(getattr(self._plan, name))
        while size:
            start = 0
            while start < len(parts := getattr(self._plan, name)):
                if not self._try(replace(self._plan, **{name: parts[:start] + parts[start + size :]})):
                    start += size
            size //= 2

    def _make_plain(self, name: Part) -> None:
        for index, part in enumerate(getattr(self._plan, name)):
            for plainer in _plainer(part, Ask(0.0) if isinstance(part, Ask) else Fault(0.0, part.kind)):
                parts = getattr(self._plan, name)
                changed = (*parts[:index], plainer(parts[index]), *parts[index + 1 :])
                self._try(replace(self._plan, **{name: changed}))


def _plainer(thing: Any, plainest: Any) -> Iterator[Callable[[Any], Any]]:
    """Ways to make one field of a thing as plain as can be, or at least plainer."""
    for field in fields(thing):
        value, plain = getattr(thing, field.name), getattr(plainest, field.name)
        if value == plain:
            continue
        changes = [plain]
        if isinstance(value, int) and isinstance(plain, int) and abs(value - plain) > 1:
            changes.append((value + plain) // 2)
        if isinstance(value, float) and value != round(value, 1):
            changes.append(round(value, 1))
        yield from (
            lambda now, name=field.name, old=value, new=change: (
                now if getattr(now, name) != old else replace(now, **{name: new})
            )
            for change in changes
        )
