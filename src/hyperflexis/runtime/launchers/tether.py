"""A program that ends with its parent: `python -m hyperflexis.runtime.launchers.tether PARENT_PID PROGRAM WORD...`

Becomes the program after asking the kernel to send it SIGTERM when the parent dies, whatever kills that. Done here, and
not between fork and exec of the parent, because that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Become the program; returns the exit status of a program that cannot be run."""
    parent_pid, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent_pid):
        return 1
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(main())
