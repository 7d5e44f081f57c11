"""Which steps of an instance were not told."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hyperflexis.adapters.contract import Adapter
from hyperflexis.core.instance import Role
from hyperflexis.runtime.registry import Member
from hyperflexis.wire.messages import StepReport


def report(tokens: int, steps: int) -> StepReport:
    """Of an instance at which three sequences decode."""
    fields: dict[str, Any] = dict.fromkeys(StepReport.__struct_fields__[: -len(StepReport.__struct_defaults__)], 0)
    ids = list(range(tokens))
    return StepReport(**fields | {"decode_seqs": 3, "requests": ids, "tokens": ids, "steps": steps})


@pytest.mark.parametrize(
    ("reports", "untold"),
    [
        ([report(3, 0), report(3, 0)], 2),
        ([report(3, 0), report(3, 2)], 0),
        ([report(3, 1), report(3, 0)], 1),
        ([report(1, 0), report(2, 0)], 0),
        ([report(0, 0)], 0),
    ],
)
def test_steps_that_were_not_told_are_counted_as_far_as_they_are_whole(reports: list[StepReport], untold: int) -> None:
    member = Member(cast("Adapter", None), Role.MIXED)
    for each in reports:
        member.note_steps(each)
    assert member.untold_steps == untold
