"""The dashboard over HTTP: its page, what the page asks for, and the fleet as a stream of events.

All routes begin with /dashboard, so that one place can guard them. They only tell; nothing can be changed here. What is
told comes as bytes from a view, of which this knows nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from aiohttp import web

from hyperflexis.gateway.backend import LiveView, RecordedView, View
from hyperflexis.gateway.errors import ApiError
from hyperflexis.gateway.events import data_event
from hyperflexis.gateway.guard import Handler

Guarded = Callable[[Handler], Handler]
LISTENERS_MAX = 64
"""Streams at a time: beyond that, 503."""
_INDEX = "index.html"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Pages:
    """What live and recorded dashboards have in common."""

    def __init__(self, view: View) -> None:
        self._view = view

    def add_to(self, routes: web.UrlDispatcher, guarded: Guarded) -> None:
        for path, handler in (
            ("/dashboard", self._page),
            ("/dashboard/source", self._source),
            ("/dashboard/requests/{name}", self._request),
            (r"/dashboard/instances/i{number:\d{1,9}}", self._instance),
            (r"/dashboard/{file:[a-z_]+\.[a-z]+}", self._file),
        ):
            routes.add_get(path, guarded(handler))

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return self._found(_INDEX)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return self._found(request.match_info["file"])

    def _found(self, name: str) -> web.Response:
        found = self._view.file(name)
        if found is None:
            raise ApiError(404, f"The dashboard has no file {name}.", code="unknown_url")
        kind, body = found
        return web.Response(body=body, headers={"Content-Type": kind, "Cache-Control": "no-cache", **_HEADERS})

    async def _source(self, request: web.Request) -> web.StreamResponse:
        return told(self._view.source())

    async def _request(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        story = await self._view.request(name)
        if story is None:
            raise ApiError(404, "There is no such request, or it ended too long ago.", code="unknown_request")
        return told(story)

    async def _instance(self, request: web.Request) -> web.StreamResponse:
        number = int(request.match_info["number"])
        story = await self._view.instance(number)
        if story is None:
            raise ApiError(404, f"There is no instance i{number}.", code="unknown_instance")
        return told(story)


class LiveDashboard:
    """Of a running fleet."""

    def __init__(self, view: LiveView) -> None:
        self._view = view
        self._streams = 0
        self._ending = asyncio.Event()

    def add_to(self, routes: web.UrlDispatcher, guarded: Guarded) -> None:
        """Add its routes, each behind what guards them."""
        _Pages(self._view).add_to(routes, guarded)
        routes.add_get("/dashboard/snapshot", guarded(self._snapshot))
        routes.add_get("/dashboard/events", guarded(self._events))

    def end(self) -> None:
        """End its streams."""
        self._ending.set()

    async def _snapshot(self, request: web.Request) -> web.Response:
        return told(self._view.snapshot())

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """A snapshot at once, and one each period."""
        if self._streams >= LISTENERS_MAX:
            raise ApiError(503, f"{LISTENERS_MAX} dashboards are open already.", code="too_many_dashboards")
        self._streams += 1
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", **_HEADERS}
        response = web.StreamResponse(headers=headers)
        with contextlib.suppress(ConnectionError):  # Whoever looked has left, as they do.
            try:
                await response.prepare(request)
                await self._tell(response)
            finally:
                self._streams -= 1
        return response

    async def _tell(self, response: web.StreamResponse) -> None:
        while not self._ending.is_set():
            await response.write(data_event(self._view.snapshot()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._view.period_s):
                    await self._ending.wait()


class RecordedDashboard:
    """Of a journal."""

    def __init__(self, view: RecordedView) -> None:
        self._view = view

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Add its routes."""
        _Pages(self._view).add_to(routes, lambda handler: handler)
        routes.add_get(r"/dashboard/frames/{first:\d{1,9}}", self._frames)

    async def _frames(self, request: web.Request) -> web.Response:
        return told(self._view.frames_from(int(request.match_info["first"])))


def told(body: bytes) -> web.Response:
    """JSON for the page."""
    return web.Response(
        body=body, headers={"Content-Type": "application/json", "Cache-Control": "no-store", **_HEADERS}
    )
