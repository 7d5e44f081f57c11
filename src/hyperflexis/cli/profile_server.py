"""`hyperflexis profile http://…`: fits the latency profile of a running server that it can only ask for completions.

The grid, the fit, the report and the file are those of `profile`; what is measured is `server_probe`'s. Nothing else
should ask the server meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import typer

from hyperflexis import __version__
from hyperflexis.adapters.fitted import KINDS, Fitted
from hyperflexis.adapters.native.calibration import Trial
from hyperflexis.adapters.native.profiling import Grid, Limits
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.cli.profile import SPREAD_MAX, parse_grid, report
from hyperflexis.cli.profile_file import ProfileFile, check_writable, latency_fields, text_of, write
from hyperflexis.cli.server_probe import About, Probe, Timed, probing
from hyperflexis.core.latency import nonnegative_least_squares

FULL = Grid(
    prefill_tokens=(16, 32, 64, 128, 256, 512, 1024, 2048),
    prior_tokens=(0,),
    decode_seqs=(1, 2, 4, 8, 16, 32, 64),
    context_tokens=(32, 128, 512, 2048),
    rounds=5,
)
QUICK = Grid(
    prefill_tokens=(16, 48, 96, 192, 384, 768),
    prior_tokens=(0,),
    decode_seqs=(1, 4, 16),
    context_tokens=(48, 128, 384),
    rounds=3,
)
SEQS_MAX = 1024
"""A server's own bound is found when it is asked for more."""
LEAST_SHARE = 0.1
"""Of what the shortest prompt takes, so much at least is its step, however the rest varies."""
KV_CONTEXTS = 4
"""So many of the longest contexts is what a server holds that does not say."""


class Measured(NamedTuple):
    timed: list[Timed]
    spread: float
    """Between the quartiles of one and the same step, as a share of the median; of all steps, the median."""
    skipped: list[Trial]
    overhead_s: float


def run(url: str, out: Path | None = None, *, is_quick: bool = False, grid: Sequence[str] = ()) -> int:
    """Measure, show, and write to `out` where given; returns the exit code.

    Raises:
        OperatorError: the grid, the address or the file's place is no good, or no server is there.
    """
    chosen = parse_grid(grid, QUICK if is_quick else FULL)
    if chosen.prior_tokens != (0,):
        raise OperatorError("bad value for --grid: what a server has in its KV cache cannot be chosen from outside")
    url = checked(url)
    if out is not None:
        check_writable(out)
    about, measured = asyncio.run(_measure(url, chosen))
    try:
        fitted = Fitted.of([(timed.trial.shape, timed.actual_s) for timed in measured.timed])
    except ValueError as error:
        raise StartError(f"{url} took too few of the steps that it was asked for: {error}") from error
    source = source_of(url, about, measured.overhead_s, datetime.now(UTC).date())
    for line in report(source, [timed.trial for timed in measured.timed], fitted, measured.spread):
        typer.echo(line)
    unseen = fitted.error(held_out=True)
    if unseen is not None:
        typer.echo(f"held out: median error {unseen.median:.1%} of {unseen.steps} steps")
    _warn(measured)
    if out is not None:
        write(out, text_of(_profile(about, fitted, source)))
        typer.echo(f"\nwritten to {out}", err=True)
    return 0


def checked(url: str) -> str:
    """The address without what paths are added to.

    Raises:
        OperatorError: it is none.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.query or parts.fragment:
        raise OperatorError(f"{url!r} is no server's address", "give one such as http://127.0.0.1:8000")
    return url.rstrip("/").removesuffix("/v1")


async def _measure(url: str, grid: Grid) -> tuple[About, Measured]:
    async with probing(url) as probe:
        return probe.about, await measure(probe, grid)


async def measure(probe: Probe, grid: Grid) -> Measured:
    """Time all steps of the grid that the server can take, in rounds, so that what disturbs it disturbs all alike."""
    trials = _trials(grid, probe.about)
    await probe.warm_up()
    seen: dict[int, list[Timed]] = defaultdict(list)
    for _ in range(grid.rounds):
        for index, trial in enumerate(trials):
            if (timed := await probe.time(trial)) is not None:
                seen[index].append(timed)
    return _summed(trials, seen)


def _trials(grid: Grid, about: About) -> list[Trial]:
    kv_tokens = about.kv_tokens or KV_CONTEXTS * about.context_tokens_max
    limits = Limits(
        blocks=kv_tokens,
        block_tokens=1,
        context_tokens_max=about.context_tokens_max // 2,
        seqs_max=SEQS_MAX,
        prefill_tokens_max=about.context_tokens_max - 1,
    )
    # Several prompts side by side cannot be asked for: which of them share a step is the server's choice.
    chosen = [trial for trial in grid.trials() if trial.chunk_seqs <= 1]
    return [trial for trial in chosen if limits.allow(trial) or _is_lone_prompt(trial, about)]


def _is_lone_prompt(trial: Trial, about: About) -> bool:
    """It may be as long as contexts are; answers need room behind it."""
    return not trial.decode_seqs and trial.chunk_tokens < about.context_tokens_max


def _summed(trials: Sequence[Trial], seen: dict[int, list[Timed]]) -> Measured:
    timed, spreads = [], []
    for index in sorted(seen):
        times_s = [each.actual_s for each in seen[index]]
        timed.append(seen[index][0]._replace(actual_s=statistics.median(times_s)))
        if len(times_s) > 1:
            low_s, middle_s, high_s = statistics.quantiles(times_s, n=4, method="inclusive")
            spreads.append((high_s - low_s) / middle_s)
    skipped = [trial for index, trial in enumerate(trials) if index not in seen]
    overhead_s = overhead(timed)
    return Measured(
        [_without(each, overhead_s) for each in timed], statistics.median(spreads or [0.0]), skipped, overhead_s
    )


def overhead(timed: Sequence[Timed]) -> float:
    """What a request takes beside its step: what a prompt without tokens would take longer than a decode.

    HTTP, parsing and the way back: of the profile of a step they are no part.
    """
    prompts = [(each.trial.chunk_tokens, each.actual_s) for each in timed if not each.trial.decode_seqs]
    decodes = [each for each in timed if not each.trial.chunk_tokens]
    if not prompts or not decodes:
        return 0.0
    rows = np.array([(1.0, tokens, tokens**2) for tokens, _ in prompts])
    times_s = np.array([actual_s for _, actual_s in prompts])
    fixed_s = float(nonnegative_least_squares(rows / times_s[:, None], np.ones(len(prompts)))[0])
    return max(0.0, fixed_s - _least(decodes))


def _without(timed: Timed, overhead_s: float) -> Timed:
    """Decodes and what comes between them have none of it."""
    if timed.trial.decode_seqs or not overhead_s:
        return timed
    return timed._replace(actual_s=max(timed.actual_s - overhead_s, timed.actual_s * LEAST_SHARE))


def _least(decodes: Sequence[Timed]) -> float:
    return min(decodes, key=lambda timed: (timed.trial.decode_seqs, timed.trial.context_tokens)).actual_s


def source_of(url: str, about: About, overhead_s: float, today: date) -> str:
    """Where the numbers come from, in one line."""
    what = f"vLLM {about.version}" if about.version else "an unknown server"
    less = f"less {overhead_s * 1e3:.1f} ms per request"
    return f"measured by hyperflexis profile {__version__}, {what} at {url}, over HTTP, {less}, {today}"


def _profile(about: About, fitted: Fitted, source: str) -> ProfileFile:
    errors = {kind: fitted.error(held_out=False, kind=kind) for kind in KINDS}
    errors["held_out"] = fitted.error(held_out=True)
    return ProfileFile(
        name=f"{about.model}/server",
        latency=latency_fields(fitted.model),
        kv_tokens=about.kv_tokens or KV_CONTEXTS * about.context_tokens_max,
        kv_token_bytes=about.kv_token_bytes,
        source=source,
        mape={name: round(error.mape, 6) for name, error in errors.items() if error is not None},
        samples=[(shape, float(f"{actual_s:.7g}")) for shape, actual_s in fitted.samples],
    )


def _warn(measured: Measured) -> None:
    if measured.spread > SPREAD_MAX:
        typer.echo(f"warning: one and the same step varied by {measured.spread:.0%}; is anybody else served?", err=True)
    if measured.skipped:
        words = "steps were asked for that the server did not take: fewer at a time, or prompts in parts"
        typer.echo(f"warning: {len(measured.skipped)} {words}", err=True)
