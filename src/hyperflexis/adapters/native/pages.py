"""Has the kernel make a buffer's pages before they are written: many at a time, where else each costs a fault."""

from __future__ import annotations

import ctypes

import numpy as np

_PIECE_BYTES = 16 << 20
_MADV_POPULATE_WRITE = 23


def populate(memory: memoryview) -> None:
    """Without the interpreter's lock. Where the kernel does not know how (before 5.14), pages come as they are used."""
    pages = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for start in range(0, pages.size, _PIECE_BYTES):
        piece = pages[start : start + _PIECE_BYTES]
        if libc.madvise(ctypes.c_void_p(piece.ctypes.data), ctypes.c_size_t(piece.size), _MADV_POPULATE_WRITE) != 0:
            return
