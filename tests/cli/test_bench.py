"""`bench` from words to files, against a stand-in for vLLM in a thread; and what is said when it cannot be done."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperflexis.adapters.vllm.standin.engine import Traits
from hyperflexis.adapters.vllm.standin.server import StandIn
from hyperflexis.cli import bench
from hyperflexis.cli.bench import checked, promises
from hyperflexis.cli.errors import OperatorError
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.runtime.checkpoint import demo_directory

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

TEXT = """\
classes: {code: {ttft_ms: 60000, tpot_ms: 20000, priority: 1}, chat: {e2e_ms: 60000}}
fleet: {mixed: 2}
profile: llama-3-70b/h100/tp4/bfloat16
workload:
  - {trace: code.jsonl, class: code}
  - {trace: chat.jsonl, class: chat}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name, count in (("code", 20), ("chat", 10)):
        lines = (json.dumps({"at_s": i * 0.01, "prompt_tokens": 30 + i, "output_tokens": 5}) for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def server() -> Iterator[StandIn]:
    """Stepping every millisecond, with a tokenizer, so that its answers have text."""
    standin = StandIn(demo_directory(), Traits(step_s=0.001))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(standin.start(), loop).result()
    yield standin
    asyncio.run_coroutine_threadsafe(standin.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def row_of(run: Run, *words: str, code: int = 0) -> dict[str, Any]:
    done = run("bench", *words, "--json", "-")
    assert done.code == code, done.err
    (found,) = json.loads(done.out)["results"]
    return dict(found)


def test_every_request_is_sent_with_its_length_and_promise(run: Run, file: Path, server: StandIn) -> None:
    found = row_of(run, server.url, str(file))
    assert (found["requests"], found["finished"], found["attainment"]) == (30, 30, 1.0)
    assert found["requests_by_class"] == {"code": 20, "chat": 10}
    assert found["output_tokens"] == {"asked": 150, "counted": 150}
    assert (found["policy"], found["url"]) == (server.url.removeprefix("http://"), f"{server.url}/v1/completions")
    probe, *asked = server.requests
    assert probe["max_tokens"] == 1
    lengths = sorted(len(each["prompt"]) for each in asked)
    assert lengths == sorted([30 + i for i in range(20)] + [30 + i for i in range(10)])
    code = [each for each in asked if "x-llm-d-slo-ttft-ms" in each["headers"]]
    assert len(code) == 20
    assert code[0]["headers"]["x-llm-d-slo-ttft-ms"] == "60000"
    assert code[0]["headers"]["x-llm-d-slo-tpot-ms"] == "20000"
    assert code[0]["headers"]["x-dynamo-request-priority"] == "1"
    assert {each["ignore_eos"] for each in asked} == {True}


def test_table_and_report(run: Run, file: Path, server: StandIn) -> None:
    page = file.parent / "page.html"
    words = (
        "--rate",
        "1,2",
        "--report",
        str(page),
        "--name",
        "vllm",
        "--plain",
        "--goodput",
        "ttft:60000",
        "e2el:60000",
    )
    code, out, err = run("bench", server.url, str(file), *words[:-2], words[-2], words[-1])
    assert code == 0
    assert [line.split()[:7] for line in out.splitlines()[1:]] == [
        ["vllm", "1", "0", "30", "0", "0", "0"],
        ["vllm", "2", "0", "30", "0", "0", "0"],
    ]
    assert f"{server.url}/v1/completions, model demo: prompts are token ids\n" in err
    assert "2 runs" in page.read_text(encoding="utf-8")
    assert not any(name.startswith("x-") for each in server.requests for name in map(str.lower, each["headers"]))


def test_promise_in_vllms_words_is_what_counts(run: Run, file: Path, server: StandIn) -> None:
    found = row_of(run, server.url, str(file), "--goodput", "ttft:0.0001")
    assert (found["finished"], found["attainment"]) == (30, 0.0)
    assert server.requests[-1]["headers"]["x-llm-d-slo-ttft-ms"] == "0.0001"


def test_part_of_the_load(run: Run, file: Path, server: StandIn) -> None:
    assert row_of(run, server.url, str(file), "--limit", "7")["requests"] == 7
    assert row_of(run, server.url, str(file), "--duration", "0.1")["requests"] == 20
    assert row_of(run, server.url, str(file), "--duration", "0.1", "--warmup", "0.055")["requests"] == 8


def test_refusals_are_no_failures(run: Run, file: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    met = bench.meet

    async def meet(*words: Any) -> Any:
        endpoint = await met(*words)
        server.faults.refuse = True
        return endpoint

    monkeypatch.setattr(bench, "meet", meet)
    found = row_of(run, server.url, str(file))
    assert (found["rejected"], found["failed"], found["attainment"], found["errors"]) == (30, 0, 0.0, {"503": 30})


def test_streams_that_are_cut_are_told(run: Run, file: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    met = bench.meet

    async def meet(*words: Any) -> Any:
        endpoint = await met(*words)
        server.faults.abort = True
        return endpoint

    monkeypatch.setattr(bench, "meet", meet)
    code, _, err = run("bench", server.url, str(file), "--target", "0.5")
    assert code == 3
    assert "30 of 30 requests were cut off" in err
    assert "not answered: 30 x abort" in err
    assert "error: no request was answered" in err


def test_target_that_is_missed_is_exit_code_4(run: Run, file: Path, server: StandIn) -> None:
    assert run("bench", server.url, str(file), "--target", "1").code == 0
    code, _, err = run("bench", server.url, str(file), "--goodput", "ttft:0.0001", "--target", "0.5")
    assert code == 4
    assert "less than 0.5 was attained: code 0.0 % at rate 1, seed 0; chat 0.0 % at rate 1, seed 0" in err


def test_key_is_sent(run: Run, file: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server.traits.api_key = "secret"
    code, _, err = run("bench", server.url, str(file))
    assert code == 3
    assert "lists no models at /v1/models (401" in err
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert row_of(run, server.url, str(file), "--limit", "1")["finished"] == 1
    monkeypatch.delenv("OPENAI_API_KEY")
    assert (
        row_of(run, server.url, str(file), "--limit", "1", "--header", "Authorization: Bearer secret")["finished"] == 1
    )


def test_promises_by_name_or_not_at_all() -> None:
    classes = {"chat": ServiceClass("chat", Slo(0.5, None, 2.0), priority=-2)}
    (numbers,) = promises(classes, is_plain=False, is_by_name=False).values()
    assert numbers.headers == {
        "x-llm-d-slo-ttft-ms": "500",
        "x-slo-e2e-ms": "2000",
        "x-dynamo-request-priority": "-2",
    }
    (name,) = promises(classes, is_plain=False, is_by_name=True).values()
    assert (name.headers, name.members) == ({}, {"service_tier": "chat"})
    (nothing,) = promises(classes, is_plain=True, is_by_name=False).values()
    assert (nothing.headers, nothing.members) == ({}, {})


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://a:1/v1/", "http://a:1"),
        ("a:1", "http://a:1"),
        ("https://a/b/v1", "https://a/b"),
    ],
)
def test_address_may_be_written_in_many_ways(given: str, url: str) -> None:
    assert checked(given) == url


@pytest.mark.parametrize("url", ["http://", "ftp://a", "http://a/?b=c"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(OperatorError, match="is no server's address"):
        checked(url)


def test_nobody_there_is_exit_code_3(run: Run, file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, out, err = run("bench", f"http://127.0.0.1:{port}", str(file))
    assert (code, out) == (3, "")
    assert err.startswith(f"error: no server answers at http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--goodput", "ttfb:1"), "'ttfb:1' is no target of --goodput"),
        (("--header", "x"), "--header 'x' should be NAME:VALUE"),
        (("--plain", "--by-name"), "one or the other"),
        (("--warmup", "5"), "nothing is due after the warm-up"),
        (("--rate", "0"), "--rate '0' should be numbers above 0"),
        (("--json", "/nowhere/x"), "cannot write /nowhere/x"),
        (("--concurrency-max", "9999999999"), "open files, and"),
    ],
)
def test_wrong_words(run: Run, file: Path, words: tuple[str, ...], said: str) -> None:
    code, out, err = run("bench", "http://127.0.0.1:1", str(file), *words)
    assert (code, out) == (2, "")
    assert said in err
