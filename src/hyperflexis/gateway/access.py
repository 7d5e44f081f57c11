"""Who asks: API keys, how one is told from the others, and what each of them may have.

Of a key only its SHA-256 is known here. A fast hash is the right one: keys are 256 random bits, so there is nothing to
guess whatever a guess costs, and a slow hash would be paid for with every request. Knows no HTTP and no file.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

KEY_PREFIX = "hfx-"
"""By which people, and what scans for leaked secrets, know a key."""
KEY_BYTES = 32
KEY_CHARS_MAX = 200
"""Nobody's key is longer; what is, is not hashed."""
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Allowance:
    """The most that one key, or all keys of a tenant, may take; None sets no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and completion together."""
    concurrent_max: int | None = None
    """Choices that wait and run at a time: a request is one, unless it asks for several."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, and the rights that it gives."""

    name: str
    digest: bytes
    tenant: str
    classes: tuple[str, ...] | None = None
    """Service classes that it may use, the first of them where a request names none; None: all."""
    fallback_class: str | None = None
    """Class that it gets in place of one that it may not use; None: it is refused."""
    priority_max: int | None = None
    """Highest priority that it may ask for; None: as all clients, or as its class where classes are named."""
    is_admin: bool = False
    allowance: Allowance = Allowance()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are valid now, and what the tenants behind them may take together."""

    keys: tuple[ApiKey, ...] = ()
    tenants: Mapping[str, Allowance] = field(default_factory=dict)
    tenant_default: Allowance = Allowance()
    """Of tenants that are not listed."""
    _by_digest: dict[bytes, ApiKey] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_digest", {key.digest: key for key in self.keys})

    def find(self, presented: str) -> ApiKey | None:
        """The key that this text is.

        How long it takes tells nothing: what is looked up is a digest, whose bytes nobody can choose, and the last
        comparison takes the same time wherever two differ.
        """
        if len(presented) > KEY_CHARS_MAX:
            return None
        digest = digest_of(presented)
        found = self._by_digest.get(digest)
        is_right = hmac.compare_digest(digest, found.digest if found else bytes(DIGEST_BYTES))
        return found if is_right else None

    def tenant_allowance(self, tenant: str) -> Allowance:
        return self.tenants.get(tenant, self.tenant_default)


def new_key() -> str:
    """A key that nobody has had."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def twins(keys: Iterable[ApiKey]) -> list[tuple[str, str]]:
    """Names of keys that are the same key: one of the two would never be found."""
    seen: dict[bytes, str] = {}
    return [(seen[key.digest], key.name) for key in keys if seen.setdefault(key.digest, key.name) != key.name]
