"""An instance that computes nothing: it steps like a real one and takes the time that a latency model says.

The same step scheduler, blocks, moves and messages as the native engine; only the forward pass and the copying of KV
are replaced by timers of the event loop, so under a virtual clock a whole day takes moments. Its tokens are a function
of the text before them alone (unless another way is given), so that a request resumed elsewhere goes on exactly as it
would have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from hyperflexis.adapters.contract import Listener
from hyperflexis.adapters.stepping import StepOutcome, Stepping
from hyperflexis.core.blocks import BlockPool
from hyperflexis.core.handover import Pull
from hyperflexis.core.latency import LatencyModel, OnlineLatency, StepShape
from hyperflexis.core.step import Sequence, StepPlan, StepScheduler
from hyperflexis.wire.messages import (
    Asleep,
    Awake,
    Exposed,
    ExposeKv,
    Linked,
    LinkFailed,
    LinkTo,
    MoveFailed,
    News,
    Order,
    Ready,
    Reclaim,
    Sampling,
    SequenceState,
    Sleep,
    Submit,
    TakeIn,
    ToPeer,
    Unlink,
    Wake,
)

VOCABULARY = 50_000


def next_token(tokens: list[int]) -> int:
    """The token that a modelled instance emits after these."""
    return (tokens[-1] * 31 + len(tokens) * 17 + 7) % VOCABULARY


class Ways(NamedTuple):
    """What passing KV between modelled instances takes, and whether it comes to anything."""

    copy_s: Callable[[Pull], float] = lambda _: 0.005
    copy_fault: Callable[[Pull, int], str] = lambda *_: ""
    """Why a copy from that peer fails, once its time has passed; empty if it does not."""
    link_s: float = 0.01
    link_fault: str = ""


class ModelledAdapter:
    """Runs on the given loop, in this process. Ready `startup_s` after it is made."""

    def __init__(
        self,
        listener: Listener,
        ready: Ready,
        loop: asyncio.AbstractEventLoop,
        *,
        startup_s: float = 0.0,
        step_s: Callable[[StepShape], float] | None = None,
        next_token_of: Callable[[Sequence], int] | None = None,
        ways: Ways | None = None,
    ) -> None:
        """`step_s` is what steps really take, where that is not what the model in `ready` says; `next_token_of` is what
        a sequence goes on with, where that is not `next_token`.
        """
        self._listener = listener
        self._loop = loop
        model = LatencyModel(**ready.latency)
        pool = BlockPool(ready.blocks, ready.block_tokens)
        self._step_s = step_s or model.step_s
        self._next_token_of = next_token_of or _from_text
        self.uncomputable: set[int] = set()
        """Sequences whose next token cannot be computed here."""
        self._peers = _Peers(self, loop, ways or Ways())
        self._stepping = Stepping(StepScheduler(pool, ready.seqs_max, OnlineLatency(model)), self._peers)
        self._inbox: list[Callable[[], object]] = []
        """What is to be done between two steps: like a real instance, this one reads its messages there."""
        self._is_stepping = False
        self._sleeps_at = 0
        """Level of its sleep; 0: awake."""
        self._is_closed = False
        loop.call_later(startup_s, self._announce, ready)

    @property
    def scheduler(self) -> StepScheduler:
        return self._stepping.scheduler

    def submit(self, submit: Submit) -> None:
        self.post(partial(self._submit, submit, self._loop.time()))

    def _submit(self, submit: Submit, now: float) -> None:
        self._wake_for_work()
        self._stepping.submit(submit, now)

    def cancel(self, request_id: int) -> None:
        self.post(lambda: self._stepping.cancel(request_id, self._loop.time()))

    def configure(self, rules: Mapping[str, str | int | float | bool], version: int = 0) -> None:
        if self._is_stepping:
            self.post(partial(self._stepping.reconfigure, rules, version))
            return
        self._stepping.reconfigure(rules, version)
        if self._stepping.has_news():
            self._wake()

    def order(self, order: Order) -> None:
        if isinstance(order, ExposeKv | Reclaim | LinkTo | Unlink):
            self._peers.order(order)
        elif isinstance(order, Sleep):
            self.post(lambda: self.tell(self._sleep(order.level)))
        elif isinstance(order, Wake):
            self.post(self._wake_up)
        else:
            self.post(partial(self._take_order, order, self._loop.time()))

    def _take_order(self, order: Order, now: float) -> None:
        if isinstance(order, TakeIn):
            self._wake_for_work()
        self._stepping.order(order, now)

    def _sleep(self, level: int) -> Asleep | Awake:
        if why := self._stepping.busy_with():
            return Awake(why=why)
        self.scheduler.pool.forget()
        self._sleeps_at = max(self._sleeps_at, level)
        return Asleep(self._sleeps_at)

    def _wake_up(self) -> None:
        self._sleeps_at = 0
        self.tell(Awake())

    def _wake_for_work(self) -> None:
        if self._sleeps_at:
            self._wake_up()

    def close(self) -> None:
        self._is_closed = True

    def lose(self, why: str) -> None:
        """Die, as a real instance may."""
        if not self._is_closed:
            self._is_closed = True
            self._listener.on_lost(why)

    # -- for its ends of moves

    def post(self, action: Callable[[], object]) -> None:
        """Do that between two steps, the next two that there are."""
        self._inbox.append(action)
        self._wake()

    def tell(self, news: News) -> None:
        if not self._is_closed:
            self._listener.on_news(news)

    def copied(self, request_id: int, why: str, seconds: float) -> None:
        self.post(lambda: self._stepping.moves.copied(request_id, why, seconds, self._loop.time()))

    # -- steps

    def _wake(self) -> None:
        if not self._is_stepping:
            self._is_stepping = True
            self._loop.call_soon(self._begin_step)

    def _announce(self, ready: Ready) -> None:
        if not self._is_closed:
            self._listener.on_ready(ready)

    def _begin_step(self) -> None:
        if self._is_closed:
            return
        now = self._loop.time()
        while self._inbox:
            inbox, self._inbox = self._inbox, []
            for action in inbox:
                action()
        self._stepping.moves.answer(now)
        plan = self.scheduler.plan(now)
        if plan.is_void and not self._stepping.has_news():
            self._is_stepping = False
            return
        self._loop.call_later(self._step_s(plan.shape), self._end_step, plan, now)

    def _end_step(self, plan: StepPlan, began_s: float) -> None:
        if self._is_closed:
            return
        now = self._loop.time()
        report, _ = self._stepping.report(plan, self._outcome(plan, now - began_s), now)
        self._listener.on_report(report)
        for letter in self._stepping.moves.letters():
            self.tell(letter)
        self._begin_step()

    def _outcome(self, plan: StepPlan, duration_s: float) -> StepOutcome:
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        errors = {each.id: "it cannot be computed" for each in sampling if each.id in self.uncomputable}
        sampled = {each.id: self._next_token_of(each) for each in sampling if each.id not in errors}
        return StepOutcome(sampled, duration_s, errors)


class _Peers:
    """What moves need of a modelled instance; see `moves.Body`."""

    def __init__(self, owner: ModelledAdapter, loop: asyncio.AbstractEventLoop, ways: Ways) -> None:
        self._owner = owner
        self._loop = loop
        self._ways = ways
        self._links: dict[int, int] = {}
        """Peer → version."""
        self._copies: dict[int, asyncio.TimerHandle] = {}

    def order(self, order: ExposeKv | Reclaim | LinkTo | Unlink) -> None:
        """Make or end links; nothing is lent."""
        if isinstance(order, ExposeKv):
            self._loop.call_soon(self._owner.tell, Exposed(order.peer, order.version, b""))
        elif isinstance(order, LinkTo):
            self._loop.call_later(self._ways.link_s, self._link, order)
        elif isinstance(order, Unlink) and self._links.get(order.peer) == order.version:
            del self._links[order.peer]

    def _link(self, order: LinkTo) -> None:
        if self._ways.link_fault:
            self._owner.tell(LinkFailed(order.peer, order.version, self._ways.link_fault))
        else:
            self._links[order.peer] = order.version
            self._owner.tell(Linked(order.peer, order.version))

    # -- `moves.Body`

    def say(self, news: ToPeer | MoveFailed) -> None:
        self._owner.tell(news)

    def refusal(self, peer: int, link_version: int) -> str:
        return "" if self._links.get(peer) == link_version else f"there is no such link with i{peer}"

    def block_s(self, peer: int) -> float:
        return self._ways.copy_s(Pull(-1, -1, (0,), (0,), self._owner.scheduler.pool.block_tokens))

    def pull(self, pull: Pull, peer: int) -> None:
        seconds = self._ways.copy_s(pull)
        end = partial(self._end_copy, pull, peer, seconds)
        self._copies[pull.request_id] = self._loop.call_later(seconds, end)

    def stop_pull(self, request_id: int) -> None:
        timer = self._copies.pop(request_id, None)
        if timer is not None:
            timer.cancel()
            self._owner.copied(request_id, "stopped", 0.0)

    def state_of(self, sequence: Sequence) -> SequenceState:
        prompt_tokens, tokens = sequence.prompt_tokens, sequence.tokens
        return SequenceState(tokens[:prompt_tokens], tokens[prompt_tokens:], Sampling())

    def adopt(self, sequence_id: int, state: SequenceState) -> None:
        """Nothing is kept of a sequence but what the scheduler has."""

    def forget(self, sequence_id: int) -> None:
        """Likewise."""

    def scrub(self, blocks: list[int]) -> None:
        """Nothing is in them."""

    def _end_copy(self, pull: Pull, peer: int, seconds: float) -> None:
        del self._copies[pull.request_id]
        self._owner.copied(pull.request_id, self._ways.copy_fault(pull, peer), seconds)


def _from_text(sequence: Sequence) -> int:
    return next_token(sequence.tokens)
