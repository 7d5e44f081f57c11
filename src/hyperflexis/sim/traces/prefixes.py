"""Hash ids of a trace, each for many tokens, as content hashes of an instance's smaller KV blocks.

An id stands for a prompt's tokens up to and with its own, so equal ids give equal hashes wherever they occur in one
scope, and the very same bytes objects while they are remembered. The hashes are made up from scope, id and index.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain

ID_DIGEST_BYTES = 12
INDEX_BYTES = 4
DIGESTS_MAX = 1 << 19
"""Digests remembered at most, about 30 MB; older ones are made again, equal but not identical."""


class Prefixes:
    """Expands ids of `hash_tokens` tokens into 16-byte hashes of blocks of `block_tokens` tokens.

    Raises:
        ValueError: the block does not divide what an id stands for.
    """

    def __init__(self, scope: str, hash_tokens: int, block_tokens: int) -> None:
        if block_tokens <= 0 or hash_tokens % block_tokens:
            raise ValueError(f"block_tokens = {block_tokens} does not divide the trace's blocks of {hash_tokens}")
        per_id = hash_tokens // block_tokens
        self._block_tokens = block_tokens
        self._per_id = per_id

        suffixes = [index.to_bytes(INDEX_BYTES, "little") for index in range(per_id)]

        @lru_cache(maxsize=max(1, DIGESTS_MAX // per_id))
        def digests(hash_id: int) -> tuple[bytes, ...]:
            head = blake2b(f"{scope}/{hash_id}".encode(), digest_size=ID_DIGEST_BYTES).digest()
            return tuple([head + suffix for suffix in suffixes])

        self._digests = digests

    def of(self, hash_ids: Sequence[int], prompt_tokens: int) -> tuple[bytes, ...]:
        """The hashes of the prompt's whole blocks, as far as the ids reach."""
        blocks = prompt_tokens // self._block_tokens
        ids = hash_ids[: -(-blocks // self._per_id)]
        return tuple(chain.from_iterable(map(self._digests, ids)))[:blocks]
