"""vLLM's words for promises."""

from __future__ import annotations

import pytest

from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.goodput import promised, read
from hyperflexis.core.slo import ServiceClass, Slo


def test_words_are_milliseconds() -> None:
    assert read(["ttft:100", "tpot:50", "e2el:790"]) == Slo(0.1, 0.05, 0.79)
    assert read(["e2el:1.5"]) == Slo(e2e_s=0.0015)
    assert read([]) is None


@pytest.mark.parametrize(
    "word", ["ttft", "ttft:", "ttft:x", "ttft:0", "ttft:-1", "ttft:inf", "ttft:nan", "e2e:9", "x:1"]
)
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(OperatorError, match="is no target of --goodput"):
        read(["tpot:50", word])


def test_target_is_given_once() -> None:
    with pytest.raises(OperatorError, match="has ttft twice"):
        read(["ttft:100", "ttft:50"])


def test_promise_is_every_classs() -> None:
    classes = {"chat": ServiceClass("chat", Slo(1.0, 1.0), priority=3)}
    assert promised(classes, None) == classes
    assert promised(classes, Slo(0.1)) == {"chat": ServiceClass("chat", Slo(0.1), priority=3)}
