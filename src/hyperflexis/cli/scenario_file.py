"""A scenario's YAML as values, and where each of them stands; and what was wrong with them, as sentences.

Unlike a deployment, a scenario comes from one file and holds lists: `workload.0.rate` is the rate of the first stream,
in sentences as with `--set`. A key without a value counts as not given. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from hyperflexis.cli import document, keys
from hyperflexis.cli.complaint import VALUE_CHARS_MAX
from hyperflexis.cli.entry import Source
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.keys import Path

SET_FLAG = "--set"
DEPTH_MAX = 16
_POWER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
"""Numbers that YAML 1.1 takes for text where everyone else, JSON among them, reads a number: 1e-5."""
_KEY_MARK = "[key]"
"""How pydantic's locations say that the name is wrong, not what it holds."""

Sources = dict[Path, Source]


def read(file: FilePath, sets: Sequence[str] = ()) -> tuple[dict[str, Any], Sources, str]:
    """The values of a file, changed by `a.b=c` each; by path where they came from; and the file's text.

    Raises:
        OperatorError: the file cannot be read, is no YAML mapping, or an assignment fits nowhere.
    """
    text = document.read(file)
    values, sources = _mapping(text, Source("file", str(file)))
    for assignment in sets:
        _assign(assignment, values, sources)
    return values, sources, text


def mapping(file: FilePath) -> dict[str, Any]:
    """The values of a YAML file alone."""
    return _mapping(document.read(file), Source("file", str(file)))[0]


def values_of(text: str, source: Source) -> dict[str, Any]:
    """The values of a YAML mapping that stands in a flag."""
    return _mapping(text, source)[0]


def complain(error: ValidationError, root: type[BaseModel], sources: Sources) -> OperatorError:
    """Make one line of each mistake."""
    return OperatorError("\n".join(_sentence(detail, root, sources) for detail in error.errors(include_url=False)))


def place(path: Path, sources: Sources) -> str:
    """Where a value came from: its own place, else that of the nearest thing around it."""
    for length in range(len(path), -1, -1):
        if path[:length] in sources:
            return sources[path[:length]].place
    return "the defaults"


# Reading.


def _mapping(text: str, source: Source) -> tuple[dict[str, Any], Sources]:
    root = document.compose(text, source)
    sources: Sources = {(): source}
    if root is None:
        return {}, sources
    if not isinstance(root, yaml.MappingNode):
        raise OperatorError(f"{source.at(root.start_mark.line + 1).place}: should hold 'key: value' lines")
    values: dict[str, Any] = _value(root, (), source, sources)
    sources[()] = source
    return values, sources


def _value(node: yaml.Node, path: Path, source: Source, sources: Sources) -> Any:
    """The value of a node; notes where it and everything in it stands."""
    if len(path) > DEPTH_MAX:
        raise OperatorError(f"{source.place}: nested deeper than {DEPTH_MAX} levels")
    sources[path] = source
    if isinstance(node, yaml.MappingNode):
        pairs = document.pairs(node, source)
        inner = {
            name: _value(value_node, (*path, name), source.at(key_node.start_mark.line + 1), sources)
            for name, key_node, value_node in pairs
        }
        return {name: value for name, value in inner.items() if value is not None}
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(item, (*path, str(index)), source.at(item.start_mark.line + 1), sources)
            for index, item in enumerate(node.value)
        ]
    value = document.construct(node, source)
    if isinstance(value, str) and isinstance(node, yaml.ScalarNode) and node.style is None and _POWER.fullmatch(value):
        return float(value)
    return _without_promises(path) if value is None else value


def _without_promises(path: Path) -> dict[str, Any] | None:
    """What a key without a value means: a class without promises, and nowhere else anything."""
    return {} if path[:1] == ("classes",) and len(path) == 2 else None


def _assign(assignment: str, values: dict[str, Any], sources: Sources) -> None:
    dotted, equals, text = assignment.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        raise OperatorError(f"{SET_FLAG} {assignment!r} should be KEY=VALUE", f"such as {SET_FLAG} fleet.mixed=8")
    holder: Any = values
    for name in path[:-1]:
        holder = _inner(holder, name, assignment)
    source = Source("flag", SET_FLAG)
    for known in [known for known in sources if known[: len(path)] == path]:
        del sources[known]
    node = document.compose(text.strip(), source)
    value = _without_promises(path) if node is None else _value(node, path, source, sources)
    if isinstance(holder, list):
        holder[_index(holder, path[-1], assignment)] = value
    elif value is None:
        holder.pop(path[-1], None)
    else:
        holder[path[-1]] = value


def _inner(holder: Any, name: str, assignment: str) -> Any:
    key: Any = _index(holder, name, assignment) if isinstance(holder, list) else name
    inside = holder[key] if isinstance(holder, list) else holder.get(key)
    if not isinstance(inside, (dict, list)):
        holder[key] = inside = {}
    return inside


def _index(items: list[Any], name: str, assignment: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise OperatorError(f"{SET_FLAG} {assignment!r}: there is no item {name!r}, the list has 0 to {len(items) - 1}")
    return int(name)


# Complaining.


def _sentence(detail: Any, root: type[BaseModel], sources: Sources) -> str:
    path = tuple(str(part) for part in detail["loc"] if part != _KEY_MARK)
    dotted, where = ".".join(path), place(path, sources)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], list(_names_at(path[:-1], root)), n=1)
        return f"unknown key '{dotted}' in {where}" + (
            f": did you mean '{'.'.join([*path[:-1], *close])}'?" if close else ""
        )
    if detail["type"] == "missing":
        return f"'{dotted}' is missing in {where}"
    if _KEY_MARK in detail["loc"]:
        return f"bad name '{path[-1]}' in {where}: {_reason(detail)}"
    if isinstance(detail["input"], dict):
        return f"bad value for '{dotted}' in {where}: {_reason(detail)}"
    shown = repr(detail["input"])
    shown = shown if len(shown) <= VALUE_CHARS_MAX else shown[: VALUE_CHARS_MAX - 3] + "..."
    return f"bad value for '{dotted}' in {where}: {shown} {_reason(detail)}"


def _reason(detail: Any) -> str:
    reasons = {
        "model_type": "should be a mapping of keys",
        "dict_type": "should be a mapping of names",
        "list_type": "should be a list",
        "string_type": "should be text; quote it",
        "too_short": "should have an item" if not detail["input"] else "has too few items",
        "too_long": "has too many items",
    }
    message: str = detail["msg"]
    return reasons.get(detail["type"], message.removeprefix("Value error, ").removeprefix("Input "))


def _names_at(path: Path, root: type[BaseModel]) -> Iterator[str]:
    """The keys that may stand in the section at a path."""
    kind: Any = root
    for name in path:
        if keys.is_section(kind):
            named = {field.alias or each: field for each, field in kind.model_fields.items()}
            kind = _bare(named[name].annotation) if name in named else None
        else:
            kind = _bare(get_args(kind)[-1]) if get_origin(kind) in (dict, list) else None
    if keys.is_section(kind):
        yield from (field.alias or each for each, field in kind.model_fields.items())


def _bare(annotation: Any) -> Any:
    """Without `| None`, and without the constraints that an `Annotated` adds."""
    kinds = [arg for arg in get_args(annotation) if arg is not type(None)]
    if type(None) in get_args(annotation) and len(kinds) == 1:
        annotation = kinds[0]
    return getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
