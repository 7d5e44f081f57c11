"""Values of labels, bounded in number: a monitor keeps a time series for each, for ever. Knows no metric."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
"""What stands for all values beyond those that have labels of their own."""
CLASSES_MAX = 100
"""Service classes with labels of their own."""


class Capped:
    """The first so many values keep their names."""

    def __init__(self, values_max: int = CLASSES_MAX, known: Iterable[str] = ()) -> None:
        self._left = values_max
        self._names: dict[str, str] = {}
        for value in known:
            self(value)

    def __call__(self, value: str) -> str:
        """The label's value."""
        name = self._names.get(value)
        return self._admit(value) if name is None else name

    def _admit(self, value: str) -> str:
        if self._left <= 0:
            return OTHER
        self._left -= 1
        self._names[value] = value
        return value
