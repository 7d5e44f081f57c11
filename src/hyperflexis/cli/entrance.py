"""What stands before the gateway, as a deployment describes it: keys and certificates, read anew when they change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from hyperflexis.cli.api_keys import read_ring
from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.errors import OperatorError
from hyperflexis.gateway.access import KeyRing
from hyperflexis.gateway.server import Gateway, is_loopback

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between two looks at whether a file has become another."""


class Entrance:
    """Begins with what the files hold now."""

    def __init__(self, deployment: Deployment) -> None:
        """Read them.

        Raises:
            OperatorError: one of them cannot be used; or anybody could come in, and nobody has said that this is meant.
        """
        self._deployment = deployment
        auth, tls = deployment.auth, deployment.tls
        self._keys_file = _path(auth.keys_file)
        self._tls_files = [path for each in (tls.cert_file, tls.key_file, tls.client_ca_file) if (path := _path(each))]
        _refuse_strangers(deployment)
        self.keys: KeyRing | None = None if self._keys_file is None else read_ring(self._keys_file, deployment)
        self.tls: ssl.SSLContext | None = _context(deployment) if self._tls_files else None

    @contextlib.asynccontextmanager
    async def follow(self, gateway: Gateway) -> AsyncIterator[None]:
        """While this lasts, let the gateway know of files that change."""
        looking = asyncio.create_task(self._look(gateway))
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self, gateway: Gateway) -> None:
        keys = Watched([] if self._keys_file is None else [self._keys_file])
        certificates = Watched(self._tls_files)
        while True:
            await asyncio.sleep(LOOK_S)
            if keys.has_changed():
                self._try(lambda: self.read_keys(gateway))
            if certificates.has_changed():
                self._try(self.read_certificates)

    def read_keys(self, gateway: Gateway) -> None:
        """Let the keys be those that the file holds now."""
        assert self._keys_file is not None
        gateway.follow_keys(read_ring(self._keys_file, self._deployment))
        log.info("%s was read anew", self._keys_file)

    def read_certificates(self) -> None:
        """Show new connections what the files hold now."""
        assert self.tls is not None
        _load(self.tls, self._deployment)
        log.info("%s was read anew", self._tls_files[0])

    def _try(self, read: Callable[[], None]) -> None:
        """What cannot be read changes nothing."""
        try:
            read()
        except OperatorError as error:
            log.error("what was there before stays in force: %s", error.message)


class Watched:
    """Files that may become others: written, or put in place of each other as Kubernetes does with secrets."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._stamps = self._look()

    def has_changed(self) -> bool:
        """Whether they have since the last call."""
        before, self._stamps = self._stamps, self._look()
        return before != self._stamps

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        known = os.stat(file)
    except OSError:
        return None
    return known.st_ino, known.st_mtime_ns, known.st_size


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()


def _refuse_strangers(deployment: Deployment) -> None:
    auth = deployment.auth
    if auth.keys_file is not None or auth.serves_anyone:
        return
    addresses = {"host": deployment.host}
    if deployment.admin.port is not None:
        addresses["admin.host"] = deployment.admin.host
    if beyond := [f"{key} {host}" for key, host in addresses.items() if not is_loopback(host)]:
        raise OperatorError(
            f"{' and '.join(beyond)} can be reached from other machines, and there are no API keys",
            hint="`hyperflexis keys new NAME` makes a key for auth.keys_file; auth.serves_anyone=true does without, "
            "where the network or a proxy lets in only whom you trust",
        )


def _context(deployment: Deployment) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, deployment)
    if (clients := deployment.tls.client_ca_file) is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(Path(clients).expanduser())
        except OSError as error:
            raise _unusable("client_ca_file", clients, error) from error
    return context


def _load(context: ssl.SSLContext, deployment: Deployment) -> None:
    tls = deployment.tls
    if tls.cert_file is None or tls.key_file is None:
        raise OperatorError("tls needs both cert_file and key_file")
    try:
        # A password would be asked for at the terminal, which a server has none of.
        context.load_cert_chain(Path(tls.cert_file).expanduser(), Path(tls.key_file).expanduser(), password=b"")
    except OSError as error:
        raise _unusable("cert_file and tls.key_file", f"{tls.cert_file}, {tls.key_file}", error) from error


def _unusable(key: str, files: str, error: OSError) -> OperatorError:
    """`SSLError` is an `OSError`."""
    return OperatorError(f"tls.{key} ({files}) cannot be used: {error.strerror or error}")
