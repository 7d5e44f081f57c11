"""Less of a plan is found where less suffices, and nothing that is needed is left out."""

from __future__ import annotations

from faults.plan import Ask, Fault, Plan, Setting, draw
from faults.shrinking import shrink


def test_only_what_breaks_it_is_left() -> None:
    def breaks(plan: Plan) -> bool:
        is_large = any(ask.prompt_tokens > 30 for ask in plan.asks)
        return is_large and any(fault.kind == "kill" for fault in plan.faults)

    found = next(plan for plan in map(draw, range(1000)) if breaks(plan))
    smallest = shrink(found, breaks)
    (ask,), (fault,) = smallest.asks, smallest.faults
    assert smallest == Plan(found.seed, Setting(), (ask,), (fault,))
    assert ask == Ask(0.0, prompt_tokens=ask.prompt_tokens)
    assert 30 < ask.prompt_tokens <= 40
    assert fault == Fault(0.0, "kill")


def test_what_does_not_break_with_less_stays_whole() -> None:
    plan = draw(3)
    assert shrink(plan, lambda less: less == plan) == plan


def test_tries_are_bounded() -> None:
    tries = []
    shrink(draw(3), lambda plan: tries.append(plan) or True, tries_max=7)  # type: ignore[func-returns-value]
    assert len(tries) == 7
