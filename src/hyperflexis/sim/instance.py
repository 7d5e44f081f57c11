"""One modelled instance: the step scheduler and blocks of a real one, and steps that take what a latency model says.

Reads its messages between steps, as a real one does. Steps of decodes alone that are alike are run through in one: k of
them take k t + delta B k (k - 1) / 2, where t is the first one's time, as each adds B tokens of context. The model's
decode coefficients are rounded to the clock's ticks, so this is exactly, to the last bit, what stepping one by one
gives. A message that comes meanwhile cuts the run at the end of the step that it falls into.

Which KV blocks an answer fills is nobody's concern where there is no tensor: the scheduler only counts them. Knows the
true length of each answer and tells the scheduler only when it has ended.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.cadence import STEPS_MAX, Cadence
from hyperflexis.core.events import Event, InstanceReported, RequestFinished
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel, OnlineLatency, StepShape
from hyperflexis.core.step import Sequence, StepPlan, StepRules, StepScheduler
from hyperflexis.sim.fabric import Fabric, FabricSpec
from hyperflexis.sim.kernel import Kernel, to_ticks_s
from hyperflexis.sim.moves import SimMoves


class SimInstance:
    """Steps by itself as long as it has work; tells `feed` what a live driver would tell the control plane."""

    def __init__(
        self,
        instance_id: int,
        kernel: Kernel,
        feed: Callable[[Event], None],
        *,
        capacity: Capacity,
        believed: LatencyModel,
        truth: LatencyModel,
        rules: StepRules,
        noise: float = 0.0,
        seed: int = 0,
        runs_through: bool = True,
        fabric: Fabric | None = None,
    ) -> None:
        """`believed` is what it plans with, `truth` what its steps take, give or take a share of `noise`.

        With `runs_through` off every step is an event of its own: slower, and the same. `fabric` leads to others.
        """
        pool = BlockPool(capacity.blocks, capacity.block_tokens)
        latency = OnlineLatency(in_ticks(believed))
        self.id = instance_id
        self.scheduler = StepScheduler(pool, capacity.seqs_max, latency, rules, names_blocks=False)
        self.is_lost = False
        self._kernel = kernel
        self._feed = feed
        self._truth = in_ticks(truth)
        self._knows_truth = latency.model == self._truth
        self._noise = noise
        self._random = np.random.default_rng((seed, instance_id))
        self._steps_max = STEPS_MAX if runs_through and not noise else 1
        self._cadence = Cadence()
        self._inbox: list[Callable[[], None]] = []
        """What is to be done between two steps."""
        self.moves = SimMoves(self, kernel, feed, fabric or Fabric(FabricSpec()), capacity.kv_token_bytes)
        self._rules_version = 0
        self._answers: dict[int, int] = {}
        """Request → true length of its answer."""
        self._ends: list[tuple[int, int, int]] = []
        """(step in which an answer ends, when it began to decode, id) of what decodes, the first one first; some have
        left. Those that end with one step are told in the order in which they began, as live."""
        self._begun = 0
        self._has_changed = False
        self._plan: StepPlan | None = None
        self._shape = StepShape()
        """Of the plan's first step."""
        self._pace = (0.0, 0.0)
        """Of a run: the time of its first step, and how much longer each following one takes."""
        self._began_s = 0.0
        self._run = 0
        self._is_awake = False

    def submit(self, sequence: Sequence, answer_tokens: int) -> None:
        """Take a request, of which only this instance may know how long the answer is."""
        self.post(partial(self._add, sequence, answer_tokens))

    def cancel(self, request_id: int) -> None:
        self.post(partial(self._cancel, request_id))

    def configure(self, rules: StepRules, version: int) -> None:
        """Put rules in force; the next report says that they are."""
        self.post(partial(self._configure, rules, version))

    def post(self, action: Callable[[], None]) -> None:
        """Do that between two steps, the next two that there are."""
        self._inbox.append(action)
        self._wake()

    def note_change(self) -> None:
        """Say that there is something to report although no step may run."""
        self._has_changed = True

    def adopt(self, sequence: Sequence, computed: int, answer_tokens: int) -> None:
        """Take a sequence that has come from another instance; between two steps."""
        self._answers[sequence.id] = answer_tokens
        self.scheduler.adopt(sequence, computed, self._kernel.now)
        self._expect_end(sequence)
        self._has_changed = True

    def resumed(self, request_id: int) -> None:
        """Something that stood still goes on here; between two steps."""
        sequence = self.scheduler.find(request_id)
        assert sequence is not None
        self._expect_end(sequence)
        self._has_changed = True

    def forget(self, request_id: int) -> None:
        """Something is elsewhere from now on."""
        self._answers.pop(request_id, None)

    def _add(self, sequence: Sequence, answer_tokens: int) -> None:
        self.moves.make_way(sequence.id)
        self._answers[sequence.id] = answer_tokens
        self.scheduler.add(sequence)

    def _cancel(self, request_id: int) -> None:
        self._has_changed |= self.scheduler.cancel(request_id)
        self._answers.pop(request_id, None)
        self.moves.cancel(request_id)

    def _configure(self, rules: StepRules, version: int) -> None:
        self.scheduler.reconfigure(rules)
        self._rules_version = version
        self._has_changed = True

    def _expect_end(self, sequence: Sequence) -> None:
        """Note when the answer of something that decodes will have ended."""
        if sequence.decodes is not None:
            self._begun += 1
            heapq.heappush(self._ends, (sequence.joined + self._answers[sequence.id], self._begun, sequence.id))

    def lose(self) -> dict[int, tuple[int, float | None]]:
        """Die: nothing is heard of it any more. Returns what clients have had, told or not.

        By request: how many tokens, and when the first one was out.
        """
        self.is_lost = True
        elapsed = self._elapsed_steps()
        return {
            each.id: (each.emitted + (elapsed if each.decodes is not None else 0), each.first_token_s)
            for each in self.scheduler.sequences()
        }

    @property
    def untold_steps(self) -> int:
        """Steps that have ended and were not told."""
        return STEPS_MAX - self._cadence.steps_left + self._elapsed_steps()

    def _elapsed_steps(self) -> int:
        """Of the run that is under way, those that have ended."""
        if self._plan is None or self._plan.steps == 1:
            return 0
        return min(_steps_within(self._kernel.now - self._began_s, *self._pace), self._plan.steps - 1)

    def _wake(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            self._kernel.at(self._kernel.now, self._begin)
        elif self._plan is not None and self._plan.steps > 1:
            self._cut(self._plan)

    def _cut(self, plan: StepPlan) -> None:
        """End a run with the step that is running now."""
        first_s, growth_s = self._pace
        elapsed_s = self._kernel.now - self._began_s
        steps = _steps_within(elapsed_s, first_s, growth_s)
        if _run_s(steps, first_s, growth_s) < elapsed_s:
            steps += 1
        if steps < plan.steps:
            plan.steps = max(1, steps)
            self._schedule_end(self._began_s + _run_s(plan.steps, first_s, growth_s))

    def _begin(self) -> None:
        if self.is_lost:
            return
        now = self._kernel.now
        while self._inbox:
            inbox, self._inbox = self._inbox, []
            for action in inbox:
                action()
        self.moves.answer(may_stop=False)
        plan = self.scheduler.plan(now, self._steps_alike())
        if plan.is_void and not self._has_changed and not self.moves.may_stop():
            self._is_awake = False
            return
        self._plan = plan
        self._shape = plan.shape
        self._began_s = now
        self._schedule_end(now + self._duration_s(plan.steps))

    def _steps_alike(self) -> int:
        """How many steps may be run through before there is something to say."""
        if self._steps_max == 1 or self._has_changed or self.moves.is_called():  # Told with the next step.
            return 1
        ends, decodes = self._ends, self.scheduler.decodes
        while ends and not self._is_current(ends[0]):
            heapq.heappop(ends)
        left = ends[0][0] - decodes.steps if ends else self._steps_max
        return max(1, min(self._steps_max, self._cadence.steps_left, left))

    def _is_current(self, end: tuple[int, int, int]) -> bool:
        step, _, request_id = end
        sequence = self.scheduler.decodes.sequences.get(request_id)
        if sequence is None or request_id not in self._answers:  # One that fell back may be here twice.
            return False
        return sequence.joined + self._answers[request_id] == step

    def _duration_s(self, steps: int) -> float:
        if steps > 1:
            _, _, seqs, context = self._shape
            self._pace = self._truth.decode_step_s(seqs, context), self._truth.context_token_s * seqs
            return _run_s(steps, *self._pace)
        duration_s = self._truth.step_s(self._shape)
        if self._noise:
            duration_s *= max(0.1, 1.0 + self._noise * float(self._random.standard_normal()))
        return to_ticks_s(duration_s)

    def _schedule_end(self, instant_s: float) -> None:
        self._run += 1
        self._kernel.at(instant_s, partial(self._end, self._run))

    def _end(self, run: int) -> None:
        if self.is_lost or run != self._run:
            return
        plan = self._plan
        assert plan is not None
        self._plan = None
        now, scheduler = self._kernel.now, self.scheduler
        shape, duration_s = self._last_step(plan.steps, now)
        scheduler.commit(plan, None, now, plan.steps)
        for sequence in plan.began:
            self._expect_end(sequence)
        ended = self._ended() + self._ended_at_once(plan)
        for sequence_id, _ in ended:
            scheduler.end(sequence_id)
        moves = self.moves.end_step(plan.handed_off)
        has_news = bool(plan.prefills or ended or plan.preempted or self._has_changed or moves.suspended)
        self._has_changed = False
        steps = self._cadence.count(plan.steps, has_news)
        if steps:
            started = [sequence_id for sequence_id, _ in plan.started]
            began = [sequence.id for sequence in plan.began]
            self._feed(
                InstanceReported(
                    self.id,
                    shape,
                    duration_s,
                    steps,
                    started,
                    began,
                    plan.preempted,
                    resumed=moves.resumed,
                    arrived=moves.arrived,
                    suspended=moves.suspended,
                    rules_version=self._rules_version,
                )
            )
        for sequence_id, tokens in ended:
            self._feed(RequestFinished(self.id, sequence_id, tokens))
        self._begin()

    def _ended_at_once(self, plan: StepPlan) -> list[tuple[int, int]]:
        """Answers that end with the token at which they would have been handed off."""
        found = [sequence_id for sequence_id in plan.handed_off if self._is_complete(sequence_id)]
        plan.handed_off = [sequence_id for sequence_id in plan.handed_off if sequence_id not in found]
        return [(sequence_id, self._answers.pop(sequence_id)) for sequence_id in found]

    def _is_complete(self, sequence_id: int) -> bool:
        sequence = self.scheduler.find(sequence_id)
        return sequence is not None and sequence.emitted >= self._answers[sequence_id]

    def _last_step(self, steps: int, now: float) -> tuple[StepShape, float]:
        """What the last step of a plan computed and how long it took, having learnt from all of them."""
        latency, shape = self.scheduler.latency, self._shape
        if steps == 1:
            duration_s = now - self._began_s
            latency.observe(shape, duration_s)
            return shape, duration_s
        first_s, growth_s = self._pace
        _, _, seqs, context = shape
        if not self._knows_truth:
            for step in range(steps):
                latency.observe(StepShape(0, 0, seqs, context + step * seqs), first_s + step * growth_s)
        last = steps - 1
        return StepShape(0, 0, seqs, context + last * seqs), first_s + last * growth_s

    def _ended(self) -> list[tuple[int, int]]:
        """Requests whose answers are complete, and how long these are."""
        found = []
        steps, ends = self.scheduler.decodes.steps, self._ends
        while ends and ends[0][0] <= steps:
            end = heapq.heappop(ends)
            if self._is_current(end):
                found.append((end[2], self._answers.pop(end[2])))
        return found


def in_ticks(model: LatencyModel) -> LatencyModel:
    """The model, rounded such that steps of decodes alone take whole ticks."""
    return replace(
        model,
        decode_base_s=to_ticks_s(model.decode_base_s),
        decode_seq_s=to_ticks_s(model.decode_seq_s),
        context_token_s=to_ticks_s(model.context_token_s),
    )


def _run_s(steps: int, first_s: float, growth_s: float) -> float:
    """What so many steps take, the first of which takes `first_s` and each further one `growth_s` more."""
    return steps * first_s + growth_s * (steps * (steps - 1) // 2)


def _steps_within(elapsed_s: float, first_s: float, growth_s: float) -> int:
    """How many whole steps fit into that time: the largest k with `_run_s(k) <= elapsed_s`."""
    if growth_s <= 0:
        steps = int(elapsed_s / first_s)
    else:
        half = first_s - growth_s / 2
        steps = int((math.sqrt(half * half + 2 * growth_s * elapsed_s) - half) / growth_s)
    while _run_s(steps + 1, first_s, growth_s) <= elapsed_s:
        steps += 1
    while _run_s(steps, first_s, growth_s) > elapsed_s:
        steps -= 1
    return steps
