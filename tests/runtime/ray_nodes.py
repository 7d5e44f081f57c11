"""A Ray cluster as a process of its own: what it is told comes in lines, and what it tells goes out in lines of JSON.

    add             a node with one CPU     → its raylet's process id
    add apart       the same, in a time namespace of its own: nothing there can share memory with the other nodes
    end of input    the end of all nodes

Apart from the tests because Ray ends processes that look at a cluster whose head is gone for long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

NODE = {"object_store_memory": 80 << 20}
"""The least that Ray takes."""


def tell(what: Any) -> None:
    sys.__stdout__.write(json.dumps(what) + "\n")
    sys.__stdout__.flush()


def add_apart(address: str) -> subprocess.Popen[bytes]:
    ray = Path(sys.executable).with_name("ray")
    words = ["start", f"--address={address}", "--num-cpus=1", f"--object-store-memory={NODE['object_store_memory']}"]
    return subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--time", sys.executable, str(ray), *words, "--block"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    apart = []
    tell(cluster.address)
    for line in sys.stdin:
        if line.split() == ["add"]:
            node = cluster.add_node(num_cpus=1, wait=False, **NODE)
            tell(node.all_processes["raylet"][0].process.pid)
        else:
            apart.append(add_apart(cluster.address))
            tell(apart[-1].pid)
    for each in apart:
        each.terminate()
    cluster.shutdown()
    for each in apart:
        each.wait()


if __name__ == "__main__":
    main()
