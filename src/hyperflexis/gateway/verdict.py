"""The SLO verdict as clients read it: promised, predicted, actual, and where the time went. Milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyperflexis.core.slo import Slo, Verdict
from hyperflexis.gateway.backend import Ending
from hyperflexis.gateway.promises import Granted


def report(ends: Sequence[Ending | None], granted: Granted) -> dict[str, Any] | list[dict[str, Any]]:
    """One verdict, or a list of them where there are several choices."""
    verdicts = [_one(end, granted) for end in ends]
    return verdicts[0] if len(verdicts) == 1 else verdicts


def _one(end: Ending | None, granted: Granted) -> dict[str, Any]:
    if end is None or end.verdict is None:
        return _promised(granted.service_class, granted.priority, Slo(granted.ttft_s, granted.tpot_s, granted.e2e_s))
    return _judged(end.verdict)


def _promised(service_class: str, priority: int, slo: Slo) -> dict[str, Any]:
    targets = {"ttft_ms": _ms(slo.ttft_s), "tpot_ms": _ms(slo.tpot_s), "e2e_ms": _ms(slo.e2e_s)}
    return {"class": service_class, "priority": priority, "slo": targets}


def _judged(verdict: Verdict) -> dict[str, Any]:
    times = verdict.timeline
    told = _promised(verdict.service_class, verdict.priority, verdict.slo)
    told["ttft"] = _metric(times.predicted_ttft_s, times.ttft_s, verdict.ttft_met)
    told["tpot"] = _metric(times.predicted_tpot_s, times.tpot_s, verdict.tpot_met)
    told["e2e"] = {"actual_ms": _ms(times.e2e_s), "met": verdict.e2e_met}
    told["attained"] = verdict.attained
    told["instance"] = verdict.instance
    told["queued_ms"] = _ms(times.prefill_started_s - times.arrived_s)
    told["prefill_ms"] = _ms(times.first_token_s - times.prefill_started_s)
    told["decode_ms"] = _ms(times.last_token_s - times.first_token_s)
    told["migrations"] = verdict.migrations
    return told


def _metric(predicted_s: float | None, actual_s: float | None, met: bool | None) -> dict[str, Any]:
    return {"predicted_ms": _ms(predicted_s), "actual_ms": _ms(actual_s), "met": met}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 3)
