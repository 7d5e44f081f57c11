"""Write what the code says of itself into the pages of reference: commands, policies, bodies of requests.

docs/cli.md, docs/policies.md and docs/api.md, each between two comments; around them people write. The table of
configuration keys has a script of its own.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from hyperflexis import policies
from hyperflexis.cli.main import app
from hyperflexis.gateway.openapi import describe

DOCS = Path(__file__).parent.parent / "docs"
BEGIN = "<!-- made by scripts/render_reference.py -->\n"
END = "<!-- end of what is made -->\n"


def render(name: str, page: str) -> str:
    """The page of that name with its middle made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{PAGES[name]()}\n{END}{after}"


def commands() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    return "\n".join(_command(words, command) for words, command in _walk("hyperflexis", root))


def _walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below this one that do something, in the order in which `--help` has them."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
    for name, each in (inner or {}).items():
        yield from _walk(f"{words} {name}", each)


def _command(words: str, command: Any) -> str:
    shown = [each for each in command.params if not each.hidden]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    metavars = [each.metavar if each.required else f"[{each.metavar}]" for each in arguments]
    usage = " ".join([words, *metavars, *(["[OPTIONS]"] if options else [])])
    table = "".join(_parameter(each) for each in [*arguments, *options])
    head = "\n| | meaning |\n|---|---|\n" if table else ""
    return f"## {words}\n\n```usage\n{usage}\n```\n\n{inspect.cleandoc(command.help)}\n{head}{table}"


def _parameter(each: Any) -> str:
    spelled = each.metavar if each.param_type_name == "argument" else ", ".join(each.opts)
    if each.param_type_name == "option" and not each.is_flag:
        spelled += f" {each.metavar}"
    default = f" Default: {each.default}." if each.show_default and not _is_told(each) else ""
    return f"| `{_cell(spelled)}` | {_cell(each.help)}{default} |\n"


def _is_told(each: Any) -> bool:
    return each.required or each.default is None or each.default is False or "Default:" in each.help


def registered_policies() -> str:
    """Every policy: what its own file says, and what can be tuned."""
    head = "| policy | what it is | moves requests | changes roles | changes the size |\n|---|---|---|---|---|\n"
    return head + "".join(map(_summary, policies.POLICIES)) + "".join(map(_policy, policies.POLICIES))


def _summary(name: str) -> str:
    plain = policies.create(name, 2048)
    with_roles = policies.create(name, 2048, roles="planned") if "roles" in policies.tunables(name) else plain
    marks = (_mark(getattr(plain, part), getattr(with_roles, part)) for part in ("binder", "planner", "scaler"))
    title = _docstring(name).partition("\n")[0]
    if title.endswith(":"):  # it introduces what the summary has not
        title = f"{title.rpartition('. ')[0]}."
    return f"| [`{name}`](#{name}) | {_cell(title)} | {' | '.join(marks)} |\n"


def _mark(part: object | None, part_with_roles: object | None) -> str:
    if part is not None:
        return "yes"
    return "" if part_with_roles is None else "by `roles`"


def _docstring(name: str) -> str:
    return inspect.getdoc(inspect.getmodule(policies.POLICIES[name])) or ""


def _policy(name: str) -> str:
    function = inspect.getdoc(policies.POLICIES[name])
    told = [_as_markdown(_docstring(name)), *([function] if function else [])]
    dials = policies.tunables(name)
    rows = "".join(f"| `{key}` | `{json.dumps(default)}` |\n" for key, default in dials.items())
    table = f"\n| to tune | default |\n|---|---|\n{rows}" if dials else ""
    return f"\n## {name}\n\n" + "\n\n".join(told) + f"\n{table}"


def _as_markdown(text: str) -> str:
    """A docstring, whose formulas are indented."""
    return re.sub(
        r"(?m)^(?: {4}.*\n?)+", lambda found: f"```text\n{textwrap.dedent(found[0]).rstrip()}\n```\n", text
    ).strip()


def bodies() -> str:
    """The fields of every body that is read, with their types."""
    described = describe(has_keys=False)
    parts = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if body := operation.get("requestBody"):
                schema = body["content"]["application/json"]["schema"]
                rows = "".join(_fields(schema, described["components"]["schemas"], ""))
                head = "| field | type | |\n|---|---|---|\n"
                parts.append(f"### `{method.upper()} {path}`\n\n{head}{rows}")
    return "\n".join(parts)


def _fields(schema: dict[str, Any], schemas: dict[str, Any], path: str) -> Iterator[str]:
    """A row for each field, and for each below it. What has no type is known only to be refused by name."""
    known = schemas[schema["$ref"].rpartition("/")[2]]
    for name, field in known["properties"].items():
        kinds = [each for each in field.get("anyOf", [field]) if each != {"type": "null"}]
        for inner in [each for each in kinds if "$ref" in each]:
            yield from _fields(inner, schemas, f"{path}{name}.")
        types = [_type(each) for each in kinds if each.keys() & {"type", "anyOf"}]
        if types:
            yield f"| `{path}{name}` | {' or '.join(types)} | {'required' if name in known['required'] else ''} |\n"
        for inner in [each["items"] for each in kinds if "$ref" in each.get("items", {})]:
            yield from _fields(inner, schemas, f"{path}{name}[].")


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if field["type"] == "array":
        return f"list of {'objects' if '$ref' in field['items'] else _type(field['items'])}"
    return str(field["type"])


def _cell(text: str) -> str:
    """Text for one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {"cli.md": commands, "policies.md": registered_policies, "api.md": bodies}
"""By the page's name, what makes its middle."""


if __name__ == "__main__":
    for name in PAGES:
        page = DOCS / name
        page.write_text(render(name, page.read_text(encoding="utf-8")), encoding="utf-8")
