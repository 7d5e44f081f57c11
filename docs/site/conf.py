"""The documentation site: `make docs` builds it into build/site.

The sources are the Markdown files of the repository where they lie, so that a link works on the repository's page and
in the site alike. Navigation is made of the lists of links in the READMEs (docs/README.md first), which is what the
repository shows, too: there is no second list to keep. Knows nothing of what stands on the pages.
"""

from __future__ import annotations

import re
from pathlib import Path

from pygments.lexers.data import YamlLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "HyperFlexis"
extensions = ["myst_parser"]
root_doc = "docs/README"
include_patterns = ["*.md", "docs/**.md", "examples/**.md", "benchmarks/**.md", "src/hyperflexis/demo_model/*.md"]
# Not looked into: environments, caches and what is built.
exclude_patterns = [".*", "build", "tests"]

myst_heading_anchors = 4
# Indented blocks are commands, trees and formulas; none is one language.
highlight_language = "none"
# Words stay as they are: an option's two dashes are no dash.
smartquotes = False

html_theme = "furo"
html_title = project
html_extra_path = ["index.html"]
html_css_files = ["site.css"]
html_static_path = ["static"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^):#]+)\)")
_LISTED = re.compile(r"^- \[([^]]+)\]\(([^)#]+\.md)\)", re.MULTILINE)


def navigation(text: str) -> str:
    """The hidden tables of contents that a page's lists of links amount to, one for each of its sections."""
    first, *rest = _SECTION.split(text)
    trees = [_tree("", first)] + [_tree(title, body) for title, body in zip(rest[::2], rest[1::2], strict=True)]
    return "".join(trees)


def _tree(title: str, text: str) -> str:
    rows = "".join(f"{words} <{target}>\n" for words, target in _LISTED.findall(text))
    caption = f":caption: {title}\n" if title else ""
    return f"\n```{{toctree}}\n:hidden:\n{caption}{rows}```\n" if rows else ""


def _follow_folders(page: Path, text: str, root: Path) -> str:
    """The text with its links to folders leading to their READMEs, or to that of the nearest folder above."""

    def followed(link: re.Match[str]) -> str:
        folder = (page.parent / link[1]).resolve()
        if not folder.is_dir():
            return link[0]
        readme = next(each / "README.md" for each in (folder, *folder.parents) if (each / "README.md").exists())
        return f"](/{readme.relative_to(root)})"

    return _LINK.sub(followed, text)


def _prepare(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = _follow_folders(Path(app.env.doc2path(name)), source[0], Path(app.srcdir))
    if name.endswith("README") and name != "README":
        source[0] += navigation(source[0])


def setup(app: Sphinx) -> None:
    app.add_lexer("keys", YamlLexer)
    for shown in ("usage", "output", "promql"):
        app.add_lexer(shown, TextLexer)
    app.connect("source-read", _prepare)
