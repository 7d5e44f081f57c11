"""Whether an instance of this machine still answers: it is asked now and then, and all that it says is an answer.

A process that dies closes its socket; one that is stopped, or hangs, does not. Silence is counted in questions, not in
time: if it was this process that stood still, nobody is blamed. Knows nothing of processes and messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PULSE_S = 1.0


class Pulse:
    """Of one instance, from when it is ready. `on_silence` is called at most once, with words, and not after `end`."""

    def __init__(self, timeout_s: float, ask: Callable[[], None], on_silence: Callable[[str], None]) -> None:
        self._unanswered_max = max(1, round(timeout_s / PULSE_S))
        self._unanswered = 0
        self._ask = ask
        self._on_silence = on_silence
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle = self._loop.call_later(PULSE_S, self._beat)

    def heard(self) -> None:
        """It has said something."""
        self._unanswered = 0

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _beat(self) -> None:
        if self._unanswered >= self._unanswered_max:
            self._on_silence(f"it has not answered for {self._unanswered * PULSE_S:.0f} s")
            return
        self._unanswered += 1
        self._timer = self._loop.call_later(PULSE_S, self._beat)
        self._ask()
