"""A running fleet, seen: an observer of its driver on one side, bytes for whoever looks on the other.

What is wrong here never reaches those that are served: at the first fault it looks away, for good, and the log says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from hyperflexis.core.commands import Command
from hyperflexis.core.events import Event
from hyperflexis.core.fleet import Prices
from hyperflexis.core.slo import ServiceClass
from hyperflexis.view.page import files
from hyperflexis.view.snapshot import InstanceStory
from hyperflexis.view.stories import RequestStories, plain
from hyperflexis.view.watch import Watch

log = logging.getLogger(__name__)

PERIOD_S = 0.5
"""What is shown is no older."""

_encode = msgspec.json.Encoder().encode


class LiveView:
    """What the dashboard of a server shows."""

    period_s = PERIOD_S

    def __init__(
        self,
        prices: Prices,
        classes: Mapping[str, ServiceClass],
        model: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall_s: float | None = None,
    ) -> None:
        """`clock` is the driver's; `wall_s` is what the wall clock shows now, seconds since 1970."""
        self._clock = clock
        self._model = model
        self._wall_s = wall_s
        self._watch = Watch(prices, classes, clock())
        self._requests = RequestStories()
        self._files = files()
        self._is_blind = False
        self._told: tuple[float, bytes] | None = None

    def observe(self, now: float, event: Event, commands: Sequence[Command], name: str = "") -> None:
        """Follow what the driver feeds."""
        if self._is_blind:
            return
        try:
            self._watch.hear(now, event, commands)
            self._requests.hear(now, event, commands, name)
        except Exception:  # A supervisor: requests are served all the same, whatever cannot be shown of them.
            self._is_blind = True
            log.exception("the dashboard cannot follow the fleet any more")

    def file(self, name: str) -> tuple[str, bytes] | None:
        """Content type and bytes of a file of the page."""
        return self._files.get(name)

    def source(self) -> bytes:
        """What is shown, and what was before anybody looked."""
        told: dict[str, Any] = {
            "kind": "live",
            "model": self._model,
            "wall_s": self._wall_s,
            "period_s": PERIOD_S,
            "history": list(self._watch.history.samples),
        }
        return _encode(told)

    def snapshot(self) -> bytes:
        """The fleet as it is now, or was within the period."""
        now = self._clock()
        if self._told is None or now >= self._told[0] + PERIOD_S / 2:
            seen = self._watch.snapshot(now)
            self._told = now, _encode(msgspec.structs.replace(seen, is_blind=self._is_blind))
        return self._told[1]

    async def request(self, name: str) -> bytes | None:
        """The stories of a request, by its number or by what its client calls it; None where it is not known."""
        numbers = self._requests.numbers(name)
        origin_s = self._watch.origin_s
        return _encode([plain(self._requests.tell(number), origin_s) for number in numbers]) if numbers else None

    async def instance(self, instance_id: int) -> bytes | None:
        """The story of an instance; None where it is not known."""
        chapters = self._watch.instances.chapters(instance_id, self._watch.origin_s)
        if chapters is None:
            return None
        return _encode(InstanceStory(instance_id, chapters, self._watch.requests_at(instance_id, self._clock())))
