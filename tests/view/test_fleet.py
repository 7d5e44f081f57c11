"""The fleet as it is seen, compared after every entry with what the control plane itself knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperflexis.cli import recordings
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.instance import InstanceState
from hyperflexis.journal.entries import Entry
from hyperflexis.journal.reading import Journal
from hyperflexis.view.fleet import Fleet
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
