"""How many instances there should be, so that promises are kept at the least cost: from what is asked for now, what may
be asked for before a start could help, and what waits already.

With rho seconds of prefill per second, L seconds of decodes per second without fixed parts of steps, f the share of a
pace that the fixed part takes, KV in tokens, and SEQS how many requests an instance computes at a time:

    need       N = max((rho + L) / (u - f), kv / (v KV), seqs / (v SEQS))      instances
    rho        the most, over horizons F, of the prefill that is due within F of its arrival and arrived within the
               last F, per F - lost (demand bound of earliest-deadline-first scheduling)
    enough     E: the same of what came in hindsight (`due_work`), and of the decodes that it brings
    wanted     the level of N times the growth that is to be expected until a start helps (`surge`), bounded by E; and
               at least what the work that waits needs: for each deadline d later than that, what n instances leave
               undone by d, over the time that one more would have for it

What has begun to come is answered by starts that are quick. A slow one helps when most of it is over, so that there
the need, too, is bounded by E. And there it is too late to learn from the first peak: who has seen little is ready for
more than has been seen, the more the less may be late.

Need and terms are the findings'; growth by quantile, the unseen, caution by feedback and the bound by deadlines are
ours. There is no mean over longer windows than promises: what came before has been done, and the growth says what may
come again. What may be needed only after a sleeper could have woken, but before a start could help, is wanted asleep.

Knows no requests one by one; what becomes of the number is `sizing`'s.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hyperflexis.core import budget, loads
from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Reason, Why
from hyperflexis.core.due_work import DEFERRABLE_S, WorkHistory
from hyperflexis.core.instance import Instance, Role
from hyperflexis.core.recent import Lately
from hyperflexis.core.sizing import Sizing, Wanted
from hyperflexis.core.surge import Caution, Surge

PLAN_S = 0.5
"""How often the size is thought about."""
QUICK_S = 5.0
"""Starts that are quicker make good what was not foreseen before it costs much."""
SHARE_MIN = 0.05
"""Of an instance's time, what is left beside fixed parts of steps at the least: where a promise is impossible."""
RARE = 20.0
"""Where they are not, all growth that is not rarer than so many times `late_share` is held ready from the first."""
DECODES_S = 20.0
"""Decodes in hindsight are those of requests that came within so long: about as long as answers last."""


class Scaler(Protocol):
    """One of a policy's decisions."""

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        """Say how many instances there should be; None: as many as before. Asked every `PLAN_S`, and when a request
        arrives and there is no instance.
        """


@dataclass(frozen=True, slots=True)
class ScalerRules:
    """How near to the edge, and how fast."""

    late_share: float = 0.01
    """Of the work of a class of which nothing else is said, what may be placed where it will be late: what cost is
    weighed with.
    """
    time_share: float = 1.0
    """u."""
    room_share: float = 0.85
    """v."""
    memory_s: float = 900.0
    """Growth is learned from so much of the past."""
    settle_s: float = 4.0
    """Fewer instances are wanted after so long."""
    idle_s: float = 60.0
    """None is wanted after so long without a request, where none is allowed."""
    overdue_s: float = 5.0
    """Work that will be late anyway is to be done within so long after help has come."""


class Need(NamedTuple):
    """Of one role, in instances."""

    need: float
    enough: float
    """What would have been enough so far."""
    held: float = 0.0
    """For what is held now, KV and seats, which no peak of a moment makes."""


class _Most(NamedTuple):
    """To be ready for, of one role."""

    instances: float
    reason: Reason

    @property
    def whole(self) -> int:
        """Whole ones; a twentieth more than that starts none."""
        return math.ceil(self.instances - 0.05)


class _Pool:
    """The instances of one role: how their need grows, and how many were wanted lately."""

    def __init__(self, rules: ScalerRules) -> None:
        self._rules = rules
        self._surges: dict[float, Surge] = {}
        self._begun_s = math.inf
        self._wanted: deque[tuple[float, int]] = deque()
        """(instant, instances), falling: the first is the most that was wanted within the time to settle."""

    def surge(self, horizon_s: float) -> Surge:
        """By horizons a fifth apart, so that what is believed of starts may vary a little."""
        key = 1.2 ** round(math.log(horizon_s, 1.2))
        if key not in self._surges:
            self._surges[key] = Surge(key, self._rules.memory_s, self._begun_s)
        return self._surges[key]

    def observe(self, need: Need, start_s: float, now: float) -> None:
        """Note a need, for the horizon of a start and for all that were asked for before."""
        self._begun_s = min(self._begun_s, now)
        self.surge(start_s)
        for surge in self._surges.values():
            surge.observe(now, need.need, need.enough)

    def settled(self, count: int, now: float) -> int:
        """The most that was wanted within that time."""
        while self._wanted and self._wanted[-1][1] <= count:
            self._wanted.pop()
        self._wanted.append((now, count))
        while self._wanted[0][0] < now - self._rules.settle_s:
            self._wanted.popleft()
        return self._wanted[0][1]


class ProactiveScaler:
    """Ours. Where some instances only prefill or only decode, each kind is sized by its own part of the need."""

    def __init__(self, rules: ScalerRules | None = None) -> None:
        self._rules = rules or ScalerRules()
        self._work = WorkHistory()
        self._asked = Lately(DECODES_S)
        self._pools: dict[Role, _Pool] = {}
        self._cautions: dict[str, Caution] = {}
        """By service class."""
        self._planned_s = -math.inf
        self._used_s = -math.inf
        self._seen: tuple[float, ...] = ()
        """All work that had arrived when it was last planned."""
        self._is_quick = False
        self._has_caught_up = False
        """Whether there have been as many instances as were needed. Where starts are slow, what is late before that
        says how long the first of them take, and nothing of what may come.
        """
        self._model: Instance | None = None
        """An instance like those that will come."""

    def plan(self, cluster: Cluster, sizing: Sizing, now: float) -> Wanted | None:
        if cluster.requests or cluster.due_work.by_term != self._seen:
            self._seen = cluster.due_work.by_term
            self._used_s = now
        prefilling, decoding = _roles(sizing)
        if not cluster.ready:
            return self._first({prefilling, decoding}, cluster, sizing)
        if now < self._planned_s + PLAN_S:
            return None
        self._planned_s = now
        self._model = cluster.ready[0]
        start_s = sizing.start_s() + PLAN_S
        state = fleet_state(cluster, self._model)
        needs = self._needs(state, cluster, sizing, now)
        for role, need in needs.items():
            self._pools.setdefault(role, _Pool(self._rules)).observe(need, start_s, now)
        self._is_quick = start_s < QUICK_S
        self._note_risen(max(self._pools[role].surge(start_s).risen for role in needs))
        self._learn(
            cluster, sizing, is_short=any(_ready(cluster, role, sizing) < need.need for role, need in needs.items())
        )
        expected = {role: self._expected(self._pools[role].surge(start_s), need.held) for role, need in needs.items()}
        found = {role: self._most(most, self._pools[role].surge(start_s)) for role, most in expected.items()}
        decodes_too = state if prefilling is decoding else None
        waiting = self._for_waiting(_ready(cluster, prefilling, sizing), decodes_too, cluster, start_s, now)
        if waiting > found[prefilling].instances:
            numbers = (*found[prefilling].reason.numbers, ("for_waiting", waiting))
            found[prefilling] = _Most(waiting, Reason(Why.BACKLOG, numbers))
        counts = {role: self._pools[role].settled(each.whole, now) for role, each in found.items()}
        changed = [role for role, count in counts.items() if count != sizing.wanted_of(role)]
        reason = found[next(iter(changed), prefilling)].reason
        if not cluster.requests and now - self._used_s >= self._rules.idle_s:
            counts = dict.fromkeys(counts, 0)
            reason = Reason(Why.IDLE, (("idle_s", now - self._used_s),))
        asleep = sum(max(0, math.ceil(expected[role]) - count) for role, count in counts.items())
        return Wanted(counts, reason, asleep if sizing.fleet.asleep_max else 0)

    def _first(self, roles: set[Role], cluster: Cluster, sizing: Sizing) -> Wanted | None:
        """One that can begin and one that can go on, if somebody waits."""
        if not cluster.requests or sizing.wanted:
            return None
        return Wanted(dict.fromkeys(roles, 1), Reason(Why.FIRST))

    def _needs(self, state: FleetState, cluster: Cluster, sizing: Sizing, now: float) -> dict[Role, Need]:
        prefilling, decoding = _roles(sizing)
        self._work.observe(cluster.due_work.by_term, now)
        rules = self._rules
        room = max(state.kv_tokens / state.kv_capacity, state.seqs / state.seqs_max) / rules.room_share
        share = max(SHARE_MIN, rules.time_share - state.fixed_share)
        due, done = self._work.due_rate(now, self._margin_s), self._work.hindsight_rate(now)
        due = min(due, done + self._goes_on * max(0.0, due - done))
        asked = self._asked.look(cluster.asked, cluster.requests.values(), cluster.ready[0], now).decode_s
        had_room = room if room <= _ready(cluster, decoding, sizing) else 0.0  # Else much of it is a queue's.
        if prefilling is decoding:
            need, enough = (due + state.decode_share) / share, (done + asked) / share
            return {prefilling: Need(max(need, room), max(enough, had_room), room)}
        return {
            prefilling: Need(due / rules.time_share, done / rules.time_share),
            decoding: Need(max(state.decode_share / share, room), max(asked / share, had_room), room),
        }

    def _learn(self, cluster: Cluster, sizing: Sizing, *, is_short: bool) -> None:
        for name, (placed, late) in cluster.placements.items():
            if name not in self._cautions:
                self._cautions[name] = Caution(sizing.fleet.late_shares.get(name, self._rules.late_share))
            if self._has_caught_up or self._is_quick:
                self._cautions[name].observe(placed, late, was_short=is_short, is_quick=self._is_quick)
            else:
                self._cautions[name].overlook(placed, late)
        self._has_caught_up |= not is_short

    def _note_risen(self, risen: float) -> None:
        if not self._is_quick:  # Else headroom is not learned.
            for each in self._cautions.values():
                each.has_come(risen)

    @property
    def _late_share(self) -> float:
        """That of the class of which least may be late."""
        return min((each.late_share for each in self._cautions.values()), default=self._rules.late_share)

    @property
    def _quantile(self) -> float:
        """That of the class that needs most."""
        sure = max((each.quantile for each in self._cautions.values()), default=Caution.QUANTILE_BEGINS)
        return sure if self._is_quick else max(sure, 1.0 - RARE * self._late_share)

    @property
    def _margin_s(self) -> float:
        return max((each.margin_s for each in self._cautions.values()), default=Caution.MARGIN_BEGINS_S)

    @property
    def _goes_on(self) -> float:
        return max((each.goes_on for each in self._cautions.values()), default=1.0)

    @property
    def _headroom(self) -> float:
        return max((each.headroom for each in self._cautions.values()), default=Caution.HEADROOM_BEGINS)

    def _expected(self, surge: Surge, held: float) -> float:
        """What may be needed until a start helps."""
        if self._is_quick:
            return surge.most(self._quantile, self._headroom)
        return surge.most_ahead(self._quantile, self._headroom, held, self._late_share)

    def _most(self, instances: float, surge: Surge) -> _Most:
        numbers: tuple[tuple[str, float], ...] = (
            ("need", surge.need),
            ("level", surge.level),
            ("growth", surge.factor(self._quantile)),
            ("within_s", surge.horizon_s),
        )
        if not self._is_quick:
            numbers += (("unseen", surge.unseen(self._late_share)),)
        return _Most(instances, Reason(Why.DEMAND, numbers))

    def _for_waiting(
        self, serving: int, decodes_too: FleetState | None, cluster: Cluster, start_s: float, now: float
    ) -> float:
        """Instances with which what waits would be done in time, as far as a start can still help."""
        share, decodes = self._rules.time_share, 0.0
        if decodes_too is not None:
            share, decodes = max(SHARE_MIN, share - decodes_too.fixed_share), decodes_too.decode_share
        speed = max(SHARE_MIN * serving, serving * share - decodes)
        overdue_s = now + start_s + self._rules.overdue_s
        due = sorted(
            (deadline_s if deadline_s > now + start_s + 0.1 else max(deadline_s, overdue_s), work_s)
            for instance in cluster.ready
            for deadline_s, work_s in instance.due_work()
        )
        more = done_s = 0.0
        for deadline_s, work_s in due:
            done_s += work_s
            left_s = done_s - speed * (deadline_s - now)
            if left_s > 0:
                more = max(more, left_s / (share * (deadline_s - now - start_s)))
        return serving + more if more > 0.2 else 0.0


def _roles(sizing: Sizing) -> tuple[Role, Role]:
    """With which role that is launched instances prefill, and with which they decode."""
    ranges = sizing.fleet.ranges
    return (
        Role.PREFILL if Role.PREFILL in ranges else Role.MIXED,
        Role.DECODE if Role.DECODE in ranges else Role.MIXED,
    )


def _ready(cluster: Cluster, role: Role, sizing: Sizing) -> int:
    """Of a role; all of them where all are launched in one, for it may be another by now."""
    if len(sizing.fleet.ranges) == 1:
        return len(cluster.ready)
    return sum(each.role is role for each in cluster.ready)


class FleetState(NamedTuple):
    """What is done and held now, by all instances together."""

    decode_share: float
    """L: seconds of decodes per second."""
    fixed_share: float
    """f."""
    kv_tokens: float
    kv_capacity: float
    """Of one instance, tokens."""
    seqs: int
    """That compute, or wait to."""
    seqs_max: int
    """Of one instance."""


def fleet_state(cluster: Cluster, model_of: Instance) -> FleetState:
    """Sum up what instances do; those that drain count with what they have, for others will have to take it."""
    model = model_of.latency.model
    live = [each for each in cluster.instances.values() if each.requests]
    paces_s = [min(loads.pace_cap_s(each), each.strictest_pace_s()) for each in live]
    pace_s = budget.AIM * min(paces_s, default=loads.pace_cap_s(model_of))
    seqs = sum(each.requests for each in live)
    context = sum(each.context_tokens for each in live)
    decoding = sum(len(each.decoding) for each in live)
    waiting = [request for each in live for request in each.waiting.values()]
    deferrable = sum(request.term_s > DEFERRABLE_S for request in waiting)
    held = context + sum(request.context_tokens for request in waiting if request.term_s <= DEFERRABLE_S)
    planned = sum(each.planned_tokens for each in live)
    planned -= sum(request.planned_tokens for request in waiting if request.term_s > DEFERRABLE_S)
    capacity = model_of.capacity
    return FleetState(
        decode_share=(model.decode_seq_s * decoding + model.context_token_s * context) / pace_s,
        fixed_share=min(0.9, model.decode_base_s / pace_s) if seqs else 0.0,
        kv_tokens=held + 0.5 * max(0, planned - held),
        kv_capacity=capacity.blocks * capacity.block_tokens,
        seqs=seqs - deferrable,
        seqs_max=capacity.seqs_max,
    )
