"""The dashboard as a browser gets it: plain HTML, CSS and JavaScript modules, which nothing has to build."""

from __future__ import annotations

from pathlib import Path

INDEX = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def files() -> dict[str, tuple[str, bytes]]:
    """Content type and bytes of each file, by name."""
    folder = Path(__file__).parent
    return {path.name: (_KINDS[path.suffix], path.read_bytes()) for path in folder.iterdir() if path.suffix in _KINDS}
