"""Every decision that is kept can be said."""

from __future__ import annotations

import pytest

from hyperflexis.core.commands import AssignRole, Conclude, Dispatch, Launch, Reason, Resize, Why
from hyperflexis.core.instance import Role, StartSource
from hyperflexis.core.step import StepRules
from hyperflexis.view import decisions, sentences, stories
from hyperflexis.view.sentences import sentence


def test_there_is_a_sentence_for_whatever_is_kept() -> None:
    kept = {*decisions._USUAL, *decisions._NOTABLE, *stories._OF_INSTANCES, Conclude}
    assert kept <= set(sentences._SENTENCES)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (
            Dispatch(1, 3, Reason(Why.FEASIBLE, (("peak_step_s", 0.02), ("ttft_s", 0.41)))),
            "sent to i3: fits every promise there (peak step 20 ms); first token predicted after 410 ms",
        ),
        (
            Launch(2, Role.DECODE, Reason(Why.DEMAND), StartSource.PEER, 1),
            "starts as decode with a peer's weights (i1): what is asked for, and what may be asked for before more "
            "could help",
        ),
        (
            Resize(Role.MIXED, 1, 3, Reason(Why.BACKLOG), is_proposal=True),
            "the fleet should have 3 mixed (has 1): work waits that the present instances would do too late",
        ),
        (
            AssignRole(4, Role.PREFILL, StepRules(), 2, Reason(Why.BALANCES)),
            "is to be prefill: more prefill is needed, or less",
        ),
        (Conclude(1, None, Reason(Why.FAILED)), "ended: its instance could not compute it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sentences(what: object, said: str) -> None:
    assert sentence(what) == said  # type: ignore[arg-type]
