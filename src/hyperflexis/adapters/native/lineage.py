"""A process that does not outlive its parent, even if that is killed with SIGKILL and can tell nobody.

Linux only: the kernel's parent-death signal. Elsewhere children notice that their socket has closed, which takes them
until the end of the step they are in.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Be killed as soon as the parent dies; leave at once if it has died already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


def exit_in_words(code: int) -> str:
    """What `os.waitstatus_to_exitcode` gave, for people."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
