"""Whatever stands in a file, a journal is read as far as it goes, and what is wrong is said."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fuzz.mutation import mutated
from helpers.soak import seeds
from hyperflexis.journal.entries import JournalError
from hyperflexis.journal.frames import BEGIN, Kind, Packer, _Facts, frames
from hyperflexis.journal.parts import part_files
from hyperflexis.journal.reading import open_all
from journal.recorded import World, play

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("recorded")
    play(World(requests=20), folder)
    return part_files(folder)[0].read_bytes()


def forged(recorded: bytes, rng: random.Random) -> bytes:
    """Right checksums around a body or an index that is not right: no accident makes this, somebody does."""
    made, packer = BEGIN, Packer()
    chosen = rng.randrange(sum(1 for _ in frames(recorded)))
    for number, frame in enumerate(frames(recorded)):
        body, index = frame.body(), recorded[frame.index_at : frame.body_at]
        if number == chosen:
            body, index = (mutated([body], rng), index) if rng.random() < 0.7 else (body, mutated([index], rng))
        facts = _Facts(Kind(frame.kind), frame.entries, frame.first_s, frame.last_s, frame.lowest, frame.highest)
        made += packer._frame(body, facts, index)
    return made


def read_all(folder: Path) -> int:
    entries = 0
    for journal in open_all(folder):
        entries += sum(1 for _ in journal.entries())
        for request in (0, 1, 7, 10**9):
            journal.of_request(request)
        journal.named("cmpl-1")
        list(journal.until_damage())
    return entries


def test_readers_of_journals(recorded: bytes, tmp_path: Path) -> None:
    file, read = tmp_path / "00000001.journal", 0
    for seed in seeds(600):
        rng = random.Random(seed)
        data = mutated([recorded], rng) if rng.random() < 0.5 else forged(recorded, rng)
        file.write_bytes(data)
        try:
            read += read_all(tmp_path) > 0
        except JournalError:
            continue
        except Exception:
            print(f"seed {seed}")
            raise
    assert read
