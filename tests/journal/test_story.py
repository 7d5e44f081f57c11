"""What became of a request is told in order, with the numbers that decided it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperflexis.core.commands import Cancel, Conclude, Dispatch, Hold, Migrate, Reason, Reject, Stay, Why
from hyperflexis.core.events import (
    Arrival,
    InstanceLost,
    InstanceReported,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    TransferFailed,
)
from hyperflexis.core.latency import StepShape
from hyperflexis.core.slo import Slo, Timeline, Verdict
from hyperflexis.journal.entries import Entry
from hyperflexis.journal.story import kept, seconds, tell
from journal.recorded import D, M, P, World, only_run, play

SHAPE = StepShape(10, 100, 1, 100)
SLO = Slo(ttft_s=0.5, tpot_s=0.05)


def verdict(tokens: int, first_s: float, last_s: float) -> Verdict:
    return Verdict("chat", 1, SLO, Timeline(10.0, 10.1, 10.2, first_s, last_s, tokens, 0.41, None), "i5")


ARRIVED = RequestArrived(7, 412, 200, SLO, 1, "chat")
SENT = Dispatch(7, 3, Reason(Why.FEASIBLE, (("ttft_s", 0.41), ("peak_step_s", 0.02))), 180)
LIFE = [
    Entry(10.0, ARRIVED, [Hold(7, Reason(Why.NO_INSTANCE))], "cmpl-abc"),
    Entry(10.084, InstanceLost(9, "x"), [SENT]),
    Entry(10.3, InstanceReported(3, SHAPE, 0.05, started=[7])),
    Entry(10.395, InstanceReported(3, SHAPE, 0.05, began=[7])),
    Entry(11.0, InstanceReported(3, SHAPE, 0.01, preempted=[7])),
    Entry(11.1, RequestArrived(8, 1, 1, Slo()), [Migrate(7, 3, 5, 420, False, 1, 2, Reason(Why.RELIEVES))]),
    Entry(11.2, TransferFailed(7, 5, "torn"), [Stay(7, 3, Reason(Why.MOVE_FAILED))]),
    Entry(11.3, InstanceReported(5, SHAPE, 0.01, arrived=[Arrival(7, 3, 420, 9, 400, 0.012)])),
    Entry(11.4, InstanceLost(5, "killed"), [Hold(7, Reason(Why.INSTANCE_LOST)), Dispatch(7, 3, Reason(Why.IN_TURN))]),
    Entry(14.0, RequestFinished(3, 7, 200), [Conclude(7, verdict(200, 10.395, 14.0), Reason(Why.ENDED))]),
]


def test_whole_life() -> None:
    story = tell(7, LIFE)
    assert (story.name, story.arrived_s, story.ending) == ("cmpl-abc", 10.0, "done: 200 tokens after 4.00 s, kept")
    assert [(each.at_s, each.text) for each in story.chapters] == [
        (
            10.0,
            "arrived: 412 prompt tokens, at most 200 more; class chat, priority 1, promised ttft 500 ms, tpot 50 ms",
        ),
        (10.0, "held: no instance is ready"),
        (10.084, "i9 was lost: x"),
        (10.084, "was held 84 ms: no instance is ready"),
        (
            10.084,
            "sent to i3: fits every promise there (peak step 20 ms); predicted first token after 410 ms of 500 ms "
            "promised; 180 tokens expected",
        ),
        (10.25, "its prefill began at i3, where it had waited 166 ms"),
        (10.395, "first token after 395 ms (predicted 410 ms, promised 500 ms)"),
        (11.0, "lost its blocks at i3, which others needed; its KV is computed again"),
        (
            11.1,
            "to move i3 → i5 while it runs (420 tokens of KV): its instance is too slow for what it promised",
        ),
        (11.2, "could not be moved to i5: torn"),
        (11.2, "stays at i3: it could not be moved"),
        (11.3, "moved i3 → i5 with 9 tokens; 400 tokens of KV copied in 12 ms"),
        (11.4, "i5 was lost: killed"),
        (11.4, "held: its instance died"),
        (11.4, "was held 0 ms: its instance died"),
        (11.4, "sent again to i3: next in turn"),
        (14.0, "done: 200 tokens after 4.00 s, kept"),
    ]


def test_refusal_says_why_and_when_to_try_again() -> None:
    refused = Reject(7, Reason(Why.TOO_LATE, (("ttft_s", 0.9),)), 0.4)
    story = tell(7, [Entry(10.0, ARRIVED, [refused])])
    assert story.ending == "refused after 0 ms: its promises could not be kept (ttft 900 ms)"
    assert story.chapters[-1].text.endswith("; worth trying again after 400 ms")


def test_client_that_left() -> None:
    left = [Cancel(7, 3, Reason(Why.CLIENT_LEFT)), Conclude(7, None, Reason(Why.CLIENT_LEFT))]
    story = tell(7, [LIFE[0], Entry(10.2, RequestCancelled(7, 0), left)])
    assert [each.text for each in story.chapters[-3:]] == [
        "its client left with 0 tokens",
        "i3 is told to stop: the client cancelled",
        "ended without a token: the client cancelled",
    ]


def test_beginning_that_is_gone() -> None:
    story = tell(7, LIFE[-1:])
    assert (story.arrived_s, story.ending) == (None, "done: 200 tokens, kept")


@pytest.mark.parametrize(
    ("first_s", "last_s", "words"),
    [
        (10.395, 14.0, "kept"),
        (10.6, 14.0, "broken: ttft 600 ms of 500 ms"),
        (10.395, 30.0, "broken: tpot 98.52 ms of 50 ms"),
    ],
)
def test_promises_that_were_broken_are_named(first_s: float, last_s: float, words: str) -> None:
    assert kept(verdict(200, first_s, last_s)) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "0 ms"), (1e-5, "10 µs"), (0.0841, "84.1 ms"), (0.5, "500 ms"), (1.254, "1.25 s")]
)
def test_durations(value: float, words: str) -> None:
    assert seconds(value) == words


def test_every_request_of_a_stormy_run_has_a_story_with_an_end(tmp_path: Path) -> None:
    play(World((P, D, M), moving="planned", requests=80, losses_s=(0.8, 1.2), drains_s=(1.5,)), tmp_path)
    journal = only_run(tmp_path)
    for number in range(80):
        story = tell(number, journal.of_request(number))
        assert story.arrived_s is not None
        assert story.chapters[0].text.startswith("arrived: ")
        assert story.ending.startswith(("done: ", "refused after "))
        assert [each.at_s for each in story.chapters] == sorted(each.at_s for each in story.chapters)
