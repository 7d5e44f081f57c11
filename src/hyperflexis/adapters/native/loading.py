"""Reads a model into shared memory, in a child of the zygote: whatever goes wrong there, the zygote stays clean.

The child is also where torch first computes (converting dtypes opens thread pools that a later fork would not survive)
and where an accelerator is asked for (asking may initialise it, which no process that forks must do).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch

from hyperflexis.adapters.native.arena_memory import ArenaMemory, available_bytes
from hyperflexis.adapters.native.lineage import die_with_parent, exit_in_words
from hyperflexis.adapters.native.messages import Load, Loaded, LoadFailed, decode_from_zygote, encode
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.errors import EngineError
from hyperflexis.engine.kv import KvPool
from hyperflexis.engine.weights import load_checkpoint

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

HOST_CONTEXTS = 4
"""Without a size given, the KV cache of an instance on a CPU holds this many sequences of full length."""
KV_TOKENS_MIN = 64
"""Less holds no request worth serving, nor the steps of a calibration."""
DEVICE_SHARE = 0.85
"""Without a size given, weights and KV cache take this share of an accelerator's free memory."""


class LoadError(Exception):
    """The model cannot be loaded; the message and the hint are for an operator."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how the model is to compute."""

    device: str
    device_count: int
    dtype: torch.dtype

    @property
    def on_host(self) -> bool:
        return torch.device(self.device).type == "cpu"


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: what an instance is forked with."""

    config: ModelConfig
    layout: ArenaLayout
    memory: ArenaMemory
    dtype: torch.dtype


def load(request: Load) -> tuple[Model, Loaded] | LoadFailed:
    """Load the model that is asked for, in a child; the caller stays fit to fork."""
    memory = ArenaMemory()
    outcome = _in_child(lambda: _fill(request, memory))
    if isinstance(outcome, LoadFailed):
        memory.close()
        return outcome
    memory.seal()
    config = ModelConfig.from_directory(request.directory)
    dtype = _DTYPES[outcome.dtype]
    return Model(config, ArenaLayout.of(config, dtype), memory, dtype), outcome


def _in_child(work: Callable[[], Loaded | LoadFailed]) -> Loaded | LoadFailed:
    reader, writer = os.pipe()
    parent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _answer(work, writer, parent_pid)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not answer:
        words = exit_in_words(os.waitstatus_to_exitcode(status))
        return LoadFailed(f"the process that was loading the model died: {words}")
    message = decode_from_zygote(answer)
    assert isinstance(message, Loaded | LoadFailed)
    return message


def _answer(work: Callable[[], Loaded | LoadFailed], writer: int, parent_pid: int) -> NoReturn:
    """The child's whole life; it never returns into what the zygote was doing."""
    status = 1
    try:
        die_with_parent(parent_pid)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(encode(work()))
        status = 0
    except Exception:  # The last supervisor of this process: whatever it is, say it and end.
        log.exception("loading fails")
    finally:
        os._exit(status)


def _fill(request: Load, memory: ArenaMemory) -> Loaded | LoadFailed:
    started_s = time.monotonic()
    os.environ.update(request.environment)
    try:
        config = ModelConfig.from_directory(request.directory)
        target = _target(request, config)
        layout = ArenaLayout.of(config, target.dtype)
        blocks = _kv_blocks(request, config, target, layout.bytes)
        _check_memory(blocks, request, config, target, layout.bytes)
        memory.resize(layout.bytes)
        load_checkpoint(request.directory, config, layout, memoryview(memory.map_for_writing()))
    except EngineError as error:
        return LoadFailed(str(error))
    except LoadError as error:
        return LoadFailed(str(error), error.hint)
    return Loaded(
        device=target.device,
        device_count=target.device_count,
        dtype=str(target.dtype).removeprefix("torch."),
        arena_bytes=layout.bytes,
        layout_hash=layout.hash,
        blocks=blocks,
        context_tokens_max=min(config.context_tokens_max, blocks * request.block_tokens),
        vocab_size=config.vocab_size,
        eos_ids=list(config.eos_ids),
        load_s=time.monotonic() - started_s,
    )


def _target(request: Load, config: ModelConfig) -> Target:
    try:
        device = request.device
        if device == "auto":
            has_accelerator = torch.accelerator.is_available()
            device = torch.accelerator.current_accelerator().type if has_accelerator else "cpu"  # type: ignore[union-attr]
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise LoadError(f"device {request.device!r} cannot be used: {line}", "use --device cpu") from error
    on_host = torch.device(device).type == "cpu"
    count = 1 if on_host or torch.device(device).index is not None else torch.accelerator.device_count()
    return Target(device, count, _dtype(request, config, on_host=on_host))


def _dtype(request: Load, config: ModelConfig, *, on_host: bool) -> torch.dtype:
    if request.dtype == "auto":
        # Half precision without hardware for it is slow on a CPU, and bfloat16 would lose bits that float16 has.
        return torch.float32 if on_host and config.dtype is torch.float16 else config.dtype
    if request.dtype not in _DTYPES:
        raise LoadError(f"dtype {request.dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[request.dtype]


def _kv_blocks(request: Load, config: ModelConfig, target: Target, arena_bytes: int) -> int:
    block_bytes = KvPool.block_bytes(config, request.block_tokens, target.dtype)
    kv_bytes = request.kv_bytes or _suitable_kv_bytes(request, config, target, arena_bytes)
    blocks = kv_bytes // block_bytes
    if blocks * request.block_tokens < KV_TOKENS_MIN:
        raise LoadError(
            f"{kv_bytes / 2**20:.1f} MiB of KV cache hold fewer than {KV_TOKENS_MIN} tokens "
            f"(a block of {request.block_tokens} takes {block_bytes / 2**20:.2f} MiB)",
            "raise engine.kv_cache_gib",
        )
    return blocks


def _suitable_kv_bytes(request: Load, config: ModelConfig, target: Target, arena_bytes: int) -> int:
    """On a host: some full contexts, for memory is shared with everybody. On a device: most of what is free."""
    if target.on_host:
        token_bytes = KvPool.block_bytes(config, request.block_tokens, target.dtype) // request.block_tokens
        wanted = HOST_CONTEXTS * config.context_tokens_max * token_bytes
        spare = (available_bytes() or wanted * request.instances * 4) - arena_bytes
        return max(0, min(wanted, spare // (4 * request.instances)))
    free_bytes, _ = torch.accelerator.get_memory_info(target.device)
    neighbours = -(-request.instances // target.device_count)
    return max(0, int(DEVICE_SHARE * free_bytes / neighbours) - arena_bytes)


def _check_memory(blocks: int, request: Load, config: ModelConfig, target: Target, arena_bytes: int) -> None:
    """Refuse before the kernel's out-of-memory killer does, which tells nobody why."""
    available = available_bytes()
    kv_bytes = blocks * KvPool.block_bytes(config, request.block_tokens, target.dtype) * request.instances
    needed = arena_bytes + (kv_bytes if target.on_host else 0)
    if available is not None and needed > available:
        raise LoadError(
            f"the model needs {arena_bytes / 2**30:.2f} GiB for weights and {kv_bytes / 2**30:.2f} GiB for KV cache, "
            f"but only {available / 2**30:.2f} GiB of memory are available",
            "use fewer instances or a smaller engine.kv_cache_gib",
        )
