"""One live request's stream: the tokens that its client already has, who hears of new ones, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hyperflexis.core.slo import Verdict
from hyperflexis.wire.messages import GenerateRequest, Submit, TokenLogprobs

EndReason = Literal["stop", "length", "cancelled", "rejected", "failed"]


@dataclass(frozen=True, slots=True)
class End:
    """The last thing a sink hears."""

    reason: EndReason
    verdict: Verdict | None = None
    message: str = ""
    status: int = 200
    """HTTP's word for it, where reason is rejected or failed."""
    retry_after_s: float | None = None
    cached_tokens: int = 0


class Sink(Protocol):
    """Whoever a stream is for."""

    def on_tokens(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> None: ...

    def on_prompt_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> None: ...

    def on_end(self, end: End) -> None: ...


@dataclass(slots=True, eq=False)
class Stream:
    """Owned by the driver. Instants are seconds on the loop's clock."""

    request: GenerateRequest
    sink: Sink
    arrived_s: float
    first_token_s: float | None = None
    emitted: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    ended_as: EndReason = "failed"
    """What the instance said of the end; `failed` until it said something."""
    error: str = ""
    offer: tuple[int, bytes] | None = None
    """Where it stands still after its prefill, and what that instance says to whoever will take it."""

    def submission(self, request_id: int, expected_tokens: int, now: float) -> Submit:
        """What an instance has to be told in order to go on from here."""
        request, first_token_s = self.request, self.first_token_s
        return Submit(
            request=request_id,
            prompt=request.prompt,
            emitted=list(self.emitted),
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            priority=request.priority,
            ttft_s=request.ttft_s,
            tpot_s=request.tpot_s,
            e2e_s=request.e2e_s,
            waited_s=now - self.arrived_s,
            first_token_age_s=None if first_token_s is None else now - first_token_s,
            expected_tokens=expected_tokens,
            traceparent=request.traceparent,
        )
