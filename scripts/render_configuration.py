"""Write the table of keys into docs/configuration.md, from the words beside each key in the code."""

from __future__ import annotations

import json
from pathlib import Path

from hyperflexis.cli.keys import ENV_PREFIX, Key, all_keys

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
BEGIN = "<!-- keys: made by scripts/render_configuration.py -->\n"
END = "<!-- end of keys -->\n"


def render(page: str) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = "| key | default | meaning |\n|---|---|---|\n"
    rows = "".join(_row(key) for key in all_keys())
    return (
        f"{before}{BEGIN}\n{head}{rows}\nThe variable of a key is `{ENV_PREFIX}` and its path, as above.\n{END}{after}"
    )


def _row(key: Key) -> str:
    default = key.default if isinstance(key.default, str) else json.dumps(key.default)
    return f"| `{key.dotted}` | `{default}` | {key.description} |\n"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
