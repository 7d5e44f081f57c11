"""Nobody takes more than allowed over any time; what is refused may come after the time that it was told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hyperflexis.gateway.access import Allowance, ApiKey, KeyRing
from hyperflexis.gateway.errors import ApiError
from hyperflexis.gateway.quota import Bucket, Passage, Quotas, spelled

PER_MINUTE = 60


def ring(*keys: tuple[str, str, Allowance], **tenants: Allowance) -> KeyRing:
    made = (ApiKey(name, name.encode().ljust(32), tenant, allowance=each) for name, tenant, each in keys)
    return KeyRing(tuple(made), tenants)


def quotas(of: KeyRing) -> Quotas:
    made = Quotas()
    made.follow(of, 0.0)
    return made


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), min_size=1, max_size=60))
def test_bucket_gives_no_more_than_it_holds_and_refills(asked: list[tuple[float, int]]) -> None:
    bucket, now, taken = Bucket(PER_MINUTE, 0.0), 0.0, 0
    for pause_s, amount in asked:
        now += pause_s
        if not bucket.wait_s(amount, now):
            bucket.take(amount, now)
            taken += amount
        assert taken <= PER_MINUTE + now * PER_MINUTE / 60 + 1e-6


@given(st.floats(0, 1000), st.floats(-100, PER_MINUTE), st.integers(1, 200))
def test_waiting_as_long_as_told_is_enough_and_half_of_it_is_not(now: float, left: float, amount: int) -> None:
    bucket = Bucket(PER_MINUTE, now)
    bucket.take(PER_MINUTE - left, now)
    wait_s = bucket.wait_s(amount, now)
    assert bucket.wait_s(amount, now + wait_s * 1.000001 + 1e-6) == 0.0
    if wait_s > 0.001:
        bucket = Bucket(PER_MINUTE, now)
        bucket.take(PER_MINUTE - left, now)
        assert bucket.wait_s(amount, now + wait_s / 2) > 0


def test_resized_bucket_forgets_nothing() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(50, 0.0)
    assert bucket.resized(100, 0.0).left(0.0) == 50
    assert bucket.resized(20, 0.0).left(0.0) == -30


def test_requests_beyond_the_minute_are_told_when_to_come() -> None:
    entered = quotas(ring(("a", "t", Allowance(requests_per_minute=2))))
    key = ApiKey("a", b"", "t")
    for _ in range(2):
        entered.enter(key, 0.0).end(0.0)
    with pytest.raises(ApiError) as caught:
        entered.enter(key, 0.0)
    assert (caught.value.status, caught.value.code, caught.value.headers["Retry-After"]) == (
        429,
        "rate_limit_exceeded",
        "30",
    )
    assert "'a'" in caught.value.message
    entered.enter(key, 30.0)


def test_completions_are_paid_for_when_they_have_ended() -> None:
    entered = quotas(ring(("a", "t", Allowance(tokens_per_minute=600))))
    key = ApiKey("a", b"", "t")
    passage = entered.enter(key, 0.0)
    passage.charge(1, 100, 0.0)
    passage.spend(800, 0.0)
    passage.end(0.0)
    with pytest.raises(ApiError) as caught:
        entered.enter(key, 0.0)
    assert caught.value.headers["Retry-After"] == "31"
    entered.enter(key, 31.0)


def test_prompt_larger_than_a_minute_waits_for_a_full_bucket() -> None:
    """Else it could never come, whatever it is told."""
    entered = quotas(ring(("a", "t", Allowance(tokens_per_minute=60))))
    key = ApiKey("a", b"", "t")
    entered.enter(key, 0.0).charge(1, 500, 0.0)
    with pytest.raises(ApiError):
        entered.enter(key, 100.0)
    entered.enter(key, 600.0).charge(1, 500, 600.0)


def test_choices_count_as_requests_at_a_time() -> None:
    entered = quotas(ring(("a", "t", Allowance(concurrent_max=4))))
    key = ApiKey("a", b"", "t")
    first = entered.enter(key, 0.0)
    first.charge(3, 10, 0.0)
    second = entered.enter(key, 0.0)
    with pytest.raises(ApiError) as crowded:
        second.charge(2, 10, 0.0)
    assert crowded.value.status == 429
    with pytest.raises(ApiError) as never:
        second.charge(5, 10, 0.0)
    assert (never.value.status, never.value.param) == (400, "n")
    first.end(2.0)
    second.charge(4, 10, 2.0)


def test_tenant_is_bounded_whatever_keys_it_has_and_others_are_not_touched() -> None:
    made = ring(("a", "one", Allowance()), ("b", "one", Allowance()), ("c", "two", Allowance()))
    entered = quotas(KeyRing(made.keys, {}, Allowance(concurrent_max=2)))
    entered.enter(ApiKey("a", b"", "one"), 0.0)
    entered.enter(ApiKey("b", b"", "one"), 0.0)
    for flooding in ("a", "b"):
        with pytest.raises(ApiError) as caught:
            entered.enter(ApiKey(flooding, b"", "one"), 0.0)
        assert "tenant 'one'" in caught.value.message
    entered.enter(ApiKey("c", b"", "two"), 0.0)


def test_what_was_taken_outlives_a_change_of_keys() -> None:
    entered = quotas(ring(("a", "t", Allowance(requests_per_minute=1))))
    passage = entered.enter(ApiKey("a", b"", "t"), 0.0)
    entered.follow(ring(("a", "t", Allowance(requests_per_minute=1, concurrent_max=1))), 0.0)
    with pytest.raises(ApiError):
        entered.enter(ApiKey("a", b"", "t"), 0.0)
    with pytest.raises(ApiError, match="at a time"):
        entered.enter(ApiKey("a", b"", "t"), 60.0)
    passage.end(61.0)
    entered.enter(ApiKey("a", b"", "t"), 61.0)


def test_headers_tell_of_the_nearest_limit() -> None:
    made = ring(("a", "t", Allowance(requests_per_minute=100, tokens_per_minute=1000)), t=Allowance(60))
    passage = quotas(made).enter(ApiKey("a", b"", "t"), 0.0)
    passage.charge(1, 250, 0.0)
    assert passage.headers(0.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "15s",
    }
    assert Passage().headers(0.0) == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s")]
)
def test_durations_are_spelled_as_clients_know_them(seconds: float, text: str) -> None:
    assert spelled(seconds) == text


class Passages(RuleBasedStateMachine):
    """Whatever comes, charges, ends and changes: nothing is counted twice, or for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.open: list[Passage] = []
        self.quotas = Quotas()
        self.follow(5, 8)

    @rule(key_max=st.integers(1, 6), tenant_max=st.integers(1, 8))
    def follow(self, key_max: int, tenant_max: int) -> None:
        allowance = Allowance(concurrent_max=key_max)
        made = ring(("a", "t", allowance), ("b", "t", allowance), t=Allowance(concurrent_max=tenant_max))
        self.quotas.follow(made, self.now)

    @rule(name=st.sampled_from("ab"))
    def enter(self, name: str) -> None:
        try:
            self.open.append(self.quotas.enter(ApiKey(name, b"", "t"), self.now))
        except ApiError as error:
            if error.status != 429:
                raise

    @precondition(lambda self: self.open)
    @rule(data=st.data(), choices=st.integers(1, 5))
    def charge(self, data: st.DataObject, choices: int) -> None:
        passage = data.draw(st.sampled_from(self.open))
        if passage.choices == 1:
            before = [quota.running for quota in passage.quotas]
            try:
                passage.charge(choices, 1, self.now)
            except ApiError:
                assert [quota.running for quota in passage.quotas] == before

    @precondition(lambda self: self.open)
    @rule(data=st.data(), pause_s=st.floats(0, 5))
    def end(self, data: st.DataObject, pause_s: float) -> None:
        self.now += pause_s
        self.open.remove(passage := data.draw(st.sampled_from(self.open)))
        passage.end(self.now)

    @invariant()
    def running_is_what_is_open(self) -> None:
        for name in "ab":
            of_key = [each for each in self.open if each.key is not None and each.key.name == name]
            for passage in of_key:
                assert passage.quotas[0].running == sum(each.choices for each in of_key)
                assert passage.quotas[1].running == sum(each.choices for each in self.open)


TestPassages = Passages.TestCase
