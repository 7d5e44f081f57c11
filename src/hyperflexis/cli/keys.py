"""The keys of a deployment as dotted paths: what each holds, says and defaults to, and how it is spelled elsewhere.

One key, four spellings: `engine.block_tokens` in a path and in `--set`, nested mappings in YAML, and
`HYPERFLEXIS_ENGINE__BLOCK_TOKENS` in the environment. All of it is read off the model in `deployment`.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from hyperflexis.cli.deployment import Deployment

ENV_PREFIX = "HYPERFLEXIS_"
ANY_NAME = "<name>"
"""Stands in a path for a name that the operator chooses."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One key that holds a value, not a section."""

    path: Path
    description: str
    default: Any
    is_nullable: bool

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    @property
    def env(self) -> str:
        return env_name(self.path)


def all_keys() -> list[Key]:
    """All keys in the order of the model; those of a named section under `<name>`."""
    return list(_keys(Deployment, ()))


def key(dotted: str) -> Key:
    """Find one key by its path."""
    return next(each for each in all_keys() if each.dotted == dotted)


def env_name(path: Path) -> str:
    """Spell a path as an environment variable."""
    return ENV_PREFIX + "__".join(path).upper()


def kind_at(path: Path) -> Any:
    """What stands at a path: a section, a `dict` of named sections, a plain type, or None where nothing may stand."""
    kind: Any = Deployment
    for name in path:
        if is_section(kind):
            field = kind.model_fields.get(name)
            kind = None if field is None else _without_none(field.annotation)[0]
        else:
            kind = get_args(kind)[1] if is_named(kind) else None
    return kind


def is_section(kind: Any) -> bool:
    """Whether it is a mapping of known keys."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def is_named(kind: Any) -> bool:
    """Whether it is a mapping of the operator's own names to sections."""
    return get_origin(kind) is dict


def is_text(kind: Any) -> bool:
    """Whether a value given as text is the value itself."""
    return kind is str or get_origin(kind) is Literal


def nearest(path: Path) -> str | None:
    """The known key that an unknown one most likely meant: a sibling, or the same word in another section."""
    *parent, name = path
    siblings = {each: ".".join([*parent, each]) for each in getattr(kind_at(tuple(parent)), "model_fields", ())}
    elsewhere = {each.path[-1]: each.dotted for each in reversed(all_keys())}
    for meanings, cutoff in ((siblings, 0.6), (elsewhere, 0.8), (siblings, 0.5)):
        if close := difflib.get_close_matches(name, list(meanings), n=1, cutoff=cutoff):
            return meanings[close[0]]
    return None


def _keys(section: type[BaseModel], prefix: Path) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        path = (*prefix, name)
        kind, is_nullable = _without_none(field.annotation)
        if is_section(kind):
            yield from _keys(kind, path)
        elif is_named(kind):
            yield from _keys(get_args(kind)[1], (*path, ANY_NAME))
        else:
            yield Key(path, field.description or "", field.get_default(call_default_factory=True), is_nullable)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) in (Union, types.UnionType):
        (kind,) = (arg for arg in get_args(annotation) if arg is not type(None))
        return _bare(kind), True
    return _bare(annotation), False


def _bare(annotation: Any) -> Any:
    """Without the constraints that an `Annotated` adds."""
    return getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
