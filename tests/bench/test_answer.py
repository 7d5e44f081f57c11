"""Streams are read alike in whatever pieces they come, and every way to end is told from the others."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scripted_server import DONE, event, token
from hyperflexis.bench.answer import Answer, End, Stream

USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5})
WHOLE = token("a") + token("b") + token("", "length") + USAGE + DONE


def answer() -> Answer:
    return Answer("chat", 1.0, 7, 5)


def read(*pieces: bytes) -> Answer:
    """Pieces come a second apart, the first at 2 s."""
    found = answer()
    stream = Stream(found)
    for second, piece in enumerate(pieces, 2):
        stream.feed(piece, float(second))
    stream.close()
    return found


def test_whole_answer() -> None:
    found = read(token("a"), token("b"), token("", "length") + USAGE + DONE)
    assert found.end is End.DONE
    assert (found.first_s, found.last_s, found.tokens, found.prompt_tokens_counted) == (2.0, 4.0, 5, 7)
    assert (found.ttft_s, found.tpot_s, found.e2e_s) == (1.0, 0.5, 3.0)


def test_events_are_counted_where_usage_is_not_told() -> None:
    found = read(
        token("a"), token("b"), event(choices=[{"text": "cd", "token_ids": [1, 2], "finish_reason": "length"}])
    )
    assert (found.end, found.tokens, found.tpot_s) == (End.DONE, 4, pytest.approx(2 / 3))


def test_chat_begins_with_its_first_text() -> None:
    def delta(**members: object) -> bytes:
        return event(choices=[{"delta": members, "finish_reason": None}])

    end = event(choices=[{"delta": {}, "finish_reason": "stop"}])
    found = read(delta(role="assistant", content=""), delta(reasoning_content="hm"), delta(content="yes"), end + DONE)
    assert (found.first_s, found.last_s, found.tokens) == (3.0, 5.0, 2)


def test_token_without_text_is_one_too_but_in_the_last_event() -> None:
    found = read(token(""), token("a"), token("", "length") + DONE)
    assert (found.first_s, found.tokens) == (2.0, 2)


def test_one_token_has_no_pace() -> None:
    assert math.isnan(read(token("a", "length") + DONE).tpot_s)


@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=8), newline=st.sampled_from([b"\n", b"\r\n"]))
def test_pieces_make_no_difference(cuts: list[int], newline: bytes) -> None:
    data = (b": a comment\n\nevent: x\n" + WHOLE).replace(b"\n", newline)
    found = answer()
    stream = Stream(found)
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        stream.feed(data[start:end], 2.0)
    stream.close()
    assert (found.end, found.tokens, found.first_s, found.last_s) == (End.DONE, 5, 2.0, 2.0)


@given(st.binary(max_size=200))
def test_any_bytes_end_somehow(data: bytes) -> None:
    for found in (read(data), read(b"data: " + data + b"\n"), read(token("a"), data)):
        assert found.end in End


@pytest.mark.parametrize(
    ("pieces", "end", "why"),
    [
        ((), End.FAILED, "no end"),
        ((token("a"),), End.CUT, "no end"),
        ((token("a"), DONE), End.CUT, "no end"),
        ((token("a"), token("", "abort"), DONE), End.CUT, "abort"),
        ((event(error={"code": 503, "message": "full"}), DONE), End.REFUSED, "503"),
        ((event(error={"code": 400, "message": "bad"}), DONE), End.FAILED, "400"),
        ((event(error="broken"), DONE), End.FAILED, "error"),
        ((token("a"), event(error={"code": 503, "message": "gone"}), DONE), End.CUT, "503"),
        ((token("a"), b"data: {\n\n"), End.CUT, "not understood"),
        ((token("a", "length"), DONE, event(error="late")), End.DONE, ""),
    ],
)
def test_ends(pieces: tuple[bytes, ...], end: End, why: str) -> None:
    found = read(*pieces)
    assert (found.end, found.why) == (end, why)


@pytest.mark.parametrize(
    ("status", "after", "end", "seconds"),
    [
        (429, "2.5", End.REFUSED, 2.5),
        (503, None, End.REFUSED, None),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", End.REFUSED, None),
        (429, "-1", End.REFUSED, None),
        (500, "3", End.FAILED, 3.0),
    ],
)
def test_statuses(status: int, after: str | None, end: End, seconds: float | None) -> None:
    found = answer()
    found.refuse(status, "no\nroom " + "x" * 999, after)
    assert (found.end, found.why, found.retry_after_s) == (end, str(status), seconds)
    assert len(found.said) == 200


def test_verdict_of_the_server_is_kept() -> None:
    told = event(choices=[], hyperflexis={"attained": False, "class": "chat"})
    assert read(token("a", "length") + told + DONE).has_kept is False
    assert read(token("a", "length") + DONE).has_kept is None
