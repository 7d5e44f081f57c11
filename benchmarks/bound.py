"""How many promises any policy could keep: a clairvoyant upper bound for a fixed colocated fleet of like instances.

    python benchmarks/bound.py --traces TRACES --rate 1,1.5,2,3 --capacity --json bound.json

All arrivals and lengths are known. A request is accepted by a share z in [0, 1], and a linear program maximises the
accepted share of the worst-off class, or of all requests. Its rows say what no schedule of n instances can exceed:

Demand of one request in a window [t, t + D]. Its own instance has to compute its prompt, p seconds (what earlier
arrivals could have left in the prefix cache is taken off), then base t0; all this between arrival a and a + F. Within
a step, computing may be thought to come first and the fixed part last, so the computing lies in [a, a + F - t0]. Then
come o - 1 decode steps until a + F + (o - 1) Q. An instance does one thing at a time, so whatever cannot be placed
outside the window is done inside it: at least

    q   seconds of computing (prefill and decode)                   h   seconds of fixed parts, those of its own steps

One instance. Requests share steps, so of a set J of them the fixed parts take at least max h, not the sum, and

    sum q + max h <= D     =>     r_j = q_j / (D - h_j):     sum r_j <= sum q_j / (D - max h) <= 1

which is linear in the requests though sharing is not. Several epochs of length T, end to end, pay in each one, and as
max h >= sum q h / (T - h) by the same argument, the window that they make up has

    r_j = (q_j + sum over epochs of q_je h_je / (T - h_je)) / D:     sum r_j <= 1

No request is computed on two instances. So whole requests have to be packed: for every integer k

    u_k(r) = (ceil((k + 1) r) - 1) / k:     sum r_j <= 1   =>   sum u_k(r_j) <= 1

(a sum of integers, each less than (k + 1) r_j, is less than k + 1). The fleet: sum over requests of z_j r_j <= n, and
the same with u_k. Rows are generated as they are found violated, so any subset is a bound too; nothing is divided into
slots of time.

What is given up, and why that can only raise the bound: each row holds for every schedule, and rows are all there is.
Requests are accepted by shares, and a share may be spread over instances (a mean over schedules of no schedule). Steps
of decodes in different windows need not be the same schedule; fixed parts are charged once per epoch and instance, for
the longest need, not per step taken. Whatever is lost costs nothing: it is neither computed nor waited for. Decodes
pause and catch up at will, without paying for the tokens of others; KV memory, the number of sequences, sizes of
steps, and how fast a policy may react bind nothing. Every prompt block that has ever arrived is in every cache.

It assumes that a request decodes where its prompt was computed, which holds for every policy here unless an instance
dies. With `moves` it may be computed anywhere at once, at no cost: q alone counts, r = q / D, and nothing is packed.
That bounds separated prefill and decode too, and what moving could gain on the same instances.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

import record
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.policies import create
from hyperflexis.sim.job import Job
from hyperflexis.sim.simulation import FleetSpec, simulate
from hyperflexis.sim.workload import Stream, mix

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BLOCK_TOKENS = 16
PACKINGS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
"""The k of u_k."""
EPOCHS_S = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
EPOCHS_PER_WINDOW = (1, 2, 3, 4, 6, 8, 12, 16)
ARRIVALS_PER_WINDOW = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 41, 51, 64, 80, 100, 128, 160, 200, 256)
FINENESS = 8
"""How many windows of like length overlap at any arrival."""
TAILS = (0.5, 0.9)
"""How much decoding windows that end behind a deadline include: quantiles of their class."""
PAIRS_AT_ONCE = 1_000_000
WINDOWS_AT_ONCE = 20_000
ROUNDS_MAX = 25
ROWS_PER_ROUND = 600
TOLERANCE = 2e-4
"""A row counts as violated above n (1 + this), and rounds end when they lower the bound by less."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What each request needs if its promises are to be kept; columns in order of arrival, seconds."""

    classes: tuple[str, ...]
    service_class: Ints
    arrived_s: Floats
    prefill_s: Floats
    """Computing its prompt, without fixed parts."""
    first_s: Floats
    """Latest first token."""
    end_s: Floats
    """Latest last token; infinite where no pace was promised."""
    steps: Floats
    """Decode steps: all tokens but the first."""
    prompt_tokens: Floats
    latency: LatencyModel

    @property
    def earliest_s(self) -> Floats:
        """When decoding can begin."""
        return self.arrived_s + self.prefill_s + self.latency.prefill_base_s

    @property
    def step_s(self) -> Floats:
        """The shortest decode step, which is the first, alone."""
        model = self.latency
        return model.decode_base_s + model.decode_seq_s + model.context_token_s * self.prompt_tokens

    def decode_work_s(self, steps: Floats, which: Ints) -> Floats:
        """Computing that many first decode steps, without fixed parts."""
        model = self.latency
        context = self.prompt_tokens[which] * steps + np.maximum(0.0, steps * (steps - 1) / 2)
        return model.decode_seq_s * steps + model.context_token_s * context

    @property
    def hopeless(self) -> npt.NDArray[np.bool_]:
        """Those that miss even alone on an idle instance."""
        everyone = np.arange(len(self.arrived_s))
        decode_s = self.latency.decode_base_s * self.steps + self.decode_work_s(self.steps, everyone)
        is_late = self.earliest_s > self.first_s * (1 + 1e-12) + 1e-9
        return is_late | (self.earliest_s + decode_s > self.end_s + 1e-9)


def demands(jobs: Iterable[Job], classes: Mapping[str, ServiceClass], latency: LatencyModel) -> Demands:
    """Read a workload, which must be in order of arrival.

    Raises:
        ValueError: a job waits for another's end; whose arrival depends on the policy, and has no bound here.
    """
    names = tuple(classes)
    seen: set[bytes] = set()
    rows = []
    for job in jobs:
        if job.follow_up is not None:
            raise ValueError("sessions have no bound: when their requests arrive depends on the policy")
        rows.append(
            _demand(job, classes[job.service_class].slo, names.index(job.service_class), _found(job, seen), latency)
        )
        seen.update(job.block_hashes)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 7).T
    return Demands(names, table[0].astype(np.int64), *table[1:], latency)


def _found(job: Job, seen: set[bytes]) -> int:
    """Prompt tokens that a cache of everything could hold; the last one is computed in any case."""
    blocks = 0
    for block in job.block_hashes:
        if block not in seen:
            break
        blocks += 1
    return min(blocks * BLOCK_TOKENS, job.prompt_tokens - 1)


def _demand(job: Job, slo: Slo, number: int, cached: int, latency: LatencyModel) -> tuple[float, ...]:
    prefill_s = latency.chunk_s(job.prompt_tokens - cached, cached)
    limits_s = [target for target in (slo.ttft_s, slo.e2e_s) if target is not None]
    first_s = job.at_s + min(limits_s, default=np.inf)
    steps = job.output_tokens - 1
    # Without steps there is no pace; the end is then no promise of its own.
    end_s = np.inf if slo.tpot_s is None or not steps else first_s + steps * slo.tpot_s
    if slo.e2e_s is not None:
        end_s = min(end_s, job.at_s + slo.e2e_s)
    return number, job.at_s, prefill_s, first_s, end_s, steps, job.prompt_tokens


# -- what one instance must do for a request within a window


@dataclass(frozen=True, slots=True)
class Needs:
    """Pairs of window and request, with the q and h of each."""

    window: Ints
    request: Ints
    work_s: Floats
    fixed_s: Floats


def needs(asked: Demands, windows: Floats, moves: bool = False) -> Needs:
    """All pairs with something to compute. Shapes: windows [m, 2]."""
    finite = np.where(np.isfinite(asked.first_s), asked.first_s - asked.arrived_s, 0.0)
    reach_s = float(finite.max(initial=0.0))
    low = np.searchsorted(asked.arrived_s, windows[:, 0] - reach_s)
    high = np.searchsorted(asked.arrived_s, windows[:, 1])
    parts = [_needs(asked, windows, low, high, part=part, moves=moves) for part in _parts(high - low)]
    return Needs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _parts(counts: Ints) -> Iterator[slice]:
    """Cut so that no part holds many more pairs than memory likes."""
    part = np.cumsum(counts) // PAIRS_AT_ONCE
    edges = np.flatnonzero(np.diff(part)) + 1
    yield from (slice(a, b) for a, b in zip([0, *edges], [*edges, len(counts)], strict=True))


def _needs(
    asked: Demands, windows: Floats, low: Ints, high: Ints, *, part: slice, moves: bool
) -> tuple[Ints, Ints, Floats, Floats]:
    counts = (high - low)[part]
    window = np.repeat(np.arange(part.start, part.start + len(counts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    request = np.repeat(low[part], counts) + within
    begin_s, end_s = windows[window, 0], windows[window, 1]
    model = asked.latency
    base_s = model.prefill_base_s
    arrived_s, first_s, prefill_s = asked.arrived_s[request], asked.first_s[request], asked.prefill_s[request]
    outside_s = np.maximum(0.0, begin_s - arrived_s) + np.maximum(0.0, first_s - base_s - end_s)
    prefill_in_s = np.maximum(0.0, prefill_s - outside_s)
    is_last_inside = (begin_s <= arrived_s + prefill_s) & (first_s <= end_s)
    before_s = np.maximum(0.0, begin_s - asked.earliest_s[request])
    after_s = np.maximum(0.0, asked.end_s[request] - end_s)
    # A step that crosses an edge of the window counts as outside.
    lost = (before_s + after_s) / asked.step_s[request] + (before_s > 0) + (after_s > 0)
    steps = np.maximum(0.0, asked.steps[request] - lost)
    work_s = prefill_in_s + asked.decode_work_s(steps, request)
    fixed_s = 0.0 * work_s if moves else base_s * is_last_inside + model.decode_base_s * steps
    some = work_s > 0
    return window[some], request[some], work_s[some], fixed_s[some]


# -- rows


def window_rows(asked: Demands, windows: Floats, moves: bool = False) -> sparse.csr_array:
    """r of every request in every window: what share of one instance it needs. Shape [windows, requests]."""
    found = needs(asked, windows, moves)
    length_s = (windows[:, 1] - windows[:, 0])[found.window]
    shares = found.work_s / np.maximum(length_s - found.fixed_s, found.work_s)
    return sparse.csr_array((shares, (found.window, found.request)), shape=(len(windows), len(asked.arrived_s)))


def epoch_rows(asked: Demands, epoch_s: float, offset_s: float, moves: bool = False) -> sparse.csr_array:
    """r of every request in every run of epochs of that length."""
    until_s = float(np.where(np.isfinite(asked.end_s), asked.end_s, asked.arrived_s).max()) + epoch_s
    edges = np.arange(asked.arrived_s[0] - epoch_s + offset_s, until_s + epoch_s, epoch_s)
    epochs = np.stack([edges[:-1], edges[1:]], axis=1)
    found = needs(asked, epochs, moves)
    charge_s = found.work_s * found.fixed_s / np.maximum(epoch_s - found.fixed_s, found.work_s)
    shape = (len(epochs), len(asked.arrived_s))
    charges = sparse.csr_array((charge_s, (found.window, found.request)), shape=shape)
    rows = [_runs(asked, edges, charges, count, moves) for count in EPOCHS_PER_WINDOW if count < len(edges)]
    return sparse.vstack(rows, format="csr")


def _runs(asked: Demands, edges: Floats, charges: sparse.csr_array, count: int, moves: bool) -> sparse.csr_array:
    """Rows of all windows of `count` epochs, some epochs apart."""
    begins = np.arange(0, len(edges) - count, max(1, count // 4))
    windows = np.stack([edges[begins], edges[begins + count]], axis=1)
    found = needs(asked, windows, moves)
    work = sparse.csr_array((found.work_s, (found.window, found.request)), shape=(len(begins), charges.shape[1]))
    summing = sparse.csr_array(
        (
            np.ones(len(begins) * count),
            (begins[:, None] + np.arange(count)).ravel(),
            np.arange(len(begins) + 1) * count,
        ),
        shape=(len(begins), charges.shape[0]),
    )
    return (work + summing @ charges) / (edges[1] - edges[0]) / count


def packed(rows: sparse.csr_array, k: int) -> sparse.csr_array:
    """The rows with u_k of every entry."""
    units = np.ceil((k + 1) * np.minimum(rows.data, 1.0) - 1e-9) - 1
    result = sparse.csr_array((np.maximum(0.0, units) / k, rows.indices, rows.indptr), shape=rows.shape, copy=True)
    result.eliminate_zeros()
    return result


def candidate_windows(asked: Demands) -> Floats:
    """From an arrival to where computing for a later one of its class must be done, or to some decoding further."""
    found = []
    for number in range(len(asked.classes)):
        of_class = np.flatnonzero((asked.service_class == number) & np.isfinite(asked.first_s))
        arrived_s, first_s = asked.arrived_s[of_class], asked.first_s[of_class]
        decode_s = asked.end_s[of_class] - first_s
        decode_s = decode_s[np.isfinite(decode_s)]
        tails_s = [-asked.latency.prefill_base_s, *(np.quantile(decode_s, tail) for tail in TAILS if len(decode_s))]
        for count in ARRIVALS_PER_WINDOW:
            begins = np.arange(0, len(of_class) - count, max(1, count // FINENESS))
            found += [np.stack([arrived_s[begins], first_s[begins + count] + tail], axis=1) for tail in tails_s]
    windows = np.unique(np.concatenate(found), axis=0)
    return windows[windows[:, 1] > windows[:, 0]]


def all_rows(asked: Demands, instances: int, moves: bool = False) -> sparse.csr_array:
    """Everything that may bind on a fleet of that size. Shape [rows, requests]."""
    windows = candidate_windows(asked)
    rows = []
    for part in np.array_split(windows, max(1, len(windows) // WINDOWS_AT_ONCE)):
        plain = window_rows(asked, part, moves)
        rows.append(_binding(plain, instances))
        if not moves:
            rows += [_binding(packed(_coarse(plain, k, instances), k), instances) for k in PACKINGS]
    for epoch_s in EPOCHS_S:
        for offset_s in (0.0, epoch_s / 2):
            rows.append(_binding(epoch_rows(asked, epoch_s, offset_s, moves), instances))
    return sparse.vstack(rows, format="csr")


def _coarse(rows: sparse.csr_array, k: int, instances: int) -> sparse.csr_array:
    """Those that u_k can make bind: it is 0 up to 1 / (k + 1), and nowhere above (k + 1) / k times its argument."""
    largest = rows.max(axis=1).toarray().ravel()
    return rows[np.flatnonzero((largest > 1 / (k + 1)) & ((k + 1) / k * rows.sum(axis=1) > instances))]


def _binding(rows: sparse.csr_array, instances: int) -> sparse.csr_array:
    """Those that forbid anything: the others hold even if every request is accepted."""
    return rows[np.flatnonzero(rows.sum(axis=1) > instances)]


# -- the linear program


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that can be attained, as shares of the requests."""

    least: float
    """Of the class that fares worst."""
    overall: float
    """Of all requests, the classes counting as their requests do."""
    rows: int
    seconds: float


def attainment_bound(
    jobs: Iterable[Job],
    classes: Mapping[str, ServiceClass],
    latency: LatencyModel,
    instances: int,
    moves: bool = False,
) -> Bound:
    """What no policy can exceed on that many instances."""
    started_s = time.perf_counter()
    asked = demands(jobs, classes, latency)
    program = Program(asked, instances, all_rows(asked, instances, moves))
    least = program.least()
    overall = program.overall()
    return Bound(least, overall, program.used, time.perf_counter() - started_s)


class Program:
    """Chooses shares of requests, under those rows that have been found to bind."""

    def __init__(self, asked: Demands, instances: int, rows: sparse.csr_array) -> None:
        self._asked, self._instances, self._rows = asked, instances, rows
        self._chosen: npt.NDArray[np.bool_] = np.zeros(rows.shape[0], dtype=bool)
        self._most = np.where(asked.hopeless, 0.0, 1.0)

    @property
    def used(self) -> int:
        return int(self._chosen.sum())

    def least(self, enough: float = 0.0) -> float:
        """The highest share that every class can have; stops early where it falls below `enough`."""
        count = len(self._most)
        present = np.unique(self._asked.service_class)
        mine = sparse.csr_array(self._asked.service_class[None, :] == present[:, None], dtype=np.float64)
        sizes = mine.sum(axis=1)
        floors = sparse.hstack([-mine, sizes[:, None]], format="csr")
        return self._maximise(np.append(np.zeros(count), 1.0), floors, enough)

    def overall(self) -> float:
        count = len(self._most)
        return self._maximise(np.append(np.ones(count) / count, 0.0), None, 0.0)

    def _maximise(self, gain: Floats, floors: sparse.csr_array | None, enough: float) -> float:
        """Solve, add the rows that the solution violates, and so on. Columns are the requests and the least share."""
        best = np.inf
        for _ in range(ROUNDS_MAX):
            value, shares = self._solve(gain, floors)
            violated = self._violated(shares)
            is_settled = value > best - TOLERANCE / 2 and len(violated) < ROWS_PER_ROUND // 4
            best = min(best, value)
            if not len(violated) or is_settled or best < enough:
                break
            self._chosen[violated] = True
        return best

    def _solve(self, gain: Floats, floors: sparse.csr_array | None) -> tuple[float, Floats]:
        rows = self._rows[np.flatnonzero(self._chosen)]
        cuts = sparse.hstack([rows, sparse.csr_array((rows.shape[0], 1))], format="csr")
        limits = np.full(rows.shape[0], float(self._instances))
        if floors is not None:
            cuts = sparse.vstack([cuts, floors], format="csr")
            limits = np.append(limits, np.zeros(floors.shape[0]))
        bounds = np.stack([np.zeros(len(gain)), np.append(self._most, 1.0)], axis=1)
        result = linprog(-gain, A_ub=cuts, b_ub=limits, bounds=bounds, method="highs")
        assert result.status == 0, result.message
        return -float(result.fun), np.asarray(result.x[:-1])

    def _violated(self, shares: Floats) -> Ints:
        """The rows broken most, few of like kind: rows next to each other say nearly the same."""
        excess = self._rows @ shares / self._instances - 1
        excess[self._chosen] = 0.0
        broken = np.flatnonzero(excess > TOLERANCE)
        if len(broken) <= ROWS_PER_ROUND:
            return broken
        cell = np.arange(ROWS_PER_ROUND) * len(broken) // ROWS_PER_ROUND
        worst = [int(part[np.argmax(excess[part])]) for part in np.split(broken, cell[1:])]
        return np.array(worst, dtype=np.int64)


def capacity_bound(
    jobs_at: Callable[[float], Iterable[Job]],
    classes: Mapping[str, ServiceClass],
    latency: LatencyModel,
    instances: int,
    *,
    share: float = 0.95,
    moves: bool = False,
    within: tuple[float, float] = (0.5, 8.0),
    step: float = 0.03,
) -> float:
    """A rate above which no policy keeps that share of every class, to within `step` of itself, from above.

    Takes for granted that what cannot be kept at some rate cannot be kept at a higher one; bisection would otherwise
    end at one such rate, not the highest.
    """
    low, high = within
    while high > (1 + step) * low:
        middle = float(np.sqrt(low * high))
        asked = demands(jobs_at(middle), classes, latency)
        holds = Program(asked, instances, all_rows(asked, instances, moves)).least(share) >= share
        low, high = (middle, high) if holds else (low, middle)
    return high


# -- the scenario of code and chat

LLAMA_70B = LatencyModel(14.2947e-3, 14.2947e-3, 5.25635e-5, 4.282e-10, 3.52468e-5, 3.28702e-8)
KV_TOKENS = 424_000
TRACES = {"code": "azure_llm_2023_code_part1.csv.gz", "chat": "azure_llm_2023_conv_part1.csv.gz"}
PROMISES = {
    "fixed": {"code": Slo(0.5, 0.1), "chat": Slo(2.0, 0.05)},
    "tight": {"code": Slo(0.75, 0.1), "chat": Slo(1.0, 0.04)},
}


def code_and_chat(folder: Path, rate: float, window_s: tuple[float, float]) -> Iterable[Job]:
    """The two public traces of 2023 on one clock."""
    return mix([Stream(folder / TRACES[name], name, window_s=window_s, rate=rate) for name in TRACES])


def measure(folder: Path, rates: Sequence[float], instances: int, window_s: tuple[float, float], ask: bool) -> Any:
    """Bounds at each rate, without and with moves, and with `ask` the capacity."""
    report = []
    for promise, slos in PROMISES.items():
        classes = {name: ServiceClass(name, slo) for name, slo in slos.items()}

        def jobs_at(rate: float) -> Iterable[Job]:
            return code_and_chat(folder, rate, window_s)

        for moves in (False, True):
            for rate in rates:
                bound = attainment_bound(jobs_at(rate), classes, LLAMA_70B, instances, moves)
                row = {"promises": promise, "moves": moves, "rate": rate, **_fields(bound)}
                report.append(row if moves else {**row, "ours": kept(jobs_at(rate), classes, instances)})
                print(report[-1], flush=True)
            for share in (0.95, 0.9) if ask else ():
                most = capacity_bound(jobs_at, classes, LLAMA_70B, instances, share=share, moves=moves)
                report.append({"promises": promise, "moves": moves, "share": share, "capacity": round(most, 3)})
                print(report[-1], flush=True)
    return report


def kept(jobs: Iterable[Job], classes: Mapping[str, ServiceClass], instances: int) -> dict[str, float]:
    """What our policy keeps of the same requests, of each class and of all."""
    fleet = FleetSpec(instances, Capacity(KV_TOKENS // 16, 16, 512), LLAMA_70B)
    outcome = simulate(jobs, classes, create("hyperflexis", 8192), fleet)
    shares = {
        name: float(outcome.attained[outcome.service_class == index].mean())
        for index, name in enumerate(outcome.classes)
    }
    return {**shares, "overall": float(outcome.attained.mean())}


def _fields(bound: Bound) -> dict[str, float]:
    names = ("least", "overall", "rows", "seconds")
    return {name: round(getattr(bound, name), 4) for name in names}


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--traces", type=Path, default=os.environ.get("HYPERFLEXIS_TRACES"), help="folder of the traces")
    words.add_argument("--rate", default="1,1.5,2,3", help="rates, as multiples of the traces'")
    words.add_argument("--instances", type=int, default=4)
    words.add_argument("--window", default="0,1200", help="seconds of the traces: from, up to")
    words.add_argument("--capacity", action="store_true", help="search the capacity too, which takes minutes")
    given = words.parse_args()
    if given.traces is None:
        words.error("--traces, or HYPERFLEXIS_TRACES, must name the folder of the traces")
    begin_s, end_s = map(float, given.window.split(","))
    rates = [float(rate) for rate in given.rate.split(",")]
    rows = measure(Path(given.traces), rates, given.instances, (begin_s, end_s), given.capacity)
    record.write(given.json, {"machine": record.machine("scipy", "numpy"), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
