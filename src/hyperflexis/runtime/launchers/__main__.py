"""`python -m hyperflexis.runtime.launchers DESCRIPTOR PARENT_PID`: speak to Ray. Started by `cluster`."""

from __future__ import annotations

import logging
import os
import socket
import sys

from hyperflexis.adapters.native.lineage import die_with_parent, leave_signals_to_parent


def main() -> None:
    """Serve the socket until the parent closes it."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    leave_signals_to_parent()
    _keep_stderr()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # Only now, so that a parent's death during this long import is noticed.
    from hyperflexis.runtime.launchers.ray import serve

    serve(sock)


def _keep_stderr() -> None:
    """Let only Python write there: what Ray's own threads have to say is in its logs, too."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


if __name__ == "__main__":
    main()
