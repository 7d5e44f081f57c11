"""Two processes that stand in for others, so that a benchmark sees the gateway alone.

    instance   speaks the wire like an engine, computes nothing: first token at once, then one every STEP_S
    server     a bare asyncio protocol that answers any POST with the same events at the same pace: the floor

Both emit on one grid, so that a step's tokens travel together, as an engine's do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from dataclasses import dataclass

import uvloop

from hyperflexis.wire.framing import BlockingChannel
from hyperflexis.wire.messages import FinishReason, Ready, Shutdown, StepReport, ToInstance, Work

STEP_S = 0.010
EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,'
    b'"model":"demo","choices":[{"index":0,"text":" name","logprobs":null,"finish_reason":null}]}\n\n'
)


@dataclass
class Active:
    left: int
    due_s: float
    has_started: bool = False


class StandInInstance:
    """The instance's side of the socket."""

    def __init__(self, sock: socket.socket, tokens: list[int]) -> None:
        self.channel: BlockingChannel[ToInstance] = BlockingChannel(sock, ToInstance)
        self.tokens = tokens
        self.active: dict[int, Active] = {}

    def serve(self) -> None:
        model = dict.fromkeys(
            ("prefill_base_s", "decode_base_s", "prefill_token_s", "prefill_pair_s", "decode_seq_s", "context_token_s"),
            1e-6,
        )
        self.channel.send(
            Ready(blocks=100_000, block_tokens=16, seqs_max=1024, latency=model, samples=[], device="none")
        )
        while True:
            due_s = min((one.due_s for one in self.active.values()), default=None)
            timeout_s = None if due_s is None else max(0.0, due_s - time.monotonic())
            for message in self.channel.receive(timeout_s):
                if isinstance(message, Shutdown):
                    return
                if isinstance(message, Work):
                    self._take(message)
            self._step(time.monotonic())

    def _take(self, work: Work) -> None:
        for submit in work.submits:
            self.active[submit.request] = Active(submit.max_tokens, 0.0)
        for request_id in work.cancels:
            self.active.pop(request_id, None)

    def _step(self, now: float) -> None:
        due = {request_id: one for request_id, one in self.active.items() if one.due_s <= now}
        if not due:
            return
        finished, started = [], []
        for request_id, one in due.items():
            one.left -= 1
            if not one.has_started:
                one.has_started = True
                started.append(request_id)
            one.due_s = (now // STEP_S + 1) * STEP_S
            if one.left == 0:
                finished.append(request_id)
                del self.active[request_id]
        report = StepReport(
            duration_s=STEP_S,
            prefill_tokens=0,
            prefill_pairs=0,
            decode_seqs=len(due),
            context_tokens=len(due),
            requests=list(due),
            tokens=[self.tokens[(request_id + one.left) % len(self.tokens)] for request_id, one in due.items()],
            finished=finished,
            reasons=[int(FinishReason.LENGTH)] * len(finished),
            started=started,
            began=started,
            steps=1,
            cached_tokens=[0] * len(started),
            preempted=[],
            waiting_seqs=0,
            waiting_tokens=0,
            running_seqs=len(self.active),
            blocks_free=100_000,
        )
        self.channel.send(report)


class PlainServer(asyncio.Protocol):
    """Parses a length, waits, writes. No router, no JSON, no text."""

    active: dict[PlainServer, Active]

    def __init__(self, active: dict[PlainServer, Active]) -> None:
        self.active = active
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.active.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self.buffer = b""
        max_tokens = int(body.partition(b'"max_tokens":')[2].partition(b",")[0].strip(b" }"))
        if b'"stream": true' in body:
            self.first(max_tokens)
        else:
            self.whole()

    def whole(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(EVENT) + EVENT
        )

    def first(self, max_tokens: int) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.transport.write(head + chunk(EVENT))
        if max_tokens > 1:
            self.active[self] = Active(max_tokens - 1, 0.0)
        else:
            self.end()

    def step(self) -> None:
        self.transport.write(chunk(EVENT))
        one = self.active[self]
        one.left -= 1
        if one.left == 0:
            del self.active[self]
            self.end()

    def end(self) -> None:
        self.transport.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve_plain() -> None:
    active: dict[PlainServer, Active] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PlainServer(active), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        await asyncio.sleep(STEP_S - time.monotonic() % STEP_S)
        for connection in list(active):
            connection.step()


def main() -> None:
    if sys.argv[1] == "instance":
        tokens = [int(token) for token in sys.argv[3].split(",")]
        with contextlib.suppress(EOFError):  # The gateway's process was killed.
            StandInInstance(socket.socket(fileno=int(sys.argv[2])), tokens).serve()
    else:
        uvloop.run(serve_plain())


if __name__ == "__main__":
    main()
