"""YAML as entries with lines. Read as nodes, because nodes know where they stand; values alone do not.

Stricter than YAML in two points that hide slips of the hand: a key given twice is an error, and so is a key that is not
text (`on:` is a truth value to YAML). Knows of the keys only whether a mapping may stand at a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FilePath

import yaml

from hyperflexis.cli import keys
from hyperflexis.cli.entry import Entry, Source
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.keys import Path


def file_entries(file: FilePath) -> Iterator[Entry]:
    """Read a YAML file of keys."""
    source = Source("file", str(file))
    root = compose(read(file), source)
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        place = source.at(root.start_mark.line + 1).place
        raise OperatorError(f"{place}: should hold 'key: value' lines")
    yield from _entries(root, (), source)


def text_entries(path: Path, text: str, source: Source) -> Iterator[Entry]:
    """Read a text as the key's type asks: as it stands for texts, as YAML for all else."""
    kind = keys.kind_at(path)
    if kind is None or (keys.is_text(kind) and text != "null"):
        yield Entry(path, text, source)
        return
    node = compose(text, source)
    if node is None:
        yield _leaf(path, None, source)
    else:
        yield from _entries(node, path, source)


def read(file: FilePath) -> str:
    """The text of a file.

    Raises:
        OperatorError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise OperatorError(f"{file} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise OperatorError(f"cannot read {str(file)!r}: {getattr(error, 'strerror', None) or error}") from None


def compose(text: str, source: Source) -> yaml.Node | None:
    """The root of a YAML text; None if it holds nothing.

    Raises:
        OperatorError: it is not YAML, or gives a key twice.
    """
    try:
        root: yaml.Node | None = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, source) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise OperatorError(f"{source.place}: not YAML: {' '.join(str(error).split())}") from None
    if root is not None:
        _refuse_twins(root, source, set())
    return root


def _not_yaml(error: yaml.MarkedYAMLError, source: Source) -> OperatorError:
    mark = error.problem_mark or error.context_mark
    place = source.at(mark.line + 1).place if mark else source.place
    return OperatorError(f"{place}: not YAML: {error.problem or error.context}")


def _refuse_twins(node: yaml.Node, source: Source, seen: set[int]) -> None:
    """Raise for a key given twice in one mapping; YAML would let the later one win in silence."""
    if id(node) in seen:  # an alias, perhaps of a mapping that holds it
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twins(item, source, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            twin = (key_node.tag, str(key_node.value))
            if twin in lines:
                raise OperatorError(f"{source.at(line).place}: '{twin[1]}' is given twice, first in line {lines[twin]}")
            lines[twin] = line
            _refuse_twins(value_node, source, seen)


def _entries(node: yaml.Node, path: Path, source: Source) -> Iterator[Entry]:
    if isinstance(node, yaml.MappingNode) and node.value and _takes_mapping(path):
        for name, key_node, value_node in pairs(node, source):
            yield from _entries(value_node, (*path, name), source.at(key_node.start_mark.line + 1))
    else:
        yield _leaf(path, construct(node, source), source)


def pairs(node: yaml.MappingNode, source: Source) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """The keys of a mapping with what they hold; own ones win over those that `<<` brings in."""
    merged = yaml.MappingNode(node.tag, list(node.value), node.start_mark, node.end_mark)
    try:
        yaml.SafeLoader("").flatten_mapping(merged)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, source) from None
    last = {_name(key_node, source): (key_node, value_node) for key_node, value_node in merged.value}
    for name, (key_node, value_node) in last.items():
        yield name, key_node, value_node


def _name(key_node: yaml.Node, source: Source) -> str:
    name = construct(key_node, source)
    if not isinstance(name, str):
        place = source.at(key_node.start_mark.line + 1).place
        hint = f'write "{key_node.value}" in quotes' if isinstance(key_node, yaml.ScalarNode) else None
        raise OperatorError(f"{place}: a key should be text, this one reads as {name!r}", hint)
    return name


def construct(node: yaml.Node, source: Source) -> object:
    """The value of a node."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, source) from None
    except ValueError as error:  # what a scalar's own type refuses, such as the date 2026-13-01
        raise OperatorError(f"{source.at(node.start_mark.line + 1).place}: not YAML: {error}") from None


def _leaf(path: Path, value: object, source: Source) -> Entry:
    # `engine:` with all its lines commented out is YAML's null, and means that nothing is changed.
    return Entry(path, {} if value is None and _takes_mapping(path) else value, source)


def _takes_mapping(path: Path) -> bool:
    kind = keys.kind_at(path)
    return keys.is_section(kind) or keys.is_named(kind)
