"""The same answers behind TLS, streams by push included, and no patience for handshakes that do not come."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess

import aiohttp
import pytest
from gateway_fakes import COMPLETION, on_loop, parse_events, served, text_of

from hyperflexis.gateway import Limits

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("tls")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(words.split(), cwd=folder, check=True, capture_output=True)
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return made


def test_streams_and_answers_are_the_same(context: ssl.SSLContext) -> None:
    @on_loop
    async def ask() -> None:
        async with served() as plain:
            events = await plain.events("/v1/completions", COMPLETION)
        async with served(tls=context) as it:
            url = f"https://127.0.0.1:{it.port}/v1/completions"
            body = COMPLETION | {"stream": True}
            async with it.http.post(url, json=body, ssl=False) as response:
                assert response.status == 200
                assert text_of(parse_events(await response.read())) == text_of(events)
            async with it.http.post(url, json=COMPLETION, ssl=False) as response:
                assert (await response.json())["choices"][0]["text"] == text_of(events)
            with pytest.raises(aiohttp.ClientError):
                await it.post("/v1/completions", COMPLETION)

    ask()


def test_handshake_that_does_not_come_is_not_waited_for(context: ssl.SSLContext) -> None:
    @on_loop
    async def lurk() -> None:
        async with served(tls=context, limits=Limits(head_s=0.02)) as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            assert await reader.read() == b""
            writer.close()

    lurk()
