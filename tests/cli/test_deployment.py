from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.errors import OperatorError
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.instance import Role
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.core.step import StepRules
from hyperflexis.gateway.limits import Limits


def test_service_classes_without_configuration() -> None:
    assert Deployment().service_classes() == {"default": ServiceClass("default")}


def test_service_classes_are_in_seconds() -> None:
    deployment = Deployment.model_validate(
        {"classes": {"code": {"ttft_ms": 500, "tpot_ms": 100, "priority": 1}, "default": {"e2e_ms": 60_000}}}
    )
    assert deployment.service_classes() == {
        "default": ServiceClass("default", Slo(e2e_s=60.0)),
        "code": ServiceClass("code", Slo(ttft_s=0.5, tpot_s=0.1), 1),
    }


@pytest.mark.parametrize("limit_ms", [0.001, 86_400_000])
def test_every_target_that_is_allowed_makes_a_promise(limit_ms: float) -> None:
    deployment = Deployment.model_validate(
        {"classes": {"a": dict.fromkeys(("ttft_ms", "tpot_ms", "e2e_ms"), limit_ms)}}
    )
    assert deployment.service_classes()["a"].slo.ttft_s == limit_ms / 1000


def test_every_class_says_what_share_of_it_is_to_be_kept() -> None:
    deployment = Deployment.model_validate({"classes": {"batch": {"e2e_ms": 60_000, "attainment_min": 0.9}}})
    assert deployment.attainment_min() == {"default": 0.99, "batch": 0.9}
    for share in (0.0, 1.0):
        with pytest.raises(ValidationError):
            Deployment.model_validate({"classes": {"batch": {"attainment_min": share}}})


def test_default_class_must_exist() -> None:
    assert Deployment.model_validate({"classes": {"a": {}}, "default_class": "a"}).default_class == "a"
    with pytest.raises(ValidationError, match="one of the classes: a, default"):
        Deployment.model_validate({"classes": {"a": {}}, "default_class": "b"})


def test_nothing_is_coerced() -> None:
    for slip in ({"instances": True}, {"instances": "2"}, {"port": 8000.0}, {"host": 1}, {"drain_timeout_s": "30"}):
        with pytest.raises(ValidationError):
            Deployment.model_validate(slip)


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperflexis.cli.deployment._cores", lambda: 8)
    assert Deployment(instances=3).threads == 2
    assert Deployment(instances=16).threads == 1
    assert Deployment(instances=3, threads_per_instance=5).threads == 5

    assert Deployment(prefill=1, decode=3).threads == 2


@pytest.mark.parametrize(
    ("given", "total", "mixed"),
    [
        ({}, 2, 2),
        ({"instances": 5}, 5, 5),
        ({"prefill": 1, "decode": 2}, 3, 0),
        ({"prefill": 1, "instances": 4}, 4, 3),
        ({"decode": 1, "instances": 4}, 4, 3),
        ({"prefill": 1, "decode": 2, "instances": 4}, 4, 1),
    ],
)
def test_instances_beyond_those_with_roles_are_mixed(given: dict[str, int], total: int, mixed: int) -> None:
    deployment = Deployment.model_validate(given)
    assert (deployment.instances_total, deployment.mixed) == (total, mixed)
    fleet = deployment.fleet()
    assert (fleet.instances_min, fleet.instances_max) == (total, total)
    counts = {role: fleet.ranges[role].min if role in fleet.ranges else 0 for role in (Role.MIXED, Role.PREFILL)}
    assert counts == {Role.MIXED: mixed, Role.PREFILL: given.get("prefill", 0)}


def test_what_is_to_be_kept_of_a_class_sizes_the_fleet_where_it_is_said() -> None:
    classes = {"chat": {"ttft_ms": 500, "attainment_min": 0.999}, "batch": {"attainment_min": 0.9}, "code": {}}
    for scaling in ({"max": 4}, {}):
        fleet = Deployment.model_validate({"classes": classes, "scaling": scaling}).fleet()
        assert fleet.late_shares == pytest.approx({"chat": 0.001, "batch": 0.1})


@pytest.mark.parametrize(
    ("given", "moves", "plans"),
    [
        ({}, False, False),
        ({"prefill": 1, "decode": 1}, True, False),
        ({"prefill": 1, "decode": 1, "roles": "planned"}, True, True),
        ({"roles": "planned"}, True, True),
        ({"prefill": 1, "decode": 1, "policy": "distserve"}, True, False),
        ({"prefill": 1, "decode": 1, "policy": "arrow"}, True, True),
        ({"policy": "round_robin"}, False, False),
    ],
)
def test_policy_moves_requests_where_instances_have_roles(given: dict[str, object], moves: bool, plans: bool) -> None:
    policy = Deployment.model_validate(given).core_policy()
    assert (policy.binder is not None, policy.planner is not None) == (moves, plans)
    assert policy.name == given.get("policy", "hyperflexis")


@pytest.mark.parametrize("policy", ["hyperflexis", "tokenscale"])
def test_bound_on_steps_holds_in_every_role(policy: str) -> None:
    given = {"policy": policy, "prefill": 1, "decode": 1, "engine": {"step_ms_max": 25.0}}
    made = Deployment.model_validate(given).core_policy()
    assert [made.rules_of(role).step_s_max for role in Role] == [0.025] * 3
    assert Deployment(policy=policy, prefill=1, decode=1).core_policy().rules.step_s_max == math.inf


def test_gateway_limits_are_in_bytes() -> None:
    limits = Deployment.model_validate({"limits": {"body_mib": 0.5, "stream_buffer_kib": 3}}).gateway_limits()
    assert (limits.body_bytes_max, limits.stream_backlog_bytes_max) == (2**19, 3072)


def test_defaults_are_those_of_the_parts() -> None:
    """A default that is told here and in the part it configures is the same number."""
    deployment = Deployment()
    assert deployment.gateway_limits() == Limits()
    assert deployment.engine.prefill_tokens_max == StepRules().prefill_tokens_max
    requests_max = inspect.signature(ControlPlane).parameters["requests_max"].default
    assert deployment.limits.requests_max == requests_max


def test_kv_cache_bytes() -> None:
    assert Deployment().kv_cache_bytes is None
    assert Deployment.model_validate({"engine": {"kv_cache_gib": 0.5}}).kv_cache_bytes == 2**29


def test_public_name(tmp_path: Path) -> None:
    (tmp_path / "small-model").mkdir()
    assert Deployment().public_name == "demo"
    assert Deployment(model="owner/name").public_name == "owner/name"
    assert Deployment(model=f"{tmp_path}/small-model/").public_name == "small-model"
    assert Deployment(model="owner/name", served_name="mine").public_name == "mine"


def test_model_source(tmp_path: Path) -> None:
    demo = Deployment().model_source()
    assert isinstance(demo, Path)
    assert demo.name == "demo_model"
    assert Deployment(model=str(tmp_path)).model_source() == tmp_path
    assert Deployment(model="owner/name").model_source() == "owner/name"


@pytest.mark.parametrize("model", ["./absent", "/absent", "~/absent", "a/b/c", "../absent"])
def test_model_source_of_an_absent_directory(model: str) -> None:
    with pytest.raises(OperatorError, match="no model directory") as caught:
        Deployment(model=model).model_source()
    assert caught.value.hint
