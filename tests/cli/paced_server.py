"""A server that takes as long for each step as a latency model says, in virtual time, behind the face of a session.

It batches as vLLM does: all answers advance together, and prompts join the next step, of which all together have at
most `chunk_tokens`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from hyperflexis.core.latency import LatencyModel, StepShape, chunk_pairs

VOCABULARY = 1000


@dataclass
class Asked:
    """One request."""

    prompt_tokens: int
    max_tokens: int
    computed: int = 0
    emitted: int = 0
    said: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)

    def hear(self, lines: list[bytes | None]) -> None:
        for line in lines:
            self.said.put_nowait(line)


class Response:
    """As much of aiohttp's as is used."""

    def __init__(
        self, status: int, text: str = "", asked: Asked | None = None, leave: Callable[[], None] = lambda: None
    ) -> None:
        self.status = status
        self._text = text
        self._asked = asked
        self._leave = leave

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    async def text(self) -> str:
        return self._text

    @property
    async def content(self) -> AsyncIterator[bytes]:
        assert self._asked is not None
        while (line := await self._asked.said.get()) is not None:
            yield line


class PacedServer:
    """A session and the server behind it."""

    def __init__(
        self,
        model: LatencyModel,
        *,
        overhead_s: float = 0.003,
        seqs_max: int = 64,
        chunk_tokens: int = 2048,
        context_tokens_max: int = 2048,
        tells_ids: bool = True,
    ) -> None:
        self._model = model
        self._overhead_s = overhead_s
        self._seqs_max = seqs_max
        self._chunk_tokens = chunk_tokens
        self._context_tokens_max = context_tokens_max
        self._tells_ids = tells_ids
        self._asked: list[Asked] = []
        self._loop_task: asyncio.Task[None] | None = None

    def get(self, url: str) -> Response:
        if url.endswith("/v1/models"):
            return Response(200, json.dumps({"data": [{"id": "tiny", "max_model_len": self._context_tokens_max}]}))
        if url.endswith("/version"):
            return Response(200, '{"version": "9.9"}')
        labels = 'block_size="16",kv_cache_memory_bytes="16000000",num_gpu_blocks="1000",sliding_window="None"'
        return Response(200, f"# HELP x\nvllm:cache_config_info{{{labels}}} 1.0\n")

    def post(self, url: str, json: dict[str, Any]) -> Response:
        assert url.endswith("/v1/completions")
        assert json["stream"]
        assert json["ignore_eos"]
        assert all(0 <= token < VOCABULARY for token in json["prompt"])
        asked = Asked(len(json["prompt"]), json["max_tokens"])
        if asked.prompt_tokens + asked.max_tokens > self._context_tokens_max:
            return Response(400, '{"error": "too long"}')
        asyncio.get_running_loop().call_later(self._overhead_s / 2, self._take, asked)
        return Response(200, asked=asked, leave=lambda: self.forget(asked))

    def _take(self, asked: Asked) -> None:
        self._asked.append(asked)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._step_while_asked())

    async def _step_while_asked(self) -> None:
        while self._asked:
            here = self._asked[: self._seqs_max]
            decodes = [each for each in here if each.emitted]
            chunks, room = [], self._chunk_tokens
            for each in here:
                tokens = min(room, each.prompt_tokens - each.computed)
                if not each.emitted and tokens:
                    chunks.append((each, tokens))
                    room -= tokens
            shape = StepShape(
                sum(tokens for _, tokens in chunks),
                sum(chunk_pairs(tokens, each.computed) for each, tokens in chunks),
                len(decodes),
                sum(each.prompt_tokens + each.emitted for each in decodes),
            )
            await asyncio.sleep(self._model.step_s(shape))
            for each, tokens in chunks:
                each.computed += tokens
            for each in decodes + [each for each, _ in chunks if each.computed == each.prompt_tokens]:
                if each in self._asked:
                    self._emit(each)

    def _emit(self, asked: Asked) -> None:
        asked.emitted += 1
        said = {"text": "x"} | ({"token_ids": [7]} if self._tells_ids else {})
        lines: list[bytes | None] = [b"data: " + json.dumps({"choices": [said]}).encode() + b"\n"]
        if asked.emitted == asked.max_tokens:
            self.forget(asked)
            lines += [b"data: [DONE]\n", None]
        asyncio.get_running_loop().call_later(self._overhead_s / 2, asked.hear, lines)

    def forget(self, asked: Asked) -> None:
        """Its answer is complete, or nobody reads it any more."""
        if asked in self._asked:
            self._asked.remove(asked)
