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


def leave_signals_to_parent() -> None:
    """Ignore Ctrl-C and requests to end, which terminals and service managers send to all processes of a service.

    The parent drains first, and then ends its children itself; its own death ends them too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def exit_in_words(code: int) -> str:
    """What `os.waitstatus_to_exitcode` gave, for people."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # Real-time signals have numbers only.
        return f"killed by signal {-code}"
