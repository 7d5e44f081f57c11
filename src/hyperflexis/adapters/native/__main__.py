"""`python -m hyperflexis.adapters.native DESCRIPTOR PARENT_PID [LISTENER TIMEOUT_S]`: become a zygote.

Started by `host`, not by people. With a descriptor to listen on it outlives its parent.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time

from hyperflexis.adapters.native.lineage import die_with_parent, leave_signals_to_parent
from hyperflexis.adapters.native.messages import Warm

ENVIRONMENT = {
    # Asking the driver's management library whether there is a GPU does not initialise CUDA in this process.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # Kernels for products, one for each number of rows, in two caches of 1,024 each by default, which a model whose
    # weights are not packed fills. For one whose weights are, five shapes of a layer in the sizes up to 1,024 rows are
    # 365 kernels (`engine.linear.padded_rows`).
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512",
    "LRU_CACHE_CAPACITY": "512",
}
"""What libraries look at when they are imported, where nobody has set it otherwise."""


def main() -> None:
    """Serve the control socket until the parent closes it."""
    started_s = time.monotonic()
    control_fd, parent_pid, *kept = sys.argv[1:]
    control = socket.socket(fileno=int(control_fd))
    if not kept:
        die_with_parent(int(parent_pid))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    leave_signals_to_parent()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Only now, so that a parent's death during this long import is noticed.
    from hyperflexis.adapters.native.zygote import Zygote

    listener, timeout_s = (socket.socket(fileno=int(kept[0])), float(kept[1])) if kept else (None, 0.0)
    zygote = Zygote(control, listener, timeout_s)
    zygote.say(Warm(time.monotonic() - started_s))
    zygote.serve()


if __name__ == "__main__":
    main()
