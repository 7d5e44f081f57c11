"""One instance: a process that alternates between its socket and the next step, until the socket closes.

Step by step: read what has come, let the core's scheduler choose, let the engine compute, send one report. With nothing
to compute it sleeps on the socket. Knows no HTTP, no text and no other instance.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import time
from dataclasses import asdict

import torch

from hyperflexis.adapters.native import calibration
from hyperflexis.adapters.native.lineage import leave_signals_to_parent
from hyperflexis.adapters.native.loading import Model
from hyperflexis.adapters.native.messages import Fork
from hyperflexis.adapters.stepping import StepOutcome, Stepping, step_rules
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.latency import OnlineLatency, StepHistory, StepShape, fit
from hyperflexis.core.step import Chunk, StepPlan, StepScheduler
from hyperflexis.engine.batch import SequenceSlice
from hyperflexis.engine.errors import EngineError
from hyperflexis.engine.runner import Runner
from hyperflexis.wire.framing import BlockingChannel
from hyperflexis.wire.messages import Configure, Failed, Ready, Shutdown, Submit, ToInstance, Work

log = logging.getLogger(__name__)

_STALLED_S = 0.05
"""How long to wait for news when work is there but none of it can run (no blocks)."""


def run(sock: socket.socket, order: Fork, model: Model) -> int:
    """Live until the socket closes; returns the process's exit status."""
    leave_signals_to_parent()
    channel: BlockingChannel[ToInstance] = BlockingChannel(sock, ToInstance)
    try:
        instance = _start(channel, order, model)
        instance.serve()
    except (EOFError, ConnectionError):
        return 0
    except Exception as error:  # The last supervisor of this process: whatever it is, say it and end.
        log.exception("instance i%d fails", order.instance_id)
        _say_last(channel, f"{type(error).__name__}: {error}")
        return 1
    return 0


def _say_last(channel: BlockingChannel[ToInstance], reason: str) -> None:
    try:
        channel.send(Failed(reason))
    except OSError:
        log.warning("nobody is left to hear: %s", reason)


def _start(channel: BlockingChannel[ToInstance], order: Fork, model: Model) -> Instance:
    marks = [("begin", time.monotonic())]
    torch.set_num_threads(order.threads)
    weights = model.layout.views(memoryview(model.memory.map_for_reading()))
    if torch.device(order.device).type != "cpu":
        weights = {name: weight.to(order.device) for name, weight in weights.items()}
    marks.append(("weights", time.monotonic()))
    runner = Runner(
        model.config,
        weights,
        blocks=order.blocks,
        block_tokens=order.block_tokens,
        device=torch.device(order.device),
        dtype=model.dtype,
    )
    marks.append(("runner", time.monotonic()))
    samples = [(StepShape(*shape), actual_s) for shape, actual_s in order.samples]
    samples = samples or calibration.measure(runner, order.blocks, order.block_tokens)
    latency = OnlineLatency(fit(samples), StepHistory(samples))
    marks.append(("calibration", time.monotonic()))
    # What lives now lives as long as the process: no collection need look at it, and no page of it be copied.
    gc.freeze()
    channel.send(
        Ready(
            blocks=order.blocks,
            block_tokens=order.block_tokens,
            seqs_max=order.seqs_max,
            latency=asdict(latency.model),
            samples=samples,
            device=f"{order.device} ({os.getpid()})",
            startup_s=dict(calibration.phases(marks)),
        )
    )
    pool = BlockPool(order.blocks, order.block_tokens)
    scheduler = StepScheduler(pool, order.seqs_max, latency)
    return Instance(channel, scheduler, runner)


class Instance:
    """The loop, and what it holds together: socket, scheduler, engine."""

    def __init__(self, channel: BlockingChannel[ToInstance], scheduler: StepScheduler, runner: Runner) -> None:
        self._channel = channel
        self._scheduler = scheduler
        self._stepping = Stepping(scheduler)
        self._runner = runner
        self._is_leaving = False

    def serve(self) -> None:
        """Step until told to leave.

        Raises:
            EOFError: the socket was closed.
        """
        is_stalled = False
        while not self._is_leaving:
            is_idle = self._scheduler.is_idle() and not self._stepping.has_news()
            timeout_s = None if is_idle else _STALLED_S if is_stalled else 0.0
            for message in self._channel.receive(timeout_s):
                self._take(message)
            plan = self._scheduler.plan(time.monotonic())
            is_stalled = not plan.chunks
            if plan.chunks or self._stepping.has_news():
                self._step(plan)

    def _take(self, message: ToInstance) -> None:
        if isinstance(message, Work):
            for submit in message.submits:
                self._submit(submit)
            for request_id in message.cancels:
                if self._stepping.cancel(request_id):
                    self._runner.close(request_id)
        elif isinstance(message, Configure):
            self._scheduler.reconfigure(step_rules(message.rules))
        elif isinstance(message, Shutdown):
            self._is_leaving = True

    def _submit(self, submit: Submit) -> None:
        if self._stepping.submit(submit, time.monotonic()):
            try:
                self._runner.open(submit.request, submit.sampling, submit.prompt, submit.emitted)
            except EngineError as error:
                self._stepping.refuse(submit.request, str(error))

    def _step(self, plan: StepPlan) -> None:
        started_s = time.monotonic()
        outcome = self._compute(plan)
        now = time.monotonic()
        outcome.duration_s = now - started_s
        report, ended = self._stepping.report(plan, outcome, now)
        for sequence_id in ended:
            self._runner.close(sequence_id)
        self._channel.send(report)

    def _compute(self, plan: StepPlan) -> StepOutcome:
        if not plan.chunks:
            return StepOutcome({}, 0.0)
        chunks = plan.chunks
        result = self._runner.step([_slice(chunk) for chunk in chunks])
        sampling = [chunk.sequence.id for chunk in chunks if chunk.samples]
        return StepOutcome(
            sampled={
                seq: token for seq, token in zip(sampling, result.tokens, strict=True) if seq not in result.errors
            },
            duration_s=0.0,
            errors=result.errors,
            logprobs={sampling[index]: logprobs for index, logprobs in result.logprobs.items()},
            prompt_logprobs=result.prompt_logprobs,
        )


def _slice(chunk: Chunk) -> SequenceSlice:
    sequence, start, tokens, samples = chunk
    return SequenceSlice(
        sequence=sequence.id,
        tokens=sequence.tokens[start : start + tokens],
        start=start,
        blocks=sequence.blocks,
        sample=samples,
    )
