"""Trying to attach a server until it answers and is the one that was meant, and saying what keeps it from that."""

from __future__ import annotations

import asyncio
import logging

from hyperflexis.adapters.vllm.endpoint import Endpoint, UnreachableError
from hyperflexis.adapters.vllm.probe import Behind, Expected, WrongServerError, probe

log = logging.getLogger(__name__)

PAUSE_S, PAUSE_MAX_S = 0.5, 5.0
"""Between two tries, the first and the longest."""


class Complaints:
    """What keeps servers from being attached, by URL: told once each, and forgotten when it is mended."""

    def __init__(self, *, is_patient: bool = False) -> None:
        """`is_patient` says nothing of servers that do not answer: they are being started."""
        self._is_patient = is_patient
        self.wrong: dict[str, str] = {}
        """What only a person can mend."""
        self._told: dict[str, str] = {}
        self.changed = asyncio.Event()

    def tell(self, url: str, why: str, *, is_wrong: bool) -> None:
        if self._told.get(url) != why:
            self._told[url] = why
            level = logging.ERROR if is_wrong else logging.DEBUG if self._is_patient else logging.WARNING
            log.log(level, "%s", why)
        if is_wrong:
            self.wrong[url] = why
        else:
            self.wrong.pop(url, None)
        self.changed.set()

    def mended(self, url: str) -> None:
        self._told.pop(url, None)
        self.wrong.pop(url, None)
        self.changed.set()


async def find(endpoint: Endpoint, expected: Expected, complaints: Complaints) -> Behind:
    """What stands behind a URL, as soon as it answers and is what it should be."""
    pause_s = PAUSE_S
    while True:
        try:
            behind = await probe(endpoint, expected)
        except (UnreachableError, WrongServerError, ValueError) as error:
            complaints.tell(endpoint.url, str(error), is_wrong=isinstance(error, WrongServerError))
        else:
            complaints.mended(endpoint.url)
            return behind
        await asyncio.sleep(pause_s)
        pause_s = min(PAUSE_MAX_S, 2 * pause_s)
