"""TaiChi: two sizes of chunks, prompts on either, and decodes that stay where they can."""

from __future__ import annotations

import pytest

from helpers.builders import decode, place, request, slo
from hyperflexis.core.instance import Role
from hyperflexis.policies import create
from policies.choosing import bound, fleet, prefill, stand

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def test_roles_are_fixed_chunks() -> None:
    made = create("taichi:chunk_d=64", 512)
    rules = {role: made.rules_of(role) for role in Role}
    assert {role: (each.sizing, each.prefill_tokens_max, each.hands_off) for role, each in rules.items()} == {
        P: ("fixed", 512, True),
        D: ("fixed", 64, False),
        M: ("slack", 512, False),
    }


@pytest.mark.parametrize(("tokens", "queued", "expected"), [(10, 0, 0), (10, 100, 1), (400, 100, 0)])
def test_prompt_goes_where_its_first_token_is_earliest(tokens: int, queued: int, expected: int) -> None:
    made, among = create("taichi:chunk_d=16", 512), fleet(P, D)
    if queued:
        place(request(1, queued), among.ready[0])
    decode(request(2), among.ready[1])
    assert prefill(made, request(9, tokens), among) == expected


def test_full_decode_heavy_instance_gets_no_prompt() -> None:
    made, among = create("taichi", 512), fleet(P, D, blocks=10)
    place(request(1, 100), among.ready[0])
    decode(request(2, 130), among.ready[1])
    assert prefill(made, request(9), among) == 0


@pytest.mark.parametrize(("tpot_s", "expected"), [(0.05, 1), (0.2, 0), (None, 0)])
def test_decode_stays_beside_large_chunks_if_its_tpot_has_slack(tpot_s: float | None, expected: int) -> None:
    """A step with a full chunk takes 111 ms."""
    made, among = create("taichi:chunk_p=100", 512), fleet(P, D)
    source = among.ready[0]
    assert bound(made, stand(request(9, slo=slo(1.0, tpot_s)), source), source, among) == expected


def test_decode_stays_where_no_decode_heavy_instance_has_room() -> None:
    made, among = create("taichi", 512), fleet(P, D, blocks=10)
    decode(request(2, 130), among.ready[1])
    source = among.ready[0]
    assert bound(made, stand(request(9, slo=slo(1.0, 0.05)), source), source, among) == 0
    decode(request(3, 110), source)
    assert bound(made, request(9, slo=slo(1.0, 0.05)), source, among) is None
