"""What a clairvoyant fleet is told: how many instances are needed when, from all arrivals and all answers' lengths.

The need is that of `core.scaling`, of true lengths: prefill by the most that is due within a promise of its arrival,
decodes as if each ran at its promised pace, and room for their contexts. Knows no policies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hyperflexis.core import budget, loads
from hyperflexis.core.instance import Capacity, Instance
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.scaling import ScalerRules
from hyperflexis.core.slo import ServiceClass
from hyperflexis.sim.job import Job

BIN_S = 0.5


def needs(
    jobs: Sequence[Job],
    classes: Mapping[str, ServiceClass],
    model: LatencyModel,
    capacity: Capacity,
    factor: float,
) -> list[tuple[float, int]]:
    """(from when, instances), `factor` times what the formula says."""
    rules = ScalerRules()
    instance = Instance(0)
    instance.learn(capacity, model)
    cap_s = loads.pace_cap_s(instance)
    slos = [classes[job.service_class].slo for job in jobs]
    arrived_s = np.array([job.at_s for job in jobs])
    terms_s = np.array([slo.ttft_s or math.inf for slo in slos])
    paces_s = np.array([min(cap_s, slo.tpot_s or math.inf) for slo in slos])
    prompts = np.array([float(job.prompt_tokens) for job in jobs])
    answers = np.array([float(job.output_tokens) for job in jobs])
    work_s = np.array([model.chunk_s(job.prompt_tokens, 0) for job in jobs])
    lasts_s = answers * paces_s
    bins = int((arrived_s + lasts_s).max() / BIN_S) + 2
    rho = np.zeros(bins)
    for term_s in np.unique(terms_s[np.isfinite(terms_s)]):
        due = np.bincount(
            (arrived_s / BIN_S).astype(int), weights=np.where(terms_s <= term_s, work_s, 0), minlength=bins
        )
        width = max(1, round(term_s / BIN_S))
        rho = np.maximum(rho, np.convolve(due, np.ones(width))[:bins] / (width * BIN_S))
    begins, ends = (arrived_s / BIN_S).astype(int), ((arrived_s + lasts_s) / BIN_S).astype(int) + 1
    seqs, context = (
        _running(begins, ends, np.ones(len(jobs)), bins),
        _running(begins, ends, prompts + answers / 2, bins),
    )
    pace_s = budget.AIM * float(paces_s.min())
    decode = (model.decode_seq_s * seqs + model.context_token_s * context) / pace_s
    share = max(0.05, rules.time_share - min(0.9, model.decode_base_s / pace_s))
    tokens = rules.room_share * capacity.blocks * capacity.block_tokens
    need = np.maximum((rho + decode) / share, context / tokens)
    return [(index * BIN_S, math.ceil(factor * each)) for index, each in enumerate(need.tolist())]


def _running(begins: np.ndarray, ends: np.ndarray, amounts: np.ndarray, bins: int) -> np.ndarray:
    """Sums over all that has begun and not ended, by bin."""
    edges = np.zeros(bins + 2)
    np.add.at(edges, begins, amounts)
    np.add.at(edges, np.minimum(ends, bins), -amounts)
    return np.asarray(np.cumsum(edges)[:bins])
