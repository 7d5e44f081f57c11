"""What moves need of an instance, without one: a body that remembers what it is asked for."""

from __future__ import annotations

from hyperflexis.core.handover import Pull
from hyperflexis.core.step import Sequence
from hyperflexis.wire.messages import MoveFailed, Sampling, SequenceState, ToPeer


class Bystander:
    """Linked with everybody, by links of version 1; copies end when a test says so."""

    def __init__(self) -> None:
        self.said: list[ToPeer | MoveFailed] = []
        self.pulls: list[tuple[Pull, int]] = []
        self.stopped: list[int] = []
        self.adopted: dict[int, SequenceState] = {}
        self.forgotten: list[int] = []
        self.scrubbed: list[list[int]] = []

    def say(self, news: ToPeer | MoveFailed) -> None:
        self.said.append(news)

    def refusal(self, peer: int, link_version: int) -> str:
        return "" if link_version == 1 else f"there is no such link with i{peer}"

    def block_s(self, peer: int) -> float:
        return 0.0

    def pull(self, pull: Pull, peer: int) -> None:
        self.pulls.append((pull, peer))

    def stop_pull(self, request_id: int) -> None:
        self.stopped.append(request_id)

    def state_of(self, sequence: Sequence) -> SequenceState:
        prompt_tokens = sequence.prompt_tokens
        return SequenceState(sequence.tokens[:prompt_tokens], sequence.tokens[prompt_tokens:], Sampling())

    def adopt(self, sequence_id: int, state: SequenceState) -> None:
        self.adopted[sequence_id] = state

    def forget(self, sequence_id: int) -> None:
        self.forgotten.append(sequence_id)

    def scrub(self, blocks: list[int]) -> None:
        self.scrubbed.append(blocks)
