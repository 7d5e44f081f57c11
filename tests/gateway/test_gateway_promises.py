"""What is asked for in every dialect, and what is granted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from gateway_fakes import CLASSES
from multidict import CIMultiDict

from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.gateway.access import ApiKey
from hyperflexis.gateway.backend import Offer
from hyperflexis.gateway.errors import ApiError
from hyperflexis.gateway.openai_types import ChatBody
from hyperflexis.gateway.promises import Granted, grant


def resolve(headers: dict[str, str], body: dict[str, Any], **options: Any) -> Granted:
    spelled = msgspec.json.decode(msgspec.json.encode({"messages": [], **body}), type=ChatBody)
    return grant(CIMultiDict(headers), spelled, Offer((), CLASSES), **options)


INTERACTIVE = Granted("interactive", 5, 0.2, 0.03)

RESOLVED: list[tuple[str, dict[str, str], dict[str, Any], Granted]] = [
    ("nothing", {}, {}, Granted("default", 0)),
    ("nulls", {}, {"service_tier": None, "slo": None, "nvext": None}, Granted("default", 0)),
    ("tier auto", {}, {"service_tier": "auto"}, Granted("default", 0)),
    ("tier default", {}, {"service_tier": "default"}, Granted("default", 0)),
    ("tier", {}, {"service_tier": "interactive"}, INTERACTIVE),
    ("objective", {"x-llm-d-inference-objective": "interactive"}, {}, INTERACTIVE),
    ("objective alias", {"X-Gateway-Inference-Objective": "interactive"}, {}, INTERACTIVE),
    ("objective over tier", {"x-llm-d-inference-objective": "interactive"}, {"service_tier": "batch"}, INTERACTIVE),
    (
        "canonical objective over alias",
        {"x-gateway-inference-objective": "batch", "x-llm-d-inference-objective": "interactive"},
        {},
        INTERACTIVE,
    ),
    ("canonical ttft", {"x-llm-d-slo-ttft-ms": "250"}, {}, Granted("default", 0, ttft_s=0.25)),
    ("decimals", {"x-llm-d-slo-tpot-ms": " 12.5 "}, {}, Granted("default", 0, tpot_s=0.0125)),
    ("aliases", {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "20"}, {}, Granted("default", 0, 0.25, 0.02)),
    ("e2e", {"x-slo-e2e-ms": "2000"}, {}, Granted("default", 0, e2e_s=2.0)),
    ("canonical over alias", {"x-slo-ttft-ms": "1", "x-llm-d-slo-ttft-ms": "250"}, {}, Granted("default", 0, 0.25)),
    ("header over body", {"x-slo-ttft-ms": "250"}, {"slo": {"ttft_ms": 1}}, Granted("default", 0, 0.25)),
    (
        "body",
        {},
        {"slo": {"ttft_ms": 250, "tpot_ms": 20.5, "e2e_ms": 2000}},
        Granted("default", 0, 0.25, 0.0205, 2.0),
    ),
    ("dynamo", {}, {"extra_args": {"ttft_target": 250, "itl_target": 20}}, Granted("default", 0, 0.25, 0.02)),
    ("dynamo under nvext", {}, {"nvext": {"extra_args": {"itl_target": 20}}}, Granted("default", 0, tpot_s=0.02)),
    ("dynamo in nvext", {}, {"nvext": {"ttft_target": 250}}, Granted("default", 0, 0.25)),
    ("ours over dynamo", {}, {"slo": {"ttft_ms": 250}, "extra_args": {"ttft_target": 1}}, Granted("default", 0, 0.25)),
    (
        "explicit over class, target by target",
        {"x-llm-d-slo-ttft-ms": "1000"},
        {"service_tier": "interactive"},
        Granted("interactive", 5, 1.0, 0.03),
    ),
    (
        "clamped",
        {"x-llm-d-slo-ttft-ms": "1e30", "x-slo-tpot-ms": "9999999", "x-slo-e2e-ms": "99999999999"},
        {},
        Granted("default", 0, 3600.0, 60.0, 3600.0),
    ),
    ("body priority", {}, {"priority": 7}, Granted("default", 7)),
    ("dynamo hints", {}, {"nvext": {"agent_hints": {"priority": 7}}}, Granted("default", 7)),
    ("dynamo header", {"x-dynamo-request-priority": "-7"}, {"priority": 3}, Granted("default", -7)),
    ("sglang header", {"x-override-priority": "7"}, {}, Granted("default", 7)),
    ("smg word", {"x-smg-priority": "Interactive"}, {}, Granted("default", 10)),
    ("smg bulk", {"x-smg-priority": "bulk"}, {}, Granted("default", -10)),
    ("vllm serves lower first", {"X-Vllm-Priority": "-7"}, {}, Granted("default", 7)),
    ("priority over class", {}, {"service_tier": "interactive", "priority": 1}, Granted("interactive", 1, 0.2, 0.03)),
    ("huge priority", {}, {"priority": 2**62}, Granted("default", 2**31 - 1)),
]


@pytest.mark.parametrize(
    ("headers", "body", "granted"), [row[1:] for row in RESOLVED], ids=[row[0] for row in RESOLVED]
)
def test_promise_is_resolved(headers: dict[str, str], body: dict[str, Any], granted: Granted) -> None:
    assert resolve(headers, body) == granted


def test_asked_priorities_are_clamped_and_class_priorities_stand() -> None:
    assert resolve({}, {"priority": 9}, priority_max=3).priority == 3
    assert resolve({"x-smg-priority": "system"}, {}, priority_max=3).priority == 3
    assert resolve({}, {"priority": -9}, priority_max=3).priority == -9
    assert resolve({}, {"service_tier": "interactive"}, priority_max=3).priority == 5


def test_default_class_has_promises_too() -> None:
    classes = {"default": ServiceClass("default", Slo(ttft_s=1.0), priority=2)}
    body = msgspec.json.decode(b'{"messages": []}', type=ChatBody)
    assert grant(CIMultiDict(), body, Offer((), classes)) == Granted("default", 2, ttft_s=1.0)


def test_class_that_rather_hears_no_says_so_in_what_is_granted() -> None:
    classes = {"default": ServiceClass("default"), "picky": ServiceClass("picky", Slo(ttft_s=1.0), refuses_late=True)}
    for tier, refuses in (("picky", True), (None, False)):
        body = ChatBody(messages=[], service_tier=tier)
        assert grant(CIMultiDict(), body, Offer((), classes)).refuses_late is refuses


@pytest.mark.parametrize("tier", [None, "auto", "default"])
def test_another_class_may_be_the_default(tier: str | None) -> None:
    body = ChatBody(messages=[], service_tier=tier)
    assert grant(CIMultiDict(), body, Offer((), CLASSES, "interactive")) == INTERACTIVE


REFUSED: list[tuple[dict[str, str], dict[str, Any], str]] = [
    *(
        ({name: text}, {}, name)
        for name in ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms", "x-slo-e2e-ms")
        for text in ("", "fast", "0", "-5", "nan", "inf", "1e999", "1e-323", "1_000", "0x10", "12ms", "٣")
    ),
    ({}, {"slo": {"ttft_ms": 0}}, "slo.ttft_ms"),
    ({}, {"slo": {"tpot_ms": -1}}, "slo.tpot_ms"),
    ({}, {"extra_args": {"ttft_target": -1}}, "extra_args.ttft_target"),
    ({}, {"nvext": {"extra_args": {"itl_target": 0}}}, "nvext.extra_args.itl_target"),
    ({}, {"service_tier": "gold"}, "service_tier"),
    ({"x-llm-d-inference-objective": "gold"}, {}, "x-llm-d-inference-objective"),
    ({"x-dynamo-request-priority": "high"}, {}, "x-dynamo-request-priority"),
    ({"x-dynamo-request-priority": "1.5"}, {}, "x-dynamo-request-priority"),
    ({"X-Vllm-Priority": ""}, {}, "X-Vllm-Priority"),
    ({"x-vllm-priority": "9" * 5000}, {}, "X-Vllm-Priority"),
    ({"x-smg-priority": "urgent"}, {}, "x-smg-priority"),
]


@pytest.mark.parametrize(("headers", "body", "param"), REFUSED)
def test_malformed_wish_is_refused_by_name(headers: dict[str, str], body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        resolve(headers, body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_unknown_class_is_told_the_known_ones() -> None:
    with pytest.raises(ApiError, match="batch, default, interactive"):
        resolve({}, {"service_tier": "gold"})


def test_granted_fits_into_a_header() -> None:
    assert Granted("batch", -5, 0.2, 0.0305).header() == "class=batch, priority=-5, ttft-ms=200, tpot-ms=30.5"


# What a key may have.

RESTRICTED = ApiKey("k", b"", "t", classes=("batch", "interactive"))
LIMITED: list[tuple[str, ApiKey, dict[str, Any], Granted]] = [
    ("a key without limits", ApiKey("k", b"", "t"), {"service_tier": "interactive"}, INTERACTIVE),
    ("its first class, for the default is not its", RESTRICTED, {}, Granted("batch", -5, e2e_s=60.0)),
    ("a class of its own", RESTRICTED, {"service_tier": "interactive"}, INTERACTIVE),
    (
        "a fallback",
        ApiKey("k", b"", "t", classes=("batch",), fallback_class="batch"),
        {"service_tier": "interactive"},
        Granted("batch", -5, e2e_s=60.0),
    ),
    ("the default class", ApiKey("k", b"", "t", classes=("batch", "default")), {}, Granted("default", 0)),
    (
        "no tighter targets",
        RESTRICTED,
        {"service_tier": "interactive", "slo": {"ttft_ms": 1, "tpot_ms": 500, "e2e_ms": 1}},
        Granted("interactive", 5, 0.2, 0.5),
    ),
    ("no priority above the class's", RESTRICTED, {"priority": 50}, Granted("batch", -5, e2e_s=60.0)),
    ("a lower one", RESTRICTED, {"priority": -50}, Granted("batch", -50, e2e_s=60.0)),
    (
        "its own highest priority",
        ApiKey("k", b"", "t", classes=("batch",), priority_max=7),
        {"priority": 50},
        Granted("batch", 7, e2e_s=60.0),
    ),
    ("as all clients", ApiKey("k", b"", "t"), {"priority": 50}, Granted("default", 9)),
    ("more than all clients", ApiKey("k", b"", "t", priority_max=20), {"priority": 50}, Granted("default", 20)),
    (
        "own targets, where no classes are named",
        ApiKey("k", b"", "t"),
        {"slo": {"ttft_ms": 1}},
        Granted("default", 0, ttft_s=0.001),
    ),
]


@pytest.mark.parametrize(("name", "key", "body", "granted"), LIMITED, ids=[row[0] for row in LIMITED])
def test_grants_are_lowered_to_what_a_key_may_have(
    name: str, key: ApiKey, body: dict[str, Any], granted: Granted
) -> None:
    assert resolve({}, body, priority_max=9, key=key) == granted


def test_class_that_is_not_the_keys_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        resolve({}, {"service_tier": "default-not"}, key=RESTRICTED)
    assert caught.value.status == 400
    with pytest.raises(ApiError) as caught:
        resolve({"x-llm-d-inference-objective": "default"}, {}, key=RESTRICTED)
    assert (caught.value.status, caught.value.code) == (403, "class_not_allowed")
    assert "batch, interactive" in caught.value.message
