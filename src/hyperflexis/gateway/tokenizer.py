"""Text to tokens and tokens to text, for one model: the only file that knows the tokenizers library.

`encode` always goes through `encode_batch_fast`, because plain `encode` holds the interpreter lock for as long as it
takes, even in a thread; and padding or truncation are never set, because that fails when several threads encode.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from hyperflexis.gateway.chat_template import ChatTemplate, find_template, special_tokens
from hyperflexis.gateway.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer

# One text at a time: the library's own thread pool would only add a hand-over (150 us of 550, measured after a pause).
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

T = TypeVar("T")

PROMPT_TAIL_TOKENS = 6
"""So many tokens of the prompt are enough for the text of the first output token."""


class TokenizerError(Exception):
    """A model directory without a usable tokenizer."""


class TextCodec:
    """A model's tokenizer, the ids that end its answers, and its chat template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        vocab_tokens: int | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self._is_byte_level = _is_byte_level(tokenizer)
        self._pieces = _pieces(tokenizer.get_vocab(with_added_tokens=True), self._is_byte_level)
        self.vocab_tokens = vocab_tokens or len(self._pieces)
        """Ids below this are the model's; it may know more than the tokenizer has text for."""
        self.chat_template = chat_template
        added = tokenizer.get_added_tokens_decoder()
        special_ids = {token for token, entry in added.items() if entry.special}
        self._visible = [b"" if token in special_ids else piece for token, piece in enumerate(self._pieces)]

    @classmethod
    def load(cls, model_dir: str | Path) -> TextCodec:
        """Read a model directory.

        Raises:
            TokenizerError: it has no tokenizer, or one of its files cannot be understood.
        """
        path = Path(model_dir)
        if not (path / "tokenizer.json").is_file():
            raise TokenizerError(f"{path} has no tokenizer.json")
        try:
            return cls._read(path)
        except Exception as error:  # tokenizers raises nothing narrower for a file that it cannot read
            raise TokenizerError(f"the tokenizer in {path} cannot be read: {error}") from error

    @classmethod
    def _read(cls, path: Path) -> TextCodec:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        config = _read_json(path / "config.json")
        generation = _read_json(path / "generation_config.json")
        text_config = config.get("text_config") or config
        tokenizer_config = _read_json(path / "tokenizer_config.json")
        specials = special_tokens(tokenizer_config)
        source = find_template(path, tokenizer_config)
        return cls(
            tokenizer,
            eos_ids=_eos_ids(tokenizer, generation, text_config, specials),
            vocab_tokens=text_config.get("vocab_size"),
            chat_template=ChatTemplate(source, specials) if source else None,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokenise one text."""
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for by itself, special tokens included."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""

    def detokenizer(self, skip_special_tokens: bool = True, before: Sequence[int] = ()) -> Detokenizer:
        """Begin the text of one output; `before` is the prompt that it continues, if any."""
        if self._is_byte_level:
            return ByteDetokenizer(self._visible if skip_special_tokens else self._pieces)
        tail = before[-PROMPT_TAIL_TOKENS:]
        return WindowDetokenizer(lambda ids: self.decode(ids, skip_special_tokens), tail)


class Encoders:
    """Threads for long texts, so that they do not stop the event loop."""

    def __init__(self, threads: int, inline_chars: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self._inline_chars = inline_chars

    async def run(self, chars: int, work: Callable[[], T]) -> T:
        """Do `work` here if its text is short, in a thread if it is long."""
        if chars <= self._inline_chars:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _eos_ids(
    tokenizer: Tokenizer, generation: dict[str, Any], config: dict[str, Any], specials: dict[str, str]
) -> list[int]:
    """Everything that the model's files call an end: they often disagree, and each of them is meant."""
    ids: list[int] = []
    declared = generation.get("eos_token_id")
    if declared is None:
        declared = config.get("eos_token_id")
    if declared is not None:
        ids += declared if isinstance(declared, list) else [declared]
    named = specials.get("eos_token")
    token = tokenizer.token_to_id(named) if named else None
    if token is not None:
        ids.append(token)
    return ids


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether decoding concatenates bytes and does nothing else."""
    if tokenizer.decoder is None:
        return False
    decoder = json.loads(tokenizer.decoder.__getstate__())
    if decoder.get("type") == "Sequence":
        steps = decoder.get("decoders", [])
        return len(steps) == 1 and steps[0].get("type") == "ByteLevel"
    return bool(decoder.get("type") == "ByteLevel")


def _pieces(vocab: dict[str, int], byte_level: bool) -> list[bytes]:
    """Each token's bytes by id, empty where an id has no token: ids may have gaps."""
    pieces = [b""] * (max(vocab.values(), default=-1) + 1)
    to_bytes = _from_byte_level if byte_level else _from_marked
    for token, index in vocab.items():
        pieces[index] = to_bytes(token)
    return pieces


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are moved up behind 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    letters.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return letters


_BYTE_OF = _byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    """As the ByteLevel decoder does it: a token with a letter outside the alphabet is plain text."""
    try:
        return bytes([_BYTE_OF[c] for c in token])
    except KeyError:
        return token.encode()


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _from_marked(token: str) -> bytes:
    """SentencePiece's marks: a low line for a space, and byte tokens."""
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte.group(1), 16)]) if byte else token.replace("▁", " ").encode()
