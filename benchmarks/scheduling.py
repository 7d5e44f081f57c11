"""Every policy on every scenario: how much load it bears, and what becomes of the promises beyond that. Simulated.

    python benchmarks/scheduling.py --traces DIR                 # all scenarios, hours of one core
    python benchmarks/scheduling.py --traces DIR --quick         # a smoke run of minutes, into build/

For each scenario: each rival is tuned on an early window of the trace (`policies/tunings.py` says what is tried); then
all are run on a later window with other seeds. A seed turns each stream's window by an offset of its own. `capacity` is
the highest rate at which every class keeps a share of its promises in the mean over the seeds, exact to 4 %. Results
are kept in build/scheduling, so that a run that was stopped goes on; benchmarks/scheduling_page.py writes the page.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import record
import scheduling_search as search
from hyperflexis.cli import scenario, trace_files
from hyperflexis.policies import tunings
from scheduling_runs import INSIDE, KEPT, Run, Shelf, jobs_of, load, plan_of, simulated, source_hash

SCENARIOS = record.REPOSITORY / "scenarios"
RESULTS = record.REPOSITORY / "benchmarks" / "results" / "scheduling"
OURS, PLAIN = "hyperflexis", "round_robin"
TUNING_SEEDS, TEST_SEEDS = (1,), (11, 12, 13)
TUNED_BY = search.CRITERIA[1]
LOADS = (0.5, 0.75, 1.0)
"""Of our capacity: where end-to-end latencies are compared."""
FIFTH = 0.2
"""What the plain policy keeps where the mission's figure was taken."""
CRITERIA = [criterion.name for criterion in search.CRITERIA]
QUICK_S = 150.0
SECTIONS = ("capacity", "parts", "disturbed", "fifth", "loads")
PUBLISHED = ("polyserve", "proserve", "slos_serve", "hfx_faithful")
"""As their papers have them, as far as these tell: the untuned ones."""
PARTS = (
    f"{OURS}:separation=0",
    *(f"{OURS}/{inside}" for inside in INSIDE),
    f"{PLAIN}:engine=ours",
    "least_tokens:engine=ours",
    *PUBLISHED,
)
"""Ours with one rule replaced, plain choices of an instance with our rules inside, and rivals without our tuning."""


@dataclass(frozen=True, slots=True)
class Study:
    """A scenario, and the window that rivals are tuned on; the scenario's own is the one that counts."""

    name: str
    tuning_s: tuple[float, float]

    @property
    def file(self) -> Path:
        return SCENARIOS / f"{self.name}.yaml"

    @property
    def test_s(self) -> tuple[float, float]:
        (window,) = {tuple(each.window_s or ()) for each in scenario.load(self.file).scenario.workload}
        return (window[0], window[1])


STUDIES = (
    Study("code_chat_70b", (80.0, 680.0)),
    Study("code_chat_70b_tight", (80.0, 680.0)),
    Study("code_chat_14b", (80.0, 680.0)),
    Study("four_classes", (29100.0, 29700.0)),
    Study("long_prompts", (0.0, 600.0)),
)

Points = list[dict[str, Any]]


class Bench:
    """One scenario's simulations: those that are known, and those that processes still have to run."""

    def __init__(self, file: Path, window_s: tuple[float, float], seeds: Sequence[int], runner: Runner) -> None:
        self.seeds = tuple(seeds)
        self._file, self._window_s, self._runner = str(file), window_s, runner

    def points(self, policy: str, step: int, *, disturbed: bool = False) -> Points:
        """One load under every seed."""
        return list(self._runner.all(self._run(policy, step, seed, disturbed) for seed in self.seeds))

    def is_kept(self, criterion: search.Criterion, policy: str, step: int, *, disturbed: bool = False) -> bool:
        """Whether a load is borne; seeds that cannot change the answer are not run."""
        points: Points = []
        for seed in self.seeds:
            points.append(self._runner.one(self._run(policy, step, seed, disturbed)))
            if not search.can_hold(criterion, points, len(self.seeds)):
                return False
        return search.holds(criterion, points)

    def _run(self, policy: str, step: int, seed: int, disturbed: bool) -> Run:
        return Run(self._file, policy, search.rate_of(step), seed, self._window_s, disturbed)


class Runner:
    """Runs what is not known yet, in processes; remembers all that was asked for."""

    def __init__(self, pool: ProcessPoolExecutor, shelf: Shelf, jobs: int) -> None:
        self._pool, self._shelf, self._jobs = pool, shelf, jobs
        self.points: dict[Run, dict[str, Any]] = {}
        self.fresh = 0

    def one(self, run: Run) -> dict[str, Any]:
        return next(iter(self.all([run])))

    def all(self, runs: Iterable[Run]) -> Iterable[dict[str, Any]]:
        wanted = list(runs)
        started = {run: self._pool.submit(simulated, run) for run in wanted if self._known(run) is None}
        for run, future in started.items():
            if (error := future.exception()) is not None:
                error.add_note(f"in {run}")
                raise error
            self.points[run] = future.result()
            self._shelf.keep(run, self.points[run])
            self.fresh += 1
        return [self.points[run] for run in wanted]

    def each(self, what: Callable[[str], Any], names: Sequence[str]) -> dict[str, Any]:
        """Do something for every name, several at a time, so that no process is idle while another searches on."""
        with ThreadPoolExecutor(self._jobs + 1) as threads:
            return dict(zip(names, threads.map(what, names), strict=True))

    def _known(self, run: Run) -> dict[str, Any] | None:
        if run not in self.points:
            kept = self._shelf.find(run)
            if kept is None:
                return None
            self.points[run] = kept
        return self.points[run]


# What is found out.


def tuned(bench: Bench, runner: Runner, rivals: Sequence[str], tries: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Each rival's best tuning by its capacity on the tuning window, and what was tried."""

    def best(name: str, start: int) -> dict[str, Any]:
        def is_kept(text: str, step: int) -> bool:
            return bench.is_kept(TUNED_BY, text, step)

        chosen, steps = search.best_of(tries[name], is_kept, start)
        say(f"  tuned {name}: {chosen} bears {_rate(steps[chosen])}")
        return {"chosen": chosen, "tried": list(tries[name]), "step": steps[chosen], "rate": _rate(steps[chosen])}

    first = best(PLAIN, 0)
    start = (first["step"] or 0) + search.STRIDE
    rest = [name for name in rivals if name != PLAIN]
    return {PLAIN: first, **runner.each(lambda name: best(name, start), rest)}


def capacities(
    bench: Bench, policy: str, start: int, names: Sequence[str], *, disturbed: bool = False
) -> dict[str, int | None]:
    """By criterion, the highest grid step that is borne."""
    steps: dict[str, int | None] = {}
    for criterion in (each for each in search.CRITERIA if each.name in names):

        def is_kept(step: int, criterion: search.Criterion = criterion) -> bool:
            return bench.is_kept(criterion, policy, step, disturbed=disturbed)

        steps[criterion.name] = search.highest(is_kept, start)
        reached = steps[criterion.name]
        start = start if reached is None else reached
    say(f"  {policy}{' disturbed' if disturbed else ''}: " + told(steps))
    return steps


def fifth(bench: Bench, plain: str, start: int) -> dict[str, int | None]:
    """The highest loads at which the plain policy keeps a fifth: of all requests, and of its worst class."""

    def overall(step: int) -> bool:
        return fmean(point["attainment"] for point in bench.points(plain, step)) >= FIFTH

    def worst(step: int) -> bool:
        return search.worst(bench.points(plain, step)) >= FIFTH

    return {"overall": search.highest(overall, start + 4 * search.STRIDE), "worst": search.highest(worst, start)}


def study(one: Study, runner: Runner, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one scenario."""
    tuning_s, test_s = one.tuning_s, one.test_s
    seeds: Sequence[int] = TEST_SEEDS
    if options.quick:
        tuning_s, test_s, seeds = _cut(tuning_s), _cut(test_s), seeds[:1]
    runner.points.clear()
    rivals = [name for name in options.policy if name != OURS]
    tries = {name: candidates(name)[: 2 if options.quick else None] for name in rivals}
    say(f"{one.name}: tuning {len(rivals)} rivals on {tuning_s}")
    chosen = tuned(Bench(one.file, tuning_s, TUNING_SEEDS, runner), runner, rivals, tries)
    bench = Bench(one.file, test_s, seeds, runner)
    found = compared(bench, runner, chosen, options)
    points = [point for run, point in runner.points.items() if run.window_s == test_s]
    head = described(one, tuning_s, test_s, seeds)
    head["criteria"] = [asdict(criterion) for criterion in search.CRITERIA if criterion.name in options.criterion]
    return {**head, "tuning": chosen, **found, "points": points}


def compared(
    bench: Bench, runner: Runner, chosen: Mapping[str, Mapping[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """Everybody's capacity, and the sections that were asked for."""
    texts = {OURS: OURS, **{name: each["chosen"] for name, each in chosen.items()}}
    starts = {each["chosen"]: each["step"] or 0 for each in chosen.values()}
    most = max(starts.values())
    estimate(bench, texts, starts[texts[PLAIN]], options)

    def borne(text: str) -> dict[str, int | None]:
        return capacities(bench, text, starts.get(text, most), options.criterion)

    def shaken(text: str) -> dict[str, int | None]:
        return capacities(bench, text, steps[text]["95"] or 0, ["95", "90"], disturbed=True)

    steps = runner.each(borne, list(texts.values()))
    best = best_rival(steps, texts)
    found: dict[str, Any] = {"policies": texts, "best_rival": best, "capacity": _all_shown(steps)}
    if "parts" in options.section:
        found["parts"] = _all_shown(runner.each(borne, PARTS))
    if "disturbed" in options.section:
        found["disturbed"] = _all_shown(runner.each(shaken, list(dict.fromkeys((OURS, best, texts[PLAIN])))))
    if "fifth" in options.section:
        at = fifth(bench, texts[PLAIN], steps[texts[PLAIN]]["95"] or 0)
        found["fifth"] = _shown(at)
        everyone(bench, runner, texts, at.values())
    if "loads" in options.section:
        ours = steps[OURS]["95"] if steps[OURS]["95"] is not None else most
        at = {str(share): search.step_of(share * search.rate_of(ours)) for share in LOADS}
        found["loads"] = _shown(at)
        everyone(bench, runner, texts, at.values())
    return found


def everyone(bench: Bench, runner: Runner, texts: Mapping[str, str], steps: Iterable[int | None]) -> None:
    """Run all policies at some loads under every seed."""
    wanted = [step for step in dict.fromkeys(steps) if step is not None]
    runner.each(lambda text: [bench.points(text, step) for step in wanted], list(texts.values()))


def best_rival(steps: Mapping[str, Mapping[str, int | None]], texts: Mapping[str, str]) -> str:
    """The rival that bears most by the first criterion; among equals, by the next."""

    def reached(text: str) -> list[int]:
        return [search.STEP_MIN - 1 if step is None else step for step in steps[text].values()]

    return max((text for text in texts.values() if text != OURS), key=reached)


def candidates(name: str) -> list[str]:
    """A policy with each of its tunings, as a command line would write it."""
    found = []
    for tuning in tunings.TUNINGS[name]:
        pairs = ",".join(f"{key}={_word(value)}" for key, value in tuning.items())
        found.append(f"{name}:{pairs}" if pairs else name)
    return found


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def described(
    one: Study, tuning_s: tuple[float, float], test_s: tuple[float, float], seeds: Sequence[int]
) -> dict[str, Any]:
    """The scenario in figures: fleet, windows, and for each class its promises beside what an idle instance takes."""
    given = scenario.load(one.file).scenario
    plan = plan_of(load(str(one.file), test_s))
    jobs = jobs_of(str(one.file), test_s, seeds[0])
    model = plan.latency
    classes = {}
    for name, promised in given.classes.items():
        own = sorted(job.prompt_tokens for job in jobs if job.service_class == name)
        p50, p90 = (record.percentile(own, share) if own else 0 for share in (0.5, 0.9))
        outputs = [job.output_tokens for job in jobs if job.service_class == name]
        idle = {
            share: 1000 * (model.base_s(True, False) + model.chunk_s(int(tokens), 0))
            for share, tokens in (("p50", p50), ("p90", p90))
        }
        classes[name] = {
            **promised.model_dump(),
            "requests": len(own),
            "prompt_tokens": {"p50": p50, "p90": p90},
            "output_tokens": {share: record.percentile(outputs, at) for share, at in (("p50", 0.5), ("p90", 0.9))},
            "idle_ttft_ms": idle,
            "idle_tpot_ms": 1000 * model.decode_step_s(1, p50),
        }
    return {
        "scenario": one.name,
        "profile": given.profile,
        "instances": plan.instances,
        "windows_s": {"tuning": tuning_s, "test": test_s},
        "seeds": {"tuning": TUNING_SEEDS, "test": seeds},
        "requests_per_s": len(jobs) / (test_s[1] - test_s[0]),
        "classes": search.rounded(classes),
    }


def estimate(bench: Bench, texts: Mapping[str, str], step: int, options: argparse.Namespace) -> None:
    """Say how long this may take, from what one simulation takes."""
    cpu_s = fmean(point["cpu_seconds"] for point in bench.points(texts[PLAIN], step)[:1])
    seeds = len(bench.seeds)
    runs = {
        "capacity": len(texts) * (2 + 2 * len(options.criterion)) * (1 + seeds) / 2,
        "parts": len(PARTS) * (2 + 2 * len(options.criterion)) * (1 + seeds) / 2,
        "disturbed": 3 * 6 * (1 + seeds) / 2,
        "fifth": (2 * len(texts) + 8) * seeds,
        "loads": len(LOADS) * len(texts) * seeds,
    }
    total = sum(runs[name] for name in {"capacity", *options.section})
    minutes = total * cpu_s / options.jobs / 60
    say(f"  about {total:.0f} simulations of {cpu_s:.1f} s, {minutes:.0f} minutes on {options.jobs} processes")


def _cut(window_s: tuple[float, float]) -> tuple[float, float]:
    return (window_s[0], min(window_s[1], window_s[0] + QUICK_S))


def _rate(step: int | None) -> float | None:
    return None if step is None else search.rate_of(step)


def _all_shown(steps: Mapping[str, Mapping[str, int | None]]) -> dict[str, dict[str, float | None]]:
    return {text: _shown(each) for text, each in steps.items()}


def _shown(steps: Mapping[str, int | None]) -> dict[str, float | None]:
    return {name: _rate(step) for name, step in steps.items()}


def told(steps: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {'-' if step is None else search.rate_of(step)}" for name, step in steps.items())


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def write(file: Path, report: Mapping[str, Any]) -> None:
    """As JSON with a line for each simulation."""
    file.parent.mkdir(parents=True, exist_ok=True)
    points = ",\n".join("    " + json.dumps(point) for point in report["points"])
    head = json.dumps({**report, "points": []}, indent=2)
    file.write_text(head.replace('"points": []', f'"points": [\n{points}\n  ]') + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = [one.name for one in STUDIES]
    words.add_argument("--traces", type=Path, help="folder of the traces; else HYPERFLEXIS_TRACES says")
    words.add_argument("--scenario", action="append", choices=known, help="only this one; may be given again")
    words.add_argument(
        "--policy", action="append", choices=list(tunings.TUNINGS), help="only these, ours and the plain"
    )
    words.add_argument("--section", action="append", choices=SECTIONS, help="only these; capacity is always found")
    words.add_argument("--criterion", action="append", choices=CRITERIA, help="only these; 95 is always found")
    words.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    words.add_argument("--quick", action="store_true", help="short windows, one seed, few policies, into build/")
    words.add_argument("--out", type=Path, help="folder of the results")
    options = words.parse_args()
    options.section = options.section or list(SECTIONS)
    options.criterion = CRITERIA if options.criterion is None else ["95", *options.criterion]
    few = [PLAIN, "proserve", OURS] if options.quick else list(tunings.TUNINGS)
    options.policy = list(dict.fromkeys([PLAIN, *(options.policy or few), OURS]))
    options.out = options.out or (KEPT / "quick" if options.quick else RESULTS)
    return options


def main() -> int:
    options = _options()
    if options.traces is not None:
        os.environ[trace_files.TRACES_ENV] = str(options.traces.resolve())
    chosen = [one for one in STUDIES if options.scenario is None or one.name in options.scenario]
    shelf = Shelf(KEPT, source_hash())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        runner = Runner(pool, shelf, options.jobs)
        for one in chosen:
            started_s, fresh = time.monotonic(), runner.fresh
            found = study(one, runner, options)
            took = {"seconds": round(time.monotonic() - started_s), "simulations": runner.fresh - fresh}
            told_by = {
                "machine": record.machine("numpy"),
                "source": source_hash(),
                "quick": options.quick,
                "took": took,
            }
            write(options.out / f"{one.name}.json", {**told_by, **found})
            say(f"{one.name}: {took['simulations']} simulations in {took['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
