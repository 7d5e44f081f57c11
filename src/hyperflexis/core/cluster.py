"""Everything the control plane knows: all live requests, all instances, the queue, and how long answers tend to be.

Only holds and finds; decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from hyperflexis.core.instance import Instance, InstanceState
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

    def expected(self, max_tokens: int) -> int:
        """Tokens to plan for; all that the client may ask for while nothing is known."""
        if not self._sorted:
            return max_tokens
        return min(max_tokens, self._sorted[int(self.QUANTILE * (len(self._sorted) - 1))])


class Cluster:
    """Requests by id, instances by id (in order of their launch), and the queue in order of `Request.queue_key`."""

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.instances: dict[int, Instance] = {}
        self.queue: list[Request] = []
        self._lengths: dict[str, OutputLengths] = {}

    def ready_instances(self) -> list[Instance]:
        return [instance for instance in self.instances.values() if instance.state is InstanceState.READY]

    def enqueue(self, request: Request) -> None:
        insort(self.queue, request, key=_key)

    def dequeue(self, request: Request) -> None:
        index = bisect_left(self.queue, request.queue_key, key=_key)
        assert self.queue[index] is request, f"not in the queue: {request!r}"
        del self.queue[index]

    def expected_tokens(self, request: Request) -> int:
        """Output length to plan for."""
        lengths = self._lengths.get(request.service_class)
        return lengths.expected(request.max_tokens) if lengths else request.max_tokens

    def observe_length(self, request: Request) -> None:
        self._lengths.setdefault(request.service_class, OutputLengths()).observe(request.emitted_tokens)

    def check(self) -> None:
        """Every request is in exactly one place, and the place agrees with its state."""
        queued = {request.id for request in self.queue}
        assert len(queued) == len(self.queue), "a request is queued twice"
        assert [_key(request) for request in self.queue] == sorted(_key(request) for request in self.queue)
        placed: dict[int, int] = {}
        for instance in self.instances.values():
            instance.check()
            for request_id in [*instance.waiting, *instance.decoding]:
                assert request_id not in placed, f"request {request_id} is on two instances"
                placed[request_id] = instance.id
        for request in self.requests.values():
            assert (request.state is RequestState.QUEUED) == (request.id in queued), repr(request)
            assert (request.state in ON_INSTANCE) == (request.id in placed), repr(request)
        assert queued | placed.keys() == self.requests.keys(), "a request is kept that is nowhere"


def _key(request: Request) -> tuple[int, float, float, int]:
    return request.queue_key
