"""The words of `/v1/completions`: a request of ours as its body, and its stream of server-sent events as tokens.

Tokens go in as ids and come out as ids (`return_token_ids`); vLLM's text is thrown away, for text is the gateway's.
Stop strings are the gateway's too. Where a request goes on that was begun elsewhere, what its client has becomes part
of the prompt; penalties on what was emitted are then given as biases, and the seed is another one, because a generator
that began anew would draw what it has drawn before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from hyperflexis.wire.messages import FinishReason, Sampling, Submit, TokenLogprobs
from hyperflexis.wire.promises import DEADLINE, TPOT, TTFT

PATH = "/v1/completions"
PRIORITY_HEADER = "X-Vllm-Priority"
REQUEST_ID_HEADER = "X-Request-Id"
TRACE_HEADER = "traceparent"
BIAS_MAX = 100.0
"""vLLM clamps biases to this, either way."""
OVERDUE_S = 0.001
"""What is left of a promise that is broken already: as good as nothing."""
_TOKEN_ID = "token_id:"


PREFILL_ONLY = {"do_remote_decode": True, "do_remote_prefill": False}
"""What asks a server to keep the KV of a prompt for another one, which is to decode."""


def body_of(submit: Submit, model: str, since: int, transfer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of a request of whose emitted tokens the first `since` are part of the prompt.

    `transfer` is what vLLM calls kv_transfer_params.
    """
    emitted = submit.emitted[:since]
    sampling = submit.sampling
    is_prefill = transfer is PREFILL_ONLY
    max_tokens = 1 if is_prefill else submit.max_tokens - since
    body: dict[str, Any] = {
        "model": model,
        "prompt": submit.prompt + emitted,
        "max_tokens": max_tokens,
        "stream": not (is_prefill or wants_prompt_logprobs(submit)),
        "return_token_ids": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": _seed(sampling.seed, since),
        "ignore_eos": True,  # The model's own ends are among the stop ids, unless they are to be ignored.
        "stop_token_ids": list(sampling.stop_ids),
        "add_special_tokens": False,
        **_optional(sampling, min(max_tokens, max(0, sampling.min_tokens - since))),
    }
    if bias := _bias(sampling, emitted):
        body["logit_bias"] = bias
    if sampling.logprobs is not None or wants_prompt_logprobs(submit):
        body["logprobs"] = sampling.logprobs or 0
        body["return_tokens_as_token_ids"] = True
    if wants_prompt_logprobs(submit):
        body["prompt_logprobs"] = sampling.logprobs or 0
    if promises := _promises(submit):
        body["vllm_xargs"] = promises
    if transfer is not None:
        body["kv_transfer_params"] = transfer
    return body


def _promises(submit: Submit) -> dict[str, float]:
    """What is left of them, for a server with our plugin; others do not read it."""
    left_s = {
        TTFT: submit.ttft_s if not submit.emitted else None,
        DEADLINE: submit.e2e_s,
    }
    found = {name: max(OVERDUE_S, given - submit.waited_s) for name, given in left_s.items() if given is not None}
    return found if submit.tpot_s is None else {**found, TPOT: submit.tpot_s}


def headers_of(submit: Submit, request_id: str) -> dict[str, str]:
    """vLLM serves lower priorities first, if it was started with `--scheduling-policy priority`."""
    headers = {REQUEST_ID_HEADER: request_id}
    if submit.priority:
        headers[PRIORITY_HEADER] = str(-submit.priority)
    if submit.traceparent:
        headers[TRACE_HEADER] = submit.traceparent
    return headers


def wants_prompt_logprobs(submit: Submit) -> bool:
    """Whether they are to be told, which vLLM does in one piece with the whole answer only."""
    return submit.sampling.prompt_logprobs and not submit.emitted


def _optional(sampling: Sampling, min_tokens: int) -> dict[str, Any]:
    """What is left out where it is off: older servers know fewer words."""
    values = {
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "min_tokens": (min_tokens, 0),
    }
    return {name: value for name, (value, off) in values.items() if value != off}


def _bias(sampling: Sampling, emitted: list[int]) -> dict[str, float]:
    """Biases asked for, and those that stand for the penalties on what vLLM takes for prompt."""
    bias = dict(sampling.logit_bias)
    if emitted and (sampling.presence_penalty or sampling.frequency_penalty):
        for token, count in Counter(emitted).items():
            penalty = sampling.presence_penalty + sampling.frequency_penalty * count
            bias[token] = max(-BIAS_MAX, min(BIAS_MAX, bias.get(token, 0.0) - penalty))
    return {str(token): value for token, value in bias.items()}


def _seed(seed: int, emitted: int) -> int:
    """Within int64, as vLLM wants it."""
    if not emitted:
        return seed
    digest = hashlib.blake2b(f"{seed} {emitted}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# -- what comes back


class _Logprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None = None


class Choice(msgspec.Struct):
    """What is read of a choice; other fields are skipped."""

    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    prompt_logprobs: list[dict[str, _PromptLogprob] | None] | None = None


class Fault(msgspec.Struct):
    """An error in vLLM's words."""

    message: str = ""
    code: int | str | None = None


class Chunk(msgspec.Struct):
    """One event of a stream, or a whole answer."""

    choices: list[Choice] = []
    error: Fault | None = None
    kv_transfer_params: dict[str, Any] | None = None


DONE = b"[DONE]"
_decoder = msgspec.json.Decoder(Chunk)
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def _decode(content: bytes) -> Chunk:
    try:
        return _decoder.decode(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class Events:
    """Cuts what is read from a stream into events."""

    def __init__(self) -> None:
        self._rest = b""
        self.is_done = False
        """Whether the stream has said that it is over."""

    def take(self, data: bytes) -> Iterator[Chunk]:
        """The events that these bytes complete.

        Raises:
            ValueError: one of them is no completion.
        """
        if self._rest:
            data = self._rest + data
        if b"\r" in data:  # The other line end that events may have; within JSON it is always escaped.
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        for event in events:
            _, mark, content = event.partition(b"data: ")
            if content == DONE:
                self.is_done = True
            elif mark:
                yield _decode(content)


def whole(body: bytes) -> Chunk:
    """An answer that came in one piece.

    Raises:
        ValueError: it is no completion.
    """
    return _decode(body)


def fault_of(body: bytes) -> str:
    """The message in the body of a refusal, whatever its shape."""
    try:
        error = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return body[:200].decode("utf-8", "replace")
    if not isinstance(error, dict):
        return str(error)[:500]
    inner = error.get("error", error)
    message = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(message)[:500]


def reason_of(choice: Choice) -> FinishReason | None:
    """Why vLLM says that an answer has ended; None for what is no whole answer, such as "abort"."""
    return _REASONS.get(choice.finish_reason or "")


def logprobs_of(choice: Choice, tokens: list[int], top: int) -> list[TokenLogprobs] | None:
    """Of each of these tokens, as the wire has them; None where vLLM gave none."""
    told = choice.logprobs
    if told is None or len(told.token_logprobs) != len(tokens):
        return None
    tops = told.top_logprobs or [None] * len(tokens)
    return [
        _position(token, logprob or 0.0, ranked or {}, top)
        for token, logprob, ranked in zip(tokens, told.token_logprobs, tops, strict=True)
    ]


def prompt_logprobs_of(choice: Choice, prompt: list[int], top: int) -> list[TokenLogprobs]:
    """Of the prompt's positions from 1 on."""
    found = []
    for token, position in zip(prompt[1:], (choice.prompt_logprobs or [])[1:], strict=False):
        ranked = {key: each.logprob for key, each in (position or {}).items()}
        found.append(_position(token, ranked.get(str(token), 0.0), ranked, top))
    return found


def _position(token: int, logprob: float, ranked: Mapping[str, float], top: int) -> TokenLogprobs:
    best = sorted(ranked.items(), key=lambda item: -item[1])[:top]
    return TokenLogprobs(
        token, logprob, [int(key.removeprefix(_TOKEN_ID)) for key, _ in best], [value for _, value in best]
    )
