"""A gateway before a fleet that answers at once, in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvloop
from gateway_fakes import Served, answer_script, served

PATIENT_S = 60.0


class AnyFleet:
    """Lets whatever can be a server come, and nobody go but one."""

    def attach(self, url: str, role: str) -> None:
        if "://" not in url:
            raise ValueError("it is no address")

    def detach(self, name: str) -> bool:
        if name == "i1":
            raise ValueError("it is the last one")
        return name == "i0"


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[Served]:
    """Until the end of the block."""
    ready: list[Served] = []
    is_there, stop, loop = threading.Event(), asyncio.Event(), uvloop.new_event_loop()

    async def serve() -> None:
        async with served(membership=AnyFleet(), **options) as it:
            it.backend.script = answer_script("short", per_call=8)
            ready.append(it)
            is_there.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert is_there.wait(PATIENT_S)
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
