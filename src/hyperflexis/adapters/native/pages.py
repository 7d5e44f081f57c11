"""A buffer's pages, had from the kernel before they are written (else each costs a fault), and given back to it."""

from __future__ import annotations

import ctypes
import os

import numpy as np

from hyperflexis.transfer.memory import SharedMemory

_PIECE_BYTES = 16 << 20
_MADV_REMOVE, _MADV_POPULATE_WRITE = 9, 23


def populate(memory: memoryview) -> None:
    """Without the interpreter's lock. Where the kernel does not know how (before 5.14), pages come as they are used."""
    pages = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for start in range(0, pages.size, _PIECE_BYTES):
        piece = pages[start : start + _PIECE_BYTES]
        if libc.madvise(ctypes.c_void_p(piece.ctypes.data), ctypes.c_size_t(piece.size), _MADV_POPULATE_WRITE) != 0:
            return


def give_back(memory: SharedMemory) -> int:
    """Empty it: it reads as zeros from now on, wherever it is mapped. Return how many bytes of pages there were."""
    size_bytes = os.fstat(memory.fd).st_blocks * 512
    view = np.frombuffer(memory.view, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.madvise(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size), _MADV_REMOVE) != 0:
        raise OSError(ctypes.get_errno(), "memory cannot be given back")
    return size_bytes - os.fstat(memory.fd).st_blocks * 512


def trim_heap() -> None:
    """What was freed inside this process goes back to the kernel too, where its library keeps it (glibc)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
