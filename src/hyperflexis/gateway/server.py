"""The HTTP server: routes, start and stop, and every error in OpenAI's shape. Decides nothing about requests.

A client that closes its sending half counts as gone, as with most servers: its request is cancelled.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from aiohttp import web
from prometheus_client.registry import Collector

from hyperflexis.core.slo import ServiceClass
from hyperflexis.gateway.access import KeyRing
from hyperflexis.gateway.backend import Backend, Fleet, LiveView, Membership, Offer, ServedModel
from hyperflexis.gateway.body import read_body, too_large
from hyperflexis.gateway.chat import chat_prompt
from hyperflexis.gateway.completions import completion_prompts
from hyperflexis.gateway.dashboard import LiveDashboard
from hyperflexis.gateway.errors import ApiError, invalid
from hyperflexis.gateway.generation import Generation
from hyperflexis.gateway.guard import Guard, Handler
from hyperflexis.gateway.limits import Limits
from hyperflexis.gateway.listening import STOP_GRACE_S, Listener
from hyperflexis.gateway.metrics import NO_CLASS
from hyperflexis.gateway.openai_types import AttachBody, DetokenizeBody, TokenizeBody
from hyperflexis.gateway.openapi import describe
from hyperflexis.gateway.quota import Passage
from hyperflexis.gateway.tokenizer import TextCodec
from hyperflexis.gateway.tracing import Tracer
from hyperflexis.gateway.validation import check_ids, pick_model

log = logging.getLogger("hyperflexis.gateway")


class Gateway:
    """The OpenAI face of one backend."""

    def __init__(
        self,
        backend: Fleet | Backend,
        tokenizer: TextCodec | str | Path,
        *,
        models: Sequence[ServedModel] | None = None,
        service_classes: Mapping[str, ServiceClass] | None = None,
        default_class: str = "default",
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
        priority_max: int | None = None,
        allow_push: bool = True,
        membership: Membership | None = None,
        keys: KeyRing | None = None,
        tls: ssl.SSLContext | None = None,
        admin_address: tuple[str, int] | None = None,
        collectors: Sequence[Collector] = (),
        tracer: Tracer | None = None,
        view: LiveView | None = None,
    ) -> None:
        """Prepare; nothing listens before `start`.

        Args:
            backend: The fleet.
            tokenizer: A codec, or the directory of a model to load it from.
            models: What is served; by default what the backend says.
            service_classes: By name; by default what the backend says.
            default_class: The class of requests that name none.
            host: Address to listen on.
            port: Port to listen on; 0 takes a free one.
            limits: Sizes and times.
            priority_max: The highest priority that clients get by asking for a number.
            membership: What attaches and detaches instances for whoever asks; None: nobody may.
            collectors: What else `/metrics` shows.
            tracer: Who traces requests; None: nobody does.
            view: What /dashboard shows; None: there is none.
            allow_push: False sends every event through aiohttp, one task wake each.
            keys: Who may ask, and for what; None: whoever reaches it.
            tls: With what connections are encrypted; None: not at all.
            admin_address: Host and port of the routes that show or change the fleet; None: beside all others.
        """
        self._backend = backend
        self._offer = Offer(
            cast("Backend", backend).models if models is None else models,
            cast("Backend", backend).service_classes if service_classes is None else service_classes,
            default_class,
        )
        self._tokenizer = tokenizer
        self._limits = limits or Limits()
        self._priority_max = priority_max
        self._allow_push = allow_push
        self._membership = membership
        self._collectors = collectors
        self._tracer = tracer
        self._dashboard = None if view is None else LiveDashboard(view)
        self._codec: TextCodec
        self._generation: Generation
        addresses = [(host, port)] if admin_address is None else [(host, port), admin_address]
        self._guard = Guard(
            keys,
            self._on_refused,
            is_local=is_loopback(host),
            is_admin_local=is_loopback(addresses[-1][0]),
        )
        routings = [self._all_routes] if admin_address is None else [self._client_routes, self._admin_routes]
        self._listeners = [
            Listener(routing, speak_openai, host=each, port=number, limits=self._limits, tls=tls)
            for routing, (each, number) in zip(routings, addresses, strict=True)
        ]
        self.ports: list[int] = []
        """Where it listens, once it does: for clients; then for admins, if they have a port of their own."""

    async def start(self) -> int:
        """Listen; returns the port for clients.

        Raises:
            OSError: an address cannot be had.
            TokenizerError: the model directory has no tokenizer that can be read.
        """
        given = self._tokenizer
        self._codec = given if isinstance(given, TextCodec) else await asyncio.to_thread(TextCodec.load, given)
        self._generation = Generation(
            self._backend,
            self._offer,
            self._codec,
            limits=self._limits,
            priority_max=self._priority_max,
            allow_push=self._allow_push,
            collectors=self._collectors,
            tracer=self._tracer,
        )
        try:
            self.ports = [await listener.start() for listener in self._listeners]
        except BaseException:
            await self._stop_listening()
            raise
        return self.ports[0]

    def follow_keys(self, keys: KeyRing) -> None:
        """Let these be the keys from now on. What has begun goes on."""
        self._guard.follow(keys)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those that run. Returns whether all of them ended in time."""
        return await self._generation.drain(timeout_s)

    async def stop(self) -> None:
        """End what runs, and stop listening."""
        if not self.ports:
            return
        self.ports = []
        if self._dashboard is not None:
            self._dashboard.end()
        self._generation.end_all()
        await self._generation.drain(STOP_GRACE_S)
        await self._stop_listening()

    async def _stop_listening(self) -> None:
        for listener in self._listeners:
            await listener.stop()
        self._generation.encoders.close()

    def _all_routes(self, routes: web.UrlDispatcher) -> None:
        self._client_routes(routes)
        self._admin_routes(routes)

    def _client_routes(self, routes: web.UrlDispatcher) -> None:
        guard, expect = self._guard, self._expect
        routes.add_post("/v1/chat/completions", guard.counted(self._generation.chat), expect_handler=expect)
        routes.add_post("/v1/completions", guard.counted(self._generation.complete), expect_handler=expect)
        routes.add_get("/v1/models", guard.known(self._models))
        routes.add_get("/v1/models/{model:.+}", guard.known(self._model))
        routes.add_post("/tokenize", guard.counted(self._tokenize), expect_handler=expect)
        routes.add_post("/detokenize", guard.counted(self._detokenize), expect_handler=expect)
        routes.add_get("/openapi.json", guard.known(self._described))
        routes.add_get("/health", self._alive)
        routes.add_get("/live", self._alive)
        routes.add_get("/ready", self._ready)

    def _admin_routes(self, routes: web.UrlDispatcher) -> None:
        guard, expect = self._guard, self._expect
        routes.add_get("/metrics", guard.admin(self._metrics))
        if self._membership is not None:
            routes.add_post("/instances", guard.admin(self._attach), expect_handler=expect)
            routes.add_delete("/instances/{name}", guard.admin(self._detach))
        if self._dashboard is not None:
            self._dashboard.add_to(routes, guard.admin)

    def _on_refused(self, status: int) -> None:
        self._generation.metrics.account_refused(NO_CLASS, status)

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """Refuse a body before it is sent, where the client asks."""
        try:
            self._guard.check(request)
        except ApiError as error:
            return _refusal(error)
        if (request.content_length or 0) > self._limits.body_bytes_max:
            return _refusal(too_large(self._limits))
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return _json({"object": "list", "data": [_spelled(model) for model in self._offer.models]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        return _json(_spelled(pick_model(request.match_info["model"], self._offer.models)))

    async def _tokenize(self, request: web.Request, passage: Passage) -> web.StreamResponse:
        body = await read_body(request, TokenizeBody, self._limits)
        model = pick_model(body.model, self._offer.models)
        encoders = self._generation.encoders
        if body.messages is not None:
            prompt = await chat_prompt(
                body.messages,
                model=model,
                codec=self._codec,
                encoders=encoders,
                add_generation_prompt=body.add_generation_prompt,
                continue_final_message=body.continue_final_message,
                add_special_tokens=body.add_special_tokens,
                extra=body.chat_template_kwargs,
            )
        elif body.prompt is not None:
            (prompt,) = await completion_prompts(
                body.prompt,
                model=model,
                codec=self._codec,
                encoders=encoders,
                prompts_max=1,
                add_special_tokens=body.add_special_tokens is not False,
            )
        else:
            raise invalid("prompt", "Either 'prompt' or 'messages' is required.", "missing_required_parameter")
        tokens = prompt.tokens
        strings = [self._codec.piece(token).decode("utf-8", "replace") for token in tokens]
        return _json(
            {
                "count": len(tokens),
                "max_model_len": model.context_tokens_max,
                "tokens": tokens,
                "token_strs": strings if body.return_token_strs else None,
            }
        )

    async def _detokenize(self, request: web.Request, passage: Passage) -> web.StreamResponse:
        body = await read_body(request, DetokenizeBody, self._limits)
        pick_model(body.model, self._offer.models)
        check_ids("tokens", body.tokens, self._codec)
        return _json({"prompt": self._codec.decode(body.tokens, skip_special_tokens=False)})

    async def _described(self, request: web.Request) -> web.StreamResponse:
        return _json(describe(has_keys=self._guard.has_keys))

    async def _alive(self, request: web.Request) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        draining = self._generation.draining
        ready = self._backend.is_ready() and not draining
        told: dict[str, Any] = {"ready": ready, "draining": draining}
        # Probes bring no key, and need no more.
        if self._guard.is_admin(request):
            told["instances"] = self._backend.instances()
        return _json(told, status=200 if ready else 503)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, AttachBody, self._limits)
        assert self._membership is not None
        try:
            self._membership.attach(body.url, body.role)
        except ValueError as error:
            raise invalid(None, f"It cannot be attached: {error}.") from error
        return _json({"url": body.url, "role": body.role}, status=202)

    async def _detach(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        assert self._membership is not None
        try:
            is_known = self._membership.detach(name)
        except ValueError as error:
            raise ApiError(409, f"{name} cannot be detached: {error}.", code="conflict") from error
        if not is_known:
            raise ApiError(404, f"There is no instance {name}.", code="unknown_instance")
        return _json({"name": name}, status=202)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        body = self._generation.metrics.expose()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _json(told: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(told), status=status, content_type="application/json")


def _spelled(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "hyperflexis",
        "root": model.name,
        "parent": None,
        "max_model_len": model.context_tokens_max,
    }


@web.middleware
async def speak_openai(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into OpenAI's shape."""
    try:
        return await handler(request)
    except ApiError as error:
        return _refusal(error)
    except web.HTTPException as error:
        return _refusal(_from_http(request, error))
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        # This supervises all handlers: a bug in one answer must not end the server, and must not be silent.
        log.exception("a bug in serving %s %s", request.method, request.path)
        if request.writer.output_size:
            # Something was sent already: a cut connection is the only thing that cannot be mistaken for an answer.
            raise ConnectionResetError("an answer broke off") from None
        return _refusal(ApiError(500, "Internal error; it was logged.", kind="server_error", code="internal_error"))


def _refusal(error: ApiError) -> web.Response:
    return web.Response(body=error.body(), status=error.status, content_type="application/json", headers=error.headers)


def _from_http(request: web.Request, error: web.HTTPException) -> ApiError:
    where = f"{request.method} {request.path}"
    if isinstance(error, web.HTTPNotFound):
        return ApiError(404, f"Unknown request URL: {where}.", code="unknown_url")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"Wrong method: {where}. Allowed: {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
    return ApiError(error.status, error.reason or "Refused.", code="http_error")
