"""`hyperflexis profile`: what it shows and writes, what it refuses, and that serving takes what it wrote."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hyperflexis.adapters.fitted import Fitted
from hyperflexis.adapters.native.messages import DATAGRAM_BYTES_MAX, Fork, Loaded, encode
from hyperflexis.adapters.native.profiling import FULL, QUICK, Engine, Measured
from hyperflexis.cli import profile
from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.cli.profile_file import SAMPLES_MAX, read_samples
from hyperflexis.core.latency import LatencyModel, StepShape

TRUE = LatencyModel(0.004, 0.003, 3e-5, 2e-9, 5e-5, 4e-7)
LOADED = Loaded("cpu", 1, "float32", 1, "hash", 512, 2048, 100, [], 0.1)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes the times of a model, but for one step in seven that takes a tenth longer."""

    def measure(runner: Any, trials: Any, *_: Any, **__: Any) -> Measured:
        shapes = [trial.shape for trial in trials]
        samples = [(shape, TRUE.step_s(shape) * (1.1 if index % 7 == 0 else 1)) for index, shape in enumerate(shapes)]
        return Measured(samples, 0.034)

    runner = SimpleNamespace(pool=SimpleNamespace(bytes_per_block=16 * 2304))
    engine = Engine(runner, LOADED, "9.9", "cpu")  # type: ignore[arg-type]
    monkeypatch.setattr(profile, "load_engine", lambda *_: engine)
    monkeypatch.setattr(profile, "measure", measure)


@pytest.mark.usefixtures("known")
def test_what_is_shown_is_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.run(Deployment(threads_per_instance=2), is_quick=True) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    steps, coefficients, errors, source = (part.splitlines() for part in captured.out.split("\n\n"))
    assert steps[0].split() == ["step", "measured_ms", "predicted_ms", "error"]
    assert any(line.startswith("prefill 64 after 512, decode 4 at 32 ") for line in steps)
    assert any(line.startswith("prefill 4 x 64 ") for line in steps)
    assert [line.split()[0] for line in coefficients] == list(LatencyModel.__slots__)
    assert [line.split()[0] for line in errors[1:]] == ["prefill", "decode", "mixed", "all", "same"]
    assert errors[-1].split()[3] == "3.4%"
    shown, held_out = (int(errors[-2].split()[column]) for column in (3, 6))
    assert (shown + held_out, held_out) == (len(steps) - 1, sum("held out" in line for line in steps))
    assert source[0].startswith("measured by hyperflexis profile ")
    assert ", torch 9.9, cpu, 2 CPU threads, float32, 20" in source[0]


@pytest.mark.usefixtures("known")
def test_file_holds_the_model_its_errors_and_all_steps(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    out.write_text("something old", encoding="utf-8")
    assert profile.run(Deployment(), out, is_quick=True) == 0
    assert list(tmp_path.iterdir()) == [out]
    content = json.loads(out.read_text(encoding="utf-8"))
    assert list(content) == ["name", "latency", "kv_tokens", "kv_token_bytes", "source", "mape", "samples"]
    assert (content["name"], content["kv_tokens"]) == ("demo/cpu/float32", 512 * 16)
    assert content["kv_token_bytes"] == 2304
    latency = LatencyModel(**content["latency"])
    assert latency.prefill_token_s == pytest.approx(TRUE.prefill_token_s, rel=0.1)
    assert list(content["mape"]) == ["prefill", "decode", "mixed", "held_out"]
    assert all(0 <= value < 0.1 for value in content["mape"].values())
    samples = read_samples(out)
    assert [[list(shape), actual_s] for shape, actual_s in samples] == content["samples"]
    again = Fitted.of([(StepShape(*shape), actual_s) for shape, actual_s in samples])
    assert profile.latency_fields(again.model) == pytest.approx(content["latency"], rel=1e-4)


@pytest.mark.usefixtures("known")
def test_simulator_reads_the_file(tmp_path: Path) -> None:
    from hyperflexis.sim.profiles import load_profile

    profile.run(Deployment(), tmp_path / "demo.json", is_quick=True)
    read = load_profile(str(tmp_path / "demo.json"))
    assert (read.name, read.kv_tokens, read.kv_token_bytes) == ("demo/cpu/float32", 8192, 2304)
    assert read.latency.decode_base_s == pytest.approx(TRUE.decode_base_s, rel=0.1)


@pytest.mark.usefixtures("known")
def test_links_are_followed_and_devices_survive(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    profile.run(Deployment(), tmp_path / "link.json", is_quick=True)
    assert (tmp_path / "link.json").is_symlink()
    assert read_samples(tmp_path / "real.json")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    profile.run(Deployment(), pipe, is_quick=True)
    assert os.read(reader, 1 << 16).startswith(b'{\n  "name": "demo/cpu/float32"')
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.usefixtures("known")
def test_busy_machine_is_warned_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = profile.measure
    monkeypatch.setattr(profile, "measure", lambda *args, **names: quiet(*args, **names)._replace(spread=0.31))
    assert profile.run(Deployment(), is_quick=True) == 0
    assert capsys.readouterr().err.startswith("warning: one and the same step varied by 31%")


def test_source_has_the_day_that_is_given() -> None:
    engine = Engine(None, LOADED, "9.9", "NVIDIA H200")  # type: ignore[arg-type]
    text = profile.source_of(engine, 1, date(2030, 1, 2))
    assert text.endswith(", torch 9.9, NVIDIA H200, 1 CPU thread, float32, 2030-01-02")


# -- the grid


def test_grid_in_words() -> None:
    grid = profile.parse_grid(["decode_seqs=8,1,8", "prior_tokens=0", "rounds=3"], QUICK)
    assert (grid.decode_seqs, grid.prior_tokens, grid.rounds) == ((1, 8), (0,), 3)
    assert grid.prefill_tokens == QUICK.prefill_tokens
    assert profile.parse_grid([], FULL) == FULL


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("decode=8", "should be NAME=N,N,… of prefill_tokens, prior_tokens,"),
        ("8", "should be NAME=N,N,…"),
        ("decode_seqs", "whole numbers from 1 to"),
        ("decode_seqs=", "whole numbers from 1 to"),
        ("decode_seqs=0,1", "whole numbers from 1 to"),
        ("decode_seqs=1.5", "whole numbers from 1 to"),
        ("context_tokens=1", "whole numbers from 2 to"),
        ("prior_tokens=-1", "whole numbers from 0 to"),
        ("prefill_tokens=99999999999", "whole numbers from 1 to"),
        ("rounds=1,2", "rounds is one number"),
    ],
)
def test_bad_grid_is_one_clear_error(word: str, message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        profile.run(Deployment(), grid=[word])
    assert caught.value.message.startswith("bad value for --grid: ")
    assert message in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prefill_tokens=4096"], "no prefill step of the grid fits"),
        (["decode_seqs=300"], "no decode step of the grid fits"),
        (["decode_seqs=300", "prefill_tokens=4096"], "no prefill and no decode step of the grid fits"),
        ([f"prefill_tokens={','.join(map(str, range(1, 2000)))}"], f"more than {SAMPLES_MAX}"),
    ],
)
def test_grid_that_no_instance_can_compute(words: list[str], message: str) -> None:
    with pytest.raises(OperatorError, match=message) as caught:
        profile.run(Deployment(), is_quick=True, grid=words)
    assert caught.value.hint


# -- what cannot be had


def test_unwritable_places_are_told_before_the_work(tmp_path: Path) -> None:
    for out, message in ((tmp_path, "it is a directory"), (tmp_path / "no" / "x.json", "there is no directory")):
        with pytest.raises(OperatorError, match=message) as caught:
            profile.run(Deployment(), out)
        assert caught.value.hint


@pytest.mark.usefixtures("known")
def test_place_that_turns_unwritable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OperatorError, match=r"cannot write .*x\.json: No space left on device"):
        profile.run(Deployment(), tmp_path / "x.json", is_quick=True)
    assert not list(tmp_path.iterdir())


def test_unknown_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no model directory"):
        profile.run(Deployment(model="./nowhere"))
    pytest.importorskip("torch")
    with pytest.raises(StartError, match=r"config\.json: no such file"):
        profile.run(Deployment(model=str(tmp_path)))


def test_absence_of_torch_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(StartError, match="torch is not installed") as caught:
        profile.run(Deployment())
    assert caught.value.hint == "pip install 'hyperflexis[engine]'"
    assert caught.value.exit_code == 3


# -- what serving takes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no profile: "),
        ("{}", "it holds no samples"),
        ('{"samples": [1]}', "Expected `array`, got `int`"),
        ('{"samples": [[[1, 1, 0], 0.1]]}', "Expected `array` of length 4"),
        ('{"samples": [[[1, 1, 0, -1], 0.1], [[1, 1, 0, 0], 0.1]]}', "whole numbers from 0"),
        ('{"samples": [[[0, 0, 0, 0], 0.1], [[1, 1, 0, 0], 0.1]]}', "not all of them 0"),
        ('{"samples": [[[1, 1, 0, 0], 0.1]]}', "at least two samples"),
        ('{"samples": [[[1, 1, 0, 0], 0.1], [[0, 0, 1, 9], 0.0]]}', "positive step times"),
        (json.dumps({"samples": [[[1, 1, 0, 0], 0.1]] * (SAMPLES_MAX + 1)}), f"more than {SAMPLES_MAX}"),
    ],
)
def test_bad_profile_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(OperatorError) as caught:
        read_samples(file)
    assert caught.value.message.startswith(f"{file} is no profile: ")
    assert message in caught.value.message
    assert caught.value.hint


def test_absent_profile_is_told_before_anything_starts(tmp_path: Path) -> None:
    from hyperflexis.cli.serve import run as serve

    absent = tmp_path / "absent.json"
    with pytest.raises(OperatorError, match=r"cannot read the profile .*absent\.json: No such file"):
        serve(Deployment.model_validate({"engine": {"profile": str(absent)}}))


def test_largest_profile_fits_into_one_message() -> None:
    samples = [((2**40, 2**60, 2**40, 2**60), 0.123456)] * SAMPLES_MAX
    assert len(encode(Fork(1, "cuda:15", 64, 1024, 2**40, 2**20, 2**40, samples))) < DATAGRAM_BYTES_MAX


# -- for real

COMMAND = """
import sys
from pathlib import Path
from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.profile import run

sys.exit(run(Deployment(device="cpu"), Path(sys.argv[1]), is_quick=True, grid=["rounds=1", "prefill_tokens=16,128"]))
"""


@pytest.mark.slow
def test_demo_model_is_measured_and_an_instance_starts_from_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "demo.json"
    started_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", COMMAND, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f"\nwritten to {out}\n")
    assert time.monotonic() - started_s < 60
    samples = read_samples(out)
    ready = asyncio.run(_first_words(samples))
    assert [tuple(shape) for shape, _ in ready.samples] == [tuple(shape) for shape, _ in samples]
    assert "calibration" not in ready.startup_s


async def _first_words(samples: Any) -> Any:
    """What an instance says of itself that was started from these samples."""
    from hyperflexis.core.instance import Role
    from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec

    words: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    class Listener:
        def on_ready(self, ready: Any) -> None:
            words.set_result(ready)

        def on_report(self, report: Any) -> None: ...

        def on_lost(self, why: str) -> None:
            if not words.done():
                words.set_exception(AssertionError(why))

    launcher = await LocalLauncher.start(LocalSpec(str(Deployment().model_source()), device="cpu", samples=samples))
    try:
        adapter = launcher.launch(0, Role.MIXED, Listener())
        return await asyncio.wait_for(words, 60)
    finally:
        adapter.close()
        await launcher.close()
