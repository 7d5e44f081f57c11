"""A latency profile as a JSON file: what `profile` writes, `serve` starts its instances from, and the simulator reads.

The simulator reads the coefficients by itself; this reads the measured steps.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import msgspec

from hyperflexis.cli.errors import OperatorError
from hyperflexis.core.latency import LatencyModel, StepShape, fit

SAMPLES_MAX = 1000
"""What one message to a new instance has room for."""

WireSample = tuple[tuple[int, int, int, int], float]


class ProfileFile(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of the file; those it may have beyond them are nobody's business here."""

    name: str
    latency: dict[str, float]
    """Fields of `core.latency.LatencyModel`."""
    kv_tokens: int
    """What one instance holds."""
    kv_token_bytes: int | None
    """What each of them takes, and what moving it moves; None: not known."""
    source: str
    mape: dict[str, float]
    """Mean relative error by kind of step on what was fitted, and of all on what was held out."""
    samples: list[WireSample]
    """(prefill tokens, prefill pairs, decode seqs, context tokens), seconds."""


class _Samples(msgspec.Struct):
    samples: list[WireSample] = []


def text_of(profile: ProfileFile) -> str:
    """The file's content: one line per sample, for there are many."""
    *fields, samples = profile.__struct_fields__
    assert samples == "samples"
    head = msgspec.json.format(msgspec.json.encode({name: getattr(profile, name) for name in fields}), indent=2)
    rows = ",\n".join(f"    {msgspec.json.encode(sample).decode()}" for sample in profile.samples)
    opened = head.decode().removesuffix("\n}")
    return f'{opened},\n  "samples": [\n{rows}\n  ]\n}}\n'


def latency_fields(model: LatencyModel) -> dict[str, float]:
    """The coefficients by name, to seven digits: more would pretend."""
    return {name: float(f"{value:.7g}") for name, value in asdict(model).items()}


def read_samples(path: Path) -> list[WireSample]:
    """Read the measured steps of a file.

    Raises:
        OperatorError: it cannot be read, or holds nothing that an instance could start from.
    """
    hint = "make one with `hyperflexis profile --out FILE`"
    try:
        samples = msgspec.json.decode(path.read_bytes(), type=_Samples).samples
        if not samples:
            raise ValueError("it holds no samples")
        if len(samples) > SAMPLES_MAX:
            raise ValueError(f"it holds {len(samples)} samples, more than {SAMPLES_MAX}")
        if any(min(shape) < 0 or not any(shape) for shape, _ in samples):
            raise ValueError("a step's quantities should be whole numbers from 0, and not all of them 0")
        fit([(StepShape(*shape), actual_s) for shape, actual_s in samples])
    except OSError as error:
        raise OperatorError(f"cannot read the profile {path}: {error.strerror}", hint) from error
    except (msgspec.DecodeError, ValueError) as error:
        raise OperatorError(f"{path} is no profile: {error}", hint) from error
    return samples


def check_writable(path: Path) -> None:
    """Find out before the work whether its result could be written.

    Raises:
        OperatorError: it could not.
    """
    parent = path.parent
    if path.is_dir():
        raise OperatorError(f"cannot write {path}: it is a directory", "give a file, such as profile.json")
    if not parent.is_dir():
        raise OperatorError(f"cannot write {path}: there is no directory {parent}", "create it, or choose another")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise OperatorError(f"cannot write {path}: permission denied", "choose another place")


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; what is no file, such as a pipe, is written to as it is.

    Raises:
        OperatorError: it cannot be written.
    """
    target = path.resolve()
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
        else:
            _replace(target, text)
    except OSError as error:
        raise OperatorError(f"cannot write {path}: {error.strerror}") from error


def _replace(target: Path, text: str) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
