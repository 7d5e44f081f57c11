"""Holds requests back while a server takes no more: after a refusal it is left alone for a while, then asked with one.

That one decides: if it is taken, so are the others; if it is refused, the pause doubles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hyperflexis.adapters.vllm.running import Running

PAUSE_S = 0.05
"""After the first refusal in a row."""
PAUSE_MAX_S = 2.0


class Gate:
    """Open until the first refusal."""

    def __init__(self, send: Callable[[Running], None]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, Running] = {}
        self._asking: Running | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = PAUSE_S

    def __len__(self) -> int:
        return len(self._held)

    def enter(self, running: Running) -> None:
        """Send it, now or later."""
        if self._timer is None and self._asking is None:
            self._send(running)
        else:
            self._held[running.id] = running

    def leave(self, running: Running) -> None:
        """It has ended, or is not wanted any more."""
        self._held.pop(running.id, None)
        if self._asking is running:
            self._asking = None
            self._ask()

    def taken(self) -> None:
        """The server has begun with a request."""
        self._pause_s = PAUSE_S
        if self._asking is None and self._timer is None:
            return
        self.close()
        held, self._held = list(self._held.values()), {}
        for running in held:
            self._send(running)

    def refused(self, running: Running) -> None:
        """The server takes no more for now."""
        if self._asking is running:
            self._asking = None
        elif self._timer is not None or self._asking is not None:
            return  # It was sent before the pause that runs already.
        self._timer = self._loop.call_later(self._pause_s, self._ask)
        self._pause_s = min(PAUSE_MAX_S, 2 * self._pause_s)

    def close(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._asking = None

    def _ask(self) -> None:
        self._timer = None
        if self._held:
            self._asking = self._held.pop(next(iter(self._held)))
            self._send(self._asking)
