"""`plan` from words to files, on traces small enough to follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

TEXT = """\
classes: {code: {ttft_ms: 400}, chat: {tpot_ms: 40}}
fleet: {mixed: 1, startup_s: 5, prices: {active_per_hour: 3}}
profile: llama-3-70b/h100/tp4/bfloat16
workload:
  - {trace: code.jsonl, class: code}
  - {trace: chat.jsonl, class: chat}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Code comes at a few times what an instance computes in time, for some seconds; chat beside it."""
    for name, count, every_s, prompt_tokens in (("code", 80, 0.03, 1500), ("chat", 20, 0.15, 100)):
        lines = (
            json.dumps({"at_s": index * every_s, "prompt_tokens": prompt_tokens, "output_tokens": 10})
            for index in range(count)
        )
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "s.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def found_of(run: Run, *words: str) -> dict[str, Any]:
    code, out, err = run("plan", *words, "--json", "-")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_cheapest_fleet_is_the_fewest_that_keep_the_target(run: Run, file: Path) -> None:
    found = found_of(run, str(file), "--kinds", "mixed")
    need = found["best"]["mixed"]
    assert need > 1
    for each in found["fleets"]:
        assert each["keeps"] == (each["fleet"]["mixed"] >= need)
        assert each["cost_per_hour"] == pytest.approx(3 * each["fleet"]["mixed"])
        assert each["keeps"] == all(share["mean"] >= 0.99 for share in each["attainment_by_class"].values())
    tried = [each["fleet"]["mixed"] for each in found["fleets"]]
    assert {need - 1, need, need + 1} <= set(tried)


def test_time_that_starts_take_is_no_time_of_the_load(run: Run, file: Path) -> None:
    quick = found_of(run, str(file), "--kinds", "mixed", "--set", "fleet.startup_s=0")
    slow = "fleet.startup_s={disk: {boot_s: 20, weights_s: 30}}"
    assert quick["best"] == found_of(run, str(file), "--kinds", "mixed", "--set", slow)["best"]


def test_all_kinds_are_tried_and_the_cheapest_taken(run: Run, file: Path) -> None:
    found = found_of(run, str(file))
    kinds = {
        "elastic"
        if isinstance(each["fleet"].get("mixed"), dict)
        else "apart"
        if "prefill" in each["fleet"]
        else "mixed"
        for each in found["fleets"]
    }
    assert kinds == {"mixed", "apart", "elastic"}
    kept = [each for each in found["fleets"] if each["keeps"]]
    assert found["best"] == kept[0]["fleet"]
    assert [each["cost_per_hour"] for each in found["fleets"]] == sorted(
        each["cost_per_hour"] for each in found["fleets"]
    )
    assert kept[0]["is_frontier"]


def test_page_for_people_says_what_it_rests_on(run: Run, file: Path) -> None:
    code, out, err = run("plan", str(file), "--kinds", "mixed", "--rate", "0.5")
    assert code == 0
    head, *_ = out.splitlines()
    assert head.split() == [
        "fleet",
        "cost/h",
        "instances",
        "code",
        "chat",
        "lowest",
        "seed",
        "seeds",
        "kept",
        "frontier",
    ]
    assert "\ncheapest fleet that keeps 99 % of every class: {mixed: " in out
    assert "assumed: the load of" in out
    assert "at 0.5 times its rates" in out
    assert "assumed: chance plays no part" in out
    assert "how sure: class code has too few requests" in out
    assert err.count("{mixed: ") == err.count("\n")


def test_chance_is_tried_with_every_seed(run: Run, file: Path) -> None:
    found = found_of(run, str(file), "--kinds", "mixed", "--set", "noise=0.2")
    assert {len(each["results"]) for each in found["fleets"] if each["keeps"]} == {3}
    assert [row["seed"] for row in found["fleets"][-1]["results"]] == [0, 1, 2]
    assert not any("chance plays" in each for each in found["assumed"])


def test_target_that_no_fleet_keeps_is_exit_code_4(run: Run, file: Path) -> None:
    code, out, _ = run("plan", str(file), "--kinds", "mixed,elastic", "--set", "classes.code.ttft_ms=1")
    assert code == 4
    assert "no fleet that was tried keeps 99 % of every class" in out
    assert "how sure: no fleet of up to 256" in out
    assert "not tried: a size that changes: no number of instances that do both keeps the target" in out


def test_policies_that_cannot_are_not_tried_so(run: Run, file: Path) -> None:
    found = found_of(run, str(file), "--policy", "round_robin")
    assert {tuple(each["fleet"]) for each in found["fleets"]} == {("mixed",)}
    told = [each for each in found["assumed"] if each.startswith("not tried")]
    assert len(told) == 2
    assert "keeps each request on one instance" in told[0]


def test_journal_is_planned_for_like_its_scenario(run: Run, file: Path) -> None:
    journal = file.parent / "journal"
    assert run("simulate", str(file), "--set", "fleet={mixed: 2}", "--journal", str(journal)).code == 0
    words = ("--kinds", "mixed", "--target", "0.9")
    one, other = found_of(run, str(journal), *words), found_of(run, str(file), *words)
    assert one["best"] == other["best"]
    assert any("recorded" in each for each in one["assumed"])


@pytest.mark.parametrize("flag", [("--seed", "1"), ("--rate", "2"), ("--set", "seed=1")])
def test_journal_cannot_be_changed(run: Run, tmp_path: Path, flag: tuple[str, str]) -> None:
    code, _, err = run("plan", str(tmp_path), *flag)
    assert code == 2
    assert err.startswith(f"error: {flag[0]} changes a scenario")


def test_report_is_a_page(run: Run, file: Path) -> None:
    page = file.parent / "plan.html"
    assert run("plan", str(file), "--kinds", "mixed,apart", "--report", str(page)).code == 0
    text = page.read_text(encoding="utf-8")
    assert "{mixed: " in text
    assert "cost per hour" in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kinds", "mixd"), "unknown kind 'mixd' in --kinds: did you mean 'mixed'?"),
        (("--policy", "nope"), "unknown policy"),
        (("--json", "/nowhere/x.json"), "cannot write /nowhere/x.json"),
    ],
)
def test_wrong_words(run: Run, file: Path, words: tuple[str, ...], said: str) -> None:
    code, out, err = run("plan", str(file), *words)
    assert (code, out) == (2, "")
    assert said in err
