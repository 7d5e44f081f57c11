"""Scenes with a vLLM engine in this process, which costs less than a server: python inprocess.py SCENE ARGUMENT...

The last line of what it prints is JSON: what was seen.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

from servers import ENVIRONMENT

ENVIRONMENT_INPROCESS = os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
SETTINGS: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
}
SLO = "hyperflexis.vllm_plugin.scheduler.SloScheduler"


class Engine:
    """One engine, whose scheduler can be exchanged while it is idle."""

    def __init__(self, model: str, **settings: Any) -> None:
        from vllm import LLM

        self.llm = LLM(model, **(SETTINGS | settings))
        self.core = self.llm.llm_engine.engine_core.engine_core

    def use(self, scheduler: type, blocks: int | None = None) -> None:
        """Take a new scheduler of this kind from now on, with so many blocks of the KV cache."""
        old = self.core.scheduler
        while old.has_requests():  # It has not told the engine yet who ended last.
            self.core.step()
        if blocks is not None:
            old.cache_config.num_gpu_blocks = old.kv_cache_config.num_blocks = blocks
        self.core.scheduler = scheduler(
            vllm_config=old.vllm_config,
            kv_cache_config=old.kv_cache_config,
            structured_output_manager=old.structured_output_manager,
            block_size=old.block_size,
            hash_block_size=old.hash_block_size,
            log_stats=old.log_stats,
        )

    def add(self, name: str, prompt: list[int], tokens: int, **promises: Any) -> None:
        from vllm import SamplingParams

        extra = {f"hyperflexis_{key}": value for key, value in promises.items()} or None
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=extra)
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, params)

    def step(self) -> list[tuple[str, list[int], bool]]:
        outputs = self.llm.llm_engine.step()
        return [(each.request_id, list(each.outputs[0].token_ids), each.finished) for each in outputs]

    def run(self) -> tuple[dict[str, list[int]], list[str]]:
        """To the end; returns all answers, and the names in the order of their first tokens."""
        answers: dict[str, list[int]] = {}
        order: list[str] = []
        while self.llm.llm_engine.has_unfinished_requests():
            for name, tokens, _ in self.step():
                if tokens and name not in order:
                    order.append(name)
                answers[name] = tokens
        return answers, order


def prompts(count: int, longest: int, seed: int = 1) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(100, 4000) for _ in range(draw.randrange(5, longest))] for _ in range(count)]


def scheduler(model: str) -> dict[str, Any]:
    """vLLM's own and ours on one engine."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from hyperflexis.vllm_plugin.scheduler import SloScheduler

    engine = Engine(model)
    seen: dict[str, Any] = {}
    for name, kind in (("stock", Scheduler), ("ours", SloScheduler)):
        engine.use(kind)
        seen[name] = _mixed_answers(engine)
        engine.use(kind)
        seen[f"first_tokens_{name}"] = _overtaking(engine)
    learnt = engine.core.scheduler.chooser
    engine.use(SloScheduler)
    engine.core.scheduler.chooser.latency.adopt(learnt.latency.model)
    seen["prefill_token_s"] = learnt.latency.model.prefill_token_s
    seen["decode_base_s"] = learnt.latency.model.decode_base_s
    step_s = learnt.latency.model.decode_step_s(4, 400)
    seen["most_prefill_beside_others"] = _most_prefill(engine, None)
    seen["most_prefill_beside_paced"] = _most_prefill(engine, 2 * step_s)
    engine.add("bad", [70, 71, 72], 4, ttft_s="soon")
    answers, _ = engine.run()
    seen["bad_promise_tokens"] = len(answers["bad"])
    engine.use(SloScheduler, blocks=14)
    seen["tight"] = _mixed_answers(engine)
    seen["tight_preemptions"] = PREEMPTED[0]
    return seen


PREEMPTED = [0]


def _mixed_answers(engine: Engine) -> list[list[int]]:
    """Forty requests, of which some have promises; all at once."""
    preempt = engine.core.scheduler._preempt_request

    def counted(*args: Any, **kwargs: Any) -> None:
        PREEMPTED[0] += 1
        preempt(*args, **kwargs)

    PREEMPTED[0] = 0
    engine.core.scheduler._preempt_request = counted
    for index, prompt in enumerate(prompts(40, 300)):
        promises = {"ttft_s": 0.2 + index % 3, "tpot_s": 0.03} if index % 2 else {}
        engine.add(f"r{index:02}", prompt, 16 + 5 * (index % 20), **promises)
    answers, _ = engine.run()
    return [answers[name] for name in sorted(answers)]


def _overtaking(engine: Engine) -> list[str]:
    for index, prompt in enumerate(prompts(6, 12, seed=2)):
        engine.add(f"long{index}", (prompt * 100)[:450], 4, ttft_s=60.0)
    engine.step()
    engine.add("urgent", prompts(1, 40, seed=3)[0], 4, ttft_s=0.1)
    _, order = engine.run()
    return order


def _most_prefill(engine: Engine, tpot_s: float | None) -> int:
    """The largest prefill in one step beside four answers that are being written."""
    promises = {} if tpot_s is None else {"tpot_s": tpot_s}
    for index, prompt in enumerate(prompts(4, 100, seed=4)):
        engine.add(f"answer{index}", prompt, 60, **promises)
    while len(engine.core.scheduler.running) < 4 or any(
        each.num_output_tokens < 3 for each in engine.core.scheduler.running
    ):
        engine.step()
    shapes = []
    observe = engine.core.scheduler.chooser.observe

    def seen(shape: Any, actual_s: float) -> None:
        shapes.append(shape)
        observe(shape, actual_s)

    engine.core.scheduler.chooser.observe = seen
    for index, prompt in enumerate(prompts(3, 12, seed=5)):
        engine.add(f"prompt{index}", (prompt * 100)[:400], 1)
    engine.run()
    del engine.core.scheduler.chooser.observe
    return max(shape.prefill_tokens for shape in shapes if shape.decode_seqs == 4)


def loader(model: str, extra: str) -> dict[str, Any]:
    """An engine with weights by our loader: what it says, and where its weights are lent."""
    engine = Engine(model, load_format="hyperflexis", model_loader_extra_config=json.loads(extra))
    engine.add("one", [70, 71, 72, 73], 16)
    answers, _ = engine.run()
    return {"tokens": answers["one"]}


if __name__ == "__main__":
    print(json.dumps({"scheduler": scheduler, "loader": loader}[sys.argv[1]](*sys.argv[2:])))
