"""Write src/hyperflexis/sim/data/profiles.csv: `python scripts/derive_profiles.py FITS_CSV`.

FITS_CSV holds coefficients in milliseconds of  t = a + b*P + c*PC + d*B + e*S  (form `linear`), where PC is the sum of
q * (prior + q/2) over chunks. That is half of our sum of n^2 + 2nc, so `prefill_pair_s` is c/2; both bases are a.
Left out: the hinge form, which our model has not; rows without a KV size; Splitwise at TP2, whose fits miss by more
than half. KERNELS adds models that the file lacks.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parent.parent / "src" / "hyperflexis" / "sim" / "data" / "profiles.csv"

HEADER = """\
# Step times and KV sizes of common models on common GPUs. Made by scripts/derive_profiles.py; do not edit.
# Times are seconds, the columns are named as the coefficients of hyperflexis.core.latency.LatencyModel.
# Derived from:
#   vLLM kernel times of ai-dynamo/aiconfigurator, Apache-2.0, commit 095f58a51c4ca8e61b66ec108d86f223f8d559ce
#   element-wise kernel times of microsoft/vidur, MIT, commit 7d47513363ec447a741ac5e47241580b47724fbf
#   vLLM kernel times of casys-kaist/LLMServingSim, MIT, commit 5daddb21a545658d5150b535712d0494584b5278
#   end-to-end times of Mutinifni/splitwise-sim, MIT, commit 8f99e7dc9b407f4ce2488d03dd44c0b8b946dab0
# All but the last (names ending in /splitwise) are composed of kernel times and hold no time for scheduling, sampling
# or text: real engines are slower. `mape` is the cross-validated relative error against what was fitted; where that is
# itself composed, it says nothing of a real GPU.
# KV sizes are computed, not measured: 90 % of the memory, less the weights, less 2 GB per GPU.
"""
COLUMNS = (
    "name",
    "prefill_base_s",
    "decode_base_s",
    "prefill_token_s",
    "prefill_pair_s",
    "decode_seq_s",
    "context_token_s",
    "kv_tokens",
    "mape",
    "source",
)
SPLITWISE_TP_MIN = 4
MEMORY_GB = {"a100": 80, "h100": 80, "h200": 141}
MEMORY_SHARE = 0.9
RESERVED_GB = 2


class Size(NamedTuple):
    weights_gb: float
    kv_bytes: int
    """Per token, bfloat16."""


SIZES = {
    "qwen2.5-7b": Size(15.2, 57_344),
    "qwen2.5-14b": Size(29.6, 196_608),
    "qwen2.5-32b": Size(65.6, 262_144),
}

KERNELS: dict[tuple[str, str, int], tuple[float, float, float, float, float, float]] = {
    ("qwen2.5-7b", "a100", 1): (5.73, 0.05016, 1.184e-6, 10.377, 0.0217, 3.943e-5),
    ("qwen2.5-7b", "h100", 1): (4.21, 0.01648, 5.26e-7, 5.934, 0.0082, 1.828e-5),
    ("qwen2.5-7b", "h200", 1): (2.91, 0.01696, 4.96e-7, 4.602, 0.0089, 1.287e-5),
    ("qwen2.5-14b", "a100", 1): (14.49, 0.09982, 2.696e-6, 20.808, 0.0589, 1.238e-4),
    ("qwen2.5-14b", "h100", 1): (8.21, 0.03028, 1.456e-6, 11.402, 0.0180, 6.289e-5),
    ("qwen2.5-14b", "h200", 1): (5.54, 0.03176, 1.299e-6, 8.731, 0.0179, 4.369e-5),
    ("qwen2.5-32b", "a100", 2): (16.36, 0.12889, 1.683e-6, 24.936, 0.0740, 9.065e-5),
    ("qwen2.5-32b", "a100", 4): (9.79, 0.07575, 6.45e-7, 14.365, 0.0443, 4.686e-5),
    ("qwen2.5-32b", "h100", 2): (9.85, 0.04306, 1.055e-6, 13.936, 0.0241, 4.177e-5),
    ("qwen2.5-32b", "h100", 4): (7.27, 0.02682, 4.28e-7, 8.329, 0.0200, 2.128e-5),
    ("qwen2.5-32b", "h200", 1): (9.52, 0.07731, 1.967e-6, 18.801, 0.0324, 5.812e-5),
    ("qwen2.5-32b", "h200", 2): (7.05, 0.04376, 1.021e-6, 10.947, 0.0235, 2.914e-5),
    ("qwen2.5-32b", "h200", 4): (5.78, 0.02665, 4.88e-7, 6.974, 0.0178, 1.491e-5),
}
"""By model, hardware and tp, milliseconds: prefill a + b n + c n^2, decode d + e B + f S; fitted to the kernel times of
aiconfigurator. Here n^2 is ours, so c is not halved."""

Row = dict[str, str]


def derive(fits: Path) -> str:
    """The whole table as text."""
    with fits.open(encoding="utf-8", newline="") as lines:
        rows = [*_fitted(csv.DictReader(lines)), *_kernels()]
    twins = {row["name"] for row in rows if sum(row["name"] == other["name"] for other in rows) > 1}
    assert not twins, f"two rows of one name: {twins}"
    body = [",".join(row[column] for column in COLUMNS) for row in sorted(rows, key=lambda row: row["name"])]
    return HEADER + "\n".join([",".join(COLUMNS), *body]) + "\n"


def _fitted(fits: Iterable[Row]) -> Iterator[Row]:
    given = [fit for fit in fits if fit["form"] == "linear"]
    assert given, "the file has no linear fits"
    for fit in given:
        is_splitwise = "splitwise" in fit["source"]
        if is_splitwise and int(fit["tp"]) < SPLITWISE_TP_MIN:
            continue
        # Splitwise says nothing of memory; its 16-bit weights leave what the bfloat16 ones of the same model leave.
        twin = (fit["model"], fit["hardware"].removesuffix("-powercap"), fit["tp"])
        tokens = fit["kv_capacity_tokens"] or (_sixteen_bit(given, twin) if is_splitwise else "")
        if tokens:
            yield _fitted_row(fit, tokens, "/splitwise" if is_splitwise else "")


def _sixteen_bit(given: list[Row], twin: tuple[str, str, str]) -> str:
    sizes = (
        fit["kv_capacity_tokens"]
        for fit in given
        if (fit["model"], fit["hardware"], fit["tp"]) == twin and fit["weight_dtype"] == "bfloat16"
    )
    return next(sizes, "")


def _fitted_row(fit: Row, kv_tokens: str, suffix: str) -> Row:
    base_ms, token_ms, pairs_ms, seq_ms, context_ms = (
        float(fit[name])
        for name in ("a_ms", "b_ms_per_token", "c_ms_per_token_ctx", "d_ms_per_decode_seq", "e_ms_per_ctx_token")
    )
    name = f"{fit['model']}/{fit['hardware']}/tp{fit['tp']}/{fit['weight_dtype']}{suffix}"
    model_ms = (base_ms, base_ms, token_ms, pairs_ms / 2, seq_ms, context_ms)
    return _row(name, model_ms, int(kv_tokens), fit["mape_cv5"], fit["source"])


def _kernels() -> Iterator[Row]:
    for (model, hardware, tp), (base, token, pair, decode_base, seq, context) in KERNELS.items():
        size = SIZES[model]
        free_gb = tp * (MEMORY_SHARE * MEMORY_GB[hardware] - RESERVED_GB) - size.weights_gb
        name = f"{model}/{hardware}/tp{tp}/bfloat16"
        model_ms = (base, decode_base, token, pair, seq, context)
        yield _row(name, model_ms, int(free_gb * 1e9 / size.kv_bytes), "", "fitted: aiconfigurator vLLM kernel times")


def _row(name: str, model_ms: tuple[float, ...], kv_tokens: int, mape: str, source: str) -> Row:
    seconds = [f"{value_ms / 1000:.6g}" for value_ms in model_ms]
    return dict(zip(COLUMNS, [name, *seconds, str(kv_tokens), mape, source], strict=True))


if __name__ == "__main__":
    TABLE.write_text(derive(Path(sys.argv[1])), encoding="utf-8")
