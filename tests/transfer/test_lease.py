"""The page tells every reader what is lent, and until when."""

from __future__ import annotations

import math

import pytest
from transfer_world import HandClock

from hyperflexis.transfer.errors import Exhausted, LeaseExpired, Recycled, Revoked
from hyperflexis.transfer.lease import LeasePage


@pytest.fixture
def page(clock: HandClock) -> LeasePage:
    return LeasePage(4, clock)


def test_lease_lasts_so_long_and_no_longer(page: LeasePage, clock: HandClock) -> None:
    slot, generation = page.lend(2.0)
    assert page.check(slot, generation) == 2.0
    clock.advance(1.5)
    assert page.check(slot, generation) == 0.5
    clock.advance(0.5)
    with pytest.raises(LeaseExpired):
        page.check(slot, generation)


def test_endless_lease(page: LeasePage, clock: HandClock) -> None:
    slot, generation = page.lend(math.inf)
    clock.advance(1e9)
    assert page.check(slot, generation) == math.inf


def test_prolonging_only_prolongs_and_shortening_only_shortens(page: LeasePage) -> None:
    slot, generation = page.lend(5.0)
    page.prolong(slot, 3.0)
    assert page.check(slot, generation) == 5.0
    page.prolong(slot, 8.0)
    assert page.check(slot, generation) == 8.0
    page.shorten(slot, 9.0)
    assert page.check(slot, generation) == 8.0
    page.shorten(slot, 1.0)
    assert page.check(slot, generation) == 1.0


def test_ended_lease_is_revoked(page: LeasePage) -> None:
    slot, generation = page.lend(5.0)
    page.end(slot)
    with pytest.raises(Revoked):
        page.check(slot, generation)


def test_new_generation_replaces_the_old(page: LeasePage) -> None:
    slot, old = page.lend(5.0)
    new = page.lend_again(slot, 5.0)
    assert page.check(slot, new) == 5.0
    with pytest.raises(Recycled):
        page.check(slot, old)


def test_no_generation_is_used_twice(page: LeasePage) -> None:
    """Else the reader of a slot's old lease could take the new one for its own."""
    seen = set()
    for _ in range(20):
        slot, generation = page.lend(1.0)
        seen.add(generation)
        page.end(slot)
    assert len(seen) == 20


def test_slots_run_out_and_come_back(page: LeasePage) -> None:
    slots = [page.lend(1.0)[0] for _ in range(4)]
    assert len(set(slots)) == 4
    with pytest.raises(Exhausted, match="regions_max"):
        page.lend(1.0)
    page.end(slots[2])
    assert page.lend(1.0)[0] == slots[2]


@pytest.mark.parametrize("lease_s", [-1.0, math.nan])
def test_no_length_of_time(page: LeasePage, lease_s: float) -> None:
    with pytest.raises(ValueError, match="0 seconds or more"):
        page.lend(lease_s)


@pytest.mark.parametrize("slot", [-1, 4, 2**40])
def test_slot_that_no_page_has(page: LeasePage, slot: int) -> None:
    with pytest.raises(Revoked):
        page.check(slot, 1)


def test_generation_zero_is_nothing_lent(page: LeasePage) -> None:
    """A forged descriptor cannot ask for what stands on an empty slot."""
    with pytest.raises(Revoked):
        page.check(0, 0)
