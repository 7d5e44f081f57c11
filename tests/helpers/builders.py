"""Builders: the core's nouns with defaults, so that a test names only what it is about."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.events import RequestArrived
from hyperflexis.core.instance import Capacity, Instance, Role
from hyperflexis.core.latency import LatencyModel, OnlineLatency
from hyperflexis.core.request import Request
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence, StepRules, StepScheduler

H100_8B = LatencyModel(
    prefill_base_s=4.73e-3,
    decode_base_s=6.396e-3,
    prefill_token_s=0.01665e-3,
    prefill_pair_s=6.93e-10,
    decode_seq_s=0.0109e-3,
    context_token_s=4.147e-8,
)
"""Llama-3.1-8B on one H100: the project's kernel-level fit of the aiconfigurator 0.12.0 silicon database."""

A100_14B = LatencyModel(
    prefill_base_s=14.49e-3,
    decode_base_s=20.808e-3,
    prefill_token_s=0.09982e-3,
    prefill_pair_s=2.696e-9,
    decode_seq_s=0.0589e-3,
    context_token_s=1.238e-7,
)
"""Qwen2.5-14B on one A100, from the same source."""

SIMPLE = LatencyModel(
    prefill_base_s=0.01,
    decode_base_s=0.01,
    prefill_token_s=0.001,
    prefill_pair_s=0.0,
    decode_seq_s=0.001,
    context_token_s=0.0,
)
"""Round numbers: a step is 10 ms, and 1 ms more for each prefill token and each decode."""


def slo(ttft_s: float | None = None, tpot_s: float | None = None, e2e_s: float | None = None) -> Slo:
    return Slo(ttft_s, tpot_s, e2e_s)


def request(request_id: int = 0, prompt_tokens: int = 10, max_tokens: int = 10, **fields: Any) -> Request:
    """A request that has just arrived, at 0 unless said."""
    values: dict[str, Any] = {"arrived_s": 0.0, "slo": Slo(), **fields}
    return Request(id=request_id, prompt_tokens=prompt_tokens, max_tokens=max_tokens, **values)


def arrival(request_id: int = 0, prompt_tokens: int = 10, max_tokens: int = 10, **fields: Any) -> RequestArrived:
    values: dict[str, Any] = {"slo": Slo(), **fields}
    return RequestArrived(request_id=request_id, prompt_tokens=prompt_tokens, max_tokens=max_tokens, **values)


def capacity(blocks: int = 1000, block_tokens: int = 16, seqs_max: int = 256) -> Capacity:
    return Capacity(blocks, block_tokens, seqs_max)


def instance(instance_id: int = 0, model: LatencyModel = SIMPLE, **limits: int) -> Instance:
    """A ready and empty instance."""
    made = Instance(instance_id)
    made.become_ready(capacity(**limits), model, 0.0)
    return made


def cluster(instances: int = 1, model: LatencyModel = SIMPLE, **limits: int) -> Cluster:
    """So many ready and empty instances, numbered from 0."""
    made = Cluster()
    for number in range(instances):
        made.launch(number, Role.MIXED).become_ready(capacity(**limits), model, 0.0)
    made.note_ready()
    return made


def place(request_: Request, on: Instance) -> Request:
    """What the control plane does at a dispatch, expecting as long an answer as was asked for."""
    request_.instance_id = on.id
    on.place(request_, request_.prompt_tokens + request_.max_tokens, request_.arrived_s)
    return request_


def decode(request_: Request, on: Instance, emitted_tokens: int = 1, first_token_s: float = 0.0) -> Request:
    """Place a request and let it emit its first tokens."""
    place(request_, on)
    request_.tokens_before = emitted_tokens - 1
    request_.first_token_s = first_token_s
    on.begin_decoding(request_)
    return request_


def sequence(
    sequence_id: int = 0, prompt: Seq[int] | int = 8, max_tokens: int = 4, emitted: Seq[int] = (), **fields: Any
) -> Sequence:
    """A sequence; a prompt given as a number is that many tokens that no other sequence has."""
    tokens = [1_000_000 * (sequence_id + 1) + i for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    values: dict[str, Any] = {"slo": Slo(), "arrived_s": 0.0, **fields}
    return Sequence(
        id=sequence_id, tokens=[*tokens, *emitted], prompt_tokens=len(tokens), max_tokens=max_tokens, **values
    )


def scheduler(
    blocks: int = 100,
    block_tokens: int = 4,
    seqs_max: int = 16,
    model: LatencyModel = SIMPLE,
    **rules: Any,
) -> StepScheduler:
    return StepScheduler(BlockPool(blocks, block_tokens), seqs_max, OnlineLatency(model), StepRules(**rules))
