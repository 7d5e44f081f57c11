"""Who passes where, over HTTP: clients, admins, strangers, and pages that a browser has open."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from gateway_fakes import CHAT, COMPLETION, FakeBackend, Served, answer_script, on_loop, parse_events, served

from hyperflexis.gateway import Gateway
from hyperflexis.gateway.access import Allowance, ApiKey, KeyRing, digest_of, new_key
from hyperflexis.gateway.guard import is_own_name

CLIENT, ADMIN, BATCH, SLOW = (new_key() for _ in range(4))
RING = KeyRing(
    (
        ApiKey("client", digest_of(CLIENT), "acme"),
        ApiKey("admin", digest_of(ADMIN), "us", is_admin=True),
        ApiKey("batch", digest_of(BATCH), "acme", classes=("batch",)),
        ApiKey("slow", digest_of(SLOW), "slow", allowance=Allowance(requests_per_minute=2, tokens_per_minute=1000)),
    ),
)
OPEN = {"/health", "/live", "/ready"}


class Fleet:
    """A membership that lets all come and go."""

    def __init__(self) -> None:
        self.attached: list[str] = []

    def attach(self, url: str, role: str) -> None:
        self.attached.append(url)

    def detach(self, name: str) -> bool:
        return True


def bearing(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


def basic(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}}


async def status_of(it: Served, method: str, path: str, port: int | None = None, **more: Any) -> int:
    async with it.http.request(method, f"http://127.0.0.1:{port or it.port}{path}", **more) as response:
        await response.read()
        return response.status


def routes_of(gateway: Gateway) -> Sequence[tuple[str, str]]:
    app = web.Application()
    gateway._all_routes(app.router)
    return [(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None]


@on_loop
async def test_every_route_but_the_probes_asks_for_a_key() -> None:
    """Also one that somebody adds later and forgets."""
    async with served(keys=RING, membership=Fleet()) as it:
        routes = routes_of(it.gateway)
        assert len(routes) > 12
        for method, path in routes:
            asked = path.replace("{model:.+}", "m").replace("{name}", "i0").replace("{model}", "m")
            status = await status_of(it, method, asked)
            assert status == (200 if path in OPEN else 401), (method, path)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Bearer {CLIENT}x"},
        {"Authorization": f"Bearer {CLIENT[:-1]}"},
        {"Authorization": f"Basic {CLIENT}"},
        {"Authorization": CLIENT},
        {"x-api-key": CLIENT},
    ],
)
@on_loop
async def test_whoever_has_no_key_is_told_as_openai_tells_it(headers: dict[str, str]) -> None:
    async with served(keys=RING) as it:
        status, answer, told = await it.post("/v1/completions", COMPLETION, headers=headers)
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (
            401,
            "invalid_api_key",
            "invalid_request_error",
        )
        assert told["WWW-Authenticate"] == "Bearer"
        assert not it.backend.requests
        async with it.http.get(it.url + "/metrics", **bearing(ADMIN)) as response:
            assert 'hyperflexis_requests_total{class="none",code="401"} 1.0' in await response.text()


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER  {} "])
@on_loop
async def test_key_is_taken_however_the_scheme_is_spelled(spelling: str) -> None:
    async with served(keys=RING) as it:
        headers = {"Authorization": spelling.format(CLIENT)}
        status, _, _ = await it.post("/v1/chat/completions", CHAT, headers=headers)
    assert status == 200


@on_loop
async def test_stranger_with_a_large_body_is_refused_before_it_is_sent() -> None:
    async with served(keys=RING) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await reader.readline()).split()[1] == b"401"
        writer.close()


ADMIN_ROUTES = [("GET", "/metrics"), ("POST", "/instances"), ("DELETE", "/instances/i0")]


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
@on_loop
async def test_admin_routes_need_the_key_of_an_admin(method: str, path: str) -> None:
    more = {"json": {"url": "http://10.0.0.1:8000"}} if method == "POST" else {}
    async with served(keys=RING, membership=Fleet()) as it:
        assert await status_of(it, method, path, **bearing(CLIENT), **more) == 403
        assert await status_of(it, method, path, **bearing(ADMIN), **more) in (200, 202)


@on_loop
async def test_browsers_may_look_with_a_password_and_change_nothing() -> None:
    """A browser sends the password along with whatever any page has it send."""
    async with served(keys=RING, membership=(fleet := Fleet())) as it:
        async with it.http.get(it.url + "/metrics") as response:
            assert response.headers["WWW-Authenticate"].startswith("Basic ")
        assert await status_of(it, "GET", "/metrics", **basic(ADMIN)) == 200
        assert await status_of(it, "GET", "/metrics", **basic(CLIENT)) == 403
        body = {"json": {"url": "http://10.0.0.1:8000"}}
        assert await status_of(it, "POST", "/instances", **basic(ADMIN), **body) == 401
        assert await status_of(it, "DELETE", "/instances/i0", **basic(ADMIN)) == 401
        assert await status_of(it, "POST", "/v1/completions", **basic(CLIENT), json=COMPLETION) == 401
    assert not fleet.attached


@pytest.mark.parametrize(
    "text", ["%%%", "YQ==", base64.b64encode(b"me:").decode(), base64.b64encode(b"\xff:\xff").decode()]
)
@on_loop
async def test_passwords_that_are_none(text: str) -> None:
    async with served(keys=RING) as it:
        assert await status_of(it, "GET", "/metrics", headers={"Authorization": f"Basic {text}"}) == 401


@on_loop
async def test_admins_may_have_a_port_of_their_own() -> None:
    async with served(keys=RING, membership=Fleet(), admin_address=("127.0.0.1", 0)) as it:
        port, admin_port = it.gateway.ports
        for method, path in ADMIN_ROUTES:
            assert await status_of(it, method, path, port, **bearing(ADMIN)) == 404
            assert await status_of(it, method, path, admin_port) == 401
        assert await status_of(it, "GET", "/metrics", admin_port, **bearing(ADMIN)) == 200
        assert await status_of(it, "POST", "/v1/completions", admin_port, **bearing(ADMIN), json=COMPLETION) == 404


@on_loop
async def test_only_admins_see_instances_in_ready() -> None:
    async with served(keys=RING) as it:
        for more, sees in (({}, False), (bearing(CLIENT), False), (bearing(ADMIN), True)):
            async with it.http.get(it.url + "/ready", **more) as response:
                assert ("instances" in await response.json()) == sees


@on_loop
async def test_limits_of_a_key_are_told_and_kept() -> None:
    async with served(keys=RING) as it:
        status, _, headers = await it.post("/v1/completions", COMPLETION, **bearing(SLOW))
        assert status == 200
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == "1"
        assert int(headers["x-ratelimit-remaining-tokens"]) < 1000
        body = CHAT | {"stream": True}
        async with it.http.post(it.url + "/v1/chat/completions", json=body, **bearing(SLOW)) as response:
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
            assert parse_events(await response.read())
        status, answer, headers = await it.post("/v1/completions", COMPLETION, **bearing(SLOW))
        assert (status, answer["error"]["code"], answer["error"]["type"]) == (
            429,
            "rate_limit_exceeded",
            "rate_limit_error",
        )
        assert 1 <= int(headers["Retry-After"]) <= 30
        assert (await it.post("/v1/completions", COMPLETION, **bearing(CLIENT)))[0] == 200


@on_loop
async def test_refused_bodies_count_and_tell_what_is_left() -> None:
    async with served(keys=RING) as it:
        status, _, headers = await it.post("/v1/completions", {"prompt": ""}, **bearing(SLOW))
        assert (status, headers["x-ratelimit-remaining-requests"]) == (400, "1")


@on_loop
async def test_flood_of_one_tenant_leaves_the_others_alone() -> None:
    script = answer_script(forever=True, step_s=0.001)
    ring = KeyRing(RING.keys, tenant_default=Allowance(concurrent_max=3))
    async with served(FakeBackend(script), keys=ring) as it:
        body = COMPLETION | {"stream": True, "max_tokens": 2000}

        async def flood() -> int:
            async with it.http.post(it.url + "/v1/completions", json=body, **bearing(CLIENT)) as response:
                if response.status == 200:
                    await response.content.readany()
                    await done.wait()
                return response.status

        done = asyncio.Event()
        floods = [asyncio.create_task(flood()) for _ in range(12)]
        finished, _ = await asyncio.wait(floods, return_when=asyncio.FIRST_COMPLETED)
        assert {each.result() for each in finished} == {429}
        it.backend.script = answer_script()
        assert (await it.post("/v1/completions", COMPLETION, **bearing(ADMIN)))[0] == 200
        done.set()
        statuses = sorted([await each for each in floods])
    assert statuses == [200] * 3 + [429] * 9


@on_loop
async def test_clients_that_leave_make_room() -> None:
    script = answer_script(forever=True, step_s=0.001)
    ring = KeyRing(RING.keys, tenant_default=Allowance(concurrent_max=1))
    async with served(FakeBackend(script), keys=ring) as it:
        for _ in range(3):
            response = await it.http.post(
                it.url + "/v1/completions", json=COMPLETION | {"stream": True, "max_tokens": 2000}, **bearing(CLIENT)
            )
            assert response.status == 200
            response.close()
            while it.backend.running:  # noqa: ASYNC110 there is no event for it
                await asyncio.sleep(0)


@on_loop
async def test_class_that_a_key_may_not_use_is_refused() -> None:
    async with served(keys=RING) as it:
        body = COMPLETION | {"service_tier": "interactive"}
        status, answer, _ = await it.post("/v1/completions", body, **bearing(BATCH))
        assert (status, answer["error"]["code"]) == (403, "class_not_allowed")
        _, _, headers = await it.post("/v1/completions", COMPLETION | {"priority": 50}, **bearing(BATCH))
        assert headers["x-hyperflexis-granted"].startswith("class=batch, priority=-5,")


@on_loop
async def test_keys_may_change_while_it_serves() -> None:
    async with served(keys=RING) as it:
        fresh = new_key()
        it.gateway.follow_keys(KeyRing((ApiKey("fresh", digest_of(fresh), "acme"),)))
        assert (await it.post("/v1/completions", COMPLETION, **bearing(CLIENT)))[0] == 401
        assert (await it.post("/v1/completions", COMPLETION, **bearing(fresh)))[0] == 200


@on_loop
async def test_keys_are_neither_answered_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    backend = FakeBackend()
    backend.submit = lambda *_: 1 // 0  # type: ignore[method-assign]
    wrong = CLIENT[:-4] + "oops"
    async with served(backend, keys=RING) as it:
        told = [
            json.dumps((await it.post("/v1/completions", COMPLETION, **bearing(key)))[1]) for key in (wrong, CLIENT)
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\x01\r\n\r\n" % CLIENT.encode())
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
    assert "ZeroDivisionError" in caplog.text
    assert "bad request" in caplog.text
    for secret in (wrong, CLIENT):
        assert secret not in caplog.text
        assert all(secret not in each for each in told)


# Without keys.


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("10.1.2.3", True),
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("model.localhost:80", True),
        ("gateway:8000", True),
        ("", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("[::1", False),
    ],
)
def test_names_that_nobody_else_can_have(host: str, is_own: bool) -> None:
    assert is_own_name(host) == is_own


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:8000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
@on_loop
async def test_pages_may_not_use_a_server_without_keys(headers: dict[str, str]) -> None:
    async with served(membership=(fleet := Fleet())) as it:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), *ADMIN_ROUTES):
            data = json.dumps(COMPLETION | {"url": "http://evil.example"})
            assert await status_of(it, method, path, headers=headers, data=data) == 403, path
    assert not fleet.attached
    assert not it.backend.requests


@on_loop
async def test_own_pages_may() -> None:
    async with served(membership=Fleet()) as it:
        own = {"headers": {"Origin": it.url}}
        assert await status_of(it, "DELETE", "/instances/i0", **own) == 202
        assert (await it.post("/v1/completions", COMPLETION, **own))[0] == 200


@on_loop
async def test_beyond_this_machine_pages_may_not_change_the_fleet() -> None:
    async with served(host="0.0.0.0", membership=Fleet()) as it:
        named = {"headers": {"Host": "gpu1.example.com"}}
        assert await status_of(it, "DELETE", "/instances/i0", **named) == 202
        foreign = {"headers": {"Origin": "https://evil.example"}}
        assert await status_of(it, "DELETE", "/instances/i0", **foreign) == 403


@on_loop
async def test_admins_port_on_this_machine_is_kept_from_pages_though_clients_come_from_elsewhere() -> None:
    async with served(host="0.0.0.0", membership=Fleet(), admin_address=("127.0.0.1", 0)) as it:
        _, admin_port = it.gateway.ports
        named = {"headers": {"Host": "evil.example", "Origin": "http://evil.example"}}
        assert await status_of(it, "DELETE", "/instances/i0", admin_port, **named) == 403
        assert await status_of(it, "GET", "/metrics", admin_port, headers={"Host": "evil.example"}) == 403
        assert await status_of(it, "GET", "/v1/models", headers={"Host": "gpu1.example.com"}) == 200
