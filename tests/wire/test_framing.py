"""Messages survive any cutting of the stream; what is no message is said to be none."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.wire.framing import FRAME_BYTES_MAX, BlockingChannel, Framer, Frames, WireError
from hyperflexis.wire.messages import (
    Configure,
    FromInstance,
    FromPeer,
    Ready,
    Sampling,
    Shutdown,
    Stay,
    Submit,
    TakeIn,
    ToInstance,
    Work,
)

SUBMITS = st.builds(
    Submit,
    request=st.integers(0, 2**40),
    prompt=st.lists(st.integers(0, 2**32 - 1), max_size=20),
    emitted=st.lists(st.integers(0, 2**32 - 1), max_size=5),
    max_tokens=st.integers(1, 1000),
    sampling=st.builds(Sampling, temperature=st.floats(0, 2), seed=st.integers(0, 2**63 - 1)),
    ttft_s=st.one_of(st.none(), st.floats(0.001, 100)),
)
MESSAGES = st.one_of(
    st.builds(Work, submits=st.lists(SUBMITS, max_size=3), cancels=st.lists(st.integers(0, 2**40), max_size=3)),
    st.builds(Configure, rules=st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.integers(0, 99)))),
    st.just(Shutdown()),
    st.builds(FromPeer, peer=st.integers(0, 99), payload=st.binary(max_size=30)),
    st.builds(
        TakeIn,
        submit=SUBMITS,
        source=st.integers(0, 99),
        move=st.integers(0, 99),
        tokens=st.just(1),
        link_version=st.integers(0, 99),
    ),
    st.builds(Stay, request=st.integers(0, 99), move=st.one_of(st.none(), st.integers(0, 99))),
)


def framed(*messages: msgspec.Struct) -> list[bytes]:
    """What a stream begins with."""
    framer = Framer()
    return [framer.frame(message) for message in messages]


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(0, 2000), max_size=10))
def test_any_cutting_of_the_stream_gives_the_same_messages(messages: list[ToInstance], cuts: list[int]) -> None:
    stream = b"".join(framed(*messages))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    frames: Frames[ToInstance] = Frames(ToInstance)
    read: list[ToInstance] = []
    for start, end in itertools.pairwise(edges):
        read += frames.feed(stream[start:end])
    assert read == messages


def test_byte_by_byte() -> None:
    frames: Frames[ToInstance] = Frames(ToInstance)
    stream = b"".join(framed(Work(cancels=[1]), Shutdown()))
    read = [message for byte in stream for message in frames.feed(bytes([byte]))]
    assert read == [Work(cancels=[1]), Shutdown()]


def test_length_and_number_are_four_bytes_each_little_endian() -> None:
    for number, sent in enumerate(framed(Work(cancels=[5]), Shutdown(), Work())):
        assert int.from_bytes(sent[:4], "little") == len(sent) - 8
        assert int.from_bytes(sent[4:8], "little") == number


WORKS = [Work(cancels=[number]) for number in range(4)]


@pytest.mark.parametrize(
    ("order", "heard"),
    [
        pytest.param([0, 2, 3], 1, id="lost"),
        pytest.param([1, 2], 0, id="first lost"),
        pytest.param([0, 1, 1, 2], 2, id="repeated"),
        pytest.param([0, 2, 1, 3], 1, id="out of order"),
    ],
)
def test_message_out_of_its_turn_is_the_end_of_the_stream(order: list[int], heard: int) -> None:
    stream, frames, read = framed(*WORKS), Frames[ToInstance](ToInstance), list[ToInstance]()
    with pytest.raises(WireError, match=f"message {order[heard]} came where {heard} should have"):
        read.extend(message for number in order for message in frames.feed(stream[number]))
    assert read == WORKS[:heard]


def test_numbers_begin_anew() -> None:
    framer, frames = Framer(), Frames[ToInstance](ToInstance)
    framer._number = frames._number = 2**32 - 1
    assert [message for work in WORKS for message in frames.feed(framer.frame(work))] == WORKS


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",  # no msgpack at all
        b"\x93\x00\x90",  # cut short
        msgspec.msgpack.encode([99, 1]),  # a tag that nobody has
        msgspec.msgpack.encode([0, "submits", []]),  # of the wrong type
        msgspec.msgpack.encode([1, {b"\xff".decode("latin1"): None}]),
        b"\x92\x01\x81\xa1\xff\x01",  # text that is no UTF-8
        b"",
    ],
)
def test_garbage_is_no_message(body: bytes) -> None:
    frames: Frames[ToInstance] = Frames(ToInstance)
    with pytest.raises(WireError, match="cannot be read"):
        list(frames.feed(len(body).to_bytes(4, "little") + bytes(4) + body))


@given(st.binary(max_size=60))
def test_random_bytes_give_messages_or_an_error_and_nothing_else(data: bytes) -> None:
    frames: Frames[ToInstance] = Frames(ToInstance)
    try:
        for message in frames.feed(data):
            assert isinstance(message, msgspec.Struct)
    except WireError:
        pass


def test_huge_length_is_refused_before_its_bytes_come() -> None:
    frames: Frames[ToInstance] = Frames(ToInstance)
    assert list(frames.feed(FRAME_BYTES_MAX.to_bytes(8, "little"))) == []
    with pytest.raises(WireError, match="1073741825 bytes was announced"):
        list(Frames(ToInstance).feed((FRAME_BYTES_MAX + 1).to_bytes(8, "little")))


def test_reader_that_stops_in_the_middle_hears_no_message_twice() -> None:
    """A listener may raise on a message; what follows must not begin with that message again."""
    frames: Frames[ToInstance] = Frames(ToInstance)
    stream = framed(*WORKS)
    for message in frames.feed(stream[0] + stream[1]):
        assert message == WORKS[0]
        break
    assert list(frames.feed(stream[2])) == WORKS[1:3]


# Sockets.


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


READY = Ready(blocks=10, block_tokens=16, seqs_max=4, latency={"prefill_base_s": 0.1}, samples=[], device="cpu")


def test_channel_sends_and_receives(pair: tuple[socket.socket, socket.socket]) -> None:
    runtime: BlockingChannel[FromInstance] = BlockingChannel(pair[0], FromInstance)
    instance: BlockingChannel[ToInstance] = BlockingChannel(pair[1], ToInstance)
    runtime.send(Work(cancels=[1]))
    runtime.send(Shutdown())
    instance.send(READY)
    assert instance.receive(timeout_s=5) == [Work(cancels=[1]), Shutdown()]
    assert runtime.receive(timeout_s=5) == [READY]


def test_nothing_has_come(pair: tuple[socket.socket, socket.socket]) -> None:
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    assert channel.receive() == []
    assert channel.receive(timeout_s=0.01) == []


def test_waiting_for_ever_ends_with_the_first_message(pair: tuple[socket.socket, socket.socket]) -> None:
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    sender = threading.Timer(0.02, pair[1].sendall, framed(Shutdown()))
    sender.start()
    assert channel.receive(timeout_s=None) == [Shutdown()]
    sender.join()


@pytest.fixture
def alarm() -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def test_waiting_ends_with_a_descriptor_to_wake_on(pair: tuple[socket.socket, socket.socket], alarm: int) -> None:
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    channel.wake_on(alarm)
    waker = threading.Timer(0.02, os.eventfd_write, [alarm, 1])
    waker.start()
    assert channel.receive(timeout_s=None) == []
    waker.join()
    assert channel.receive(timeout_s=None) == [], "it was not looked at yet"
    pair[1].sendall(*framed(Shutdown()))
    assert channel.receive(timeout_s=None) == [Shutdown()], "what has come is not held back"
    os.eventfd_read(alarm)
    assert channel.receive(timeout_s=0.01) == []
    pair[1].close()
    os.eventfd_write(alarm, 1)
    with pytest.raises(EOFError, match="closed"):
        channel.receive(timeout_s=5)


def test_half_a_message_is_kept_for_its_other_half(pair: tuple[socket.socket, socket.socket]) -> None:
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    (stream,) = framed(Work(cancels=[1, 2]))
    pair[1].sendall(stream[:3])
    assert channel.receive(timeout_s=5) == []
    pair[1].sendall(stream[3:])
    assert channel.receive(timeout_s=5) == [Work(cancels=[1, 2])]


def test_message_larger_than_the_sockets_buffer(pair: tuple[socket.socket, socket.socket]) -> None:
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    sending: BlockingChannel[FromInstance] = BlockingChannel(pair[1], FromInstance)
    large = Work(submits=[Submit(1, list(range(70_000, 570_000)), [], 1, Sampling())])
    sender = threading.Thread(target=sending.send, args=[large])
    sender.start()
    read: list[ToInstance] = []
    while not read:
        read += channel.receive(timeout_s=None)
    sender.join()
    assert read == [large]


def test_closed_stream_is_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    pair[1].close()
    with pytest.raises(EOFError, match="closed"):
        channel.receive(timeout_s=5)


def test_last_words_are_heard_before_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """A peer that says why it leaves, and leaves, is understood."""
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    pair[1].sendall(*framed(Shutdown()))
    pair[1].close()
    assert channel.receive(timeout_s=5) == [Shutdown()]
    with pytest.raises(EOFError, match="closed"):
        channel.receive(timeout_s=5)


def test_garbage_from_a_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    channel: BlockingChannel[ToInstance] = BlockingChannel(pair[0], ToInstance)
    pair[1].sendall(b"\x01" + bytes(7) + b"\xc1")
    with pytest.raises(WireError):
        channel.receive(timeout_s=5)
