from __future__ import annotations

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hyperflexis.cli import keys, sources
from hyperflexis.cli.deployment import MS_MAX, MS_MIN, PRIORITY_MAX, PRIORITY_MIN, Deployment, contradictions
from hyperflexis.cli.show import render
from hyperflexis.cli.sources import Settings

lines = st.text(min_size=1).filter(lambda text: text.isprintable() and text.strip() == text)
names = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=64)
targets = st.none() | st.floats(MS_MIN, MS_MAX)
classes = st.fixed_dictionaries(
    {},
    optional={
        "ttft_ms": targets,
        "tpot_ms": targets,
        "e2e_ms": targets,
        "priority": st.integers(PRIORITY_MIN, PRIORITY_MAX),
    },
)


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    named = draw(st.dictionaries(names, classes, max_size=4))
    return Deployment.model_validate(
        {
            "model": draw(st.none() | lines),
            "served_name": draw(st.none() | lines),
            "instances": draw(st.integers(1, 1024)),
            "roles": draw(st.sampled_from(["fixed", "planned"])),
            "kv_checksums": draw(st.booleans()),
            "device": draw(st.sampled_from(["auto", "cpu", "cuda:3"])),
            "dtype": draw(st.sampled_from(["auto", "float32", "bfloat16", "float16"])),
            "threads_per_instance": draw(st.none() | st.integers(1, 999)),
            "host": draw(lines),
            "port": draw(st.integers(0, 65535)),
            "engine": {"kv_cache_gib": draw(st.none() | st.floats(0.001, 1e6)), "seqs_max": draw(st.integers(1))},
            "limits": {"body_mib": draw(st.floats(0.001, 1e6)), "priority_max": draw(st.integers(0, PRIORITY_MAX))},
            "classes": named,
            "default_class": draw(st.sampled_from(["default", *named])),
            "drain_timeout_s": draw(st.floats(0, 86_400)),
        }
    )


@given(deployment=deployments().filter(lambda made: not contradictions(made.classes, lambda *path: "")))
def test_what_is_shown_loads_again(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "shown.yaml"
    file.write_text(render(Settings(deployment, {})), encoding="utf-8")
    assert sources.load(config=file).deployment == deployment


def test_attached_servers_are_shown_as_they_load_again(tmp_path: Path) -> None:
    urls = ["http://a:8000", {"url": "http://b:8000", "role": "decode"}, {"url": "http://c:8000", "role": "prefill"}]
    given_deployment = Deployment.model_validate({"attach": urls})
    file = tmp_path / "shown.yaml"
    file.write_text(render(Settings(given_deployment, {})), encoding="utf-8")
    shown = sources.load(config=file).deployment
    assert shown == given_deployment
    assert (shown.instances_total, shown.prefills, shown.decodes, shown.mixed) == (3, 1, 1, 1)


@given(deployment=deployments())
def test_every_key_is_shown_once_and_only_sections_lack_a_source(deployment: Deployment) -> None:
    shown = render(Settings(deployment, {}))
    assert yaml.safe_load(shown) == deployment.model_dump()
    bare = [line.strip() for line in shown.splitlines() if " # " not in line]
    assert sorted(bare) == sorted(_quoted(each) for each in _headings(deployment))


def _headings(section: BaseModel) -> list[str]:
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found += [name, *_headings(value)]
        elif isinstance(value, dict) and value:
            found += [name, *value]
    return found


def _quoted(name: str) -> str:
    return next(iter(yaml.safe_dump({name: None}, width=999).split(" null")))


def test_comments_are_aligned_and_name_the_source(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nclasses:\n  chat: {ttft_ms: 250.0, tpot_ms: 0.5}\n", encoding="utf-8")
    settings = sources.load(
        config=file,
        env={"HYPERFLEXIS_DTYPE": "float32"},
        flags={"instances": ("--instances", "1")},
        sets=["threads_per_instance=3", "limits.body_mib=0.25"],
    )
    assert render(settings).replace(str(file), "serve.yaml").splitlines() == [
        "model: null                 # default: the demo model",
        "served_name: null           # default: demo",
        "instances: 1                # flag --instances",
        "prefill: 0                  # default",
        "decode: 0                   # default",
        "roles: fixed                # default",
        "kv_checksums: false         # default",
        "device: auto                # default",
        "dtype: float32              # env HYPERFLEXIS_DTYPE",
        "threads_per_instance: 3     # flag --set",
        "host: 127.0.0.1             # default",
        "port: 1                     # serve.yaml:1",
        "policy: hyperflexis         # default",
        "launcher: local             # default",
        "attach: []                  # default",
        "vllm:",
        "  passes_kv: false          # default",
        "  kv_lease_s: 30            # default",
        "  api_key_file: null        # default",
        "  health_ms: 1000           # default",
        "  metrics_ms: 100           # default",
        "  silence_timeout_s: 10     # default",
        "  changes_over_http: false  # default",
        "  command: vllm serve       # default",
        "  args: ''                  # default",
        "  gpus_per_instance: 1      # default",
        "  first_port: 8100          # default",
        "ray:",
        "  address: null             # default: that of the cluster around this machine",
        "  cpus_per_instance: 1      # default",
        "  gpus_per_instance: null   # default: 1 if the cluster has any",
        "  strategy: auto            # default",
        "  start_timeout_s: 600      # default",
        "  silence_timeout_s: 10     # default",
        "engine:",
        "  block_tokens: 16          # default",
        "  kv_cache_gib: null        # default: what the device has free",
        "  seqs_max: 256             # default",
        "  prefill_tokens_max: 2048  # default",
        "  step_ms_max: null         # default",
        "  silence_timeout_s: 30     # default",
        "  profile: null             # default",
        "scaling:",
        "  min: 1                    # default",
        "  max: null                 # default",
        "  prefill_max: null         # default",
        "  decode_max: null          # default",
        "  asleep_max: 0             # default",
        "  prices:",
        "    active_per_hour: 1      # default",
        "    asleep_per_hour: 0.25   # default",
        "  cost_per_hour_max: null   # default",
        "  start_timeout_s: 600      # default",
        "  dry_run: false            # default",
        "weights:",
        "  donors: null              # default",
        "  lend_on: null             # default",
        "  token_file: null          # default",
        "  lend_gb_per_s: null       # default",
        "keep:",
        "  path: null                # default",
        "  timeout_s: 60             # default",
        "auth:",
        "  keys_file: null           # default",
        "  serves_anyone: false      # default",
        "  per_tenant_max: 1000      # default",
        "admin:",
        "  host: 127.0.0.1           # default",
        "  port: null                # default",
        "tls:",
        "  cert_file: null           # default",
        "  key_file: null            # default",
        "  client_ca_file: null      # default",
        "limits:",
        "  connections_max: 10000    # default",
        "  head_timeout_s: 10        # default",
        "  body_timeout_s: 60        # default",
        "  idle_timeout_s: 75        # default",
        "  body_mib: 0.25            # flag --set",
        "  stream_buffer_kib: 1024   # default",
        "  requests_max: 10000       # default",
        "  priority_max: 100         # default",
        "journal:",
        "  path: null                # default",
        "  size_mib_max: 1024        # default",
        "tracing:",
        "  endpoint: null            # default",
        "  sample_share: 1           # default",
        "dashboard: true             # default",
        "classes:",
        "  chat:",
        "    ttft_ms: 250            # serve.yaml:3",
        "    tpot_ms: 0.5            # serve.yaml:3",
        "    e2e_ms: null            # default",
        "    priority: 0             # default",
        "    refuse_late: false      # default",
        "    attainment_min: 0.99    # default",
        "default_class: default      # default",
        "drain_timeout_s: 30         # default",
    ]


def test_a_long_value_does_not_push_the_comments_away() -> None:
    shown = render(sources.load(sets=[f"model={'m' * 200}"])).splitlines()
    assert shown[0] == f"model: {'m' * 200}  # flag --set"
    assert shown[2] == "instances: null             # default: 2 here"


def test_all_keys_are_shown() -> None:
    shown = render(sources.load(sets=["classes.x={}"]))
    assert all(f"{key.path[-1]}:" in shown for key in keys.all_keys())
