"""CPU time of products with weight matrices where they lie, and with the weights widened to float32 by pieces.

    python benchmarks/products.py --json products.json

The matrices are those of a model in the shape of Qwen2.5-0.5B in bfloat16; one torch thread, both ways in turn. Says
whether the engine widens them on this machine. Steps are those of the whole model, with random weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import record
import weights_model
from hyperflexis.adapters.native.calibration import Trial, time_trial
from hyperflexis.engine import model as engine_model
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.linear import PlainLinear, WidenedLinear, can_multiply
from hyperflexis.engine.runner import Runner

DTYPE = torch.bfloat16
SHAPES = {"gate and up": (9728, 896), "down": (896, 4864), "qkv": (1152, 896), "o": (896, 896)}
ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 256)
STEPS = {
    "prefill 32": Trial(1, 32),
    "prefill 256": Trial(1, 256),
    "decode 1": Trial(decode_seqs=1, context_tokens=64),
    "decode 16": Trial(decode_seqs=16, context_tokens=64),
}
ROUNDS = 5


def in_turn(plain: Callable[[], float], widened: Callable[[], float], rounds: int) -> dict[str, Any]:
    """Seconds that either says, and how many times as fast the second is."""
    took = [(plain(), widened()) for _ in range(rounds + 1)][1:]  # The first one warms up.
    return {
        "plain": record.spread([one for one, _ in took]),
        "widened": record.spread([other for _, other in took]),
        "times as fast": record.spread([one / other for one, other in took]),
    }


def cpu_s(work: Callable[[], object]) -> float:
    begun_s = time.process_time()
    work()
    return time.process_time() - begun_s


def product(shape: tuple[int, int], rows: int, rounds: int) -> dict[str, Any]:
    weight, x = torch.randn(shape).to(DTYPE), torch.randn(rows, shape[1]).to(DTYPE)
    plain, widened = PlainLinear(weight, None), WidenedLinear(weight, None)
    return in_turn(lambda: cpu_s(lambda: plain(x)), lambda: cpu_s(lambda: widened(x)), rounds)


def steps(directory: Path, rounds: int) -> dict[str, Any]:
    """By what is computed."""
    weights_model.make(directory)
    config = ModelConfig.from_directory(directory)
    layout = ArenaLayout.of(config, config.dtype)
    flat = torch.randn(layout.bytes // 2).mul_(0.02).to(DTYPE).view(torch.uint8)
    plain, widened = (_runner(config, layout.views(flat), can=can) for can in (True, False))
    return {
        name: in_turn(lambda step=step: _timed(plain, step), lambda step=step: _timed(widened, step), rounds)  # type: ignore[misc]
        for name, step in STEPS.items()
    }


def _runner(config: ModelConfig, weights: dict[str, torch.Tensor], *, can: bool) -> Runner:
    """As on a machine that can multiply the dtype, or cannot."""
    with mock.patch.object(engine_model, "can_multiply", return_value=can):
        return Runner(config, weights, blocks=64, block_tokens=16, device=torch.device("cpu"), dtype=DTYPE)


def _timed(runner: Runner, step: Trial) -> float:
    return time_trial(runner, step, 16, 1, time.process_time)[0]


def main() -> None:
    words = record.parser(__doc__)
    words.add_argument("--rounds", type=int, default=ROUNDS)
    options = words.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": record.machine("torch"), "engine widens": not can_multiply(DTYPE)}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as directory:
        report["products"] = {
            name: {str(rows): product(shape, rows, options.rounds) for rows in ROWS} for name, shape in SHAPES.items()
        }
        report["steps"] = steps(Path(directory) / "model", options.rounds)
    record.write(options.json, report)
    for name, by_rows in report["products"].items():
        print(f"{name:12}", *(f"{rows}: {each['times as fast']['median']:.2f}" for rows, each in by_rows.items()))
    for name, each in report["steps"].items():
        print(f"{name:12} {each['plain']['median']:.3f} -> {each['widened']['median']:.3f} s", end="  ")
        print(f"{each['times as fast']['median']:.2f} times as fast")


if __name__ == "__main__":
    main()
