"""Links come up, fail, are tried again and are forgotten; each word is of one version."""

from __future__ import annotations

from hyperflexis.core.commands import Link
from hyperflexis.core.instance import Instance
from hyperflexis.core.links import PENDING_MAX_S, RETRY_S, TRIES_MAX, Links


def pairs(links: list[Link]) -> list[tuple[int, int]]:
    return [(link.source_id, link.target_id) for link in links]


def two() -> tuple[Links, Link, Link]:
    """From 0 to 1, and back."""
    made = Links()
    there, back = made.connect(Instance(1), [Instance(0), Instance(1)], 0.0)
    return made, there, back


def test_new_instance_is_linked_with_each_other_one_both_ways() -> None:
    made = Links()
    assert made.connect(Instance(0), [Instance(0)], 0.0) == []
    assert pairs(made.connect(Instance(1), [Instance(0), Instance(1)], 0.0)) == [(0, 1), (1, 0)]
    assert pairs(made.connect(Instance(2), map(Instance, range(3)), 0.0)) == [(0, 2), (2, 0), (1, 2), (2, 1)]
    assert made.connect(Instance(2), map(Instance, range(3)), 0.0) == [], "once"


def test_link_is_up_when_its_target_says_so() -> None:
    made, there, back = two()
    assert made.version(0, 1) is None
    assert made.is_pending(0)
    assert made.up(0, 1, there.version)
    assert made.version(0, 1) == there.version
    assert made.is_pending(1), "the way back is not up"
    assert made.up(1, 0, back.version)
    assert not made.is_pending(0)
    assert not made.is_pending(1)


def test_words_of_other_versions_and_of_no_link_are_ignored() -> None:
    made, there, back = two()
    made.up(0, 1, there.version)
    made.up(1, 0, back.version)
    assert not made.up(0, 1, there.version + 100)
    assert not made.up(5, 6, 1)
    made.down(0, 1, there.version - 1, 0.0)
    made.down(5, 6, 1, 0.0)
    assert made.version(0, 1) == there.version
    assert made.next_due_s() is None


def test_failed_link_keeps_nobody_waiting_and_is_tried_again_as_another_version() -> None:
    made, there, back = two()
    made.up(1, 0, back.version)
    made.down(0, 1, there.version, 10.0)
    assert not made.is_pending(0)
    assert made.next_due_s() == 10.0 + RETRY_S
    assert made.retry(10.0 + RETRY_S / 2) == []
    (again,) = made.retry(10.0 + RETRY_S)
    assert pairs([again]) == [(0, 1)]
    assert again.version > there.version
    assert not made.is_pending(0), "it has failed before"
    assert not made.up(0, 1, there.version)
    assert made.up(0, 1, again.version)
    assert made.next_due_s() is None


def test_link_that_was_lost_is_down() -> None:
    made, there, _ = two()
    made.up(0, 1, there.version)
    made.down(0, 1, there.version, 3.0)
    assert made.version(0, 1) is None
    assert len(made.retry(3.0 + RETRY_S)) == 1


def test_link_that_fails_so_often_in_a_row_is_given_up_but_success_forgets() -> None:
    made, link, back = two()
    made.up(1, 0, back.version)
    for number in range(TRIES_MAX - 1):
        made.down(0, 1, link.version, 10.0 * number)
        (link,) = made.retry(10.0 * number + RETRY_S)
    made.up(0, 1, link.version)
    for number in range(TRIES_MAX):
        made.down(0, 1, link.version, 1000.0 + 10.0 * number)
        found = made.retry(1000.0 + 10.0 * number + RETRY_S)
        assert len(found) == (number < TRIES_MAX - 1)
        link = found[0] if found else link
    assert made.next_due_s() is None


def test_link_of_which_nothing_is_heard_counts_as_failed_and_is_tried_again() -> None:
    made, there, back = two()
    assert made.next_due_s() == PENDING_MAX_S
    made.up(1, 0, back.version)
    assert made.expire(PENDING_MAX_S - 0.1) == set()
    assert made.is_pending(0)
    assert made.expire(PENDING_MAX_S) == {0, 1}
    assert not made.is_pending(0)
    assert made.expire(PENDING_MAX_S) == set(), "once"
    assert made.next_due_s() == PENDING_MAX_S + RETRY_S
    (again,) = made.retry(PENDING_MAX_S + RETRY_S)
    assert not made.up(0, 1, there.version), "that of another one"
    assert made.next_due_s() == 2 * PENDING_MAX_S + RETRY_S, "it may be silent as well"
    assert made.up(0, 1, again.version)
    assert made.next_due_s() is None
    assert made.expire(1000.0) == set(), "it is up"


def test_link_that_comes_up_late_is_up() -> None:
    made, there, back = two()
    made.up(1, 0, back.version)
    made.expire(PENDING_MAX_S)
    assert made.up(0, 1, there.version)
    assert made.version(0, 1) == there.version
    assert made.retry(1000.0) == []


def test_link_that_stays_silent_is_given_up_like_one_that_fails_until_it_speaks() -> None:
    made, link, back = two()
    made.up(1, 0, back.version)
    for _ in range(TRIES_MAX):
        due_s = made.next_due_s()
        assert due_s is not None
        made.expire(due_s)
        (link,) = made.retry(due_s + RETRY_S) or (link,)
    assert made.next_due_s() is None
    assert made.up(0, 1, link.version)


def test_both_ends_of_links_with_an_instance_that_is_gone_are_told() -> None:
    """Who took from it takes no more, and who has lent to it lends no more."""
    made = Links()
    made.connect(Instance(1), [Instance(0)], 0.0)
    links = {
        pair: link for link in made.connect(Instance(2), [Instance(0), Instance(1)], 0.0) for pair in pairs([link])
    }
    made.up(2, 0, links[2, 0].version)
    gone = made.disconnect(2)
    assert {(each.source_id, each.target_id, each.version) for each in gone} == {
        (*pair, link.version) for pair, link in links.items()
    }
    assert made.version(2, 0) is None
    assert not made.up(0, 2, links[0, 2].version)
    assert made.disconnect(2) == []
    assert made.is_pending(0), "the other links are as they were"
