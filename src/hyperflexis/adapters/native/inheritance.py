"""What a gateway has left for this one: a zygote with its model and its instances, if they are what is wanted now.

Two things have to agree: the language that is spoken, and what was to be loaded. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import select
import signal
import socket
from pathlib import Path
from typing import NamedTuple

import msgspec

from hyperflexis import __version__
from hyperflexis.adapters.native.keep import Keep, KeepError, peer_of
from hyperflexis.adapters.native.messages import DATAGRAM_BYTES_MAX, Greeting, Load
from hyperflexis.adapters.native.words import words

log = logging.getLogger(__name__)

GREETING_S = 5.0
"""After this it is said that a zygote is waited for: it may still be loading for a gateway that is gone."""
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")

_greetings = msgspec.msgpack.Decoder(Greeting)
_loads = msgspec.msgpack.Decoder(Load)


class Inheritance(NamedTuple):
    """A zygote that waits for a gateway."""

    control: socket.socket
    process: Stranger


class Stranger:
    """A process that is not a child of this one, to be killed and waited for all the same."""

    def __init__(self, pid: int) -> None:
        """It must be known to live. From here on its number cannot come to mean another one."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()


def stamp(directory: str) -> str:
    """A name for the files that weights are read from, as they are now: names, sizes and times of change."""
    found = sorted(path for pattern in _FILES for path in Path(directory).glob(pattern) if path.is_file())
    rows = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


async def find(keep: Keep, wanted: Load) -> Inheritance | None:
    """Return what is left there; None if there is nothing, or it is just ending.

    Raises:
        KeepError: it is something else than what is wanted.
    """
    sock = keep.connect()
    if sock is None:
        return None
    try:
        greeting = await _greeting(sock, keep)
        if greeting is None:
            sock.close()
            return None
        _compare(greeting, wanted, keep, peer_of(sock).pid)
        return Inheritance(sock, Stranger(peer_of(sock).pid))
    except ProcessLookupError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise


async def _greeting(sock: socket.socket, keep: Keep) -> Greeting | None:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    patience = loop.call_later(GREETING_S, log.warning, "%s: waiting for what is kept there", keep.directory)
    try:
        data = await loop.sock_recv(sock, DATAGRAM_BYTES_MAX)
        return _greetings.decode(data) if data else None
    except ConnectionError:
        return None
    except msgspec.MsgspecError as error:
        raise KeepError(f"{keep.directory} keeps something that cannot be understood: {error}") from error
    finally:
        patience.cancel()


def _compare(greeting: Greeting, wanted: Load, keep: Keep, pid: int) -> None:
    hint = (
        f"start as before, or end what is there: kill -9 {pid}; by itself it waits {keep.timeout_s:g} s for a gateway "
        "that fits, then ends"
    )
    if greeting.words != words():
        raise KeepError(
            f"{keep.directory} keeps instances of hyperflexis {greeting.version}, to which this one, {__version__}, "
            "cannot speak",
            hint,
        )
    if found := differences(_loads.decode(greeting.load), wanted):
        raise KeepError(f"{keep.directory} keeps instances that are not as wanted: {'; '.join(found)}", hint)
    if greeting.version != __version__:
        log.warning(
            "instances of hyperflexis %s are taken over by %s; they compute with the old one until they start anew",
            greeting.version,
            __version__,
        )


def differences(kept: Load, wanted: Load) -> list[str]:
    """What a model that was loaded so has that one loaded otherwise had not; in words that show no secret."""
    named = {
        "directory": "the model",
        "device": "device",
        "dtype": "dtype",
        "block_tokens": "block_tokens",
        "kv_bytes": "bytes of KV cache",
    }
    found = [
        f"{words} {there if there is not None else 'auto'}, not {here if here is not None else 'auto'}"
        for name, words in named.items()
        if (there := getattr(kept, name)) != (here := getattr(wanted, name))
    ]
    if kept.directory == wanted.directory and kept.checkpoint != wanted.checkpoint:
        found.append("the model's files have changed since they were loaded")
    # Who may give weights matters to those that load some.
    if _lending(kept) != _lending(wanted):
        found.append("they lend their weights in another way")
    return found


def _lending(load: Load) -> object:
    return msgspec.structs.replace(load.weights, candidates=[], digest=b"")
