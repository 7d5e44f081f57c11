"""A live driver whose instances are stand-ins for vLLM, in real time on this loop, and clients that keep account."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from hyperflexis.adapters.vllm.standin.engine import Traits, hash_of, next_token
from hyperflexis.adapters.vllm.standin.server import StandIn
from hyperflexis.adapters.vllm.watch import WatchRules
from hyperflexis.core.control import Policy
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.policies import create
from hyperflexis.runtime.driver import Driver, Observer
from hyperflexis.runtime.launchers.attached import AttachedLauncher, AttachSpec, Target
from runtime.live_world import CheckedControlPlane, Client, generate

PATIENCE_S = 30.0
QUICK = WatchRules(health_s=0.05, metrics_s=0.02, silence_s=1.0)
TRAITS = Traits(step_s=0.002)
DEMO_MODEL = Path(__file__).parents[2] / "src" / "hyperflexis" / "demo_model"


def live(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an ordinary test of a coroutine function, in real time."""

    @functools.wraps(test)
    def played(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    return played


def answer(prompt: Sequence[int], count: int, vocabulary: int = TRAITS.vocabulary) -> list[int]:
    """What a stand-in gives, greedily, whom nothing disturbs."""
    value, tokens = hash_of(list(prompt)), []
    for _ in range(count):
        tokens.append(next_token(value, vocabulary))
        value = hash_of([tokens[-1]], value)
    return tokens


class StandInClient(Client):
    """Knows what a stand-in answers."""

    @property
    def expected(self) -> list[int]:
        return answer(self.request.prompt, self.request.max_tokens)


class AttachedWorld:
    """As a context manager: servers, then a launcher, then a driver; and everything is closed at the end."""

    def __init__(
        self,
        servers: int | Sequence[Traits] = 2,
        *,
        roles: Sequence[Role] = (),
        policy: Policy | None = None,
        begins: bool = True,
        observers: Sequence[Observer] = (),
        **spec: Any,
    ) -> None:
        traits = [TRAITS] * servers if isinstance(servers, int) else servers
        self.servers = [StandIn(DEMO_MODEL, replace(each)) for each in traits]
        self._roles = [*roles, *[Role.MIXED] * (len(traits) - len(roles))]
        self._policy = policy or create("hyperflexis", 2048)
        self._begins = begins
        self._observers = observers
        self._spec = spec
        self.clients: list[StandInClient] = []
        self.accidents: list[str] = []
        self.launcher: AttachedLauncher
        self.driver: Driver
        self.control: CheckedControlPlane

    async def __aenter__(self) -> AttachedWorld:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.accidents.append(repr(context)))
        for server in self.servers:
            await server.start()
        if self._begins:
            await self.begin()
        return self

    async def begin(self) -> None:
        targets = [Target(server.url, role) for server, role in zip(self.servers, self._roles, strict=True)]
        spec = AttachSpec(targets, **{"watch": QUICK, **self._spec})
        self.launcher = await AttachedLauncher.start(spec)
        bounds = FleetBounds.fixed(len(targets), self._roles, launch_attempts_max=1 << 30, launch_backoff_s=0.05)
        self.control = CheckedControlPlane(self._policy, bounds)
        self.control.journal = []
        self.driver = Driver(self.control, self.launcher, self.launcher.block_tokens, observers=self._observers)
        self.driver.start()

    async def __aexit__(self, *_: object) -> None:
        if hasattr(self, "driver"):
            self.driver.close()
        if hasattr(self, "launcher"):
            await self.launcher.close()
        for server in self.servers:
            await server.stop()
        assert not self.accidents, self.accidents

    async def ready(self, instances: int | None = None) -> None:
        """Wait until so many, or all, take work."""
        wanted = len(self.servers) if instances is None else instances
        while len(self.control.cluster.ready) != wanted:  # noqa: ASYNC110 links tell nobody when they are up
            await asyncio.sleep(0.005)

    def submit(self, prompt: Sequence[int] | int = 20, max_tokens: int = 10, **fields: object) -> StandInClient:
        client = StandInClient(generate(prompt, max_tokens, **fields))
        client.ticket = self.driver.submit(client.request, client)
        self.clients.append(client)
        return client

    def crowd(self, count: int, max_tokens: int) -> list[StandInClient]:
        """So many requests that differ from their first token on."""
        return [self.submit([10 + number, 20, 30, 40 + number], max_tokens) for number in range(count)]

    def server_of(self, client: Client) -> StandIn:
        instance_id = self.control.cluster.requests[client.ticket].instance_id
        name = next(url for url, adapter in self.launcher._adapters.items() if self._is_at(adapter, instance_id))
        return next(server for server in self.servers if server.url == name)

    def _is_at(self, adapter: object, instance_id: int | None) -> bool:
        return instance_id is not None and self.driver._members[instance_id].adapter is adapter

    async def settle(self) -> None:
        """Everybody has a whole answer, and nothing is left anywhere."""
        for client in self.clients:
            await client.ended()
            client.check()
            assert client.end.reason in ("length", "stop", "cancelled"), client.end
        assert self.driver.live_requests == 0
        assert not self.control.cluster.requests
        while any(server.live for server in self.servers):  # noqa: ASYNC110 servers notice cancellations by themselves
            await asyncio.sleep(0.005)
        for instance in self.control.cluster.instances.values():
            assert instance.is_empty, instance.name
            assert not instance.standing
            assert not instance.arriving
