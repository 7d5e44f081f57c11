"""One request at one server, as its adapter follows it: what its client has, what is still to come, and how.

Where a server generates again what the client has already (it does so after a transfer of KV), that is compared and not
handed out twice.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from hyperflexis.adapters.vllm import completion
from hyperflexis.adapters.vllm.answer import End, Reading
from hyperflexis.adapters.vllm.completion import Choice
from hyperflexis.adapters.vllm.connection import Pool
from hyperflexis.wire.messages import FinishReason, Submit, TokenLogprobs


class Owner(Protocol):
    """The adapter, as its requests see it."""

    def on_tokens(self, running: Running, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None: ...

    def on_prompt_logprobs(self, running: Running, logprobs: list[TokenLogprobs]) -> None: ...

    def on_differs(self, running: Running) -> None:
        """It was to generate again what its client has, and gave something else."""

    def on_end(self, running: Running, end: End) -> None: ...


class Running:
    """Made when it is submitted, opened when it is sent."""

    def __init__(
        self, owner: Owner, submit: Submit, *, since: int | None = None, transfer: dict[str, Any] | None = None
    ) -> None:
        """Of what was emitted, the server is given the first `since` tokens, and all by default."""
        self.submit = submit
        self.emitted = list(submit.emitted)
        self.transfer = transfer
        self.params: dict[str, Any] | None = None
        """What lets another server fetch its KV, once this one has said it."""
        self.heard_s: float | None = None
        """When its last tokens came from here."""
        self._owner = owner
        self._since = len(submit.emitted) if since is None else since
        self._repeated = 0
        self._reading: Reading | None = None

    @property
    def id(self) -> int:
        return self.submit.request

    @property
    def given(self) -> int:
        """How many of the tokens emitted before it came here the server took for prompt."""
        return self._since

    @property
    def is_prefill(self) -> bool:
        """Whether this server is to give its first token, and no more."""
        return self.transfer is completion.PREFILL_ONLY

    @property
    def is_open(self) -> bool:
        return self._reading is not None

    def prompt(self) -> list[int]:
        """What the server computes before its first token."""
        return self.submit.prompt + self.submit.emitted[: self._since]

    def complete(self) -> FinishReason | None:
        """Why nothing is left to be computed, whatever the server has said of the end; None if something is."""
        emitted, sampling = self.emitted, self.submit.sampling
        if emitted and emitted[-1] in sampling.stop_ids and len(emitted) > sampling.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(emitted) >= self.submit.max_tokens else None

    def resumed(self) -> Submit:
        """What to submit in order to go on from here."""
        return msgspec.structs.replace(self.submit, emitted=list(self.emitted))

    def open(self, pool: Pool, model: str, name: str) -> Reading:
        """Send it."""
        body = completion.body_of(self.submit, model, self._since, self.transfer)
        self._reading = Reading(pool, body, completion.headers_of(self.submit, name), self)
        return self._reading

    def close(self) -> None:
        """Have the server stop, and hear no more."""
        if self._reading is not None:
            self._reading.close()

    # -- answer.Hearer

    def on_chunk(self, choice: Choice) -> None:
        tokens = choice.token_ids or []
        sampling = self.submit.sampling
        logprobs = None
        if choice.logprobs is not None and sampling.logprobs is not None:
            logprobs = completion.logprobs_of(choice, tokens, sampling.logprobs)
        if choice.prompt_logprobs is not None and completion.wants_prompt_logprobs(self.submit):
            told = completion.prompt_logprobs_of(choice, self.submit.prompt, sampling.logprobs or 0)
            self._owner.on_prompt_logprobs(self, told)
        again = len(self.submit.emitted) - self._since - self._repeated
        if again:
            known = self.submit.emitted[self._since + self._repeated :]
            if tokens[:again] != known[: len(tokens)]:
                self._owner.on_differs(self)
                return
            self._repeated += min(again, len(tokens))
            tokens, logprobs = tokens[again:], logprobs and logprobs[again:]
        if tokens:
            self.emitted += tokens
            self._owner.on_tokens(self, tokens, logprobs)

    def on_transfer(self, params: dict[str, Any]) -> None:
        self.params = params

    def on_end(self, end: End) -> None:
        self._owner.on_end(self, end)
