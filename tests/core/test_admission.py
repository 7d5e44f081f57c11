"""Who goes for a more important one, and who never does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helpers.builders import request
from hyperflexis.core.admission import REMEMBERED_S, Admission
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.links import Links
from hyperflexis.core.migration import Migrations
from hyperflexis.core.request import Request, RequestState


def admission(*requests: Request, requests_max: int = 1) -> Admission:
    cluster = Cluster()
    for each in requests:
        cluster.requests[each.id] = each
        cluster.enqueue(each)
    return Admission(cluster, Migrations(cluster, Links()), requests_max)


def queued(number: int, priority: int = 0, arrived_s: float = 0.0) -> Request:
    return request(number, priority=priority, arrived_s=arrived_s)


def test_full_is_as_many_as_there_may_be() -> None:
    assert not admission(queued(1), requests_max=2).is_full
    assert admission(queued(1), queued(2), requests_max=2).is_full


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6), st.integers(0, 3))
def test_of_the_least_important_the_latest_goes(there: list[tuple[int, int]], priority: int) -> None:
    requests = [queued(number, *each) for number, each in enumerate(there)]
    found = admission(*requests).displaced_by(queued(99, priority), 0.0)
    if found is None:
        assert all(each.priority >= priority for each in requests)
        return
    assert found.priority == min(each.priority for each in requests) < priority
    assert found.arrived_s == max(each.arrived_s for each in requests if each.priority == found.priority)


def test_what_has_begun_or_is_a_part_of_an_answer_stays() -> None:
    begun, part = queued(1), queued(2)
    begun.first_token_s = 1.0
    part.is_part = True
    computed = queued(3)
    computed.state = RequestState.PREFILLING
    there = admission(begun, part, computed)
    assert there.displaced_by(queued(9, 1), 0.0) is None


def test_that_nobody_is_there_is_remembered_for_a_moment() -> None:
    there = admission(queued(1, 1))
    assert there.displaced_by(queued(9, 1), 0.0) is None
    late = queued(2)
    there._cluster.enqueue(late)
    assert there.displaced_by(queued(9, 1), REMEMBERED_S / 2) is None
    assert there.displaced_by(queued(9, 2), REMEMBERED_S / 2) is late
    assert there.displaced_by(queued(9, 1), REMEMBERED_S) is late
