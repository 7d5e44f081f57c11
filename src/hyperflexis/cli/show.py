"""`config show`: a deployment as YAML that loads again, each line with the source of its value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.keys import Path
from hyperflexis.cli.sources import Settings

COMMENT_COLUMN_MAX = 60
"""A line longer than this carries its comment right behind it and does not push those of the others away."""


def render(settings: Settings) -> str:
    """Print every key with its effective value and, as an aligned comment, where it came from."""
    notes = _notes(settings.deployment)
    rows = [(text, _comment(path, settings, notes)) for text, path in _lines(settings.deployment)]
    column = max(len(text) for text, _ in rows if len(text) <= COMMENT_COLUMN_MAX)
    return "".join(f"{text:<{column}}  # {comment}\n" if comment else f"{text}\n" for text, comment in rows)


def _lines(section: BaseModel, prefix: Path = (), indent: str = "") -> Iterator[tuple[str, Path | None]]:
    """Each line of the YAML and the path of the value in it; headings of sections have none."""
    for name in type(section).model_fields:
        yield from _value_lines(name, getattr(section, name), (*prefix, name), indent)


def _value_lines(name: str, value: Any, path: Path, indent: str) -> Iterator[tuple[str, Path | None]]:
    if isinstance(value, BaseModel):
        yield f"{indent}{_scalar(name)}:", None
        yield from _lines(value, path, indent + "  ")
    elif isinstance(value, dict) and value:
        yield f"{indent}{_scalar(name)}:", None
        for inner, section in value.items():
            yield from _value_lines(inner, section, (*path, inner), indent + "  ")
    else:
        yield f"{indent}{_scalar(name)}: {_scalar(value)}", path


def _comment(path: Path | None, settings: Settings, notes: dict[Path, str]) -> str:
    if path is None:
        return ""
    if path in settings.sources:
        return str(settings.sources[path])
    return f"default: {notes[path]}" if path in notes else "default"


def _notes(deployment: Deployment) -> dict[Path, str]:
    """What the defaults that depend on other things come to here."""
    notes: dict[Path, str] = {
        ("threads_per_instance",): f"{deployment.threads} here",
        ("served_name",): deployment.public_name,
    }
    if deployment.instances is None and not deployment.attach:
        notes["instances",] = f"{deployment.instances_total} here"
    if deployment.model is None:
        notes["model",] = "the demo model"
    if deployment.engine.kv_cache_gib is None:
        notes["engine", "kv_cache_gib"] = "what the device has free"
    if deployment.ray.address is None:
        notes["ray", "address"] = "that of the cluster around this machine"
    if deployment.ray.gpus_per_instance is None:
        notes["ray", "gpus_per_instance"] = "1 if the cluster has any"
    return notes


def _scalar(value: Any) -> str:
    """One value as YAML on one line."""
    if isinstance(value, list):
        value = [each.model_dump(exclude_defaults=True) if isinstance(each, BaseModel) else each for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=2**31)
    return text.removesuffix("\n").removesuffix("\n...")
