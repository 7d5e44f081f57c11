"""Watches a fleet: hears every entry, and tells at any instant what there is to see.

Time is an argument. What an entry costs does not depend on what it says of tokens; a snapshot looks at every request
that lives, and is made when somebody looks.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hyperflexis.core.commands import Command, Conclude, Reject
from hyperflexis.core.events import Event
from hyperflexis.core.fleet import Prices
from hyperflexis.core.slo import ServiceClass
from hyperflexis.journal.entries import Gap
from hyperflexis.view import snapshot as seen
from hyperflexis.view.classes import Classes, ClassRecord, share, times
from hyperflexis.view.decisions import Decisions
from hyperflexis.view.fleet import Fleet
from hyperflexis.view.history import History
from hyperflexis.view.instances import SeenInstance
from hyperflexis.view.requests import LiveRequest, Place
from hyperflexis.view.stories import InstanceStories

LINKS_DRAWN_MAX = 400
TIGHTEST = 6
"""So many requests of a queue are shown."""
REQUESTS_SHOWN_MAX = 200
"""Of one instance."""
RECENT_SAMPLES = 3
_ENDS = frozenset({Conclude, Reject})


class Watch:
    """One fleet, from the first entry on."""

    def __init__(
        self, prices: Prices, classes: Mapping[str, ServiceClass], origin_s: float, spacing_s: float = 1.0
    ) -> None:
        """`origin_s` is the instant that counts as 0; `spacing_s` lies between samples of history."""
        self.origin_s = origin_s
        self.fleet = Fleet(prices)
        self.classes = Classes(classes)
        self.decisions = Decisions()
        self.history = History(spacing_s)
        self.instances = InstanceStories()
        self._rates = (0.0, 0.0)

    def hear(self, now: float, event: Event | Gap, commands: Sequence[Command]) -> None:
        """Follow one entry."""
        if self.history.is_due(now):  # As it was until now: where nothing happened for long, nothing changed.
            self._sample(now)
        for command in commands:
            if type(command) in _ENDS:
                self._note_end(now, event, command)
        self.fleet.hear(now, event, commands)
        self.decisions.hear(now, event, commands)
        self.instances.hear(now, event, commands)

    def snapshot(self, now: float) -> seen.Snapshot:
        """What there is to see."""
        fleet, origin_s = self.fleet, self.origin_s
        if self.history.is_due(now):
            self._sample(now)
        fleet.forget_gone(now)
        instances = [self._instance(each, now) for each in sorted(fleet.instances.values(), key=lambda each: each.id)]
        places = Counter((each.service_class, each.place) for each in fleet.requests.values())
        links = fleet.links()
        queue = self._queue(now)
        return seen.Snapshot(
            now_s=round(now - origin_s, 3),
            attained=self._attained(now),
            arrivals_per_s=self._rates[0],
            tokens_per_s=self._rates[1],
            waiting=queue.held + queue.waiting,
            running=len(fleet.requests) - queue.held - queue.waiting,
            instances=instances,
            links=links if len(links) <= LINKS_DRAWN_MAX else [],
            flows=fleet.flows(now)[:LINKS_DRAWN_MAX],
            classes=[self._class(name, record, places, now) for name, record in self.classes.records.items()],
            queue=queue,
            decisions=self.decisions.latest(origin_s),
            cost=self._cost(now),
            samples=self.history.recent(RECENT_SAMPLES),
            missing=fleet.missing,
        )

    def requests_at(self, instance_id: int, now: float) -> list[seen.Queued]:
        """Requests of one instance, the tightest first."""
        instance = self.fleet.instances.get(instance_id)
        if instance is None:
            return []
        held = (*instance.waiting.values(), *instance.decoding.values(), *instance.standing.values())
        return self._tightest(list(held), REQUESTS_SHOWN_MAX, now)

    def _note_end(self, now: float, event: Event | Gap, command: Any) -> None:
        request = self.fleet.requests.get(command.request_id)
        known = request if request is not None else event
        self.classes.hear(now, command, getattr(known, "service_class", ""))

    def _sample(self, now: float) -> None:
        fleet = self.fleet
        self._rates = self.history.rates(fleet.arrivals, fleet.tokens, now)
        states = Counter(each.state for each in fleet.instances.values() if not each.is_gone)
        running = sum(len(each.decoding) + len(each.standing) for each in fleet.instances.values())
        kept = [record.kept_of(now) for record in self.classes.records.values()]
        sample = seen.Sample(
            at_s=round(now - self.origin_s, 3),
            arrivals_per_s=round(self._rates[0], 2),
            tokens_per_s=round(self._rates[1], 1),
            waiting=len(fleet.requests) - running,
            running=running,
            awake=states.total() - states["asleep"],
            asleep=states["asleep"],
            cost_per_hour=round(fleet.bill.cost_per_hour(), 4),
            attained=[_rounded(share(*each), 4) for each in kept],
        )
        self.history.samples.append(sample)

    def _instance(self, instance: SeenInstance, now: float) -> seen.Instance:
        survey = instance.survey(now)
        instance.settle(now)
        return seen.Instance(
            id=instance.id,
            role=instance.role.value,
            state=instance.state,
            since_s=round(instance.since_s - self.origin_s, 1),
            waiting=len(instance.waiting),
            running=len(instance.decoding),
            standing=len(instance.standing),
            blocks=instance.capacity.blocks,
            blocks_used=survey.blocks_used,
            load=round(instance.load, 3),
            slack_s=_rounded(survey.slack_s, 3),
            tightest=survey.tightest,
            links=self.fleet.links_of(instance.id),
        )

    def _class(
        self, name: str, record: ClassRecord, places: Counter[tuple[str, Place]], now: float
    ) -> seen.ServiceClass:
        window, slo = record.window(now), record.given.slo
        return seen.ServiceClass(
            name=name,
            priority=record.given.priority,
            ttft=times([each.ttft_s for each in window], slo.ttft_s),
            tpot=times([each.tpot_s for each in window], slo.tpot_s),
            e2e=times([each.e2e_s for each in window], slo.e2e_s),
            attained=share(*record.kept_of(now)),
            ended=len(window),
            attained_total=record.attained_total,
            ended_total=record.ended,
            refused_total=record.refused,
            waiting=places[name, Place.HELD] + places[name, Place.WAITING],
            running=places[name, Place.DECODING] + places[name, Place.STANDING],
        )

    def _attained(self, now: float) -> float | None:
        kept = [record.kept_of(now) for record in self.classes.records.values()]
        return share(sum(each for each, _ in kept), sum(ended for _, ended in kept))

    def _queue(self, now: float) -> seen.Queue:
        unbegun = [each for each in self.fleet.requests.values() if each.place in (Place.HELD, Place.WAITING)]
        held = sum(each.place is Place.HELD for each in unbegun)
        oldest_s = min((each.arrived_s for each in unbegun), default=None)
        return seen.Queue(
            held=held,
            waiting=len(unbegun) - held,
            oldest_s=None if oldest_s is None else round(now - oldest_s, 3),
            tightest=self._tightest(unbegun, TIGHTEST, now),
        )

    def _tightest(self, requests: list[LiveRequest], count: int, now: float) -> list[seen.Queued]:
        queued = [self._queued(each, now) for each in requests]
        return heapq.nsmallest(count, queued, key=lambda each: math.inf if each.slack_s is None else each.slack_s)

    def _queued(self, request: LiveRequest, now: float) -> seen.Queued:
        instance = None if request.instance_id is None else self.fleet.instances[request.instance_id]
        steps = 0.0 if instance is None else instance.steps_by(now)
        return seen.Queued(
            request=request.id,
            service_class=request.service_class,
            instance=request.instance_id,
            age_s=round(now - request.arrived_s, 3),
            slack_s=_rounded(request.slack_s(steps, now), 3),
        )

    def _cost(self, now: float) -> seen.Cost:
        fleet = self.fleet
        states = Counter(each.state for each in fleet.instances.values() if not each.is_gone)
        return seen.Cost(
            per_hour=fleet.bill.cost_per_hour(),
            so_far=round(fleet.bill.cost(now), 6),
            awake=states.total() - states["asleep"],
            asleep=states["asleep"],
            wanted=fleet.wanted_total(),
        )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
