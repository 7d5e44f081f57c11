"""The dashboard's routes: what is told, to how many, and that nothing of it holds up the end."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from gateway_fakes import Served, on_loop, served
from yarl import URL

from hyperflexis.gateway import dashboard


class FakeView:
    """Counts its snapshots."""

    period_s = 0.001

    def __init__(self) -> None:
        self.snapshots = 0

    def file(self, name: str) -> tuple[str, bytes] | None:
        return {"index.html": ("text/html; charset=utf-8", b"<p>page"), "a.js": ("text/javascript", b"1")}.get(name)

    def source(self) -> bytes:
        return b'{"kind":"live"}'

    def snapshot(self) -> bytes:
        self.snapshots += 1
        return json.dumps({"number": self.snapshots}).encode()

    async def request(self, name: str) -> bytes | None:
        return json.dumps([name]).encode() if name.startswith("cmpl") else None

    async def instance(self, instance_id: int) -> bytes | None:
        return b"{}" if instance_id == 3 else None


def url(gate: Served, path: str) -> URL:
    """Its address, spelled on the wire as it is here."""
    return URL(f"{gate.url}{path}", encoded=True)


@on_loop
async def test_page_is_guarded_against_what_is_not_ours() -> None:
    async with served(view=FakeView()) as gate:
        async with gate.http.get(url(gate, "/dashboard")) as answer:
            assert (answer.status, await answer.text()) == (200, "<p>page")
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        async with gate.http.get(url(gate, "/dashboard/a.js")) as answer:
            assert (answer.status, answer.content_type) == (200, "text/javascript")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("source", 200),
        ("snapshot", 200),
        ("requests/cmpl-1", 200),
        ("requests/cmpl%2F..%2F1", 200),
        ("requests/nobody", 404),
        ("instances/i3", 200),
        ("instances/i4", 404),
        ("instances/3", 404),
        ("instances/i" + "9" * 30, 404),
        ("b.js", 404),
        ("frames/0", 404),
        ("..%2Flive.py", 404),
    ],
)
@on_loop
async def test_routes(path: str, status: int) -> None:
    async with served(view=FakeView()) as gate, gate.http.get(url(gate, f"/dashboard/{path}")) as answer:
        assert answer.status == status
        assert ("error" in json.loads(await answer.read())) == (status == 404)


@on_loop
async def test_without_a_view_there_is_no_dashboard() -> None:
    async with served() as gate, gate.http.get(url(gate, "/dashboard")) as answer:
        assert answer.status == 404


@on_loop
async def test_stream_tells_snapshot_after_snapshot_and_ends_with_the_server() -> None:
    async with served(view=FakeView()) as gate, gate.http.get(url(gate, "/dashboard/events")) as answer:
        assert answer.content_type == "text/event-stream"
        numbers = []
        async for line in answer.content:
            if line.startswith(b"data: "):
                numbers.append(json.loads(line[6:])["number"])
            if len(numbers) == 3:
                break
        assert numbers == [1, 2, 3]
        await gate.gateway.stop()
        async for _ in answer.content:  # To its end, which is a proper one.
            pass


@on_loop
async def test_who_leaves_makes_no_noise_and_room_for_another() -> None:
    app = web.Application(logger=logging.getLogger("left"))
    dashboard_ = dashboard.LiveDashboard(FakeView())
    dashboard_.add_to(app.router, lambda handler: handler)
    said: list[str] = []
    logging.getLogger("left").addFilter(lambda record: said.append(record.getMessage()) or False)  # type: ignore[func-returns-value]
    server = TestServer(app)
    async with TestClient(server) as client:
        answer = await client.get("/dashboard/events")
        await answer.content.readline()
        assert dashboard_._streams == 1
        answer.close()
        while dashboard_._streams:  # noqa: ASYNC110 nobody tells when the server has noticed
            await asyncio.sleep(0.001)
    assert said == []


@on_loop
async def test_no_more_streams_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "LISTENERS_MAX", 3)
    async with served(view=FakeView()) as gate:
        open_ = [await gate.http.get(url(gate, "/dashboard/events")) for _ in range(3)]
        async with gate.http.get(url(gate, "/dashboard/events")) as answer:
            assert answer.status == 503
        for each in open_:
            each.close()
