"""Instances, as far as can be seen: what each has to do, how much of its time and of its KV that takes."""

from __future__ import annotations

import math
from typing import NamedTuple

from hyperflexis.core.cadence import STEPS_MAX
from hyperflexis.core.events import InstanceReported
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.view.requests import LiveRequest, Place

LOAD_S = 2.0
"""Load is a mean in which what is older than this counts for little."""
GONE_SHOWN_S = 4.0
"""So long one that has gone can still be seen."""
NO_CAPACITY = Capacity(0, 1, 0)


class Survey(NamedTuple):
    """What its requests come to, at one instant."""

    blocks_used: int
    slack_s: float | None
    tightest: int | None


class SeenInstance:
    """One of them."""

    def __init__(self, instance_id: int, role: Role, now: float) -> None:
        self.id = instance_id
        self.role = role
        self.state = "starting"
        self.since_s = now
        self.capacity = NO_CAPACITY
        self.steps = 0
        """Steps so far, in each of which all that decodes there emitted a token."""
        self.decode_s = 0.0
        """What the last one took that computed decodes alone, as those do that are told later."""
        self.reported_s = now
        self.waiting: dict[int, LiveRequest] = {}
        self.decoding: dict[int, LiveRequest] = {}
        self.standing: dict[int, LiveRequest] = {}
        self._load = 0.0
        self._settled_s = now

    @property
    def is_gone(self) -> bool:
        return self.state in ("lost", "stopped")

    def become(self, state: str, now: float) -> None:
        if state != self.state:
            self.state, self.since_s = state, now

    def report(self, event: InstanceReported, now: float) -> None:
        """Steps ended; of those before the last it is known that they were like it."""
        passed_s = now - self._settled_s
        self._settle(min(passed_s, event.steps * event.duration_s), now)
        self.reported_s = now
        if not event.shape.prefill_tokens or not self.decode_s:
            self.decode_s = event.duration_s

    def settle(self, now: float) -> None:
        """Bring its load up to date: since its last report it has computed if it has anything to do."""
        self._settle(now - self._settled_s if self.waiting or self.decoding else 0.0, now)

    def _settle(self, busy_s: float, now: float) -> None:
        idle_s = max(0.0, now - self._settled_s - busy_s)
        idle_left = 1.0 - self._load * math.exp(-idle_s / LOAD_S)
        self._load = 1.0 - idle_left * math.exp(-max(0.0, busy_s) / LOAD_S)
        self._settled_s = now

    @property
    def load(self) -> float:
        return self._load

    def steps_by(self, now: float) -> float:
        """Steps so far, with those that will only be told later."""
        if not self.decoding or not self.decode_s:
            return self.steps
        return self.steps + min(STEPS_MAX - 1, (now - self.reported_s) / self.decode_s)

    def take(self, request: LiveRequest, place: Place) -> None:
        """It is here now, in this place."""
        request.place, request.instance_id = place, self.id
        if place is Place.DECODING:
            request.joined = self.steps
            self.decoding[request.id] = request
        elif place is Place.STANDING:
            self.standing[request.id] = request
        else:
            self.waiting[request.id] = request

    def release(self, request: LiveRequest) -> None:
        """It is not here any more. It keeps its tokens; its KV is gone."""
        request.tokens_before = int(request.emitted(self.steps))
        self.waiting.pop(request.id, None)
        self.decoding.pop(request.id, None)
        self.standing.pop(request.id, None)
        request.place, request.instance_id, request.has_kv = Place.HELD, None, False

    def survey(self, now: float) -> Survey:
        """Look at every request here."""
        steps, size = self.steps_by(now), self.capacity.block_tokens
        blocks, slack_s, tightest = 0, math.inf, None
        for held in (self.decoding, self.waiting, self.standing):
            for request in held.values():
                if request.has_kv:
                    blocks += 1 + int((request.prompt_tokens + request.emitted(steps)) // size)
                left_s = request.slack_s(steps, now)
                if left_s is not None and left_s < slack_s:
                    slack_s, tightest = left_s, request.id
        return Survey(min(blocks, self.capacity.blocks), None if tightest is None else slack_s, tightest)
