"""The face of a stand-in: vLLM's routes, its answers and its refusals, and faults that can be switched on."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from tokenizers import Tokenizer

from hyperflexis.adapters.vllm.standin.engine import Engine, Faults, Job, Traits, hash_of


class StandIn:
    """One server on the loop that it is started on."""

    def __init__(self, model: str | Path | None = None, traits: Traits | None = None) -> None:
        """`model` is the directory of a model, for its tokenizer."""
        self.traits = traits or Traits()
        self.faults = Faults()
        self.requests: list[dict[str, Any]] = []
        """Bodies of the completions that were asked for, with their headers under "headers"."""
        self.aborted: list[str] = []
        """Requests whose client has left."""
        self._tokenizer = None if model is None else Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        if self._tokenizer is not None:
            self._tokenizer.no_padding()
        self.traits.root = self.traits.root or str(model or self.traits.model)
        self.engine = Engine(self.traits, self.faults)
        self._runner: web.AppRunner | None = None
        self._stepper: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def live(self) -> int:
        """Requests that it has."""
        return len(self.engine.waiting) + len(self.engine.running)

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """Listen; returns the port."""
        app = web.Application(client_max_size=1 << 30, middlewares=[self._front])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/version", self._version),
                web.get("/v1/models", self._models),
                web.get("/metrics", self._metrics),
                web.get("/load", self._missing),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/completions", self._complete),
                web.post("/inference/v1/generate", self._forbidden),
                web.post("/abort_requests", self._abort_requests),
                web.post("/standin/fault", self._fault),
                web.get("/standin/kv/{id}", self._give_kv),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port or self.port).start()
        self.port = self._runner.addresses[0][1]
        self._stepper = asyncio.get_running_loop().create_task(self.engine.run())
        return self.port

    async def stop(self) -> None:
        """Die: every connection breaks at once."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        if self._stepper is not None:
            self._stepper.cancel()
        assert runner.server is not None
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def restart(self) -> None:
        """Die, and be another process on the same port, that knows nothing of before."""
        await self.stop()
        self.engine.forget_all()
        await self.start()

    # -- steps

    # -- HTTP

    @web.middleware
    async def _front(self, request: web.Request, handler: Any) -> web.StreamResponse:
        while self.faults.hang and not request.path.startswith("/standin"):  # noqa: ASYNC110 a switch, not an event
            await asyncio.sleep(0.02)
        key = self.traits.api_key
        if key and request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {key}":
            return _json({"error": "Unauthorized"}, 401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self.faults.unhealthy else 200)

    async def _version(self, request: web.Request) -> web.Response:
        return _json({"version": self.traits.version})

    async def _models(self, request: web.Request) -> web.Response:
        traits = self.traits
        model = {"id": traits.model, "object": "model", "root": traits.root, "max_model_len": traits.context_tokens_max}
        return _json({"object": "list", "data": [model]})

    async def _missing(self, request: web.Request) -> web.Response:
        return _json({"detail": "Not Found"}, 404)

    async def _forbidden(self, request: web.Request) -> web.Response:
        return _error("token interface is not enabled", 403)

    async def _abort_requests(self, request: web.Request) -> web.Response:
        for name in (await request.json()).get("request_ids", ()):
            job = self.engine.running.get(name)
            if job is not None:
                self.engine.end(job)
                job.events.put_nowait((0, "abort"))
        return web.Response()

    async def _fault(self, request: web.Request) -> web.Response:
        for name, value in (await request.json()).items():
            setattr(self.faults, name, value)
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.Response:
        if self.faults.no_metrics:
            return web.Response(status=500)
        traits, labels = self.traits, f'{{engine="0",model_name="{self.traits.model}"}}'
        running, waiting, used = self.engine.told
        lines = [
            f"process_start_time_seconds {self.engine.started_s:.2f}",
            f'vllm:cache_config_info{{block_size="{traits.block_tokens}",cache_dtype="auto",'
            f'enable_prefix_caching="True",num_gpu_blocks="{traits.blocks}"}} 1.0',
            f"vllm:num_requests_running{labels} {running:.1f}",
            f"vllm:num_requests_waiting{labels} {waiting:.1f}",
            f"vllm:kv_cache_usage_perc{labels} {used}",
            f"vllm:generation_tokens_total{labels} {self.engine.tokens:.1f}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self._tokenizer is None:
            return _error("no tokenizer", 404)
        ids = self._tokenizer.encode_batch_fast([body["prompt"]], add_special_tokens=body["add_special_tokens"])[0].ids
        return _json({"count": len(ids), "tokens": ids, "max_model_len": self.traits.context_tokens_max})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append({**body, "headers": dict(request.headers)})
        if refusal := self._refusal(body):
            return _error(*refusal)
        traits = self.traits
        is_full = traits.queued_max is not None and len(self.engine.waiting) >= traits.queued_max
        if self.faults.refuse or is_full:
            return await self._overloaded(request, body)
        name = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        priority = int(request.headers.get("X-Vllm-Priority") or body.get("priority") or 0)
        params = body.get("kv_transfer_params") or {}
        job = Job(f"cmpl-{name}-0", body["prompt"], body, priority, hash_of(body["prompt"]))
        job.params = params if params.get("do_remote_prefill") else None
        try:
            self.engine.add(job)
            return await (self._stream(request, job) if body.get("stream") else self._whole(request, job))
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.append(job.id)
            raise
        finally:
            self.engine.end(job)

    def _refusal(self, body: dict[str, Any]) -> tuple[str, int] | None:
        traits, prompt = self.traits, body["prompt"]
        if body.get("model") != traits.model:
            return f"The model `{body.get('model')}` does not exist.", 404
        if len(prompt) + body["max_tokens"] > traits.context_tokens_max:
            return f"This model's maximum context length is {traits.context_tokens_max} tokens.", 400
        if not all(0 <= token < traits.vocabulary for token in prompt):
            return "Token id is out of vocabulary", 400
        if (body.get("logprobs") or 0) > 20:
            return "Requested sample logprobs of more than 20", 400
        if body.get("stream") and body.get("prompt_logprobs") is not None:
            return "`prompt_logprobs` are not available when `stream=True`.", 400
        return None

    async def _overloaded(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"error": {"message": "too many queued requests", "type": "Service Unavailable", "code": 503}}
        if not body.get("stream"):
            return _json(error, 503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n")
        return response

    async def _stream(self, request: web.Request, job: Job) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        is_first = True
        while (event := await job.events.get()) is not None:
            token, reason = event
            choice = self._choice(job, [token], reason)
            if is_first:
                choice["prompt_token_ids"] = job.prompt
            is_first = False
            await response.write(b"data: " + msgspec.json.encode(self._answer(job, choice)) + b"\n\n")
            if reason is not None:
                await response.write(b"data: [DONE]\n\n")
                return response
        if job.error:
            error = {"error": {"message": job.error, "type": "InternalServerError", "code": 500}}
            await response.write(b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n")
        elif self.faults.done_without_reason:
            await response.write(b"data: [DONE]\n\n")
        elif request.transport is not None:
            request.transport.abort()
        return response

    async def _whole(self, request: web.Request, job: Job) -> web.StreamResponse:
        tokens: list[int] = []
        reason = None
        while reason is None:
            event = await job.events.get()
            if event is None and job.error:
                return _error(job.error, 500)
            if event is None:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            token, reason = event
            tokens.append(token)
        choice = self._choice(job, tokens, reason)
        choice["prompt_token_ids"] = job.prompt
        if (top := job.body.get("prompt_logprobs")) is not None:
            told = [_ranked(token, top) for token in job.prompt]
            choice["prompt_logprobs"] = [
                None,
                *({k: {"logprob": v, "rank": 1} for k, v in each.items()} for each in told[1:]),
            ]
        answer = self._answer(job, choice)
        if (job.body.get("kv_transfer_params") or {}).get("do_remote_decode") and self.traits.has_connector:
            answer["kv_transfer_params"] = self.engine.keep_kv(job, self.port)
        return _json(answer)

    def _choice(self, job: Job, tokens: list[int], reason: str | None) -> dict[str, Any]:
        text = "" if self._tokenizer is None else self._tokenizer.decode(tokens)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        if job.body.get("return_token_ids"):
            choice["token_ids"] = tokens
        if (top := job.body.get("logprobs")) is not None:
            ranked = [{f"token_id:{k}": v for k, v in _ranked(token, top).items()} for token in tokens]
            choice["logprobs"] = {
                "tokens": [f"token_id:{token}" for token in tokens],
                "token_logprobs": [-0.5] * len(tokens),
                "top_logprobs": ranked,
            }
        return choice

    def _answer(self, job: Job, choice: dict[str, Any]) -> dict[str, Any]:
        name = job.id.removesuffix("-0")
        return {"id": name, "object": "text_completion", "created": 0, "model": self.traits.model, "choices": [choice]}

    async def _give_kv(self, request: web.Request) -> web.Response:
        tokens = self.engine.give_kv(request.match_info["id"])
        return web.Response(status=404) if tokens is None else _json(tokens)


def _ranked(token: int, top: int) -> dict[str, float]:
    """The sampled token and those most likely, made up."""
    return {str(token): -0.5, **{str(token + place): -1.0 - place for place in range(1, top)}}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _error(message: str, status: int) -> web.Response:
    return _json({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)
