"""Device memory between processes, where there is a device; without one, that nothing breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from transfer_world import filled

from hyperflexis.transfer import cuda_ipc
from hyperflexis.transfer.descriptor import read_descriptor
from hyperflexis.transfer.errors import Recycled, TransferError
from hyperflexis.transfer.receiver import Receiver
from hyperflexis.transfer.source import Source


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


needs_gpu = pytest.mark.skipif(not _has_cuda(), reason="no CUDA device")


def test_package_loads_neither_torch_nor_nixl() -> None:
    code = (
        "import sys, hyperflexis.transfer.source, hyperflexis.transfer.receiver;"
        "print([m for m in ('torch', 'nixl', 'nixl_cu12', 'nixl_cu13') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(_has_cuda(), reason="for hosts without a device")
def test_device_that_is_not_there_is_an_error_like_others() -> None:
    """A descriptor of device memory, carried to a process that has none."""
    with Source() as source, Receiver() as receiver:
        descriptor = source.describe(source.expose(filled(64), 60.0))
        device = msgspec.structs.replace(descriptor, media=("cuda_ipc",), device="cuda:0")
        with pytest.raises(TransferError):
            receiver.pull(device, [(0, 0, 64)], bytearray(64)).result(20.0)


def lend() -> None:
    """The other process: 1 MiB on the device, whose byte i is i mod 251; a line on stdin recycles it."""
    import torch

    tensor = (torch.arange(1 << 20, device="cuda") % 251).to(torch.uint8)
    torch.cuda.synchronize()
    with Source() as source:
        region = source.expose(tensor, 3600.0, "device")
        print(source.describe(region).to_bytes().hex(), flush=True)
        sys.stdin.readline()
        source.recycle(region, 3600.0)
        print("recycled", flush=True)
        sys.stdin.read()


@pytest.mark.gpu
@needs_gpu
def test_device_memory_crosses_processes() -> None:
    import torch

    command = [sys.executable, str(Path(__file__)), "lend"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        Receiver() as receiver,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        descriptor = read_descriptor(bytes.fromhex(process.stdout.readline()))
        assert descriptor.media == ("cuda_ipc",)
        ranges = [(251, 0, 1000), (502, 5000, 2000)]
        expected = [index % 251 for index in range(1000)]
        on_device = torch.zeros(8000, dtype=torch.uint8, device="cuda")
        on_host = bytearray(8000)
        for target in (on_device, on_host):
            pulled = receiver.pull(descriptor, ranges, target, has_checksums=True).result(60.0)
            assert pulled.medium == "cuda_ipc"
        assert on_device[:1000].tolist() == expected
        assert on_device.cpu().numpy().tobytes() == on_host
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        with pytest.raises(Recycled):
            receiver.pull(descriptor, ranges, on_device).result(60.0)
        process.stdin.close()


@pytest.mark.gpu
@needs_gpu
def test_handle_crosses_as_plain_numbers_and_bytes() -> None:
    import torch

    details = cuda_ipc.grant(torch.zeros(1000, device="cuda"), -1).details
    assert msgspec.msgpack.decode(details, type=cuda_ipc.Handle).size_bytes == 4000


if __name__ == "__main__":
    lend()
