"""The directory that instances are kept in: whose it is, who has it, and what is found there."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperflexis.adapters.native.keep import SOCKET_NAME, InUseError, Keep, KeepError, peer_of

if not hasattr(socket, "SO_PEERCRED"):
    pytest.skip("instances are kept on Linux", allow_module_level=True)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    made = Keep(tmp_path / "keep", 60.0)
    yield made
    made.close()


def test_directory_and_socket_are_their_owners_alone(keep: Keep) -> None:
    before = os.umask(0)
    try:
        with keep.bind():
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (keep.directory, keep.directory / SOCKET_NAME)]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o600]


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o770, 0o755, 0o777])
def test_directory_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(KeepError, match=f"open to other users \\(mode {mode:o}\\)") as caught:
        Keep(tmp_path, 60.0)
    assert caught.value.hint == f"chmod 700 {tmp_path}"
    tmp_path.chmod(0o700)
    Keep(tmp_path, 60.0).close()


def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(KeepError, match=f"belongs to user {mine}"):
        Keep(tmp_path, 60.0)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    for name in ("file", "elsewhere", "no/such"):
        with pytest.raises(KeepError, match="cannot be used to keep instances"):
            Keep(tmp_path / name, 60.0)


def test_one_at_a_time_has_it(keep: Keep) -> None:
    with pytest.raises(InUseError, match="have a gateway"):
        Keep(keep.directory, 60.0)
    keep.close()
    again = Keep(keep.directory, 60.0)
    keep._fd = again._fd  # For the fixture to close.


def test_nobody_answers_in_a_new_one_or_where_the_zygote_has_died(keep: Keep) -> None:
    assert keep.connect() is None
    with keep.bind() as listener:
        assert keep.connect() is None, "it does not listen yet"
        listener.listen()
    assert (keep.directory / SOCKET_NAME).exists()
    assert keep.connect() is None
    keep.empty()
    assert os.listdir(keep.directory) == []


def test_who_answers_is_known(keep: Keep) -> None:
    with keep.bind() as listener:
        listener.listen()
        ours = keep.connect()
        assert ours is not None
        theirs, _ = listener.accept()
        with ours, theirs:
            assert peer_of(ours) == peer_of(theirs) == (os.getpid(), os.geteuid(), os.getegid())


def test_who_answers_as_another_user_is_refused(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    with keep.bind() as listener:
        listener.listen()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
        with pytest.raises(KeepError, match=f"answered by another user \\({mine}\\)"):
            keep.connect()


def test_name_may_be_longer_than_that_of_a_socket(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 40)
    keep = Keep(directory, 60.0)
    with keep.bind() as listener:
        listener.listen()
        sock = keep.connect()
        assert sock is not None
        sock.close()
    keep.close()
