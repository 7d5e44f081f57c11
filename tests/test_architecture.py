"""The arrows: which part may import which, checked on every import in src/hyperflexis.

Imports inside functions and under TYPE_CHECKING count: a hidden back-edge is still an edge. The package's `__init__`
and `__main__` are wiring, like `cli`, and exempt. Each rule is shown to bite on a toy tree that breaks it.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "hyperflexis"
SRC = Path(__file__).parent.parent / "src" / PACKAGE

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "policies": {"core"},
    "wire": set(),
    "journal": {"core", "wire"},
    "telemetry": {"core"},
    "sim": {"core", "policies", "wire"},
    "engine": {"wire"},
    "transfer": set(),
    "adapters": {"core", "wire"},
    "adapters.native": {"core", "wire", "engine", "transfer", "adapters"},
    "adapters.vllm": {"core", "wire", "adapters"},
    "adapters.modelled": {"core", "wire", "adapters"},
    "vllm_plugin": {"core", "wire", "engine", "transfer", "adapters.native.arena_memory"},
    "runtime": {"core", "policies", "wire", "adapters"},
    "gateway": {"core.slo", "wire", "telemetry.labels"},
    "view": {"core", "journal"},
    "bench": {"sim.job"},
    "dashboard": {"wire"},
}
"""Part → the parts or modules of ours that it may import, itself aside. A longer name wins over a shorter one; parts of
one folder that have rows of their own never import one another, what else is in that folder is for all of them."""

WIRING = {"", "__main__", "cli"}
"""Parts that put the others together. Nobody imports them, but for `from hyperflexis import __version__`."""

ONLY_IN: dict[str, set[str]] = {
    "torch": {"engine", "transfer.cuda_ipc", "adapters.native", "vllm_plugin.weights", "vllm_plugin.loader"},
    "safetensors": {"engine", "adapters.native"},
    "nixl": {"transfer.nixl"},
    "vllm": {"adapters.vllm", "vllm_plugin.loader", "vllm_plugin.plugin", "vllm_plugin.scheduler"},
    "ray": {"runtime.launchers.ray"},
    "aiohttp": {"gateway", "bench", "adapters.vllm", "cli"},
    "httptools": {"adapters.vllm"},
    "opentelemetry": {"telemetry.tracing"},
    "starlette": set(),
    "transformers": set(),
    "pydantic": {"cli"},
    "typer": {"cli"},
    "rich": {"cli"},
}
"""Third-party package → the only parts or modules that may import it."""

PURE = {"core", "policies"}
PURE_THIRD_PARTY = {"numpy"}
IMPURE_STDLIB = {
    *("time", "datetime", "sched", "calendar", "zoneinfo"),
    *("random", "secrets", "uuid"),
    *("asyncio", "threading", "multiprocessing", "concurrent", "queue", "signal", "subprocess", "contextvars"),
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "socket", "selectors", "select", "ssl", "http", "urllib"),
    *("logging", "warnings", "importlib", "platform"),
}
"""What would let a decision depend on more than its arguments: clocks, chance, other threads, the machine."""


class Import(NamedTuple):
    """One name imported by one line."""

    file: Path
    line: int
    importer: str
    """Dotted module, without the package's own name."""
    target: str
    """The same for one of ours, else the third-party or standard module in full."""
    is_ours: bool


def imports(root: Path) -> Iterator[Import]:
    """Every import below a package's folder, wherever it stands."""
    modules = {_module(root, file) for file in root.rglob("*.py")}
    for file in sorted(root.rglob("*.py")):
        importer = _module(root, file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for full_name in _targets(node, importer, file.name == "__init__.py", modules):
                head, _, rest = full_name.partition(".")
                is_ours = head == PACKAGE
                yield Import(file, node.lineno, importer, rest if is_ours else full_name, is_ours)


def broken_arrows(root: Path) -> list[str]:
    """One line for each import that must not be."""
    found = (f"{each.file}:{each.line}: {reason}" for each in imports(root) if (reason := _reason(each)))
    return list(dict.fromkeys(found))


def _module(root: Path, file: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def _targets(node: ast.AST, importer: str, is_package: bool, modules: set[str]) -> Iterator[str]:
    """The full names that one node imports; `from a import b` is a.b where that is a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _base(node, importer, is_package)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            is_module = inner.removeprefix(f"{PACKAGE}.") in modules
            yield inner if is_module or f"{base}.{alias.name}" == "numpy.random" else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def _base(node: ast.ImportFrom, importer: str, is_package: bool) -> str:
    """The absolute name of what stands after `from`."""
    if node.level == 0:
        return node.module or ""
    here = [PACKAGE, *importer.split(".")] if importer else [PACKAGE]
    above = here[: len(here) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def _reason(each: Import) -> str | None:
    part = each.importer.split(".")[0]
    return _ours(each, part) if each.is_ours else _theirs(each, part)


def _ours(each: Import, part: str) -> str | None:
    if part in WIRING:
        return None
    arrow = f"{each.importer} → {each.target or PACKAGE}"
    if not each.target:
        is_bare = "import __version__" not in each.file.read_text(encoding="utf-8").splitlines()[each.line - 1]
        return f"{arrow}: import the module that is meant" if is_bare or part in PURE else None
    own = _longest(each.importer, MAY_IMPORT)
    if own is None:
        return f"{arrow}: '{part}' has no row in MAY_IMPORT"
    owner = _longest(each.target, MAY_IMPORT)
    is_sibling = owner != own and owner is not None and "." in owner and owner.split(".")[0] == part
    if owner == own or (not is_sibling and any(_is_below(each.target, name) for name in MAY_IMPORT[own])):
        return None
    allowed = MAY_IMPORT[own]
    return f"{arrow}: '{own}' may import {', '.join(sorted(allowed)) or 'nothing of ours'}"


def _theirs(each: Import, part: str) -> str | None:
    package = each.target.split(".")[0]
    arrow = f"{each.importer} → {each.target}"
    if package in ONLY_IN and not any(_is_below(each.importer, name) for name in ONLY_IN[package]):
        return f"{arrow}: only {', '.join(sorted(ONLY_IN[package])) or 'nothing'} may import {package}"
    if part not in PURE:
        return None
    if package in IMPURE_STDLIB or each.target == "numpy.random":
        return f"{arrow}: '{part}' is pure; time and chance are arguments, the rest is the driver's"
    if package not in sys.stdlib_module_names | PURE_THIRD_PARTY:
        return f"{arrow}: '{part}' takes the standard library and {', '.join(PURE_THIRD_PARTY)} only"
    return None


def _is_below(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _longest(module: str, names: dict[str, set[str]]) -> str | None:
    return max((name for name in names if _is_below(module, name)), key=len, default=None)


# The guard at work.


def test_no_arrow_is_broken() -> None:
    broken = broken_arrows(SRC)
    assert not broken, "\n" + "\n".join(broken)


def test_every_part_has_a_row() -> None:
    parts = {each.importer.split(".")[0] for each in imports(SRC)}
    assert parts - WIRING <= set(MAY_IMPORT)


PROBES = [
    "",
    ".core",
    ".policies",
    ".wire.messages",
    ".sim",
    ".gateway",
    ".transfer.receiver",
    ".adapters.vllm.standin.server",
    ".vllm_plugin.plugin",
    ".vllm_plugin.chooser",
    ".cli.main",
    ".cli.serve",
]
PROBES += [
    f".runtime.launchers.{name}"
    for name in ("local", "cluster", "steward", "ray_words", "__main__", "attached", "vllm", "tether")
]


@pytest.mark.parametrize("name", [PACKAGE + probe for probe in PROBES])
def test_import_loads_no_engine(name: str) -> None:
    """Processes that compute nothing must not pay for, or depend on, what computes."""
    if not _exists(name):
        pytest.skip(f"{name} does not exist")
    heavy = ("torch", "transformers", "ray", "vllm", "nixl", "opentelemetry")
    code = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def _exists(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False
    # A folder without __init__ is a namespace, not yet a part.
    return spec is not None and spec.origin is not None


# The guard itself: it finds each planted violation, and nothing in a clean tree.

PLANTED = {
    "core imports ours": ("core/a.py", "from hyperflexis.wire import messages"),
    "core imports the package": ("core/a.py", "import hyperflexis"),
    "core reads the clock": ("core/a.py", "import time"),
    "core logs": ("core/a.py", "from logging import getLogger"),
    "core waits": ("core/a.py", "import asyncio.events"),
    "core draws": ("core/a.py", "from numpy import random"),
    "core draws, spelled otherwise": ("core/a.py", "import numpy.random"),
    "core takes a third party": ("core/a.py", "import msgspec"),
    "policies import more than core": ("policies/a.py", "import hyperflexis.wire.messages"),
    "wire imports core": ("wire/a.py", "from hyperflexis.core import slo"),
    "engine imports core": ("engine/a.py", "from hyperflexis.core.slo import Slo"),
    "engine imports transfer": ("engine/a.py", "from hyperflexis import transfer"),
    "transfer imports engine": ("transfer/a.py", "from ..engine import model"),
    "modelled adapter imports engine": ("adapters/modelled.py", "from hyperflexis.engine import model"),
    "contract imports engine": ("adapters/contract.py", "from hyperflexis.engine import model"),
    "adapters import one another": ("adapters/modelled.py", "from .native import process"),
    "contract imports an adapter": ("adapters/contract.py", "from hyperflexis.adapters.native import process"),
    "adapters' base imports runtime": ("adapters/contract.py", "from hyperflexis.runtime import driver"),
    "adapters import runtime": ("adapters/native/process.py", "from hyperflexis.runtime import driver"),
    "adapters import gateway": ("adapters/native/process.py", "from hyperflexis.gateway import backend"),
    "adapters import policies": ("adapters/native/process.py", "from hyperflexis.policies import hyperflexis"),
    "runtime imports gateway": ("runtime/driver.py", "from hyperflexis.gateway.backend import Backend"),
    "runtime imports sim": ("runtime/driver.py", "from hyperflexis import sim"),
    "journal imports policies": ("journal/a.py", "from hyperflexis.policies import create"),
    "journal imports runtime": ("journal/a.py", "from hyperflexis.runtime import driver"),
    "runtime imports journal": ("runtime/driver.py", "from hyperflexis.journal import recorder"),
    "sim imports runtime": ("sim/a.py", "from hyperflexis.runtime import driver"),
    "sim imports adapters": ("sim/a.py", "from hyperflexis.adapters import contract"),
    "gateway imports a decision": ("gateway/a.py", "from hyperflexis.core.control import ControlPlane"),
    "gateway imports runtime": ("gateway/a.py", "from hyperflexis.runtime import driver"),
    "gateway imports what is seen": ("gateway/a.py", "from hyperflexis.view.live import LiveView"),
    "view imports gateway": ("view/a.py", "from hyperflexis.gateway import backend"),
    "view serves": ("view/a.py", "import aiohttp"),
    "anything imports cli": ("runtime/driver.py", "from hyperflexis.cli import deployment"),
    "torch in the gateway": ("gateway/a.py", "import torch.nn"),
    "torch in a medium that needs none": ("transfer/tcp.py", "import torch"),
    "transfer imports core": ("transfer/a.py", "from hyperflexis.core import slo"),
    "transfer imports gateway": ("transfer/a.py", "from hyperflexis.gateway import backend"),
    "nixl in two files": ("transfer/shm.py", "import nixl"),
    "torch in the runtime": ("runtime/driver.py", "from torch import Tensor"),
    "ray in two files": ("runtime/driver.py", "import ray"),
    "ray in another launcher": ("runtime/launchers/cluster.py", "def f():\n    from ray import util"),
    "vllm in two files": ("runtime/driver.py", "import vllm"),
    "pydantic outside cli": ("gateway/a.py", "import pydantic"),
    "inside a function": ("engine/a.py", "def f():\n    from hyperflexis.core import slo"),
    "under TYPE_CHECKING": ("engine/a.py", "if TYPE_CHECKING:\n    from hyperflexis.core import slo"),
    "by name": ("engine/a.py", "slo = importlib.import_module('hyperflexis.core.slo')"),
    "relative": ("engine/a.py", "from ..core.slo import Slo"),
    "relative in a package's own file": ("engine/__init__.py", "from ..core import slo"),
    "a part without a row": ("novelty/a.py", "from hyperflexis.core import slo"),
}

CLEAN = {
    "__init__.py": "from hyperflexis.cli import main",
    "core/slo.py": "import math, numpy\nfrom dataclasses import dataclass",
    "core/control.py": "from . import slo\nfrom .slo import Slo",
    "policies/hyperflexis.py": "from hyperflexis.core import control",
    "wire/messages.py": "import msgspec",
    "engine/model.py": "import time, torch\nfrom hyperflexis.wire.messages import Sampling",
    "transfer/cuda_ipc.py": "import torch",
    "transfer/nixl.py": "import nixl",
    "adapters/contract.py": "from hyperflexis.wire import messages",
    "adapters/native/__init__.py": "from .process import main",
    "adapters/native/process.py": "import torch\nfrom hyperflexis.engine import model\nfrom ..contract import Adapter",
    "adapters/stepping.py": "from hyperflexis.adapters.contract import Adapter",
    "adapters/modelled.py": "from hyperflexis.adapters.contract import Adapter\nfrom . import stepping",
    "runtime/driver.py": "import asyncio\nfrom hyperflexis.adapters import native\nfrom hyperflexis.core import slo",
    "runtime/launchers/ray.py": "import ray",
    "sim/kernel.py": "from hyperflexis.core import control",
    "gateway/backend.py": "import aiohttp\nfrom hyperflexis import __version__\nfrom hyperflexis.core.slo import Slo",
    "vllm_plugin/scheduler.py": "from vllm.v1 import request\nfrom hyperflexis.core import slo\nfrom . import chooser",
    "cli/main.py": "import typer\nfrom hyperflexis import __version__, core, gateway, runtime",
}


def _plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
        (file.parent / "__init__.py").touch()
    return root


def test_clean_tree_passes(tmp_path: Path) -> None:
    assert broken_arrows(_plant(tmp_path, CLEAN)) == []


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_violation_is_found(tmp_path: Path, planted: str) -> None:
    name, text = PLANTED[planted]
    (found,) = broken_arrows(_plant(tmp_path, CLEAN | {name: text}))
    assert found.startswith(f"{tmp_path / name}:{len(text.splitlines())}: ")
    assert " → " in found
