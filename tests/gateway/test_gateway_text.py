"""From tokens to text: the detokenisers equal batch decoding, stop strings cut alike however the text is split."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from gateway_fakes import CORPUS, TEMPLATE, byte_level_tokenizer, codec
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from hyperflexis.gateway import TextCodec
from hyperflexis.gateway.detokenizer import UNDECIDED_TOKENS_MAX, Detokenizer, StopStrings
from hyperflexis.gateway.tokenizer import TokenizerError

TRICKY = "Grüße 日本語 שלום 👩‍🚀👨‍👩‍👧‍👦 🎉 é plain\n\ttext <語> � end"


def pushed(detokenizer: Detokenizer, tokens: list[int], sizes: list[int]) -> list[str]:
    """Push in calls of these sizes, then one by one; the last piece is the flush."""
    pieces, at = [], 0
    for size in [*sizes, *[1] * len(tokens)]:
        if at < len(tokens):
            pieces.append(detokenizer.push(tokens[at : at + size]))
            at += size
    return [*pieces, detokenizer.flush()]


ids = st.lists(st.integers(0, codec().vocab_tokens - 1), max_size=60)
sizes = st.lists(st.integers(1, 5), max_size=20)


@given(tokens=ids, sizes=sizes, skip=st.booleans())
def test_byte_detokeniser_equals_batch_decoding(tokens: list[int], sizes: list[int], skip: bool) -> None:
    text = "".join(pushed(codec().detokenizer(skip), tokens, sizes))
    assert text == codec().decode(tokens, skip)


@given(text=st.text(max_size=40) | st.just(TRICKY), sizes=sizes)
def test_text_survives_the_way_through_tokens_in_whole_characters(text: str, sizes: list[int]) -> None:
    tokens = codec().encode(text, add_special_tokens=False)
    pieces = pushed(codec().detokenizer(False), tokens, sizes)
    assert "".join(pieces) == text
    assert "�" in text or not any("�" in piece for piece in pieces)


def test_half_a_character_waits_and_becomes_a_replacement_at_the_end() -> None:
    tokens = codec().encode("日", add_special_tokens=False)
    first_bytes = [codec().encode("a")[0], *[_token_of(byte) for byte in "日".encode()[:2]]]
    detokenizer = codec().detokenizer()
    assert [detokenizer.push([token]) for token in first_bytes] == ["a", "", ""]
    assert detokenizer.flush() == "�"
    assert codec().decode(tokens) == "日"


def _token_of(byte: int) -> int:
    return next(token for token in range(codec().vocab_tokens) if codec().piece(token) == bytes([byte]))


def test_ids_without_text_are_skipped() -> None:
    detokenizer = codec().detokenizer()
    assert detokenizer.push([10**6]) == ""
    assert detokenizer.flush() == ""


def marked_tokenizer() -> Tokenizer:
    """SentencePiece's way: a mark for spaces, byte tokens for what the vocabulary lacks."""
    words = ["▁", "▁hello", "▁world", "lo", "日", "本", "s", "▁the", "!", "e", "a"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {word: 259 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


MARKED = TextCodec(marked_tokenizer())
words = st.lists(st.sampled_from([1, 2, *range(259, 270)]), max_size=30)


@given(tokens=words, sizes=sizes)
def test_window_detokeniser_equals_batch_decoding(tokens: list[int], sizes: list[int]) -> None:
    text = "".join(pushed(MARKED.detokenizer(), tokens, sizes))
    assert text == MARKED.decode(tokens)


@given(text=st.text(max_size=20).filter(lambda text: "�" not in text))
def test_window_detokeniser_puts_byte_tokens_together(text: str) -> None:
    tokens = [3 + byte for byte in text.encode()]
    pieces = pushed(MARKED.detokenizer(), tokens, [])
    assert "".join(pieces) == MARKED.decode(tokens)
    assert not any("�" in piece for piece in pieces)


def test_window_detokeniser_keeps_a_leading_space_behind_a_prompt() -> None:
    hello, world = 260, 261
    assert MARKED.detokenizer().push([world]) == "world"
    assert MARKED.detokenizer(before=[hello]).push([world]) == " world"


def test_window_detokeniser_does_not_hoard_broken_bytes() -> None:
    """Without a limit each further token would be decoded with all before it."""
    detokenizer = MARKED.detokenizer()
    pieces = [detokenizer.push([3 + 0x80]) for _ in range(UNDECIDED_TOKENS_MAX)]
    assert pieces[-1] == "�" * UNDECIDED_TOKENS_MAX


# Stop strings.


def cut(text: str, stops: list[str], splits: list[int], include: bool = False) -> tuple[str, str | None]:
    strings = StopStrings(stops, include)
    bounds = [0, *sorted(splits), len(text)]
    out = "".join([strings.push(text[a:b]) for a, b in itertools.pairwise(bounds)])
    return out + strings.flush(), strings.matched


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_is_found_at_every_split(include: bool) -> None:
    text = "some ENtext, then ENDof it"
    expected = "some ENtext, then END" if include else "some ENtext, then "
    for split in range(len(text) + 1):
        for other in range(split, len(text) + 1):
            assert cut(text, ["END"], [split, other], include) == (expected, "END")


letters = st.text("ab", max_size=12)


@given(
    text=letters,
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    splits=st.lists(st.integers(0, 12), max_size=6),
    include=st.booleans(),
)
@settings(max_examples=300)
def test_stop_strings_do_not_depend_on_splits(text: str, stops: list[str], splits: list[int], include: bool) -> None:
    splits = [min(split, len(text)) for split in splits]
    assert cut(text, stops, splits, include) == _cut_by_letter(text, stops, include)


def _cut_by_letter(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The rule in its plainest form: stop at the first letter that completes any of them, the longest if several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(text=letters, stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    strings = StopStrings(stops)
    out = ""
    for i, letter in enumerate(text):
        out += strings.push(letter)
        if strings.matched is not None:
            break
        held = text[len(out) : i + 1]
        assert not held or any(stop.startswith(held) for stop in stops)


# Reading a model's directory.


def test_model_directory_is_read(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end, start = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|start|>")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 512}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [start]}))
    config = {"eos_token": {"content": "<|end|>"}, "bos_token": "<|bos|>", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = TextCodec.load(tmp_path)
    assert loaded.eos_ids == tuple(sorted((start, end)))
    assert loaded.vocab_tokens == 512
    assert loaded.encode(CORPUS[1]) == codec().encode(CORPUS[1])
    assert loaded.chat_template is not None
    assert loaded.chat_template.render([{"role": "user", "content": "x"}]).startswith("<|bos|><|start|>user\nx<|end|>")


def test_end_ids_fall_back_to_the_model_configuration(tmp_path: Path) -> None:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    loaded = TextCodec.load(str(tmp_path))
    assert loaded.eos_ids == (7,)
    assert loaded.chat_template is None


def test_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        TextCodec.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text("{% if")
    with pytest.raises(TokenizerError, match="cannot be read"):
        TextCodec.load(tmp_path)
