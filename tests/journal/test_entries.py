"""Whatever can happen or be decided is the same again after it was bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hyperflexis.core.commands import AssignRole, Conclude, Dispatch, Launch, Migrate, Reason, Reject, Why
from hyperflexis.core.events import (
    Arrival,
    InstanceLost,
    InstanceReady,
    InstanceReported,
    Linked,
    RequestArrived,
    RequestFinished,
    Wakeup,
)
from hyperflexis.core.instance import Capacity, Role, StartSource
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.slo import Slo, Timeline, Verdict
from hyperflexis.core.step import StepRules
from hyperflexis.journal import entries
from hyperflexis.journal.entries import Entry, Gap, JournalError, decode, encode, requests_of, same

MODEL = LatencyModel(1e-3, 2e-3, 1 / 3, 1e-11, 5e-324, 0.0)
NUMBERS = (("ttft_s", 0.1 + 0.2), ("worst", math.inf), ("least", -0.0))
VERDICT = Verdict("a", 1, Slo(0.5, None, 1 / 7), Timeline(1 / 3, 0.4, 0.5, 0.6, 0.7, 3, None, 0.1), "i0", 2)
ENTRIES = [
    Entry(0.0, Wakeup(), [Launch(0, Role.MIXED, Reason(Why.FLEET_SHORT), StartSource.PEER, 3)]),
    Entry(1 / 3, InstanceReady(0, Capacity(10, 16, 4, 2), MODEL)),
    Entry(
        0.1 + 0.2,
        RequestArrived(7, 40, 9, Slo(0.5), -3, "ä", (b"0123456789abcdef", b"", b"x"), True),
        [Dispatch(7, 0, Reason(Why.LEAST_HARM, NUMBERS), 5)],
        "cmpl-1",
    ),
    Entry(0.4, RequestArrived(8, 40, 9, Slo()), [Reject(8, Reason(Why.TOO_LATE), 0.25)]),
    Entry(0.4, RequestArrived(9, 40, 9, Slo(), block_hashes=(b"y" * 16,))),
    Entry(
        0.5,
        InstanceReported(
            0,
            StepShape(1, 2**40, 3, 4),
            0.01,
            started=[7],
            began=[8],
            preempted=[9],
            resumed=[10],
            suspended=[11],
            latency=MODEL,
            arrived=[Arrival(12, 1, 30, 4, 16, 0.25)],
        ),
        [
            Migrate(13, 0, 1, 100, True, 2, 3, Reason(Why.RELIEVES)),
            AssignRole(0, Role.PREFILL, StepRules(), 1, Reason(Why.BALANCES)),
        ],
    ),
    Entry(0.6, RequestFinished(0, 7, 3), [Conclude(7, VERDICT, Reason(Why.ENDED))]),
    Entry(0.7, Linked(0, 1, 4)),
    Entry(0.8, InstanceLost(0, "killed"), []),
    Entry(0.9, Gap(12, 1.25, "no space left")),
]


def test_entries_are_the_same_again() -> None:
    for entry, again in zip(ENTRIES, decode(encode(ENTRIES)), strict=True):
        assert repr(again._replace(event=None, commands=None)) == repr(entry._replace(event=None, commands=None))
        assert type(again.event) is type(entry.event)
        assert len(again.commands) == len(entry.commands)
        assert all(same(*pair) for pair in zip(again.commands, entry.commands, strict=True))
        assert encode([again]) == encode([entry])


def test_instants_keep_their_last_bit() -> None:
    (again,) = decode(encode([Entry(0.1 + 0.2, InstanceReady(0, Capacity(1, 1, 1), MODEL))]))
    assert again.now == 0.1 + 0.2 != 0.3
    assert isinstance(again.event, InstanceReady)
    assert again.event.latency == MODEL


def test_hashes_come_back_to_their_requests() -> None:
    chains = [e.event.block_hashes for e in decode(encode(ENTRIES)) if isinstance(e.event, RequestArrived)]
    assert chains == [(b"0123456789abcdef", b"", b"x"), (), (b"y" * 16,)]


@pytest.mark.parametrize("request_id", range(7, 15))
def test_entries_of_one_request_are_found(request_id: int) -> None:
    found = [each.now for each in decode(encode(ENTRIES), only=request_id)]
    assert found == [each.now for each in ENTRIES if request_id in set(requests_of(each.event, each.commands))]
    assert bool(found) == (request_id < 14)


def test_numbers_of_numpy_are_numbers() -> None:
    reason = Reason(Why.FEASIBLE, (("ttft_s", np.float64(1 / 3)), ("count", np.int64(3))))  # type: ignore[arg-type]
    (again,) = decode(encode([Entry(np.float64(0.5), Wakeup(), [Dispatch(1, 2, reason)])]))  # type: ignore[arg-type]
    assert again.commands == [Dispatch(1, 2, Reason(Why.FEASIBLE, (("ttft_s", 1 / 3), ("count", 3.0))))]


def test_numbers_that_are_none_are_the_same() -> None:
    def hold(number: float) -> Dispatch:
        return Dispatch(1, 2, Reason(Why.FEASIBLE, (("ttft_s", number),)))

    assert same(hold(float("nan")), hold(float("nan")))
    assert not same(hold(0.3), hold(0.1 + 0.2))
    assert not same(hold(0.3), Reject(1, Reason(Why.FEASIBLE)))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", encode(ENTRIES)[:-40], b"\x93\x91\x95\x00\x63\x90\x90\xa0\xc4\x00\xc4\x00"]
)
def test_what_is_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises(JournalError, match="an entry cannot be read"):
        list(decode(data))


def test_another_field_makes_another_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    before = entries.schema()
    assert entries.schema() == before
    monkeypatch.setattr(Wakeup, "_fields", ("why",))
    assert entries.schema() != before


def test_told_is_what_json_can_hold() -> None:
    import json

    text = json.dumps([entries.told(each) for each in ENTRIES], allow_nan=False)
    assert json.loads(text)[2]["event"]["type"] == "RequestArrived"
    assert json.loads(text)[2]["commands"][0]["reason"]["why"] == Why.LEAST_HARM.value
