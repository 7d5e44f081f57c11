"""Donors by address: what an operator writes, and what the engine is told of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hyperflexis.adapters.native.messages import WeightsSpec
from hyperflexis.cli import sources
from hyperflexis.cli.donors import weights_spec
from hyperflexis.cli.errors import OperatorError
from hyperflexis.transfer.weights.offer import read_offer

SECRET = b"0123456789abcdef0123"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_bytes(SECRET + b"\n")
    return file


def spec(**keys: object) -> WeightsSpec:
    sets = [f"weights.{name}={value}" for name, value in keys.items()]
    return weights_spec(sources.load(sets=sets).deployment)


def test_nothing_is_lent_or_asked_for_by_default() -> None:
    assert spec() == WeightsSpec()


def test_donors_are_asked_in_their_order(token_file: Path) -> None:
    made = spec(donors="one:9000, [::1]:9001", token_file=token_file)
    offers = [read_offer(each) for each in made.candidates]
    assert [each.tcp for each in offers] == [("one", 9000), ("::1", 9001)]
    assert {each.secret for each in offers} == {SECRET}
    assert not made.lends


def test_lending(token_file: Path) -> None:
    made = spec(lend_on="127.0.0.1:9000", token_file=token_file, lend_gb_per_s=0.5)
    assert (made.lends, made.host, made.port, made.secret) == (True, "127.0.0.1", 9000, SECRET)
    assert made.bytes_per_s == 5e8
    assert math.isinf(spec(lend_on="127.0.0.1:9000", token_file=token_file).bytes_per_s)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"donors": "one"}, "should be HOST:PORT"),
        ({"donors": "one:0"}, "should be HOST:PORT"),
        ({"donors": "one:9000,:1"}, "should be HOST:PORT"),
        ({"lend_on": "one:1,two:2"}, "should be one HOST:PORT"),
        ({"donors": "one:9000"}, "without a secret"),
        ({"lend_on": "one:9000"}, "without a secret"),
        ({"lend_gb_per_s": "0"}, "greater than 0"),
        ({"donors": "one:9000", "token_file": "/no/such/file"}, "cannot be read: No such file"),
    ],
)
def test_slips_are_told(keys: dict[str, str], words: str) -> None:
    with pytest.raises(OperatorError) as caught:
        spec(**keys)
    assert words in caught.value.message


def test_short_secret_is_refused(token_file: Path) -> None:
    token_file.write_bytes(b"short")
    with pytest.raises(OperatorError, match="fewer than 16 bytes") as caught:
        spec(donors="one:9000", token_file=token_file)
    assert "urandom" in (caught.value.hint or "")
