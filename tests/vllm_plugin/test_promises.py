"""Promises as vLLM carries them."""

from __future__ import annotations

import pytest

from hyperflexis.core.slo import Slo
from hyperflexis.vllm_plugin.promises import promised
from hyperflexis.wire.promises import DEADLINE, TPOT, TTFT


def test_nothing_is_promised_by_other_arguments() -> None:
    assert promised(None) == promised({}) == promised({"kv_transfer_params": {"a": 1}}) == Slo()


def test_numbers_come_as_numbers_or_text() -> None:
    assert promised({TTFT: "0.5", TPOT: 0.05, DEADLINE: 3}) == Slo(0.5, 0.05, 3.0)


@pytest.mark.parametrize("value", [0, -1, "soon", "nan", float("inf"), [1]])
def test_bad_number_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=f"{TPOT} must be a positive number"):
        promised({TPOT: value})
