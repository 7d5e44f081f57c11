"""What was written is read: all of it, or what is left of it, and what is missing is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis.core.events import RequestArrived
from hyperflexis.journal import frames, reading
from hyperflexis.journal.entries import Entry, JournalError, encode, requests_of
from hyperflexis.journal.frames import BEGIN
from hyperflexis.journal.parts import Parts, part_files
from hyperflexis.journal.reading import open_all
from journal.recorded import World, only_run, play, recorder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Entry], Path]:
    """The bytes of a part of several frames, and what stands in it."""
    folder = tmp_path_factory.mktemp("written")
    play(World(requests=120), folder / "whole")
    whole = list(only_run(folder / "whole").entries())
    with recorder(folder / "framed") as made:
        for start in range(0, len(whole), 50):
            made.write(whole[start : start + 50])
    (part,) = part_files(folder / "framed")
    assert len(list(only_run(folder / "framed").frames())) == -(-len(whole) // 50) > 4
    return part.read_bytes(), whole, folder


def _read(folder: Path, data: bytes) -> tuple[list[Entry], list[str]]:
    shutil.rmtree(folder / "cut", ignore_errors=True)
    (folder / "cut").mkdir()
    (folder / "cut" / "00000001.journal").write_bytes(data)
    journal = only_run(folder / "cut")
    return list(journal.entries()), journal.damages


@given(st.data())
@settings(max_examples=60)
def test_file_that_is_cut_anywhere_is_read_up_to_its_last_whole_frame(
    written: tuple[bytes, list[Entry], Path], data: st.DataObject
) -> None:
    content, whole, folder = written
    (first,) = only_run(folder / "framed").parts
    at = data.draw(st.integers(first.entries_at, len(content)))
    entries, damages = _read(folder, content[:at])
    assert len(entries) % 50 == 0 or len(entries) == len(whole)
    assert encode(entries) == encode(whole[: len(entries)])
    ends = [frame.end for frame in only_run(folder / "framed").frames()]
    assert len(entries) == min(50 * sum(end <= at for end in ends), len(whole))
    assert len(damages) == (at not in (first.entries_at, *ends))
    assert all("cut at byte" in damage for damage in damages)


def test_file_without_a_whole_header_holds_no_run(written: tuple[bytes, list[Entry], Path]) -> None:
    content, _, folder = written
    for end in (0, 3, len(BEGIN), len(BEGIN) + 40):
        with pytest.raises(JournalError, match="no journal"):
            _read(folder, content[:end])


@given(st.data())
@settings(max_examples=60)
def test_byte_that_is_another_is_noticed(written: tuple[bytes, list[Entry], Path], data: st.DataObject) -> None:
    content, whole, folder = written
    first = only_run(folder / "framed").parts[0]
    at = data.draw(st.integers(first.entries_at, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    entries, damages = _read(folder, bytes(changed))
    assert len(damages) == 1
    assert len(entries) < len(whole)


def test_frame_that_says_it_holds_too_much_is_not_unpacked(
    written: tuple[bytes, list[Entry], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes can unpack to as many as memory has."""
    content, _, folder = written
    largest = max(len(frame.body()) for frame in only_run(folder / "framed").frames())
    monkeypatch.setattr(frames, "BODY_BYTES_MAX", largest - 1)
    _, damages = _read(folder, content)
    assert any("holds more than" in damage for damage in damages)


def test_entries_of_a_request_are_found_by_number_and_by_name(tmp_path: Path) -> None:
    play(World(requests=40), tmp_path / "whole")
    whole = list(only_run(tmp_path / "whole").entries())
    named = [
        entry._replace(name=f"cmpl-{entry.event.request_id // 2}") if isinstance(entry.event, RequestArrived) else entry
        for entry in whole
    ]
    with recorder(tmp_path / "named") as made:
        for start in range(0, len(named), 20):
            made.write(named[start : start + 20])
    journal = only_run(tmp_path / "named")
    assert journal.named("cmpl-7") == [14, 15]
    assert journal.named("cmpl-99") == []
    found = journal.of_request(14)
    assert len(found) >= 3
    assert encode(found) == encode([each for each in named if 14 in set(requests_of(each.event, each.commands))])
    about = [frame for frame in journal.frames() if frame.is_about(14)]
    assert 0 < len(about) < len(list(journal.frames()))
    assert journal.of_request(4000) == []


def test_folder_of_several_runs_has_the_newest_first(tmp_path: Path) -> None:
    for seed in (1, 2):
        play(World(requests=5, seed=seed), tmp_path)
    newest, oldest = open_all(tmp_path)
    assert (newest.header.seed, oldest.header.seed) == (2, 1)
    assert [len(each.parts) for each in (newest, oldest)] == [1, 1]
    (alone,) = open_all(oldest.parts[0].path)
    assert alone.header.seed == 1


def test_two_processes_cannot_write_one_journal(tmp_path: Path) -> None:
    parts = Parts(tmp_path, 1 << 30)
    with pytest.raises(JournalError, match="another process writes this journal"):
        Parts(tmp_path, 1 << 30)
    parts.close()
    Parts(tmp_path, 1 << 30).close()


def test_oldest_parts_go(tmp_path: Path) -> None:
    play(World(requests=400, rate=100.0), tmp_path / "whole")
    size = sum(path.stat().st_size for path in part_files(tmp_path / "whole"))
    whole = list(only_run(tmp_path / "whole").entries())
    kept = size // 2
    with recorder(tmp_path / "kept", bytes_max=kept) as made:
        for start in range(0, len(whole), 20):
            made.write(whole[start : start + 20])
            assert sum(path.stat().st_size for path in part_files(tmp_path / "kept")) <= kept
    journal = only_run(tmp_path / "kept")
    assert not journal.begins
    assert len(journal.parts) > 4
    entries = list(journal.entries())
    assert encode(entries) == encode(whole[-len(entries) :])
    for part in journal.parts:  # Each can be read alone, and knows the instances that were there when it began.
        (alone,) = open_all(part.path)
        assert list(alone.entries())
        assert [ready.instance_id for _, ready in part.header.instances] == [0, 1]


def _of_format(number: int) -> Callable[[bytes], bytes]:
    return lambda content: content[: len(BEGIN) - 1] + bytes([number]) + content[len(BEGIN) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_of_format(9), r"a journal of format 9; this version reads format 1"),
        (lambda content: b"something else entirely", "no journal: it does not begin as one"),
    ],
)
def test_journal_of_another_format_is_refused(
    written: tuple[bytes, list[Entry], Path], change: Callable[[bytes], bytes], message: str
) -> None:
    content, _, folder = written
    with pytest.raises(JournalError, match=message):
        _read(folder, change(content))


def test_journal_of_other_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(World(requests=2), tmp_path)
    monkeypatch.setattr(reading, "schema", lambda: "another")
    with pytest.raises(JournalError, match=r"hyperflexis 0\.\d+\.\d+ wrote it, whose entries are others"):
        open_all(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no such journal"):
        open_all(tmp_path / "nowhere")
    with pytest.raises(JournalError, match="there is no journal in it"):
        open_all(tmp_path)
