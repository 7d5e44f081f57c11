"""`explain` and `replay` from words to what is printed, on small recorded runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hyperflexis.cli import recordings, whatif
from hyperflexis.cli.deployment import Deployment
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.events import RequestArrived
from hyperflexis.journal.entries import Entry, Gap
from hyperflexis.journal.parts import part_files
from hyperflexis.journal.reading import open_all
from hyperflexis.sim import summary
from journal.recorded import D, M, P, World, header_of, only_run, play, recorder

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

SCENARIO = """\
classes: {code: {ttft_ms: 500, tpot_ms: 100}}
fleet: {mixed: 2}
profile: llama-3-70b/h100/tp4/bfloat16
workload: [{trace: code.jsonl, class: code}]
"""

PATIENT = ("strict", "loose")
"""Classes that refuse nobody."""


def changed(folder: Path, target: Path, change: Callable[[list[Entry]], list[Entry]], **header: object) -> Path:
    """The same journal with other entries."""
    source = only_run(folder)
    with recorder(target, msgspec.structs.replace(source.header, **header)) as made:
        made.write(change(list(source.entries())))
    return target


@pytest.fixture
def run_of(tmp_path: Path) -> Path:
    play(World(), tmp_path / "run")
    return tmp_path / "run"


# -- recording


def test_simulation_is_recorded(run: Run, tmp_path: Path) -> None:
    rows = [{"at_s": 0.1 * i, "prompt_tokens": 300, "output_tokens": 20} for i in range(40)]
    (tmp_path / "code.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SCENARIO, encoding="utf-8")
    words = ("simulate", str(tmp_path / "s.yaml"), "--seed", "3")
    plain, recorded = run(*words), run(*words, "--journal", str(tmp_path / "j"))
    assert (recorded.code, recorded.out) == (0, plain.out)
    assert only_run(tmp_path / "j").header.seed == 3
    assert run("replay", str(tmp_path / "j")).out.endswith("all the same again\n")


def test_journal_of_many_simulations_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "code.jsonl").write_text('{"at_s": 0, "prompt_tokens": 3, "output_tokens": 2}\n', encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SCENARIO, encoding="utf-8")
    code, _, err = run("simulate", str(tmp_path / "s.yaml"), "--seed", "3,4", "--journal", str(tmp_path / "j"))
    assert code == 2
    assert "--journal records one simulation, and 2 were asked for" in err


def test_journal_where_none_can_be_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "code.jsonl").write_text('{"at_s": 0, "prompt_tokens": 3, "output_tokens": 2}\n', encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SCENARIO, encoding="utf-8")
    code, _, err = run("simulate", str(tmp_path / "s.yaml"), "--journal", str(tmp_path / "code.jsonl"))
    assert code == 3
    assert "no journal can be there: File exists" in err


def test_serve_is_told_where(run: Run, served: list[Deployment]) -> None:
    assert run("serve", "--journal", "/somewhere", "--set", "journal.size_mib_max=5").code == 0
    assert (served[0].journal.path, served[0].journal.size_mib_max) == ("/somewhere", 5)


# -- explain


def test_story_by_number_and_by_name(run: Run, run_of: Path, tmp_path: Path) -> None:
    def named(entries: list[Entry]) -> list[Entry]:
        return [e._replace(name=f"cmpl-{e.event[0]}") if isinstance(e.event, RequestArrived) else e for e in entries]

    target = changed(run_of, tmp_path / "named", named)
    code, out, err = run("explain", str(target), "cmpl-7")
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.startswith("request 7 (cmpl-7): done: ")
    assert all(line.startswith("  ") and " s  " in line and " ms  " in line for line in lines)
    assert run("explain", str(target), "7").out == out


def test_time_of_day_is_told_of_live_runs(run: Run, run_of: Path, tmp_path: Path) -> None:
    target = changed(run_of, tmp_path / "live", lambda entries: entries, wall_s=1e9, origin_s=0.0, is_simulated=False)
    out = run("explain", str(target), "7").out
    assert out.startswith("request 7, 2001-09-")
    assert ":40." in out.splitlines()[1]


def test_story_as_json(run: Run, run_of: Path) -> None:
    (story,) = json.loads(run("explain", str(run_of), "7", "--json").out)
    assert (story["request"], story["name"]) == (7, None)
    assert story["chapters"][0]["behind"]["type"] == "RequestArrived"
    assert story["verdict"]["timeline"]["tokens"] > 0


def test_story_of_an_instance(run: Run, run_of: Path) -> None:
    code, out, err = run("explain", str(run_of), "i0")
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head == "instance i0"
    assert "starts as mixed" in lines[0]
    assert any("is ready" in line for line in lines)
    told = json.loads(run("explain", str(run_of), "i0", "--json").out)
    assert [f"  {each['clock']}  {each['text']}" for each in told["chapters"]] == lines


def test_instance_that_is_not_there(run: Run, run_of: Path) -> None:
    code, out, err = run("explain", str(run_of), "i4000")
    assert (code, out) == (2, "")
    assert "nothing is there of an instance i4000" in err


@pytest.mark.parametrize("name", ["4000", "cmpl-nobody"])
def test_request_that_is_not_there(run: Run, run_of: Path, name: str) -> None:
    code, out, err = run("explain", str(run_of), name)
    assert (code, out) == (2, "")
    assert f"nothing is there of a request '{name}'" in err


def test_journal_that_is_not_there(run: Run, tmp_path: Path) -> None:
    for command in (("explain", str(tmp_path / "j"), "7"), ("replay", str(tmp_path / "j"))):
        code, _, err = run(*command)
        assert code == 2
        assert "there is no such journal" in err


def test_cut_journal_is_explained_as_far_as_it_goes(run: Run, run_of: Path) -> None:
    (part,) = part_files(run_of)
    part.write_bytes(part.read_bytes() + b"half a frame")
    code, out, err = run("explain", str(run_of), "7")
    assert code == 0
    assert out.startswith("request 7: done")
    assert "12 bytes follow that are no whole frame" in err


# -- replay


def test_replay_of_a_whole_journal(run: Run, run_of: Path) -> None:
    code, out, err = run("replay", str(run_of))
    assert (code, err) == (0, "")
    assert out.endswith("commands: all the same again\n")


def test_difference_is_shown_with_what_was_before_it(run: Run, run_of: Path, tmp_path: Path) -> None:
    entries = list(only_run(run_of).entries())
    place = next(i for i, each in enumerate(entries) if i > 9 and each.commands and hasattr(each.commands[0], "reason"))
    other = entries[place].commands[0]._replace(reason=Reason(Why.IN_TURN))  # type: ignore[union-attr]
    target = changed(
        run_of,
        tmp_path / "other",
        lambda all_: [*all_[:place], all_[place]._replace(commands=[other]), *all_[place + 1 :]],
        hyperflexis="0.0.9",
    )
    code, out, err = run("replay", str(target))
    assert (code, err) == (1, "")
    assert out.startswith(f"event {place} was decided otherwise, at ")
    assert f"→ {other}" in out
    assert f"→ {entries[place].commands[0]}" in out
    assert out.index("before it:") < out.index(repr(entries[place - 3].now))
    assert "hyperflexis 0.0.9 wrote the journal, this is " in out


def test_gap_is_told(run: Run, run_of: Path, tmp_path: Path) -> None:
    gap = Entry(1.0, Gap(5, 2.0, "no space left"))
    target = changed(run_of, tmp_path / "gap", lambda entries: [*entries[:30], gap, *entries[35:]])
    code, out, _ = run("replay", str(target))
    assert code == 1
    assert out.startswith("30 events, ")
    assert "at 1.000 s 5 events are missing (no space left): what follows cannot be compared" in out
    assert "5 events are missing in the journal" in run("replay", str(target), "--policy", "round_robin").err


def test_end_of_a_process_is_no_fault_and_damage_is(run: Run, run_of: Path) -> None:
    (part,) = part_files(run_of)
    whole = part.read_bytes()
    part.write_bytes(whole + whole[-30:][:20])
    code, out, err = run("replay", str(run_of))
    assert code == 0
    assert out.endswith("all the same again\n")
    assert "cut at byte" in err
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, _, err = run("replay", str(run_of))
    assert code == 1
    assert "a frame's checksum is wrong" in err


def test_journal_without_its_beginning(run: Run, tmp_path: Path) -> None:
    play(World(requests=300, rate=100.0), tmp_path / "whole")
    entries = list(only_run(tmp_path / "whole").entries())
    with recorder(tmp_path / "kept", header_of(World()), bytes_max=20_000) as made:
        for start in range(0, len(entries), 20):
            made.write(entries[start : start + 20])
    code, _, err = run("replay", str(tmp_path / "kept"))
    assert code == 2
    assert "the oldest parts of this run are gone" in err
    code, out, err = run("replay", str(tmp_path / "kept"), "--policy", "round_robin")
    assert code == 0
    assert out.splitlines()[2].startswith("round_robin")
    assert "the oldest parts of this run are gone" in err


# -- what if


@pytest.mark.parametrize(
    "world",
    [
        World(requests=120, classes=PATIENT),
        World((P, D, M), moving="planned", requests=120, classes=PATIENT),
        World((M,), most=4, requests=400, rate=60.0, classes=PATIENT),
    ],
    ids=["mixed", "roles", "elastic"],
)
def test_simulation_of_what_was_simulated_gives_it_again(world: World, tmp_path: Path) -> None:
    """Without noise, the record, and what is simulated of it, is the simulation."""
    from hyperflexis.cli import replay

    outcome = play(world, tmp_path, noise=0.0)
    journal = only_run(tmp_path)
    record = whatif.read(journal.header, journal.entries())
    assert record.outcome is not None
    assert record.capacity is not None
    assert summary.row(record.outcome) == summary.row(outcome)
    load = whatif.load_of(record, record.capacity)
    assert (load.guessed, load.left_out) == (0, 0)
    assert {each.name for each in load.classes.values()} == set(PATIENT)
    fleet = replay._recorded_fleet(record)
    again = replay._outcome(fleet.policy(journal.header.policy, journal.header), fleet, record, load)
    assert summary.row(again) == summary.row(outcome)
    assert bool(outcome.scale_events) == (world.most > 0)


def test_answers_that_nobody_saw_the_end_of_are_guessed_and_said(run: Run, tmp_path: Path) -> None:
    outcome = play(World(requests=120, rate=200.0), tmp_path)
    refused = int(outcome.rejected.sum())
    assert refused > 3
    journal = only_run(tmp_path)
    record = whatif.read(journal.header, journal.entries())
    assert record.capacity is not None
    load = whatif.load_of(record, record.capacity)
    assert load.guessed == refused
    assert all(job.output_tokens >= 1 for job in load.jobs)
    said = f"answers of which not all is known: {refused}; the median of their class stands for each"
    assert said in run("replay", str(tmp_path), "--policy", "round_robin").err


def test_other_policies_and_fleets_beside_what_was_recorded(run: Run, run_of: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "replay", str(run_of), "--policy", "round_robin,least_tokens", "--json", str(tmp_path / "o.json")
    )
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["policy", "recorded", "round_robin", "least_tokens"]
    rows = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["results"]
    assert [row["requests"] for row in rows] == [60] * 3
    code, out, _ = run("replay", str(run_of), "--fleet", "{prefill: 1, decode: 1}", "--json", "-")
    assert code == 0
    assert json.loads(out)["results"][1]["migrations"] > 0
    code, out, _ = run("replay", str(run_of), "--fleet", "{mixed: {min: 1, max: 3}}")
    assert code == 0


def test_what_is_to_be_kept_goes_with_what_was_asked_for_to_another_fleet(run_of: Path) -> None:
    from hyperflexis.cli import replay

    journal = only_run(run_of)
    fleet = replace(journal.header.fleet, late_shares={"strict": 0.001})
    record = whatif.read(msgspec.structs.replace(journal.header, fleet=fleet), journal.entries())
    other = replay._other_fleet(replay._section("{mixed: {min: 1, max: 3}}"), record)
    assert other.bounds.late_shares == {"strict": 0.001}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "nobody"), "unknown policy 'nobody'"),
        (("--fleet", "{mixed: -1}"), "--fleet"),
        (("--fleet", "{prefill: 1, decode: 1}", "--policy", "round_robin"), "keeps each request on one instance"),
        (("--fleet", "{mixed: {min: 2, max: 3}, cost_per_hour_max: 0.5}"), "bad value for --fleet: 2 instances cost"),
        (("--json", "-"), "say which, with --policy or --fleet"),
    ],
)
def test_what_cannot_be_simulated_is_refused(run: Run, run_of: Path, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("replay", str(run_of), *words)
    assert (code, out) == (2, "")
    assert message in err


def test_policy_that_is_gone_is_said(run_of: Path) -> None:
    header = msgspec.structs.replace(open_all(run_of)[0].header, policy="long_gone", hyperflexis="0.0.9")
    with pytest.raises(Exception, match=r"hyperflexis 0\.0\.9 wrote the journal, this is .*unknown policy 'long_gone'"):
        recordings.control_plane(header)
