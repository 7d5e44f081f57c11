"""Requests that move from one instance to another: those under way, and what becomes of each.

A move ends with the target's word, done or failed, or with the target's death; nothing else ends it, so that nobody
computes a request twice. Until then it counts at both ends: at the source with what it does there, at the target with
the room that it will need. If its source dies, the target is asked whether it has everything.

Moves never go round in a circle of instances. What has not been computed yet moves when it has been, and waits at its
source for blocks, of which those for what is to come are taken; in a circle all would wait for each other.

Which request moves, and where, is decided elsewhere (`binding`, policies).
"""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.core.cluster import Cluster
from hyperflexis.core.commands import Abandon, Cancel, Command, Migrate, Reason, Stay, Why
from hyperflexis.core.events import Arrival
from hyperflexis.core.instance import Instance
from hyperflexis.core.links import Links
from hyperflexis.core.request import Request, RequestState, RequestStep


@dataclass(slots=True)
class Migration:
    """One move that is under way."""

    request: Request
    source: Instance
    target: Instance
    at_first_token: bool
    move: int


class Migrations:
    """All that are under way, by request."""

    def __init__(self, cluster: Cluster, links: Links) -> None:
        self._cluster = cluster
        self._links = links
        self._moves = 0
        self.under_way: dict[int, Migration] = {}
        self._targets: dict[int, dict[int, Instance]] = {}
        """Of each instance, to which its moving requests go."""

    def __contains__(self, request_id: int) -> bool:
        return request_id in self.under_way

    def can(self, source: Instance, target: Instance) -> bool:
        """Whether the target can take from the source now."""
        return self._links.version(source.id, target.id) is not None and not self._leads(target, source)

    def _leads(self, begin: Instance, end: Instance) -> bool:
        """Whether moves under way lead from one instance to another, over others perhaps."""
        reached, known = [begin], {begin.id}
        while reached:
            instance = reached.pop()
            if instance is end:
                return True
            for target in self._targets.get(instance.id, {}).values():
                if target.id not in known:
                    known.add(target.id)
                    reached.append(target)
        return False

    def begin(
        self, request: Request, target: Instance, reason: Reason, now: float, *, at_first_token: bool = False
    ) -> Migrate:
        """Have `target`, which must be linked, take a request from where it is."""
        assert request.id not in self.under_way, f"request {request.id} moves already"
        assert request.instance_id is not None
        source = self._cluster.instances[request.instance_id]
        version = self._links.version(source.id, target.id)
        assert version is not None, f"{target.name} is not linked to {source.name}"
        expected = self._cluster.expected_tokens(request)
        recomputes = not at_first_token and self._is_cheaper_anew(request, source, target, now)
        if not recomputes:
            self._cluster.network.send(source.id, target.id, _kv_bytes(request, target), now)
        target.expect(request, request.prompt_tokens + expected, now)
        self._moves += 1
        self.under_way[request.id] = Migration(request, source, target, at_first_token, self._moves)
        self._targets.setdefault(source.id, {})[request.id] = target
        return Migrate(
            request.id,
            source.id,
            target.id,
            request.context_tokens,
            at_first_token,
            version,
            self._moves,
            reason,
            expected,
            recomputes=recomputes,
        )

    def _is_cheaper_anew(self, request: Request, source: Instance, target: Instance, now: float) -> bool:
        """Whether computing its KV at the target is predicted to take less time than copying it."""
        copy_s = self._cluster.network.arrival_s(source.id, target.id, _kv_bytes(request, target), now) - now
        prefill_s = target.waiting_s() + target.latency.model.base_s(True, bool(target.decoding))
        return prefill_s + target.prefill_work_s(request, target.cached_tokens(request)) < copy_s

    def done(self, event: Arrival, target_id: int) -> bool:
        """The target has it. False if it is not wanted there any more."""
        moved = self.under_way.get(event.request_id)
        if moved is None or moved.target.id != target_id:
            return False
        self._end(moved)
        request, target = moved.request, moved.target
        if self._cluster.requests.get(request.id) is not request:  # It has ended, or its client has left.
            target.unexpect(request.id)
            return False
        if request.state is not RequestState.IN_TRANSIT:
            moved.source.remove(request)
        request.tokens_before = event.emitted_tokens
        request.instance_id = target.id
        request.migrations += 1
        target.arrive(request, event.computed_tokens)
        if request.id in target.standing:
            request.step(RequestStep.GO_ON)
            target.go_on(request)
        else:
            request.step(RequestStep.MOVE)
        return True

    def _end(self, moved: Migration) -> None:
        del self.under_way[moved.request.id]
        targets = self._targets[moved.source.id]
        del targets[moved.request.id]
        if not targets:
            del self._targets[moved.source.id]

    def failed(self, request_id: int, target_id: int) -> Migration | None:
        """The target has nothing of it; returns the move that this ends."""
        moved = self.under_way.get(request_id)
        if moved is None or moved.target.id != target_id:
            return None
        self._end(moved)
        moved.target.unexpect(request_id)
        return moved

    def cancel(self, request: Request, reason: Reason) -> list[Command]:
        """Its client has left: the target is to forget it too. Its word still ends the move."""
        moved = self.under_way.get(request.id)
        return [] if moved is None else [Cancel(request.id, moved.target.id, reason)]

    def lose_source(self, instance: Instance) -> list[Command]:
        """Its instance has died. What was on its way stays so, until the target says whether it has it."""
        commands: list[Command] = []
        for moved in self.under_way.values():
            request = moved.request
            if moved.source is not instance:
                continue
            is_live = self._cluster.requests.get(request.id) is request  # Else the target waits all the same.
            was_given_back = request.state is RequestState.IN_TRANSIT
            if is_live and not was_given_back:
                request.stop_counting()
                request.step(RequestStep.LOSE)
                request.instance_id = None
            commands.append(Abandon(request.id, moved.target.id, Reason(Why.SOURCE_LOST)))
        return commands

    def lose_request(self, request: Request) -> list[Command]:
        """The same for one request, whose instance lives on without it. It is at no instance any more."""
        moved = self.under_way[request.id]
        request.step(RequestStep.LOSE)
        request.instance_id = None
        return [Abandon(request.id, moved.target.id, Reason(Why.SOURCE_LOST))]

    def lose_target(self, instance: Instance) -> list[Migration]:
        """Its target has died; returns the moves that this ends."""
        ended = [moved for moved in self.under_way.values() if moved.target is instance]
        for moved in ended:
            self._end(moved)
        return ended

    def stay(self, request: Request, why: Why, move: int | None = None) -> Stay:
        """Let it go on where it is, should it stand still there (for that move)."""
        assert request.instance_id is not None
        return Stay(request.id, request.instance_id, Reason(why), move)

    def check(self) -> None:
        """Both ends agree, and no move waits for itself."""
        arriving = {i: instance.id for instance in self._cluster.instances.values() for i in instance.arriving}
        assert arriving == {i: moved.target.id for i, moved in self.under_way.items()}, "someone expects something else"
        targets = {i: moved.target for i, moved in self.under_way.items()}
        assert targets == {i: target for ways in self._targets.values() for i, target in ways.items()}
        for moved in self.under_way.values():
            assert not self._leads(moved.target, moved.source), f"moves go round in a circle: {moved!r}"
        for request in self._cluster.requests.values():
            is_lost = request.state is RequestState.IN_TRANSIT
            assert not is_lost or request.id in self.under_way, f"in transit to nowhere: {request!r}"


def _kv_bytes(request: Request, target: Instance) -> int:
    """What copying it there copies: all but what the target is believed to have of it."""
    return (request.context_tokens - target.cached_tokens(request)) * target.capacity.kv_token_bytes
