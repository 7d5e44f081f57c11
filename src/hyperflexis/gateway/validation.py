"""From request bodies to what the backend is asked: every range, every combination, each error naming its field.

Pure functions of body, codec and model; nothing here waits. Tokenising is done between settings and `room`, by whoever
knows what a prompt is (`chat`, `completions`).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hyperflexis.gateway.backend import ServedModel
from hyperflexis.gateway.choice import Stopping
from hyperflexis.gateway.errors import ApiError, context_exceeded, invalid, unsupported
from hyperflexis.gateway.openai_types import ChatBody, CompletionBody, GenerationBody
from hyperflexis.gateway.tokenizer import TextCodec
from hyperflexis.wire.messages import Sampling

INT64_MAX = 2**63 - 1
CHOICES_PER_PROMPT_MAX = 64
STOP_STRINGS_MAX = 16
STOP_CHARS_MAX = 1024
STOP_IDS_MAX = 256
LOGIT_BIASES_MAX = 1024
TOP_LOGPROBS_MAX = 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about a request but its prompt and its promise."""

    sampling: Sampling
    """With the seed of the first choice."""
    stopping: Stopping
    n: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    skip_special_tokens: bool
    logprobs: int | None
    returns_ids: bool


def pick_model(name: str | None, models: Sequence[ServedModel]) -> ServedModel:
    """The model that a request names; the name may be left out while there is only one."""
    if not name:
        if len(models) == 1:
            return models[0]
        raise invalid("model", "Missing required field 'model'.", "missing_required_parameter")
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models)
    raise ApiError(
        404, f"The model {name!r} does not exist here. Served: {known}.", param="model", code="model_not_found"
    )


def chat_settings(body: ChatBody, codec: TextCodec) -> Settings:
    """Check everything of a chat request but its messages."""
    _refuse(body, _COMMON_REFUSALS + _CHAT_REFUSALS)
    field, max_tokens = "max_tokens", body.max_tokens
    if body.max_completion_tokens is not None:
        field, max_tokens = "max_completion_tokens", body.max_completion_tokens
    _whole(field, max_tokens, 1, INT64_MAX)
    top = _whole("top_logprobs", body.top_logprobs, 0, TOP_LOGPROBS_MAX)
    if top and not body.logprobs:
        raise invalid("top_logprobs", "'top_logprobs' needs 'logprobs' to be true.")
    return _settings(body, codec, max_tokens, (top or 0) if body.logprobs else None)


def completion_settings(body: CompletionBody, codec: TextCodec) -> Settings:
    """Check everything of a completion request but its prompt."""
    _refuse(body, _COMMON_REFUSALS + _COMPLETION_REFUSALS)
    n = body.n if body.n is not None else 1
    if body.best_of is not None and body.best_of != n:
        raise unsupported("best_of", "'best_of' is supported only where it equals 'n'.")
    # None of the output may be asked for, if the prompt is.
    _whole("max_tokens", body.max_tokens, 0 if body.echo else 1, INT64_MAX)
    logprobs = _whole("logprobs", body.logprobs, 0, TOP_LOGPROBS_MAX)
    return _settings(body, codec, body.max_tokens, logprobs, bool(body.echo))


def _settings(
    body: GenerationBody, codec: TextCodec, max_tokens: int | None, logprobs: int | None, echo: bool = False
) -> Settings:
    silent = max_tokens == 0
    min_tokens = _whole("min_tokens", body.min_tokens, 0, INT64_MAX) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise invalid("min_tokens", f"'min_tokens' ({min_tokens}) is more than 'max_tokens' ({max_tokens}).")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "'stream_options' needs 'stream' to be true.")
    stopping = _stopping(body, codec, min_tokens, silent)
    return Settings(
        sampling=_sampling(body, codec, stopping, logprobs, echo),
        stopping=stopping,
        n=_whole("n", body.n, 1, CHOICES_PER_PROMPT_MAX) or 1,
        # Tokens come out one at a time: silence costs one.
        max_tokens=1 if silent else max_tokens,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        skip_special_tokens=body.skip_special_tokens is not False,
        logprobs=logprobs,
        returns_ids=bool(body.return_token_ids),
    )


def _sampling(body: GenerationBody, codec: TextCodec, stopping: Stopping, logprobs: int | None, echo: bool) -> Sampling:
    top_k = _whole("top_k", body.top_k, -1, INT64_MAX)
    seed = _whole("seed", body.seed, -INT64_MAX - 1, INT64_MAX)
    return Sampling(
        temperature=_ranged("temperature", body.temperature, 1.0, 0.0, 2.0),
        top_p=_ranged("top_p", body.top_p, 1.0, 0.0, 1.0, above=True),
        top_k=0 if top_k is None else min(max(0, top_k), codec.vocab_tokens),
        min_p=_ranged("min_p", body.min_p, 0.0, 0.0, 1.0),
        seed=secrets.randbits(63) if seed is None else seed,
        presence_penalty=_ranged("presence_penalty", body.presence_penalty, 0.0, -2.0, 2.0),
        frequency_penalty=_ranged("frequency_penalty", body.frequency_penalty, 0.0, -2.0, 2.0),
        repetition_penalty=_ranged("repetition_penalty", body.repetition_penalty, 1.0, 0.0, 2.0, above=True),
        logit_bias=_logit_bias(body.logit_bias, codec),
        logprobs=logprobs,
        prompt_logprobs=echo and logprobs is not None,
        stop_ids=tuple(sorted(stopping.eos_ids | stopping.asked_ids)),
        min_tokens=stopping.min_tokens,
    )


def _stopping(body: GenerationBody, codec: TextCodec, min_tokens: int, silent: bool) -> Stopping:
    eos_ids = frozenset() if body.ignore_eos else frozenset(codec.eos_ids)
    asked = body.stop_token_ids or []
    if len(asked) > STOP_IDS_MAX:
        raise invalid("stop_token_ids", f"'stop_token_ids' may hold at most {STOP_IDS_MAX} ids.")
    check_ids("stop_token_ids", asked, codec)
    return Stopping(
        strings=_stop_strings(body.stop),
        eos_ids=eos_ids,
        asked_ids=frozenset(asked) - eos_ids,
        is_stop_shown=bool(body.include_stop_str_in_output),
        min_tokens=min_tokens,
        silent=silent,
    )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(strings) > STOP_STRINGS_MAX:
        raise invalid("stop", f"'stop' may hold at most {STOP_STRINGS_MAX} strings.")
    if not all(0 < len(string) <= STOP_CHARS_MAX for string in strings):
        raise invalid("stop", f"Each string in 'stop' must have 1 to {STOP_CHARS_MAX} characters.")
    return strings


def _logit_bias(biases: dict[str, float] | None, codec: TextCodec) -> dict[int, float]:
    if not biases:
        return {}
    if len(biases) > LOGIT_BIASES_MAX:
        raise invalid("logit_bias", f"'logit_bias' may hold at most {LOGIT_BIASES_MAX} tokens.")
    checked = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < codec.vocab_tokens):
            raise invalid(
                "logit_bias", f"'logit_bias' has the key {key[:40]!r}; keys are token ids below {codec.vocab_tokens}."
            )
        checked[int(key)] = _ranged("logit_bias", bias, 0.0, -100.0, 100.0)
    return checked


def check_ids(param: str, ids: Sequence[int], codec: TextCodec) -> None:
    """Refuse ids that are not the model's."""
    if ids and not (min(ids) >= 0 and max(ids) < codec.vocab_tokens):
        raise invalid(param, f"'{param}' holds token ids outside of 0 to {codec.vocab_tokens - 1}.")


def room(model: ServedModel, prompt_tokens: int, max_tokens: int | None, default: int | None, param: str) -> int:
    """How many tokens may come out: those asked for, or the default, or what the context has left.

    Raises:
        ApiError: they do not fit.
    """
    left = model.context_tokens_max - prompt_tokens
    if max_tokens is None and left > 0:
        return left if default is None else min(default, left)
    wanted = max_tokens if max_tokens is not None else (default or 1)
    if wanted > left:
        raise context_exceeded(param, model.context_tokens_max, prompt_tokens, wanted)
    return wanted


PREFIX_CHARS_PER_TOKEN = 12
"""Text has about 4 characters per token, so so many per token of context hold about three times the context."""


def tokenise(text: str, codec: TextCodec, model: ServedModel, param: str, add_special_tokens: bool) -> list[int]:
    """Tokenise a prompt, without spending time on a hopelessly long one.

    Raises:
        ApiError: it is longer than the context, or empty.
    """
    context_tokens = model.context_tokens_max
    prefix = text[: PREFIX_CHARS_PER_TOKEN * context_tokens]
    if len(prefix) < len(text):
        # What follows can only join with the prefix's last word, so twice the context is a safe refusal.
        prefix_tokens = len(codec.encode(prefix, add_special_tokens=False))
        if prefix_tokens > 2 * context_tokens:
            raise context_exceeded(param, context_tokens, prefix_tokens, 0, at_least=True)
    tokens = codec.encode(text, add_special_tokens=add_special_tokens)
    if not tokens:
        raise invalid(param, f"'{param}' must not be empty.")
    return tokens


def choice_seed(seed: int, index: int) -> int:
    """The seed of the choice with this index among its prompt's, within int64."""
    return (seed + index + INT64_MAX + 1) % (2 * (INT64_MAX + 1)) - INT64_MAX - 1


def with_seed(sampling: Sampling, index: int) -> Sampling:
    """The sampling of the choice with this index."""
    if index == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, index))


def _ranged(name: str, value: float | None, default: float, low: float, high: float, *, above: bool = False) -> float:
    """A number in [low, high], or in (low, high] if `above`."""
    if value is None:
        return default
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        bounds = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"
        raise invalid(name, f"'{name}' must be {bounds}, not {value:g}.")
    return value


def _whole(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not low <= value <= high:
        upper = f"between {low} and {high}" if high < INT64_MAX else f"at least {low} (and an int64)"
        raise invalid(name, f"'{name}' must be {upper}, not {str(value)[:40]}.")
    return value


Refusal = tuple[str, Callable[[Any], bool], str]
"""A field, the values of it that change nothing, and what to say about the others."""


def _is_text_format(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


def _is_empty(value: Any) -> bool:
    return not value


_GUIDED = "guided decoding is not supported; leave it out."
_COMMON_REFUSALS: tuple[Refusal, ...] = (
    ("response_format", _is_text_format, "only {'type': 'text'} is supported."),
    ("structured_outputs", _is_empty, _GUIDED),
    ("guided_json", _is_empty, _GUIDED),
    ("guided_regex", _is_empty, _GUIDED),
    ("guided_choice", _is_empty, _GUIDED),
    ("guided_grammar", _is_empty, _GUIDED),
    ("truncate_prompt_tokens", _is_empty, "prompts are never cut."),
    ("use_beam_search", _is_empty, "beam search is not supported."),
    ("prompt_embeds", _is_empty, "prompts are text or token ids."),
)
_CHAT_REFUSALS: tuple[Refusal, ...] = (
    ("tools", _is_empty, "tool calling is not supported."),
    ("tool_choice", lambda value: value in ("none", "auto"), "tool calling is not supported."),
    ("functions", _is_empty, "function calling is not supported."),
    ("function_call", lambda value: value in ("none", "auto"), "function calling is not supported."),
    ("audio", _is_empty, "only text is served."),
    ("modalities", lambda value: value in ([], ["text"]), "only text is served."),
    ("web_search_options", lambda value: False, "there is no web search here."),
    ("chat_template", _is_empty, "the model's own chat template is used."),
    ("documents", _is_empty, "documents are not supported; put their text into messages."),
)
_COMPLETION_REFUSALS: tuple[Refusal, ...] = (("suffix", _is_empty, "insertion is not supported."),)


def _refuse(body: GenerationBody, refusals: Sequence[Refusal]) -> None:
    """Refuse what cannot be honoured, rather than ignore it and answer something else."""
    for field, is_harmless, why in refusals:
        value = getattr(body, field)
        if value is not None and not is_harmless(value):
            raise unsupported(field, f"'{field}' is not supported here: {why}")
