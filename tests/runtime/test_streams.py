"""What an instance is told of a request, new or resumed, and what operators are shown of an instance."""

from __future__ import annotations

from typing import cast

from hyperflexis.adapters.contract import Adapter
from hyperflexis.adapters.sequences import sequence_of
from hyperflexis.core.instance import Role
from hyperflexis.runtime.registry import InstanceStatus, Member, status_of
from hyperflexis.runtime.streams import Sink, Stream
from hyperflexis.wire.messages import GenerateRequest, Ready, Sampling, StepReport, Submit

REQUEST = GenerateRequest(
    prompt=[1, 2, 3],
    max_tokens=9,
    sampling=Sampling(seed=4, stop_ids=(8,)),
    service_class="chat",
    priority=2,
    ttft_s=0.5,
    tpot_s=0.04,
    e2e_s=5.0,
)


def stream() -> Stream:
    return Stream(REQUEST, cast("Sink", None), arrived_s=100.0)


def test_new_request_is_submitted_with_its_promise_and_its_wait() -> None:
    assert stream().submission(7, 5, now=100.25) == Submit(
        request=7,
        prompt=[1, 2, 3],
        emitted=[],
        max_tokens=9,
        sampling=REQUEST.sampling,
        priority=2,
        ttft_s=0.5,
        tpot_s=0.04,
        e2e_s=5.0,
        waited_s=0.25,
        first_token_age_s=None,
        expected_tokens=5,
    )


def test_resumed_request_carries_what_was_emitted_and_when() -> None:
    resumed = stream()
    resumed.emitted += [11, 12]
    resumed.first_token_s = 100.5
    submit = resumed.submission(7, 5, now=102.0)
    assert (submit.emitted, submit.waited_s, submit.first_token_age_s) == ([11, 12], 2.0, 1.5)
    assert (submit.prompt, submit.max_tokens) == ([1, 2, 3], 9)


def test_submission_is_a_copy_of_the_moment() -> None:
    """The stream goes on growing while the message waits to be sent."""
    resumed = stream()
    resumed.emitted.append(11)
    submit = resumed.submission(7, 5, now=101.0)
    resumed.emitted.append(12)
    assert submit.emitted == [11]


def test_instants_survive_the_way_to_another_clock() -> None:
    resumed = stream()
    resumed.emitted.append(11)
    resumed.first_token_s = 100.5
    sequence = sequence_of(resumed.submission(7, 5, now=102.0), now=5.0)
    assert (sequence.arrived_s, sequence.first_token_s) == (3.0, 3.5)
    assert (sequence.prompt_tokens, sequence.emitted, sequence.max_tokens) == (3, 1, 9)
    assert sequence.expected_tokens == 5


def test_stream_has_failed_until_somebody_says_otherwise() -> None:
    assert stream().ended_as == "failed"


def test_status_before_ready_after_it_and_after_a_report() -> None:
    member = Member(cast("Adapter", None), Role.MIXED)
    assert status_of("i3", member) == InstanceStatus("i3", "starting", "mixed", 0, 0, 0, 0)
    member.state, member.ready = "ready", Ready(50, 16, 8, {}, [], "cpu")
    assert status_of("i3", member) == InstanceStatus("i3", "ready", "mixed", 0, 0, 50, 50)
    lists: list[list[int]] = [[] for _ in range(8)]
    member.report = StepReport(0.1, 0, 0, 2, 40, *lists, 1, 3, 90, 2, 41)
    assert status_of("i3", member) == InstanceStatus("i3", "ready", "mixed", 3, 2, 50, 41)
