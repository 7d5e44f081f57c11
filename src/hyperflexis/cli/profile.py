"""`hyperflexis profile`: measures an engine over a grid of steps and fits its latency profile.

Knows how the result is shown and where it goes; what is measured and how is the adapter's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hyperflexis import __version__
from hyperflexis.adapters.fitted import KINDS, Error, Fitted
from hyperflexis.adapters.native.calibration import Trial
from hyperflexis.adapters.native.host import StartError as EngineStartError
from hyperflexis.adapters.native.messages import Load
from hyperflexis.adapters.native.profiling import FULL, QUICK, Engine, Grid, Limits, Measured, load_engine, measure
from hyperflexis.cli.checkpoint import model_directory
from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.cli.profile_file import (
    SAMPLES_MAX,
    ProfileFile,
    check_writable,
    latency_fields,
    text_of,
    write,
)

GRID_NAMES = tuple(field.name for field in fields(Grid))
VALUE_MAX = 10_000_000
SPREAD_MAX = 0.2
"""A machine on which the same step varies more is too busy to be measured."""
LEAST = {"prior_tokens": 0, "context_tokens": 2}
"""Of the quantities that begin elsewhere than at 1. A context of one token is a prompt."""


def run(deployment: Deployment, out: Path | None = None, *, is_quick: bool = False, grid: Sequence[str] = ()) -> int:
    """Measure, show, and write to `out` where given; returns the exit code.

    Raises:
        OperatorError: the grid, the model or the file's place is no good.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    chosen = parse_grid(grid, QUICK if is_quick else FULL)
    if out is not None:
        check_writable(out)
    engine = _engine(deployment)
    trials = _trials(chosen, deployment, engine)
    measured = _measure(engine, trials, deployment.engine.block_tokens, chosen.rounds)
    fitted = Fitted.of(measured.samples)
    source = source_of(engine, deployment.threads, datetime.now(UTC).date())
    for line in report(source, trials, fitted, measured.spread):
        typer.echo(line)
    if measured.spread > SPREAD_MAX:
        words = f"one and the same step varied by {measured.spread:.0%}: the profile is no better than that"
        typer.echo(f"warning: {words}\n\nhint: measure again while the machine does nothing else", err=True)
    if out is not None:
        write(out, text_of(_profile(deployment, engine, fitted, source)))
        typer.echo(f"\nwritten to {out}", err=True)
    return 0


def parse_grid(words: Sequence[str], base: Grid) -> Grid:
    """Change a grid by words such as `decode_seqs=1,8,64`.

    Raises:
        OperatorError: a word is no such thing; says what it should be.
    """
    changes: dict[str, Any] = {}
    for word in words:
        name, _, numbers = word.partition("=")
        if name not in GRID_NAMES:
            raise OperatorError(f"bad value for --grid: {word!r} should be NAME=N,N,… of {', '.join(GRID_NAMES)}")
        changes[name] = _numbers(word, numbers, LEAST.get(name, 1))
    if "rounds" in changes:
        (changes["rounds"], *more) = changes["rounds"]
        if more:
            raise OperatorError("bad value for --grid: rounds is one number")
    return replace(base, **changes)


def _numbers(word: str, numbers: str, least: int) -> tuple[int, ...]:
    try:
        values = tuple(sorted({int(number) for number in numbers.split(",")}))
    except ValueError:
        values = ()
    if not values or values[0] < least or values[-1] > VALUE_MAX:
        raise OperatorError(f"bad value for --grid: {word!r} should have whole numbers from {least} to {VALUE_MAX}")
    return values


def _engine(deployment: Deployment) -> Engine:
    order = Load(
        directory=str(model_directory(deployment)),
        device=deployment.device,
        dtype=deployment.dtype,
        block_tokens=deployment.engine.block_tokens,
        kv_bytes=deployment.kv_cache_bytes,
        instances=deployment.instances_total,
    )
    try:
        return load_engine(order, deployment.threads)
    except EngineStartError as error:
        raise StartError(str(error), error.hint or None) from error


def _trials(grid: Grid, deployment: Deployment, engine: Engine) -> list[Trial]:
    limits = Limits(
        blocks=engine.loaded.blocks,
        block_tokens=deployment.engine.block_tokens,
        context_tokens_max=engine.loaded.context_tokens_max,
        seqs_max=deployment.engine.seqs_max,
        prefill_tokens_max=deployment.engine.prefill_tokens_max,
    )
    trials = [trial for trial in grid.trials() if limits.allow(trial)]
    kinds = {trial.shape.kind for trial in trials}
    if missing := [kind for kind in ("prefill", "decode") if kind not in kinds]:
        raise OperatorError(
            f"no {' and no '.join(missing)} step of the grid fits into an instance "
            f"({limits.blocks * limits.block_tokens} tokens of KV cache, contexts of {limits.context_tokens_max})",
            "choose smaller numbers with --grid",
        )
    if len(trials) > SAMPLES_MAX:
        raise OperatorError(f"the grid has {len(trials)} steps, more than {SAMPLES_MAX}", "give --grid fewer numbers")
    return trials


def _measure(engine: Engine, trials: Sequence[Trial], block_tokens: int, rounds: int) -> Measured:
    console = Console(stderr=True)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(trials) * rounds)
        return measure(engine.runner, trials, block_tokens, rounds, on_trial=lambda: progress.advance(task))


def source_of(engine: Engine, threads: int, today: date) -> str:
    """Where the numbers come from, in one line."""
    loaded = engine.loaded
    where = f"{engine.hardware}, {threads} CPU thread{'s' if threads > 1 else ''}"
    torch_version = f"torch {engine.torch_version}"
    return f"measured by hyperflexis profile {__version__}, {torch_version}, {where}, {loaded.dtype}, {today}"


def _profile(deployment: Deployment, engine: Engine, fitted: Fitted, source: str) -> ProfileFile:
    errors = {kind: fitted.error(held_out=False, kind=kind) for kind in KINDS}
    errors["held_out"] = fitted.error(held_out=True)
    return ProfileFile(
        name=f"{deployment.public_name}/{engine.loaded.device}/{engine.loaded.dtype}",
        latency=latency_fields(fitted.model),
        kv_tokens=engine.loaded.blocks * deployment.engine.block_tokens,
        kv_token_bytes=engine.runner.pool.bytes_per_block // deployment.engine.block_tokens,
        source=source,
        mape={name: round(error.mape, 6) for name, error in errors.items() if error is not None},
        samples=[(shape, float(f"{actual_s:.7g}")) for shape, actual_s in fitted.samples],
    )


# What people read.


def report(source: str, trials: Sequence[Trial], fitted: Fitted, spread: float) -> Iterator[str]:
    """Every step, measured and predicted; the coefficients; the errors."""
    yield from _table_of_steps(trials, fitted)
    yield ""
    for name, value in latency_fields(fitted.model).items():
        yield f"{name:<17} {value:.4g}"
    yield ""
    yield from _table_of_errors(fitted)
    yield f"{'same step again':<14} {spread:>12.1%} between quartiles"
    yield ""
    yield source


def _table_of_steps(trials: Sequence[Trial], fitted: Fitted) -> Iterator[str]:
    yield f"{'step':<40} {'measured_ms':>11} {'predicted_ms':>12} {'error':>8}"
    for trial, (shape, actual_s), is_held_out in zip(trials, fitted.samples, fitted.is_held_out, strict=True):
        predicted_s = fitted.model.step_s(shape)
        row = (
            f"{_words(trial):<40} {actual_s * 1e3:>11.3f} {predicted_s * 1e3:>12.3f} {predicted_s / actual_s - 1:>8.1%}"
        )
        yield f"{row}  held out" if is_held_out else row


def _words(trial: Trial) -> str:
    parts = []
    if trial.chunk_seqs:
        times = f"{trial.chunk_seqs} x " if trial.chunk_seqs > 1 else ""
        after = f" after {trial.prior_tokens}" if trial.prior_tokens else ""
        parts.append(f"prefill {times}{trial.chunk_tokens}{after}")
    if trial.decode_seqs:
        parts.append(f"decode {trial.decode_seqs} at {trial.context_tokens}")
    return ", ".join(parts)


def _table_of_errors(fitted: Fitted) -> Iterator[str]:
    names = (f"{'fitted: mape':>13} {'p90':>7} {'steps':>6}", f"{'held out: mape':>15} {'p90':>7} {'steps':>6}")
    yield f"{'relative error':<14} {' '.join(names)}"
    for kind in (*KINDS, None):
        seen, unseen = (fitted.error(held_out=held_out, kind=kind) for held_out in (False, True))
        yield f"{kind or 'all':<14} {_cells(seen, 13)} {_cells(unseen, 15)}"


def _cells(error: Error | None, width: int) -> str:
    if error is None:
        return f"{'-':>{width}} {'-':>7} {0:>6}"
    return f"{error.mape:>{width}.1%} {error.p90:>7.1%} {error.steps:>6}"
