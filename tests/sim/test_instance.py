"""A modelled instance: running through like steps gives, to the last bit, what stepping one by one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from helpers.builders import A100_14B, H100_8B, SIMPLE, capacity
from hyperflexis.core.events import Event, InstanceReported, RequestFinished
from hyperflexis.core.instance import Capacity
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.slo import Slo
from hyperflexis.core.step import Sequence, StepRules
from hyperflexis.sim.instance import SimInstance, in_ticks
from hyperflexis.sim.kernel import Kernel, to_ticks_s


class Work(NamedTuple):
    """One request to an instance: when, how much, and when its client leaves, if it does."""

    at_s: float
    prompt_tokens: int
    answer_tokens: int
    max_tokens: int
    slo: Slo
    priority: int
    shared_tokens: int
    """Of the prompt, from its start, that others have too; 0: its content is not known."""
    leaves_s: float | None


@dataclass
class Bench:
    """An instance and an ear."""

    capacity: Capacity
    believed: LatencyModel
    truth: LatencyModel
    rules: StepRules = field(default_factory=StepRules)
    noise: float = 0.0
    seed: int = 0
    runs_through: bool = True
    heard: list[tuple[float, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kernel = Kernel()
        self.instance = SimInstance(
            0,
            self.kernel,
            lambda event: self.heard.append((self.kernel.now, event)),
            capacity=self.capacity,
            believed=self.believed,
            truth=self.truth,
            rules=self.rules,
            noise=self.noise,
            seed=self.seed,
            runs_through=self.runs_through,
        )

    def expect(self, works: list[Work]) -> None:
        for number, work in enumerate(works):
            self.at(work.at_s, lambda number=number, work=work: self.submit(number, work))
            if work.leaves_s is not None:
                self.at(work.at_s + work.leaves_s, lambda number=number: self.instance.cancel(number))

    def at(self, instant_s: float, action: Callable[[], None]) -> None:
        self.kernel.at(to_ticks_s(instant_s), action)

    def submit(self, number: int, work: Work) -> None:
        text = [*range(work.shared_tokens), *(1000 * (number + 1) + i for i in range(work.prompt_tokens))]
        hashes = block_hashes(text[: work.prompt_tokens], self.capacity.block_tokens) if work.shared_tokens else []
        sequence = Sequence(
            number,
            [],
            work.prompt_tokens,
            work.max_tokens,
            work.slo,
            self.kernel.now,
            emitted=0,
            hashes=list(hashes),
            priority=work.priority,
            reuses_prefix=bool(hashes),
        )
        self.instance.submit(sequence, work.answer_tokens)

    def run(self) -> list[tuple[float, Event]]:
        self.kernel.run()
        self.instance.scheduler.check()
        assert self.instance.scheduler.is_idle(), repr(self.instance.scheduler)
        pool = self.instance.scheduler.pool
        assert pool.blocks_free == pool.blocks
        return self.heard


def counted(heard: list[tuple[float, Event]]) -> dict[int, int]:
    """The length of each answer that ended, counted from what was told before its end."""
    decoding: dict[int, int] = {}
    fallen: dict[int, int] = {}
    ended: dict[int, int] = {}
    for _, told in heard:
        if isinstance(told, InstanceReported):
            for number in decoding:
                decoding[number] += told.steps
            for number in decoding.keys() & set(told.preempted):
                fallen[number] = decoding.pop(number) - 1
            for number in told.began:
                decoding[number] = fallen.pop(number, 0) + 1
        elif isinstance(told, RequestFinished):
            assert told.request_id not in ended, "it ended twice"
            ended[told.request_id] = decoding.pop(told.request_id)
            assert ended[told.request_id] == told.emitted_tokens
    return ended


MODELS = [SIMPLE, H100_8B, A100_14B, LatencyModel(0.02, 0.005, 0.001, 1e-5, 0.0005, 1e-5)]
STEP_S = in_ticks(SIMPLE).decode_step_s(1, 0)
INSTANTS = st.floats(0.0, 1.5) | st.integers(0, 100).map(lambda steps: steps * STEP_S) | st.just(0.0)
"""Now and then exactly where steps end."""
SLOS = st.sampled_from([Slo(), Slo(0.05, 0.02), Slo(0.5, 0.1), Slo(5.0, 0.012), Slo(e2e_s=1.0)])


@st.composite
def benches(draw: st.DrawFn) -> tuple[dict[str, object], list[Work]]:
    """A small instance and what comes to it."""
    blocks, block_tokens = draw(st.integers(4, 60)), draw(st.sampled_from([1, 4, 16]))
    tokens = blocks * block_tokens
    works = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = draw(st.integers(1, tokens - 1))
        answer = draw(st.integers(1, min(300, tokens - prompt)))
        works.append(
            Work(
                draw(INSTANTS),
                prompt,
                answer,
                draw(st.integers(answer, tokens - prompt)),
                draw(SLOS),
                draw(st.integers(0, 1)),
                draw(st.integers(0, prompt)),
                draw(st.none() | st.none() | INSTANTS),
            )
        )
    rules = StepRules(
        draw(st.sampled_from(["fewest_late", "fewest_late", "deadline", "arrival"])),
        draw(st.sampled_from(["slack", "fixed"])),
        draw(st.sampled_from([16, 2048])),
    )
    believed, truth = draw(st.sampled_from(MODELS)), draw(st.sampled_from(MODELS))
    limits = capacity(blocks, block_tokens, draw(st.integers(1, 6)))
    return {"capacity": limits, "believed": believed, "truth": truth, "rules": rules}, works


@settings(max_examples=150)
@given(benches())
def test_running_through_is_stepping_one_by_one(bench: tuple[dict[str, object], list[Work]]) -> None:
    options, works = bench
    told = []
    for runs_through in (True, False):
        made = Bench(**options, runs_through=runs_through)
        made.expect(works)
        told.append(made.run())
    assert told[0] == told[1]
    reports = [said for _, said in told[0] if isinstance(said, InstanceReported)]
    event(f"preemptions {min(2, sum(len(said.preempted) for said in reports))}")
    event(f"longest run {max((said.steps for said in reports), default=0) // 16 * 16}")


@given(benches())
def test_every_answer_has_its_length_and_ends_once(bench: tuple[dict[str, object], list[Work]]) -> None:
    options, works = bench
    made = Bench(**options)
    made.expect(works)
    ended = counted(made.run())
    for number, work in enumerate(works):
        assert ended.get(number, work.answer_tokens) == work.answer_tokens
        assert number in ended or work.leaves_s is not None


def work(at_s: float = 0.0, prompt: int = 20, answer: int = 10, **fields: object) -> Work:
    values = {
        "max_tokens": 400,
        "slo": Slo(),
        "priority": 0,
        "shared_tokens": 0,
        "leaves_s": None,
        **fields,
    }
    return Work(at_s, prompt, answer, **values)


def bench(**options: object) -> Bench:
    return Bench(**{"capacity": capacity(), "believed": SIMPLE, "truth": SIMPLE, **options})


def test_one_request_takes_what_the_model_says() -> None:
    made = bench()
    made.expect([work(5.0, prompt=20, answer=4)])
    (first_s, first), *_, (last_s, last) = made.run()
    assert isinstance(first, InstanceReported)
    assert (first.started, first.began, first.steps) == ([0], [0], 1)
    assert first_s == pytest.approx(5.030)
    assert last == RequestFinished(0, 0, 4)
    assert last_s == pytest.approx(5.030 + 3 * 0.011)


def test_step_takes_what_is_true_and_not_what_is_believed() -> None:
    made = bench(truth=LatencyModel(0.05, 0.05, 0.0, 0.0, 0.0, 0.0))
    made.expect([work(answer=2)])
    assert [now for now, _ in made.run()] == pytest.approx([0.05, 0.1, 0.1])
    assert made.instance.scheduler.latency.correction.factor("decode") > 1.0, "and it learns"


def test_run_is_cut_at_the_end_of_the_step_that_a_message_falls_into() -> None:
    made = bench()
    made.expect([work(answer=50), work(0.1, answer=1)])
    heard = made.run()
    began_s = next(now for now, told in heard if isinstance(told, InstanceReported) and 1 in told.began)
    steps_before = 7  # 0.030 + 6 * 0.011 = 0.096 < 0.1 < 0.107
    assert began_s == pytest.approx(0.030 + steps_before * 0.011 + 0.010 + 0.001 + 0.020)


def test_cancel_is_told_even_if_it_leaves_nothing_to_do() -> None:
    made = bench()
    made.expect([work(answer=400, leaves_s=0.1)])
    heard = made.run()
    assert not any(isinstance(told, RequestFinished) for _, told in heard)
    (_, last) = heard[-1]
    assert isinstance(last, InstanceReported)
    assert last.shape == (0, 0, 0, 0)


def test_nothing_is_heard_of_a_lost_instance() -> None:
    made = bench()
    made.expect([work(answer=400)])
    made.at(0.2, made.instance.lose)
    made.kernel.run()
    assert max(now for now, _ in made.heard) <= 0.2


def test_noise_is_of_the_seed() -> None:
    def durations(seed: int, noise: float) -> list[float]:
        made = bench(seed=seed, noise=noise)
        made.expect([work(answer=40), work(0.2, answer=10)])
        return [now for now, _ in made.run()]

    assert durations(1, 0.1) == durations(1, 0.1)
    assert durations(1, 0.1) != durations(2, 0.1)
    assert durations(1, 0.0) == durations(2, 0.0)


@given(st.sampled_from(MODELS))
def test_model_in_ticks_is_the_model(model: LatencyModel) -> None:
    rounded = in_ticks(model)
    assert rounded.decode_step_s(64, 100_000) == pytest.approx(model.decode_step_s(64, 100_000), abs=2e-6)
    assert to_ticks_s(rounded.decode_step_s(7, 12345)) == rounded.decode_step_s(7, 12345)
