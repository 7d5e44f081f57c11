from __future__ import annotations

from pathlib import Path

import pytest

from hyperflexis.cli import keys
from hyperflexis.cli.deployment import ClassSection, Deployment, EngineSection
from hyperflexis.policies import POLICIES

ALL = keys.all_keys()


@pytest.mark.parametrize("key", ALL, ids=lambda key: key.dotted)
def test_every_key_says_what_it_is_in_one_line(key: keys.Key) -> None:
    assert key.description.endswith(".")
    assert "\n" not in key.description
    assert len(key.description) <= 110


def test_spellings() -> None:
    key = keys.key("engine.block_tokens")
    assert (key.path, key.env, key.default) == (("engine", "block_tokens"), "HYPERFLEXIS_ENGINE__BLOCK_TOKENS", 16)
    assert not key.is_nullable
    assert keys.key("classes.<name>.ttft_ms").is_nullable


def test_no_two_keys_share_a_variable() -> None:
    assert len({key.env for key in ALL}) == len(ALL)


@pytest.mark.parametrize(
    ("dotted", "kind"),
    [
        ("engine", EngineSection),
        ("classes.chat", ClassSection),
        ("engine.kv_cache_gib", float),
        ("classes.chat.priority", int),
        ("host", str),
        ("device", str),
        ("nothing", None),
        ("port.nothing", None),
        ("engine.nothing.at.all", None),
    ],
)
def test_kind_at(dotted: str, kind: object) -> None:
    assert keys.kind_at(tuple(dotted.split("."))) is kind


def test_kind_of_the_root_and_of_named_sections() -> None:
    assert keys.kind_at(()) is Deployment
    assert keys.is_named(keys.kind_at(("classes",)))
    assert keys.is_text(keys.kind_at(("dtype",)))


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("instnces", "instances"),
        ("engine.seq_max", "engine.seqs_max"),
        ("classes.chat.ttft", "classes.chat.ttft_ms"),
        ("block_tokens", "engine.block_tokens"),
        ("tpot_ms", "classes.<name>.tpot_ms"),
        ("quux", None),
        ("port.quux", None),
    ],
)
def test_nearest(unknown: str, meant: str | None) -> None:
    assert keys.nearest(tuple(unknown.split("."))) == meant


def test_page_that_the_words_of_the_policy_point_to_names_them_all() -> None:
    page = "docs/policies.md"
    assert page in keys.key("policy").description
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in POLICIES)
