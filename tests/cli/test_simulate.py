"""`simulate` from words to files, on traces small enough to follow; and what is said when it cannot be done."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hyperflexis.cli import cells, simulate
from hyperflexis.cli.results import Cell
from hyperflexis.core.instance import Role
from hyperflexis.policies import POLICIES
from hyperflexis.sim import workload
from hyperflexis.sim.profiles import COEFFICIENTS

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

ROOT = Path(__file__).parent.parent.parent
TEXT = """\
classes: {code: {ttft_ms: 500, tpot_ms: 100, priority: 1}, chat: {ttft_ms: 2000, tpot_ms: 50}}
fleet: {mixed: 2}
profile: llama-3-70b/h100/tp4/bfloat16
workload:
  - {trace: code.jsonl, class: code}
  - {trace: chat.jsonl.gz, class: chat}
"""
ROW = [
    *("policy", "rate", "seed", "requests", "finished", "rejected", "attainment", "attainment_by_class"),
    *(
        "requests_by_class",
        "worst_minute",
        "goodput_rps",
        "ttft_s",
        "tpot_s",
        "e2e_s",
        "longest_ttft_s",
        "instance_seconds",
    ),
    *("asleep_seconds", "cost"),
    *("migrations", "role_changes", "scale_events", "sim_seconds", "cpu_seconds"),
]


def rows(count: int, every_s: float, **more: object) -> str:
    lines = (
        json.dumps({"at_s": index * every_s, "prompt_tokens": 300 + index, "output_tokens": 20, **more})
        for index in range(count)
    )
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "code.jsonl").write_text(rows(60, 0.5), encoding="utf-8")
    (tmp_path / "chat.jsonl.gz").write_bytes(gzip.compress(rows(30, 1.0).encode()))
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def _results(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)["results"]
    return found


def _without_cpu(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if "cpu_seconds" not in line)


# What comes out.


def test_table_is_for_people(run: Run, file: Path) -> None:
    code, out, err = run("simulate", str(file), "--policy", "round_robin")
    assert (code, err) == (0, "")
    head, line = out.splitlines()
    assert head.split()[:6] == ["policy", "rate", "seed", "requests", "rejected", "attained"]
    assert "code" in head
    assert "chat" in head
    assert line.split()[:7] == ["round_robin", "1", "0", "90", "0", "100", "%"]
    assert len(line) == len(head)


def test_json_has_a_row_for_each_policy_rate_and_seed(run: Run, file: Path) -> None:
    out_file = file.parent / "out.json"
    words = ("--policy", "round_robin,hyperflexis", "--rate", "0.5,2", "--seed", "3,4", "--json", str(out_file))
    code, out, err = run("simulate", str(file), *words)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 9
    found = _results(out_file.read_text(encoding="utf-8"))
    assert [(row["policy"], row["rate"], row["seed"]) for row in found] == [
        (policy, rate, seed) for policy in ("round_robin", "hyperflexis") for rate in (0.5, 2.0) for seed in (3, 4)
    ]
    for row in found:
        assert list(row) == ROW
        assert (row["requests"], row["finished"], row["rejected"]) == (90, 90, 0)
        assert list(row["attainment_by_class"]) == ["code", "chat"]
        assert list(row["ttft_s"]) == ["mean", "p50", "p90", "p99"]


def test_json_can_go_to_stdout(run: Run, file: Path) -> None:
    code, out, err = run("simulate", str(file), "--json", "-")
    assert (code, err) == (0, "")
    assert len(_results(out)) == 1


def test_equal_seeds_give_equal_bytes(run: Run, file: Path) -> None:
    words = ("simulate", str(file), "--set", "noise=0.1", "--set", "workload.0.rotate_s=random", "--json", "-")
    first, again = run(*words, "--seed", "7").out, run(*words, "--seed", "7").out
    other = run(*words, "--seed", "8").out
    assert _without_cpu(first) == _without_cpu(again)
    assert _results(first)[0]["ttft_s"] != _results(other)[0]["ttft_s"]


def test_rate_compresses_time(run: Run, file: Path) -> None:
    slow, fast = _results(run("simulate", str(file), "--rate", "1,10", "--json", "-").out)
    assert slow["sim_seconds"] == pytest.approx(30, rel=0.1)
    assert fast["sim_seconds"] < 5


def test_stream_asks_for_a_rate_and_the_flag_multiplies_it(run: Run, file: Path) -> None:
    words = ("simulate", str(file), "--set", "workload.0={trace: code.jsonl, class: code, requests_per_s: 4}")
    words += ("--set", "workload.1={trace: code.jsonl, class: chat, requests_per_s: 4}")
    slow, fast = _results(run(*words, "--rate", "1,2", "--json", "-").out)
    assert slow["sim_seconds"] == pytest.approx(15, rel=0.2)
    assert fast["sim_seconds"] == pytest.approx(7.5, rel=0.2)


def test_trace_names_the_classes_where_the_stream_does_not(run: Run, file: Path) -> None:
    named = [
        {"at_s": at_s, "prompt_tokens": 9, "output_tokens": 9, "class": ("code", "chat")[at_s % 2]}
        for at_s in range(10)
    ]
    (file.parent / "own.jsonl").write_text("\n".join(json.dumps(row) for row in named), encoding="utf-8")
    (row,) = _results(run("simulate", str(file), "--set", "workload=[{trace: own.jsonl}]", "--json", "-").out)
    assert row["attainment_by_class"] == {"code": 1.0, "chat": 1.0}
    assert row["requests"] == 10


def test_bands_give_classes_by_length(run: Run, file: Path) -> None:
    stream = "{trace: code.jsonl, class_by_prompt_tokens: [{up_to: 309, class: code}, {class: chat}]}"
    plan = _plan(file, f"workload=[{stream}]")
    jobs = list(workload.mix([cells.stream(plan, Cell("round_robin", 1.0, 0), 0)]))
    assert [job.service_class for job in jobs] == ["code"] * 10 + ["chat"] * 50


def test_true_latency_may_differ_from_the_profile(run: Run, file: Path) -> None:
    (plain,) = _results(run("simulate", str(file), "--json", "-").out)
    (slow,) = _results(run("simulate", str(file), "--set", "latency_scale.decode=3", "--json", "-").out)
    assert slow["tpot_s"]["p50"] == pytest.approx(3 * plain["tpot_s"]["p50"], rel=0.3)


def test_traces_are_found_in_folders_given_and_named(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (file.parent / "code.jsonl").rename(first / "code.jsonl")
    (file.parent / "chat.jsonl.gz").rename(second / "chat.jsonl.gz")
    assert run("simulate", str(file)).code == 2
    assert run("simulate", str(file), "--traces", str(first), "--traces", str(second)).code == 0
    monkeypatch.setenv("HYPERFLEXIS_TRACES", f"{first}{os.pathsep}{second}")
    assert run("simulate", str(file)).code == 0
    sets = ("--set", f"workload.0.trace={first}/code.jsonl", "--set", "workload.1.trace=second/chat.jsonl.gz")
    monkeypatch.delenv("HYPERFLEXIS_TRACES")
    assert run("simulate", str(file), *sets).code == 0


def test_folder_of_traces_is_no_key_of_a_deployment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERFLEXIS_TRACES", "/tmp")
    assert run("config", "show").code == 0


def test_sample_comes_with_the_package(run: Run, file: Path) -> None:
    streams = "[{trace: sample_code.jsonl.gz, window_s: [0, 30]}, {trace: sample_chat.jsonl.gz, window_s: [0, 30]}]"
    code, out, err = run("simulate", str(file), "--set", f"workload={streams}")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2


def test_bad_rows_are_skipped_and_counted(run: Run, file: Path) -> None:
    trace = file.parent / "code.jsonl"
    trace.write_text(rows(3, 1) + "{}\n" + rows(1, 1).replace('"at_s": 0', '"at_s": 9') + "x\n", encoding="utf-8")
    code, _, err = run("simulate", str(file))
    assert code == 2
    assert err.startswith(f"error: {trace}, line 4: ")
    code, out, err = run("simulate", str(file), "--skip-bad", "--rate", "1,2")
    assert (code, err) == (0, "2 bad rows of the traces were skipped\n")
    assert "34" in out.splitlines()[1].split()


def test_all_policies(run: Run, file: Path) -> None:
    assert {row["policy"] for row in _results(run("simulate", str(file), "--policy", "all", "--json", "-").out)} == {
        *POLICIES
    }


APART = ("--set", "fleet={prefill: 1, decode: 2}")


def test_requests_move_where_prefill_and_decode_are_apart(run: Run, file: Path) -> None:
    (row,) = _results(run("simulate", str(file), *APART, "--json", "-").out)
    assert (row["requests"], row["finished"], row["migrations"], row["role_changes"]) == (90, 90, 90, 0)
    (together,) = _results(run("simulate", str(file), "--set", "fleet.mixed=3", "--json", "-").out)
    assert together["migrations"] == 0


def test_slow_links_delay_what_moves(run: Run, file: Path) -> None:
    def tpot_s(*sets: str) -> float:
        words = [word for each in sets for word in ("--set", each)]
        (row,) = _results(run("simulate", str(file), *APART, *words, "--json", "-").out)
        found: float = row["tpot_s"]["p50"]
        return found

    assert tpot_s("fleet.link_latency_ms=500") > tpot_s() + 0.02
    assert tpot_s("fleet.link_gb_s=0.2") > tpot_s() + 0.02
    assert tpot_s("engine.kv_token_bytes=30_000_000") > tpot_s() + 0.005


def test_planned_roles_follow_demand(run: Run, file: Path) -> None:
    (row,) = _results(run("simulate", str(file), *APART, "--set", "fleet.roles=planned", "--json", "-").out)
    assert row["role_changes"] >= 2  # At least: what only decodes becomes mixed.


def test_all_policies_are_those_that_the_fleet_allows(run: Run, file: Path) -> None:
    found = _results(run("simulate", str(file), *APART, "--policy", "all", "--json", "-").out)
    names = {row["policy"] for row in found}
    assert {"hyperflexis", "distserve", "dynamo_pd"} <= names < {*POLICIES}
    assert "round_robin" not in names


def test_tuned_policies_keep_their_names(run: Run, file: Path) -> None:
    words = ("--policy", "polyserve:credit_spend_max=0,chunk=512,round_robin", "--json", "-")
    found = _results(run("simulate", str(file), *words).out)
    assert [row["policy"] for row in found] == ["polyserve:credit_spend_max=0,chunk=512", "round_robin"]


@pytest.mark.slow
def test_processes_change_nothing(run: Run, file: Path) -> None:
    words = ("simulate", str(file), "--seed", "0,1", "--set", "noise=0.1", "--json", "-")
    assert _without_cpu(run(*words, "--jobs", "2").out) == _without_cpu(run(*words).out)


@pytest.mark.slow
def test_error_in_a_process_is_told_as_ever(run: Run, file: Path) -> None:
    (file.parent / "code.jsonl").write_text("x\n" * 3, encoding="utf-8")
    alone, beside = (run("simulate", str(file), "--seed", "0,1", "--jobs", jobs) for jobs in ("1", "2"))
    assert alone == beside
    assert beside.code == 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_killed_process_is_told_of(file: Path, tmp_path: Path) -> None:
    """A worker that the system kills while it simulates, as it does when memory runs out.

    Not while it starts: killed with its task half read, the standard library's pool may wait for ever (cpython 94777).
    """
    words = ("simulate", str(file), "--seed", "0,1", "--jobs", "2", "--set", "workload.0.repeat=1000")
    program = tmp_path / "killer.py"
    program.write_text(
        "import multiprocessing, os, threading, time, sys\n"
        "from hyperflexis.cli.main import main\n"
        "def cpu_s(pid):\n"
        "    fields = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()\n"
        "    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')\n"
        "def kill():\n"
        "    while not (busy := [w for w in multiprocessing.active_children() if cpu_s(w.pid) > 2]): time.sleep(0.05)\n"
        "    busy[0].kill()\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
        "    sys.exit(main(sys.argv[1:]))\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == ("error: a process that simulates was killed\n\nhint: it may lack memory: lower --jobs\n")


@pytest.mark.slow
def test_hash_seed_changes_nothing(file: Path) -> None:
    words = (sys.executable, "-m", "hyperflexis", "simulate", str(file), "--policy", "all", "--json", "-")
    outs = [
        subprocess.run(
            words, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    ]
    assert _without_cpu(outs[0]) == _without_cpu(outs[1])


@pytest.mark.parametrize("name", ["scenario.yaml", "apart.yaml", "elastic.yaml"])
def test_example_simulates(name: str, run: Run) -> None:
    code, out, err = run("simulate", str(ROOT / "examples" / name))
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupt_ends_at_once_and_leaves_nothing(file: Path, jobs: str) -> None:
    words = ("simulate", str(file), "--seed", "0,1,2", "--jobs", jobs, "--set", "workload.0.repeat=1000000")
    # A session of its own, so that only the command itself is interrupted and has to end its workers.
    command = subprocess.Popen(
        [sys.executable, "-m", "hyperflexis", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(3)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=20)
    assert command.returncode not in (0, 2)
    assert out == ""
    assert "Traceback" not in err
    assert _is_gone(command.pid, within_s=10)


def _is_gone(group: int, within_s: float) -> bool:
    """Whether no process is left in a group."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


# What cannot be done.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "round_robn"), "unknown policy 'round_robn' in --policy: did you mean 'round_robin'?"),
        (("--policy", "zzz"), "bad value for --policy: unknown policy 'zzz'; there are: {policies}"),
        (("--policy", "round_robin:x=1"), "bad value for --policy: round_robin has "),
        (("--policy", "hyperflexis,"), "bad value for --policy: unknown policy ''"),
        (("--rate", "0"), "--rate '0' should be numbers above 0 with commas between them"),
        (("--rate", "1,x"), "--rate '1,x' should be numbers above 0 with commas between them"),
        (("--rate", "nan"), "--rate 'nan' should be numbers above 0 with commas between them"),
        (("--rate", ""), "--rate '' should be one or more values with commas between them"),
        (("--seed", "1.5"), "--seed '1.5' should be whole numbers from 0 with commas between them"),
        (("--seed", "-1"), "--seed '-1' should be whole numbers from 0 with commas between them"),
        (("--traces", "/absent"), "--traces '/absent' is no folder"),
        (("--json", "/absent/o.json"), "cannot write /absent/o.json: there is no directory /absent"),
        (("--report", "/absent/o.html"), "cannot write /absent/o.html: there is no directory /absent"),
        (
            ("--set", "fleet={prefill: 1, decode: 1}", "--policy", "round_robin"),
            "bad value for --policy: round_robin keeps each request on one instance; these move them: arrow, ",
        ),
        (
            ("--set", "fleet={prefill: 1, decode: 1}", "--set", "policy=round_robin"),
            "policy in --set: round_robin keeps each request on one instance; these move them: arrow, ",
        ),
        (
            ("--set", "fleet={prefill: 1, decode: 1}", "--policy", "hyperflexis:roles=none"),
            "bad value for --policy: hyperflexis:roles=none keeps each request on one instance; these move them: ",
        ),
        (
            ("--set", "fleet.roles=planned", "--policy", "hyperflexis,distserve"),
            "bad value for --policy: distserve changes no roles; these do: arrow, hyperflexis, ",
        ),
        (
            ("--set", "fleet={prefill: 1, decode: 1}", "--set", "profile=small.json"),
            "'engine.kv_token_bytes' is missing in s.yaml: requests move with their KV",
        ),
        (
            ("--policy", "hyperflexis:roles=planned", "--set", "profile=small.json"),
            "'engine.kv_token_bytes' is missing in s.yaml: requests move with their KV",
        ),
        (
            ("--set", "workload.0.format=csv"),
            "bad value for 'workload.0.format' in --set: 'csv' should be one of the formats: azure, ",
        ),
        (
            ("--set", "workload.0.rotate_s=-1"),
            "bad value for 'workload.0.rotate_s' in --set: -1 should be seconds from 0, or random",
        ),
        (
            ("--set", "workload.0.class_by_prompt_tokens=[{class: chat}]"),
            "bad value for 'workload.0' in s.yaml:5: has 'class' and 'class_by_prompt_tokens', of which one decides",
        ),
        (("--set", "workload.0.window_s=[900, 1000]"), "no arrivals between 900 s and 1000 s of code.jsonl"),
        (
            ("--set", "workload.0={trace: code.jsonl}"),
            "the trace in --set gives its requests no class; say 'class' there",
        ),
        (("--set", "workload.0.context_tokens_max=310"), "code.jsonl, line 1: "),
        (("--set", "profile=small.json"), "a request of 320 tokens cannot be held by an instance of "),
        (("--set", "profile=tiny.json"), "profile in --set: 10 KV tokens are less than one block of 16"),
    ],
)
def test_mistake_is_one_sentence_and_exit_code_2(run: Run, file: Path, words: tuple[str, ...], message: str) -> None:
    coefficients = dict.fromkeys(COEFFICIENTS, 0.001)
    for name, tokens in (("small", 310), ("tiny", 10)):
        text = json.dumps({"latency": coefficients, "kv_tokens": tokens})
        (file.parent / f"{name}.json").write_text(text, encoding="utf-8")
    code, out, err = run("simulate", str(file), *words)
    assert (code, out) == (2, "")
    expected = message.replace("{policies}", ", ".join(sorted(POLICIES)))
    assert err.replace(f"{file.parent}/", "").splitlines()[0].startswith(f"error: {expected}")


def test_absent_trace_says_where_it_was_looked_for(run: Run, file: Path) -> None:
    code, _, err = run("simulate", str(file), "--set", "workload.1.trace=nope.csv", "--traces", str(file.parent))
    assert code == 2
    first, *_, hint = err.splitlines()
    assert first.startswith(
        f"error: trace in --set: there is no file 'nope.csv'; looked in {file.parent}, {file.parent}, "
    )
    assert hint.startswith("hint: say where traces lie with --traces or HYPERFLEXIS_TRACES")
    (absolute, *_) = run("simulate", str(file), "--set", "workload.1.trace=/nope.csv").err.splitlines()
    assert absolute == "error: trace in --set: there is no file '/nope.csv'"


def test_class_that_a_trace_names_has_to_be_known(run: Run, file: Path) -> None:
    (file.parent / "own.jsonl").write_text(rows(5, 1, **{"class": "batch"}), encoding="utf-8")
    code, _, err = run("simulate", str(file), "--set", "workload.0={trace: own.jsonl}")
    assert code == 2
    assert err == (
        "error: the trace in --set gives its requests class 'batch', which has no entry in classes; say 'class' there\n"
    )


@pytest.mark.parametrize("words", [(), ("--jobs", "0"), ("--jobs", "x"), ("--polcy", "x")])
def test_wrong_usage_is_exit_code_2(run: Run, file: Path, words: tuple[str, ...]) -> None:
    code, out, err = run("simulate", *words, *([str(file)] if words else []))
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_our_own_mistakes_keep_their_stack_trace(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _break(*_: object, **__: object) -> None:
        raise AssertionError("ours")

    module = ModuleType("hyperflexis.sim.simulation")
    module.FleetSpec = dict  # type: ignore[attr-defined]
    module.simulate = _break  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hyperflexis.sim.simulation", module)
    with pytest.raises(AssertionError, match="ours"):
        run("simulate", str(file))


# How it is called.


def test_simulation_gets_what_the_scenario_says(file: Path) -> None:
    sets = ("engine={block_tokens: 32, seqs_max: 8, prefill_tokens_max: 512, max_tokens: 99}", "noise=0.2", "seed=5")
    plan = _plan(file, *sets, "latency_scale.prefill=2")
    assert (plan.instances, plan.max_tokens, plan.noise, plan.prefill_tokens_max) == (2, 99, 0.2, 512)
    assert (plan.capacity.blocks, plan.capacity.block_tokens, plan.capacity.seqs_max) == (423_874 // 32, 32, 8)
    assert (plan.capacity.kv_token_bytes, plan.roles, plan.moving) == (327_680, (Role.MIXED,) * 2, "keeps")
    assert plan.truth is not None
    assert plan.truth.prefill_token_s == 2 * plan.latency.prefill_token_s


def test_simulation_gets_the_roles_and_links_of_the_fleet(file: Path) -> None:
    fleet = "fleet={prefill: 1, mixed: 1, decode: 1, link_gb_s: 2.5, link_latency_ms: 1}"
    plan = _plan(file, fleet, "engine.kv_token_bytes=9")
    assert (plan.instances, plan.roles, plan.moving) == (3, (Role.PREFILL, Role.MIXED, Role.DECODE), "fixed")
    assert (plan.fabric.bytes_s, plan.fabric.latency_s, plan.capacity.kv_token_bytes) == (2.5e9, 0.001, 9)


def test_streams_have_chance_of_their_own(file: Path) -> None:
    """No two streams or seeds share theirs, nor does the policy or rate change it."""
    plan = _plan(file)
    drawn = {
        (seed, index): cells.stream(plan, Cell("round_robin", 1.0, seed), index).seed
        for seed in range(20)
        for index in range(2)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert cells.stream(plan, Cell("hyperflexis", 3.0, 4), 1).seed == drawn[4, 1]


def test_progress_is_for_terminals(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("simulate", str(file)).err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "simulating" in run("simulate", str(file)).err


def _plan(file: Path, *sets: str) -> cells.Plan:
    from hyperflexis.cli import scenario

    request, loaded = simulate.Request(file=file, sets=sets), scenario.load(file, sets)
    return simulate.plan_of(request, loaded, simulate._cells(request, loaded))


def test_help_loads_nothing_that_simulates() -> None:
    heavy = ("torch", "aiohttp", "numpy", "msgspec", "tokenizers", "hyperflexis.core", "hyperflexis.sim")
    code = (
        "import sys; from hyperflexis.cli.main import main; main(['simulate', '--help']);"
        f"print(set({heavy}) & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_simulating_loads_nothing_that_serves(file: Path) -> None:
    heavy = ("torch", "aiohttp", "tokenizers", "hyperflexis.engine", "hyperflexis.gateway", "hyperflexis.runtime")
    code = (
        f"import sys; from hyperflexis.cli.main import main; main(['simulate', {str(file)!r}]);"
        f"print(set({heavy}) & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_names_every_flag(run: Run) -> None:
    code, out, err = run("simulate", "--help")
    assert (code, err) == (0, "")
    flags = (
        "SCENARIO",
        "--policy",
        "--rate",
        "--seed",
        "--json",
        "--report",
        "--jobs",
        "--traces",
        "--skip-bad",
        "--set",
    )
    assert all(flag in out for flag in flags)
    assert "HYPERFLEXIS_TRACES" in out


def test_help_lists_the_commands(run: Run) -> None:
    _, out, _ = run("--help")
    assert all(f"│ {command} " in out for command in ("simulate", "profile", "profiles", "traces"))


def test_profile_hands_over_what_it_was_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    module = ModuleType("hyperflexis.cli.profile")
    module.run = lambda *given, **named: asked.append((given, named)) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hyperflexis.cli.profile", module)
    words = (
        "--out",
        "p.json",
        "--quick",
        "--grid",
        "a=1",
        "--grid",
        "b=2",
        "--device",
        "cpu",
        "--set",
        "engine.seqs_max=4",
    )
    assert run("profile", "owner/name", *words).code == 3
    (((deployment, out), named),) = asked
    assert (deployment.model, deployment.device, deployment.engine.seqs_max) == ("owner/name", "cpu", 4)
    assert (out, named) == (Path("p.json"), {"is_quick": True, "grid": ["a=1", "b=2"]})
