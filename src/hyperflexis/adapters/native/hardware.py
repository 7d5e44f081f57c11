"""What an engine computes on, in words: equal words mean that times measured on one hold for the other."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def hardware_of(device: str) -> str:
    """Name the processor and what drives it. Asks the accelerator if the device is one."""
    kind = torch.device(device)
    name = torch.cuda.get_device_name(kind) if kind.type == "cuda" else f"{kind.type} {_processor()}"
    return f"{name}, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
