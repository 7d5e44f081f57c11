"""Instances that are `vllm serve` processes of this machine, started, attached and ended here.

Each gets a port and GPUs of its own (`CUDA_VISIBLE_DEVICES`), which are free again when its whole process group is
gone. They are asked to end first, and killed if they do not; they are asked too if this process dies, whatever kills it
(`tether`). What they print goes to files, whose last lines tell why one did not start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.vllm.adapter import VllmAdapter
from hyperflexis.adapters.vllm.attaching import Complaints
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.attached import AttachedLauncher, AttachError, AttachSpec, Target

log = logging.getLogger(__name__)

PARTING_S = 10.0
"""So long a process group gets to end after it was asked to."""
SIDE_CHANNEL_PORT = 5600
"""Of the first server's connector; the others follow."""
_KV_ROLES = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer", Role.MIXED: "kv_both"}
_TAIL_LINES = 5


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """How servers are started."""

    model: str
    """A directory, or a hub id."""
    served_name: str
    attach: AttachSpec
    """How they are treated once they answer; its targets do not matter."""
    command: str = "vllm serve"
    args: str = ""
    gpus: int = 1
    """Of each; 0 leaves them alone."""
    first_port: int = 8100
    start_timeout_s: float = 600.0


@dataclass(slots=True)
class _Slot:
    """A place for one server: its port, its GPUs."""

    number: int
    role: Role = Role.MIXED
    is_taken: bool = False


@dataclass(slots=True, eq=False)
class _Started:
    """A process from its start to the end of its group."""

    slot: _Slot
    process: subprocess.Popen[bytes]
    output: Path
    pidfd: int
    when_ended: Callable[[int], None] = field(default=lambda _: None)
    kill: asyncio.TimerHandle | None = None


class VllmLauncher:
    """Make with `start`; all servers end with it."""

    def __init__(self, spec: ServeSpec) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._slots: list[_Slot] = []
        self._prepared: list[_Started] = []
        """Started before anyone asked for an instance."""
        self._living: set[_Started] = set()
        self._gone = asyncio.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="hyperflexis-vllm-"))
        self._attached: AttachedLauncher
        """Knows what the first server is, and with that what the others have to be."""
        self._has_failed = False

    @classmethod
    async def start(cls, spec: ServeSpec, roles: Sequence[Role]) -> VllmLauncher:
        """Start servers of these roles, and wait until the first of them answers.

        Raises:
            AttachError: a server ends before that, or none answers in time.
        """
        launcher = cls(spec)
        try:
            await launcher._begin(roles)
        except BaseException:
            await launcher.close()
            raise
        return launcher

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        """Take a server that was started already, or start one.

        Raises:
            OSError: it cannot be started.
        """
        started = next((each for each in self._prepared if each.slot.role is role), None)
        if started is None:
            started = self._run(self._free_slot(), role)
        else:
            self._prepared.remove(started)
        adapter = self._attached.attach(listener, self._target(started.slot), when_closed=lambda: self._end(started))
        started.when_ended = lambda status: self._lost(adapter, started, status)
        log.info("i%d is process %d on port %d", instance_id, started.process.pid, self._port(started.slot))
        return adapter

    async def close(self) -> None:
        """End all servers, and wait until they are gone."""
        if hasattr(self, "_attached"):
            await self._attached.close()
        for started in list(self._living):
            self._end(started)
        while self._living:
            self._gone.clear()
            await self._gone.wait()
        if not self._has_failed:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def attached(self) -> AttachedLauncher:
        return self._attached

    @property
    def pids(self) -> list[int]:
        """Of the servers that live."""
        return [started.process.pid for started in self._living]

    async def _begin(self, roles: Sequence[Role]) -> None:
        failed: asyncio.Future[str] = self._loop.create_future()
        try:
            for role in roles:
                started = self._run(self._free_slot(), role)
                started.when_ended = lambda status, at=started: self._fail_start(failed, at, status)  # type: ignore[misc]
                self._prepared.append(started)
        except OSError as error:
            raise AttachError(f"{self._spec.command!r} cannot be run: {error}", "see vllm.command") from error
        attach = replace(self._spec.attach, targets=[self._target(each.slot) for each in self._prepared])
        attaching = asyncio.ensure_future(AttachedLauncher.start(attach, Complaints(is_patient=True)))
        try:
            async with asyncio.timeout(self._spec.start_timeout_s):
                await asyncio.wait((attaching, failed), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            reason = f"no vLLM server has answered within {self._spec.start_timeout_s:g} s"
            raise AttachError(reason, f"what they print is in {self._folder}") from None
        finally:
            if not attaching.done():
                attaching.cancel()
                await asyncio.gather(attaching, return_exceptions=True)
        if failed.done():
            raise AttachError(failed.result(), f"what it printed is in {self._folder}")
        self._attached = attaching.result()

    def _fail_start(self, failed: asyncio.Future[str], started: _Started, status: int) -> None:
        self._has_failed = True
        if not failed.done():
            failed.set_result(f"a vLLM server {_in_words(status)} before it answered{_tail(started.output)}")

    # -- processes

    def _free_slot(self) -> _Slot:
        slot = next((each for each in self._slots if not each.is_taken), None)
        if slot is None:
            slot = _Slot(len(self._slots))
            self._slots.append(slot)
        return slot

    def _run(self, slot: _Slot, role: Role) -> _Started:
        output = self._folder / f"port-{self._port(slot)}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                self._command(slot, role),
                env=self._environment(slot),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        slot.is_taken, slot.role = True, role
        started = _Started(slot, process, output, os.pidfd_open(process.pid))
        self._loop.add_reader(started.pidfd, self._on_exit, started)
        self._living.add(started)
        return started

    def _command(self, slot: _Slot, role: Role) -> list[str]:
        spec, attach = self._spec, self._spec.attach
        tether = [sys.executable, "-m", "hyperflexis.runtime.launchers.tether", str(os.getpid())]
        words = [
            *tether,
            *shlex.split(spec.command),
            spec.model,
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port(slot)),
        ]
        words += ["--served-model-name", spec.served_name, "--max-num-seqs", str(attach.seqs_max)]
        if spec.gpus > 1:
            words += ["--tensor-parallel-size", str(spec.gpus)]
        if attach.passes_kv:
            words += ["--kv-transfer-config", json.dumps(_kv_config(role, attach.lease_s))]
        return [*words, *shlex.split(spec.args)]

    def _environment(self, slot: _Slot) -> dict[str, str]:
        spec, environment = self._spec, dict(os.environ)
        if spec.attach.api_key:
            # Not as --api-key: everybody on the machine can read the words of a command.
            environment["VLLM_API_KEY"] = spec.attach.api_key
        if spec.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus(slot.number, spec.gpus))
        if spec.attach.passes_kv:
            environment.setdefault("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1")
            # Tensor-parallel workers take one port each, from this one on.
            environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(SIDE_CHANNEL_PORT + slot.number * max(1, spec.gpus))
        return environment

    def _port(self, slot: _Slot) -> int:
        return self._spec.first_port + slot.number

    def _target(self, slot: _Slot) -> Target:
        return Target(f"http://127.0.0.1:{self._port(slot)}", slot.role, self._spec.served_name)

    def _lost(self, adapter: VllmAdapter, started: _Started, status: int) -> None:
        if not adapter.is_closed:
            self._has_failed = True
            adapter.on_gone(f"its process {_in_words(status)}{_tail(started.output)}")

    def _end(self, started: _Started) -> None:
        """Have it end: asked first, and killed if that does not help."""
        if started in self._living and started.kill is None:
            _signal_group(started.process.pid, signal.SIGTERM)
            started.kill = self._loop.call_later(PARTING_S, _signal_group, started.process.pid, signal.SIGKILL)

    def _on_exit(self, started: _Started) -> None:
        self._loop.remove_reader(started.pidfd)
        os.close(started.pidfd)
        if started.kill is not None:
            started.kill.cancel()
        _signal_group(started.process.pid, signal.SIGKILL)  # What it may have left.
        status = started.process.wait()
        started.slot.is_taken = False
        self._living.discard(started)
        if started in self._prepared:
            self._prepared.remove(started)
        self._gone.set()
        started.when_ended(status)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        log.debug("process group %d is gone", pid)


def _gpus(slot: int, count: int) -> list[str]:
    """Those of one place, of the ones that this process may use."""
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    mine = range(slot * count, (slot + 1) * count)
    if not visible:
        return [str(number) for number in mine]
    if mine.stop > len(visible):
        raise OSError(f"instance {slot} needs GPUs {mine.start} to {mine.stop - 1}, and {len(visible)} are visible")
    return visible[mine.start : mine.stop]


def _kv_config(role: Role, lease_s: float) -> dict[str, object]:
    return {
        "kv_connector": "NixlConnector",
        "kv_role": _KV_ROLES[role],
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": int(lease_s)},
    }


def _in_words(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


def _tail(output: Path) -> str:
    """The last that it printed."""
    try:
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-_TAIL_LINES:])
