"""The table of loads says what the instances themselves would, whatever happens to them in whatever order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.builders import A100_14B, H100_8B, SIMPLE, capacity, cluster, place, request, slo
from hyperflexis.core.instance import Instance, InstanceStep, Role
from hyperflexis.core.latency import StepShape
from hyperflexis.core.loads import Load, load_of
from hyperflexis.core.request import Request

MODELS = st.sampled_from([SIMPLE, H100_8B, A100_14B])


class TableMachine(RuleBasedStateMachine):
    """Instances come and go, and so do requests on them; the table is looked at now and then."""

    @initialize(instances=st.integers(0, 4))
    def start(self, instances: int) -> None:
        self.cluster = cluster(instances)
        self.requests: dict[int, Request] = {}
        self.count = 0

    @property
    def ready(self) -> list[Instance]:
        return self.cluster.ready

    @rule(model=MODELS)
    def launch(self, model: object) -> None:
        made = self.cluster.launch(len(self.cluster.instances) + self.count, Role.MIXED)
        self.count += 1
        made.become_ready(capacity(), model, 0.0)
        self.cluster.note_ready()

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """What was there is not told apart by the table any more, even if its load still changes."""
        gone = self.cluster.instances.pop(data.draw(st.sampled_from(self.ready)).id)
        gone.step(InstanceStep.LOSE)
        self.cluster.note_ready()
        gone.advance(1)
        for held in [*gone.waiting, *gone.decoding]:
            del self.requests[held]

    @precondition(lambda self: self.ready)
    @rule(data=st.data(), prompt=st.integers(1, 500), tpot_s=st.sampled_from([None, 0.02, 0.5]))
    def dispatch(self, data: st.DataObject, prompt: int, tpot_s: float | None) -> None:
        made = request(self.count, prompt, 20, slo=slo(tpot_s=tpot_s))
        self.count += 1
        self.requests[made.id] = place(made, data.draw(st.sampled_from(self.ready)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), what=st.sampled_from(["begin", "fall back", "replan", "end"]))
    def happen(self, data: st.DataObject, what: str) -> None:
        one = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        assert one.instance_id is not None
        on = self.cluster.instances[one.instance_id]
        is_decoding = one.id in on.decoding
        if what == "begin" and not is_decoding:
            on.begin_decoding(one)
        elif what == "fall back" and is_decoding:
            on.fall_back(one)
        elif what == "replan":
            on.replan(one, one.planned_tokens + 7)
        elif what == "end":
            on.remove(one)
            del self.requests[one.id]

    @precondition(lambda self: self.ready)
    @rule(data=st.data(), steps=st.integers(1, 64), slowness=st.sampled_from([0.8, 1.0, 1.7]))
    def report(self, data: st.DataObject, steps: int, slowness: float) -> None:
        on = data.draw(st.sampled_from(self.ready))
        on.advance(steps)
        shape = StepShape(0, 0, len(on.decoding), on.context_tokens)
        on.observe_step(shape, slowness * on.latency.model.step_s(shape), 1.0)

    @precondition(lambda self: self.ready)
    @rule(data=st.data(), model=MODELS)
    def adopt(self, data: st.DataObject, model: object) -> None:
        """As with a report that carries a new model."""
        on = data.draw(st.sampled_from(self.ready))
        on.latency.adopt(model)
        on.observe_step(StepShape(), 0.0, 1.0)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        loads = self.cluster.loads
        loads.refresh()
        columns = [load_of(each) for each in self.ready]
        assert [loads.column(each) for each in self.ready] == columns
        assert np.array_equal(np.array(loads.table(self.ready)), np.array(columns).reshape(-1, len(Load._fields)).T)
        if self.ready:
            some = data.draw(st.lists(st.sampled_from(self.ready), min_size=1, unique=True))
            expected = np.array([load_of(each) for each in some]).T
            if len(some) < len(self.ready):
                assert np.array_equal(np.array(loads.table(some)), expected)

    @invariant()
    def rows_are_the_ready_ones(self) -> None:
        if hasattr(self, "cluster"):
            assert [each.row for each in self.ready] == list(range(len(self.ready)))
            self.cluster_is_sound()

    def cluster_is_sound(self) -> None:
        for each in self.ready:
            each.check()


TestTableMachine = TableMachine.TestCase


def test_column_in_words() -> None:
    made = cluster(1)
    (on,) = made.ready
    first, second = place(request(1, 100, 20, slo=slo(tpot_s=0.05)), on), place(request(2, 30, 10), on)
    on.begin_decoding(first)
    load = load_of(on)
    assert load.step_s == pytest.approx(0.010 + 2 * 0.001)
    assert load.peak_step_s == pytest.approx(0.010 + 3 * 0.001)
    assert load.pace_s == 0.05
    assert on.bound_until_s() == pytest.approx(20 * 0.011), "when the strict one should end"
    assert load.queued_s == pytest.approx(0.030 + 0.1 * 0.001 * 101)
    assert (load.requests, load.dispatches) == (2, 2)
    on.remove(second)
    assert load_of(on).queued_s == pytest.approx(0.1 * 0.001 * 101)
    on.remove(first)
    assert on.bound_until_s() == -math.inf, "nobody binds it"
    assert load_of(on).pace_s == 0.2
