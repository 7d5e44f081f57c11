"""What the gateway needs of the rest: one protocol. The runtime fulfils it without either knowing the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hyperflexis.core.slo import ServiceClass, Verdict
from hyperflexis.wire.messages import GenerateRequest, TokenLogprobs


class EndReason(StrEnum):
    """Why a stream of tokens ended. Whoever knows no gateway may say the plain word."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    """By `Backend.cancel`; the sink that was cancelled hears of it too."""
    REJECTED = "rejected"
    """Refused before any work was spent on it; `End.status` is 400, 429 or 503."""
    FAILED = "failed"
    """Not the client's fault; `End.status` is 500 or 503."""


class Ending(Protocol):
    """The last thing a sink hears, as it reads it; `End` says what the fields mean."""

    @property
    def reason(self) -> str: ...

    @property
    def verdict(self) -> Verdict | None: ...

    @property
    def message(self) -> str: ...

    @property
    def status(self) -> int: ...

    @property
    def retry_after_s(self) -> float | None: ...

    @property
    def cached_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class End:
    """The gateway's own `Ending`."""

    reason: str
    """An `EndReason`."""
    verdict: Verdict | None = None
    message: str = ""
    """For people, where reason is REJECTED or FAILED."""
    status: int = 200
    retry_after_s: float | None = None
    cached_tokens: int = 0
    """Prompt tokens whose KV was found, not computed."""


class TokenSink(Protocol):
    """Receives one request's tokens, on the event loop's thread. Must not block, and must not raise."""

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None:
        """Take the next tokens, an ending stop id included; `logprobs` is parallel to them if asked for."""

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None:
        """Take those of prompt positions 1 to the end; comes before the first token, only if asked for."""

    def on_end(self, end: Ending) -> None:
        """Take the end. Nothing follows."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as clients may ask for it."""

    name: str
    created: int
    """Unix time of the start of serving."""
    context_tokens_max: int
    """Prompt and output together: the smaller of what the model and what an instance's KV pool can hold."""


class InstanceStatus(Protocol):
    """One instance as /ready and /metrics read it."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def role(self) -> str: ...

    @property
    def waiting_seqs(self) -> int: ...

    @property
    def running_seqs(self) -> int: ...

    @property
    def blocks(self) -> int: ...

    @property
    def blocks_free(self) -> int: ...


class Fleet(Protocol):
    """What turns prompts into tokens."""

    def submit(self, request: GenerateRequest, sink: TokenSink) -> int:
        """Begin; returns a ticket. The sink hears nothing before this returns."""

    def cancel(self, ticket: int) -> None:
        """Stop the work within one step. Unknown or ended tickets are ignored."""

    def instances(self) -> Sequence[InstanceStatus]: ...

    def is_ready(self) -> bool:
        """Whether at least one instance takes requests and the fleet is not draining."""


class Membership(Protocol):
    """What lets whoever asks attach servers as instances, and detach them."""

    def attach(self, url: str, role: str) -> None:
        """Have a server as an instance, as soon as it answers.

        Raises:
            ValueError: it cannot be one; the message says why.
        """

    def detach(self, name: str) -> bool:
        """Take an instance away, its work going on elsewhere; False if there is none of that name.

        Raises:
            ValueError: it has to stay; the message says why.
        """


class View(Protocol):
    """What a dashboard shows, as bytes that are sent as they are."""

    def file(self, name: str) -> tuple[str, bytes] | None:
        """Content type and bytes of a file of its page."""

    def source(self) -> bytes:
        """What is shown; JSON, as all that follows."""

    async def request(self, name: str) -> bytes | None:
        """What became of a request, by number or by the id of its answer; None where it is not known."""

    async def instance(self, instance_id: int) -> bytes | None:
        """What happened to an instance; None where it is not known."""


class LiveView(View, Protocol):
    """Of a running fleet."""

    @property
    def period_s(self) -> float:
        """What `snapshot` gives is no older."""

    def snapshot(self) -> bytes: ...


class RecordedView(View, Protocol):
    """Of what was."""

    def frames_from(self, first: int) -> bytes:
        """Some snapshots, from the one of that number on."""


class Backend(Fleet, Protocol):
    """A fleet that also knows what it offers; otherwise whoever builds the gateway says so."""

    @property
    def models(self) -> Sequence[ServedModel]: ...

    @property
    def service_classes(self) -> dict[str, ServiceClass]:
        """By name; "default" is always there."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What clients may ask for."""

    models: Sequence[ServedModel]
    service_classes: Mapping[str, ServiceClass]
    default_class: str = "default"
    """For requests that name none."""
