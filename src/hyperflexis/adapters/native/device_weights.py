"""Weights where an instance computes: the arena as it lies on a host, or a copy of it on a device.

The copy comes from a sibling's device over CUDA IPC, device to device, if there is a sibling and that works; else from
the arena on the host. Which of the two ends first has not been measured: no accelerator was at hand.
"""

from __future__ import annotations

import logging

import torch

from hyperflexis.adapters.native.loading import Model
from hyperflexis.engine.arena import flat_bytes
from hyperflexis.transfer.descriptor import read_descriptor
from hyperflexis.transfer.errors import TransferError
from hyperflexis.transfer.receiver import Receiver, ReceiverLimits

log = logging.getLogger(__name__)

PULL_S = 30.0
"""The most that a sibling's weights may take before the host's are copied."""


def flat_weights(model: Model, device: str, sibling: bytes = b"") -> torch.Tensor:
    """The arena's bytes, readable by that device. `sibling` leads to another instance's copy of them."""
    if torch.device(device).type == "cpu":
        return flat_bytes(memoryview(model.memory.map_for_reading()))
    flat = torch.empty(model.layout.bytes, dtype=torch.uint8, device=device)
    if not (sibling and pulled(flat, sibling)):
        flat.copy_(flat_bytes(memoryview(model.memory.map_for_reading())))
    return flat


def pulled(flat: torch.Tensor, sibling: bytes) -> bool:
    """Whether all of a sibling's weights were copied; if not, what is there means nothing."""
    with Receiver(["cuda_ipc"], ReceiverLimits(transfers_max=1)) as receiver:
        try:
            receiver.pull(read_descriptor(sibling), [(0, 0, flat.nbytes)], flat, timeout_s=PULL_S).result()
        except TransferError as error:
            log.warning("weights come from this host's memory: %s", error)
            return False
    return True
