"""The file of keys says who may come in; what is wrong with it is said, and never with a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.conftest import Run
from hyperflexis.cli.api_keys import read_ring
from hyperflexis.cli.deployment import ClassSection, Deployment
from hyperflexis.cli.errors import OperatorError
from hyperflexis.gateway.access import Allowance, ApiKey, digest_of

DIGEST = digest_of("one").hex()
OTHER = digest_of("two").hex()
DEPLOYMENT = Deployment(classes={"chat": ClassSection(ttft_ms=500.0), "batch": ClassSection()})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_all_that_an_entry_may_say(file: Path) -> None:
    file.write_text(f"""
keys:
  web:
    sha256: {DIGEST}
    tenant: acme
    classes: [chat, batch]
    fallback_class: batch
    priority_max: 5
    requests_per_minute: 60
    tokens_per_minute: 1000
    concurrent_max: 8
  ops: {{sha256: "{OTHER}", is_admin: true}}
tenants:
  acme: {{concurrent_max: 100}}
""")
    ring = read_ring(file, DEPLOYMENT)
    web = ApiKey(
        "web",
        digest_of("one"),
        "acme",
        ("chat", "batch"),
        "batch",
        5,
        allowance=Allowance(60, 1000, 8),
    )
    assert ring.keys == (web, ApiKey("ops", digest_of("two"), "ops", is_admin=True))
    assert ring.tenant_allowance("acme") == Allowance(concurrent_max=100)
    assert ring.tenant_allowance("ops") == Allowance(concurrent_max=1000)
    assert ring.find("one") == web


def test_new_key_is_let_in_by_its_entry(run: Run, file: Path) -> None:
    made = run("keys", "new", "chat-frontend", "--tenant", "acme", "--admin")
    assert made.code == 0
    key = made.out.strip()
    assert re.fullmatch(r"hfx-[\w-]{43}", key)
    assert key not in made.err
    file.write_text(f"keys:\n{made.err}")
    found = read_ring(file, DEPLOYMENT).find(key)
    assert found is not None
    assert (found.name, found.tenant, found.is_admin) == ("chat-frontend", "acme", True)
    again = run("keys", "new", "other")
    file.write_text(file.read_text() + again.err)
    assert len(read_ring(file, DEPLOYMENT).keys) == 2


@pytest.mark.parametrize("name", ["", "two words", "ümlaut", "a" * 65, "-x", "a\nb"])
def test_names_are_plain(run: Run, name: str) -> None:
    made = run("keys", "new", "--", name)
    assert made.code == 2
    assert made.out == ""


@pytest.mark.parametrize("text", ["", "keys:\n", "keys: {}\ntenants: {}\n"])
def test_empty_file_lets_nobody_in(file: Path, text: str) -> None:
    file.write_text(text)
    if text == "keys:\n":
        with pytest.raises(OperatorError, match="keys: "):
            read_ring(file, DEPLOYMENT)
    else:
        assert read_ring(file, DEPLOYMENT).keys == ()


WRONG = [
    ("[]", "the whole"),
    ("keys: [a]", "keys: should be a valid dictionary"),
    ("keys: {a: {}}", "keys.a.sha256: Field required"),
    ("keys: {a: {sha256: hfx-secret}}", "64 hexadecimal digits"),
    (f"keys: {{a: {{sha256: {DIGEST.upper()}}}}}", "64 hexadecimal digits"),
    (f"keys: {{a b: {{sha256: {DIGEST}}}}}", "letters, digits"),
    (f"keys: {{a: {{sha256: {DIGEST}, concurent_max: 1}}}}", "unknown key 'keys.a.concurent_max'"),
    (f"keys: {{a: {{sha256: {DIGEST}, concurrent_max: 0}}}}", "greater than or equal to 1"),
    (f"keys: {{a: {{sha256: {DIGEST}, is_admin: 1}}}}", "valid boolean"),
    (f"keys: {{a: {{sha256: {DIGEST}, classes: []}}}}", "at least 1 item"),
    (f"keys: {{a: {{sha256: {DIGEST}, classes: [gold]}}}}", "there is no class 'gold'; known: batch, chat, default"),
    (f"keys: {{a: {{sha256: {DIGEST}, fallback_class: chat}}}}", "fallback_class should be one of its classes"),
    (f"keys: {{a: {{sha256: {DIGEST}}}, b: {{sha256: {DIGEST}}}}}", "a and b are the same key"),
    (f"keys: {{a: {{sha256: {DIGEST}}}, a: {{sha256: {OTHER}}}}}", "given twice"),
    ("keys: {", "not YAML"),
    ("tenants: {a: {sha256: 1}}", "unknown key"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_told_without_what_stands_there(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(OperatorError) as caught:
        read_ring(file, DEPLOYMENT)
    assert message in caught.value.message
    assert str(file) in caught.value.message
    assert "hfx-secret" not in caught.value.message


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.dictionaries(st.sampled_from(("keys", "tenants", "a", "sha256", "classes", "concurrent_max")), inner)
            | st.lists(inner, max_size=2)
        ),
    )
)
@settings(max_examples=60)
def test_any_yaml_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    file = tmp_path_factory.getbasetemp() / "any-keys.yaml"
    file.write_text(yaml.safe_dump(content))
    try:
        read_ring(file, DEPLOYMENT)
    except OperatorError as error:
        assert str(file) in error.message  # noqa: PT017 either is right


def test_file_that_everybody_can_write_is_refused(file: Path) -> None:
    file.write_text("keys: {}")
    file.chmod(0o666)
    with pytest.raises(OperatorError, match="everybody"):
        read_ring(file, DEPLOYMENT)


def test_file_that_is_not_there(file: Path) -> None:
    with pytest.raises(OperatorError, match="cannot read"):
        read_ring(file, DEPLOYMENT)
