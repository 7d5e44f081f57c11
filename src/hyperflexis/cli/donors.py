"""From whom a deployment has its weights and to whom it lends them, in the words of the engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hyperflexis.cli.errors import OperatorError

if TYPE_CHECKING:
    from hyperflexis.adapters.native.messages import WeightsSpec
    from hyperflexis.cli.deployment import Deployment

SECRET_BYTES_MIN = 16


def weights_spec(deployment: Deployment) -> WeightsSpec:
    """What a launcher is told.

    Raises:
        OperatorError: there is no file with the secret, it cannot be read, or it holds too little.
    """
    from hyperflexis.adapters.native.messages import WeightsSpec
    from hyperflexis.transfer.weights.offer import offer_at

    section = deployment.weights
    if not (section.donors or section.lend_on):
        return WeightsSpec()
    if section.token_file is None:
        raise OperatorError("weights are asked for or lent without a secret", hint="set weights.token_file")
    secret = _secret(Path(section.token_file).expanduser())
    donors = [_split(each) for each in (section.donors or "").split(",") if each]
    host, port = _split(section.lend_on) if section.lend_on else (None, 0)
    return WeightsSpec(
        candidates=[offer_at(*donor, secret).to_bytes() for donor in donors],
        lends=section.lend_on is not None,
        host=host,
        port=port,
        secret=secret,
        bytes_per_s=math.inf if section.lend_gb_per_s is None else section.lend_gb_per_s * 1e9,
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.strip().rpartition(":")
    return host.strip("[]"), int(port)


def _secret(file: Path) -> bytes:
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise OperatorError(f"weights.token_file {str(file)!r} cannot be read: {error.strerror}") from error
    if len(secret) < SECRET_BYTES_MIN:
        hint = f"make one: head -c 32 /dev/urandom | base64 > {file}"
        raise OperatorError(f"weights.token_file {str(file)!r} holds fewer than {SECRET_BYTES_MIN} bytes", hint=hint)
    return secret
