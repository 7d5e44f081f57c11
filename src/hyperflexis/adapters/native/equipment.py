"""What an instance computes with: weights, KV pool, and what it knows of its own speed.

Made once; it outlives the gateways that its instance serves one after the other, while what belongs to a gateway's
requests (`scheduler`, `peers`) is made anew for each. Knows no messages but the order it is made from.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import asdict

import torch

from hyperflexis.adapters.native import calibration
from hyperflexis.adapters.native.device_weights import flat_weights
from hyperflexis.adapters.native.loading import Model
from hyperflexis.adapters.native.messages import Fork
from hyperflexis.adapters.native.peers import Peers
from hyperflexis.adapters.native.rest import Rest
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.latency import OnlineLatency, Sample, StepHistory, StepShape, fit
from hyperflexis.core.step import StepScheduler
from hyperflexis.engine.kv import KvPool
from hyperflexis.engine.runner import Runner
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.wire.messages import Ready


class Equipment:
    """Of one process; ready for requests when made."""

    def __init__(self, order: Fork, model: Model) -> None:
        marks = [("begin", time.monotonic())]
        os.environ.update(order.environment)  # Before a device is touched: its driver looks at them once.
        torch.set_num_threads(order.threads)
        self._model = model
        self._device = order.device
        self._order = order
        flat = flat_weights(model, order.device, order.weights)
        marks.append(("weights", time.monotonic()))
        self._memory = _kv_memory(order, model)
        self.runner = Runner(
            model.config,
            model.layout.views(flat),
            blocks=order.blocks,
            block_tokens=order.block_tokens,
            device=torch.device(order.device),
            dtype=model.dtype,
            kv_memory=None if self._memory is None else self._memory.view,
        )
        marks.append(("runner", time.monotonic()))
        self._learn(order)
        marks.append(("warm-up" if order.samples else "calibration", time.monotonic()))
        self._equip(flat)
        # What lives now lives as long as the process: no collection need look at it, and no page of it be copied.
        gc.freeze()
        self._startup_s = dict(calibration.phases(marks))

    def _learn(self, order: Fork) -> None:
        self._samples: list[Sample] = [(StepShape(*shape), actual_s) for shape, actual_s in order.samples]
        if self._samples:
            calibration.warm_up(self.runner, order.blocks, order.block_tokens)
        else:
            self._samples = calibration.measure(self.runner, order.blocks, order.block_tokens)
        self._latency = OnlineLatency(fit(self._samples), StepHistory(self._samples))

    def _equip(self, flat: torch.Tensor) -> None:
        order = self._order
        pool = BlockPool(order.blocks, order.block_tokens)
        self.scheduler = StepScheduler(pool, order.seqs_max, self._latency)
        self.peers = Peers(self.runner.pool, self._memory, host=order.peers_host, has_checksums=order.checks_transfers)
        self._lent = b"" if self._memory is not None else self.peers.lend_weights(flat)
        self.rest = Rest(self.runner, self._memory, self.peers, model=self._model, device=self._device, flat=flat)

    def clear(self) -> None:
        """Drop all that is there of requests, and all links; what is being copied here ends before this returns."""
        self.peers.close()
        self.runner.close_all()
        for blocks in self.scheduler.moves.expected.values():  # They may hold half a copy.
            self.runner.pool.scrub(blocks)

    def turn_to(self, order: Fork) -> None:
        """Be ready for another gateway's requests, after `clear`.

        Raises:
            MemoryError: it slept, and what it gave back cannot be had again.
        """
        began_s = time.monotonic()
        if why := self.rest.refusal():
            raise MemoryError(why)
        self.rest.wake()
        assert self.rest.flat is not None
        if order.threads != self._order.threads:
            torch.set_num_threads(order.threads)
            self._learn(order)
        self._order = order
        self._equip(self.rest.flat)
        self._startup_s = {"adoption": time.monotonic() - began_s}

    def ready(self) -> Ready:
        """What the instance says of it first."""
        order = self._order
        return Ready(
            blocks=order.blocks,
            block_tokens=order.block_tokens,
            seqs_max=order.seqs_max,
            latency=asdict(self._latency.model),
            samples=self._samples,
            device=f"{self._device} ({os.getpid()})",
            startup_s=self._startup_s,
            kv_token_bytes=self.runner.pool.bytes_per_block // order.block_tokens,
            weights=self._lent,
        )


def _kv_memory(order: Fork, model: Model) -> SharedMemory | None:
    """Where peers on this host can read it; a device's memory is shared as it is."""
    if torch.device(order.device).type != "cpu":
        return None
    block_bytes = KvPool.block_bytes(model.config, order.block_tokens, model.dtype)
    return SharedMemory(order.blocks * block_bytes, "hyperflexis-kv")
