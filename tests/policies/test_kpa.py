"""Knative's concurrency: stable and panic windows."""

from __future__ import annotations

from helpers.builders import request
from policies.sizes import Asked


def crowd(asked: Asked, requests: int) -> None:
    asked.cluster.requests = {number: request(number) for number in range(requests)}


def test_as_many_as_bring_concurrency_to_the_target() -> None:
    asked = Asked("kpa:target=16", instances=3)
    crowd(asked, 64)
    assert asked.at(0.0) == 4


def test_it_looks_every_two_seconds() -> None:
    asked = Asked("kpa:target=16", instances=3)
    assert asked.at(0.0) == 1
    crowd(asked, 64)
    assert asked.at(0.5, 1.0, 1.5) == 1
    assert asked.at(2.0) > 1


def test_a_panic_takes_nothing_away_for_a_stable_window() -> None:
    asked = Asked("kpa:target=16", instances=2)
    crowd(asked, 200)
    assert asked.at(0.0) == 13
    crowd(asked, 0)
    assert asked.at(*range(10, 60, 2)) == 13
    assert asked.at(*range(62, 140, 2)) == 1


def test_no_more_than_half_goes_at_once() -> None:
    asked = Asked("kpa:target=16,stable_s=4", instances=9)
    assert asked.at(0.0) == 4
