"""The virtual loop with the order of the simulator's clock: (instant, insertion), on instants that are exact.

asyncio runs timers that are due within its clock's resolution together, in no stated order where they are due at once,
and those for now after whatever was to be called soon. Both bodies can only decide alike where they see things in one
order, so here timers fire at their instants and not before, and those of one instant in the order in which they were
made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from helpers.virtual_loop import VirtualLoop
from hyperflexis.sim.kernel import TICK_S, to_ticks_s

T = TypeVar("T")


class _Timer(asyncio.TimerHandle):
    """Comes after those that were made before it."""

    made = 0

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        _Timer.made += 1
        self.number = _Timer.made

    def __lt__(self, other: Any) -> bool:
        return (self.when(), self.number) < (other.when(), other.number)


class ExactLoop(VirtualLoop):
    """Exact as long as every instant is a whole number of ticks."""

    def __init__(self) -> None:
        super().__init__()
        self._clock_resolution = TICK_S

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        when = to_ticks_s(when)
        if when <= self.time():
            return self.call_soon(callback, *args, context=context)  # type: ignore[return-value]
        made = asyncio.events.TimerHandle
        asyncio.events.TimerHandle = _Timer  # type: ignore[misc]
        try:
            return super().call_at(when, callback, *args, context=context)
        finally:
            asyncio.events.TimerHandle = made  # type: ignore[misc]


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in exact virtual time."""
    with asyncio.Runner(loop_factory=ExactLoop) as runner:
        return runner.run(main)
