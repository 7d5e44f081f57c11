"""`/v1/chat/completions`: messages to a prompt, and the spelling of chat answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hyperflexis.gateway.answer import Gathered, Prompt
from hyperflexis.gateway.backend import ServedModel
from hyperflexis.gateway.choice import Choice, Entry
from hyperflexis.gateway.errors import ApiError, invalid, unsupported
from hyperflexis.gateway.events import Heading, encode_json, finite, with_members
from hyperflexis.gateway.openai_types import ChatMessage
from hyperflexis.gateway.tokenizer import Encoders, TextCodec
from hyperflexis.gateway.validation import tokenise

ROLES = ("system", "developer", "user", "assistant", "tool")


def flatten(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as a template wants them: plain text contents, no nulls.

    Raises:
        ApiError: there are none, or one of them is no text message of a known role.
    """
    if not messages:
        raise invalid("messages", "'messages' must hold at least one message.")
    return [_flat(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _flat(where: str, message: ChatMessage) -> dict[str, Any]:
    if message.role not in ROLES:
        raise invalid(f"{where}.role", f"'{where}.role' must be one of {', '.join(ROLES)}, not {message.role[:40]!r}.")
    flat: dict[str, Any] = {"role": message.role, "content": _text(where, message)}
    for name in ("name", "tool_calls", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            flat[name] = value
    return flat


def _text(where: str, message: ChatMessage) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise invalid(f"{where}.content", f"'{where}.content' is missing.", "missing_required_parameter")
    for i, part in enumerate(content):
        if part.type != "text":
            field = f"{where}.content[{i}]"
            raise unsupported(field, f"'{field}' has the type {part.type[:40]!r}; only text is served.")
    return "".join([part.text or "" for part in content])


async def chat_prompt(
    messages: Sequence[ChatMessage],
    *,
    model: ServedModel,
    codec: TextCodec,
    encoders: Encoders,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
    add_special_tokens: bool | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Prompt:
    """Render and tokenise messages; long ones in a thread."""
    template = codec.chat_template
    if template is None:
        raise ApiError(
            400,
            "This model has no chat template; use /v1/completions.",
            param="messages",
            code="chat_template_missing",
        )
    flat = flatten(messages)
    continues = bool(continue_final_message)
    if continues and add_generation_prompt:
        raise invalid(
            "continue_final_message", "'continue_final_message' and 'add_generation_prompt' exclude each other."
        )

    def work() -> Prompt:
        text = template.render(
            flat,
            add_generation_prompt=add_generation_prompt is not False and not continues,
            continue_final_message=continues,
            extra=extra,
        )
        # Templates write the special tokens themselves.
        return Prompt(tokenise(text, codec, model, "messages", bool(add_special_tokens)), text)

    chars = sum([len(message["content"]) for message in flat])
    return await encoders.run(chars, work)


class ChatFormat:
    """How chat answers are spelled. Everything that is the same in each event is encoded once."""

    def __init__(self, heading: Heading, codec: TextCodec, prompt_ids: Sequence[int] | None = None) -> None:
        """Prepare. `prompt_ids` are told, and those of the answer, if they are given."""
        self._heading = heading
        self._prompt_ids = {} if prompt_ids is None else {"prompt_token_ids": prompt_ids}
        self._codec = codec
        self._event_head = heading.event_head("chat.completion.chunk")
        self._event_end = heading.event_end
        self.event_suffix = b'},"logprobs":null,"finish_reason":null}' + self._event_end

    def event_prefix(self, choice: Choice) -> bytes:
        return self._event_head + b'{"index":%d,"delta":{"content":' % choice.index

    def opening(self, choice: Choice) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":"","refusal":null' % choice.index
        return with_members(self._event_head + delta + self.event_suffix, self._prompt_ids)

    def text_event(self, choice: Choice, text: str, entries: list[Entry] | None, ids: list[int] | None) -> bytes:
        told: dict[str, Any] = {"logprobs": self._logprobs(entries) if entries else None}
        if ids is not None:
            told["token_ids"] = ids
        middle = b"}," + encode_json(told)[1:-1] + b',"finish_reason":null}'
        return choice.prefix + encode_json(text) + middle + self._event_end

    def finish_event(self, choice: Choice, told: dict[str, Any]) -> bytes:
        last = {
            "index": choice.index,
            "delta": {},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        event = self._event_head + encode_json(last) + self._event_end
        return with_members(event, told)

    def usage_event(self, told: dict[str, Any]) -> bytes:
        return with_members(self._event_head + b"]}\n\n", told)

    def body(self, choices: Sequence[Choice], gathered: Sequence[Gathered], told: dict[str, Any]) -> bytes:
        spelled = [self._choice(choice, whole) for choice, whole in zip(choices, gathered, strict=True)]
        head = self._heading.members("chat.completion") | self._prompt_ids
        return encode_json({**head, "choices": spelled, "service_tier": self._heading.service_class, **told})

    def _choice(self, choice: Choice, whole: Gathered) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": "".join(whole.text), "refusal": None},
            "logprobs": self._logprobs(whole.entries) if whole.entries else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            **({"token_ids": whole.ids} if self._prompt_ids else {}),
        }

    def _logprobs(self, entries: Sequence[Entry]) -> dict[str, Any]:
        return {"content": [self._position(entry) for entry in entries], "refusal": None}

    def _position(self, entry: Entry) -> dict[str, Any]:
        given = entry.logprobs
        told = self._token(given.token, given.logprob)
        told["top_logprobs"] = [
            self._token(token, logprob) for token, logprob in zip(given.top_tokens, given.top_logprobs, strict=False)
        ]
        return told

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self._codec.piece(token)
        return {
            "token": piece.decode("utf-8", "replace"),
            "logprob": finite(logprob),
            "bytes": list(piece),
        }
