"""A small stream of entries, made by hand: one instance, and requests that come when a test says so."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.builders import SIMPLE
from hyperflexis.core.commands import Command, Conclude, Dispatch, Launch, Reason, Why
from hyperflexis.core.events import Event, InstanceReady, InstanceReported, RequestArrived, RequestFinished, Wakeup
from hyperflexis.core.fleet import Prices
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.core.latency import StepShape
from hyperflexis.core.slo import ServiceClass, Slo, Timeline, Verdict
from hyperflexis.journal.entries import Entry
from hyperflexis.view.watch import Watch

CLASSES = {
    "strict": ServiceClass("strict", Slo(ttft_s=0.5, tpot_s=0.1), 1),
    "loose": ServiceClass("loose", Slo(e2e_s=20.0)),
}
FITS = Reason(Why.FEASIBLE, (("ttft_s", 0.2),))
CAPACITY = Capacity(100, 16, 8)
ORIGIN_S = 1000.0


def launched(now: float = ORIGIN_S, instance_id: int = 0, role: Role = Role.MIXED) -> list[Entry]:
    launch = Launch(instance_id, role, Reason(Why.FLEET_SHORT))
    return [Entry(now, Wakeup(), [launch]), Entry(now, InstanceReady(instance_id, CAPACITY, SIMPLE))]


def sent(now: float, request_id: int, service_class: str = "strict", tokens: int = 31, name: str = "") -> Entry:
    arrived = RequestArrived(request_id, tokens, 64, CLASSES[service_class].slo, 0, service_class)
    return Entry(now, arrived, [Dispatch(request_id, 0, FITS)], name)


def step(now: float, *, started: Sequence[int] = (), began: Sequence[int] = (), steps: int = 1) -> Entry:
    shape = StepShape(16, 256) if started else StepShape(0, 0, 1, 32)
    return Entry(now, InstanceReported(0, shape, 0.05, steps=steps, started=started, began=began))


def finished(now: float, request_id: int, arrived_s: float, ttft_s: float, tokens: int) -> Entry:
    given = CLASSES["strict"]
    times = Timeline(arrived_s, arrived_s, arrived_s, arrived_s + ttft_s, now, tokens, 0.2, 0.05)
    verdict = Verdict(given.name, given.priority, given.slo, times, "i0")
    return Entry(now, RequestFinished(0, request_id, tokens), [Conclude(request_id, verdict, Reason(Why.ENDED))])


def watched(entries: Sequence[Entry], prices: Prices | None = None) -> Watch:
    watch = Watch(prices or Prices(3.0), CLASSES, ORIGIN_S)
    for now, event, commands, _ in entries:
        watch.hear(now, event, commands)
    return watch


def at(now: float, event: Event, *commands: Command) -> Entry:
    return Entry(now, event, commands)
