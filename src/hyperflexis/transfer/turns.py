"""Who goes next: items wait in one line per peer, and the lines take turns. Knows not what an item is.

Nobody overtakes: an item that does not fit holds all the others back until it does, so that large ones are not starved.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue between threads. `budget` bounds the summed cost of what has been taken and is not yet done."""

    def __init__(self, budget: float = math.inf) -> None:
        self._budget = budget
        self._in_use = 0.0
        self._lines: OrderedDict[str, deque[tuple[T, float]]] = OrderedDict()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, peer: str, item: T, cost: float = 0.0) -> bool:
        """Append to the peer's line. A cost above the budget counts as all of it. False: closed, the item not taken."""
        with self._changed:
            if not self._is_closed:
                self._lines.setdefault(peer, deque()).append((item, min(cost, self._budget)))
                self._changed.notify()
            return not self._is_closed

    def take(self) -> tuple[T, float] | None:
        """Wait for the next item; return it with the cost to give back. None: closed."""
        with self._changed:
            while not self._is_closed:
                if self._lines and self._in_use + self._first()[1] <= self._budget:
                    item, cost = self._next()
                    self._in_use += cost
                    return item, cost
                self._changed.wait()
            return None

    def done(self, cost: float) -> None:
        with self._changed:
            self._in_use -= cost
            if self._lines:
                self._changed.notify_all()

    def remove(self, peer: str, item: T) -> bool:
        """Take an item out of the line; False if it is not, or no longer, in it."""
        with self._changed:
            line = self._lines.get(peer, deque())
            found = next((entry for entry in line if entry[0] is item), None)
            if found is None:
                return False
            line.remove(found)
            if not line:
                del self._lines[peer]
            self._changed.notify_all()
            return True

    def close(self) -> list[T]:
        """Let everybody go; return what was still waiting."""
        with self._changed:
            self._is_closed = True
            left = [item for line in self._lines.values() for item, _ in line]
            self._lines.clear()
            self._changed.notify_all()
            return left

    def _first(self) -> tuple[T, float]:
        return next(iter(self._lines.values()))[0]

    def _next(self) -> tuple[T, float]:
        peer, line = next(iter(self._lines.items()))
        entry = line.popleft()
        if line:
            self._lines.move_to_end(peer)
        else:
            del self._lines[peer]
        return entry
