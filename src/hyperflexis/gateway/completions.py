"""`/v1/completions`: every shape of prompt, and the spelling of legacy answers, log-probabilities included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from hyperflexis.gateway.answer import Gathered, Prompt
from hyperflexis.gateway.backend import ServedModel
from hyperflexis.gateway.choice import Choice, Entry
from hyperflexis.gateway.errors import ApiError, invalid
from hyperflexis.gateway.events import Heading, encode_json, finite, with_members
from hyperflexis.gateway.tokenizer import Encoders, TextCodec
from hyperflexis.gateway.validation import check_ids, tokenise
from hyperflexis.wire.messages import TokenLogprobs


async def completion_prompts(
    prompt: str | list[str | int | list[int]],
    *,
    model: ServedModel,
    codec: TextCodec,
    encoders: Encoders,
    prompts_max: int,
    add_special_tokens: bool = True,
) -> list[Prompt]:
    """Bring any of the four shapes of prompt into one.

    Raises:
        ApiError: it is empty, mixed, or holds ids that are not the model's.
    """
    given = _one_shape(prompt)
    if len(given) > prompts_max:
        raise invalid("prompt", f"'prompt' may hold at most {prompts_max} prompts.")
    texts = [item for item in given if isinstance(item, str)]

    def work() -> list[Prompt]:
        return [_tokenised(item, model, codec, add_special_tokens) for item in given]

    return await encoders.run(sum(map(len, texts)), work)


def _one_shape(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise _empty()
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    if kinds in ({str}, {list}):
        return cast("list[str | list[int]]", prompt)
    raise invalid("prompt", "'prompt' must be a string, token ids, strings, or lists of token ids, not a mixture.")


def _empty() -> ApiError:
    return invalid("prompt", "'prompt' must not be empty.")


def _tokenised(item: str | list[int], model: ServedModel, codec: TextCodec, add_special_tokens: bool) -> Prompt:
    if not item:
        raise _empty()
    if not isinstance(item, str):
        check_ids("prompt", item, codec)
        return Prompt(item)
    return Prompt(tokenise(item, codec, model, "prompt", add_special_tokens), item)


class CompletionFormat:
    """How legacy answers are spelled."""

    def __init__(
        self,
        heading: Heading,
        codec: TextCodec,
        *,
        prompts: Sequence[Prompt],
        n: int,
        echo: bool,
        returns_ids: bool = False,
    ) -> None:
        self._heading = heading
        self._codec = codec
        self._prompts = prompts
        self._n = n
        self._echo = echo
        self._returns_ids = returns_ids
        self._event_head = heading.event_head("text_completion")
        self._event_end = heading.event_end
        self.event_suffix = b',"logprobs":null,"finish_reason":null}' + self._event_end
        self._echoes: dict[int, str] = {}

    def event_prefix(self, choice: Choice) -> bytes:
        return self._event_head + b'{"index":%d,"text":' % choice.index

    def opening(self, choice: Choice) -> bytes:
        if not (self._echo or self._returns_ids):
            return b""
        text = self._echo_text(choice) if self._echo else ""
        logprobs = self._prompt_logprobs(choice) if choice.prompt_logprobs else None
        return self._event(choice, text, {"logprobs": logprobs, **self._prompt_ids(choice)})

    def text_event(self, choice: Choice, text: str, entries: list[Entry] | None, ids: list[int] | None) -> bytes:
        told: dict[str, Any] = {"logprobs": self._output_logprobs(choice, entries) if entries else None}
        if ids is not None:
            told["token_ids"] = ids
        return self._event(choice, text, told)

    def _event(self, choice: Choice, text: str, told: dict[str, Any]) -> bytes:
        middle = b"," + encode_json(told)[1:-1] + b',"finish_reason":null}'
        return choice.prefix + encode_json(text) + middle + self._event_end

    def _prompt_ids(self, choice: Choice) -> dict[str, Any]:
        return {"prompt_token_ids": self._prompts[choice.index // self._n].tokens} if self._returns_ids else {}

    def finish_event(self, choice: Choice, told: dict[str, Any]) -> bytes:
        last = {
            "index": choice.index,
            "text": "",
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        return with_members(self._event_head + encode_json(last) + self._event_end, told)

    def usage_event(self, told: dict[str, Any]) -> bytes:
        return with_members(self._event_head + b"]}\n\n", told)

    def body(self, choices: Sequence[Choice], gathered: Sequence[Gathered], told: dict[str, Any]) -> bytes:
        spelled = [self._choice(choice, whole) for choice, whole in zip(choices, gathered, strict=True)]
        head = self._heading.members("text_completion")
        return encode_json({**head, "choices": spelled, "service_tier": self._heading.service_class, **told})

    def _choice(self, choice: Choice, whole: Gathered) -> dict[str, Any]:
        text = "".join(whole.text)
        columns = self._prompt_logprobs(choice) if self._echo and choice.prompt_logprobs else None
        if whole.entries:
            columns = _joined(columns, self._output_logprobs(choice, whole.entries))
        return {
            "index": choice.index,
            "text": self._echo_text(choice) + text if self._echo else text,
            "logprobs": columns,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            **({"token_ids": whole.ids, **self._prompt_ids(choice)} if self._returns_ids else {}),
        }

    def _echo_text(self, choice: Choice) -> str:
        """The prompt's text; decoded once where it came as tokens."""
        number = choice.index // self._n
        text = self._echoes.get(number)
        if text is None:
            prompt = self._prompts[number]
            text = prompt.text if prompt.text is not None else self._codec.decode(prompt.tokens)
            self._echoes[number] = text
        return text

    def _output_logprobs(self, choice: Choice, entries: Sequence[Entry]) -> dict[str, Any]:
        base = len(self._echo_text(choice)) if self._echo else 0
        return self._columns((entry.logprobs, base + entry.offset) for entry in entries)

    def _prompt_logprobs(self, choice: Choice) -> dict[str, Any]:
        """Those of the prompt: nothing can be said of its first token."""
        tokens = self._prompts[choice.index // self._n].tokens
        offsets = list(self._offsets(tokens))
        name = self._name(tokens[0])
        first = {"tokens": [name], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
        return _joined(first, self._columns(zip(choice.prompt_logprobs, offsets[1:], strict=False)))

    def _offsets(self, tokens: Sequence[int]) -> Iterator[int]:
        """Where each token's text begins."""
        detokenizer = self._codec.detokenizer()
        offset = 0
        for token in tokens:
            yield offset
            offset += len(detokenizer.push((token,)))

    def _columns(self, positions: Iterator[tuple[TokenLogprobs, int]]) -> dict[str, Any]:
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for given, offset in positions:
            columns["tokens"].append(self._name(given.token))
            columns["token_logprobs"].append(finite(given.logprob))
            columns["top_logprobs"].append(self._top(given))
            columns["text_offset"].append(offset)
        return columns

    def _top(self, given: TokenLogprobs) -> dict[str, float]:
        """The most likely tokens, and the one that stands there even if it is not among them."""
        top = {
            self._name(token): finite(logprob)
            for token, logprob in zip(given.top_tokens, given.top_logprobs, strict=False)
        }
        top.setdefault(self._name(given.token), finite(given.logprob))
        return top

    def _name(self, token: int) -> str:
        """A token's text; tokens that are no text by themselves must not all get the same name."""
        piece = self._codec.piece(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join([f"\\x{byte:02x}" for byte in piece])


def _joined(first: dict[str, Any] | None, second: dict[str, Any]) -> dict[str, Any]:
    if first is None:
        return second
    return {name: first[name] + second[name] for name in first}
