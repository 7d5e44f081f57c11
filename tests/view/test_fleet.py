"""The fleet as it is seen, compared after every entry with what the control plane itself knows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis.cli import recordings
from hyperflexis.core.commands import Conclude, Dispatch, Reason, Why
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import InstanceLost, InstanceReported, RequestArrived, RequestFinished
from hyperflexis.core.fleet import Prices
from hyperflexis.core.instance import InstanceState
from hyperflexis.core.latency import StepShape
from hyperflexis.core.slo import Slo
from hyperflexis.journal.entries import Entry, Gap
from hyperflexis.journal.reading import Journal
from hyperflexis.view.fleet import Fleet
from hyperflexis.view.snapshot import Snapshot
from hyperflexis.view.watch import Watch
from journal.recorded import D, M, P, World, only_run, play

WORLDS = {
    "mixed": World(),
    "overloaded": World((M,), requests=120, rate=200.0),
    "losing": World((M, M, M), moving="fixed", losses_s=(0.4, 0.9), requests=90),
    "draining": World((M, M, M), moving="fixed", drains_s=(0.5, 1.0), requests=90),
    "apart": World((P, P, D, D), moving="fixed", requests=100),
    "apart, losing": World((P, P, D, D), moving="fixed", losses_s=(0.3, 0.7), requests=100),
    "planned": World((P, D, M), moving="planned", requests=120, rate=60.0),
    "elastic": World((M,), most=4, moving="fixed", requests=150, rate=60.0),
}


def compare(fleet: Fleet, control: ControlPlane) -> None:
    cluster = control.cluster
    assert {each.id for each in fleet.instances.values() if not each.is_gone} == set(cluster.instances)
    for instance in cluster.instances.values():
        seen = fleet.instances[instance.id]
        assert seen.role is instance.role
        assert seen.waiting.keys() == instance.waiting.keys(), instance.name
        assert seen.decoding.keys() == instance.decoding.keys(), instance.name
        assert seen.standing.keys() == instance.standing.keys(), instance.name
        state = instance.state.value
        assert seen.state == ("ready" if instance.state is InstanceState.LINKING else state)
    assert fleet.requests.keys() == cluster.requests.keys()
    for request in cluster.requests.values():
        seen_request = fleet.requests[request.id]
        steps = fleet.instances[request.instance_id].steps if request.instance_id is not None else 0
        assert seen_request.instance_id == request.instance_id
        assert seen_request.emitted(steps) == request.emitted_tokens
        assert seen_request.first_token_s == request.first_token_s
    links = {
        (source, target)
        for source in cluster.instances
        for target in cluster.instances
        if source != target and control.links.version(source, target) is not None
    }
    assert set(fleet.links()) == links


def _played(journal: Journal) -> tuple[Fleet, ControlPlane, list[Entry]]:
    control = recordings.control_plane(journal.header)
    entries = list(journal.entries())
    return Fleet(control.sizing.fleet.prices), control, entries


@pytest.mark.parametrize("name", WORLDS)
def test_fleet_is_what_the_control_plane_knows(name: str, tmp_path: Path) -> None:
    play(WORLDS[name], tmp_path)
    fleet, control, entries = _played(only_run(tmp_path))
    for now, event, commands, _ in entries:
        control.handle(event, now)
        fleet.hear(now, event, commands)
        compare(fleet, control)
    assert not fleet.requests
    assert fleet.bill.seconds(entries[-1].now) == pytest.approx(control.sizing.bill.seconds(entries[-1].now))


def test_gap_forgets_what_may_have_ended(tmp_path: Path) -> None:
    play(WORLDS["mixed"], tmp_path)
    fleet, _, entries = _played(only_run(tmp_path))
    for now, event, commands, _ in entries[:60]:
        fleet.hear(now, event, commands)
    assert fleet.requests
    fleet.hear(entries[60].now, Gap(5, entries[64].now, "the disk was full"), ())
    assert not fleet.requests
    assert fleet.missing == 5
    assert not any(each.waiting or each.decoding or each.standing for each in fleet.instances.values())
    for now, event, commands, _ in entries[65:]:
        fleet.hear(now, event, commands)
    assert not fleet.requests


def test_what_went_is_seen_for_a_moment_more(tmp_path: Path) -> None:
    play(WORLDS["losing"], tmp_path)
    fleet, _, entries = _played(only_run(tmp_path))
    for now, event, commands, _ in entries:
        fleet.hear(now, event, commands)
        if isinstance(event, InstanceLost):
            break
    lost = event.instance_id
    assert fleet.instances[lost].state == "lost"
    fleet.forget_gone(now + 3.9)
    assert lost in fleet.instances
    fleet.forget_gone(now + 4.1)
    assert lost not in fleet.instances


def test_requests_of_instances_that_nobody_heard_of_are_left_out() -> None:
    fleet = Fleet(Prices())
    fleet.hear(0.0, RequestArrived(1, 10, 10, Slo()), [Dispatch(1, 7, Reason(Why.FEASIBLE))])
    fleet.hear(1.0, InstanceReported(7, StepShape(), 0.1, started=(1,), began=(1,)), ())
    assert fleet.instances == {}
    assert fleet.requests[1].instance_id is None
    fleet.hear(2.0, RequestFinished(7, 1, 3), [Conclude(1, None, Reason(Why.ENDED))])
    assert fleet.requests == {}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_of_a_stream_can_be_followed(recorded: list[Entry], data: st.DataObject) -> None:
    """Whatever is missing, nothing raises, nothing is negative, and nothing is left that could not be shown."""
    kept = data.draw(st.lists(st.integers(0, len(recorded) - 1), min_size=1, max_size=300, unique=True).map(sorted))
    watch = Watch(Prices(), {}, recorded[0].now, spacing_s=0.1)
    for index in kept:
        now, event, commands, _ = recorded[index]
        watch.hear(now, event, commands)
        if index % 7 == 0:
            snapshot = watch.snapshot(now)
            assert msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot) == snapshot
            for each in snapshot.instances:
                assert 0 <= each.blocks_used <= each.blocks
                assert 0 <= each.load <= 1
            assert snapshot.waiting >= 0
            assert snapshot.running >= 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    folder = tmp_path_factory.mktemp("journal")
    play(WORLDS["apart, losing"], folder)
    return list(only_run(folder).entries())
