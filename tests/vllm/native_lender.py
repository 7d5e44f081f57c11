"""Lends the weights of a model as an instance of ours does: python native_lender.py DIRECTORY HOST:PORT TOKEN_FILE.

Says so when it does, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hyperflexis.adapters.native.messages import WeightsSpec
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec


async def main(directory: str, address: str, secret: bytes) -> None:
    host, _, port = address.rpartition(":")
    spec = WeightsSpec(lends=True, host=host, port=int(port), secret=secret)
    launcher = await LocalLauncher.start(
        LocalSpec(directory, device="cpu", dtype="float32", kv_bytes=1 << 24, weights=spec)
    )
    await launcher.offer()
    print("lending", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await launcher.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes().strip()))
