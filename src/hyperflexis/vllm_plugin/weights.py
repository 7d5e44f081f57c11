"""A checkpoint's tensors for vLLM, from whoever has them: donors in order, else the disk; and lent on from then.

They lie in the same sealed memory, with the same layout and identity, as those of our own engine, so that either can
give them to the other. On one host a recipient maps its donor's memory and copies nothing. vLLM makes its own
parameters from them: what is lent is this memory, not those (which it packs, on a processor, into shapes of its own).

Knows no vLLM.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from hyperflexis.adapters.native.arena_memory import ArenaMemory
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.errors import CheckpointError
from hyperflexis.engine.fingerprint import fingerprint
from hyperflexis.engine.weights import checkpoint_views, load_checkpoint
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.filling import Filling
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.recipient import NoDonor, Taken, Wanted, take
from hyperflexis.vllm_plugin.peers import Peers

log = logging.getLogger(__name__)

_PATIENT_NICENESS = 19
"""Of what nobody waits for."""


class Weights:
    """Filled when made. Ends with `close`, where anything was lent."""

    def __init__(self, directory: Path, dtype: torch.dtype, peers: Peers) -> None:
        """Take them from a donor, else from disk, and lend them from now on.

        Raises:
            EngineError: no donor gives them, and the disk has none either, or has a model of another family.
        """
        self._config = ModelConfig.from_directory(directory)
        self._layout = ArenaLayout.of(self._config, dtype)
        self._memory = ArenaMemory()
        self.failures: list[str] = []
        """Why donors that were asked did not give them."""
        self._donor = self._listening(peers)
        try:
            self._fill(directory, dtype, peers)
        except BaseException:
            self.close()
            raise

    @property
    def lent_at(self) -> tuple[str, int] | None:
        """Where others may ask for them; None: nowhere."""
        return None if self._donor is None else self._donor.offer.tcp

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All of them under their names in the checkpoint. They must not be written to."""
        views = self._layout.views(memoryview(self._memory.map_for_reading()))
        yield from checkpoint_views(self._config, views).items()

    def close(self) -> None:
        """Lend no more. Tensors stay as long as somebody has them."""
        if self._donor is not None:
            self._donor.close()
        self._memory.close()

    def _listening(self, peers: Peers) -> Donor | None:
        if peers.lend_on is None:
            return None
        host, port = peers.lend_on
        try:
            return Donor(secret=peers.secret, tcp_host=host, tcp_port=port)
        except OSError as error:  # Serving without lending is better than not serving.
            log.warning("weights are not lent on %s:%d: %s", host, port, error)
            return None

    def _fill(self, directory: Path, dtype: torch.dtype, peers: Peers) -> None:
        name = str(dtype).removeprefix("torch.")
        identity = Identity(_fingerprint(directory, peers), name, self._layout.hash, self._layout.bytes)
        taken = self._taken(peers, identity)
        self.origin = "disk" if taken is None else f"{taken.donor} by {taken.medium}"
        if taken is None:
            self._read_disk(directory)
        if taken is not None and taken.fd is not None:
            self._memory.close()
            self._memory = ArenaMemory(taken.fd)
        else:
            self._memory.seal()
        if self._donor is not None:
            manifest = None if taken is None else taken.manifest
            self._lend(self._donor, identity if taken is None else taken.identity, manifest)

    def _taken(self, peers: Peers, identity: Identity) -> Taken | None:
        if not peers.offers:
            return None
        try:
            taken = take(peers.offers, Wanted(identity), self._allocate)
        except NoDonor as error:
            self.failures += error.failures
            return None
        self.failures += taken.failures
        return taken

    def _allocate(self, identity: Identity, manifest: Manifest | None) -> Filling:
        """Make room, and lend from now on what settles in it."""
        if self._donor is not None:
            self._donor.withdraw()
        self._memory.resize(identity.size_bytes)
        filling = Filling(self._memory.fd, identity.size_bytes, manifest)
        if self._donor is not None:
            self._donor.fill(identity, self._memory.map_for_lending(), filling.watermark)
            if manifest is not None:
                self._donor.publish(manifest)
        return filling

    def _read_disk(self, directory: Path) -> None:
        if self._donor is not None:
            self._donor.withdraw()
        self._memory.resize(self._layout.bytes)
        try:
            load_checkpoint(directory, self._config, self._layout, memoryview(self._memory.map_for_writing()))
        except CheckpointError as error:
            donors = f"; and no donor gave the weights: {'; '.join(self.failures)}" if self.failures else ""
            raise CheckpointError(f"{error}{donors}") from error

    def _lend(self, donor: Donor, identity: Identity, manifest: Manifest | None) -> None:
        memory = SharedMemory.of_file(self._memory.fd)
        donor.lend(identity, memory)
        if manifest is None:
            threading.Thread(target=_digest, args=(donor, memory.view), name="weights-digest", daemon=True).start()
        else:
            donor.publish(manifest)


def _digest(donor: Donor, view: memoryview) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PATIENT_NICENESS)
    donor.publish(Manifest.of(view))


def _fingerprint(directory: Path, peers: Peers) -> str:
    """Of the checkpoint; empty where it has no weights, which donors may have."""
    try:
        return fingerprint(directory)
    except CheckpointError:
        if peers.offers:
            return ""
        raise
