"""Starts: their phases add up, and what is read at once is shared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.core.instance import StartSource
from hyperflexis.sim.kernel import Kernel
from hyperflexis.sim.startup import Shared, StartPhases, Starts, StartupSpec

DISK, PEER, SLEEPER = StartSource.DISK, StartSource.PEER, StartSource.SLEEPER
PHASES = StartPhases(schedule_s=1.0, boot_s=2.0, weights_s=4.0, post_s=0.5)


def ready_s(
    begins: list[tuple[float, StartSource, int | None]], phases: StartPhases = PHASES, *, is_chained: bool = True
) -> list[float]:
    """When each of these starts, in order of their beginnings, is ready."""
    kernel, ended = Kernel(), dict[int, float]()
    spec = StartupSpec(dict.fromkeys(StartSource, phases), is_chained=is_chained)
    starts = Starts(spec, kernel)

    def begin(number: int, source: StartSource, donor_id: int | None) -> None:
        starts.begin(source, donor_id, lambda: ended.update({number: kernel.now}))

    for number, (at_s, source, donor_id) in enumerate(begins):
        kernel.at(at_s, lambda number=number, source=source, donor_id=donor_id: begin(number, source, donor_id))
    kernel.run()
    return [ended[number] for number in range(len(begins))]


@given(phases=st.builds(StartPhases, *[st.floats(0, 50)] * 4), source=st.sampled_from(StartSource))
def test_phases_of_a_start_that_is_alone_add_up(phases: StartPhases, source: StartSource) -> None:
    donor_id = 0 if source is PEER else None
    assert ready_s([(1.0, source, donor_id)], phases) == [pytest.approx(1 + phases.total_s, abs=1e-5)]


def test_constant_starts_share_nothing() -> None:
    spec = StartupSpec.constant(3.0)
    assert set(spec.seconds().values()) == {3.0}
    assert all(phases.weights_s == 0 for phases in spec.phases.values())


def test_a_source_that_is_not_named_is_as_slow_as_the_slowest() -> None:
    spec = StartupSpec({PEER: StartPhases(boot_s=2.0), DISK: StartPhases(boot_s=40.0)})
    assert spec.of(StartSource.CACHE).total_s == 40.0
    assert StartupSpec().of(DISK).total_s == 0.0


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_as_many_readers_take_as_many_times_as_long(readers: int) -> None:
    found = ready_s([(0.0, DISK, None)] * readers)
    assert found == pytest.approx([1 + 2 + 4 * readers + 0.5] * readers, abs=1e-5)


def test_receivers_that_ask_one_peer_share_it_where_they_are_no_chain() -> None:
    apart = ready_s([(0.0, PEER, 7), (0.0, PEER, 8)], is_chained=False)
    together = ready_s([(0.0, PEER, 7), (0.0, PEER, 7)], is_chained=False)
    assert apart == pytest.approx([7.5, 7.5], abs=1e-5)
    assert together == pytest.approx([11.5, 11.5], abs=1e-5)


@pytest.mark.parametrize("receivers", [1, 2, 6])
def test_in_a_chain_each_further_one_takes_a_chunk_longer(receivers: int) -> None:
    chunk_s = 0.02 * PHASES.weights_s
    found = ready_s([(0.0, PEER, 0)] * receivers)
    assert found == pytest.approx([7.5 + chunk_s * number for number in range(receivers)], abs=1e-5)


def test_a_reader_that_comes_later_slows_the_first_for_the_rest() -> None:
    """Half is read alone; then both read at half the speed until the first has all."""
    assert ready_s([(0.0, DISK, None), (2.0, DISK, None)]) == pytest.approx([9.5, 11.5], abs=1e-5)


@given(
    works=st.lists(st.tuples(st.floats(0, 20), st.floats(0.001, 10)), min_size=1, max_size=8).map(sorted),
)
def test_work_is_conserved(works: list[tuple[float, float]]) -> None:
    """One way that is never idle while there is work: its busy time is all the work, and nothing ends too soon."""
    kernel, ended = Kernel(), dict[int, float]()
    shared = Shared(kernel)
    for number, (at_s, work_s) in enumerate(works):

        def add(number: int = number, work_s: float = work_s) -> None:
            shared.add(work_s, lambda: ended.update({number: kernel.now}))

        kernel.at(at_s, add)
    kernel.run()
    assert len(ended) == len(works)
    free_s = 0.0
    for at_s, work_s in works:
        free_s = max(free_s, at_s) + work_s
    assert max(ended.values()) == pytest.approx(free_s, abs=1e-4)
    assert all(ended[number] >= at_s + work_s - 1e-4 for number, (at_s, work_s) in enumerate(works))
