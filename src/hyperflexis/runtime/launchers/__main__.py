"""`python -m hyperflexis.runtime.launchers DESCRIPTOR PARENT_PID`: speak to Ray. Started by `cluster`."""

from __future__ import annotations

import logging
import socket
import sys

from hyperflexis.adapters.native.lineage import die_with_parent, leave_signals_to_parent


def main() -> None:
    """Serve the socket until the parent closes it."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    leave_signals_to_parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # Only now, so that a parent's death during this long import is noticed.
    from hyperflexis.runtime.launchers.ray import serve

    serve(sock)


if __name__ == "__main__":
    main()
