"""What must hold whatever happens, looked at before and after every event, every 10 ms, and at the end.

Beside `ControlPlane.check`, which holds what the control plane knows to itself, this holds it to the world.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hyperflexis.core.cadence import STEPS_MAX
from hyperflexis.core.commands import Command, Conclude, Dispatch, Launch, Link, Migrate, Reject, Unlink, Why
from hyperflexis.core.control import TRIES_MAX
from hyperflexis.core.events import Event, InstanceLost, Linked, LinkFailed, RequestArrived, RequestReturned
from hyperflexis.core.instance import Instance, InstanceState
from hyperflexis.core.request import RequestState
from runtime.live_world import BLOCK_TOKENS

if TYPE_CHECKING:
    from faults.process import Process
    from faults.world import World


class Account:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended: dict[int, Command] = {}
        self._losses: Counter[int] = Counter()
        """Of each request, instances that were lost with it."""
        self._failed_starts = 0
        self._cost = 0.0
        self._links_asked: dict[tuple[int, int], int] = {}
        self._links_up: dict[tuple[int, int], int] = {}
        self._arrived = 0

    # -- at every event

    def before(self, event: Event) -> None:
        """What the last event led to has been done."""
        driver, control = self._world.driver, self._world.control
        if isinstance(event, RequestReturned):
            self._losses[event.request_id] += 1
        if isinstance(event, InstanceLost):
            self._note_loss(control.cluster.instances[event.instance_id])
        if driver._is_performing or driver._commands:
            return
        lost = event.instance_id if isinstance(event, InstanceLost) else None
        members, instances = driver._members.keys(), control.cluster.instances.keys()
        assert members <= instances, f"instances that the control plane does not know of: {members - instances}"
        missing = {i for i in instances - members if i in self._world.processes and i != lost}
        assert not missing, f"instances that only the control plane knows of: {missing}"
        for number, request in control.cluster.requests.items():
            stream = driver._streams.get(number)
            assert stream is not None, f"nobody waits for {request!r}"
            ahead = len(stream.emitted) - request.emitted_tokens
            assert -1 <= ahead <= STEPS_MAX + 1, f"its client has {len(stream.emitted)} tokens: {request!r}"

    def _note_loss(self, instance: Instance) -> None:
        self._failed_starts += instance.state is InstanceState.STARTING
        self._losses.update([*instance.waiting, *instance.decoding, *instance.standing])

    def after(self, event: Event, commands: list[Command], now: float) -> None:
        """What was decided may be done."""
        self._arrived += isinstance(event, RequestArrived)
        if isinstance(event, Linked | LinkFailed):
            self._note_link(event)
        for command in commands:
            if isinstance(command, Conclude | Reject):
                self._end(command)
            elif isinstance(command, Dispatch):
                self._check_dispatch(command)
            elif isinstance(command, Migrate):
                self._check_migrate(command)
            elif isinstance(command, Link):
                self._links_asked[command.source_id, command.target_id] = command.version
            elif isinstance(command, Unlink):
                self._links_up.pop((command.source_id, command.target_id), None)
            elif isinstance(command, Launch):
                assert command.instance_id not in self._world.processes, f"launched twice: {command!r}"
        live, known = self._world.control.cluster.requests.keys(), self._ended.keys()
        assert live.isdisjoint(known), f"ended, and here: {live & known}"
        assert len(live) + len(known) == self._arrived, "a request is neither here nor ended"
        cost = self._world.control.sizing.bill.cost(now)
        assert cost >= self._cost >= 0, f"the bill went from {self._cost} to {cost}"
        self._cost = cost

    def _note_link(self, event: Linked | LinkFailed) -> None:
        pair = (event.source_id, event.target_id)
        if isinstance(event, LinkFailed) and self._links_up.get(pair) == event.version:
            del self._links_up[pair]
        elif isinstance(event, Linked) and self._links_asked.get(pair) == event.version:
            self._links_up[pair] = event.version

    def _end(self, command: Conclude | Reject) -> None:
        assert command.request_id not in self._ended, f"ended twice: {command!r}"
        self._ended[command.request_id] = command
        if isinstance(command, Reject):
            assert self._may_reject(command), f"refused without a cause: {command!r}"

    def _may_reject(self, command: Reject) -> bool:
        why = command.reason.why
        if why is Why.LOST_TOO_OFTEN:
            return self._losses[command.request_id] >= TRIES_MAX
        if why is Why.START_FAILS:
            return self._failed_starts >= self._world.control.sizing.fleet.launch_attempts_max
        if why is Why.TOO_LARGE:
            request, setting = self._world.driver._streams[command.request_id].request, self._world.plan.setting
            return len(request.prompt) + request.max_tokens > setting.blocks * BLOCK_TOKENS
        if why is Why.QUEUE_FULL:
            return len(self._world.control.cluster.requests) >= self._world.plan.setting.requests_max
        if why is Why.DISPLACED:
            return not self._world.driver._streams[command.request_id].emitted
        return why is Why.TOO_LATE and self._world.driver._streams[command.request_id].request.refuses_late

    def _check_dispatch(self, command: Dispatch) -> None:
        control = self._world.control
        request, instance = control.cluster.requests[command.request_id], control.cluster.instances[command.instance_id]
        assert instance.state is InstanceState.READY, f"{instance.name} takes nothing: {command!r}"
        assert request.state is RequestState.WAITING, repr(request)

    def _check_migrate(self, command: Migrate) -> None:
        control = self._world.control
        target = control.cluster.instances[command.target_id]
        assert target.state is InstanceState.READY, f"{target.name} takes nothing: {command!r}"
        assert command.source_id in control.cluster.instances, f"its source is gone: {command!r}"
        version = self._links_up.get((command.source_id, command.target_id))
        assert version == command.link_version, f"over a link that is down: {command!r}"

    # -- now and then

    def look(self) -> None:
        """Where nothing is under way, an instance and the control plane agree on what is there."""
        for process in self._members():
            instance = self._world.control.cluster.instances[process.id]
            if process.is_quiet:
                _check_agreement(process, instance)

    def _members(self) -> list[Process]:
        """Of those that live as far as is known. One that is gone may not have been missed yet."""
        processes = self._world.processes
        return [processes[i] for i in self._world.driver._members if not processes[i].is_over]

    # -- at the end

    def is_at_rest(self) -> bool:
        return not self.unrest()

    def unrest(self) -> str:
        """What is still to happen; empty when everything has."""
        control, driver = self._world.control, self._world.driver
        unanswered = [client.ticket for client in self._world.clients if not client.ends]
        if unanswered:
            return f"no end for {unanswered}"
        if control.migrations.under_way:
            return f"moves of what has ended: {list(control.migrations.under_way)}"
        if len(self._members()) < len(driver._members):
            return "an instance that is gone has not been missed"
        restless = [process.id for process in self._members() if not process.is_quiet]
        if restless:
            return f"something is still to be said to or by {restless}"
        draining = [i.name for i in control.cluster.instances.values() if i.state is InstanceState.DRAINING]
        if draining and control._moves:
            return f"{draining} never end"
        is_short = len(control.cluster.ready) < control.sizing.wanted
        if is_short and (control.sizing.is_startable() or control.cluster.ready):
            return f"{len(control.cluster.ready)} instances are ready of {control.sizing.wanted}"
        return ""

    def check_end(self) -> None:
        """Everybody has a whole answer, or a good reason; and everything is as if nothing had ever been."""
        world = self._world
        for client in world.clients:
            client.check()
            ask, reason = client.ask, client.end.reason
            may_leave = ask.leaves_after is not None or ask.breaks_after is not None or client.ticket in world.left
            may_fail = client.ticket in world.failed
            causes = {"length": True, "rejected": True, "cancelled": may_leave, "failed": may_fail}
            assert causes.get(reason, False), f"{client.ticket}: {client.end}"
        assert not world.driver.live_requests
        assert not world.control.cluster.requests
        for process in self._members():
            instance, scheduler = world.control.cluster.instances[process.id], process.scheduler
            _check_agreement(process, instance)
            scheduler.check()
            assert scheduler.is_idle(), repr(scheduler)
            assert scheduler.pool.blocks_free == scheduler.pool.blocks, f"blocks are not given back: {scheduler!r}"
            moves = process.modelled._stepping.moves
            assert not moves._takings, f"i{process.id} takes for ever: {moves._takings}"
            assert not moves._callers, f"i{process.id} is called for ever: {moves._callers}"
            assert not moves._giver._calls, f"i{process.id} is called for ever: {moves._giver._calls}"
            assert not moves._giver._stopped, f"i{process.id} thinks of {moves._giver._stopped}"
            assert instance.is_empty, instance.name
            assert not instance.planned_tokens, f"{instance.name} is believed to be loaded"


def _check_agreement(process: Process, instance: Instance) -> None:
    held = {*instance.waiting, *instance.decoding, *instance.standing}
    there = {sequence.id for sequence in process.scheduler.sequences()}
    assert held == there, f"{instance.name} has {there}, and is believed to have {held}"
    assert instance.arriving.keys() == process.scheduler.moves.expected.keys(), f"{instance.name} expects others"
