"""An instance that computes nothing: it steps like a real one and takes the time that a latency model says.

The same step scheduler, blocks and messages as the native engine; only the forward pass is replaced by a timer of the
event loop, so under a virtual clock a whole day takes moments. Its tokens are a function of the text before them alone
(unless another way is given), so that a request resumed elsewhere goes on exactly as it would have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from hyperflexis.adapters.contract import Listener
from hyperflexis.adapters.stepping import StepOutcome, Stepping, step_rules
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.latency import LatencyModel, OnlineLatency, StepShape
from hyperflexis.core.step import Sequence, StepPlan, StepScheduler
from hyperflexis.wire.messages import Ready, Submit

VOCABULARY = 50_000


def next_token(tokens: list[int]) -> int:
    """The token that a modelled instance emits after these."""
    return (tokens[-1] * 31 + len(tokens) * 17 + 7) % VOCABULARY


class ModelledAdapter:
    """Runs on the given loop, in this process. Ready `startup_s` after it is made."""

    def __init__(
        self,
        listener: Listener,
        ready: Ready,
        loop: asyncio.AbstractEventLoop,
        *,
        startup_s: float = 0.0,
        step_s: Callable[[StepShape], float] | None = None,
        next_token_of: Callable[[Sequence], int] | None = None,
    ) -> None:
        """`step_s` is what steps really take, where that is not what the model in `ready` says; `next_token_of` is what
        a sequence goes on with, where that is not `next_token`.
        """
        self._listener = listener
        self._loop = loop
        model = LatencyModel(**ready.latency)
        pool = BlockPool(ready.blocks, ready.block_tokens)
        self._step_s = step_s or model.step_s
        self._next_token_of = next_token_of or _from_text
        self._stepping = Stepping(StepScheduler(pool, ready.seqs_max, OnlineLatency(model)))
        self._inbox: list[tuple[Submit, float] | int] = []
        """Submits with the instants at which they came, and cancelled ids, in order: like a real instance, this one
        reads its messages between steps."""
        self._is_stepping = False
        self._is_closed = False
        loop.call_later(startup_s, self._announce, ready)

    @property
    def scheduler(self) -> StepScheduler:
        return self._stepping.scheduler

    def submit(self, submit: Submit) -> None:
        self._inbox.append((submit, self._loop.time()))
        self._wake()

    def cancel(self, request_id: int) -> None:
        self._inbox.append(request_id)
        self._wake()

    def configure(self, rules: Mapping[str, str | int | float]) -> None:
        self.scheduler.reconfigure(step_rules(rules))

    def close(self) -> None:
        self._is_closed = True

    def lose(self, why: str) -> None:
        """Die, as a real instance may."""
        if not self._is_closed:
            self._is_closed = True
            self._listener.on_lost(why)

    def _announce(self, ready: Ready) -> None:
        if not self._is_closed:
            self._listener.on_ready(ready)

    def _wake(self) -> None:
        if not self._is_stepping:
            self._is_stepping = True
            self._loop.call_soon(self._begin_step)

    def _begin_step(self) -> None:
        now = self._loop.time()
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            if isinstance(message, int):
                self._stepping.cancel(message)
            else:
                self._stepping.submit(*message)
        plan = self.scheduler.plan(now)
        if not plan.chunks and not self._stepping.has_news():
            self._is_stepping = False
            return
        duration_s = self._step_s(plan.shape)
        self._loop.call_later(duration_s, self._end_step, plan, duration_s)

    def _end_step(self, plan: StepPlan, duration_s: float) -> None:
        if self._is_closed:
            return
        sampled = {chunk.sequence.id: self._next_token_of(chunk.sequence) for chunk in plan.chunks if chunk.samples}
        report, _ = self._stepping.report(plan, StepOutcome(sampled, duration_s), self._loop.time())
        self._listener.on_report(report)
        self._begin_step()


def _from_text(sequence: Sequence) -> int:
    return next_token(sequence.tokens)
