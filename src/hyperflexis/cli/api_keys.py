"""The file of API keys: what stands in it, how it is read, and what a new key's entry looks like.

It holds digests, no keys. It is a file of its own because it changes while the server runs, and because others than the
operator may be let write it. Knows nothing of requests.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError

from hyperflexis.cli import document
from hyperflexis.cli.deployment import PRIORITY_MAX, PRIORITY_MIN, Deployment, Section
from hyperflexis.cli.entry import Source
from hyperflexis.cli.errors import OperatorError
from hyperflexis.gateway.access import Allowance, ApiKey, KeyRing, digest_of, new_key, twins

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("should be 1 to 64 letters, digits or any of . _ @ -, the first a letter or digit")
    return text


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("should be the SHA-256 of a key, 64 hexadecimal digits; `hyperflexis keys new` makes one")
    return text


Name = Annotated[str, AfterValidator(_name)]


class LimitsEntry(Section):
    """The most that a key, or a tenant, may take; null sets no limit."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrent_max: int | None = Field(default=None, ge=1)

    def allowance(self) -> Allowance:
        return Allowance(self.requests_per_minute, self.tokens_per_minute, self.concurrent_max)


class KeyEntry(LimitsEntry):
    """One key."""

    sha256: Annotated[str, AfterValidator(_digest)]
    tenant: Name | None = None
    """Null: a tenant of the key's own name."""
    classes: list[str] | None = Field(default=None, min_length=1)
    fallback_class: str | None = None
    priority_max: int | None = Field(default=None, ge=PRIORITY_MIN, le=PRIORITY_MAX)
    is_admin: bool = False

    def key(self, name: str) -> ApiKey:
        return ApiKey(
            name,
            bytes.fromhex(self.sha256),
            self.tenant or name,
            None if self.classes is None else tuple(self.classes),
            self.fallback_class,
            self.priority_max,
            self.is_admin,
            self.allowance(),
        )


class KeysDocument(Section):
    """The whole file."""

    keys: dict[Name, KeyEntry] = Field(default_factory=dict)
    tenants: dict[Name, LimitsEntry] = Field(default_factory=dict)


def read_ring(file: Path, deployment: Deployment) -> KeyRing:
    """The keys that a file holds.

    Raises:
        OperatorError: it cannot be read, is not what it should be, or everybody may write it.
    """
    _refuse_open(file)
    source = Source("file", str(file))
    root = document.compose(document.read(file), source)
    try:
        given = KeysDocument.model_validate({} if root is None else document.construct(root, source))
    except ValidationError as error:
        raise OperatorError("\n".join(_sentence(file, each) for each in error.errors(include_url=False))) from None
    keys = tuple(entry.key(name) for name, entry in given.keys.items())
    if found := _contradictions(file, keys, set(deployment.service_classes())):
        raise OperatorError("\n".join(found))
    tenants = {name: entry.allowance() for name, entry in given.tenants.items()}
    return KeyRing(keys, tenants, Allowance(concurrent_max=deployment.auth.per_tenant_max))


def entry_of(name: str, tenant: str | None, *, is_admin: bool) -> tuple[str, str]:
    """A new key, and the lines that let it in.

    Raises:
        OperatorError: the name cannot be one.
    """
    for given in (name, tenant):
        if given is not None and not _NAME.fullmatch(given):
            raise OperatorError(f"{given!r} is no name for a key or a tenant: it {_reason_of(given)}")
    key = new_key()
    lines = {"sha256": digest_of(key).hex(), "tenant": tenant or name, "is_admin": is_admin}
    text = yaml.safe_dump({name: lines}, sort_keys=False)
    return key, "".join(f"  {line}\n" for line in text.splitlines())


def _reason_of(given: str) -> str:
    try:
        _name(given)
    except ValueError as error:
        return str(error)
    return ""


def _refuse_open(file: Path) -> None:
    """Who can write this file can let anybody in."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return  # Reading it says why.
    if mode & stat.S_IWOTH:
        raise OperatorError(f"{file} can be written by everybody on this machine", hint=f"chmod o-w {file}")


def _sentence(file: Path, detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        return f"{file}: unknown key '{path}'"
    # Without the value: whoever mistakes the field for the key itself must not find it in a log.
    return f"{file}: {path or 'the whole'}: {detail['msg'].removeprefix('Value error, ').removeprefix('Input ')}"


def _contradictions(file: Path, keys: tuple[ApiKey, ...], classes: set[str]) -> list[str]:
    found = [f"{file}: {one} and {other} are the same key" for one, other in twins(keys)]
    for key in keys:
        named = (*(key.classes or ()), *((key.fallback_class,) if key.fallback_class else ()))
        found += [
            f"{file}: keys.{key.name}: there is no class {each!r}; known: {', '.join(sorted(classes))}"
            for each in named
            if each not in classes
        ]
        if key.fallback_class is not None and key.fallback_class not in (key.classes or ()):
            found.append(f"{file}: keys.{key.name}: its fallback_class should be one of its classes")
    return found
