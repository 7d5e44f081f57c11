"""`hyperflexis profile http://…`: that what it finds from outside is what the server does inside."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from paced_server import PacedServer

from helpers.virtual_loop import run as run_in_virtual_time
from hyperflexis.adapters.native.calibration import Trial
from hyperflexis.cli import main, profile_server
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.cli.profile_file import read_samples
from hyperflexis.cli.profile_server import QUICK
from hyperflexis.cli.server_probe import About, Probe, _about, probing
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.sim.profiles import load_profile

TRUE = LatencyModel(0.006, 0.005, 1e-4, 3e-8, 3e-4, 2e-7)
URL = "http://paced:1"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a paced server where the command looks for one."""

    def place(server: PacedServer) -> None:
        @asynccontextmanager
        async def probing(url: str) -> AsyncIterator[Probe]:
            yield Probe(server, url, await _about(server, url))  # type: ignore[arg-type]

        monkeypatch.setattr(profile_server, "probing", probing)
        monkeypatch.setattr(profile_server.asyncio, "run", run_in_virtual_time)

    return place


def measured(server: PacedServer, grid: Any = QUICK) -> profile_server.Measured:
    async def play() -> profile_server.Measured:
        return await profile_server.measure(Probe(server, URL, await _about(server, URL)), grid)  # type: ignore[arg-type]

    return run_in_virtual_time(play())


def test_every_step_is_timed_as_it_is() -> None:
    found = measured(PacedServer(TRUE))
    assert found.skipped == []
    kinds = {timed.trial.shape.kind for timed in found.timed}
    assert kinds == {"prefill", "decode", "mixed"}
    for timed in found.timed:
        expected_s = TRUE.step_s(timed.trial.shape)
        # What a request takes beside its step is known but for the difference of the two fixed parts.
        assert timed.actual_s == pytest.approx(expected_s, rel=0.03, abs=0.0012), timed


def test_servers_that_do_not_tell_ids_are_counted_by_text() -> None:
    grid = replace(QUICK, prefill_tokens=(16, 64), decode_seqs=(1, 4), context_tokens=(48,), rounds=1)
    one, other = (measured(PacedServer(TRUE, tells_ids=tells), grid) for tells in (True, False))
    assert one == other


def test_steps_that_the_server_does_not_take_are_left_out() -> None:
    """It runs four answers at a time, and computes prompts in parts of 128."""
    found = measured(PacedServer(TRUE, seqs_max=4, chunk_tokens=128))
    assert all(trial.decode_seqs in (1, 4, 16) for trial in found.skipped)
    assert Trial(decode_seqs=16, context_tokens=48) in found.skipped
    mixed = [timed.trial for timed in found.timed if timed.trial.shape.kind == "mixed"]
    assert all(trial.chunk_tokens <= 128 for trial in mixed)
    assert all(trial.decode_seqs <= 4 for trial in mixed)


def test_file_is_a_profile_like_any_other(serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(PacedServer(TRUE))
    out = tmp_path / "profile.json"
    assert main.main(["profile", URL, "--quick", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "held out: median error 0." in said
    content = json.loads(out.read_text(encoding="utf-8"))
    assert (content["name"], content["kv_tokens"], content["kv_token_bytes"]) == ("tiny/server", 16_000, 1000)
    assert f"vLLM 9.9 at {URL}, over HTTP, less 3.7 ms per request" in content["source"]
    assert read_samples(out)
    latency = load_profile(str(out)).latency
    for shape in (StepShape(600, 360_000), StepShape(0, 0, 10, 3_000), StepShape(300, 90_000, 8, 2_000)):
        assert latency.step_s(shape) == pytest.approx(TRUE.step_s(shape), rel=0.1)


def test_size_of_kv_may_be_unknown(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PacedServer(TRUE)
    told = server.get
    monkeypatch.setattr(server, "get", lambda url: told(url if "/metrics" not in url else "/version"))
    serve(server)
    profile_server.run(URL, tmp_path / "p.json", grid=["rounds=1", "prefill_tokens=16,64", "decode_seqs=1,2"])
    assert load_profile(str(tmp_path / "p.json")).kv_token_bytes is None


# -- what cannot be had


@pytest.mark.parametrize("url", ["http://", "http://a/?b=c"])
def test_address_is_checked(url: str) -> None:
    with pytest.raises(OperatorError, match="is no server's address"):
        profile_server.run(url)


def test_address_may_have_the_interfaces_path() -> None:
    assert profile_server.checked("http://a:1/v1/") == "http://a:1"


def test_what_cannot_be_chosen_from_outside_is_refused() -> None:
    with pytest.raises(OperatorError, match="cannot be chosen from outside"):
        profile_server.run(URL, grid=["prior_tokens=0,64"])


def test_flags_of_loading_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["profile", URL, "--dtype", "float32"]) == 2
    assert "--dtype says how a model is to be loaded" in capsys.readouterr().err


def test_nobody_there_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(StartError, match=f"no server answers at http://127.0.0.1:{port}"):
        profile_server.run(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("key", ["right", "wrong", ""])
def test_key_is_taken_from_the_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer right":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"data": [{"id": "model", "max_model_len": 64}]})

    async def meet() -> About:
        application = web.Application()
        application.router.add_get("/{anything:.*}", answer)
        async with TestServer(application) as server, probing(str(server.make_url(""))) as probe:
            return probe.about

    monkeypatch.setenv("OPENAI_API_KEY", key)
    if key == "right":
        assert asyncio.run(meet()).model == "model"
        return
    with pytest.raises(StartError, match="asks for an API key"):
        asyncio.run(meet())


def test_refusal_is_told_in_the_servers_words(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PacedServer(TRUE)
    monkeypatch.setattr(server, "_context_tokens_max", 8)
    serve(server)
    with pytest.raises(StartError, match=r"refuses a completion: .*too long"):
        profile_server.run(URL, is_quick=True)
