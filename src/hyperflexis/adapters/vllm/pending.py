"""What the next report will say, gathered until the event loop has read all that has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperflexis.wire.messages import Arrived, FinishReason, TokenLogprobs


@dataclass(slots=True)
class Pending:
    """Empty when it is made."""

    requests: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    finished: dict[int, FinishReason] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    returned: dict[int, bool] = field(default_factory=dict)
    arrived: list[Arrived] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    suspended: list[int] = field(default_factory=list)
    offers: dict[int, bytes] = field(default_factory=dict)
    has_changed: bool = False
    """Something else is to be told: requests were taken away, or rules put in force."""

    def add(self, request_id: int, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        if logprobs is not None:
            self.logprobs.update(enumerate(logprobs, len(self.tokens)))
        self.requests += [request_id] * len(tokens)
        self.tokens += tokens

    def drop(self, request_id: int) -> None:
        """Say nothing of a request that was cancelled."""
        if request_id in self.requests:
            kept = [i for i, each in enumerate(self.requests) if each != request_id]
            self.logprobs = {new: self.logprobs[old] for new, old in enumerate(kept) if old in self.logprobs}
            self.requests, self.tokens = [self.requests[i] for i in kept], [self.tokens[i] for i in kept]
        for told in (self.prompt_logprobs, self.finished, self.errors, self.returned, self.offers):
            told.pop(request_id, None)
        self.resumed = [each for each in self.resumed if each != request_id]
        self.preempted = [each for each in self.preempted if each != request_id]
        self.suspended = [each for each in self.suspended if each != request_id]

    @property
    def has_news(self) -> bool:
        """Whether there is more to tell than tokens."""
        return self.has_changed or bool(
            self.finished or self.returned or self.arrived or self.resumed or self.suspended
        )
