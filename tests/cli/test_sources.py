"""Who wins, who is named as the source, and what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.cli import keys, sources
from hyperflexis.cli.deployment import ClassSection
from hyperflexis.cli.errors import OperatorError
from hyperflexis.core.fleet import Range
from hyperflexis.core.instance import Role
from hyperflexis.policies import POLICIES


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "# a comment\n"
        "port: 1\n"
        "engine:\n"
        "  block_tokens: 32\n"
        "  seqs_max: 8\n"
        "classes: {code: {ttft_ms: 500, tpot_ms: 100, priority: 1}, chat: {}}\n",
        encoding="utf-8",
    )
    return file


def _error(text: str, tmp_path: Path, **others: object) -> OperatorError:
    file = tmp_path / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(OperatorError) as caught:
        sources.load(config=file, **others)  # type: ignore[arg-type]
    return caught.value


def _message(text: str, tmp_path: Path) -> str:
    return _error(text, tmp_path).message.replace(f"{tmp_path}/", "")


def _bad(dotted: str, line: int, rest: str) -> str:
    return f"bad value for '{dotted}' in serve.yaml:{line}: {rest}"


# Who wins.


def test_nothing_given_is_the_defaults() -> None:
    settings = sources.load()
    assert settings.deployment.port == 8000
    assert settings.sources == {}


def test_each_source_wins_over_the_one_before(config: Path) -> None:
    env = {"HYPERFLEXIS_PORT": "2"}
    flags = {"port": ("--port", "3")}
    assert sources.load(config=config).deployment.port == 1
    assert sources.load(config=config, env=env).deployment.port == 2
    assert sources.load(config=config, env=env, flags=flags).deployment.port == 3
    assert sources.load(config=config, env=env, flags=flags, sets=["port=4"]).deployment.port == 4
    assert sources.load(sets=["port=4", "port=5"]).deployment.port == 5


def test_sources_merge_key_by_key(config: Path) -> None:
    env = {"HYPERFLEXIS_ENGINE__BLOCK_TOKENS": "64", "HYPERFLEXIS_CLASSES__CODE__TTFT_MS": "700"}
    settings = sources.load(config=config, env=env, sets=["engine={prefill_tokens_max: 512}", "classes.batch={}"])
    engine = settings.deployment.engine
    assert (engine.block_tokens, engine.seqs_max, engine.prefill_tokens_max) == (64, 8, 512)
    assert settings.deployment.classes == {
        "code": ClassSection(ttft_ms=700, tpot_ms=100, priority=1),
        "chat": ClassSection(),
        "batch": ClassSection(),
    }


def test_every_value_keeps_its_source(config: Path) -> None:
    env = {"HYPERFLEXIS_ENGINE__SEQS_MAX": "4", "HYPERFLEXIS_DTYPE": "float32"}
    flags = {"model": ("MODEL", "a/b")}
    found = sources.load(config=config, env=env, flags=flags, sets=["instances=1"]).sources
    assert {".".join(path): str(source).replace(f"{config.parent}/", "") for path, source in found.items()} == {
        "port": "serve.yaml:2",
        "engine.block_tokens": "serve.yaml:4",
        "engine.seqs_max": "env HYPERFLEXIS_ENGINE__SEQS_MAX",
        "classes.code.ttft_ms": "serve.yaml:6",
        "classes.code.tpot_ms": "serve.yaml:6",
        "classes.code.priority": "serve.yaml:6",
        "classes.chat": "serve.yaml:6",
        "dtype": "env HYPERFLEXIS_DTYPE",
        "model": "flag MODEL",
        "instances": "flag --set",
    }


def test_config_file_may_be_named_by_the_environment(config: Path) -> None:
    assert sources.load(env={"HYPERFLEXIS_CONFIG": str(config)}).deployment.port == 1
    assert sources.load(config=config, env={"HYPERFLEXIS_CONFIG": "/absent"}).deployment.port == 1


# Spellings that must work.


@pytest.mark.parametrize(
    "text",
    ["", "# only a comment\n", "engine:\n", "classes:\n", "engine: {}\nlimits:\n  # body_mib: 1\n", "model: null\n"],
)
def test_empty_sections_change_nothing(text: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    assert sources.load(config=file).deployment == sources.load().deployment


def test_class_without_targets_may_be_bare(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("classes:\n  batch:\n", encoding="utf-8")
    assert sources.load(config=file).deployment.classes == {"batch": ClassSection()}


def test_yaml_anchors_and_merges(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "classes:\n"
        "  a: &a {ttft_ms: 300, priority: 1}\n"
        "  b: &b {<<: *a, priority: 2}\n"
        "  c: *b\n"
        "  d: {<<: *b, ttft_ms: 400}\n",
        encoding="utf-8",
    )
    assert sources.load(config=file).deployment.classes == {
        "a": ClassSection(ttft_ms=300, priority=1),
        "b": ClassSection(ttft_ms=300, priority=2),
        "c": ClassSection(ttft_ms=300, priority=2),
        "d": ClassSection(ttft_ms=400, priority=2),
    }


def test_text_keys_take_text_as_it_stands() -> None:
    env = {"HYPERFLEXIS_SERVED_NAME": "1e3", "HYPERFLEXIS_MODEL": "yes"}
    deployment = sources.load(env=env, sets=["host=::1"]).deployment
    assert (deployment.served_name, deployment.model, deployment.host) == ("1e3", "yes", "::1")


def test_null_takes_a_value_back(config: Path) -> None:
    sets = ["classes.code.ttft_ms=null", "served_name=null"]
    deployment = sources.load(config=config, env={"HYPERFLEXIS_SERVED_NAME": "x"}, sets=sets).deployment
    assert (deployment.classes["code"].ttft_ms, deployment.served_name) == (None, None)


def test_empty_variables_count_as_absent() -> None:
    assert sources.load(env={"HYPERFLEXIS_PORT": "", "HYPERFLEXIS_CONFIG": ""}).sources == {}


def test_variables_that_kubernetes_sets_for_a_service_are_not_ours() -> None:
    env = {
        "HYPERFLEXIS_SERVICE_HOST": "10.0.0.1",
        "HYPERFLEXIS_SERVICE_PORT": "8000",
        "HYPERFLEXIS_SERVICE_PORT_HTTP": "8000",
        "HYPERFLEXIS_PORT": "tcp://10.0.0.1:8000",
        "HYPERFLEXIS_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "HYPERFLEXIS_PORT_8000_TCP_ADDR": "10.0.0.1",
        "HYPERFLEXIS_CANARY_PORT": "tcp://10.0.0.2:8000",
    }
    assert sources.load(env=env).sources == {}


def test_where_traces_lie_is_no_key_of_a_deployment() -> None:
    assert sources.load(env={"HYPERFLEXIS_TRACES": "/somewhere"}).sources == {}


@pytest.mark.parametrize("shorter", ["ttft_ms", "tpot_ms"])
def test_promises_that_contradict_each_other_are_refused(shorter: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"classes:\n  chat:\n    {shorter}: 500\n    e2e_ms: 400\n", encoding="utf-8")
    with pytest.raises(OperatorError) as caught:
        sources.load(config=file)
    assert caught.value.message == (
        f"class 'chat' in {file}:4 contradicts itself: e2e_ms 400 is shorter than {shorter} 500"
    )


def _example(key: keys.Key) -> str:
    """A value of the key's type that is not its default."""
    examples = {"device": "cpu", "policy": "round_robin", "dtype": "float16", "default_class": "a_class"}
    examples |= {"attach": "[http://a:8000]"}
    examples |= {"roles": "planned", "launcher": "ray", "ray.strategy": "pack"}
    examples |= {"ray.address": "10.0.0.1:6379", "ray.gpus_per_instance": "0.5"}
    examples |= dict.fromkeys(("weights.donors", "weights.lend_on"), "one:9000")
    examples |= {"tracing.endpoint": "http://127.0.0.1:4318", "tracing.sample_share": "0.5", "dashboard": "false"}
    examples |= {"classes.<name>.attainment_min": "0.5"}
    kind = keys.kind_at(key.path)
    by_kind = {int: "7", float: "7", bool: "true"}
    return examples.get(key.dotted) or by_kind.get(kind, "text")


@pytest.mark.parametrize("key", keys.all_keys(), ids=lambda key: key.dotted)
def test_every_key_has_a_twin_in_the_environment_and_a_set(key: keys.Key) -> None:
    dotted, variable = key.dotted.replace("<name>", "a_class"), key.env.replace("<NAME>", "A_CLASS")
    path, text = tuple(dotted.split(".")), _example(key)
    # A number of instances that is given, and one that follows demand, exclude each other.
    follows_demand = path[0] == "scaling" and path[1] not in ("prefill_max", "decode_max")
    size, size_env = ("scaling.max", "SCALING__MAX") if follows_demand else ("instances", "INSTANCES")
    if path[0] == "attach":  # They are counted.
        size, size_env = "port", "PORT"
    env = {f"HYPERFLEXIS_{size_env}": "9", variable: text, "HYPERFLEXIS_CLASSES__A_CLASS": "{}"}
    by_env = sources.load(env=env)
    by_set = sources.load(sets=[f"{size}=9", "classes={a_class: {}}", f"{dotted}={text}"])
    without = sources.load(sets=[f"{size}=9", "classes.a_class={}"])
    assert by_env.deployment == by_set.deployment != without.deployment
    assert str(by_env.sources[path]) == f"env {variable}"
    assert str(by_set.sources[path]) == "flag --set"


# Mistakes.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("instnces: 2\n", "unknown key 'instnces' in serve.yaml:1: did you mean 'instances'?"),
        (
            "port: 1\nengine:\n  seq_max: 2\n",
            "unknown key 'engine.seq_max' in serve.yaml:3: did you mean 'engine.seqs_max'?",
        ),
        ("seqs_max: 2\n", "unknown key 'seqs_max' in serve.yaml:1: did you mean 'engine.seqs_max'?"),
        ("quux: 2\n", "unknown key 'quux' in serve.yaml:1"),
        ("port: 70000\n", _bad("port", 1, "70000 should be less than or equal to 65535")),
        ("port: http\n", _bad("port", 1, "'http' should be a valid integer")),
        ("instances: yes\n", _bad("instances", 1, "True should be a valid integer")),
        ("\nhost: 1\n", _bad("host", 2, "1 should be text; quote it")),
        ("dtype: half\n", _bad("dtype", 1, "'half' should be 'auto', 'float32', 'bfloat16' or 'float16'")),
        ("policy: fifo\n", _bad("policy", 1, f"'fifo' should be one of the policies: {', '.join(sorted(POLICIES))}")),
        ("device: GPU 1\n", _bad("device", 1, "'GPU 1' should be a device such as auto, cpu, cuda or cuda:1")),
        ("classes:\n  a: {ttft_ms: -1}\n", _bad("classes.a.ttft_ms", 2, "-1 should be greater than or equal to 0.001")),
        ("classes:\n  a: {ttft_ms: .inf}\n", _bad("classes.a.ttft_ms", 2, "inf should be a finite number")),
        (
            "classes:\n  a b: {}\n",
            "bad name 'a b' in serve.yaml:2: a class name is 1 to 64 letters, digits, '-' or '_'",
        ),
        ("classes: [a]\n", _bad("classes", 1, "['a'] should be a mapping of names")),
        ("limits: 3\n", _bad("limits", 1, "3 should be a mapping of connections_max, head_timeout_s, body_timeout_s,")),
        ("default_class: a\n", _bad("default_class", 1, "'a' should be one of the classes: default")),
        ("port: 1\nport: 2\n", "serve.yaml:2: 'port' is given twice, first in line 1"),
        ("engine:\n  seqs_max: 1\n  seqs_max: 1\n", "serve.yaml:3: 'seqs_max' is given twice, first in line 2"),
        ("classes:\n  on: {}\n", "serve.yaml:2: a key should be text, this one reads as True"),
        ("port: 1\n bad: [\n", "serve.yaml:2: not YAML: mapping values are not allowed here"),
        ("a: *b\n", "serve.yaml:1: not YAML: found undefined alias 'b'"),
        (
            "port: !!python/object:os.system 1\n",
            "serve.yaml:1: not YAML: could not determine a constructor for the tag 'tag:yaml.org",
        ),
        ("port: 2026-13-41\n", "serve.yaml:1: not YAML: month must be in 1..12"),
        ("{{ port }}\n", "serve.yaml:1: a key should be text, this one reads as"),
        ("- port\n", "serve.yaml:1: should hold 'key: value' lines"),
        ("just words\n", "serve.yaml:1: should hold 'key: value' lines"),
    ],
)
def test_mistake_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    assert _message(text, tmp_path).startswith(message)
    assert "\n" not in _message(text, tmp_path)


MOVE = "arrow, distserve, dynamo_pd, hyperflexis, llumnix_pd, splitwise, taichi, tokenscale"
NO_DECODE = "instances that prefill, and none that decodes: add decode or mixed ones"
NO_PREFILL = "instances that decode, and none that prefills: add prefill or mixed ones"
PLAN = "arrow, hyperflexis, llumnix_pd, splitwise, tokenscale"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "port: 1\nprefill: 2\n",
            f"prefill in serve.yaml:2: a fleet of {NO_DECODE}",
        ),
        (
            "decode: 2\n",
            f"decode in serve.yaml:1: a fleet of {NO_PREFILL}",
        ),
        (
            "decode: 1\ninstances: 1\n",
            f"decode in serve.yaml:1: a fleet of {NO_PREFILL}",
        ),
        (
            "prefill: 2\ndecode: 1\ninstances: 2\n",
            "instances in serve.yaml:3: 2 are fewer than prefill 2 and decode 1",
        ),
        ("prefill: 2\ninstances: 1\n", "instances in serve.yaml:2: 1 are fewer than prefill 2"),
        ("prefill: -1\n", _bad("prefill", 1, "-1 should be greater than or equal to 0")),
        ("roles: any\n", _bad("roles", 1, "'any' should be 'fixed' or 'planned'")),
        ("kv_checksums: 1\n", _bad("kv_checksums", 1, "1 should be a valid boolean")),
        (
            "prefill: 1\ndecode: 1\npolicy: round_robin\n",
            f"policy in serve.yaml:3: round_robin keeps each request on one instance; these move them: {MOVE}",
        ),
        (
            "policy: round_robin\nroles: planned\n",
            f"policy in serve.yaml:1: round_robin keeps each request on one instance; these move them: {MOVE}",
        ),
        (
            "policy: distserve\nroles: planned\n",
            f"policy in serve.yaml:1: distserve changes no roles; these do: {PLAN}",
        ),
    ],
)
def test_fleet_that_could_not_serve(text: str, message: str, tmp_path: Path) -> None:
    assert _message(text, tmp_path) == message


def test_all_that_a_fleet_lacks_is_told_at_once(tmp_path: Path) -> None:
    error = _error("prefill: 1\npolicy: round_robin\nclasses: {a: {ttft_ms: 2, e2e_ms: 1}}\n", tmp_path)
    assert [line.split(" in ")[0] for line in error.message.splitlines()] == ["class 'a'", "prefill", "policy"]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    error = _error("instnces: 2\nport: x\n", tmp_path, env={"HYPERFLEXIS_DTYPE": "half"})
    assert [line.split(" in ")[0] for line in sorted(error.message.splitlines())] == [
        "bad value for 'dtype'",
        "bad value for 'port'",
        "unknown key 'instnces'",
    ]
    assert error.hint == "`hyperflexis config show` prints every key and its value"


def test_mistakes_name_the_variable_or_flag() -> None:
    given = [
        ({"env": {"HYPERFLEXIS_PROT": "1"}}, "unknown key 'prot' in HYPERFLEXIS_PROT: did you mean 'port'?"),
        ({"env": {"HYPERFLEXIS_PORT": "x"}}, "bad value for 'port' in HYPERFLEXIS_PORT: 'x' should be a valid integer"),
        (
            {"env": {"HYPERFLEXIS_CLASSES": "{a"}},
            "HYPERFLEXIS_CLASSES: not YAML: expected ',' or '}', but got '<stream end>'",
        ),
        ({"flags": {"port": ("--port", "x")}}, "bad value for 'port' in --port: 'x' should be a valid integer"),
        ({"sets": ["engine.block=1"]}, "unknown key 'engine.block' in --set: did you mean 'engine.block_tokens'?"),
        ({"sets": ["instances"]}, "--set 'instances' should be KEY=VALUE"),
        ({"sets": ["engine..a=1"]}, "--set 'engine..a=1' should be KEY=VALUE"),
    ]
    for arguments, message in given:
        with pytest.raises(OperatorError) as caught:
            sources.load(**arguments)  # type: ignore[arg-type]
        assert caught.value.message == message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in [
        ("absent.yaml", "No such file or directory"),
        (".", "Is a directory"),
        ("binary.yaml", "is not UTF-8 text"),
        ("nul\0.yaml", "null byte"),
    ]:
        with pytest.raises(OperatorError, match=message):
            sources.load(config=tmp_path / name)


@given(text=st.text())
def test_no_text_of_a_file_ends_in_a_stack_trace(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8", newline="")
    try:
        sources.load(config=file)
    except OperatorError as error:
        assert error.message  # noqa: PT017 either outcome is right, a stack trace is not


@given(assignment=st.text(), key=st.sampled_from([key.dotted for key in keys.all_keys()]), value=st.text())
def test_no_text_of_a_flag_ends_in_a_stack_trace(assignment: str, key: str, value: str) -> None:
    for text in (assignment, f"{key}={value}", f"classes={value}"):
        try:
            sources.load(sets=[text])
        except OperatorError as error:
            assert error.message  # noqa: PT017 either outcome is right, a stack trace is not


# Servers that are attached.


def attached(**values: object) -> str:
    """What is wrong with that beside servers that are attached."""
    sets = [f"{name}={value}" for name, value in values.items()]
    with pytest.raises(OperatorError) as raised:
        sources.load(sets=["attach=[http://a:1, http://b:2]", *sets])
    return raised.value.message


def test_attached_servers_are_urls_or_mappings() -> None:
    one = sources.load(env={"HYPERFLEXIS_ATTACH": "http://a:8000/v1/"}).deployment.attach
    assert [each.url for each in one] == ["http://a:8000"]
    two = sources.load(sets=["attach=[http://a:1, {url: 'https://b', role: decode, kv_tokens: 5}]"]).deployment.attach
    assert [(each.url, each.role, each.kv_tokens) for each in two] == [
        ("http://a:1", "mixed", None),
        ("https://b", "decode", 5),
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instances": 3}, "instances in --set: the instances are the servers of attach"),
        ({"prefill": 1}, "prefill in --set: the instances are the servers of attach"),
        ({"launcher": "ray"}, "launcher in --set: servers of attach run already"),
        ({"scaling.max": 4}, "there are as many instances as servers in attach"),
        ({"attach": "[http://a:1, http://a:1/]"}, "http://a:1 stands there more than once"),
        ({"attach": "[{url: 'http://a:1', role: prefill}]"}, "instances that prefill, and none that decodes"),
        ({"attach": "[a:1]"}, "should be the address of a server, such as http://10.0.0.2:8000"),
        ({"attach": "[{url: 'http://a:1', roll: prefill}]"}, "unknown key 'attach.0.roll'"),
    ],
)
def test_what_contradicts_attached_servers_is_refused(values: dict[str, object], said: str) -> None:
    assert said in attached(**values)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["scaling.min=4", "scaling.max=3"], "scaling.max in --set: 3 is less than scaling.min, 4"),
        (["scaling.max=3", "instances=2"], "instances in --set: the number of instances follows scaling.min"),
        (["scaling.max=3", "prefill=1"], "prefill in --set: the number of instances follows scaling.min"),
        (["scaling.dry_run=true"], "scaling.dry_run in --set: needs scaling.max"),
        (["scaling.min=2", "scaling.max=3", "scaling.cost_per_hour_max=1"], "does not pay for scaling.min, 2 at 1"),
        (["scaling.max=3", "policy=round_robin"], "round_robin keeps the number of instances as it is"),
        (["scaling.max=3", "scaling.decode_max=3"], "scaling.max in --set: it is about mixed instances"),
        (["prefill=3", "decode=1", "scaling.prefill_max=2"], "scaling.prefill_max in --set: 2 is less than prefill, 3"),
        (["scaling.min=2", "prefill=1", "scaling.decode_max=3"], "scaling.min in --set: it is about mixed instances"),
        (["prefill=1", "scaling.decode_max=3", "roles=planned"], "roles in --set: planned roles would change"),
        (["scaling.prefill_max=2"], "a fleet of instances that prefill, and none that decodes"),
        (["prefill=1", "scaling.decode_max=2", "policy=kpa"], "kpa sizes instances of one role only"),
        (
            ["prefill=2", "decode=1", "scaling.decode_max=2", "scaling.cost_per_hour_max=2.5"],
            "does not pay for the fewest instances, 3 at 1",
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(sets: list[str], said: str) -> None:
    with pytest.raises(OperatorError) as caught:
        sources.load(sets=sets)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["launcher=ray"], "only instances of launcher local can be kept, not those of ray"),
        (["launcher=vllm"], "only instances of launcher local can be kept, not those of vllm"),
        (["attach=http://a:1"], "servers of attach are found again by their addresses"),
    ],
)
def test_only_instances_of_our_own_are_kept(sets: list[str], said: str) -> None:
    assert sources.load(sets=["keep.path=kept"]).deployment.keep.timeout_s == 60.0
    with pytest.raises(OperatorError, match=r"keep\.path in --set: ") as caught:
        sources.load(sets=["keep.path=kept", *sets])
    assert said in str(caught.value)


def test_bounds_of_mixed_instances_and_of_roles() -> None:
    together = sources.load(sets=["scaling.min=0", "scaling.max=4"]).deployment.fleet()
    assert together.ranges == {Role.MIXED: Range(0, 4)}
    given_apart = ["instances=4", "prefill=1", "decode=2", "scaling.prefill_max=3"]
    apart = sources.load(sets=given_apart).deployment
    assert apart.fleet().ranges == {Role.PREFILL: Range(1, 3), Role.MIXED: Range(1, 1), Role.DECODE: Range(2, 2)}
    assert (apart.instances_min, apart.instances_total) == (4, 6)
    none = sources.load(sets=["scaling.prefill_max=3", "scaling.decode_max=5"]).deployment
    assert none.fleet().ranges == {Role.PREFILL: Range(0, 3), Role.DECODE: Range(0, 5)}
    assert (none.instances_min, none.instances_total, none.moving) == (0, 8, "fixed")
