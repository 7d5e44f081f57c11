"""The documentation site: it builds without a warning, has every page, and needs nothing from anywhere else."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Ten seconds where nobody else computes; nothing here is measured.
pytestmark = pytest.mark.timeout(300)


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does, with words of its own for a folder that is elsewhere."""
    words = [
        "-q",
        "-W",
        "--keep-going",
        "-c",
        ROOT / "docs" / "site",
        "-d",
        target / "doctrees",
        source,
        target / "site",
    ]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *map(str, words)], capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("built")
    done = build(ROOT, target)
    assert (done.returncode, done.stderr) == (0, "")
    return target / "site"


def test_make_builds_it_as_strictly() -> None:
    (line,) = re.findall(
        r"^\t\$\(BIN\)/sphinx-build (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert line == "-q -W --keep-going -E -c docs/site -d build/doctrees . build/site"


@pytest.mark.slow
def test_every_page_is_there_with_its_pictures(site: Path) -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 40
    assert [page for page in pages if not (site / page.relative_to(ROOT).with_suffix(".html")).exists()] == []
    linked = {
        name for page in pages for name in re.findall(r"!\[[^]]*\]\([^)]*?([\w-]+\.\w+)\)", page.read_text("utf-8"))
    }
    assert "dashboard-story.jpg" in linked
    assert linked <= {file.name for file in (site / "_images").iterdir()}


@pytest.mark.parametrize("folder", ["benchmarks/results", "docs/decisions", "docs/images", "examples"])
def test_everything_in_a_folder_is_shown(folder: str) -> None:
    """Files that are no pages may be left out without an error of the build."""
    pages = [
        page.read_text(encoding="utf-8") for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / folder).glob("*.md")]
    ]
    files = [each for each in (ROOT / folder).rglob("*") if each.is_file() and each.name != "README.md"]
    assert files
    assert [file for file in files if not any(file.name in page for page in pages)] == []


@pytest.mark.slow
def test_first_page_leads_to_the_others(site: Path) -> None:
    (target,) = re.findall(r"url=([^\"]+)", (site / "index.html").read_text(encoding="utf-8"))
    text = (site / target).read_text(encoding="utf-8")
    assert all(f'href="{page}.html"' in text for page in ("quickstart", "cli", "results/README", "../SECURITY"))


class Loaded(HTMLParser):
    """What a browser fetches for a page without being asked by its reader."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = "href" if tag == "link" else "src"
        self.found += [value for name, value in attrs if name == wanted and value]


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = Loaded()
    for page in site.rglob("*.html"):
        loaded.feed(page.read_text(encoding="utf-8"))
    styles = [file.read_text(encoding="utf-8") for file in site.rglob("*.css")]
    found = [*loaded.found, *(target for style in styles for target in re.findall(r"url\(['\"]?([^)'\"]+)", style))]
    assert len(found) > 100
    assert [each for each in found if re.match(r"(https?:)?//", each)] == []


@pytest.mark.slow
def test_search_knows_the_pages(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(
        f'"{page}"' in index for page in ("docs/quickstart", "docs/decisions/0001-steps-are-chosen-inside-the-instance")
    )
    assert "disaggreg" in index


SOUND = {
    "docs/README.md": "# Top\n\n## Pages\n\n- [One](one.md)\n- [Two](../TWO.md)\n",
    "docs/one.md": "# One\n\n[two](../TWO.md#a-part), [file](../data.json), [folder](../docs)\n",
    "TWO.md": "# Two\n\n## A part\n",
    "data.json": "{}",
}
FAULTS = {
    "page that no list has": ({"docs/three.md": "# Three\n"}, "isn't included in any toctree"),
    "page that is listed and missing": ({"TWO.md": None, "docs/one.md": "# One\n"}, "nonexisting document 'TWO'"),
    "link to nothing": ({"TWO.md": "# Two\n\n## A part\n\n[gone](gone.md)\n"}, "target not found: 'gone.md'"),
    "link to no heading": ({"TWO.md": "# Two\n"}, "local id not found in doc 'TWO': 'a-part'"),
    "picture that is missing": ({"TWO.md": "# Two\n\n## A part\n\n![x](x.jpg)\n"}, "image file not readable"),
}


def plant(root: Path, files: dict[str, str | None]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (root / name).write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_sound_tree_is_built(tmp_path: Path) -> None:
    plant(tmp_path / "source", {**SOUND})
    done = build(tmp_path / "source", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'href="README.html"' in (tmp_path / "site" / "docs" / "one.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_an_error(tmp_path: Path, fault: str) -> None:
    files, message = FAULTS[fault]
    plant(tmp_path / "source", SOUND | files)
    done = build(tmp_path / "source", tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
