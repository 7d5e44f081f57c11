"""Whatever bytes a peer sends, readers of messages give messages or say that these are none."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fuzz.mutation import mutated, pieces
from helpers.soak import seeds
from hyperflexis.adapters.vllm import completion
from hyperflexis.transfer import protocol
from hyperflexis.transfer.descriptor import read_descriptor
from hyperflexis.transfer.errors import BadDescriptor
from hyperflexis.transfer.weights.offer import offer_at, read_offer
from hyperflexis.wire.framing import Framer, Frames, WireError
from hyperflexis.wire.messages import (
    Configure,
    FromInstance,
    FromPeer,
    Sampling,
    Shutdown,
    Sleep,
    Submit,
    TakeIn,
    ToInstance,
    Work,
)

pytestmark = pytest.mark.soak

SUBMIT = Submit(
    request=7, prompt=[1, 70_000], emitted=[2], max_tokens=20, sampling=Sampling(logit_bias={5: 1.5}, stop_ids=(2,))
)
TO_INSTANCE = [
    Framer().frame(Work(submits=[SUBMIT], cancels=[1, 2**40])),
    Framer().frame(Configure(rules={"a": 1})),
    Framer().frame(FromPeer(peer=3, payload=b"x" * 300)),
    Framer().frame(TakeIn(submit=SUBMIT, source=1, move=2, tokens=64, link_version=1)),
    Framer().frame(Sleep(level=1)),
    Framer().frame(Shutdown()),
]
CLAIM = protocol.Claim(b"t" * 16, 1, 2, "peer")
REQUESTS = [
    protocol.frame(each)[protocol.LENGTH.size :]
    for each in (
        protocol.Fetch(CLAIM, [0, 2**40], [4096, 1], True),
        protocol.Digest(CLAIM, [0], [1]),
        protocol.Open(CLAIM, "shm", b"details"),
        protocol.Ask(b"payload"),
    )
]

ANSWERS = [
    b'{"id": "c", "choices": [{"index": 0, "text": "a", "token_ids": [5], "finish_reason": null}], "usage": null}',
    b'{"error": {"message": "full", "type": "BadRequest", "code": 400}}',
]


def read_frames(kind: Any) -> Callable[[bytes, random.Random], None]:
    def read(data: bytes, rng: random.Random) -> None:
        frames: Frames[Any] = Frames(kind)
        for piece in pieces(data, rng):
            for message in frames.feed(piece):
                assert isinstance(message, msgspec.Struct)

    return read


READERS: dict[str, tuple[list[bytes], Callable[[bytes, random.Random], object], type[Exception]]] = {
    "to an instance": (TO_INSTANCE, read_frames(ToInstance), WireError),
    "from an instance": (TO_INSTANCE, read_frames(FromInstance), WireError),
    "to a source of bytes": (REQUESTS, lambda data, rng: protocol.read_request(data), protocol.ProtocolError),
    "a descriptor": (REQUESTS, lambda data, rng: read_descriptor(data), BadDescriptor),
    "an answer of vLLM": (ANSWERS, lambda data, rng: completion.whole(data), ValueError),
    "a refusal of vLLM": (ANSWERS, lambda data, rng: completion.fault_of(data), ValueError),
    "an offer": ([offer_at("10.0.0.1", 9000, b"s" * 32).to_bytes()], lambda data, rng: read_offer(data), BadDescriptor),
}


def test_readers_of_messages() -> None:
    """One test for all, so that an hour of soaking has four parts."""
    read = dict.fromkeys(READERS, 0)
    for seed in seeds(4000):
        for name, (recorded, reader, error) in READERS.items():
            rng = random.Random(seed)
            data = mutated(recorded, rng)
            try:
                reader(data, rng)
            except error:
                continue
            except Exception:
                print(f"{name}, seed {seed}: {data!r}")
                raise
            read[name] += 1
    # Else it would only have tried what is refused at once.
    assert all(count for name, count in read.items() if name not in ("from an instance", "a descriptor"))
