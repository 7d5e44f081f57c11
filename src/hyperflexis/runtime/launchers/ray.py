"""The process that speaks to Ray for the gateway: asks for seats, puts a steward on each node, says what came of it.

A process of its own because Ray ends those that it is used in when its head is gone for long; the gateway's must go on
with what lives. When this one ends, Ray ends all that it has started. No token of any answer passes through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeAlias

import msgspec
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hyperflexis.adapters.native.messages import Loaded, LoadFailed
from hyperflexis.runtime.launchers.ray_words import (
    Admitted,
    Begin,
    Begun,
    CannotBegin,
    Closed,
    Door,
    Ended,
    FromBroker,
    HeadBack,
    HeadLost,
    Launch,
    NodeLost,
    Seated,
    ToBroker,
)
from hyperflexis.runtime.launchers.seating import Need, Node, choose
from hyperflexis.runtime.launchers.steward import Steward
from hyperflexis.wire.framing import Framer, Frames

log = logging.getLogger(__name__)

CONNECTING_S = 30.0
"""The most that joining a cluster may take."""
HEAD_ASKED_S = 1.0
"""How often Ray's head is asked whether it is there."""
HEAD_SILENT_S = 5.0
"""Without an answer for so long it counts as lost."""
PARENT_ASKED_S = 2.0
"""How often a seat looks whether the process of Ray that started it is there."""
DOUBT_S = 30.0
"""Ray takes up to about half of this to see that a node has gone; until then it goes on to place on it."""
_FIRST = 0
"""The number of the seat that is asked for before any launch; theirs begin at 1."""
_CALLS_MAX = 10_000
"""Of a steward at a time: one for each instance waits for its end."""
_JOIN = (
    "`ray start --head` on one machine begins a cluster, `ray start --address=HOST:6379` on each further one joins it, "
    "this one included; then give --ray-address HOST:6379"
)
Actor: TypeAlias = Any
"""A handle of Ray's, whose types know nothing of the methods behind it."""
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""What Ray says by these, in a process that has reserved GPUs, is what the instance may use."""


class About(NamedTuple):
    """What a seat knows of where it is."""

    node_id: str
    address: str
    environment: dict[str, str]


class Seat:
    """An actor that holds what one instance takes of its node, for as long as that lives. Computes nothing."""

    async def about(self) -> About:
        """Return at once: it runs, so the node has been found."""
        context = ray.get_runtime_context()
        # Without GPUs of its own an instance must see none: Ray leaves the variables as they are then.
        has_gpus = bool(context.get_accelerator_ids().get("GPU"))
        environment = {name: os.environ.get(name, "") if has_gpus else "" for name in VISIBLE_DEVICES}
        if has_gpus:
            environment = {name: devices for name, devices in environment.items() if devices}
        return About(context.get_node_id(), str(ray.util.get_node_ip_address()), environment)  # type: ignore[no-untyped-call]

    async def hold(self) -> None:
        """Never return: whoever waits for it hears of the seat's end, which comes with that of Ray's process here."""
        parent_pid = os.getppid()
        while os.getppid() == parent_pid:  # noqa: ASYNC110 there is no event for it
            await asyncio.sleep(PARENT_ASKED_S)
        os._exit(1)


class House(NamedTuple):
    """A node with a steward that has the weights."""

    steward: Actor
    door: Door
    loaded: Loaded


class NotLoadedError(Exception):
    """A node cannot read the model."""

    def __init__(self, failed: LoadFailed) -> None:
        super().__init__(failed.reason)
        self.hint = failed.hint


class Broker:
    """Performs what the gateway asks for; `say` takes what is to be told in return."""

    def __init__(self, say: Callable[[FromBroker], None]) -> None:
        self._say = say
        self._order: Begin
        self._need: Need
        self._nodes: list[Node] = []
        self._head = asyncio.Event()
        """Set while Ray's head answers: without it nothing can be placed, and calls to Ray may block."""
        self._houses: dict[str, asyncio.Task[House]] = {}
        """By node."""
        self._offers: dict[str, bytes] = {}
        """What leads to the weights of each node that has some, the newest last."""
        self._doubtful: dict[str, float] = {}
        """Nodes that the gateway has lost, and until when nothing is wished to be there."""
        self._lives: dict[int, asyncio.Task[None]] = {}
        """By number of the launch."""
        self._seated: dict[int, tuple[str, str]] = {}
        """Number of the launch → node and role; while it is being placed, the node that is wished for."""
        self._first_seat: Actor | None = None
        """The one on whose node the model was read first, until an instance takes it."""
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, message: ToBroker) -> None:
        """Do what the gateway says; what comes of it is said later."""
        if isinstance(message, Begin):
            self._keep(self._begin(message))
        elif isinstance(message, Launch):
            self._lives[message.number] = self._keep(self._live(message))
        elif isinstance(message, NodeLost):
            self._doubt(message.door)
        elif life := self._lives.get(message.number):
            life.cancel()

    def close(self) -> None:
        """Have Ray end what was started; where its head is gone nobody would, and Ray would wait for it."""
        if self._head.is_set():
            ray.shutdown()

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the cluster

    async def _begin(self, order: Begin) -> None:
        self._order = order
        try:
            async with asyncio.timeout(CONNECTING_S):
                self._nodes = await asyncio.to_thread(_connect, order.address)
        except TimeoutError:
            self._say(CannotBegin(f"the Ray cluster {_where(order)} does not answer", _JOIN))
            return
        except Exception as error:  # noqa: BLE001 whatever Ray has against it is for the operator to read
            self._say(CannotBegin(f"there is no Ray cluster {_where(order)}: {_first_line(error)}", _JOIN))
            return
        self._head.set()
        self._need = Need(order.cpus, self._gpus(order))
        try:
            self._first_seat = self._new_seat(_FIRST, "mixed")
            house = await self._house(await self._first_seat.about.remote())
        except NotLoadedError as error:
            self._say(CannotBegin(str(error), error.hint))
        except RayError as error:
            self._say(CannotBegin(f"Ray cannot place an instance: {_first_line(error)}", "`ray status` tells more"))
        else:
            self._say(Begun(house.loaded))
            self._keep(self._watch_head())

    def _gpus(self, order: Begin) -> float:
        if order.gpus is not None:
            return order.gpus
        return 1.0 if order.load.device != "cpu" and any(node.gpus for node in self._nodes) else 0.0

    async def _watch_head(self) -> None:
        while True:
            await asyncio.sleep(HEAD_ASKED_S)
            asking = asyncio.ensure_future(asyncio.to_thread(_nodes))
            await asyncio.wait((asking,), timeout=HEAD_SILENT_S)
            is_there = asking.done() and asking.exception() is None
            if is_there:
                self._nodes = asking.result()
            if is_there != self._head.is_set():
                self._say(HeadBack() if is_there else HeadLost())
                (self._head.set if is_there else self._head.clear)()
            # One question at a time. Ray tries for a while yet, and ends this process if that does not help.
            await asyncio.wait((asking,))

    # -- instances

    async def _live(self, order: Launch) -> None:
        """All of an instance's life, from its seat to its end."""
        number, why = order.number, "nobody wants it any more"
        seat = house = None
        try:
            await self._head.wait()
            seat = self._take_seat(number, order.role)
            about: About = await seat.about.remote()
            self._seated[number] = (about.node_id, order.role)
            self._say(Seated(number, about.address))
            house = await self._house(about)
            fork = msgspec.structs.replace(
                order.fork, device=house.loaded.device, blocks=house.loaded.blocks, environment=about.environment
            )
            await house.steward.admit.remote(number, fork, order.token)
            self._say(Admitted(number, house.door, house.loaded.origin))
            why = await _first(house.steward.ended.remote(number), seat.hold.remote())
        except NotLoadedError as error:
            why = str(error)
        except (ActorDiedError, ActorUnavailableError):
            why = "Ray has lost its node, or its seat there"
        except RayError as error:
            why = f"Ray has ended it: {_first_line(error)}"
        finally:
            self._seated.pop(number, None)
            self._lives.pop(number, None)
            if house is not None:
                house.steward.expel.remote(number)
            if seat is not None:
                ray.kill(seat)
            self._say(Ended(number, why))

    def _take_seat(self, number: int, role: str) -> Actor:
        seat, self._first_seat = self._first_seat, None
        self._seated.pop(_FIRST, None)
        return seat or self._new_seat(number, role)

    def _new_seat(self, number: int, role: str) -> Actor:
        """Ask Ray for one. What fits nowhere waits; that is what makes an autoscaler add nodes."""
        seated: dict[str, list[str]] = defaultdict(list)
        for node_id, other in self._seated.values():
            seated[node_id].append(other)
        warm = [node_id for node_id, house in self._houses.items() if house.done()]
        now = asyncio.get_running_loop().time()
        nodes = [node for node in self._nodes if self._doubtful.get(node.id, 0.0) <= now]
        wished = choose(nodes, seated, warm, role=role, need=self._need, strategy=self._order.strategy)
        options: dict[str, Any] = {"num_cpus": self._need.cpus, "num_gpus": self._need.gpus}
        if wished is not None:
            self._seated[number] = (wished, role)
            # Soft, for others use the nodes too, and what is free only Ray knows.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                wished, soft=True, _spill_on_unavailable=True
            )
        elif doubtful := [node_id for node_id, until_s in self._doubtful.items() if until_s > now]:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(doubtful)})"}
        return ray.remote(Seat).options(**options).remote()

    async def _house(self, about: About) -> House:
        """The node's steward, made and given the weights if it has none."""
        building = self._houses.get(about.node_id)
        if building is None:
            building = self._houses[about.node_id] = asyncio.ensure_future(self._build(about))
            self._keep(self._watch_house(about.node_id, building))
        return await asyncio.shield(building)

    async def _watch_house(self, node_id: str, building: asyncio.Task[House]) -> None:
        """When it is gone, or could not be built, whoever comes next to that node builds anew."""
        house = None
        with contextlib.suppress(NotLoadedError, RayError):
            house = await building
            await house.steward.hold.remote()
        del self._houses[node_id]
        self._offers.pop(node_id, None)
        if house is not None:
            self._say(Closed(house.door))

    def _doubt(self, door: Door) -> None:
        for node_id, building in self._houses.items():
            if building.done() and not building.exception() and building.result().door == door:
                self._doubtful[node_id] = asyncio.get_running_loop().time() + DOUBT_S

    async def _build(self, about: About) -> House:
        pinned = NodeAffinitySchedulingStrategy(about.node_id, soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": pinned, "max_concurrency": _CALLS_MAX}
        steward: Actor = ray.remote(Steward).options(**options).remote(about.address)
        door = await steward.open.remote()
        load = self._order.load
        node = next((node for node in self._nodes if node.id == about.node_id), None)
        sharers = self._need.sharers(node, load.instances) if node else load.instances
        load = msgspec.structs.replace(load, instances=sharers, environment=about.environment)
        candidates = list(reversed(self._offers.values()))
        offering = self._keep(self._remember_offer(about.node_id, steward))
        loaded = await steward.load.remote(load, self._order.hub_id, candidates)
        await asyncio.wait((offering,))
        if isinstance(loaded, LoadFailed):
            raise NotLoadedError(loaded)
        return House(steward, door, loaded)

    async def _remember_offer(self, node_id: str, steward: Actor) -> None:
        """Of a node that is still being filled, too: those that come after it form a chain, so none serves them all."""
        with contextlib.suppress(RayError):
            if offer := await steward.offer.remote():
                self._offers[node_id] = offer


def _where(order: Begin) -> str:
    return f"at {order.address}" if order.address else "that this machine belongs to"


def _connect(address: str) -> list[Node]:
    logging.getLogger("ray").setLevel(logging.ERROR)  # It is told anyway where signals go, and more.
    if address:
        host, _, port = address.rpartition(":")
        # Ray would try for minutes.
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_SILENT_S).close()
    ray.init(
        address=address or "auto",
        namespace="hyperflexis",
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.ERROR,
    )
    return _nodes()


def _nodes() -> list[Node]:
    return [
        Node(each["NodeID"], each["Resources"].get("CPU", 0.0), each["Resources"].get("GPU", 0.0))
        for each in ray.nodes()  # type: ignore[no-untyped-call]
        if each["Alive"]
    ]


async def _first(ended: ray.ObjectRef[str], hold: ray.ObjectRef[None]) -> str:
    """What an instance's end was, or the error that its seat's end is."""
    waiting = [asyncio.ensure_future(_result(ref)) for ref in (ended, hold)]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return str(done.pop().result())
    finally:
        for each in waiting:
            each.cancel()


async def _result(ref: ray.ObjectRef[Any]) -> Any:
    return await ref


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def serve(sock: socket.socket) -> None:
    """Do what is asked on the socket until that is closed; then end all that was started."""
    asyncio.run(_serve(sock))


async def _serve(sock: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    frames, framer = Frames[ToBroker](ToBroker), Framer()
    broker = Broker(lambda message: writer.write(framer.frame(message)))
    with contextlib.suppress(ConnectionError):  # It was closed while something was being said.
        while data := await reader.read(1 << 16):
            for message in frames.feed(data):
                broker.take(message)
    broker.close()
    # What still waits for Ray waits in vain, and need not be told.
    os._exit(0)
