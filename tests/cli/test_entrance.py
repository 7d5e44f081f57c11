"""Strangers are let in only where that is meant; files that change are read anew, and broken ones change nothing."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from hyperflexis.cli.deployment import AdminSection, AuthSection, Deployment, TlsSection
from hyperflexis.cli.entrance import Entrance, Watched
from hyperflexis.cli.errors import OperatorError
from hyperflexis.gateway.access import KeyRing, digest_of
from hyperflexis.gateway.server import Gateway


class Following:
    """A gateway that only hears of keys."""

    def __init__(self) -> None:
        self.rings: list[KeyRing] = []

    def follow_keys(self, ring: KeyRing) -> None:
        self.rings.append(ring)


def entry(name: str) -> str:
    return f"keys: {{{name}: {{sha256: {digest_of(name).hex()}}}}}"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.yaml"
    file.write_text(entry("one"))
    return file


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_without_keys_this_machine_may_come_in(host: str) -> None:
    made = Entrance(Deployment(host=host))
    assert (made.keys, made.tls) == (None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gpu1.example.com"])
def test_without_keys_nobody_else_may_unless_that_is_meant(host: str, keys_file: Path) -> None:
    with pytest.raises(OperatorError, match="can be reached from other machines") as caught:
        Entrance(Deployment(host=host))
    assert "keys new" in (caught.value.hint or "")
    with pytest.raises(OperatorError, match=r"admin\.host"):
        Entrance(Deployment(admin=AdminSection(host=host, port=0)))
    Entrance(Deployment(admin=AdminSection(host=host)))
    Entrance(Deployment(host=host, auth=AuthSection(serves_anyone=True)))
    assert Entrance(Deployment(host=host, auth=AuthSection(keys_file=str(keys_file)))).keys is not None


def test_keys_are_read_anew_and_a_broken_file_changes_nothing(
    keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, gateway = Entrance(Deployment(auth=AuthSection(keys_file=str(keys_file)))), Following()
    assert made.keys is not None
    assert made.keys.find("one")
    keys_file.write_text(entry("two"))
    made._try(lambda: made.read_keys(cast("Gateway", gateway)))
    assert [bool(gateway.rings[0].find(key)) for key in ("one", "two")] == [False, True]
    for broken in ("keys: {", "keys: {a: {sha256: hfx-secret}}"):
        keys_file.write_text(broken)
        made._try(lambda: made.read_keys(cast("Gateway", gateway)))
    keys_file.unlink()
    made._try(lambda: made.read_keys(cast("Gateway", gateway)))
    assert len(gateway.rings) == 1
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 3
    assert all("stays in force" in each and "hfx-secret" not in each for each in said)


def test_files_are_seen_to_change_however_they_do(keys_file: Path) -> None:
    watched = Watched([keys_file])
    assert not watched.has_changed()
    keys_file.write_text("longer than before " * 9)
    assert watched.has_changed()
    assert not watched.has_changed()
    os.utime(keys_file, ns=(1, 1))
    assert watched.has_changed()
    other = keys_file.with_name("other")
    other.write_text(keys_file.read_text())
    os.utime(other, ns=(1, 1))
    other.rename(keys_file)
    assert watched.has_changed()
    keys_file.unlink()
    assert watched.has_changed()
    assert not watched.has_changed()


def tls(tmp_path: Path, **more: Any) -> Deployment:
    made = TlsSection(cert_file=str(tmp_path / "cert.pem"), key_file=str(tmp_path / "key.pem"), **more)
    return Deployment(tls=made)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_certificates_are_loaded_and_loaded_anew(tmp_path: Path) -> None:
    words = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(words.split(), cwd=tmp_path, check=True, capture_output=True)
    made = Entrance(tls(tmp_path, client_ca_file=str(tmp_path / "cert.pem")))
    assert made.tls is not None
    assert made.tls.verify_mode == ssl.CERT_REQUIRED
    assert made.tls.minimum_version == ssl.TLSVersion.TLSv1_2
    subprocess.run(words.split(), cwd=tmp_path, check=True, capture_output=True)
    made.read_certificates()
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(OperatorError, match=r"tls\.cert_file and tls\.key_file"):
        made.read_certificates()


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file"):
        Entrance(tls(tmp_path))
    with pytest.raises(OperatorError, match="needs both"):
        Entrance(Deployment(tls=TlsSection(cert_file="cert.pem")))
