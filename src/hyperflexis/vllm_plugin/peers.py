"""Who has weights for vLLM and to whom it lends them, as `--model-loader-extra-config` says it.

    donors      "HOST:PORT,HOST:PORT", asked in this order; the disk comes after them
    lend_on     "HOST:PORT" on which these weights are lent to others
    token_file  a file with the secret that they all share

The words are those of the `weights` section of `hyperflexis serve`. What else is there is for vLLM's own loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hyperflexis.transfer.weights.offer import Offer, offer_at

OURS = ("donors", "lend_on", "token_file")
SECRET_BYTES_MIN = 16

Address = tuple[str, int]


class Peers(NamedTuple):
    """Nobody, without `offers` and `lend_on`."""

    offers: list[Offer]
    lend_on: Address | None
    secret: bytes


def peers(extra: Mapping[str, Any]) -> tuple[Peers, dict[str, Any]]:
    """Read ours; return it, and what is left for vLLM.

    Raises:
        ValueError: an address or the secret is no good; says which.
    """
    rest = {name: value for name, value in extra.items() if name not in OURS}
    donors, lend_on = extra.get("donors"), extra.get("lend_on")
    if not donors and not lend_on:
        return Peers([], None, b""), rest
    secret = _secret(extra.get("token_file"))
    addresses = [_address("donors", each) for each in str(donors or "").split(",") if each.strip()]
    offers = [offer_at(*address, secret) for address in addresses]
    return Peers(offers, _address("lend_on", lend_on) if lend_on else None, secret), rest


def _address(key: str, text: Any) -> Address:
    host, colon, port = str(text).strip().rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"model_loader_extra_config: {key} should be HOST:PORT, not {text!r}")
    return host.strip("[]"), int(port)


def _secret(file: Any) -> bytes:
    if not file:
        raise ValueError("model_loader_extra_config: weights are asked for or lent without a secret; set token_file")
    try:
        secret = Path(file).expanduser().read_bytes().strip()
    except OSError as error:
        raise ValueError(f"model_loader_extra_config: token_file {file!r}: {error.strerror}") from error
    if len(secret) < SECRET_BYTES_MIN:
        raise ValueError(f"model_loader_extra_config: token_file {file!r} holds fewer than {SECRET_BYTES_MIN} bytes")
    return secret
