"""One safetensors file: its header checked, its tensors read straight to where they belong.

Format: 8 bytes little-endian header length, a JSON object name → {dtype, shape, data_offsets}, then the data, without
holes (https://huggingface.co/docs/safetensors). Read here rather than through the safetensors package because a mapped
file's pages stay resident beside the arena they are copied to, and a plain `readinto` costs half the CPU time.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hyperflexis.engine.errors import CheckpointError

HEADER_BYTES_MAX = 100_000_000
"""The format's own limit."""
PIECE_BYTES = 1 << 22
"""Tensors that must be converted pass through a buffer of this size."""

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


@dataclass(frozen=True, slots=True)
class ShardTensor:
    """Where one tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


class Shard:
    """An open safetensors file. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from None
        try:
            self.tensors = _read_header(path, self._file)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str, target: torch.Tensor) -> None:
        """Fill the (contiguous) target with the tensor's values, converted to the target's dtype."""
        entry = self.tensors[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(f"{self.path}: {name} has dtype {entry.dtype}, which is not a supported float")
        flat = target.view(-1)
        self._file.seek(entry.offset)
        if dtype == target.dtype and target.device.type == "cpu":
            self._fill(flat, name)
            return
        piece = torch.empty(min(PIECE_BYTES // dtype.itemsize, flat.numel()), dtype=dtype)
        for at in range(0, flat.numel(), piece.numel()):
            part = piece[: flat.numel() - at]
            self._fill(part, name)
            flat[at : at + part.numel()].copy_(part)

    def sample(self, name: str, bytes_max: int) -> bytes:
        """Return so many bytes from the middle of a tensor, or all of it."""
        entry = self.tensors[name]
        count = min(entry.bytes, bytes_max)
        return os.pread(self._file.fileno(), count, entry.offset + (entry.bytes - count) // 2)

    def _fill(self, target: torch.Tensor, name: str) -> None:
        view = memoryview(target.view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            # One read returns at most about 2 GiB on Linux.
            count = self._file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{self.path}: ends inside {name}")
            done += count


def _read_header(path: Path, file: BinaryIO) -> dict[str, ShardTensor]:
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_BYTES_MAX):
        raise CheckpointError(f"{path}: not a safetensors file, or cut off in its header ({size} bytes)")
    try:
        header = json.loads(_read_fully(file, length), object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise CheckpointError(f"{path}: header is not valid: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: header is not a JSON object")
    header.pop("__metadata__", None)
    data_start = 8 + length
    tensors = {name: _entry(path, name, row, data_start, size) for name, row in header.items()}
    end = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if entry.offset != end:
            raise CheckpointError(f"{path}: {name} overlaps its neighbour or leaves a hole")
        end += entry.bytes
    if end != size:
        raise CheckpointError(f"{path}: {size - end} bytes after the last tensor")
    return tensors


def _read_fully(file: BinaryIO, length: int) -> bytes:
    parts = []
    while length and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _entry(path: Path, name: str, row: Any, data_start: int, size: int) -> ShardTensor:
    try:
        dtype, shape = str(row["dtype"]), tuple(int(extent) for extent in row["shape"])
        begin, end = (int(offset) for offset in row["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: header entry of {name} is not valid") from None
    if begin < 0 or end < begin or data_start + end > size:
        raise CheckpointError(f"{path}: {name} lies outside the file, which was cut off or is corrupt")
    if end - begin != math.prod(shape) * _ITEM_BYTES.get(dtype, 1):
        raise CheckpointError(f"{path}: {name} has {end - begin} bytes, which do not fit {dtype} {list(shape)}")
    return ShardTensor(dtype, shape, data_start + begin, end - begin)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a name occurs twice")
    return row
