"""`hyperflexis traces` and `hyperflexis profiles`: what there is to name in a scenario, as text."""

from __future__ import annotations

import contextlib
import fnmatch
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hyperflexis.cli import trace_files
from hyperflexis.core.latency import StepShape
from hyperflexis.sim import profiles
from hyperflexis.sim.catalog import TRACES, Entry
from hyperflexis.sim.traces import TraceError, detect

PREFILL = StepShape(prefill_tokens=2048, prefill_pairs=2048**2)
DECODE = StepShape(decode_seqs=32, context_tokens=32 * 1024)


def profiles_text() -> str:
    """One line for each profile: its name, what two typical steps take, what it holds, where it is from."""
    shipped = [profiles.load_profile(name) for name in profiles.names()]
    rows = [
        (
            profile.name,
            f"{profile.latency.step_s(PREFILL) * 1000:.1f}",
            f"{profile.latency.step_s(DECODE) * 1000:.1f}",
            str(profile.kv_tokens),
            profile.source,
        )
        for profile in shipped
    ]
    head = ("name", "prefill of 2048, ms", "decode of 32 x 1024, ms", "KV tokens", "source")
    return _aligned([head, *rows], "<>>><")


def traces_text(given: Sequence[Path], env: Mapping[str, str]) -> str:
    """Each known trace with how to get it and its files that are here; then all other traces that are here."""
    found = dict(_found(trace_files.folders(given, env)))
    parts = [_entry_text(entry, [path for path in found if _is_of(entry, path, found[path])]) for entry in TRACES]
    others = [path for path in found if not any(_is_of(entry, path, found[path]) for entry in TRACES)]
    if others:
        rows = [(str(path), found[path]) for path in others]
        parts.append("other traces here, and their formats\n" + textwrap.indent(_aligned(rows, "<<"), "  "))
    return "\n".join(parts)


def _entry_text(entry: Entry, here: Sequence[Path]) -> str:
    rows = {
        "good for": entry.good_for,
        "format": entry.format,
        "origin": f"{entry.origin} ({entry.licence})",
        "cite": entry.cite,
        "get it": entry.how,
        "here": "\n".join(str(path) for path in here) or "no",
    }
    lines = [f"  {key:<9} {line}" for key, text in rows.items() for line in text.splitlines()]
    return "\n".join([entry.name, *lines]) + "\n"


def _found(folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Every trace in the folders themselves, with its format."""
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file():
                with contextlib.suppress(TraceError):
                    yield path, detect(path)


def _is_of(entry: Entry, path: Path, format_name: str) -> bool:
    plain = path.name.removesuffix(".gz").removesuffix(".zst")
    patterns = [pattern.rpartition("/")[2] for pattern in entry.files]
    return format_name == entry.format and any(
        fnmatch.fnmatchcase(name, pattern) for name in (path.name, plain) for pattern in patterns
    )


def _aligned(rows: Sequence[Sequence[str]], sides: str) -> str:
    widths = [max(len(text) for text in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    )
    return "".join(f"{line}\n" for line in lines)
