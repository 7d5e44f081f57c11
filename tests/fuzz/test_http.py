"""Whatever bytes come to its port, the gateway answers them with what is their sender's fault, and serves the next."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import re

import pytest
from gateway_fakes import CHAT, COMPLETION, FakeBackend, Served, answer_script, on_loop, served

from fuzz.mutation import mutated, pieces
from fuzz.serving import AnyFleet
from helpers.soak import seeds
from hyperflexis.gateway import Limits
from hyperflexis.gateway.access import ApiKey, KeyRing, digest_of

pytestmark = pytest.mark.soak

AT_A_TIME = 40
IMPATIENT = Limits(head_s=0.05, idle_s=0.05, body_s=0.05, body_bytes_max=100_000)


def request(method: str, path: str, body: object = None, *headers: str, chunked: bool = False) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost:8000", "Authorization: Bearer key", *headers]
    if chunked:
        half = len(data) // 2
        data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (data[:half], data[half:])) + b"0\r\n\r\n"
        lines.append("Transfer-Encoding: chunked")
    elif body is not None:
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


GET = request("GET", "/v1/models")
RECORDED = [
    request("POST", "/v1/chat/completions", CHAT, "Content-Type: application/json", "x-slo-ttft-ms: 250"),
    request("POST", "/v1/completions", COMPLETION | {"stream": True, "slo": {"tpot_ms": 20}, "n": 2}),
    request("POST", "/v1/completions", COMPLETION | {"logit_bias": {"5": 1}, "stop": ["a"], "seed": 1}, chunked=True),
    request("POST", "/v1/completions", COMPLETION, "Expect: 100-continue", "x-smg-priority: bulk"),
    request("POST", "/v1/completions", COMPLETION, "Content-Encoding: gzip"),
    request("POST", "/tokenize", {"messages": CHAT["messages"], "chat_template_kwargs": {"a": [1, {"b": None}]}}),
    request("POST", "/detokenize", {"tokens": [1, 2, 3]}, "Connection: close"),
    request("POST", "/instances", {"url": "http://10.0.0.1:8000"}),
    request("DELETE", "/instances/i0"),
    request("GET", "/ready", None, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
    GET + GET + request("GET", "/metrics", None, "Origin: http://localhost:8000"),
    request("OPTIONS", "*"),
]
WORDS = [
    *(b"\r\n", b"\r\n\r\n", b"\n", b"\0", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"0\r\n\r\n"),
    *(b"HTTP/1.0", b"HTTP/2.0", b"CONNECT", b"%00", b"%ff", b"/../", b"//", b"?a=b", b"#", b"\xff\xfe", b"\\ud800"),
    *(b"null", b"1e999", b"-1", b"NaN", b'""', b"[]", b"{}", b"Expect: 100-continue\r\n", b"Host: evil.example\r\n"),
    *(
        b"99999999999999999999",
        b"true",
        b'"stream": true',
        b'"n": 64',
        b'"echo": true',
        b"Authorization: Basic a:b\r\n",
    ),
]


async def exchange(it: Served, seed: int) -> bytes:
    """All that comes back until the gateway ends it, which it does soon: nothing more is said."""
    rng = random.Random(seed)
    data = mutated(RECORDED, rng, WORDS)
    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
    try:
        for piece in pieces(data, rng):
            writer.write(piece)
            await asyncio.sleep(0)
        return await reader.read()
    except (ConnectionError, RuntimeError):  # The second is what uvloop says of a connection that is closed.
        return b""
    finally:
        writer.close()


@on_loop
async def _fuzz(keys: KeyRing | None, caplog: pytest.LogCaptureFixture, count: int) -> None:
    caplog.set_level(logging.INFO)
    backend = FakeBackend(answer_script("short", per_call=8))
    statuses: set[bytes] = set()
    async with served(backend, limits=IMPATIENT, keys=keys, membership=AnyFleet()) as it:
        left = seeds(count)
        while batch := list(itertools.islice(left, AT_A_TIME)):
            for seed, told in zip(batch, await asyncio.gather(*(exchange(it, each) for each in batch)), strict=True):
                found = re.findall(rb"^HTTP/1\.[01] (\d{3}) ", told, re.MULTILINE)
                assert not [each for each in found if each >= b"500"], (seed, told[:500])
                statuses.update(found)
            loud = [each for each in caplog.records if each.levelno >= logging.WARNING or each.exc_info]
            assert not loud, (batch, loud[0].getMessage(), loud[0].exc_text)
            caplog.clear()
        (listener,) = it.gateway._listeners
        assert (await it.post("/v1/completions", COMPLETION, headers={"Authorization": "Bearer key"}))[0] == 200
        await it.http.close()
        while len(listener._connections) or backend.running:  # noqa: ASYNC110 there is no event for it
            await asyncio.sleep(0)
    assert {b"200", b"400", b"404"} <= statuses


def test_bytes_that_are_nearly_requests(caplog: pytest.LogCaptureFixture) -> None:
    ring = KeyRing((ApiKey("fuzz", digest_of("key"), "fuzz", is_admin=True),))
    for keys in (None, ring):
        _fuzz(keys, caplog, 600)
