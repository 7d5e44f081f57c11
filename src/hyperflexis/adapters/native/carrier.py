"""How sequences leave a native instance and come to it: their KV by its peers, the rest by its runner.

See `moves.Body`. Knows no reasons.
"""

from __future__ import annotations

import torch

from hyperflexis.adapters.native.peers import Peers
from hyperflexis.core.handover import Pull
from hyperflexis.core.step import Sequence
from hyperflexis.engine.runner import Runner
from hyperflexis.wire.framing import BlockingChannel
from hyperflexis.wire.messages import MoveFailed, SequenceState, ToInstance, ToPeer


class Carrier:
    """Of one instance."""

    def __init__(self, channel: BlockingChannel[ToInstance], runner: Runner, peers: Peers) -> None:
        self._channel = channel
        self._runner = runner
        self._peers = peers
        self._is_on_device = runner.pool.data.device.type != "cpu"

    def say(self, news: ToPeer | MoveFailed) -> None:
        if self._is_on_device:  # What is told of must have been written, which no peer could wait for.
            torch.accelerator.synchronize()
        self._channel.send(news)

    def refusal(self, peer: int, link_version: int) -> str:
        return self._peers.refusal(peer, link_version)

    def block_s(self, peer: int) -> float:
        return self._peers.block_s(peer)

    def pull(self, pull: Pull, peer: int) -> None:
        self._peers.pull(pull.request_id, peer, pull.source_blocks, pull.target_blocks)

    def stop_pull(self, request_id: int) -> None:
        self._peers.stop_pull(request_id)

    def state_of(self, sequence: Sequence) -> SequenceState:
        return self._runner.export(sequence.id, sequence.tokens[sequence.prompt_tokens :])

    def adopt(self, sequence_id: int, state: SequenceState) -> None:
        self._runner.adopt(sequence_id, state)

    def forget(self, sequence_id: int) -> None:
        self._runner.close(sequence_id)

    def scrub(self, blocks: list[int]) -> None:
        self._runner.pool.scrub(blocks)
