"""Products with weight matrices: on the weights where they lie in the arena, or on a private packed copy of them.

A CPU without instructions for the weights' dtype (most without AVX-512) multiplies such a matrix anew for every row.
There the weights are widened to float32 a piece at a time, for all rows together: 1.3 to 7 times faster at 4 to 256
rows (`benchmarks/products.py`: bfloat16, one core of an AMD EPYC with AVX2).

On a CPU, oneDNN multiplies a matrix that it was allowed to lay out its own way 1.3 to 2 times faster at 1 to 32 rows
(measured on 2 AMD EPYC cores, float32 and bfloat16), at the price of holding it twice or three times. Small models
take that price. The operators are those that torch's own compiler emits; they are probed, compared with the plain
product once, and done without where either fails.

oneDNN makes a kernel for each number of rows that it meets, and keeps it: by the megabyte, with every layer's shapes,
for as long as the loads go on changing. So the rows are padded to one of few numbers (`padded_rows`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F

PACKED_BYTES_MAX = 1 << 25
"""Models with larger weights are computed where they lie."""

_EXACT_ROWS_MAX = 32
"""Up to here, where the batches of decode steps are, nothing is padded."""

_SIZES_PER_OCTAVE = 8
"""So many numbers of rows are multiplied above, between a power of two and the next."""

_ROWS_HINT = 32
"""The packing is laid out for so many rows; measured, it serves 1 to 1024 of them best of all hints tried."""


_WIDENED_ROWS_MIN = 3
"""For fewer rows widening costs more than it saves."""

_WIDENED_WEIGHTS = 1 << 19
"""At a time: 2 MB of float32, which stay in the cache until they have been multiplied."""


class Linear(Protocol):
    """`x @ w.T + b` for x `[rows, in]`."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, `[rows, out]`."""

    def add_to(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return base plus the product; base may be overwritten."""


class PlainLinear:
    """Uses the weight where it lies."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight.t()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._bias is None:
            return torch.mm(x, self._weight)
        return torch.addmm(self._bias, x, self._weight)

    def add_to(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        base.addmm_(x, self._weight)
        return base if self._bias is None else base.add_(self._bias)


class WidenedLinear(PlainLinear):
    """Uses the weight where it lies, and multiplies more than a few rows in float32. Rounds once, at the end."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] < _WIDENED_ROWS_MIN:
            return super().__call__(x)
        return self._wide(x).to(x.dtype)

    def add_to(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        if x.shape[0] < _WIDENED_ROWS_MIN:
            return super().add_to(x, base)
        return base.add_(self._wide(x))

    def _wide(self, x: torch.Tensor) -> torch.Tensor:
        weight, wide = self._weight.t(), x.float()  # [out, in], [rows, in]
        out, size = weight.shape
        step = max(1, _WIDENED_WEIGHTS // size)
        piece = torch.empty(min(step, out), size, dtype=torch.float32, device=x.device)
        product = torch.empty(x.shape[0], out, dtype=torch.float32, device=x.device)
        for at in range(0, out, step):
            narrow = weight[at : at + step]
            widened = piece[: narrow.shape[0]].copy_(narrow)
            torch.mm(wide, widened.t(), out=product[:, at : at + step])
        return product if self._bias is None else product.add_(self._bias)


def padded_rows(rows: int) -> int:
    """Return the number of rows, at least `rows`, with which a packed product is computed."""
    if rows <= _EXACT_ROWS_MAX:
        return rows
    step = (1 << (rows - 1).bit_length() - 1) // _SIZES_PER_OCTAVE
    return -(-rows // step) * step


class PackedLinear:
    """Uses copies of the weight in the layouts that suit it best: oneDNN's own and, in float32, one for single rows."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        operators: Any = torch.ops.mkldnn
        self._weight = operators._reorder_linear_weight.default(weight, _ROWS_HINT)
        self._bias = bias
        self._product = operators._linear_pointwise.default
        self._sum = operators._linear_pointwise.binary
        self._single: PlainLinear | None = None
        if weight.dtype == torch.float32:
            # The operators cost 12 us a call whatever the size, which a single row of float32 notices. It goes
            # fastest along the outputs, if they are many.
            is_wide = weight.shape[0] > weight.shape[1]
            self._single = PlainLinear(weight.t().contiguous().t() if is_wide else weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._single is not None and x.shape[0] == 1:
            return self._single(x)
        product: torch.Tensor = self._product(_padded(x), self._weight, self._bias, "none", [], "")
        return product[: x.shape[0]]

    def add_to(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        if self._single is not None and x.shape[0] == 1:
            return self._single.add_to(x, base)
        total: torch.Tensor = self._sum(_padded(x), _padded(base), self._weight, self._bias, "add")
        return total[: x.shape[0]]


def _padded(x: torch.Tensor) -> torch.Tensor:
    missing = padded_rows(x.shape[0]) - x.shape[0]
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def can_multiply(dtype: torch.dtype) -> bool:
    """Tell whether this machine's CPU multiplies matrices of the dtype, and not just their rows one by one."""
    operators: Any = torch.ops.mkldnn
    try:
        if dtype == torch.bfloat16:
            return bool(operators._is_mkldnn_bf16_supported())
        return dtype != torch.float16 or bool(operators._is_mkldnn_fp16_supported())
    except (AttributeError, RuntimeError):
        return True  # Not an x86 build: nothing is known against it.


def can_pack(dtype: torch.dtype) -> bool:
    """Tell whether this torch, on this machine, multiplies packed matrices of this dtype rightly."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, base = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 32), (48, 32), (48,), (3, 48))
    )
    plain = PlainLinear(weight, bias)
    try:
        packed = PackedLinear(weight, bias)
        actual = torch.stack((packed(x), packed.add_to(x, base.clone()))).float()
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    expected = torch.stack((plain(x), plain.add_to(x, base.clone()))).float()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-1
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)
