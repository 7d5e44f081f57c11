"""One workload through both bodies of the control plane, and what it decided in each.

Virtual: `Simulation`. Live: `Driver` with modelled instances, on a loop that is as exact as the simulator's clock. What
differs between them by nature is made equal here: instants and step times are whole ticks, and an answer ends where the
workload says, live by a stop token. No two answers share content, as the simulator knows no content of answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace

from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.modelled import ModelledAdapter, Ways
from hyperflexis.core.commands import Command, Conclude, Reject
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.events import Event, RequestCancelled
from hyperflexis.core.fleet import FleetBounds, Range
from hyperflexis.core.instance import Capacity, Role, StartSource
from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.core.prefix import block_hashes
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.core.step import Sequence
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.streams import End
from hyperflexis.sim.fabric import FabricSpec
from hyperflexis.sim.instance import in_ticks
from hyperflexis.sim.job import Job
from hyperflexis.sim.kernel import to_ticks_s
from hyperflexis.sim.simulation import FleetSpec, Simulation
from hyperflexis.sim.startup import StartupSpec
from hyperflexis.wire.messages import GenerateRequest, Ready, Sampling, TokenLogprobs
from parity import exact_loop

BLOCK_TOKENS = 16
PREFILL_TOKENS_MAX = 256
STOP = 2**31
FABRIC = FabricSpec(message_s=0.0)
"""Words take no time, as they take none within one loop. Nothing is known of bytes, so copies take their latency."""
WAYS = Ways(copy_s=lambda _: FABRIC.latency_s, link_s=FABRIC.link_s)
LINGERS_S = 64.0
"""After the last answer the fleet is still looked after; by then that is over."""
CLASSES = {
    made.name: made
    for made in (
        ServiceClass("chat", Slo(0.5, 0.04)),
        ServiceClass("code", Slo(0.2, 0.1), priority=1),
        ServiceClass("urgent", Slo(0.06, 0.02), priority=2, refuses_late=True),
        ServiceClass("batch", Slo(None, None, 20.0)),
        ServiceClass("any", Slo()),
    )
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a workload."""

    at_s: float
    prompt: tuple[int, ...]
    answer_tokens: int
    service_class: str = "chat"
    leaves_after_s: float | None = None
    """So long after its arrival its client leaves, if the answer is not complete by then."""


@dataclass(frozen=True, slots=True)
class World:
    """The fleet of a run. `truth` is what steps take, where that is not what is believed of them."""

    latency: LatencyModel
    truth: LatencyModel | None = None
    policy: str = "hyperflexis"
    instances: int = 2
    blocks: int = 4000
    seqs_max: int = 64
    startup_s: float = 0.0
    losses_s: tuple[float, ...] = ()
    max_tokens: int = 256
    shares_prefixes: bool = True
    runs_through: bool = False
    roles: tuple[Role, ...] = ()
    most: int | None = None
    """Instances, of a fleet whose size follows demand; `instances` are the fewest then."""

    @property
    def bounds(self) -> FleetBounds:
        if self.most is None:
            return FleetBounds.fixed(self.instances, self.roles)
        startup_s = {StartSource.DISK: self.startup_s}
        return FleetBounds({Role.MIXED: Range(self.instances, self.most)}, startup_s=startup_s)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.blocks, BLOCK_TOKENS, self.seqs_max)

    def max_tokens_of(self, ask: Ask) -> int:
        """The longest answer that this client allows, as the simulator has it."""
        return min(max(self.max_tokens, ask.answer_tokens), self.blocks * BLOCK_TOKENS - len(ask.prompt))


Journal = list[tuple[float, Event | Command]]
"""What happened and what was decided, and when."""


def commands_of(journal: Journal) -> list[tuple[float, Command]]:
    return [(now, what) for now, what in journal if isinstance(what, Command)]


class _Recording(ControlPlane):
    """Checks every invariant, and writes down what happens."""

    journal: Journal

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = super().handle(event, now)
        self.check()
        self.journal += [(now, what) for what in (event, *commands)]
        return commands


# The virtual body.


class _Simulation(Simulation):
    """Whose clients leave when the workload says."""

    def __init__(self, jobs: Seq[Job], leaves_after_s: Seq[float | None], world: World, journal: Journal) -> None:
        fleet = FleetSpec(
            instances=world.instances,
            capacity=world.capacity,
            latency=world.latency,
            truth=world.truth,
            max_tokens=world.max_tokens,
            losses_s=world.losses_s,
            startup=StartupSpec.constant(world.startup_s),
            bounds=world.bounds,
            runs_through=world.runs_through,
            roles=world.roles,
            fabric=FABRIC,
        )

        def observe(now: float, event: Event, commands: list[Command]) -> None:
            journal.extend((now, what) for what in (event, *commands))

        super().__init__(jobs, CLASSES, create(world.policy, PREFILL_TOKENS_MAX), fleet, observe=observe, checks=True)
        self._leaves_after_s = leaves_after_s
        self._arrived = 0

    def _arrive(self, job: Job) -> None:
        number = self._arrived
        self._arrived += 1
        leaves_after_s = self._leaves_after_s[number]
        if leaves_after_s is not None:
            self._kernel.at(self._kernel.now + to_ticks_s(leaves_after_s), lambda: self._leave(number))
        super()._arrive(job)

    def _leave(self, number: int) -> None:
        if number in self._live:
            self._feed(RequestCancelled(number, self._emitted(number)))

    def _emitted(self, number: int) -> int:
        """What its client has heard."""
        instance_id = self.control.cluster.requests[number].instance_id
        assert not self._fleet.runs_through, "in the middle of a run nobody knows"
        if instance_id is not None:
            sequence = self._instances[instance_id].scheduler._sequences.get(number)
            if sequence is not None:
                return sequence.emitted
        return max(self._live[number].emitted, self.control.cluster.requests[number].emitted_tokens)


def simulated(asks: Seq[Ask], world: World) -> Journal:
    """Run the workload through the simulator."""
    journal: Journal = []
    jobs = [
        Job(
            ask.at_s,
            len(ask.prompt),
            ask.answer_tokens,
            ask.service_class,
            tuple(block_hashes(ask.prompt, BLOCK_TOKENS)) if world.shares_prefixes else (),
        )
        for ask in asks
    ]
    _Simulation(jobs, [ask.leaves_after_s for ask in asks], world, journal).run()
    return journal


# The live body.


class _Client:
    """Hears that its answer has ended."""

    def __init__(self) -> None:
        self.tokens = 0
        self.end: End | None = None

    def on_tokens(self, tokens: Seq[int], logprobs: Seq[TokenLogprobs] | None) -> None:
        self.tokens += len(tokens)

    def on_prompt_logprobs(self, logprobs: Seq[TokenLogprobs]) -> None:
        pass

    def on_end(self, end: End) -> None:
        self.end = end


class _Launcher:
    """Modelled instances that take whole ticks, and know how long each answer is."""

    def __init__(self, world: World, asks: Seq[Ask]) -> None:
        self._world = world
        self._asks = asks
        self._ready = Ready(world.blocks, BLOCK_TOKENS, world.seqs_max, asdict(in_ticks(world.latency)), [], "modelled")
        self._truth = in_ticks(world.truth or world.latency)
        self._adapters: dict[int, ModelledAdapter] = {}

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        adapter = ModelledAdapter(
            listener,
            self._ready,
            asyncio.get_running_loop(),
            startup_s=to_ticks_s(self._world.startup_s),
            step_s=self._step_s,
            next_token_of=self._next_token,
            ways=WAYS,
        )
        self._adapters[instance_id] = adapter
        return adapter

    def _step_s(self, shape: StepShape) -> float:
        return to_ticks_s(self._truth.step_s(shape))

    def _next_token(self, sequence: Sequence) -> int:
        """Ends where the workload says; until then a token that nobody else's answer has there."""
        emitted = sequence.emitted + 1
        return STOP if emitted >= self._asks[sequence.id].answer_tokens else 1_000_000 + sequence.id

    def lose_oldest(self) -> None:
        if self._adapters:
            self._adapters.pop(min(self._adapters)).lose("a planned fault")


class _Live:
    """The workload, on the loop's clock."""

    def __init__(self, asks: Seq[Ask], world: World, journal: Journal) -> None:
        self._loop = asyncio.get_running_loop()
        self._world = world
        self._asks = asks
        self._next = 0
        self._clients: list[_Client] = []
        control = _Recording(create(world.policy, PREFILL_TOKENS_MAX), world.bounds, 10_000_000)
        control.journal = journal
        self._launcher = _Launcher(world, asks)
        self._driver = Driver(control, self._launcher, BLOCK_TOKENS, clock=self._loop.time)

    async def run(self) -> None:
        self._loop.call_soon(self._driver.start)
        for instant_s in self._world.losses_s:
            self._loop.call_at(to_ticks_s(instant_s), self._launcher.lose_oldest)
        self._expect_next()
        await self._driver.wait_until(lambda: self._next == len(self._asks) and not self._driver.live_requests)
        await asyncio.sleep(max([0.0, *self._world.losses_s]) // 1 + LINGERS_S)
        self._driver.close()
        assert all(client.end is not None for client in self._clients)

    def _expect_next(self) -> None:
        if self._next < len(self._asks):
            at_s = to_ticks_s(self._asks[self._next].at_s)
            self._loop.call_at(max(self._loop.time(), at_s), self._arrive)

    def _arrive(self) -> None:
        ask = self._asks[self._next]
        self._next += 1
        service_class = CLASSES[ask.service_class]
        slo = service_class.slo
        client = _Client()
        self._clients.append(client)
        if ask.leaves_after_s is not None:
            ticket = self._next - 1
            self._loop.call_later(to_ticks_s(ask.leaves_after_s), self._driver.cancel, ticket)
        request = GenerateRequest(
            prompt=list(ask.prompt),
            max_tokens=self._world.max_tokens_of(ask),
            sampling=Sampling(temperature=0.0, stop_ids=(STOP,), prompt_logprobs=not self._world.shares_prefixes),
            service_class=service_class.name,
            priority=service_class.priority,
            ttft_s=slo.ttft_s,
            tpot_s=slo.tpot_s,
            e2e_s=slo.e2e_s,
            refuses_late=service_class.refuses_late,
        )
        self._driver.submit(request, client)
        self._expect_next()


def live(asks: Seq[Ask], world: World) -> Journal:
    """Run the workload through the live driver."""
    journal: Journal = []

    async def main() -> None:
        await _Live(asks, world, journal).run()

    exact_loop.run(main())
    return journal


def check_parity(asks: Seq[Ask], world: World) -> list[tuple[float, Command]]:
    """Run both; returns the commands, which are equal, in order, with reasons, numbers and instants.

    Raises:
        AssertionError: they are not; says what differs first, and what was seen before that.
    """
    virtual, real = simulated(asks, world), live(asks, world)
    if world.most is not None:  # Its size is thought about for ever, here and there for as long as somebody looks.
        virtual, real = _to_the_last_end(virtual), _to_the_last_end(real)
    expected, got = commands_of(virtual), commands_of(real)
    for index, (left, right) in enumerate(zip(expected, got, strict=False)):
        assert left == right, _story(index, virtual, real)
    last = min(len(expected), len(got))
    assert len(expected) == len(got), _story(last, virtual, real)
    return expected


def _to_the_last_end(journal: Journal) -> Journal:
    ends = [place for place, (_, what) in enumerate(journal) if isinstance(what, Conclude | Reject)]
    return journal[: ends[-1] + 1]


def _story(index: int, virtual: Journal, real: Journal) -> str:
    lines = [f"command {index} differs"]
    for name, journal in (("simulated", virtual), ("live", real)):
        places = [place for place, (_, what) in enumerate(journal) if isinstance(what, Command)]
        place = places[index] if index < len(places) else len(journal)
        lines += [f"{name}:", *(f"  {now!r} {what!r}" for now, what in journal[max(0, place - 12) : place + 3])]
    return "\n".join(lines)


def through(world: World, **changes: object) -> World:
    """The same world, some of it changed."""
    return replace(world, **changes)  # type: ignore[arg-type]
