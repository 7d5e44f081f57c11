"""What is counted is what happened: compared with what the simulation, its bill and its requests say of themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hyperflexis.core.commands import Command, Conclude, Reason, Reject, Why
from hyperflexis.core.events import Event, RequestArrived
from hyperflexis.core.instance import InstanceState
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.telemetry.decisions import Decisions
from hyperflexis.telemetry.labels import CLASSES_MAX
from journal import recorded
from journal.recorded import CLASSES, only_run
from telemetry.worlds import WORLDS, counted, play

Values = dict[tuple[str, ...], float]


def values(decisions: Decisions) -> dict[str, Values]:
    """By name of the sample, what it is for each set of labels, which stand in the order of their names."""
    registry = CollectorRegistry()
    registry.register(decisions)
    found: dict[str, Values] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.mark.parametrize("name", WORLDS)
def test_counts_are_those_of_the_simulation(name: str) -> None:
    decisions = counted()
    outcome, simulation = play(WORLDS[name], decisions)
    found = values(decisions)
    outcomes = Counter[str]()
    for (_, told), count in found["hyperflexis_judged_requests_total"].items():
        outcomes[told] += int(count)
    assert outcomes["kept"] == outcome.attained.sum()
    assert outcomes["refused"] == outcome.rejected.sum()
    assert outcomes.total() == outcome.attained.size
    assert sum(found.get("hyperflexis_rejections_total", {}).values()) == outcome.rejected.sum()
    assert found["hyperflexis_queue_requests"] == dict.fromkeys([(each,) for each in CLASSES], 0)
    done = sum(n for (told, _), n in found.get("hyperflexis_migrations_total", {}).items() if told == "done")
    again = sum(found["hyperflexis_dispatches_total"].values()) - (outcome.attained.size - outcome.rejected.sum())
    assert done + again == outcome.migrations
    assert found["hyperflexis_migrations_under_way"] == {(): 0}
    assert sum(found.get("hyperflexis_role_switches_total", {}).values()) == outcome.role_changes
    bill, now = simulation.control.sizing.bill, decisions._now
    seconds = decisions.size.presence.seconds(now)
    asleep_s = sum(passed_s for (_, state), passed_s in seconds.items() if state is InstanceState.ASLEEP)
    assert (sum(seconds.values()) - asleep_s, asleep_s) == pytest.approx(bill.seconds(now))
    assert found["hyperflexis_cost_total"][()] == pytest.approx(
        sum(share * price / 3600 for share, price in zip(bill.seconds(now), (3.6, 0.36), strict=True))
    )
    there = Counter(instance.state for instance in simulation.control.cluster.instances.values())
    assert sum(found["hyperflexis_instances"].values()) == there.total()


def test_worlds_do_all_that_is_counted() -> None:
    """Or else the comparison above would be of nothing with nothing."""
    seen = dict[str, Values]()
    for world in WORLDS.values():
        decisions = counted()
        play(world, decisions)
        for name, found in values(decisions).items():
            if any(found.values()):
                seen.setdefault(name, {}).update(found)
    reasons = {reason for _, reason in seen["hyperflexis_rejections_total"]}
    assert reasons == {"too_late"}
    assert {outcome for _, outcome in seen["hyperflexis_judged_requests_total"]} == {
        "kept",
        "broken",
        "refused",
        "failed",
    }
    for name in ("holds_total", "hold_seconds_count", "dispatches_total", "migrations_total", "role_switches_total"):
        assert f"hyperflexis_{name}" in seen
    for name in ("launches_total", "start_seconds_count", "drains_total", "losses_total", "scale_decisions_total"):
        assert f"hyperflexis_{name}" in seen
    assert {source for _, _, source in seen["hyperflexis_launches_total"]} == {"disk", "sleeper"}


def test_journal_gives_the_same_numbers_as_the_run(tmp_path: Path) -> None:
    world = WORLDS["apart"]
    live, read = counted(), counted()
    play(world, live)
    recorded.play(world, tmp_path)
    for entry in only_run(tmp_path).entries():
        read.observe(entry.now, entry.event, entry.commands, entry.name)
    assert values(read) == values(live)


def _arrived(number: int, **fields: object) -> RequestArrived:
    return RequestArrived(number, 10, 10, **{"slo": Slo(), **fields})


def test_refusals_spend_the_budget_and_mistakes_of_clients_do_not() -> None:
    decisions = counted({"chat": ServiceClass("chat", Slo(ttft_s=1.0))})
    chat = {"slo": Slo(ttft_s=1.0), "service_class": "chat"}
    lines: list[tuple[float, Event, list[Command]]] = [
        (0.0, _arrived(0, **chat), [Reject(0, Reason(Why.TOO_LARGE))]),
        (0.0, _arrived(1, **chat), [Reject(1, Reason(Why.QUEUE_FULL))]),
        (0.0, _arrived(2, **chat), []),
        (0.5, _arrived(3, **chat), [Conclude(3, None, Reason(Why.CLIENT_LEFT))]),
        (1.5, _arrived(4, **chat), [Conclude(2, None, Reason(Why.CLIENT_LEFT))]),
        (1.5, _arrived(5, **chat), [Conclude(5, None, Reason(Why.FAILED))]),
    ]
    for line in lines:
        decisions.observe(*line)
    judged = values(decisions)["hyperflexis_judged_requests_total"]
    assert judged == {("chat", "kept"): 0, ("chat", "broken"): 1, ("chat", "refused"): 1, ("chat", "failed"): 1}
    assert values(decisions)["hyperflexis_error_budget_burn"][("chat", "1m")] == pytest.approx(10.0)


def test_classes_that_nobody_configured_are_bounded() -> None:
    decisions = counted({})
    for number in range(3 * CLASSES_MAX):
        event = _arrived(number, service_class=f"c{number}")
        decisions.observe(0.0, event, [Reject(number, Reason(Why.QUEUE_FULL))])
    found = values(decisions)["hyperflexis_rejections_total"]
    assert len(found) == CLASSES_MAX + 1
    assert found[("other", "queue_full")] == 2 * CLASSES_MAX
