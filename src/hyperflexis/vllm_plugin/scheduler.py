"""vLLM's scheduler, told before each step what goes first and how much: `--scheduler-cls`, see docs/vllm_plugin.md.

    order   running decodes first; then prefills, running and waiting alike, as `StepChooser` orders them
    size    each prefill is capped where vLLM asks how long a chunk may be

All else (blocks, prefix cache, preemption, connectors, grammars) stays vLLM's. It is made for the version that it was
tested with: the methods of a scheduler are not public in vLLM, and one of them is the cap.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from vllm.logger import init_logger
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from hyperflexis.core.latency import StepShape
from hyperflexis.core.slo import Slo
from hyperflexis.vllm_plugin.chooser import Job, Room, StepChooser, shape_of
from hyperflexis.vllm_plugin.promises import promised
from hyperflexis.vllm_plugin.settings import settings

log = init_logger(f"vllm.{__name__}")  # What is below that name is shown as vLLM shows its own.

CAP = "_reserve_prefill_lookahead"
"""What vLLM asks, with a number of tokens, before it gives a prefill that many."""
if not hasattr(Scheduler, CAP):
    raise ImportError(f"this vLLM has no Scheduler.{CAP}, by which chunks are capped; use the version in the docs")

_STARTABLE = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class SloScheduler(Scheduler):
    """One per engine. Requests without promises are served as vLLM would: by priority, then arrival."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting = FCFSRequestQueue()  # Ordered here, whatever the policy; that still says who is preempted.
        self.chooser = StepChooser(*settings(self.vllm_config.additional_config, self.max_num_scheduled_tokens))
        self._jobs: WeakKeyDictionary[Request, Job] = WeakKeyDictionary()
        self._job_ids = itertools.count()
        self._caps: dict[str, int] = {}
        # Where chunks must end at certain places, vLLM alone says where.
        self._may_cap = self.scheduler_config.enable_chunked_prefill and not self.need_mamba_block_aligned_split
        self._is_capped = True
        self._begun: deque[tuple[float, StepShape]] = deque()
        """Steps whose outcome has not come yet."""
        self._ended_s = -math.inf

    def add_request(self, request: Request) -> None:
        is_new = request.request_id not in self.requests
        super().add_request(request)
        if is_new:
            self._jobs[request] = self._job(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        decoding = self._put_in_order(now)
        output = super().schedule(*args, **kwargs)
        is_empty = output.total_num_scheduled_tokens == 0
        # What was let in found no room, and what was held back might: vLLM's own way, for one step.
        self._is_capped = not (is_empty and self._caps)
        if not is_empty:
            self._begun.append((now, self._shape(output.num_scheduled_tokens, decoding)))
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if scheduler_output.total_num_scheduled_tokens == 0:
            return outputs
        now = time.monotonic()
        began_s, shape = self._begun.popleft()
        self.chooser.observe(shape, max(1e-6, now - max(began_s, self._ended_s)))
        self._ended_s = now
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            job = None if request is None else self._jobs.get(request)
            if job is not None and job.first_token_s is None and request.num_output_tokens:
                job.begin_to_answer(now)
        return outputs

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        cap = self._caps.get(request.request_id, num_new_tokens)
        tokens: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, min(cap, num_new_tokens))
        return tokens

    # -- before a step

    def _put_in_order(self, now: float) -> list[Job]:
        """Order what runs and what waits, and cap prefills; returns the decodes."""
        running = [(request, self._refreshed(request)) for request in self.running]
        decodes = [(request, job) for request, job in running if _is_decoding(request)]
        prefills = {job.id: request for request, job in running if not _is_decoding(request)}
        waiting = {self._refreshed(each).id: each for each in self.waiting if each.status in _STARTABLE}
        blocked = [each for each in self.waiting if each.status not in _STARTABLE]
        decoding = [job for _, job in decodes]
        prefilling = [self._jobs[request] for request in itertools.chain(prefills.values(), waiting.values())]
        choice = self.chooser.choose(now, decoding, prefilling, self._room(decodes))
        # Who runs last is the first to lose its blocks.
        decodes.sort(key=lambda each: (-each[1].priority, each[1].due_s(), each[1].arrived_s))
        self.running: list[Request] = [request for request, _ in decodes]
        self.running += [prefills[job.id] for job in choice.order if job.id in prefills]
        _refill(self.waiting, blocked + [waiting[job.id] for job in choice.order if job.id in waiting])
        self._caps = {}
        if self._is_capped and self._may_cap:
            for job_id, request in itertools.chain(prefills.items(), waiting.items()):
                self._caps[request.request_id] = choice.tokens.get(job_id, 0)
        return decoding

    def _room(self, decodes: list[tuple[Request, Job]]) -> Room:
        for_decodes = sum(
            [max(1, request.num_tokens_with_spec - request.num_computed_tokens) for request, _ in decodes]
        )
        seats = self.max_num_active_reqs - len(self.running) - self.num_waiting_for_streaming_input
        free = self.kv_cache_manager.block_pool.get_num_free_blocks() * self.block_size
        return Room(self.max_num_scheduled_tokens - for_decodes, seats, free)

    def _refreshed(self, request: Request) -> Job:
        job = self._jobs.get(request)
        if job is None:  # It came by another way than `add_request`.
            job = self._jobs[request] = self._job(request)
        computed = request.num_computed_tokens
        job.has_begun, job.emitted = computed > 0, request.num_output_tokens
        job.computed = computed if job.has_begun else job.cached_tokens
        return job

    def _job(self, request: Request) -> Job:
        params = request.sampling_params
        try:
            slo = promised(None if params is None else params.extra_args)
        except ValueError as error:  # One client's mistake must not end the engine.
            log.warning("request %s is served without a promise: %s", request.request_id, error)
            slo = Slo()
        # vLLM's clock for arrivals is that of the day.
        arrived_s = time.monotonic() - max(0.0, time.time() - request.arrival_time)
        prompt, most = request.num_prompt_tokens, max(1, request.max_tokens)
        job = Job(next(self._job_ids), prompt, most, slo, arrived_s, -request.priority)
        if not self.enable_kv_cache_events:  # A look into the cache could make some.
            job.cached_tokens = self.kv_cache_manager.get_computed_blocks(request)[1]
        return job

    def _shape(self, scheduled: dict[str, int], decoding: list[Job]) -> StepShape:
        """What the step computes, now that vLLM knows what the prefix cache had."""
        decodes = {job.id for job in decoding}
        beside: list[Job] = []
        chunks: list[tuple[Job, int]] = []
        for request_id, tokens in scheduled.items():
            request = self.requests[request_id]
            job = self._jobs[request]
            if job.id in decodes:
                beside.append(job)
            else:
                job.computed = request.num_computed_tokens - tokens  # The chunk counts as computed by now.
                chunks.append((job, tokens))
        return shape_of(beside, chunks)


def _is_decoding(request: Request) -> bool:
    return bool(request.num_output_tokens) and request.num_tokens - request.num_computed_tokens <= 1


def _refill(queue: FCFSRequestQueue, requests: Iterable[Request]) -> None:
    ordered = list(requests)
    queue.clear()
    queue.extend(ordered)
