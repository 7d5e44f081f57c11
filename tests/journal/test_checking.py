"""A journal that is fed to a fresh control plane gives every command again, whatever happened in it."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import soak
from helpers.virtual_loop import run
from hyperflexis.adapters.modelled import Ways
from hyperflexis.cli import fleets, recordings
from hyperflexis.core.commands import AssignRole, Hold, Migrate, Reject, Resize
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import InstanceReady, RequestFinished
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.journal.checking import compare
from hyperflexis.journal.entries import Entry, Gap
from hyperflexis.journal.reading import Journal
from hyperflexis.policies import POLICIES
from journal.recorded import D, M, P, World, only_run, play, recorder
from runtime.live_world import ModelledLauncher
from runtime.live_world import World as LiveWorld


def alike(journal: Journal) -> set[str]:
    """Compare; returns what kinds of commands there were."""
    entries = list(journal.until_damage())
    comparison = compare(entries, recordings.control_plane(journal.header))
    assert comparison.difference is None, comparison.difference
    assert comparison.events == len(entries) > 0
    assert comparison.commands == sum(len(each.commands) for each in entries) > 0
    return {type(command).__name__ for each in entries for command in each.commands}


def names(*kinds: type) -> set[str]:
    return {kind.__name__ for kind in kinds}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_decides_the_same_again(policy: str, tmp_path: Path) -> None:
    play(World(policy=policy, losses_s=(0.5,), requests=100), tmp_path)
    assert alike(only_run(tmp_path)) >= {"Dispatch", "Conclude", "Launch"}


def test_losses(tmp_path: Path) -> None:
    play(World(losses_s=(0.3, 0.6, 0.9), rate=80.0, requests=150), tmp_path)
    assert alike(only_run(tmp_path)) >= names(Hold, Reject)


def test_prefill_and_decode_apart(tmp_path: Path) -> None:
    world = World((P, D, M), moving="planned", requests=150, losses_s=(0.8,), drains_s=(1.5,))
    play(world, tmp_path)
    assert alike(only_run(tmp_path)) >= names(Migrate, AssignRole)


def test_elastic_fleet(tmp_path: Path) -> None:
    play(World((M,), most=5, requests=300, rate=60.0, losses_s=(2.0,), drains_s=(3.0,)), tmp_path)
    assert alike(only_run(tmp_path)) >= names(Resize)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Fleets of all kinds, whose instances die and are taken out of service."""
    roles = draw(
        st.lists(st.sampled_from((P, D, M)), min_size=1, max_size=4).filter(lambda r: M in r or {P, D} <= {*r})
    )
    policies = ("hyperflexis", "taichi", "arrow", "tokenscale", "dynamo_pd", "llumnix_pd", "splitwise")
    instants = st.lists(st.floats(0.0, 4.0), max_size=3).map(sorted).map(tuple)
    is_elastic = draw(st.booleans())
    return World(
        (M,) if is_elastic else tuple(roles),
        "hyperflexis" if is_elastic else draw(st.sampled_from(policies)),
        "keeps" if is_elastic else "fixed",
        4 if is_elastic else 0,
        rate=draw(st.sampled_from((10.0, 60.0, 200.0))),
        losses_s=draw(instants),
        drains_s=draw(instants),
        seed=draw(st.integers(0, 1000)),
    )


@given(worlds())
@settings(max_examples=soak.examples(25))
def test_whatever_happens(tmp_path_factory: pytest.TempPathFactory, world: World) -> None:
    folder = tmp_path_factory.mktemp("run")
    play(world, folder)
    alike(only_run(folder))


# -- live


async def _live(folder: Path, text: str, moving: fleets.Moving, bounds: FleetBounds, seed: int) -> None:
    """Clients come and leave, and instances die, at random."""
    rng = random.Random(seed)
    is_elastic = bounds.is_elastic
    policy = fleets.create(text, 64, moving, is_elastic=is_elastic)
    header = recordings.header(
        fleets.spelled(text, moving, is_elastic=is_elastic),
        64,
        ControlPlane(policy, bounds, 30),
        (),
        wall_s=1e9,
    )
    ways = Ways(copy_fault=lambda *_: "torn" if rng.random() < 0.1 else "")
    launcher = ModelledLauncher(blocks=120, seqs_max=8, ways=ways, failing=lambda ordinal: ordinal % 4 == 3)
    with recorder(folder, header) as made:
        world = LiveWorld(policy=policy, fleet=bounds, requests_max=30, launcher=launcher, observers=[made.observe])
        with world:
            await world.ready()
            for number in range(120):
                await asyncio.sleep(rng.expovariate(60.0))
                client = world.submit(
                    rng.randint(1, 200), rng.randint(1, 40), ttft_s=0.3, tpot_s=0.05, name=f"cmpl-{number}"
                )
                if rng.random() < 0.2:
                    world.loop.call_later(rng.uniform(0.0, 0.5), world.driver.cancel, client.ticket)
                if rng.random() < 0.02 and world.launcher.adapters:
                    world.launcher.lose(rng.choice(list(world.launcher.adapters)))
                if rng.random() < 0.03:
                    world.driver.drain(min(world.driver._members, default=0))
            for each in world.clients:
                await each.ended()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("moving", "bounds"),
    [
        ("keeps", FleetBounds.fixed(3)),
        ("planned", FleetBounds.fixed(4, (P, D))),
        ("keeps", FleetBounds({M: Range(2, 5)}, asleep_max=1)),
    ],
    ids=["mixed", "roles", "elastic"],
)
def test_live_run(tmp_path: Path, moving: fleets.Moving, bounds: FleetBounds, seed: int) -> None:
    run(_live(tmp_path, "hyperflexis", moving, bounds, seed))
    journal = only_run(tmp_path)
    kinds = alike(journal)
    assert kinds >= {"Dispatch", "Cancel", "Conclude"}
    if moving == "planned":
        assert kinds >= names(Migrate, AssignRole)
    if bounds.is_elastic:
        assert kinds >= names(Resize)
    assert journal.named("cmpl-17") == [17]


# -- what is not alike


def changed(entries: list[Entry], place: int, entry: Entry) -> list[Entry]:
    return [*entries[:place], entry, *entries[place + 1 :]]


def test_first_difference_is_shown(tmp_path: Path) -> None:
    play(World(), tmp_path)
    journal = only_run(tmp_path)
    entries = list(journal.entries())
    place = next(i for i, each in enumerate(entries) if i > 20 and each.commands)
    other = entries[place]._replace(commands=())
    found = compare(changed(entries, place, other), recordings.control_plane(journal.header)).difference
    assert found is not None
    assert (found.number, found.entry, list(found.made)) == (place, other, list(entries[place].commands))
    assert [each.now for each in found.before] == [each.now for each in entries[place - 3 : place]]
    assert found.failure == ""


def test_last_bit_of_an_instant_matters(tmp_path: Path) -> None:
    play(World(), tmp_path)
    journal = only_run(tmp_path)
    entries = list(journal.entries())
    place = next(i for i, each in enumerate(entries) if isinstance(each.event, RequestFinished))
    later = entries[place]._replace(now=math.nextafter(entries[place].now, math.inf))
    found = compare(changed(entries, place, later), recordings.control_plane(journal.header))
    assert found.difference is not None


def test_control_plane_that_fails_is_a_difference(tmp_path: Path) -> None:
    play(World(), tmp_path)
    journal = only_run(tmp_path)
    entries = [each for each in journal.entries() if not isinstance(each.event, InstanceReady)]
    found = compare(entries, recordings.control_plane(journal.header)).difference
    assert found is not None


def test_gap_ends_the_comparison(tmp_path: Path) -> None:
    play(World(), tmp_path)
    journal = only_run(tmp_path)
    entries = list(journal.entries())
    gap = Entry(entries[30].now, Gap(1, entries[30].now, "no space left"))
    found = compare(changed(entries, 30, gap), recordings.control_plane(journal.header))
    assert (found.events, found.gap, found.difference) == (30, gap, None)
