"""The process that fills the arena: from donors in order, else from disk. To lend the weights, it stays.

It lends from the first chunk that has come, so that others can be filled behind it, and as long as it lives. It
computes nothing for instances, which therefore serve while it copies; it has threads, which the zygote must not have;
and it never asks an accelerator itself, whose memory it would then hold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hyperflexis.adapters.native.arena_memory import ArenaMemory
from hyperflexis.adapters.native.messages import (
    DATAGRAM_BYTES_MAX,
    Digested,
    FromZygote,
    Load,
    Loaded,
    LoadFailed,
    Offered,
    Profile,
    encode,
)
from hyperflexis.adapters.native.planning import LoadError, Plan, check_memory, plan, plan_elsewhere
from hyperflexis.engine.arena import ArenaLayout
from hyperflexis.engine.config import ModelConfig
from hyperflexis.engine.errors import CheckpointError, EngineError
from hyperflexis.engine.fingerprint import fingerprint
from hyperflexis.engine.weights import load_checkpoint
from hyperflexis.transfer.errors import TransferError
from hyperflexis.transfer.memory import SharedMemory
from hyperflexis.transfer.weights.donor import Donor
from hyperflexis.transfer.weights.filling import Filling
from hyperflexis.transfer.weights.identity import Identity
from hyperflexis.transfer.weights.joined import Patience
from hyperflexis.transfer.weights.manifest import Manifest
from hyperflexis.transfer.weights.offer import Offer, read_offer
from hyperflexis.transfer.weights.recipient import NoDonor, Taken, Wanted, fetch_parts, take

PROFILE, FILES = "profile", "files/"
"""What goes along with weights: how fast a sibling is, and the checkpoint's other files by name."""
FILE_PATTERNS = ("*.json", "*.jinja", "tokenizer.model", "LICENSE*")
_NOT_ALONG = "model.safetensors.index.json"
"""It promises weights, which are not in files here."""
_LENDER_NICENESS, _PATIENT_NICENESS = 10, 19
"""Of threads that lend, and of what nobody waits for: where a core is short, instances go first."""

log = logging.getLogger(__name__)

_profiles = msgspec.msgpack.Decoder(Profile)


def live(request: Load, memory: ArenaMemory, sock: socket.socket) -> None:
    """Be that process: fill the memory, say what came of it, and stay if it is to be lent."""
    os.environ.update(request.environment)  # Before a device is asked for.
    keeper = _Keeper(request, memory, sock)
    if keeper.fill() and request.weights.lends:
        keeper.stay()


class _Keeper:
    def __init__(self, request: Load, memory: ArenaMemory, sock: socket.socket) -> None:
        self._request = request
        self._memory = memory
        self._sock = sock
        self._donor: Donor | None = None
        self._phases_s: dict[str, float] = {}
        self._failures: list[str] = []

    def fill(self) -> bool:
        """Whether the memory holds the weights now; the zygote has been told, and given the memory if it is another."""
        started_s = time.monotonic()
        try:
            loaded, fd = self._filled()
        except LoadError as error:
            self._say(LoadFailed(str(error), error.hint))
            return False
        except EngineError as error:
            donors = f"; and no donor gave the weights: {'; '.join(self._failures)}" if self._failures else ""
            self._say(LoadFailed(f"{error}{donors}"))
            return False
        self._say(msgspec.structs.replace(loaded, load_s=time.monotonic() - started_s, phases_s=self._phases_s), fd)
        return True

    def _filled(self) -> tuple[Loaded, int | None]:
        request, spec = self._request, self._request.weights
        if spec.lends:
            self._donor = _donor(request)
        offers = self._offers()
        if not Path(request.directory, "config.json").exists() and offers:
            with self._timed("files"):
                self._fetch_files(offers)
        with self._timed("plan"):
            config = ModelConfig.from_directory(request.directory)
            planned = (plan_elsewhere if spec.lends else plan)(request, config)
            layout = ArenaLayout.of(config, planned.torch_dtype)
            check_memory(planned, 0)
        identity = Identity("", planned.dtype, layout.hash, layout.bytes)
        if offers or spec.lends:
            with self._timed("identity"):
                identity = msgspec.structs.replace(identity, model=self._fingerprint(may_lack=bool(offers)))
        taken = self._take(offers, identity, planned)
        if taken is None:
            self._read_disk(config, layout, planned)
        if taken is not None and taken.fd is not None:
            self._memory = ArenaMemory(taken.fd)
        else:
            self._memory.seal()
        if self._donor is not None:
            self._lend(self._donor, taken.identity if taken else identity, taken.manifest if taken else None)
        loaded = Loaded(
            device=planned.device,
            device_count=planned.device_count,
            dtype=planned.dtype,
            arena_bytes=layout.bytes,
            layout_hash=layout.hash,
            blocks=planned.blocks,
            context_tokens_max=min(config.context_tokens_max, planned.blocks * request.block_tokens),
            vocab_size=config.vocab_size,
            eos_ids=list(config.eos_ids),
            load_s=0.0,
            hardware=planned.hardware,
            origin=taken.medium if taken else "disk",
            donor=taken.donor if taken else "",
            failures=self._failures,
            profile=self._profile(taken, planned),
        )
        return loaded, taken.fd if taken else None

    # -- from donors

    def _offers(self) -> list[Offer]:
        offers = []
        for data in self._request.weights.candidates:
            try:
                offers.append(read_offer(data))
            except TransferError as error:
                self._failures.append(str(error))
        return offers

    @property
    def _patience(self) -> Patience:
        return Patience(self._request.weights.join_s, self._request.weights.chunk_s)

    def _fetch_files(self, offers: list[Offer]) -> None:
        directory = Path(self._request.directory)
        try:
            files = fetch_parts(offers, FILES, self._patience)
        except NoDonor as error:
            raise LoadError(f"{directory} has no checkpoint, and no donor gives its files: {error}") from error
        for name, data in files.items():
            if "/" in name or name.startswith("."):
                raise LoadError(f"a donor gives a file called {name!r}; ask another one")
            try:
                (directory / name).write_bytes(data)
            except OSError as error:
                raise LoadError(f"{directory / name} cannot be written: {error.strerror}") from error

    def _fingerprint(self, *, may_lack: bool) -> str:
        """Of the checkpoint; empty where it has no weights, which donors may have."""
        try:
            return fingerprint(self._request.directory)
        except CheckpointError:
            if may_lack:
                return ""
            raise

    def _take(self, offers: list[Offer], identity: Identity, planned: Plan) -> Taken | None:
        if not offers:
            return None
        spec = self._request.weights
        wanted = Wanted(identity, spec.digest, attaches=spec.attaches)
        try:
            taken = take(
                offers,
                wanted,
                lambda found, manifest: self._allocate(found, planned, manifest),
                parts=[PROFILE],
                patience=self._patience,
            )
        except NoDonor as error:
            self._failures += error.failures
            return None
        self._failures += taken.failures
        self._phases_s |= taken.phases_s
        if self._donor is not None and PROFILE in taken.parts:
            self._donor.put(PROFILE, taken.parts[PROFILE])
        return taken

    def _allocate(self, identity: Identity, planned: Plan, manifest: Manifest | None) -> Filling:
        """Make room, and lend from now on what settles in it."""
        check_memory(planned, identity.size_bytes)
        if self._donor is not None:
            self._donor.withdraw()
        self._memory.resize(identity.size_bytes)
        filling = Filling(self._memory.fd, identity.size_bytes, manifest)
        if self._donor is not None:
            self._donor.fill(identity, self._memory.map_for_lending(), filling.watermark)
            if manifest is not None:
                self._donor.publish(manifest)
            self._say(Offered(self._donor.offer.to_bytes()))
        return filling

    def _profile(self, taken: Taken | None, planned: Plan) -> Profile | None:
        data = taken.parts.get(PROFILE) if taken else None
        try:
            profile = _profiles.decode(data) if data else None
        except (ValueError, RecursionError):  # Of another version: measuring costs a moment.
            return None
        return profile if profile is not None and profile.hardware == planned.hardware else None

    # -- from disk

    def _read_disk(self, config: ModelConfig, layout: ArenaLayout, planned: Plan) -> None:
        check_memory(planned, layout.bytes)
        if self._donor is not None:
            self._donor.withdraw()
        with self._timed("disk"):
            self._memory.resize(layout.bytes)
            load_checkpoint(self._request.directory, config, layout, memoryview(self._memory.map_for_writing()))

    # -- for others

    def _lend(self, donor: Donor, identity: Identity, manifest: Manifest | None) -> None:
        """Lend it whole."""
        memory = SharedMemory.of_file(self._memory.fd)
        donor.lend(identity, memory)
        self._say(Offered(donor.offer.to_bytes()))
        if manifest is None:
            threading.Thread(target=self._digest, args=(donor, memory.view), name="arena-digest", daemon=True).start()
        else:
            donor.publish(manifest)

    def _digest(self, donor: Donor, view: memoryview) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PATIENT_NICENESS)
        manifest = Manifest.of(view)
        donor.publish(manifest)
        self._say(Digested(manifest.root))

    def stay(self) -> None:
        """Lend until the zygote lets go."""
        assert self._donor is not None
        _yield_to_instances()
        for path in _files_along(Path(self._request.directory)):
            try:
                self._donor.put(FILES + path.name, path.read_bytes())
            except OSError as error:
                log.warning("%s does not go along with the weights: %s", path, error.strerror)
        while data := self._sock.recv(DATAGRAM_BYTES_MAX):
            self._donor.put(PROFILE, data)

    def _say(self, message: FromZygote, fd: int | None = None) -> None:
        with contextlib.suppress(BrokenPipeError):  # The zygote has another keeper.
            socket.send_fds(self._sock, [encode(message)], [] if fd is None else [fd])

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._phases_s[phase] = time.monotonic() - began_s


def _donor(request: Load) -> Donor:
    spec = request.weights
    try:
        return Donor(secret=spec.secret, tcp_host=spec.host, tcp_port=spec.port, bytes_per_s=spec.bytes_per_s)
    except (OSError, ValueError) as error:
        raise LoadError(
            f"weights cannot be lent on {spec.host}:{spec.port}: {error}", "choose another address"
        ) from error


def _yield_to_instances() -> None:
    """For threads that there are now: on Linux each has a priority of its own."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            if os.getpriority(os.PRIO_PROCESS, thread) < _LENDER_NICENESS:
                os.setpriority(os.PRIO_PROCESS, thread, _LENDER_NICENESS)


def _files_along(directory: Path) -> list[Path]:
    found = {path for pattern in FILE_PATTERNS for path in directory.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name != _NOT_ALONG)
