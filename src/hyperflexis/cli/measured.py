"""Answers of a load as a result like those of simulations, and what a client sees besides.

A request counts from its instant in the trace. It attained what its class was promised if it came whole and in time;
what was refused, failed or was cut attained nothing. Figures of the fleet, which a client does not see, are null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hyperflexis.bench.answer import Answer, End
from hyperflexis.bench.load import Load
from hyperflexis.cli.results import Cell, Result
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.sim import summary
from hyperflexis.sim.outcome import Outcome, Usage

UNSEEN = ("instance_seconds", "asleep_seconds", "cost", "migrations", "role_changes", "scale_events")
LATE_S = 0.01
"""A client that is later than this in one of a hundred cases has measured itself."""
BUSY_SHARE = 0.8
"""Of one core; beyond it, lateness is a matter of luck."""


def result(cell: Cell, load: Load, classes: Mapping[str, ServiceClass], warmup_s: float, cpu_s: float) -> Result:
    """What came of one run, without its first seconds."""
    counted = [each for each in load.answers if each.due_s >= warmup_s and not np.isnan(each.ended_s)]
    seen = outcome(counted, classes)
    row: dict[str, Any] = {
        "policy": cell.policy,
        "rate": cell.rate,
        "seed": cell.seed,
        **summary.row(seen),
        **dict.fromkeys(UNSEEN),
        "cpu_seconds": cpu_s,
        **_client(counted),
        "behind_s": behind(load),
    }
    return Result(cell, row, summary.curves(seen))


def outcome(answers: Sequence[Answer], classes: Mapping[str, ServiceClass]) -> Outcome:
    """The columns that figures are made of."""
    names = tuple(classes)
    begun = [each.end in (End.DONE, End.CUT) for each in answers]
    done = np.array([each.end is End.DONE for each in answers], dtype=bool)
    ended_s = [each.ended_s for each in answers]
    return Outcome(
        classes=names,
        service_class=np.array([names.index(each.service_class) for each in answers], dtype=np.int64),
        arrived_s=_floats([each.due_s for each in answers]),
        ttft_s=_floats([each.ttft_s if is_seen else np.nan for each, is_seen in zip(answers, begun, strict=True)]),
        tpot_s=_floats([each.tpot_s if each.end is End.DONE else np.nan for each in answers]),
        e2e_s=_floats([each.e2e_s if each.end is End.DONE else np.nan for each in answers]),
        attained=np.array([has_attained(each, classes[each.service_class].slo) for each in answers], dtype=bool),
        rejected=np.array([each.end is End.REFUSED for each in answers], dtype=bool),
        finished=done,
        output_tokens=np.array([each.tokens for each in answers], dtype=np.int64),
        usage=Usage(0.0, 0.0, 0.0),
        migrations=0,
        role_changes=0,
        scale_events=0,
        sim_seconds=max(ended_s) - min(each.due_s for each in answers) if answers else 0.0,
    )


def has_attained(answer: Answer, slo: Slo) -> bool:
    """Whether it came whole, and in time. One token has no tpot, and so keeps any."""
    pairs = ((answer.ttft_s, slo.ttft_s), (answer.tpot_s, slo.tpot_s), (answer.e2e_s, slo.e2e_s))
    return answer.end is End.DONE and not any(target is not None and actual > target for actual, target in pairs)


def behind(load: Load) -> dict[str, float | None]:
    """How late this client was, at requests and in between."""
    late_s = [each.sent_s - each.due_s for each in load.answers if not np.isnan(each.sent_s)]
    values = np.maximum(0.0, _floats([*late_s, *load.behind_s]))
    if not values.size:
        return {"p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}


def complaints(row: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
    told = []
    late_s = row["behind_s"]["p99"]
    if late_s is not None and late_s > LATE_S:
        told.append(
            f"this client fell behind: {late_s * 1000:.0f} ms late in one of a hundred cases, at most "
            f"{row['behind_s']['max'] * 1000:.0f} ms, all of which is in the figures; give it a core of its own, more "
            "--concurrency-max, or less load"
        )
    busy = row["cpu_seconds"] / row["sim_seconds"] if row["sim_seconds"] else 0.0
    if busy > BUSY_SHARE:
        told.append(f"this client was busy {busy:.0%} of the time: a part of every latency may be its own")
    for what, words in (("failed", "failed"), ("cut", "were cut off"), ("short", "ended before their length")):
        if row[what]:
            told.append(f"{row[what]} of {row['requests']} requests {words}")
    if row["errors"]:
        told.append("not answered: " + ", ".join(f"{count} x {why}" for why, count in row["errors"].items()))
    asked, counted = row["prompt_tokens"]["asked"], row["prompt_tokens"]["counted"]
    if counted and abs(counted / asked - 1) > 0.05:
        told.append(f"prompts were {counted / asked:.0%} of the length that they should have had")
    return told


def _client(answers: Sequence[Answer]) -> dict[str, Any]:
    done = [each for each in answers if each.end is End.DONE]
    counted = [each for each in done if each.prompt_tokens_counted is not None]
    waits_s = [each.retry_after_s for each in answers if each.retry_after_s is not None]
    verdicts = [each.has_kept for each in done if each.has_kept is not None]
    return {
        "failed": sum(each.end is End.FAILED for each in answers),
        "cut": sum(each.end is End.CUT for each in answers),
        "short": sum(each.tokens < each.output_tokens for each in done),
        "errors": dict(Counter(each.why for each in answers if each.end is not End.DONE).most_common()),
        "retry_after_s": {"count": len(waits_s), "min": min(waits_s, default=None), "max": max(waits_s, default=None)},
        "prompt_tokens": {
            "asked": sum(each.prompt_tokens for each in counted),
            "counted": sum(each.prompt_tokens_counted or 0 for each in counted),
        },
        "output_tokens": {
            "asked": sum(each.output_tokens for each in done),
            "counted": sum(each.tokens for each in done),
        },
        "server_attainment": sum(verdicts) / len(verdicts) if verdicts else None,
    }


def _floats(values: Sequence[float]) -> Any:
    return np.array(values, dtype=np.float64)
