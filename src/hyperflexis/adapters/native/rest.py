"""What an instance gives back while it sleeps, and takes again when it wakes.

Level 1: the KV. Level 2: the weights too, which on a host means its mapping of them and the copy that small models are
multiplied with; the arena stays with the zygote, and waking maps it anew. Knows no requests: whoever sends it to sleep
has none.
"""

from __future__ import annotations

import torch

from hyperflexis.adapters.native.arena_memory import available_bytes
from hyperflexis.adapters.native.device_weights import flat_weights
from hyperflexis.adapters.native.loading import Model
from hyperflexis.adapters.native.pages import give_back, trim_heap
from hyperflexis.adapters.native.peers import Peers
from hyperflexis.engine.runner import Runner
from hyperflexis.transfer.memory import SharedMemory

LEVELS = (1, 2)


class Rest:
    """Of one instance; awake when made."""

    def __init__(
        self,
        runner: Runner,
        memory: SharedMemory | None,
        peers: Peers,
        *,
        model: Model,
        device: str,
        flat: torch.Tensor | None,
    ) -> None:
        self.level = 0
        """0: awake."""
        self.flat = flat
        """The weights that the runner is bound to; None while they are given back."""
        self._runner = runner
        self._memory = memory
        self._peers = peers
        self._model = model
        self._device = device

    @property
    def is_on_device(self) -> bool:
        return self._memory is None

    def sleep(self, level: int) -> int:
        """Go to this level, unless it is deeper already; return the bytes that this gave back."""
        freed_bytes = 0
        if self.level == 0:
            freed_bytes += self._drop_kv()
        if level == 2 and self.level < 2:
            freed_bytes += self._drop_weights()
        self.level = max(self.level, level)
        return freed_bytes

    def refusal(self) -> str:
        """Why it could not wake; empty if it can."""
        needed = self._runner.pool.bytes if self._memory is not None else 0
        available = available_bytes()
        if self.level == 0 or available is None or needed <= available:
            return ""
        return f"its KV takes {needed / 2**30:.2f} GiB and {available / 2**30:.2f} GiB are available"

    def wake(self) -> None:
        """Have all back. Pages of KV on a host come as they are used, as they did at first."""
        if self.level == 2:
            self.flat = flat_weights(self._model, self._device)
            self._runner.rebind(self._model.layout.views(self.flat))
        if self.level and self.is_on_device:
            self._runner.pool.restore()
        self.level = 0

    def _drop_kv(self) -> int:
        if self._memory is not None:
            return give_back(self._memory)
        self._runner.pool.drop()
        _empty_device_cache()
        return self._runner.pool.bytes

    def _drop_weights(self) -> int:
        has_own = self._runner.is_packed or self.is_on_device
        self._peers.withdraw_weights()
        self._runner.unbind()
        self.flat = None
        if self.is_on_device:
            _empty_device_cache()
        else:
            trim_heap()
        return self._model.layout.bytes if has_own else 0


def _empty_device_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
