"""However many values there are, there are no more labels than were allowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.telemetry.labels import OTHER, Capped


@given(st.lists(st.text(), max_size=60), st.integers(0, 10))
def test_labels_are_bounded_and_stay(values: list[str], most: int) -> None:
    label = Capped(most)
    first = {value: label(value) for value in values}
    assert len(set(first.values()) - {OTHER}) <= most
    for value, told in first.items():
        assert told in (value, OTHER)
        assert label(value) == told


def test_those_that_are_known_come_first() -> None:
    label = Capped(2, known=["chat", "code"])
    assert [label(value) for value in ("batch", "code", "chat")] == [OTHER, "code", "chat"]
