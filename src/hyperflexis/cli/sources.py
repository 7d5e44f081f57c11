"""Where a deployment's values come from: a YAML file, the environment, flags; the later one wins, key by key.

Every value keeps its source, so that `config show` can name it and an error can point at it. Knows nothing of what the
keys mean; the model in `deployment` judges the merged values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from hyperflexis.cli.complaint import complain
from hyperflexis.cli.deployment import Deployment, contradictions, fleet_contradictions
from hyperflexis.cli.document import file_entries, text_entries
from hyperflexis.cli.entry import Entry, Source
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.keys import ENV_PREFIX, Path
from hyperflexis.cli.trace_files import TRACES_ENV

CONFIG_ENV = f"{ENV_PREFIX}CONFIG"
SET_FLAG = "--set"


@dataclass(frozen=True, slots=True)
class Settings:
    """A deployment and, by path, where its values came from. What is not there came from the defaults."""

    deployment: Deployment
    sources: Mapping[Path, Source]


def load(
    *,
    config: FilePath | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, str]] | None = None,
    sets: Sequence[str] = (),
) -> Settings:
    """Merge all sources into one deployment.

    Args:
        config: A YAML file; without it, the one that HYPERFLEXIS_CONFIG names, if any.
        flags: By dotted path: the flag as the operator knows it, and the text given to it.
        sets: `a.b=c` each; they win over flags.

    Raises:
        OperatorError: a source cannot be read, or holds an unknown key or a bad value.
    """
    env = env or {}
    if config is None and env.get(CONFIG_ENV):
        config = FilePath(env[CONFIG_ENV])
    entries = list(file_entries(config)) if config else []
    entries += [*_env_entries(env), *_flag_entries(flags or {}), *_set_entries(sets)]
    values, sources = _merge(entries)
    try:
        deployment = Deployment.model_validate(values)
    except ValidationError as error:
        raise complain(error, sources) from None

    def place(*path: str) -> str:
        return sources[path].place if path in sources else "the defaults"

    if found := [*contradictions(deployment.classes, place), *fleet_contradictions(deployment, place)]:
        raise OperatorError("\n".join(found))
    return Settings(deployment, sources)


def _env_entries(env: Mapping[str, str]) -> Iterator[Entry]:
    for name in sorted(env):
        # An empty variable counts as absent: container tools leave such behind.
        is_key = name.startswith(ENV_PREFIX) and name not in (CONFIG_ENV, TRACES_ENV)
        if is_key and env[name] and not _is_service_link(name, env[name]):
            path = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
            yield from text_entries(path, env[name], Source("env", name))


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set it for a Service of our name: HYPERFLEXIS_PORT=tcp://10.0.0.1:8000 and its kin."""
    if re.search(r"_SERVICE_(HOST|PORT(_.*)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$", name):
        return True
    return name.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", value) is not None


def _flag_entries(flags: Mapping[str, tuple[str, str]]) -> Iterator[Entry]:
    for dotted, (flag, text) in flags.items():
        yield from text_entries(tuple(dotted.split(".")), text, Source("flag", flag))


def _set_entries(sets: Sequence[str]) -> Iterator[Entry]:
    for assignment in sets:
        dotted, equals, text = assignment.partition("=")
        path = tuple(dotted.strip().split("."))
        if not equals or not all(path):
            raise OperatorError(f"{SET_FLAG} {assignment!r} should be KEY=VALUE", f"such as {SET_FLAG} instances=1")
        yield from text_entries(path, text.strip(), Source("flag", SET_FLAG))


def _merge(entries: Sequence[Entry]) -> tuple[dict[str, Any], dict[Path, Source]]:
    values: dict[str, Any] = {}
    sources: dict[Path, Source] = {}
    for entry in entries:
        *above, name = entry.path
        section = values
        for parent in above:
            section = _section_in(section, parent)
        if entry.value == {} and isinstance(section.get(name), dict):
            continue  # an empty mapping adds nothing to what is there
        section[name] = entry.value
        for path in [path for path in sources if _is_inside(path, entry.path) or _is_inside(entry.path, path)]:
            del sources[path]
        sources[entry.path] = entry.source
    return values, sources


def _section_in(section: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(section.get(name), dict):
        section[name] = {}
    inner: dict[str, Any] = section[name]
    return inner


def _is_inside(path: Path, outer: Path) -> bool:
    return path[: len(outer)] == outer
