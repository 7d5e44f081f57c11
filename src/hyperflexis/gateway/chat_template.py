"""Messages to prompt text, by the template that came with the model.

Templates are programs written by strangers, so they run in jinja2's immutable sandbox, with the names that Hugging Face
templates expect and nothing else. Knows nothing of tokens.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hyperflexis.gateway.errors import invalid

_TEMPLATE_FAULTS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError),
    *(AttributeError, ArithmeticError, RecursionError),
)
"""What a template may raise on messages that its author did not think of."""


class TemplateRefusalError(Exception):
    """Raised from inside a template (`raise_exception`): these messages do not suit the model."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way to declare tags

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One model's template with its special tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self._special_tokens = dict(special_tokens or {})
        self._template = _environment().from_string(source)
        self._knows_developer = "developer" in source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages.

        Raises:
            ApiError: the template refuses these messages, or does not get along with them.
        """
        given = [dict(message) for message in messages]
        if not self._knows_developer:
            # The newer name for the same thing; most templates know only the older.
            for message in given:
                if message["role"] == "developer":
                    message["role"] = "system"
        names: dict[str, Any] = {**self._special_tokens, **(extra or {})}
        names |= {"messages": given, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            text = self._template.render(names)
        except TemplateRefusalError as refusal:
            raise invalid("messages", f"The model's chat template refuses these messages: {refusal}") from refusal
        except _TEMPLATE_FAULTS as error:
            raise invalid("messages", f"The model's chat template cannot render these messages: {error}") from error
        return _cut_after(text, given[-1]) if continue_final_message else text


def _cut_after(text: str, message: Mapping[str, Any]) -> str:
    """Drop what the template put behind the last message, so that the model goes on writing it."""
    content = str(message.get("content") or "").strip()
    at = text.rfind(content)
    if not content or at < 0:
        raise invalid("continue_final_message", "The last message has no text to continue in the rendered prompt.")
    return text[: at + len(content)]


def find_template(model_dir: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The source of a model's chat template: a file of its own, else the tokenizer's configuration."""
    own_file = model_dir / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    source = tokenizer_config.get("chat_template")
    if isinstance(source, list):
        by_name = {entry["name"]: entry["template"] for entry in source}
        source = by_name.get("default")
    return source if isinstance(source, str) else None


def special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The strings of bos_token, eos_token and the like."""
    found = {}
    for name, value in tokenizer_config.items():
        if not name.endswith("_token"):
            continue
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> str:
    raise TemplateRefusalError(message)


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().astimezone().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own filter: no HTML escapes, because a prompt is no web page."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
