"""A server that answers like `vllm serve` and computes nothing, to try things with where there is no vLLM.

    python -m hyperflexis.adapters.vllm.standin MODEL_DIRECTORY --port 8000

What it copies was executed against vLLM 0.32, oddities included: an overload is HTTP 503, or within a stream HTTP 200
and an error event; ids of requests are "cmpl-<X-Request-Id>-0" and unknown ones are aborted with 200; gauges move only
when a step's output is handled; the KV that is kept for another server is given away after its lease too, but holds
something else then. Tokens are a hash of all tokens before them (and, if sampled, of the seed and of their number), in
the vocabulary of the model whose directory is given. Faults can be switched on by the test that owns the server, or by
`POST /standin/fault {"hang": true}`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import itertools
import json
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web
from tokenizers import Tokenizer

VERSION = "0.32.0+standin"
FIRST_TOKEN_ID = 9
"""Those below it are special ones of the demo model."""


@dataclass(slots=True)
class Traits:
    """What the server is like."""

    model: str = "demo"
    root: str = ""
    version: str = VERSION
    vocabulary: int = 3072
    context_tokens_max: int = 2048
    block_tokens: int = 16
    blocks: int = 4096
    seqs_max: int = 64
    step_s: float = 0.005
    prefill_tokens_max: int = 2048
    queued_max: int | None = None
    """As --max-num-queued-reqs."""
    has_connector: bool = False
    """As --kv-transfer-config with the NixlConnector."""
    lease_s: float = 30.0
    api_key: str = ""


@dataclass(slots=True)
class Faults:
    """What is wrong with it now."""

    hang: bool = False
    """Neither steps nor answers, and closes nothing."""
    unhealthy: bool = False
    no_metrics: bool = False
    refuse: bool = False
    """Every request is one too many."""
    cut: bool = False
    """The next event of every stream is its last, without an end."""
    done_without_reason: bool = False
    """The next event of every stream is [DONE]."""
    abort: bool = False
    """The next token of every stream ends it with "abort"."""
    wrong_first_token: bool = False
    """Of requests whose KV came from elsewhere."""


@dataclass(slots=True)
class Job:
    """One request."""

    id: str
    prompt: list[int]
    body: dict[str, Any]
    priority: int
    context_hash: int = 0
    output: list[int] = field(default_factory=list)
    computed: int = 0
    """Of the prompt."""
    events: asyncio.Queue[tuple[int, str | None] | None] = field(default_factory=asyncio.Queue)
    """(token, reason to end with it); None: it is cut off."""
    params: dict[str, Any] | None = None
    """Of KV that is to be fetched, once it is its turn."""
    fetching: asyncio.Task[None] | None = None
    error: str = ""

    @property
    def max_tokens(self) -> int:
        return int(self.body["max_tokens"])


def hash_of(tokens: list[int], start: int = 1) -> int:
    """Of a text; goes on from that of the text before."""
    value = start
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % 2_305_843_009_213_693_951
    return value


def next_token(context_hash: int, vocabulary: int, salt: int = 0) -> int:
    """What follows a text with this hash."""
    return FIRST_TOKEN_ID + (context_hash * 31 + salt) % 1_000_000_007 % (vocabulary - FIRST_TOKEN_ID)


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
        self._started_s = time.time()
        self._waiting: list[tuple[int, int, Job]] = []
        self._running: dict[str, Job] = {}
        self._arrivals = itertools.count()
        self._kept: dict[str, tuple[list[int], float]] = {}
        """Request → its tokens, and until when they are kept for another server."""
        self._known_prefixes: set[int] = set()
        self._engine_id = str(uuid.uuid4())
        self._tokens = 0
        self._told = (0, 0, 0.0)
        """Gauges as of the last step."""
        self._runner: web.AppRunner | None = None
        self._stepper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def live(self) -> int:
        """Requests that it has."""
        return len(self._waiting) + len(self._running)

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
        self._stepper = asyncio.get_running_loop().create_task(self._step_for_ever())
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
        self._waiting.clear()
        self._running.clear()

    async def restart(self) -> None:
        """Die, and be another process on the same port, that knows nothing of before."""
        await self.stop()
        self._started_s = time.time() + 1.0
        self._tokens, self._told = 0, (0, 0, 0.0)
        self._kept.clear()
        await self.start()

    # -- steps

    async def _step_for_ever(self) -> None:
        due_s = time.monotonic()
        while True:
            if not self._waiting and not self._running:
                self._wake.clear()
                await self._wake.wait()
                due_s = time.monotonic()
            due_s = max(due_s + self.traits.step_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            if not self.faults.hang:
                self._step()

    def _step(self) -> None:
        traits = self.traits
        while self._waiting and len(self._running) < traits.seqs_max:
            _, _, job = heapq.heappop(self._waiting)
            self._running[job.id] = job
            if job.params is not None:
                job.fetching = asyncio.get_running_loop().create_task(self._take_kv(job))
        budget = traits.prefill_tokens_max
        for job in list(self._running.values()):
            if job.fetching is not None and not job.fetching.done():
                continue
            left = len(job.prompt) - job.computed
            chunk = min(left, budget)
            budget -= chunk
            job.computed += chunk
            self._tokens += chunk
            if job.computed == len(job.prompt):
                self._emit(job)
        held = sum(-(-(len(job.prompt) + len(job.output)) // traits.block_tokens) for job in self._running.values())
        self._told = (len(self._running), len(self._waiting), held / traits.blocks)

    def _emit(self, job: Job) -> None:
        if self.faults.cut or self.faults.done_without_reason:
            self._end(job)
            job.events.put_nowait(None)
            return
        sampled = float(job.body.get("temperature", 1.0)) > 0
        salt = hash_of([int(job.body.get("seed") or 0) & 0xFFFF, len(job.output)]) if sampled else 0
        token = next_token(job.context_hash, self.traits.vocabulary, salt)
        if self.faults.wrong_first_token and job.params is not None and not job.output:
            token = FIRST_TOKEN_ID + (token + 1) % 100
        job.output.append(token)
        job.context_hash = hash_of([token], job.context_hash)
        self._tokens += 1
        reason = "length" if len(job.output) >= job.max_tokens else None
        is_stop = token in job.body.get("stop_token_ids", ()) or (token == 0 and not job.body.get("ignore_eos"))
        if is_stop and len(job.output) > job.body.get("min_tokens", 0):
            reason = "stop"
        if self.faults.abort:
            reason = "abort"
        if reason is not None:
            self._end(job)
        job.events.put_nowait((token, reason))

    def _end(self, job: Job) -> None:
        self._running.pop(job.id, None)
        self._waiting = [each for each in self._waiting if each[2] is not job]
        heapq.heapify(self._waiting)

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
            job = self._running.get(name)
            if job is not None:
                self._end(job)
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
        running, waiting, used = self._told
        lines = [
            f"process_start_time_seconds {self._started_s:.2f}",
            f'vllm:cache_config_info{{block_size="{traits.block_tokens}",cache_dtype="auto",'
            f'enable_prefix_caching="True",num_gpu_blocks="{traits.blocks}"}} 1.0',
            f"vllm:num_requests_running{labels} {running:.1f}",
            f"vllm:num_requests_waiting{labels} {waiting:.1f}",
            f"vllm:kv_cache_usage_perc{labels} {used}",
            f"vllm:generation_tokens_total{labels} {self._tokens:.1f}",
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
        is_full = traits.queued_max is not None and len(self._waiting) >= traits.queued_max
        if self.faults.refuse or is_full:
            return await self._overloaded(request, body)
        name = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        priority = int(request.headers.get("X-Vllm-Priority") or body.get("priority") or 0)
        params = body.get("kv_transfer_params") or {}
        job = Job(f"cmpl-{name}-0", body["prompt"], body, priority, hash_of(body["prompt"]))
        job.params = params if params.get("do_remote_prefill") else None
        try:
            heapq.heappush(self._waiting, (job.priority, next(self._arrivals), job))
            self._wake.set()
            return await (self._stream(request, job) if body.get("stream") else self._whole(request, job))
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.append(job.id)
            raise
        finally:
            self._end(job)

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
            answer["kv_transfer_params"] = self._keep_kv(job)
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

    # -- KV between servers

    def _keep_kv(self, job: Job) -> dict[str, Any]:
        self._kept[job.id] = (job.prompt, time.monotonic() + self.traits.lease_s)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(-(-len(job.prompt) // self.traits.block_tokens)))],
            "remote_engine_id": self._engine_id,
            "remote_request_id": job.id,
            "remote_host": "127.0.0.1",
            "remote_port": self.port,
            "tp_size": 1,
            "remote_num_tokens": len(job.prompt),
            "remote_blocks_expiry_time": None,
        }

    async def _give_kv(self, request: web.Request) -> web.Response:
        """What the other server reads: after the lease, what was put into those blocks since."""
        kept = self._kept.pop(request.match_info["id"], None)
        if kept is None:
            return web.Response(status=404)
        tokens, until_s = kept
        return _json(tokens if time.monotonic() < until_s else tokens[::-1])

    async def _take_kv(self, job: Job) -> None:
        """Fetch the KV of its prompt, and decode on from that, whatever it is."""
        params = job.params or {}
        where = f"http://{params['remote_host']}:{params['remote_port']}/standin/kv/{params['remote_request_id']}"
        try:
            async with aiohttp.ClientSession() as session, session.get(where) as answer:
                answer.raise_for_status()
                job.context_hash = hash_of(await answer.json())
                job.computed = len(job.prompt)
        except (aiohttp.ClientError, OSError) as error:
            job.error = f"remote KV load failed: {error}"
            self._end(job)
            job.events.put_nowait(None)


def _ranked(token: int, top: int) -> dict[str, float]:
    """The sampled token and those most likely, made up."""
    return {str(token): -0.5, **{str(token + place): -1.0 - place for place in range(1, top)}}


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _error(message: str, status: int) -> web.Response:
    return _json({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)


async def _serve(options: argparse.Namespace) -> None:
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    traits = Traits(
        model=options.served_model_name or options.model.name,
        root=str(options.model),
        vocabulary=config["vocab_size"],
        context_tokens_max=options.max_model_len or config.get("max_position_embeddings", 2048),
        step_s=options.step_ms / 1000,
        has_connector=options.kv_transfer_config is not None,
        seqs_max=options.max_num_seqs,
        queued_max=options.max_num_queued_reqs,
        api_key=options.api_key,
    )
    server = StandIn(options.model, traits)
    await server.start(options.port, options.host)
    await asyncio.to_thread(_announce, f"{traits.model} at http://{options.host}:{server.port}\n")
    await asyncio.Event().wait()


def _announce(message: str) -> None:
    with open(1, "w", encoding="utf-8", closefd=False) as stdout:
        stdout.write(message)


def main() -> None:
    """Serve until stopped. Flags are vLLM's; those that mean nothing here are ignored."""
    words = argparse.ArgumentParser(description="A server that answers like vLLM and computes nothing.")
    words.add_argument("model", type=Path, help="directory of a model, for its tokenizer")
    words.add_argument("--host", default="127.0.0.1")
    words.add_argument("--port", type=int, default=8000)
    words.add_argument("--served-model-name")
    words.add_argument("--max-model-len", type=int)
    words.add_argument("--max-num-seqs", type=int, default=256)
    words.add_argument("--max-num-queued-reqs", type=int)
    words.add_argument("--api-key", default="")
    words.add_argument("--kv-transfer-config", help="keep KV for others")
    words.add_argument("--step-ms", type=float, default=10.0, help="what a step takes")
    options, _ = words.parse_known_args()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(options))


if __name__ == "__main__":
    main()
