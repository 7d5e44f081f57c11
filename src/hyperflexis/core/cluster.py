"""Everything the control plane knows: all live requests, all instances, the queue, and how long answers tend to be.

Only holds and finds; decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from hyperflexis.core import demand
from hyperflexis.core.demand import Asked
from hyperflexis.core.due_work import DueWork
from hyperflexis.core.instance import Instance, InstanceState, Role
from hyperflexis.core.loads import Loads
from hyperflexis.core.network import Network
from hyperflexis.core.request import ON_INSTANCE, Request, RequestState


class OutputLengths:
    """An upper quantile of the lengths of recent answers of one service class.

    The upper quantile, not the mean: underestimating fills an instance that then has to preempt.
    """

    QUANTILE = 0.8
    WINDOW = 256

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def observe(self, tokens: int) -> None:
        if len(self._recent) == self.WINDOW:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._recent.append(tokens)
        insort(self._sorted, tokens)

    def expected(self, max_tokens: int, emitted_tokens: int = 0) -> int:
        """Tokens to plan for, of answers that are longer than what is there of this one already.

        All that the client may ask for while nothing of that length is known.
        """
        shorter = bisect_right(self._sorted, emitted_tokens)
        longer = len(self._sorted) - shorter
        if not longer:
            return max_tokens
        return min(max_tokens, self._sorted[shorter + int(self.QUANTILE * (longer - 1))])


class Cluster:
    """Requests by id, instances by id (in order of their launch), and the queue in order of `Request.queue_key`."""

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.instances: dict[int, Instance] = {}
        self.ready: list[Instance] = []
        """Those that take requests; `note_ready` keeps it."""
        self.fronts: list[Instance] = []
        """Those of them to which new requests go: all but the ones that decode for others, if there are any."""
        self.tokens_max = 0
        """Tokens of one request that every ready instance could hold."""
        self.queue: list[Request] = []
        self._lengths: dict[str, OutputLengths] = {}
        self._changed: set[Instance] = set()
        self.loads = Loads(self._changed)
        self.network = Network()
        self.asked: dict[str, Asked] = {}
        """By class, of all requests that have arrived while an instance was ready, and of those that have ended."""
        self.due_work = DueWork()
        self.placements: dict[str, tuple[int, int]] = {}
        """By class, requests that were placed and could have been in time on an idle instance, and those of them that
        will be late where they are.
        """
        self.ended = self.kept = 0
        """Requests that have ended, but for those whose clients left; and those of them that kept their promises."""

    def launch(self, instance_id: int, role: Role) -> Instance:
        """Count a new instance in; it is not ready."""
        instance = Instance(instance_id, role, self._changed)
        self.instances[instance_id] = instance
        return instance

    def note_ready(self) -> None:
        """Say that an instance has become ready, or is so no more."""
        self.ready = [instance for instance in self.instances.values() if instance.state is InstanceState.READY]
        self.tokens_max = min((i.capacity.blocks * i.capacity.block_tokens for i in self.ready), default=0)
        self.fronts = [instance for instance in self.ready if instance.role is not Role.DECODE] or self.ready
        self.loads.reset(self.ready)

    def enqueue(self, request: Request) -> None:
        insort(self.queue, request, key=_key)

    def dequeue(self, request: Request) -> None:
        is_first = bool(self.queue) and self.queue[0] is request  # As when it is dispatched.
        index = 0 if is_first else bisect_left(self.queue, request.queue_key, key=_key)
        assert self.queue[index] is request, f"not in the queue: {request!r}"
        del self.queue[index]

    def expected_tokens(self, request: Request) -> int:
        """Output length to plan for: the longer its answer is already, the longer it is believed to become."""
        lengths = self._lengths.get(request.service_class)
        return lengths.expected(request.max_tokens, request.emitted_tokens) if lengths else request.max_tokens

    def observe_arrival(self, request: Request) -> None:
        """Count what a new request asks for."""
        if self.ready:
            self._ask(request, demand.arrived(request, self.ready[0]))
            work_s = self.ready[0].latency.model.chunk_s(request.prompt_tokens, 0)
            self.due_work.add(request.term_s - work_s, work_s)

    def observe_placement(self, request: Request, instance: Instance, *, is_late: bool) -> None:
        """Count a new request that was placed; one that no instance could serve in time says nothing."""
        model = instance.latency.model
        idle_s = model.prefill_base_s + model.chunk_s(request.prompt_tokens, 0)
        if not is_late or idle_s <= request.term_s:
            placed, late = self.placements.get(request.service_class, (0, 0))
            self.placements[request.service_class] = (placed + 1, late + is_late)

    def observe_end(self, *, is_kept: bool) -> None:
        """Count a request that has ended."""
        self.ended += 1
        self.kept += is_kept

    def _ask(self, request: Request, asked: Asked) -> None:
        self.asked[request.service_class] = self.asked.get(request.service_class, Asked()).plus(asked)

    def observe_length(self, request: Request) -> None:
        self._lengths.setdefault(request.service_class, OutputLengths()).observe(request.emitted_tokens)
        self._ask(request, demand.answered(request))

    def check(self) -> None:
        """Every request is in exactly one place, and the place agrees with its state."""
        queued = {request.id for request in self.queue}
        assert len(queued) == len(self.queue), "a request is queued twice"
        assert [_key(request) for request in self.queue] == sorted(_key(request) for request in self.queue)
        ready = [instance for instance in self.instances.values() if instance.state is InstanceState.READY]
        assert ready == self.ready, "the list of ready instances is another one"
        fronts = [instance for instance in ready if instance.role is not Role.DECODE] or ready
        assert fronts == self.fronts, "the list of instances for new requests is another one"
        placed: dict[int, int] = {}
        for instance in self.instances.values():
            instance.check()
            for request_id in [*instance.waiting, *instance.decoding, *instance.standing]:
                assert request_id not in placed, f"request {request_id} is on two instances"
                placed[request_id] = instance.id
        for request in self.requests.values():
            assert (request.state is RequestState.QUEUED) == (request.id in queued), repr(request)
            assert (request.state in ON_INSTANCE) == (request.id in placed), repr(request)
        lost = {request.id for request in self.requests.values() if request.state is RequestState.IN_TRANSIT}
        assert queued | placed.keys() | lost == self.requests.keys(), "a request is kept that is nowhere"


def _key(request: Request) -> tuple[int, float, float, int]:
    return request.queue_key
