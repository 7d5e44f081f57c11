"""What loading a model will take: where it computes, in which numbers, with how many KV blocks, in how much memory.

Asks the device, and so may initialise an accelerator: never in a process that forks.
"""

from __future__ import annotations

import msgspec
import torch

from hyperflexis.adapters.native.arena_memory import available_bytes
from hyperflexis.adapters.native.child import Child
from hyperflexis.adapters.native.hardware import hardware_of
from hyperflexis.adapters.native.messages import Load, LoadFailed
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.kv import KvPool

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


class Plan(msgspec.Struct, frozen=True, tag="plan"):
    """Where and how the model is to compute."""

    device: str
    device_count: int
    dtype: str
    blocks: int
    """Of KV, that each instance will have."""
    kv_bytes: int
    """Of all instances."""
    hardware: str

    @property
    def on_host(self) -> bool:
        return torch.device(self.device).type == "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]


def plan(request: Load, config: ModelConfig) -> Plan:
    """Decide.

    Raises:
        LoadError: the device cannot be used, or holds too little.
    """
    device = _device(request)
    on_host = torch.device(device).type == "cpu"
    count = 1 if on_host or torch.device(device).index is not None else torch.accelerator.device_count()
    dtype = _dtype(request, config, on_host=on_host)
    arena_bytes = ArenaLayout.of(config, dtype).bytes
    block_bytes = KvPool.block_bytes(config, request.block_tokens, dtype)
    kv_bytes = request.kv_bytes or (
        _suitable_on_host(request, config, block_bytes, arena_bytes)
        if on_host
        else _suitable_on_device(request, device, count, arena_bytes)
    )
    blocks = kv_bytes // block_bytes
    if blocks * request.block_tokens < KV_TOKENS_MIN:
        raise LoadError(
            f"{kv_bytes / 2**20:.1f} MiB of KV cache hold fewer than {KV_TOKENS_MIN} tokens "
            f"(a block of {request.block_tokens} takes {block_bytes / 2**20:.2f} MiB)",
            "raise engine.kv_cache_gib",
        )
    name = str(dtype).removeprefix("torch.")
    return Plan(device, count, name, blocks, blocks * block_bytes * request.instances, hardware_of(device))


def plan_elsewhere(request: Load, config: ModelConfig) -> Plan:
    """The same for a process that is to live long: if an accelerator is asked, a child of it asks.

    Raises:
        LoadError: as `plan`.
    """
    if request.device == "cpu" or (request.device == "auto" and not torch.accelerator.is_available()):
        return plan(request, config)
    child = Child(lambda sock: sock.sendall(_encode(_planned(request, config))))
    data, _ = child.hear()
    words = child.end()
    if not data:
        raise LoadError(f"the process that was asking the device died: {words}")
    answer = _decoder.decode(data)
    if isinstance(answer, LoadFailed):
        raise LoadError(answer.reason, answer.hint)
    return answer


def _planned(request: Load, config: ModelConfig) -> Plan | LoadFailed:
    try:
        return plan(request, config)
    except LoadError as error:
        return LoadFailed(str(error), error.hint)


_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Plan | LoadFailed] = msgspec.msgpack.Decoder(Plan | LoadFailed)


def _device(request: Load) -> str:
    try:
        device = request.device
        if device == "auto":
            has_accelerator = torch.accelerator.is_available()
            device = torch.accelerator.current_accelerator().type if has_accelerator else "cpu"  # type: ignore[union-attr]
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise LoadError(f"device {request.device!r} cannot be used: {line}", "use --device cpu") from error
    return device


def _dtype(request: Load, config: ModelConfig, *, on_host: bool) -> torch.dtype:
    if request.dtype == "auto":
        # Half precision without hardware for it is slow on a CPU, and bfloat16 would lose bits that float16 has.
        return torch.float32 if on_host and config.dtype is torch.float16 else config.dtype
    if request.dtype not in _DTYPES:
        raise LoadError(f"dtype {request.dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[request.dtype]


def _suitable_on_host(request: Load, config: ModelConfig, block_bytes: int, arena_bytes: int) -> int:
    """Some full contexts, for memory is shared with everybody."""
    wanted = HOST_CONTEXTS * config.context_tokens_max * (block_bytes // request.block_tokens)
    spare = (available_bytes() or wanted * request.instances * 4) - arena_bytes
    return max(0, min(wanted, spare // (4 * request.instances)))


def _suitable_on_device(request: Load, device: str, device_count: int, arena_bytes: int) -> int:
    """Most of what is free."""
    free_bytes, _ = torch.accelerator.get_memory_info(device)
    neighbours = -(-request.instances // device_count)
    return max(0, int(DEVICE_SHARE * free_bytes / neighbours) - arena_bytes)


def check_memory(plan: Plan, arena_bytes: int) -> None:
    """Refuse before the kernel's out-of-memory killer does, which tells nobody why.

    Args:
        arena_bytes: what the weights will take of this host's memory; 0 where they are a donor's.

    Raises:
        LoadError: there is too little.
    """
    available = available_bytes()
    needed = arena_bytes + (plan.kv_bytes if plan.on_host else 0)
    if available is not None and needed > available:
        raise LoadError(
            f"the model needs {arena_bytes / 2**30:.2f} GiB for weights and {plan.kv_bytes / 2**30:.2f} GiB for KV "
            f"cache, but only {available / 2**30:.2f} GiB of memory are available",
            "use fewer instances or a smaller engine.kv_cache_gib",
        )
