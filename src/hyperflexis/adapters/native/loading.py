"""Loads a model into shared memory, in a child of the zygote: whatever goes wrong there, the zygote stays clean.

The child (see `keeper`) is also where torch first computes (converting dtypes opens thread pools that a later fork
would not survive) and where an accelerator is asked for (asking may initialise it, which no process that forks must
do). What is asked of it, how much memory it takes and whether there is that much is decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hyperflexis.adapters.native import keeper
from hyperflexis.adapters.native.arena_memory import ArenaMemory
from hyperflexis.adapters.native.child import Child
from hyperflexis.adapters.native.messages import FromZygote, Load, Loaded, LoadFailed, decode_from_zygote
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: what an instance is forked with."""

    config: ModelConfig
    layout: ArenaLayout
    memory: ArenaMemory
    dtype: torch.dtype


class Held(NamedTuple):
    """A model, and the process that lends it on, if there is one."""

    model: Model
    loaded: Loaded
    keeper: Child | None


def load(request: Load, hear: Callable[[FromZygote], None] = lambda _: None) -> Held | LoadFailed:
    """Load the model that is asked for, in a child; the caller stays fit to fork.

    `hear` is told what is said before that is done: where the weights can be had, as soon as they can.
    """
    memory = ArenaMemory()
    child = Child(lambda sock: keeper.live(request, memory, sock))
    outcome, fd = _outcome(child, hear)
    if fd is not None or isinstance(outcome, LoadFailed):
        memory.close()
    if isinstance(outcome, LoadFailed):
        return outcome
    if not request.weights.lends:
        child.end()
    config = ModelConfig.from_directory(request.directory)
    dtype: torch.dtype = getattr(torch, outcome.dtype)
    model = Model(config, ArenaLayout.of(config, dtype), memory if fd is None else ArenaMemory(fd), dtype)
    return Held(model, outcome, child if request.weights.lends else None)


def _outcome(child: Child, hear: Callable[[FromZygote], None]) -> tuple[Loaded | LoadFailed, int | None]:
    while True:
        data, fd = child.hear()
        if not data:
            return LoadFailed(f"the process that was loading the model died: {child.end()}"), None
        message = decode_from_zygote(data)
        if isinstance(message, Loaded):
            return message, fd
        if isinstance(message, LoadFailed):
            child.end()
            return message, None
        hear(message)
