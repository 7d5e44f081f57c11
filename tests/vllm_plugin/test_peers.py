"""Who has weights and who gets them, in the words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperflexis.vllm_plugin.peers import peers

SECRET = "a token that both were given"


@pytest.fixture
def token(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    return str(file)


def test_without_words_there_is_nobody_and_vllm_has_the_rest() -> None:
    assert peers({"num_threads": 4}) == (([], None, b""), {"num_threads": 4})


def test_addresses_are_read(token: str) -> None:
    who, rest = peers({"donors": "a.b:1, [::1]:2", "lend_on": "0.0.0.0:3", "token_file": token, "num_threads": 4})
    assert [offer.tcp for offer in who.offers] == [("a.b", 1), ("::1", 2)]
    assert (who.lend_on, who.secret, rest) == (("0.0.0.0", 3), SECRET.encode(), {"num_threads": 4})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"donors": "a.b"}, "donors should be HOST:PORT, not 'a.b'"),
        ({"lend_on": "a.b:99999"}, "lend_on should be HOST:PORT"),
        ({"lend_on": "a.b:1", "token_file": None}, "without a secret; set token_file"),
        ({"donors": "a.b:1", "token_file": "/nowhere/at/all"}, "No such file"),
    ],
)
def test_mistake_is_told(words: dict[str, Any], message: str, token: str) -> None:
    with pytest.raises(ValueError, match=message):
        peers({"token_file": token} | words)


def test_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("short")
    with pytest.raises(ValueError, match="fewer than 16 bytes"):
        peers({"donors": "a.b:1", "token_file": str(tmp_path / "token")})
