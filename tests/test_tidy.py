"""Tidiness of src/hyperflexis: what breaks the ideas of the project though it runs. Each message names the replacement.

A broad `except` is for supervisors, who say why in a comment behind it or on the next line, and for cleaning up before
a bare `raise`. Each rule is shown to bite on a planted violation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "hyperflexis"

TIMELESS = {"core", "policies", "sim"}
"""Parts in which time is an argument."""

CLOCKS = {
    *(f"time.{name}{unit}" for name in ("time", "monotonic", "perf_counter", "process_time") for unit in ("", "_ns")),
    *("time.sleep", "asyncio.sleep", "datetime.now", "datetime.utcnow", "datetime.today"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today", "date.today"),
}
SEEDED = {"Random", "SystemRandom", "default_rng", "Generator", "SeedSequence", "PCG64", "BitGenerator"}
"""What of `random` and `numpy.random` is no global state."""
DANGEROUS = {
    **dict.fromkeys(("pickle.load", "pickle.loads", "marshal.loads", "torch.load"), "msgspec or safetensors"),
    **dict.fromkeys(("eval", "exec"), "a table of what may be done"),
    **dict.fromkeys(("yaml.load", "yaml.unsafe_load", "yaml.full_load"), "yaml.SafeLoader"),
    **dict.fromkeys(("os.system", "os.popen"), "subprocess with a list of words"),
}
"""Whoever writes what these read runs code here."""
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def untidy(root: Path) -> list[str]:
    """One line for each thing found below a package's folder."""
    found = []
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        part = file.relative_to(root).parts[0].removesuffix(".py")
        found += [f"{file}:{line}: {message}" for line, message in _in_file(file, text, part)]
    return found


def _in_file(file: Path, text: str, part: str) -> Iterator[tuple[int, str]]:
    if VAGUE & {file.stem, file.parent.name}:
        yield 1, "a file is named after the noun it holds, not 'utils', 'helpers' or 'common'"
    for number, line in enumerate(text.splitlines(), 1):
        if word := re.search(r"\b(FIXME|TODO|XXX)\b", line):
            yield number, f"{word[0]}: do it, or write it down as an issue"
    tree = ast.parse(text)
    if not ast.get_docstring(tree):
        yield 1, "no docstring: say what the module is, and what it does not know"
    full_names = _full_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from ((node.lineno, message) for message in _in_call(_called(node, full_names), part))
        elif isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _is_excused(node, text.splitlines()):
            yield node.lineno, "broad except: name what can be raised; a supervisor says why in a comment"


def _in_call(name: str, part: str) -> Iterator[str]:
    if part in TIMELESS and name in CLOCKS:
        yield f"{name}() in {part}: take `now` as an argument; a delay is an instant that the driver waits for"
    if part in TIMELESS and name.endswith("loop.time"):
        yield f"{name}() in {part}: take `now` as an argument"
    module, _, function = name.rpartition(".")
    if module in ("random", "numpy.random") and function not in SEEDED:
        yield f"{name}() draws from global state: pass a seeded generator"
    if name in ("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"):
        yield f"{name}() changes global state: pass a torch.Generator"
    if name in DANGEROUS:
        yield f"{name}() lets data run code: use {DANGEROUS[name]}"
    if name == "print" and part != "cli":
        yield "print: use a logger; only the command line speaks to stdout"


def _full_names(tree: ast.AST) -> dict[str, str]:
    """What the names that imports bind stand for: np → numpy, now → time.monotonic."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _called(node: ast.Call, full_names: dict[str, str]) -> str:
    head, dot, rest = ast.unparse(node.func).partition(".")
    return full_names.get(head, head) + dot + rest


def _is_broad(node: ast.ExceptHandler) -> bool:
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(each is None or ast.unparse(each) in ("Exception", "BaseException") for each in caught)


def _is_excused(node: ast.ExceptHandler, lines: list[str]) -> bool:
    last = node.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return True
    comments = " ".join(line.partition("#")[2] for line in lines[node.lineno - 1 : node.body[0].lineno - 1])
    return re.search(r"\w", re.sub(r"noqa: [A-Z0-9]+", "", comments)) is not None


# The guard at work.


def test_sources_are_tidy() -> None:
    found = untidy(SRC)
    assert not found, "\n" + "\n".join(found)


def test_changelog_names_its_versions() -> None:
    """Each section of the changelog is a version with its date, or what is not released yet."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    wrong = [
        each for each in headings if not re.fullmatch(r"\[?Unreleased\]?|\[?\d+\.\d+\.\d+\]?.*\d{4}-\d\d-\d\d", each)
    ]
    assert not wrong


PLANTED = {
    "clock in core": ("core/a.py", "import time\ntime.monotonic()", "take `now`"),
    "clock by another name": ("core/a.py", "from time import perf_counter as now\nnow()", "take `now`"),
    "clock of the date": ("policies/a.py", "from datetime import datetime\ndatetime.now()", "take `now`"),
    "clock of the loop": ("sim/a.py", "self.loop.time()", "take `now`"),
    "sleep in the simulator": ("sim/a.py", "import asyncio\nasyncio.sleep(1)", "take `now`"),
    "global random": ("gateway/a.py", "import random\nrandom.choice([1])", "seeded generator"),
    "global random of numpy": ("engine/a.py", "import numpy as np\nnp.random.rand()", "seeded generator"),
    "global random of torch": ("engine/a.py", "import torch\ntorch.manual_seed(0)", "torch.Generator"),
    "unpickling": ("wire/a.py", "from pickle import loads\nloads(b'')", "lets data run code"),
    "unpickling by torch": ("engine/a.py", "import torch as t\nt.load('a')", "safetensors"),
    "code from text": ("cli/a.py", "eval('1')", "lets data run code"),
    "objects from YAML": ("cli/a.py", "import yaml\nyaml.load('a', yaml.Loader)", "SafeLoader"),
    "print": ("runtime/a.py", "print('here')", "logger"),
    "bare except": ("runtime/a.py", "try:\n    f()\nexcept:\n    g()", "name what can be raised"),
    "broad except": ("runtime/a.py", "try:\n    f()\nexcept Exception:\n    g()", "name what can be raised"),
    "broad among others": ("runtime/a.py", "try:\n    f()\nexcept (OSError, Exception):\n    g()", "name what"),
    "broad without a reason": (
        "runtime/a.py",
        "try:\n    f()\nexcept Exception:  # noqa: BLE001\n    g()",
        "name what",
    ),
    "left over": ("runtime/a.py", "x = 1  # FI" + "XME later", "do it"),
    "vague file": ("runtime/utils.py", "x = 1", "named after the noun"),
    "vague folder": ("runtime/common/a.py", "x = 1", "named after the noun"),
}

CLEAN = {
    "core/a.py": "def f(now): return now",
    "engine/a.py": "import time, numpy as np\nt = time.perf_counter()\nr = np.random.default_rng(1)\nr.random()",
    "sim/a.py": "import random\nr = random.Random(1)\nr.random()",
    "cli/a.py": "print('data')",
    "runtime/a.py": "try:\n    f()\nexcept BaseException:\n    g()\n    raise",
    "runtime/b.py": "try:\n    f()\nexcept Exception:  # noqa: BLE001 one request must not end the others\n    g()",
    "runtime/c.py": "try:\n    f()\nexcept Exception:\n    # a bug in one answer\n    log.exception('x')",
}


def _plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'"""A toy."""\n{text}\n', encoding="utf-8")


def test_clean_tree_passes(tmp_path: Path) -> None:
    _plant(tmp_path, CLEAN)
    assert untidy(tmp_path) == []


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_violation_is_found(tmp_path: Path, planted: str) -> None:
    name, text, message = PLANTED[planted]
    _plant(tmp_path, CLEAN | {name: text})
    (found,) = untidy(tmp_path)
    assert found.startswith(f"{tmp_path / name}:")
    assert message in found


def test_missing_docstring_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n", encoding="utf-8")
    (found,) = untidy(tmp_path)
    assert "no docstring" in found
