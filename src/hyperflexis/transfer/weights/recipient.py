"""The recipient's side: asks candidates in order until one has given the weights, by the best way that leads there.

Attach (the donor's own sealed memory, nothing copied), else a pull by shared memory, Unix socket or TCP. Whatever
goes wrong with one candidate is noted, and the next one asked; what has settled by then is kept, where both agree on
what it is to be.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hyperflexis.transfer.errors import Corrupt, TransferError, WorldError
from hyperflexis.transfer.memory import map_for_reading
from hyperflexis.transfer.receiver import Receiver, ReceiverLimits
from hyperflexis.transfer.weights.filling import Filling
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.joined import Joined, Patience, join
from hyperflexis.transfer.weights.joining import WEIGHTS
from hyperflexis.transfer.weights.manifest import PIECE_BYTES, Manifest
from hyperflexis.transfer.weights.offer import Offer

SPOT_CHECKS = 8
"""Pieces of attached memory that are compared: what is wrong in every third place is found 24 times out of 25."""


class Wanted(NamedTuple):
    """What is asked for, and how far a donor is believed."""

    identity: Identity
    root: bytes = b""
    """Digest of the right bytes; empty: not known, the donor's word counts."""
    attaches: bool = True
    """Whether the donor's memory will do; else it is copied."""
    checks_all: bool = False
    """Whether attached memory is compared whole, and not in a few places. What was copied always is."""


class Taken(NamedTuple):
    """Weights, and how they came."""

    medium: str
    donor: str
    fd: int | None
    """Attached memory, the caller's from now on; None: they are in what it allocated."""
    identity: Identity
    manifest: Manifest | None
    parts: dict[str, bytes]
    """What was asked for besides, as far as the donor has it."""
    failures: list[str]
    """Why earlier candidates did not give them."""
    phases_s: dict[str, float]


class NoDonor(WorldError):  # noqa: N818  # named, like all errors here, for what is the case
    """None of the candidates gives these weights."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__("; ".join(failures) or "there are no candidates")
        self.failures = failures


Allocate = Callable[[Identity, Manifest | None], Filling]
"""Makes the recipient's memory for what a donor has, or makes it anew: what was in it is not wanted any more."""


def take(
    offers: Sequence[Offer],
    wanted: Wanted,
    allocate: Allocate,
    *,
    parts: Sequence[str] = (),
    patience: Patience | None = None,
    media: Sequence[str] | None = None,
) -> Taken:
    """Take the weights from the first candidate that gives them.

    Args:
        parts: what else to bring along.
        media: the only ones to be pulled by; None: all that lead there.

    Raises:
        NoDonor: why none of them did.
    """
    with Receiver(media, ReceiverLimits(transfers_max=1)) as receiver:
        taking = _Taking(wanted, allocate, parts, patience or Patience(), receiver)
        failures: list[str] = []
        for offer in offers:
            try:
                return taking.take(offer)._replace(failures=failures)
            except TransferError as error:
                failures.append(str(error))
    raise NoDonor(failures)


class _Taking:
    """What lasts from one candidate to the next."""

    def __init__(
        self, wanted: Wanted, allocate: Allocate, parts: Sequence[str], patience: Patience, receiver: Receiver
    ) -> None:
        self._wanted = wanted
        self._allocate = allocate
        self._parts = parts
        self._patience = patience
        self._receiver = receiver
        self._filling: Filling | None = None
        self._phases_s: dict[str, float] = {}

    def take(self, offer: Offer) -> Taken:
        wanted = self._wanted
        with self._timed("join"):
            joined = join(offer, wanted.identity, wants_memory=wanted.attaches, patience=self._patience)
        try:
            with self._timed("join"):
                manifest = joined.manifest(self._receiver, self._patience)
                parts = {name: data for name in self._parts if (data := self._part(joined, name)) is not None}
            if manifest is not None and wanted.root not in (b"", manifest.root):
                raise Corrupt(f"{joined.accept.owner} has other bytes than those that are wanted")
            fd = joined.take_memory()
            if fd is None:
                medium, manifest = self._pull(joined, manifest)
            else:
                medium, manifest = "attach", self._check(fd, joined, manifest)
        finally:
            joined.close()
        accept = joined.accept
        return Taken(medium, accept.owner, fd, accept.identity, manifest, parts, [], self._phases_s)

    def _part(self, joined: Joined, name: str) -> bytes | None:
        return joined.part(name, self._receiver, self._patience)

    def _check(self, fd: int, joined: Joined, manifest: Manifest | None) -> Manifest | None:
        """Compare attached memory with the manifest, or with the root where there is none."""
        try:
            with self._timed("check"):
                view = map_for_reading(fd)
                if manifest is None:
                    return self._made(view, joined) if self._wanted.root else None
                count = manifest.pieces if self._wanted.checks_all else min(SPOT_CHECKS, manifest.pieces)
                places = random.SystemRandom().sample(range(manifest.pieces), count)
                wrong = next((piece for piece in places if not manifest.holds(piece, view)), None)
                if wrong is not None:
                    at = wrong * PIECE_BYTES
                    raise Corrupt(f"the memory of {joined.accept.owner} is not what it is to be at byte {at}")
        except BaseException:
            os.close(fd)
            raise
        return manifest

    def _made(self, view: memoryview, joined: Joined) -> Manifest:
        manifest = Manifest.of(view)
        if manifest.root != self._wanted.root:
            raise Corrupt(f"{joined.accept.owner} has other bytes than those that are wanted")
        return manifest

    def _pull(self, joined: Joined, manifest: Manifest | None) -> tuple[str, Manifest]:
        filling = self._filling
        with self._timed("allocate"):
            if filling is None or filling.manifest is None or filling.manifest != manifest:
                filling = self._filling = self._allocate(joined.accept.identity, manifest)
        with self._timed("copy"):
            medium = filling.pull(joined.accept.parts[WEIGHTS], self._receiver, self._patience.chunk_s)
        if self._wanted.root not in (b"", filling.made.root):
            self._filling = None
            raise Corrupt(f"{joined.accept.owner} has other bytes than those that are wanted")
        return medium, filling.made

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self._phases_s[phase] = self._phases_s.get(phase, 0.0) + time.perf_counter() - began_s


def fetch_parts(offers: Sequence[Offer], prefix: str, patience: Patience | None = None) -> dict[str, bytes]:
    """Bring what goes along under names with this prefix, from the first candidate that gives any; names without it.

    Raises:
        NoDonor: why none of them did.
    """
    patience = patience or Patience()
    failures: list[str] = []
    with Receiver(limits=ReceiverLimits(transfers_max=1)) as receiver:
        for offer in offers:
            try:
                joined = join(offer, None, wants_memory=False, patience=patience)
                names = [name for name in joined.accept.parts if name.startswith(prefix)]
                found = {name.removeprefix(prefix): joined.part(name, receiver, patience) for name in names}
            except TransferError as error:
                failures.append(str(error))
                continue
            if found:
                return {name: data for name, data in found.items() if data is not None}
            failures.append(f"{joined.accept.owner} gives nothing along")
    raise NoDonor(failures)
