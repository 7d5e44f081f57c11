"""Journals of what runs: headers made from it, control planes made from headers, and what writes while it runs."""

from __future__ import annotations

import contextlib
import platform
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from hyperflexis import __version__
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.slo import ServiceClass
from hyperflexis.journal.entries import JournalError, schema
from hyperflexis.journal.header import Header
from hyperflexis.journal.parts import Parts
from hyperflexis.journal.recorder import LiveRecorder, Recorder
from hyperflexis.policies import create

UNBOUNDED = 1 << 60
"""A simulation's journal is kept whole."""


def header(
    spelled: str,
    prefill_tokens_max: int,
    control: ControlPlane,
    classes: Iterable[ServiceClass],
    *,
    wall_s: float | None = None,
    origin_s: float = 0.0,
    seed: int | None = None,
    max_tokens: int | None = None,
) -> Header:
    """Of a run that is about to begin; `spelled` is the policy's name with all its tuning."""
    return Header(
        hyperflexis=__version__,
        schema=schema(),
        run=secrets.token_hex(8),
        is_simulated=wall_s is None,
        wall_s=wall_s,
        origin_s=origin_s,
        policy=spelled,
        prefill_tokens_max=prefill_tokens_max,
        rules=control.policy.rules,
        role_rules=dict(control.policy.role_rules),
        fleet=control.sizing.fleet,
        requests_max=control.admission.requests_max,
        classes=list(classes),
        seed=seed,
        max_tokens=max_tokens,
        made_with={"python": platform.python_version(), "numpy": version("numpy")},
    )


def control_plane(header: Header) -> ControlPlane:
    """A control plane that was never fed, like the one whose journal this heads.

    Raises:
        OperatorError: this version has no such policy.
    """
    try:
        policy = create(header.policy, header.prefill_tokens_max)
    except ValueError as error:
        raise OperatorError(
            f"hyperflexis {header.hyperflexis} wrote the journal, this is {__version__}: {error}"
        ) from None
    policy = replace(policy, rules=header.rules, role_rules=header.role_rules)
    return ControlPlane(policy, header.fleet, header.requests_max)


@contextlib.contextmanager
def recording(folder: Path, header: Header, bytes_max: int = UNBOUNDED) -> Iterator[Recorder]:
    """Write a journal while the block runs.

    Raises:
        StartError: it cannot be written.
    """
    try:
        with contextlib.closing(Recorder(Parts(folder, bytes_max), header)) as recorder:
            yield recorder
    except JournalError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"{folder}: the journal cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def recording_live(folder: Path, header: Header, bytes_max: int) -> Iterator[LiveRecorder]:
    """The same of a server, which no disk holds up.

    Raises:
        StartError: it cannot be written at all.
    """
    try:
        parts = Parts(folder, bytes_max)
    except JournalError as error:
        raise StartError(str(error)) from None
    with contextlib.closing(LiveRecorder(Recorder(parts, header))) as recorder:
        yield recorder
