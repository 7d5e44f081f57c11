"""What a snapshot says of small streams of which everything is known."""

from __future__ import annotations

import pytest

from hyperflexis.core.commands import Hold, Reason, Reject, Why
from hyperflexis.core.events import InstanceLost, RequestArrived, Wakeup
from hyperflexis.core.slo import Slo
from hyperflexis.view.snapshot import Snapshot
from view.streams import CLASSES, ORIGIN_S, at, finished, launched, sent, step, watched

T = ORIGIN_S


def test_waiting_request_has_the_time_to_its_first_token() -> None:
    watch = watched([*launched(), sent(T + 1, 7)])
    snapshot = watch.snapshot(T + 1.2)
    (instance,) = snapshot.instances
    assert (instance.waiting, instance.running, instance.tightest) == (1, 0, 7)
    assert instance.slack_s == pytest.approx(0.3)
    assert instance.blocks_used == 0
    (queued,) = snapshot.queue.tightest
    assert (queued.request, queued.instance, queued.age_s) == (7, 0, pytest.approx(0.2))
    assert snapshot.queue.oldest_s == pytest.approx(0.2)


def test_decoding_request_has_the_time_to_its_next_token() -> None:
    entries = [*launched(), sent(T + 1, 7), step(T + 1.1, started=[7], began=[7]), step(T + 1.35, steps=5)]
    (instance,) = watched(entries).snapshot(T + 1.35).instances
    assert (instance.waiting, instance.running) == (0, 1)
    # Six tokens are out, the first at 1.1: the seventh is due six times 0.1 s later.
    assert instance.slack_s == pytest.approx(1.1 + 6 * 0.1 - 1.35)
    assert instance.blocks_used == 1 + (31 + 6) // 16


def test_steps_that_are_not_told_yet_are_counted_by_their_time() -> None:
    entries = [*launched(), sent(T + 1, 7), step(T + 1.1, started=[7], began=[7]), step(T + 1.35, steps=5)]
    (instance,) = watched(entries).snapshot(T + 1.55).instances
    assert instance.slack_s == pytest.approx(1.1 + (6 + 0.2 / 0.05) * 0.1 - 1.55)


def test_promise_for_the_last_token_counts_whatever_comes_before() -> None:
    entries = [*launched(), sent(T + 1, 7, "loose"), step(T + 2, started=[7], began=[7])]
    (instance,) = watched(entries).snapshot(T + 3).instances
    assert instance.slack_s == pytest.approx(18.0)


def test_late_request_has_less_than_no_time() -> None:
    (instance,) = watched([*launched(), sent(T + 1, 7)]).snapshot(T + 2).instances
    assert instance.slack_s == pytest.approx(-0.5)


def test_class_has_attainment_and_times_of_the_window() -> None:
    entries = launched()
    for number, ttft_s in enumerate((0.1, 0.2, 0.3, 0.9)):
        entries += [sent(T + 1, number), finished(T + 2 + number, number, T + 1, ttft_s, 101)]
    snapshot = watched(entries).snapshot(T + 6)
    strict = snapshot.classes[0]
    assert (strict.name, strict.attained, strict.ended, strict.ttft.target_s) == ("strict", 0.75, 4, 0.5)
    assert strict.ttft.p50_s == pytest.approx(0.25)
    assert snapshot.attained == 0.75
    later = watched(entries).snapshot(T + 100)
    assert (later.classes[0].attained, later.classes[0].ended) == (None, 0)
    assert (later.classes[0].attained_total, later.classes[0].ended_total) == (0.75, 4)


def test_refusal_counts_as_not_kept() -> None:
    arrived = RequestArrived(9, 10, 10, CLASSES["strict"].slo, 0, "strict")
    entries = [*launched(), at(T + 1, arrived, Reject(9, Reason(Why.QUEUE_FULL), 2.0))]
    snapshot = watched(entries).snapshot(T + 2)
    strict = snapshot.classes[0]
    assert (strict.attained, strict.refused_total) == (0.0, 1)
    (told,) = [each for each in snapshot.decisions if each.kind == "refused"]
    assert told.text == "refused: too many requests are unfinished; try again after 2.00 s"
    assert told.request == 9


def test_held_request_is_at_no_instance() -> None:
    arrived = RequestArrived(9, 10, 10, Slo(), 0, "loose")
    snapshot = watched([at(T + 1, arrived, Hold(9, Reason(Why.NO_INSTANCE)))]).snapshot(T + 3)
    assert (snapshot.queue.held, snapshot.queue.waiting) == (1, 0)
    assert snapshot.queue.tightest[0].instance is None
    assert snapshot.classes[1].waiting == 1


def test_lost_instance_is_shown_and_what_it_cost_stays() -> None:
    entries = [*launched(), *launched(instance_id=1), at(T + 1200, InstanceLost(1, "killed"))]
    snapshot = watched(entries).snapshot(T + 1201)
    assert [each.state for each in snapshot.instances] == ["ready", "lost"]
    assert (snapshot.cost.awake, snapshot.cost.per_hour) == (1, 3.0)
    assert snapshot.cost.so_far == pytest.approx((2 * 1200 + 1) * 3 / 3600)


def test_history_has_a_sample_each_second_and_rates() -> None:
    entries = launched()
    for number in range(40):
        entries.append(sent(T + 0.1 * number + 0.01, number))
    watch = watched(entries)
    snapshot = watch.snapshot(T + 4.2)
    instants = [sample.at_s for sample in watch.history.samples]
    assert [round(at_s) for at_s in instants] == [0, 1, 2, 3, 4]
    assert [sample.at_s for sample in snapshot.samples] == instants[-3:]
    assert watch.history.samples[2].arrivals_per_s == pytest.approx(10, abs=1)


def test_load_follows_what_is_computed() -> None:
    entries = [*launched(), sent(T + 1, 7), step(T + 1.1, started=[7], began=[7]), step(T + 9, steps=60)]
    watch = watched(entries)
    busy = watch.snapshot(T + 9).instances[0].load
    done = watched([*entries, finished(T + 9, 7, T + 1, 0.1, 61)])
    idle = done.snapshot(T + 19).instances[0].load
    assert busy > 0.7
    assert idle < 0.01


def test_snapshot_of_nothing() -> None:
    snapshot = watched([at(T, Wakeup())]).snapshot(T)
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.instances, snapshot.attained, snapshot.queue.oldest_s) == ([], None, None)
