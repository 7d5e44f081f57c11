"""Lets a plan happen: the real driver, adapters and wire, modelled instances behind them, clients, all in virtual time.

First what was planned, then calm: nothing more goes wrong, what lasted ends, and everybody must get an end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, repeat

from faults.account import Account
from faults.coverage import Coverage
from faults.plan import Ask, Fault, Plan, Setting
from faults.process import Process
from faults.restless import Whim, restless
from helpers import virtual_loop
from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.core.commands import Command
from hyperflexis.core.control import ControlPlane, Policy
from hyperflexis.core.events import Event
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Role, StartSource
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver
from hyperflexis.wire.messages import TokenLogprobs
from runtime.live_world import BLOCK_TOKENS, Client, generate

CALM_S = 300.0
"""Within so long everybody must have an end, and everything be at rest, once nothing goes wrong any more."""
WAIT_S = 1.0
"""How long faults go on waiting for commands when all else has happened."""
LOOK_S = 0.01
CALM_LOOK_S = 0.1


class BrokenClientError(Exception):
    """What a client fails with."""


class FaultyClient(Client):
    """Leaves, or fails, as its plan says."""

    def __init__(self, ask: Ask) -> None:
        text = [3 + 7 * ask.text + index % 23 for index in range(ask.prompt_tokens)]
        fields = {"tpot_s": ask.tpot_s, "ttft_s": ask.ttft_s, "priority": ask.priority}
        super().__init__(generate(text, ask.max_tokens, refuses_late=ask.refuses_late, **fields))
        self.ask = ask
        self.leave: Callable[[], None] = lambda: None

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        super().on_tokens(tokens, logprobs)
        if self.ask.breaks_after is not None and len(self.tokens) >= self.ask.breaks_after:
            raise BrokenClientError
        if self.ask.leaves_after is not None and len(self.tokens) >= self.ask.leaves_after:
            self.leave()


class WatchedControlPlane(ControlPlane):
    """Has every event looked at before and after."""

    account: Account
    coverage: Coverage
    hear: Callable[[Command], None]

    def handle(self, event: Event, now: float) -> list[Command]:
        self.coverage.note_event(self, event)
        self.account.before(event)
        commands = super().handle(event, now)
        self.check()
        self.account.after(event, commands, now)
        for command in commands:
            self.hear(command)
        return commands


class World:
    """Make inside a running loop. It is the driver's launcher, too."""

    def __init__(self, plan: Plan, coverage: Coverage) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.processes: dict[int, Process] = {}
        """All that there have been."""
        self.clients: list[FaultyClient] = []
        self.unlaunchable = self.stillborn = self.endless = 0
        """How many faults of these kinds last."""
        self.accidents: list[BaseException] = []
        self._is_calm = False
        self._lasting: list[Callable[[], None]] = []
        self._whim = Whim(plan.seed, plan.setting.restlessness)
        self.control = WatchedControlPlane(self._policy(), fleet_of(plan.setting), plan.setting.requests_max)
        self.driver = Driver(self.control, self, BLOCK_TOKENS, clock=self.loop.time)
        self.account = self.control.account = Account(self)
        self.control.coverage = coverage
        self.control.hear = self._hear
        self._waiting: dict[str, list[Fault]] = {}
        """Faults that wait for a command, by its name."""
        self.left: set[int] = set()
        """Requests whose clients left for no reason of their own."""
        self.failed: set[int] = set()
        """Requests that an instance said it could not compute."""
        self.loop.set_exception_handler(lambda _, context: self._note_accident(context))

    def _policy(self) -> Policy:
        made = create(self.plan.setting.policy, self.plan.setting.chunk_tokens)
        return restless(made, self._whim) if self.plan.setting.restlessness else made

    def _note_accident(self, context: dict[str, object]) -> None:
        error = context.get("exception")
        self.accidents.append(error if isinstance(error, BaseException) else AssertionError(repr(context)))

    # -- what happens

    async def play(self) -> None:
        """From the start to rest.

        Raises:
            AssertionError: an invariant is broken, or something never ends.
        """
        for ask in self.plan.asks:
            self.loop.call_at(ask.at_s, self.submit, ask)
        for fault in self.plan.faults:
            self.loop.call_at(fault.at_s, self._begin, fault)
        self.driver.start()
        ends_s = [0.0, *(ask.at_s for ask in self.plan.asks), *map(_end_s, self.plan.faults)]
        while self.loop.time() <= max(ends_s):
            await self._look()
        self.calm()
        calm_s = self.loop.time()
        while not self.account.is_at_rest():
            if self.loop.time() > calm_s + CALM_S:
                raise AssertionError(f"never at rest: {self.account.unrest()}; {self.control.cluster.requests!r}")
            await self._look(CALM_LOOK_S)
        self.account.check_end()
        self.driver.close()

    async def _look(self, after_s: float = LOOK_S) -> None:
        await asyncio.sleep(after_s)
        if self.accidents:  # These come first: what is found now may follow from them.
            raise self.accidents[0]
        self.account.look()

    def submit(self, ask: Ask) -> None:
        client = FaultyClient(ask)
        client.ticket = self.driver.submit(client.request, client)
        assert not client.ends, "a sink heard something before submit returned"
        self.clients.append(client)
        client.leave = partial(self.driver.cancel, client.ticket)
        if ask.leaves_after == 0:
            client.leave()

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self._is_calm = True
        self._whim.calm()
        self._waiting.clear()
        for end in self._lasting:
            end()
        for process in self.live():
            process.from_driver.heal()
            process.to_driver.heal()

    def live(self) -> list[Process]:
        return [process for process in self.processes.values() if not process.is_over]

    # -- faults

    def _begin(self, fault: Fault) -> None:
        if fault.upon:
            self._waiting.setdefault(fault.upon, []).append(fault)
        else:
            self._perform(fault, self.live(), None)

    def _hear(self, command: Command) -> None:
        """A command may be what a fault waits for. It comes when the command has been performed."""
        waiting = self._waiting.get(type(command).__name__)
        if waiting:
            fields = command._asdict()
            ends = [fields[name] for name in ("instance_id", "source_id", "target_id") if name in fields]
            fault, request_id = waiting.pop(0), fields.get("request_id")
            self.loop.call_later(fault.after_s, lambda: self._perform(fault, self._found(ends), request_id))

    def _found(self, instance_ids: list[int]) -> list[Process]:
        found = [self.processes.get(instance_id) for instance_id in instance_ids]
        return [process for process in found if process is not None and not process.is_over]

    def _perform(self, fault: Fault, processes: list[Process], request_id: int | None) -> None:
        if self._is_calm:
            return
        if fault.kind == "leave":
            self._leave(fault.which, request_id)
        elif fault.kind in ON_WORLD:
            ON_WORLD[fault.kind](self, fault)
        elif processes:
            is_message = fault.kind in ("lose", "repeat", "swap", "delay")
            process = processes[(fault.which // 2 if is_message else fault.which) % len(processes)]
            ON_PROCESS[fault.kind](self, process, fault, request_id)

    def _leave(self, which: int, request_id: int | None) -> None:
        live = list(self.driver._streams) if request_id is None else [request_id]
        if live:
            self.left.add(live[which % len(live)])
            self.driver.cancel(live[which % len(live)])

    def last(self, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> None:
        """Let something be so for a while, or until all is calm."""
        ends = [end]

        def end_once() -> None:
            if ends:
                ends.pop()()

        begin()
        self._lasting.append(end_once)
        self.loop.call_later(seconds, end_once)

    def count_for(self, seconds: float, what: object, name: str) -> None:
        """Let a count of faults that last be one higher for a while."""
        self.last(
            seconds,
            lambda: setattr(what, name, getattr(what, name) + 1),
            lambda: setattr(what, name, getattr(what, name) - 1),
        )

    # -- the launcher

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        if self.unlaunchable:
            raise OSError("there is no place for it")
        process = Process(instance_id, self, listener)
        self.processes[instance_id] = process
        if self.stillborn:
            self.loop.call_later(0.02, process.die, 1)
        elif self.endless:
            process.clock.stop()
        return process.adapter


def fleet_of(setting: Setting, add: int = 0) -> FleetBounds:
    """Bounds as set, or with so many instances more of the first role."""
    counts: dict[Role, int] = {}
    for role in chain(map(Role, setting.roles), repeat(Role(setting.roles[0]), add)):
        counts[role] = counts.get(role, 0) + 1
    ranges = {
        role: Range(min(setting.least, count), count + setting.spare) if setting.spare else Range(count, count)
        for role, count in counts.items()
    }
    return FleetBounds(
        ranges,
        sources=(StartSource.PEER, StartSource.CACHE, StartSource.DISK) if setting.has_sources else (StartSource.DISK,),
        startup_s=dict.fromkeys(StartSource, 0.1),
        asleep_max=setting.asleep_max,
        start_timeout_s=setting.start_timeout_s,
        launch_backoff_s=0.2,
    )


def _end_s(fault: Fault) -> float:
    """Until when a fault is waited for. Who stands still goes on by himself: what that breaks comes late."""
    waits_s = WAIT_S if fault.upon else 0.0
    return fault.at_s + waits_s + (fault.amount if fault.kind == "hang" else 0.0)


def _kill(_: World, process: Process, fault: Fault, __: int | None) -> None:
    process.die()


def _vanish(_: World, process: Process, fault: Fault, __: int | None) -> None:
    process.vanish(fault.amount)


def _cut(_: World, process: Process, fault: Fault, __: int | None) -> None:
    process.cut_off(fault.amount)


def _hang(world: World, process: Process, fault: Fault, __: int | None) -> None:
    world.last(fault.amount, process.clock.stop, process.clock.go_on)


def _slow(world: World, process: Process, fault: Fault, __: int | None) -> None:
    factor, slownesses = 2.0 + fault.which, process.clock.slownesses
    world.last(fault.amount, lambda: slownesses.append(factor), lambda: slownesses.remove(factor))


def _clock(_: World, process: Process, fault: Fault, __: int | None) -> None:
    process.clock.offset_s += fault.amount


def _message(_: World, process: Process, fault: Fault, __: int | None) -> None:
    (process.from_driver if fault.which % 2 else process.to_driver).fail_next(fault.kind)


def _delay(world: World, process: Process, fault: Fault, __: int | None) -> None:
    way = process.from_driver if fault.which % 2 else process.to_driver
    way.delay(fault.amount, world.loop.time() + 1.0)


def _lasting(name: str) -> Callable[[World, Process, Fault, int | None], None]:
    return lambda world, process, fault, _: world.count_for(fault.amount, process, name)


def _unlink(_: World, process: Process, fault: Fault, __: int | None) -> None:
    if not process.clock.is_stopped:
        process.unlink(is_lender=bool(fault.which % 2))


ON_PROCESS: dict[str, Callable[[World, Process, Fault, int | None], None]] = {
    "kill": _kill,
    "vanish": _vanish,
    "cut": _cut,
    "hang": _hang,
    "slow": _slow,
    "clock": _clock,
    "lose": _message,
    "repeat": _message,
    "swap": _message,
    "delay": _delay,
    "corrupt": _lasting("corrupts"),
    "stall": _lasting("stalls"),
    "linkless": _lasting("links_fail"),
    "insomnia": _lasting("cannot_wake"),
    "unlink": _unlink,
    "give back": lambda _, process, fault, request_id: process.give_back(fault.which, request_id),
    "fail": lambda world, process, fault, request_id: process.fail(fault.which, request_id, world.failed.add),
    "drain": lambda world, process, *_: world.driver.drain(process.id),
    "remove": lambda world, process, *_: world.driver.remove(process.id),
}


def _flood(world: World, fault: Fault) -> None:
    for number in range(int(fault.amount)):
        world.submit(Ask(fault.at_s, prompt_tokens=30 + 5 * (number % 4), max_tokens=8, text=fault.which))


ON_WORLD: dict[str, Callable[[World, Fault], None]] = {
    "unlaunchable": lambda world, fault: world.count_for(fault.amount, world, "unlaunchable"),
    "stillborn": lambda world, fault: world.count_for(fault.amount, world, "stillborn"),
    "endless": lambda world, fault: world.count_for(fault.amount, world, "endless"),
    "flood": _flood,
    "resize": lambda world, fault: world.driver.change_fleet(
        fleet_of(world.plan.setting, int(fault.amount) if fault.which % 2 else 0)
    ),
}


def play(plan: Plan, coverage: Coverage | None = None) -> None:
    """Let a plan happen, in virtual time.

    Raises:
        AssertionError: an invariant is broken, or something never ends.
    """
    noted = coverage or Coverage()

    async def main() -> None:
        await World(plan, noted).play()

    logging.disable()
    try:
        with noted.watching():
            virtual_loop.run(main())
    finally:
        logging.disable(logging.NOTSET)
