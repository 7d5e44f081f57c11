"""The scenario file: what it says, and what is said of a mistake in it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from hyperflexis.cli import kv_sizes, scenario
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.scenario import ScenarioFile
from hyperflexis.core.instance import Role
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.slo import ServiceClass, Slo

TEXT = """\
classes: {code: {ttft_ms: 500, tpot_ms: 100, priority: 1}, chat: {ttft_ms: 2000, tpot_ms: 50}}
fleet: {mixed: 4}                      # or {prefill: 2, decode: 3}
profile: llama-3-70b/h100/tp4/bfloat16
workload:
  - {trace: azure_llm_2023_code_part1.csv.gz, class: code, rate: 2.0, window_s: [0, 1200]}
  - {trace: azure_llm_2023_conv_part1.csv.gz, class: chat, rate: 2.0, window_s: [0, 1200]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def _error(file: Path, *sets: str, text: str | None = None) -> OperatorError:
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(OperatorError) as caught:
        _use(scenario.load(file, sets))
    return caught.value


def _message(file: Path, *sets: str, text: str | None = None) -> str:
    return _error(file, *sets, text=text).message.replace(f"{file.parent}/", "")


def _use(loaded: ScenarioFile) -> tuple[Any, ...]:
    return loaded.profile(), loaded.bounds()


# What it says.


def test_scenario_of_the_documentation_loads(file: Path) -> None:
    loaded = scenario.load(file)
    assert loaded.scenario.service_classes() == {
        "code": ServiceClass("code", Slo(0.5, 0.1), 1),
        "chat": ServiceClass("chat", Slo(2.0, 0.05), 0),
    }
    assert loaded.instances == 4
    assert loaded.profile().kv_tokens == 423_874
    code, chat = loaded.scenario.workload
    assert (code.trace, code.class_name, code.rate, code.window_s) == (
        "azure_llm_2023_code_part1.csv.gz",
        "code",
        2.0,
        [0, 1200],
    )
    assert (chat.class_name, chat.requests_per_s) == ("chat", None)
    assert (loaded.scenario.policy, loaded.scenario.seed, loaded.scenario.noise) == ("hyperflexis", 0, 0.0)
    assert loaded.text == TEXT


def test_fleet_may_have_roles(file: Path) -> None:
    loaded = scenario.load(file, ["fleet={prefill: 1, decode: 2}"])
    assert (loaded.instances, loaded.roles(), loaded.moving) == (3, (Role.PREFILL, Role.DECODE, Role.DECODE), "fixed")
    loaded = scenario.load(file, ["fleet.prefill=1"])
    assert (loaded.roles(), loaded.moving) == ((Role.PREFILL, *[Role.MIXED] * 4), "fixed")
    loaded = scenario.load(file, ["fleet.roles=planned"])
    assert (loaded.roles(), loaded.moving) == ((Role.MIXED,) * 4, "planned")
    assert scenario.load(file).moving == "keeps"
    fleet = scenario.load(file).scenario.fleet
    assert (fleet.link_gb_s, fleet.link_latency_ms) == (40, 5)


def test_kv_of_a_token_is_known_of_shipped_profiles(file: Path) -> None:
    from hyperflexis.sim.profiles import names

    assert scenario.load(file).kv_token_bytes(is_needed=True) == 327_680
    assert all(kv_sizes.token_bytes(name) for name in names())
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "derive_profiles.py"))
    assert {name: size.kv_bytes for name, size in script["SIZES"].items()} == {
        name: kv_sizes.token_bytes(name) for name in script["SIZES"]
    }


def test_kv_of_a_token_of_other_profiles_has_to_be_given(file: Path) -> None:
    (file.parent / "own.json").write_text(json.dumps(FIELDS), encoding="utf-8")
    loaded = scenario.load(file, ["profile=own.json"])
    assert loaded.kv_token_bytes(is_needed=False) == 0
    with pytest.raises(OperatorError, match=r"'engine\.kv_token_bytes' is missing in .*'own\.json' does not") as caught:
        loaded.kv_token_bytes(is_needed=True)
    assert caught.value.hint
    given = scenario.load(file, ["profile=own.json", "engine.kv_token_bytes=7"])
    assert given.kv_token_bytes(is_needed=True) == 7


def test_kv_of_a_token_is_taken_from_a_profile_that_says_it(file: Path) -> None:
    (file.parent / "own.json").write_text(json.dumps(FIELDS | {"kv_token_bytes": 9}), encoding="utf-8")
    assert scenario.load(file, ["profile=own.json"]).kv_token_bytes(is_needed=True) == 9
    assert scenario.load(file, ["profile=own.json", "engine.kv_token_bytes=7"]).kv_token_bytes(is_needed=True) == 7


def test_key_without_a_value_is_not_given(file: Path) -> None:
    file.write_text(TEXT + "engine:\n  # seqs_max: 4\nseed:\n", encoding="utf-8")
    assert scenario.load(file).scenario.engine == scenario.SimulatedEngineSection()
    assert scenario.load(file, ["classes.batch=", "fleet.mixed=2"]).scenario.classes["batch"].ttft_ms is None


def test_set_changes_any_key(file: Path) -> None:
    sets = ["fleet.mixed=8", "workload.1.rate=3", "classes.code.ttft_ms=700", "engine.seqs_max=4", "policy=round_robin"]
    loaded = scenario.load(file, sets)
    assert loaded.instances == 8
    assert loaded.scenario.workload[1].rate == 3
    assert loaded.scenario.classes["code"].ttft_ms == 700
    assert loaded.scenario.engine.seqs_max == 4
    assert loaded.scenario.policy == "round_robin"
    assert loaded.sets == tuple(sets)
    assert scenario.load(file, ["workload.1={trace: a.csv, class: chat}"]).scenario.workload[1].trace == "a.csv"
    assert scenario.load(file, ["workload.0.rate=2", "workload.0.rate="]).scenario.workload[0].rate == 1


def test_anchors_and_merges_are_read(file: Path) -> None:
    text = TEXT.replace("  - {trace: azure_llm_2023_code_part1.csv.gz,", "  - &a {trace: x.csv,")
    file.write_text(text + "  - {<<: *a, rate: 5}\n", encoding="utf-8")
    assert [stream.rate for stream in scenario.load(file).scenario.workload] == [2, 2, 5]


def test_truth_is_scaled_and_the_profile_is_not(file: Path) -> None:
    latency = LatencyModel(1, 2, 3, 4, 5, 6)
    assert scenario.load(file).truth(latency) is None
    loaded = scenario.load(file, ["latency_scale.prefill=2", "latency_scale.decode=0.5"])
    assert loaded.truth(latency) == LatencyModel(2, 1, 6, 8, 2.5, 3)


FIELDS = {
    "latency": {
        "prefill_base_s": 0.01,
        "decode_base_s": 0.01,
        "prefill_token_s": 1e-5,
        "prefill_pair_s": 0,
        "decode_seq_s": 0,
        "context_token_s": 0,
    },
    "kv_tokens": 1000,
}


@pytest.mark.parametrize("name", ["own.json", "own.yaml", "sub/own.yml"])
def test_profile_file_is_found_beside_the_scenario(name: str, file: Path) -> None:
    own = file.parent / name
    own.parent.mkdir(exist_ok=True)
    own.write_text(json.dumps(FIELDS), encoding="utf-8")  # JSON is YAML
    assert scenario.load(file, [f"profile={name}"]).profile().kv_tokens == 1000
    assert scenario.load(file, [f"profile={own}"]).profile().kv_tokens == 1000


def test_bands_name_their_classes(file: Path) -> None:
    sets = ["workload.0={trace: a, class_by_prompt_tokens: [{up_to: 100, class: code}, {class: chat}]}"]
    (stream, _) = scenario.load(file, sets).scenario.workload
    assert [name for _, name in stream.classes] == ["code", "chat"]


# What is said of a mistake.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mixed: 4", "mixd: 4", "unknown key 'fleet.mixd' in s.yaml:2: did you mean 'fleet.mixed'?"),
        ("profile:", "prfile:", "'profile' is missing in s.yaml"),
        ("rate: 2.0", "rat: 2.0", "unknown key 'workload.0.rat' in s.yaml:5: did you mean 'workload.0.rate'?"),
        (
            "ttft_ms: 500",
            "ttft: 500",
            "unknown key 'classes.code.ttft' in s.yaml:1: did you mean 'classes.code.ttft_ms'?",
        ),
        ("trace: azure_llm_2023_code_part1.csv.gz, ", "", "'workload.0.trace' is missing in s.yaml:5"),
        (
            "ttft_ms: 500",
            "ttft_ms: -5",
            "bad value for 'classes.code.ttft_ms' in s.yaml:1: -5 should be greater than or equal to 0.001",
        ),
        ("rate: 2.0", "rate: 0", "bad value for 'workload.0.rate' in s.yaml:5: 0 should be greater than 0"),
        ("rate: 2.0", "rate: .nan", "bad value for 'workload.0.rate' in s.yaml:5: nan should be a finite number"),
        ("rate: 2.0", "rate: fast", "bad value for 'workload.0.rate' in s.yaml:5: 'fast' should be a valid number"),
        (
            "[0, 1200]",
            "[1200, 0]",
            "bad value for 'workload.0.window_s' in s.yaml:5: [1200, 0] should be "
            "[start, end] in seconds with 0 <= start < end",
        ),
        (
            "rate: 2.0",
            "rate: 2.0, requests_per_s: 3",
            "bad value for 'workload.0' in s.yaml:5: has 'rate' and 'requests_per_s', which say the same thing twice",
        ),
        (
            "mixed: 4",
            "mixed: 0",
            "bad value for 'fleet.mixed' in s.yaml:2: 0 should be a number of instances "
            "from 1 to 10000, or {min: 1, max: 8}",
        ),
        (
            "mixed: 4",
            "mixed: yes",
            "bad value for 'fleet.mixed' in s.yaml:2: True should be a number of "
            "instances from 1 to 10000, or {min: 1, max: 8}",
        ),
        ("mixed: 4", "mixed: {min: 1}", "'fleet.mixed.max' is missing in s.yaml:2"),
        (
            "{mixed: 4}",
            "{}",
            "bad value for 'fleet' in s.yaml:2: should be {mixed: 4}, or {prefill: 2, decode: 3}, or all of these",
        ),
        (
            "{mixed: 4}",
            "{prefill: 4}",
            "bad value for 'fleet' in s.yaml:2: has instances that prefill, and none that decodes: "
            "add decode or mixed ones",
        ),
        (
            "{mixed: 4}",
            "{decode: 4}",
            "bad value for 'fleet' in s.yaml:2: has instances that decode, and none that prefills: "
            "add prefill or mixed ones",
        ),
        (
            "mixed: 4",
            "mixed: 4, roles: any",
            "bad value for 'fleet.roles' in s.yaml:2: 'any' should be 'fixed' or 'planned'",
        ),
        (
            "mixed: 4",
            "mixed: 4, link_gb_s: 0",
            "bad value for 'fleet.link_gb_s' in s.yaml:2: 0 should be greater than 0",
        ),
        ("{mixed: 4}", "4", "bad value for 'fleet' in s.yaml:2: 4 should be a mapping of keys"),
        (
            "{mixed: 4}",
            "{prefill: 2, decode: {min: 1, max: 8}, roles: planned}",
            "bad value for 'fleet' in s.yaml:2: can change its size with planned roles if all instances begin as mixed "
            "ones",
        ),
        (
            "{mixed: 4}",
            "{mixed: {min: 4, max: 3}}",
            "bad value for 'fleet.mixed' in s.yaml:2: should have a max of at least min, 4, not 3",
        ),
        (
            "mixed: 4",
            "mixed: {min: 4, max: 8}, cost_per_hour_max: 3",
            "fleet in s.yaml:2: 4 instances cost 4 per hour, and 3 are allowed",
        ),
        (
            "mixed: 4",
            "mixed: 4, prices: {active_per_hour: -1}",
            "bad value for 'fleet.prices.active_per_hour' in s.yaml:2: -1 should be greater than or equal to 0",
        ),
        (
            "mixed: 4",
            "mixed: 4, startup_s: {tape: 3}",
            "bad value for 'fleet.startup_s' in s.yaml:2: should be seconds, or a table by source: sleeper, peer, "
            "cache, disk",
        ),
        ("profile: llama-3-70b/h100/tp4/bfloat16", "profile: '?'", "profile in s.yaml:3: no profile or file '?'"),
        (
            "profile: llama-3-70b/h100/tp4/bfloat16",
            "profile: a.json",
            "profile in s.yaml:3: cannot read 'a.json': No such file or directory",
        ),
        ("class: chat", "class: chatt", "class 'chatt' in s.yaml:6 has no entry in classes; there are: code, chat"),
        (
            "class: chat",
            "class: 'a b'",
            "bad value for 'workload.1.class' in s.yaml:6: 'a b' a class name is 1 to 64 letters, digits, '-' or '_'",
        ),
        (
            "tpot_ms: 100",
            "e2e_ms: 300",
            "class 'code' in s.yaml:1 contradicts itself: e2e_ms 300 is shorter than ttft_ms 500",
        ),
        ("tpot_ms: 50", "tpot_ms: 50, tpot_ms: 60", "s.yaml:1: 'tpot_ms' is given twice, first in line 1"),
        (
            "workload:",
            "policy: hyperflexi\nworkload:",
            "bad value for 'policy' in s.yaml:4: 'hyperflexi' unknown policy 'hyperflexi'; there are: {policies}",
        ),
        ("workload:", "noise: 1\nworkload:", "bad value for 'noise' in s.yaml:4: 1 should be less than 1"),
        (
            "workload:",
            "seed: -1\nworkload:",
            "bad value for 'seed' in s.yaml:4: -1 should be greater than or equal to 0",
        ),
        (
            "workload:",
            "engine: {block_token: 4}\nworkload:",
            "unknown key 'engine.block_token' in s.yaml:4: did you mean 'engine.block_tokens'?",
        ),
        (
            "workload:",
            "latency_scale: {decode: 0}\nworkload:",
            "bad value for 'latency_scale.decode' in s.yaml:4: 0 should be greater than 0",
        ),
        (
            "class: code",
            "class_by_prompt_tokens: [{class: code}, {class: chat}]",
            "bad value for 'workload.0.class_by_prompt_tokens' in s.yaml:5: [{'class': "
            "'code'}, {'class': 'chat'}] should be bands of growing 'up_to', the last "
            "one without it",
        ),
        (
            "class: code",
            "class_by_prompt_tokens: [{up_to: 9, class: code}, {class: x}]",
            "class 'x' in s.yaml:5 has no entry in classes; there are: code, chat",
        ),
    ],
)
def test_mistake_is_one_sentence_with_its_line(file: Path, old: str, new: str, message: str) -> None:
    from hyperflexis.policies import POLICIES

    assert old in TEXT
    expected = message.replace("{policies}", ", ".join(sorted(POLICIES)))
    assert expected in _message(file, text=TEXT.replace(old, new, 1)).splitlines()


def test_every_mistake_is_told_at_once(file: Path) -> None:
    message = _message(file, "seed=x", "noise=7", "workload.0.rate=-1")
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'fleet' is missing in s.yaml\n'profile' is missing in s.yaml\n'workload' is missing in s.yaml"),
        ("- a\n", "s.yaml:1: should hold 'key: value' lines"),
        ("a: [\n", "s.yaml:2: not YAML: expected the node content, but found '<stream end>'"),
        ("1: 2\n", "s.yaml:1: a key should be text, this one reads as 1"),
        ("fleet: &a {mixed: *a}\n", "s.yaml:1: nested deeper than 16 levels"),
    ],
)
def test_file_that_is_no_scenario(file: Path, text: str, message: str) -> None:
    assert _message(file, text=text) == message


def test_absent_file(file: Path) -> None:
    assert _message(file.parent / "absent.yaml") == "cannot read 'absent.yaml': No such file or directory"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set 'seed' should be KEY=VALUE"),
        ("=3", "--set '=3' should be KEY=VALUE"),
        ("workload.2.rate=1", "--set 'workload.2.rate=1': there is no item '2', the list has 0 to 1"),
        ("workload.x=1", "--set 'workload.x=1': there is no item 'x', the list has 0 to 1"),
        ("sed=3", "unknown key 'sed' in --set: did you mean 'seed'?"),
        ("seed=x", "bad value for 'seed' in --set: 'x' should be a valid integer"),
        ("seed=[", "--set: not YAML: expected the node content, but found '<stream end>'"),
        ("workload=[]", "bad value for 'workload' in --set: [] should have an item"),
        ("classes.a b={}", "bad name 'a b' in --set: a class name is 1 to 64 letters, digits, '-' or '_'"),
    ],
)
def test_bad_assignment(file: Path, assignment: str, message: str) -> None:
    assert _message(file, assignment) == message


def test_profile_file_with_a_mistake_is_named(file: Path) -> None:
    (file.parent / "own.yaml").write_text("kv_tokens: 3\n", encoding="utf-8")
    assert _message(file, "profile=own.yaml") == "profile in --set: own.yaml: the profile lacks latency"
    latency = {**FIELDS["latency"], "decode_seq_s": -1}  # type: ignore[dict-item]
    (file.parent / "own.json").write_text(json.dumps({**FIELDS, "latency": latency}), encoding="utf-8")
    assert _message(file, "profile=own.json") == (
        "profile in --set: own.json: decode_seq_s must be a non-negative number of seconds, not -1.0"
    )
