"""Everything that is bounded at the gateway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes and times; whoever exceeds them is refused or cut off."""

    connections_max: int = 10_000
    """Of each listener; to make room for one more, those go that have waited longest for a request."""
    head_s: float = 10.0
    """A request's head must have arrived so long after its first byte; of a new connection, after its beginning."""
    idle_s: float = 75.0
    """Between two requests, and for reading an answer that is not streamed. More than what proxies keep idle."""
    body_bytes_max: int = 16 * 2**20
    body_s: float = 60.0
    """A body must have arrived within this time."""
    prompts_max: int = 256
    choices_max: int = 256
    """Prompts times `n` of one request."""
    stream_backlog_bytes_max: int = 2**20
    """Events kept for a client that does not read; beyond it the request is cancelled and the connection cut."""
    stall_s: float = 120.0
    """So long a client may refuse to read what it has not read yet."""
    inline_chars_max: int = 6_000
    """Longer texts (about 2k tokens) are tokenised in a thread."""
    tokenizer_threads: int = 2
