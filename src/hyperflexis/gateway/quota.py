"""What a key and its tenant have left of what they may take: requests and tokens by the minute, and at a time.

Time is an argument. A bucket holds a minute's worth and refills evenly. Prompts are paid for when a request begins,
completions when it has ended: nobody knows their length before. So a bucket may be in debt, which later requests wait
for; over any long time, no more is taken than is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperflexis.gateway.access import Allowance, ApiKey, KeyRing
from hyperflexis.gateway.errors import ApiError, invalid, limited

MINUTE_S = 60.0
_NEWEST = 0.2
"""Weight of the newest request in the mean time that requests take."""


class Bucket:
    """Full at first."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._at_s = now

    def left(self, now: float) -> float:
        """What may be taken; below zero while there is debt."""
        refilled = self._left + (now - self._at_s) * self.per_minute / MINUTE_S
        self._left, self._at_s = min(refilled, float(self.per_minute)), now
        return self._left

    def wait_s(self, amount: float, now: float) -> float:
        """Until so much is there; what is more than the bucket holds waits for a full one."""
        lacking = min(amount, self.per_minute) - self.left(now)
        return max(0.0, lacking) * MINUTE_S / self.per_minute

    def take(self, amount: float, now: float) -> None:
        self._left = self.left(now) - amount

    def resized(self, per_minute: int, now: float) -> Bucket:
        """The same with another size; neither debts nor what was used are forgotten."""
        other = Bucket(per_minute, now)
        other.take(self.per_minute - self.left(now), now)
        return other


class Quota:
    """Of one key, or of one tenant."""

    def __init__(self, whose: str, allowance: Allowance, now: float) -> None:
        self.whose = whose
        self.running = 0
        """Choices."""
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self._concurrent_max: int | None = None
        self._mean_s = 1.0
        self.allow(allowance, now)

    def allow(self, allowance: Allowance, now: float) -> None:
        """Change what may be taken; what was taken counts on."""
        self.requests = _bucket(self.requests, allowance.requests_per_minute, now)
        self.tokens = _bucket(self.tokens, allowance.tokens_per_minute, now)
        self._concurrent_max = allowance.concurrent_max

    def refusal_at_arrival(self, now: float) -> ApiError | None:
        """Why one more request cannot begin now, if it cannot."""
        if wait_s := self.requests.wait_s(1, now) if self.requests else 0.0:
            assert self.requests is not None
            return limited(f"{self.whose} may make {self.requests.per_minute} requests per minute", wait_s)
        if wait_s := self.tokens.wait_s(1, now) if self.tokens else 0.0:
            return self._out_of_tokens(wait_s)
        return self._crowded(1)

    def refusal_of(self, more_choices: int, prompt_tokens: int, now: float) -> ApiError | None:
        """Why a request that has begun cannot go on as what it turned out to be, if it cannot."""
        if self._concurrent_max is not None and more_choices + 1 > self._concurrent_max:
            return invalid("n", f"{self.whose} may have {self._concurrent_max} choices at a time.")
        if wait_s := self.tokens.wait_s(prompt_tokens, now) if self.tokens else 0.0:
            return self._out_of_tokens(wait_s)
        return self._crowded(more_choices)

    def _out_of_tokens(self, wait_s: float) -> ApiError:
        assert self.tokens is not None
        return limited(f"{self.whose} may use {self.tokens.per_minute} tokens per minute", wait_s)

    def _crowded(self, choices: int) -> ApiError | None:
        if self._concurrent_max is None or self.running + choices <= self._concurrent_max:
            return None
        # One of those that run ends, on average, after so long.
        wait_s = self._mean_s / max(1, self.running)
        return limited(f"{self.whose} may have {self._concurrent_max} requests at a time", wait_s)

    def on_end(self, choices: int, took_s: float) -> None:
        self.running -= choices
        self._mean_s += _NEWEST * (took_s - self._mean_s)


def _bucket(old: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    return Bucket(per_minute, now) if old is None else old.resized(per_minute, now)


@dataclass(slots=True)
class Passage:
    """One request on its way through: who asked, and what it counts against. Nothing, where there are no keys."""

    key: ApiKey | None = None
    quotas: tuple[Quota, ...] = ()
    began_s: float = 0.0
    choices: int = 1

    def charge(self, choices: int, prompt_tokens: int, now: float) -> None:
        """Count what the request turned out to be.

        Raises:
            ApiError: it is too much, now or ever.
        """
        more = choices - self.choices
        for quota in self.quotas:
            if refusal := quota.refusal_of(more, prompt_tokens, now):
                raise refusal
        self.choices = choices
        for quota in self.quotas:
            quota.running += more
        self.spend(prompt_tokens, now)

    def spend(self, tokens: int, now: float) -> None:
        """Count tokens, whether or not they are there."""
        for quota in self.quotas:
            if quota.tokens is not None:
                quota.tokens.take(tokens, now)

    def end(self, now: float) -> None:
        for quota in self.quotas:
            quota.on_end(self.choices, now - self.began_s)

    def headers(self, now: float) -> dict[str, str]:
        """What is left, as OpenAI's clients read it: of that limit which is nearest."""
        told: dict[str, str] = {}
        for name in ("requests", "tokens"):
            buckets = [bucket for quota in self.quotas if (bucket := getattr(quota, name)) is not None]
            if buckets:
                told |= _told(name, min(buckets, key=lambda bucket: bucket.left(now)), now)
        return told


def _told(name: str, bucket: Bucket, now: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(bucket.per_minute),
        f"x-ratelimit-remaining-{name}": str(max(0, math.floor(bucket.left(now)))),
        f"x-ratelimit-reset-{name}": spelled(bucket.wait_s(bucket.per_minute, now)),
    }


def spelled(seconds: float) -> str:
    """A duration as OpenAI writes them: 20ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest_ms = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest_ms / 1000:g}s" if minutes else f"{rest_ms / 1000:g}s"


@dataclass(slots=True)
class Quotas:
    """Of all keys and tenants. They outlive the ring that named them, so that reading it anew forgives nothing."""

    _of_keys: dict[str, Quota] = field(default_factory=dict)
    _of_tenants: dict[str, Quota] = field(default_factory=dict)

    def follow(self, ring: KeyRing, now: float) -> None:
        """Let what the ring says be in force, and forget who is not in it."""
        tenants = {key.tenant: ring.tenant_allowance(key.tenant) for key in ring.keys}
        self._of_keys = _followed(self._of_keys, {key.name: key.allowance for key in ring.keys}, "key", now)
        self._of_tenants = _followed(self._of_tenants, tenants, "tenant", now)

    def enter(self, key: ApiKey, now: float) -> Passage:
        """Let a request in; `end` must be called when it is over.

        Raises:
            ApiError: its key or its tenant has taken all that it may.
        """
        quotas = (self._of_keys[key.name], self._of_tenants[key.tenant])
        for quota in quotas:
            if refusal := quota.refusal_at_arrival(now):
                raise refusal
        passage = Passage(key, quotas, now)
        for quota in quotas:
            quota.running += 1
            if quota.requests is not None:
                quota.requests.take(1, now)
        return passage


def _followed(
    known: Mapping[str, Quota], allowances: Mapping[str, Allowance], kind: str, now: float
) -> dict[str, Quota]:
    for name, allowance in allowances.items():
        if quota := known.get(name):
            quota.allow(allowance, now)
    return {name: known.get(name) or Quota(f"{kind} {name!r}", each, now) for name, each in allowances.items()}
