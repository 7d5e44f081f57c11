"""What the gateway needs of the rest: one protocol. The runtime fulfils it without either knowing the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from hyperflexis.core.slo import ServiceClass, Verdict
from hyperflexis.wire.messages import GenerateRequest, TokenLogprobs


class EndReason(Enum):
    """Why a stream of tokens ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    """By `Backend.cancel`; the sink that was cancelled hears of it too."""
    REJECTED = "rejected"
    """Refused before any work was spent on it; `End.status` is 429 or 503."""
    FAILED = "failed"
    """Not the client's fault; `End.status` is 500 or 503."""


@dataclass(frozen=True, slots=True)
class End:
    """The last thing a sink hears."""

    reason: EndReason
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

    def on_end(self, end: End) -> None:
        """Take the end. Nothing follows."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as clients may ask for it."""

    name: str
    created: int
    """Unix time of the start of serving."""
    context_tokens_max: int
    """Prompt and output together: the smaller of what the model and what an instance's KV pool can hold."""


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """One instance as /ready and /metrics show it."""

    name: str
    state: str
    role: str
    waiting_seqs: int
    running_seqs: int
    blocks: int
    blocks_free: int


class Backend(Protocol):
    """A fleet that turns prompts into tokens."""

    @property
    def models(self) -> Sequence[ServedModel]: ...

    @property
    def service_classes(self) -> dict[str, ServiceClass]:
        """By name; "default" is always there."""

    def submit(self, request: GenerateRequest, sink: TokenSink) -> int:
        """Begin; returns a ticket. The sink hears nothing before this returns."""

    def cancel(self, ticket: int) -> None:
        """Stop the work within one step. Unknown or ended tickets are ignored."""

    def instances(self) -> Sequence[InstanceStatus]: ...

    def is_ready(self) -> bool:
        """Whether at least one instance takes requests and the fleet is not draining."""
