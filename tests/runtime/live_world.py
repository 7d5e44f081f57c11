"""A live driver with modelled instances under the virtual loop, and clients that keep account of what they hear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict

from helpers.builders import SIMPLE
from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.modelled import ModelledAdapter, Ways, next_token
from hyperflexis.core.commands import Command
from hyperflexis.core.control import ControlPlane, Policy
from hyperflexis.core.events import Event
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.latency import LatencyModel
from hyperflexis.core.request import RequestState
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver, Observer
from hyperflexis.runtime.streams import End
from hyperflexis.wire.messages import GenerateRequest, Ready, Sampling, TokenLogprobs

BLOCK_TOKENS = 16
STARTUP_S = 0.05


def unbroken(prompt: Sequence[int], count: int) -> list[int]:
    """What a request gets whom nothing disturbs."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def generate(prompt: Sequence[int] | int = 20, max_tokens: int = 10, **fields: object) -> GenerateRequest:
    """A request; a prompt given as a number is that many tokens."""
    tokens = [3 + 7 * i for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    values = {"sampling": Sampling(temperature=0.0), **fields}
    return GenerateRequest(prompt=tokens, max_tokens=max_tokens, **values)


class Client:
    """A sink that remembers everything, and fails its test if anything follows the end."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.ticket = -1
        self.tokens: list[int] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.ends: list[End] = []
        self.strays: list[str] = []
        self.when_tokens: Callable[[], None] = lambda: None
        self.when_ended: Callable[[], None] = lambda: None
        self._ended = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def end(self) -> End:
        (end,) = self.ends
        return end

    @property
    def expected(self) -> list[int]:
        return unbroken(self.request.prompt, self.request.max_tokens)

    async def heard(self, tokens: int) -> None:
        """Wait until it has so many tokens."""
        while len(self.tokens) < tokens:
            self._news.clear()
            await self._news.wait()

    async def ended(self) -> End:
        await self._ended.wait()
        return self.end

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        if self.ends:
            self.strays.append(f"tokens {tokens}")
        assert logprobs is None
        self.tokens.extend(tokens)
        self._news.set()
        self.when_tokens()

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        if self.ends or self.tokens:
            self.strays.append("prompt logprobs")
        self.prompt_logprobs.extend(logprobs)

    def on_end(self, end: End) -> None:
        self.ends.append(end)
        self._ended.set()
        self.when_ended()

    def check(self) -> None:
        """One end, nothing after it, and no token that an unbroken run would not have had there."""
        assert len(self.ends) == 1, self.ends
        assert self.strays == []
        assert self.tokens == self.expected[: len(self.tokens)]
        if self.end.reason == "length":
            assert self.tokens == self.expected


class CheckedControlPlane(ControlPlane):
    """Checks every invariant after every event, and writes down what was decided."""

    journal: list[str]

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = super().handle(event, now)
        self.check()
        self.journal += [f"{now!r} {event!r}", *(f"  {command!r}" for command in commands)]
        return commands


class DeadAdapter:
    """An instance that never gets as far as being ready."""

    def submit(self, submit: object) -> None:
        raise AssertionError("work was given to an instance that is not ready")

    def cancel(self, request_id: int) -> None:
        raise AssertionError("an instance that is not ready has nothing to cancel")

    def configure(self, rules: object, version: int = 0) -> None:
        raise AssertionError("an instance that is not ready is not configured")

    def order(self, order: object) -> None:
        raise AssertionError("an instance that is not ready is no end of a link")

    def close(self) -> None:
        pass


class ModelledLauncher:
    """Instances of the model; those whose ordinal (from 0) is in `failing` die while they start."""

    def __init__(
        self,
        *,
        blocks: int = 200,
        seqs_max: int = 16,
        model: LatencyModel = SIMPLE,
        startup_s: float = STARTUP_S,
        failing: Callable[[int], bool] = lambda ordinal: False,
        ways: Ways | None = None,
    ) -> None:
        self.ready = Ready(blocks, BLOCK_TOKENS, seqs_max, asdict(model), [], "model")
        self.startup_s = startup_s
        self.failing = failing
        self.ways = ways
        self.launched_s: list[float] = []
        self.adapters: dict[int, ModelledAdapter] = {}
        """Those that live, and those that were closed."""

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        loop = asyncio.get_running_loop()
        ordinal = len(self.launched_s)
        self.launched_s.append(loop.time())
        if self.failing(ordinal):
            loop.call_later(self.startup_s, listener.on_lost, "it does not start")
            return DeadAdapter()
        adapter = ModelledAdapter(listener, self.ready, loop, startup_s=self.startup_s, ways=self.ways)
        self.adapters[instance_id] = adapter
        return adapter

    def lose(self, instance_id: int, why: str = "killed by SIGKILL") -> None:
        self.adapters.pop(instance_id).lose(why)


class World:
    """Make inside a running loop. As a context manager it begins at once, and closes the driver."""

    def __init__(
        self,
        *,
        instances: int = 2,
        requests_max: int = 10_000,
        prefill_tokens_max: int = 64,
        policy: str | Policy = "hyperflexis",
        fleet: FleetBounds | None = None,
        launcher: ModelledLauncher | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.loop = asyncio.get_running_loop()
        fleet = fleet or FleetBounds.fixed(instances)
        made = create(policy, prefill_tokens_max) if isinstance(policy, str) else policy
        self.control = CheckedControlPlane(made, fleet, requests_max)
        self.control.journal = []
        self.launcher = launcher or ModelledLauncher()
        self.driver = Driver(self.control, self.launcher, BLOCK_TOKENS, clock=self.loop.time, observers=observers)
        self.clients: list[Client] = []
        self.accidents: list[str] = []
        """What was raised in callbacks, of which asyncio makes no more than a line of log."""
        self.loop.set_exception_handler(lambda _, context: self.accidents.append(repr(context)))

    def __enter__(self) -> World:
        self.driver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.close()
        assert not self.accidents, self.accidents

    async def ready(self) -> None:
        await self.driver.wait_until(lambda: self.driver.ready_instances == self.control.sizing.wanted)
        # Where requests move, instances are linked before they take work, which no event tells.
        while len(self.control.cluster.ready) < self.control.sizing.wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def submit(self, prompt: Sequence[int] | int = 20, max_tokens: int = 10, **fields: object) -> Client:
        client = Client(generate(prompt, max_tokens, **fields))
        client.ticket = self.driver.submit(client.request, client)
        assert not client.ends, "a sink heard something before submit returned"
        self.clients.append(client)
        return client

    def state(self, client: Client) -> RequestState | None:
        request = self.control.cluster.requests.get(client.ticket)
        return request.state if request else None

    def instance_of(self, client: Client) -> int:
        instance_id = self.control.cluster.requests[client.ticket].instance_id
        assert instance_id is not None
        return instance_id

    async def until(self, client: Client, state: RequestState) -> None:
        """Wait until the core has the client's request in this state."""
        while self.state(client) is not state:
            assert not client.ends, f"it ended before it was {state.value}: {client.end}"
            await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Wait for all ends; then, a step later, everything must be as if nothing had ever been."""
        for client in self.clients:
            await client.ended()
        await asyncio.sleep(0.2)
        for client in self.clients:
            client.check()
        assert self.driver.live_requests == 0
        assert not self.control.cluster.requests
        for adapter in self.launcher.adapters.values():
            adapter.scheduler.check()
            assert adapter.scheduler.is_idle(), repr(adapter.scheduler)
            assert adapter.scheduler.pool.blocks_free == adapter.scheduler.pool.blocks
            assert not adapter.scheduler.moves.expected
            assert not adapter._stepping.moves._takings
            assert not adapter._stepping.moves._callers
        for instance in self.control.cluster.instances.values():
            assert instance.is_empty, instance.name
