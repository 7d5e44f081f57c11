"""Names that carry tuning, and the tunings that a comparison tries."""

from __future__ import annotations

import pytest

from hyperflexis.core.control import Policy
from hyperflexis.policies import POLICIES, create, parse, split_names, tunables
from hyperflexis.policies.tunings import TUNINGS

ALL_TUNINGS = [(name, tuning) for name, tunings in TUNINGS.items() for tuning in tunings]


def test_every_policy_has_tunings() -> None:
    assert TUNINGS.keys() == POLICIES.keys()
    assert all(TUNINGS.values())


@pytest.mark.parametrize(("name", "tuning"), ALL_TUNINGS)
def test_tuning_makes_a_policy(name: str, tuning: dict[str, object]) -> None:
    made = create(name, 1024, **tuning)
    assert isinstance(made, Policy)
    assert made.name == name
    assert made.rules.prefill_tokens_max == tuning.get("chunk", 1024)


def test_no_tuning_is_tried_twice() -> None:
    for name, tunings in TUNINGS.items():
        full = [tuple(sorted({**tunables(name), **tuning}.items())) for tuning in tunings]
        assert len(set(full)) == len(full), name


def test_name_carries_tuning() -> None:
    made = create("polyserve:credit_spend_max=0,chunk=512,packs=off", 2048)
    assert (made.rules.credit_spend_max, made.rules.prefill_tokens_max) == (0.0, 512)
    assert parse("polyserve:packs=off,split=none") == ("polyserve", {"packs": False, "split": "none"})
    assert parse("polyserve") == ("polyserve", {})


def test_keyword_wins_over_what_a_name_carries() -> None:
    assert create("round_robin:chunk=512", 2048, chunk=64).rules.prefill_tokens_max == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic:chunk=1", "unknown policy 'magic'; there are: arrow, blitzscale, chiron, distserve, "),
        ("round_robin:", "'round_robin:': expected key=value after the colon, not ''"),
        ("round_robin:chunk", "expected key=value after the colon, not 'chunk'"),
        ("round_robin:chunk=", "expected key=value after the colon, not 'chunk='"),
        ("round_robin:chunk=1,chunk=2", "chunk is given twice"),
        ("round_robin:chnk=1", "round_robin has no 'chnk' to tune; did you mean 'chunk'?"),
        ("round_robin:x=1", "round_robin has no 'x' to tune; there are: chunk, engine"),
        ("round_robin:chunk=many", "round_robin: chunk must be a whole number, not 'many'"),
        ("round_robin:chunk=-1", "round_robin: chunk must be at least 0, not -1"),
        ("round_robin:engine=steam", "engine must be one of first_come, priority, ours, not 'steam'"),
        ("polyserve:packs=maybe", "polyserve: packs must be true or false, not 'maybe'"),
        ("polyserve:credit_spend_max=x", "polyserve: credit_spend_max must be a number, not 'x'"),
        ("polyserve:credit_spend_max=2", "polyserve: credit_spend_max must be between 0 and 1, not 2.0"),
        ("polyserve:split=odd", "polyserve: split must be one of load, equal, none, not 'odd'"),
        ("proserve:routing=odd", "proserve: routing must be one of gain, least_tokens, not 'odd'"),
        ("proserve:light_s=2", "light_s must be between 0 and heavy_s, not 2.0 with heavy_s 0.3"),
        ("proserve:slack_share=0", "slack_share must be above 0 and at most 1, not 0.0"),
        ("slos_serve:asks=odd", "asks must be one of turn, least, not 'odd'"),
        ("llumnix_v0:headroom_share=2", "headroom_share must be between 0 and 1, not 2.0"),
        ("llumnix_v1:threshold=0", "threshold must be above 0, not 0.0"),
        ("llm_d:explore=2", "explore must be between 0 and 1, not 2.0"),
        ("splitwise:queue_tokens=-1", "queue_tokens must be at least 0, not -1"),
        ("arrow:target_share=0", "target_share must be above 0, not 0.0"),
        ("llumnix_pd:threshold=0", "threshold must be above 0, not 0.0"),
        ("taichi:chunk_d=-1", "chunk must be at least 0, not -1"),
        ("taichi:stay_share=-1", "stay_share must be at least 0, not -1.0"),
        ("tokenscale:chunk=0", "chunk must be above 0, not 0"),
        ("tokenscale:convertibles=-1", "convertibles must be at least 0, not -1"),
        ("hyperflexis:late_share=0", "late_share must be between 0 and 1, not 0.0"),
        ("hfx_reactive:step=0", "step must be above 0, not 0"),
        ("hfx_reactive:cool_down_s=0", "cool_down_s must be above 0, not 0.0"),
        ("dynamo_planner:load_s=0", "load_s must be above 0, not 0.0"),
        ("blitzscale:idle_s=-1", "idle_s must be at least 0, not -1.0"),
        ("tokenscale_scaler:headroom=0", "headroom must be above 0, not 0.0"),
        ("chiron:pressure=0", "pressure must be above 0, not 0.0"),
        ("chiron:margin=0.5", "margin must be at least 0 and less than pressure, not 0.5"),
        ("kpa:target=-1", "target must be above 0, not -1.0"),
        ("llm_d_saturation:low=0.6", "low must be less than high, not 0.6 with 0.55"),
        ("dynamo_pd:queue_max=-1", "queue_max must be at least 0, not -1"),
        ("dynamo_pd:worker=odd", "worker must be one of cost, turn, not 'odd'"),
        ("prefix_affinity:overload=0", "overload must be at least 1, not 0.0"),
        ("prefix_affinity:share_min=2", "share_min must be between 0 and 1, not 2.0"),
    ],
)
def test_wrong_tuning_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError) as failure:  # noqa: PT011  # the message is compared below
        create(text, 2048)
    assert message in str(failure.value)


def test_unknown_keyword_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="round_robin has no 'chunks' to tune; did you mean 'chunk'"):
        create("round_robin", 2048, chunks=1)


def test_list_of_names_keeps_tunings_together() -> None:
    text = "round_robin, polyserve:credit_spend_max=0,chunk=512,hyperflexis,llm_d:draws=off"
    assert split_names(text) == [
        "round_robin",
        "polyserve:credit_spend_max=0,chunk=512",
        "hyperflexis",
        "llm_d:draws=off",
    ]
    assert split_names("a,b") == ["a", "b"]
