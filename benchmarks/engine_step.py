"""CPU time of the engine's steps against transformers, same weights, same batch, one torch thread, rounds interleaved.

    python benchmarks/engine_step.py --json engine_step.json

Decode: `transformers.generate` on a static batch with a cached KV, (time of 64 new tokens − time of 1) / 63; ours is
the mean of the 63 steps after the prompt's, slices and sampling included. `loop` is transformers' bare forward and
argmax, without what generate does around it. Prefill: transformers' bare forward and argmax over a rectangular batch;
ours is one packed step. Ratios are ours / transformers; read them, not the milliseconds, which are the machine's.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

import record
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.runner import Runner, SequenceSlice
from hyperflexis.engine.weights import load_checkpoint
from hyperflexis.wire.messages import Sampling

TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 896,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
PROMPT_TOKENS, NEW_TOKENS, BLOCK_TOKENS = 128, 64, 16
PREFILL_SEQS, PREFILL_TOKENS = 32, 32
LIMITS = {"decode_float32_1": 0.6, "decode_float32_32": 1.0, "decode_bfloat16_32": 0.6, "prefill_float32": 1.0}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Theirs:
    """transformers, static batch."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self.model = model

    def generate(self, prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
        return self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )

    @torch.inference_mode()
    def loop(self, prompts: torch.Tensor, new_tokens: int) -> tuple[float, float]:
        """Return CPU seconds of the prompt and of the mean step after it."""
        begin = time.process_time()
        out = self.model(prompts, use_cache=True, logits_to_keep=1)
        tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        middle = time.process_time()
        for _ in range(new_tokens - 1):
            out = self.model(tokens, past_key_values=out.past_key_values, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        return middle - begin, (time.process_time() - middle) / max(new_tokens - 1, 1)

    def decode(self, prompts: torch.Tensor) -> float:
        begin = time.process_time()
        self.generate(prompts, 1)
        middle = time.process_time()
        self.generate(prompts, NEW_TOKENS)
        end = time.process_time()
        return ((end - middle) - (middle - begin)) / (NEW_TOKENS - 1)


class Ours:
    """The engine, with a scheduler's share of the work: a list of slices per step."""

    def __init__(self, path: Path, dtype: torch.dtype, seqs: int) -> None:
        config = ModelConfig.from_directory(path)
        layout = ArenaLayout.of(config, dtype)
        arena = layout.allocate()
        load_checkpoint(path, config, layout, arena)
        self.blocks_each = -(-(PROMPT_TOKENS + NEW_TOKENS) // BLOCK_TOKENS)
        self.runner = Runner(
            config, layout.views(arena), blocks=seqs * self.blocks_each, block_tokens=BLOCK_TOKENS, dtype=dtype
        )

    def run(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
        """Return CPU seconds of the prompts' step and of the mean step after it, and the outputs."""
        each = self.blocks_each
        tables = [list(range(each * seq, each * (seq + 1))) for seq in range(len(prompts))]
        for seq, prompt in enumerate(prompts):
            self.runner.open(seq, Sampling(temperature=0.0), prompt, [])
        begin = time.process_time()
        slices = [SequenceSlice(seq, prompt, 0, tables[seq], sample=True) for seq, prompt in enumerate(prompts)]
        tokens = self.runner.step(slices).tokens
        middle = time.process_time()
        outputs = [[token] for token in tokens]
        length = len(prompts[0])
        for step in range(new_tokens - 1):
            slices = [
                SequenceSlice(seq, [token], length + step, tables[seq], sample=True) for seq, token in enumerate(tokens)
            ]
            tokens = self.runner.step(slices).tokens
            for output, token in zip(outputs, tokens, strict=True):
                output.append(token)
        end = time.process_time()
        for seq in range(len(prompts)):
            self.runner.close(seq)
        return middle - begin, (end - middle) / max(new_tokens - 1, 1), outputs


def interleaved(rounds: int, **candidates: Callable[[], float]) -> dict[str, list[float]]:
    """Run all candidates in turn, a warm-up round first; return milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            gc.collect()
            milliseconds = candidate() * 1e3
            if number:
                times[name].append(milliseconds)
    return times


def row(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, extremes, and ours over each of the others."""
    ours = statistics.median(times["ours"])
    result: dict[str, Any] = {"name": name}
    for who, values in times.items():
        result[f"{who}_ms"] = round(statistics.median(values), 3)
        result[f"{who}_range_ms"] = [round(min(values), 3), round(max(values), 3)]
        if who != "ours":
            pairs = [mine / other for mine, other in zip(times["ours"], values, strict=True)]
            result[f"ratio_{who}"] = round(ours / statistics.median(values), 3)
            result[f"ratio_{who}_range"] = [round(min(pairs), 3), round(max(pairs), 3)]
    return result


def measure(path: Path, dtype_name: str, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    dtype = DTYPES[dtype_name]
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    model.generation_config.pad_token_id = 0
    theirs = Theirs(model)
    ours = Ours(path, dtype, max(*batches, PREFILL_SEQS))
    generator = torch.Generator().manual_seed(1)
    rows = []
    for batch in batches:
        prompts = torch.randint(TINY["vocab_size"], (batch, PROMPT_TOKENS), generator=generator)
        listed = prompts.tolist()
        times = interleaved(
            rounds,
            generate=lambda prompts=prompts: theirs.decode(prompts),
            loop=lambda prompts=prompts: theirs.loop(prompts, NEW_TOKENS)[1],
            ours=lambda listed=listed: ours.run(listed, NEW_TOKENS)[1],
        )
        rows.append(row(f"decode_{dtype_name}_{batch}", times))
        expected = theirs.generate(prompts, NEW_TOKENS)[:, PROMPT_TOKENS:].tolist()
        actual = ours.run(listed, NEW_TOKENS)[2]
        same = sum(
            a == b for mine, other in zip(actual, expected, strict=True) for a, b in zip(mine, other, strict=True)
        )
        rows[-1]["tokens_equal_share"] = round(same / (batch * NEW_TOKENS), 4)
    prompts = torch.randint(TINY["vocab_size"], (PREFILL_SEQS, PREFILL_TOKENS), generator=generator)
    listed = prompts.tolist()
    times = interleaved(4 * rounds, loop=lambda: theirs.loop(prompts, 1)[0], ours=lambda: ours.run(listed, 1)[0])
    rows.append(row(f"prefill_{dtype_name}", times))
    return rows


def main() -> int:
    parser = record.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).save_pretrained(path)
        rows = [each for name in options.dtypes for each in measure(path, name, options.batches, options.rounds)]
    missed = []
    for each in rows:
        limit = LIMITS.get(each["name"])
        ratio = each.get("ratio_generate", each["ratio_loop"])
        each["limit"] = limit
        if limit is not None and ratio > limit:
            missed.append(each["name"])
        theirs = each.get("generate_ms", each["loop_ms"])
        print(
            f"{each['name']:22} ours {each['ours_ms']:8.3f} ms   transformers {theirs:8.3f} ms   ratio {ratio:.2f} "
            f"(loop {each['ratio_loop']:.2f})" + (f"   limit {limit}" if limit else "")
        )
    machine = {**record.machine("torch", "transformers"), "torch_threads": torch.get_num_threads()}
    report = {"machine": machine, "model": TINY, "rounds": options.rounds, "rows": rows, "missed": missed}
    record.write(options.json, report)
    print("missed: " + ", ".join(missed) if missed else "all limits kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
