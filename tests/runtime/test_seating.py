"""Where an instance is wished to be: by its strategy, its role, and who is where."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.runtime.launchers.seating import Need, Node, Strategy, choose

ONE_CPU = Need(1.0, 0.0)


def nodes(*cpus: float, gpus: float = 0.0) -> list[Node]:
    return [Node(name, each, gpus) for name, each in zip("abcdefgh", cpus, strict=False)]


def seat(there: list[Node], roles: list[str], strategy: Strategy = "auto", need: Need = ONE_CPU) -> list[str | None]:
    """Where each goes, one after the other."""
    seated: dict[str, list[str]] = defaultdict(list)
    found = []
    for role in roles:
        chosen = choose(there, seated, [], role=role, need=need, strategy=strategy)
        found.append(chosen)
        if chosen is not None:
            seated[chosen].append(role)
    return found


def test_mixed_instances_spread() -> None:
    assert seat(nodes(4, 4), ["mixed"] * 4) == ["a", "b", "a", "b"]


def test_partners_share_a_node() -> None:
    assert seat(nodes(2, 2), ["prefill", "decode"]) == ["a", "a"]


def test_every_pair_has_a_node_of_its_own_where_they_do_not_all_fit_on_one() -> None:
    assert seat(nodes(2, 2), ["prefill", "prefill", "decode", "decode"]) == ["a", "b", "a", "b"]


def test_decodes_follow_the_prefill_that_they_take_from() -> None:
    assert seat(nodes(4, 4), ["prefill", "decode", "decode", "decode"]) == ["a"] * 4


def test_partner_goes_elsewhere_where_its_node_is_full() -> None:
    assert seat(nodes(1, 1), ["prefill", "decode"]) == ["a", "b"]


def test_packed_mixed_instances_fill_a_node_first() -> None:
    assert seat(nodes(3, 3), ["mixed"] * 4, "pack") == ["a", "a", "a", "b"]


def test_spread_roles_go_apart() -> None:
    assert seat(nodes(4, 4), ["prefill", "decode"], "spread") == ["a", "b"]


def test_what_fits_nowhere_is_left_to_whoever_makes_room() -> None:
    assert seat(nodes(0, 1), ["mixed", "mixed"]) == ["b", None]
    assert seat(nodes(8), ["mixed"], need=Need(1.0, 1.0)) == [None]


def test_gpus_count_as_cpus_do() -> None:
    assert seat(nodes(8, 8, gpus=1), ["mixed"] * 3, "pack", Need(1.0, 1.0)) == ["a", "b", None]


def test_a_node_with_the_weights_comes_first_among_equals() -> None:
    there = nodes(2, 2, 2)
    assert choose(there, {"a": ["mixed"]}, ["c"], role="mixed", need=ONE_CPU, strategy="auto") == "c"


@pytest.mark.parametrize(
    ("need", "sharers"),
    [(Need(2, 0), 4), (Need(3, 0), 2), (Need(0, 0), 5), (Need(16, 0), 1), (Need(1, 1), 1), (Need(1, 0.5), 2)],
)
def test_how_many_share_memory(need: Need, sharers: int) -> None:
    """On a GPU those that share it, else those that the node has room for; never more than there are to be."""
    assert need.sharers(Node("a", 8.0, 8.0), 5) == sharers


roles = st.lists(st.sampled_from(["prefill", "decode", "mixed"]), max_size=12)
strategies: st.SearchStrategy[Strategy] = st.sampled_from(["auto", "pack", "spread"])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), roles, strategies)
def test_no_node_is_overfilled_and_none_is_passed_over(cpus: list[int], asked: list[str], strategy: Strategy) -> None:
    there = nodes(*map(float, cpus))
    found = seat(there, asked, strategy)
    for node in there:
        assert found.count(node.id) <= node.cpus
    assert found.count(None) == max(0, len(asked) - sum(cpus))
