"""Whether what is kept is what is wanted: the language, the load, the files. This test stands in for the zygote."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from hyperflexis.adapters.native import inheritance, words
from hyperflexis.adapters.native.inheritance import Inheritance, differences, find, stamp
from hyperflexis.adapters.native.keep import Keep, KeepError
from hyperflexis.adapters.native.messages import Greeting, Load, WeightsSpec, encode

if not hasattr(socket, "SO_PEERCRED"):
    pytest.skip("instances are kept on Linux", allow_module_level=True)

LOAD = Load("/models/m", "cuda", "auto", 16, None, 2, checkpoint="one")
GREETING = Greeting(words.words(), inheritance.__version__, encode(LOAD))


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Keep]:
    made = Keep(tmp_path / "keep", 60.0)
    yield made
    made.close()


def looked(keep: Keep, answer: Callable[[socket.socket], object], wanted: Load = LOAD) -> Inheritance | None:
    """Look for it while somebody answers there like this; who finds it lets go again."""

    async def look() -> Inheritance | None:
        with keep.bind() as listener:
            listener.listen()
            finding = asyncio.ensure_future(find(keep, wanted))
            await asyncio.sleep(0)
            sock, _ = listener.accept()
            with sock:
                answer(sock)
            return await _within(finding)

    found = asyncio.run(look())
    if found is not None:
        found.control.close()
        os.close(found.process._fd)
    return found


async def _within(finding: Awaitable[Inheritance | None]) -> Inheritance | None:
    async with asyncio.timeout(60.0):
        return await finding


def greet(greeting: Greeting) -> Callable[[socket.socket], object]:
    return lambda sock: sock.send(encode(greeting))


def test_what_fits_is_found_with_its_process(keep: Keep) -> None:
    found = looked(keep, greet(GREETING))
    assert found is not None
    assert found.process.pid == os.getpid()


def test_number_of_instances_may_be_another(keep: Keep) -> None:
    assert looked(keep, greet(GREETING), msgspec.structs.replace(LOAD, instances=7)) is not None


def test_what_is_just_ending_is_nothing(keep: Keep) -> None:
    assert looked(keep, lambda _: None) is None


def test_nothing_is_found_where_nothing_is(keep: Keep) -> None:
    assert asyncio.run(find(keep, LOAD)) is None


def test_garbage_is_said(keep: Keep) -> None:
    with pytest.raises(KeepError, match="cannot be understood"):
        looked(keep, lambda sock: sock.send(b"\xff" * 9))


def test_another_language_is_refused_whatever_else_it_says(keep: Keep) -> None:
    stranger = Greeting("other", "9.9", b"what this version cannot read")
    with pytest.raises(KeepError, match=r"hyperflexis 9\.9, to which this one, .*, cannot speak") as caught:
        looked(keep, greet(stranger))
    assert f"kill -9 {os.getpid()}" in caught.value.hint


def test_another_version_of_the_same_language_is_taken_and_told(keep: Keep, caplog: pytest.LogCaptureFixture) -> None:
    assert looked(keep, greet(msgspec.structs.replace(GREETING, version="0.0.9"))) is not None
    assert "they compute with the old one" in caplog.text


def test_another_load_is_refused(keep: Keep) -> None:
    wanted = msgspec.structs.replace(LOAD, directory="/models/other", dtype="float16")
    with pytest.raises(KeepError, match="the model /models/m, not /models/other; dtype auto, not float16"):
        looked(keep, greet(GREETING), wanted)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"instances": 9}, []),
        ({"device": "cpu"}, ["device cuda, not cpu"]),
        ({"block_tokens": 32}, ["block_tokens 16, not 32"]),
        ({"kv_bytes": 1 << 30}, ["bytes of KV cache auto, not 1073741824"]),
        ({"checkpoint": "two"}, ["the model's files have changed since they were loaded"]),
        ({"directory": "/models/n", "checkpoint": "two"}, ["the model /models/m, not /models/n"]),
        ({"weights": WeightsSpec(candidates=[b"a donor"], digest=b"known")}, []),
        ({"weights": WeightsSpec(lends=True, secret=b"a secret")}, ["they lend their weights in another way"]),
    ],
)
def test_differences_are_named(changes: dict[str, object], told: list[str]) -> None:
    assert differences(LOAD, msgspec.structs.replace(LOAD, **changes)) == told


def test_stamp_is_of_what_weights_are_read_from(tmp_path: Path) -> None:
    for name in ("config.json", "model-1.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    before = stamp(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{ }")
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    assert stamp(str(tmp_path)) == before
    (tmp_path / "model-1.safetensors").write_text("[]")
    os.utime(tmp_path / "model-1.safetensors", (1, 1))
    changed = stamp(str(tmp_path))
    assert changed != before
    shutil.copy2(tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors")
    assert stamp(str(tmp_path)) not in {before, changed}


def test_words_are_of_fields_and_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    before = words.words()
    monkeypatch.setattr(words, "_MEANING", words._MEANING + 1)
    assert words.words() != before
    monkeypatch.undo()

    class Shutdown(msgspec.Struct, tag=2, array_like=True, frozen=True):
        """Another docstring."""

        soon: bool = False

    monkeypatch.setattr(words, "ToInstance", words.ToInstance | Shutdown)
    with suppress(TypeError):  # Two of one tag.
        assert words.words() != before


def test_words_for_people_are_no_words() -> None:
    schema = {"Load": {"description": "Read a model.", "properties": {"dtype": {"description": "A dtype."}}}}
    assert words._bare(schema) == {"Load": {"properties": {"dtype": {}}}}
