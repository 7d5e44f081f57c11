"""The words that the gateway's process and an instance say to each other, as msgspec structs.

One message per step in each direction: `Work` to the instance, `StepReport` back; besides, orders and news of links
between instances and of moves from one to another. What two instances say to each other passes through as bytes.
Repeated fields are columns (parallel lists), not rows: at 512 sequences that halves the cost of a message. Instants
never cross a process border, because the two clocks need not agree; durations do (`waited_s`), and the receiver
subtracts them from its own clock.

Requests are numbers here; the OpenAI id that a client sees belongs to the gateway.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec


class FinishReason(IntEnum):
    """Why an instance stopped computing a request."""

    STOP = 0
    """A stop id (or the end-of-sequence id) was sampled; it is the request's last token."""
    LENGTH = 1
    """`max_tokens` were emitted."""
    FAILED = 2
    """The instance could not compute it; `StepReport.errors` says why."""


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How the next token is drawn. Values are checked by whoever accepts the request; the defaults mean "off"."""

    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means all."""
    min_p: float = 0.0
    seed: int = 0
    """Always set: the gateway draws one where the client gave none, so that a request moved elsewhere goes on alike."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    """None: none. k: the sampled token's log-probability and those of the k most likely tokens (k may be 0)."""
    prompt_logprobs: bool = False
    """The same for every prompt token but the first; such a request reuses no prefix."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the request, end-of-sequence included unless the client asked to ignore it."""
    min_tokens: int = 0
    """Before this many tokens no stop id can be drawn."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """One position: the token that stands there, and the most likely ones, each with its natural log-probability."""

    token: int
    logprob: float
    top_tokens: list[int]
    top_logprobs: list[float]


class GenerateRequest(msgspec.Struct, frozen=True):
    """What the gateway asks of the runtime: tokens, how to sample, what was promised. All text stays behind."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    model: str = ""
    service_class: str = "default"
    priority: int = 0
    """Higher is more important."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    refuses_late: bool = False
    """Refuse it rather than serve it late."""
    is_part: bool = False
    """One of several that its client gets together or not at all."""
    name: str = ""
    """What its client calls it: for the journal, by which it is found again."""
    traceparent: str = ""
    """The trace that it belongs to, as W3C writes it, for engines that trace too; empty where there is none."""


class Submit(msgspec.Struct, frozen=True, array_like=True):
    """One request handed to an instance, new or resumed (then `emitted` holds what the client already has)."""

    request: int
    prompt: list[int]
    emitted: list[int]
    max_tokens: int
    sampling: Sampling
    priority: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    waited_s: float = 0.0
    """Seconds since the request arrived."""
    first_token_age_s: float | None = None
    """Seconds since its first token, where there was one."""
    expected_tokens: int = 0
    """How long its answer is believed to become; 0 where nothing is known."""
    traceparent: str = ""
    """The trace that it belongs to, as W3C writes it."""


class SequenceState(msgspec.Struct, frozen=True, array_like=True):
    """A sequence inside an engine, besides its KV: with both, another engine goes on as this one would have.

    Where the generator stands and what penalties count follows from the tokens.
    """

    prompt: list[int]
    emitted: list[int]
    sampling: Sampling
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Gathered so far; None where they are not wanted, or handed out already."""


class Work(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Everything the instance must know before its next step."""

    submits: list[Submit] = []
    cancels: list[int] = []


class Configure(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """New rules for the instance's scheduler, from the next step on."""

    rules: dict[str, str | int | float | bool]
    """Fields of `core.step.StepRules`."""
    version: int = 0
    """What reports call these rules."""


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Leave at once; the sender has already seen to the requests."""


class ExposeKv(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Lend the KV to a peer. Answered by `Exposed` or `LinkFailed`."""

    peer: int
    version: int
    """Of the link; a newer one replaces what was there."""


class Reclaim(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Lend the KV to this peer no more."""

    peer: int
    version: int


class LinkTo(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Make ready to take KV from a peer. Answered by `Linked` or `LinkFailed`."""

    peer: int
    version: int
    descriptor: bytes
    """What the peer's `Exposed` said."""


class Unlink(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Take no more from this peer."""

    peer: int
    version: int


class TakeIn(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Take a request from a peer while it runs. A later report has it in `arrived`, or `MoveFailed` is said."""

    submit: Submit
    source: int
    move: int
    """The number of this attempt to move anything."""
    tokens: int
    """Room that it needs now."""
    link_version: int
    at_first_token: bool = False
    """It is handed off: it stands still with its first token, and not before."""
    offer: bytes = b""
    """What its source has said of it in `StepReport.offers`, if it has."""
    recomputes: bool = False
    """Copy nothing: compute it anew."""


class Abandon(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Wait for this request's source no longer: take it, or have it fail, at once."""

    request: int


class Stay(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Let a request that stands still go on here."""

    request: int
    move: int | None = None
    """Only if it stands still for this attempt to move it."""


class Taken(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """A peer has reported that this request has arrived there: forget it."""

    request: int


class FromPeer(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """What a peer has said `ToPeer`."""

    peer: int
    payload: bytes


class Sleep(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Give memory back and do nothing until `Wake`. Answered by `Asleep`, or by `Awake` and why if work is here."""

    level: int = 1
    """1: the KV; 2: the weights too."""


class Wake(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Be as before. Answered by `Awake`, or by `Asleep` and why if the memory cannot be had. Work wakes it too."""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Say `Pong` between two steps, to show that there is somebody."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The instance's first message: what it can hold, and how fast it measured itself to be."""

    blocks: int
    block_tokens: int
    seqs_max: int
    latency: dict[str, float]
    """Fields of `core.latency.LatencyModel`."""
    samples: Sequence[tuple[tuple[int, int, int, int], float]]
    """The steps it was fitted to: (prefill tokens, prefill pairs, decode seqs, context tokens), seconds."""
    device: str
    startup_s: dict[str, float] = {}
    """Seconds by phase of the start."""
    kv_token_bytes: int = 0
    """What moving a token's KV moves; 0 where nothing is known."""
    weights: bytes = b""
    """With this descriptor a sibling on this host can copy them from its device; empty on a host, where all share."""


class Arrived(msgspec.Struct, frozen=True, array_like=True):
    """A request that has been taken in, as far as it had come then."""

    request: int
    source: int
    computed_tokens: int
    emitted_tokens: int
    copied_tokens: int
    copied_s: float
    """What copying these took, waiting not counted."""


class StepReport(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What one step did. A request may stand more than once in `requests` if a step yields several of its tokens."""

    duration_s: float
    prefill_tokens: int
    prefill_pairs: int
    decode_seqs: int
    context_tokens: int
    requests: list[int]
    tokens: list[int]
    finished: list[int]
    reasons: list[int]
    """A `FinishReason` for each of `finished`."""
    started: list[int]
    """Requests whose prefill began in this step."""
    cached_tokens: list[int]
    """For each of `started`: how many of its tokens needed no computing."""
    preempted: list[int]
    began: list[int]
    """Requests whose prefill ended in this step: they decode from now on."""
    steps: int
    """How many steps the control plane is to hear of with this one, itself included; 0: nothing yet."""
    waiting_seqs: int
    waiting_tokens: int
    running_seqs: int
    blocks_free: int
    logprobs: dict[int, TokenLogprobs] = {}
    """By index into `tokens`; only for requests that asked."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    """By request, once, with its first token: positions 1 to the end of the prompt."""
    errors: dict[int, str] = {}
    """By request, for those finished as FAILED."""
    latency: dict[str, float] | None = None
    """A new fit of the latency model, now and then."""
    resumed: list[int] = []
    """Requests that stood still and took part in this step again."""
    arrived: list[Arrived] = []
    """Requests that came from peers and could take part in it."""
    suspended: list[int] = []
    """Requests that stand still from its end on, to go on elsewhere."""
    offers: dict[int, bytes] = {}
    """By request, of those that were handed off and that nobody has called for: what whoever takes it will need."""
    rules_version: int = 0
    """Of the rules in force."""
    returned: dict[int, bool] = {}
    """Unfinished requests that are here no more and are to be placed again; whether each was refused before it began,
    because the instance takes no more for now."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The instance cannot go on (or could not start) and says why before it leaves."""

    reason: str


class Exposed(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """With this descriptor the peer can take KV from here."""

    peer: int
    version: int
    descriptor: bytes


class Linked(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """KV can be taken from this peer."""

    peer: int
    version: int


class LinkFailed(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """It cannot, or can no more."""

    peer: int
    version: int
    why: str
    is_lender: bool = False
    """Whether it is this side that lends; else it takes."""


class ToPeer(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """To be passed on to a peer as `FromPeer`; lost if that is."""

    peer: int
    payload: bytes


class MoveFailed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """A request has not been taken in, and nothing of it is left here."""

    request: int
    why: str


class Asleep(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """It sleeps now, at this level."""

    level: int
    freed_bytes: int = 0
    """What it gave back of this host's or its device's memory. Weights that others share are not counted."""
    seconds: float = 0.0
    """What that took."""
    why: str = ""
    """Why it did not wake."""


class Awake(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """It takes work now."""

    seconds: float = 0.0
    """What waking took."""
    why: str = ""
    """Why it did not go to sleep."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """To `Ping`."""


Order = ExposeKv | Reclaim | LinkTo | Unlink | TakeIn | Abandon | Stay | Taken | FromPeer | Sleep | Wake | Ping
"""What an instance is told of links, moves and sleep, or asked."""
News = Exposed | Linked | LinkFailed | ToPeer | MoveFailed | Asleep | Awake | Pong
"""What it says of them between its reports."""
ToInstance = Work | Configure | Shutdown | Order
FromInstance = Ready | StepReport | Failed | News
