"""Which steps of an instance the control plane hears of: those that changed something, and every so many others.

Steps of decodes alone advance every decode by one token, which the control plane can count by itself. They are told a
few at a time, so that its work grows with what there is to decide and not with the tokens.
"""

from __future__ import annotations

STEPS_MAX = 64
"""At most so many steps are told at once: what is known of an instance is no older than that."""


class Cadence:
    """Counts the steps of one instance that have not been told yet."""

    def __init__(self) -> None:
        self._untold = 0

    @property
    def steps_left(self) -> int:
        """After so many further steps it is time to tell."""
        return STEPS_MAX - self._untold

    def count(self, steps: int, has_news: bool) -> int:
        """Note steps that ended; returns how many are to be told now, 0 if none.

        `has_news` says that the last of them did more than to advance decodes.
        """
        self._untold += steps
        if not has_news and self._untold < STEPS_MAX:
            return 0
        told, self._untold = self._untold, 0
        return told
