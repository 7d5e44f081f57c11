"""The Kubernetes manifest, without a cluster: fields that exist, of the right kind, and parts that fit together.

FIELDS is what the manifest may use, written down from the custom resource definition of RayCluster v1
(helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml of ray-project/kuberay, Apache-2.0, commit
feeaf72facab4881ba2b179248bb67315634e229) and from Kubernetes' own apps/v1 and v1. Whoever uses a further field adds it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperflexis.cli import keys, sources

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "examples" / "kuberay.yaml"

ANY_NAME = "*"
"""Stands for a name that the operator chooses."""
REQUIRED = "!"
"""After a field that must be there."""
QUANTITIES = {"cpu": str, "memory": str, "nvidia.com/gpu": str}
PROBE = {
    "httpGet": {"path": str, "port": (str, int)},
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "failureThreshold": int,
}
CONTAINER = {
    "name!": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name!": str, "value": str}],
    "ports": [{"name": str, "containerPort!": int}],
    "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
}
POD = {
    "metadata": {"labels": {ANY_NAME: str}},
    "spec": {
        "containers!": [CONTAINER],
        "terminationGracePeriodSeconds": int,
        "volumes": [
            {
                "name!": str,
                "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
                "secret": {"secretName": str},
            }
        ],
    },
}
FIELDS: dict[str, Any] = {
    "ray.io/v1 RayCluster": {
        "rayVersion": str,
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": {"idleTimeoutSeconds": int, "upscalingMode": str},
        "headGroupSpec!": {"rayStartParams": {ANY_NAME: str}, "template!": POD},
        "workerGroupSpecs": [
            {
                "groupName!": str,
                "replicas": int,
                "minReplicas!": int,
                "maxReplicas!": int,
                "rayStartParams": {ANY_NAME: str},
                "template!": POD,
            }
        ],
    },
    "apps/v1 Deployment": {
        "replicas": int,
        "strategy": {"type": str},
        "selector!": {"matchLabels": {ANY_NAME: str}},
        "template!": POD,
    },
    "v1 Service": {
        "selector": {ANY_NAME: str},
        "ports": [{"name": str, "port!": int, "targetPort": (str, int)}],
    },
}


def wrong(value: Any, kind: Any, path: str) -> Iterator[str]:
    """One line for each field that does not exist, is missing, or holds something else than it should."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{path} is no mapping"
            return
        known = {name.removesuffix(REQUIRED): inner for name, inner in kind.items()}
        yield from (
            f"{path}.{name[:-1]} is missing" for name in kind if name.endswith(REQUIRED) and name[:-1] not in value
        )
        for name, inner in value.items():
            if name in known or ANY_NAME in known:
                yield from wrong(inner, known.get(name, known.get(ANY_NAME)), f"{path}.{name}")
            else:
                yield f"{path}.{name} does not exist"
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{path} is no list"
            return
        for index, inner in enumerate(value):
            yield from wrong(inner, kind[0], f"{path}[{index}]")
    elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        yield f"{path} is {value!r}"


def wrong_in(document: dict[str, Any]) -> list[str]:
    kind = f"{document['apiVersion']} {document['kind']}"
    return list(wrong(document["spec"], FIELDS[kind], document["kind"]))


@pytest.fixture
def documents() -> dict[str, dict[str, Any]]:
    with MANIFEST.open(encoding="utf-8") as file:
        return {document["kind"]: document for document in yaml.safe_load_all(file)}


def container(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = document["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_every_field_exists_and_holds_what_it_should(documents: dict[str, dict[str, Any]]) -> None:
    assert [line for document in documents.values() for line in wrong_in(document)] == []


def test_the_check_bites(documents: dict[str, dict[str, Any]]) -> None:
    cluster = deepcopy(documents["RayCluster"])
    (group,) = cluster["spec"]["workerGroupSpecs"]
    del group["maxReplicas"]
    group["replicas"] = "2"
    group["template"]["spec"]["container"] = []
    assert wrong_in(cluster) == [
        "RayCluster.workerGroupSpecs[0].maxReplicas is missing",
        "RayCluster.workerGroupSpecs[0].replicas is '2'",
        "RayCluster.workerGroupSpecs[0].template.spec.container does not exist",
    ]


def test_parts_fit_together(documents: dict[str, dict[str, Any]]) -> None:
    deployment, service = documents["Deployment"]["spec"], documents["Service"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert service["selector"].items() <= labels.items()
    ports = {port["name"] for port in container(documents["Deployment"])["ports"]}
    assert {port["targetPort"] for port in service["ports"]} <= ports


def test_volumes_that_are_mounted_are_there(documents: dict[str, dict[str, Any]]) -> None:
    groups = documents["RayCluster"]["spec"]["workerGroupSpecs"]
    for pod in [documents["Deployment"]["spec"]["template"]["spec"], *(group["template"]["spec"] for group in groups)]:
        mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_command_is_one_that_serve_understands(documents: dict[str, dict[str, Any]]) -> None:
    (line,) = container(documents["Deployment"])["args"]
    joining, serving = (shlex.split(part) for part in line.split("&&"))
    head = f"{documents['RayCluster']['metadata']['name']}-head-svc:6379"
    assert joining[:3] == ["ray", "start", f"--address={head}"]
    assert serving[:3] == ["exec", "hyperflexis", "serve"]
    words = iter(serving[4:])
    sets, flags = [], {}
    for flag in words:
        value = next(words)
        key = {each.dotted.replace(".", "-").replace("_", "-"): each.dotted for each in keys.all_keys()}
        if flag == "--set":
            sets.append(value)
        else:
            flags[key[flag.removeprefix("--")]] = (flag, value)
    deployment = sources.load(flags=flags, sets=sets).deployment
    assert (deployment.launcher, deployment.ray.address) == ("ray", head)
    (group,) = documents["RayCluster"]["spec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert float(worker["resources"]["requests"]["cpu"]) >= deployment.ray.cpus_per_instance
    assert group["maxReplicas"] >= deployment.instances_total >= group["minReplicas"]


def test_versions_are_those_that_the_tests_run_with(documents: dict[str, dict[str, Any]]) -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert documents["RayCluster"]["spec"]["rayVersion"] == pinned[1]
