"""The HTTP server: routes, start and stop, and every error in OpenAI's shape. Decides nothing about requests.

A client that closes its sending half counts as gone, as with most servers: its request is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from hyperflexis.core.slo import ServiceClass
from hyperflexis.gateway.backend import Backend, Fleet, LiveView, Membership, Offer, ServedModel
from hyperflexis.gateway.body import read_body, too_large
from hyperflexis.gateway.chat import chat_prompt
from hyperflexis.gateway.completions import completion_prompts
from hyperflexis.gateway.dashboard import LiveDashboard
from hyperflexis.gateway.errors import ApiError, invalid
from hyperflexis.gateway.generation import Generation
from hyperflexis.gateway.limits import Limits
from hyperflexis.gateway.openai_types import AttachBody, DetokenizeBody, TokenizeBody
from hyperflexis.gateway.tokenizer import TextCodec
from hyperflexis.gateway.validation import check_ids, pick_model

log = logging.getLogger("hyperflexis.gateway")

STOP_GRACE_S = 1.0
"""After `stop` ended all answers, so long their last bytes may take."""
LINGER_S = 2.0
"""So long the rest of a refused body is read and dropped: closing earlier would lose the refusal on its way."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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
            view: What /dashboard shows; None: there is none.
            allow_push: False sends every event through aiohttp, one task wake each.
        """
        self._backend = backend
        self._offer = Offer(
            cast("Backend", backend).models if models is None else models,
            cast("Backend", backend).service_classes if service_classes is None else service_classes,
            default_class,
        )
        self._tokenizer = tokenizer
        self._host = host
        self._port = port
        self._limits = limits or Limits()
        self._priority_max = priority_max
        self._allow_push = allow_push
        self._membership = membership
        self._view = view
        self._runner: web.AppRunner | None = None
        self._codec: TextCodec
        self._generation: Generation

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address cannot be had.
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
        )
        runner = web.AppRunner(
            self._app(),
            handler_cancellation=True,
            access_log=None,
            logger=_http_log(),
            shutdown_timeout=STOP_GRACE_S,
            lingering_time=LINGER_S,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=1024).start()
        except BaseException:
            await runner.cleanup()
            self._generation.encoders.close()
            raise
        self._runner = runner
        port: int = runner.addresses[0][1]
        return port

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those that run. Returns whether all of them ended in time."""
        return await self._generation.drain(timeout_s)

    async def stop(self) -> None:
        """End what runs, and stop listening."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        self._generation.end_all()
        await self._generation.drain(STOP_GRACE_S)
        connections = runner.server.connections if runner.server is not None else []
        transports = [connection.transport for connection in connections]
        await runner.cleanup()
        for transport in transports:
            # Whoever has not read by now will not; with bytes left to send, the event loop could not be closed.
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
        self._generation.encoders.close()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=self._limits.body_bytes_max, middlewares=[speak_openai])
        routes = app.router
        expect = self._expect
        routes.add_post("/v1/chat/completions", self._generation.chat, expect_handler=expect)
        routes.add_post("/v1/completions", self._generation.complete, expect_handler=expect)
        routes.add_get("/v1/models", self._models)
        routes.add_get("/v1/models/{model:.+}", self._model)
        routes.add_post("/tokenize", self._tokenize, expect_handler=expect)
        routes.add_post("/detokenize", self._detokenize, expect_handler=expect)
        routes.add_get("/health", self._alive)
        routes.add_get("/live", self._alive)
        routes.add_get("/ready", self._ready)
        routes.add_get("/metrics", self._metrics)
        if self._membership is not None:
            routes.add_post("/instances", self._attach, expect_handler=expect)
            routes.add_delete("/instances/{name}", self._detach)
        if self._view is not None:
            LiveDashboard(self._view).add_to(app)
        return app

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """Refuse a body before it is sent, where the client asks."""
        if (request.content_length or 0) > self._limits.body_bytes_max:
            return _refusal(too_large(self._limits))
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return _json({"object": "list", "data": [_spelled(model) for model in self._offer.models]})

    async def _model(self, request: web.Request) -> web.StreamResponse:
        return _json(_spelled(pick_model(request.match_info["model"], self._offer.models)))

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
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

    async def _detokenize(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, DetokenizeBody, self._limits)
        pick_model(body.model, self._offer.models)
        check_ids("tokens", body.tokens, self._codec)
        return _json({"prompt": self._codec.decode(body.tokens, skip_special_tokens=False)})

    async def _alive(self, request: web.Request) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        draining = self._generation.draining
        ready = self._backend.is_ready() and not draining
        instances = self._backend.instances()
        told = {"ready": ready, "draining": draining, "instances": instances}
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


def _http_log() -> logging.Logger:
    """The server library's log, where what clients get wrong takes a line, not a stack trace."""
    logger = logging.getLogger("hyperflexis.gateway.http")
    if not logger.filters:
        logger.addFilter(_shorten)
    return logger


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.msg, record.args = "bad request: %s", (error.message,)
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True
