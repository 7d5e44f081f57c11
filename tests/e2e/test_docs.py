"""The README and the docs do as they say: their code runs, their configuration loads, their links lead somewhere.

What is on a page is tried by the language of its block, whichever page it is; a block of another language, or a command
of a program that is not known here, fails, so that none is left out unawares.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer
import yaml

from e2e.conftest import Serving
from e2e.pages import PAGES, ROOT, Block, Command, blocks, commands
from hyperflexis.cli import scenario, sources
from hyperflexis.cli.api_keys import read_ring
from hyperflexis.cli.main import app, main
from hyperflexis.gateway.openai_types import AttachBody
from monitoring.queries import asked

URL = "http://127.0.0.1:8000"
QUICK_START = ROOT / "docs" / "quickstart.md"

SHELL = ("", "bash", "ini")
TRIED = {"hyperflexis", "make", "curl", "python", "pip"}
ELSEWHERE = {
    "source": "no program",
    "ray": "needs a cluster; tests/runtime starts one",
    "vllm": "needs vLLM; tests/vllm starts it",
    "kubectl": "needs a cluster; tests/test_kuberay.py reads the manifest",
    "prometheus": "needs Prometheus; tests/monitoring reads its files",
    "guidellm": "needs a package of its own",
    "aiperf": "needs a package of its own",
}
"""Programs that are not run here, and why."""
LANGUAGES = {*SHELL, "yaml", "keys", "json", "python", "promql", "output", "docker", "usage", "text"}
"""The last three are not tried: an image takes a cluster, `tests/test_reference.py` holds usage, text is only shown."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, str]]:
    """The server that the quick start starts, and its address."""
    file = tmp_path_factory.mktemp("served") / "classes.yaml"
    (block,) = blocks(QUICK_START, "yaml")
    file.write_text(block.text)
    serving = Serving("-c", str(file))
    try:
        yield serving, serving.wait_ready()
    finally:
        serving.stop()


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages_with(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, *languages)], ids=named)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_block_escapes(page: Path) -> None:
    for block in blocks(page):
        assert escapes(block) is None, f"line {block.line}"


def escapes(block: Block) -> str | None:
    """What of a block nobody would try."""
    if block.language not in LANGUAGES or (block.language == "usage" and block.page.name != "cli.md"):
        return block.language
    if block.language == "text":
        return found[0] if (found := re.search(r"^(\$ )?hyperflexis (?!.*──).*", block.text, re.MULTILINE)) else None
    programs = [command.words[0] for command in commands(block)] if block.language in SHELL else []
    return next((program for program in programs if program not in TRIED | ELSEWHERE.keys()), None)


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("toml", "a = 1\n", "toml"),
        ("usage", "hyperflexis frob\n", "usage"),
        ("", "hyperflexis serve\n", None),
        ("", "# a word\nrm -r /\n", "rm"),
        ("bash", "make serve | frob\n$ frob\n", "$"),
        ("text", "look:\nhyperflexis serve --frob\n", "hyperflexis serve --frob"),
        ("text", "hyperflexis serve ── one event loop\n", None),
    ],
)
def test_planted_block_escapes(language: str, text: str, found: str | None) -> None:
    assert escapes(Block(ROOT / "README.md", 1, language, text)) == found


def test_lines_are_commands_as_a_shell_has_them() -> None:
    text = """a 'b c' \\
  d   # e
f '{"g":
    1}' | h -i
"""
    assert commands(Block(ROOT / "README.md", 1, "", text)) == [
        Command(("a", "b c", "d"), ()),
        Command(("f", '{"g":    1}'), ("h", "-i")),
    ]
    typed = Block(ROOT / "README.md", 1, "", "$ a > b\n  what it says\n$ c\n")
    assert commands(typed) == [Command(("a",), ("b",)), Command(("c",), ())]


@pages_with("python")
@pytest.mark.slow
def test_python_runs(page: Path, served: tuple[Serving, str]) -> None:
    for block in blocks(page, "python"):
        assert URL in block.text
        code = block.text.replace(URL, served[1])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert "attained" in done.stdout


@pages_with("yaml")
def test_configuration_loads(page: Path, tmp_path: Path) -> None:
    """Of a server, or a scenario; a part of one is put into the example."""
    for number, block in enumerate(blocks(page, "yaml")):
        file, keys = tmp_path / f"{number}.yaml", yaml.safe_load(block.text)
        file.write_text(block.text)
        if "workload" in keys:
            scenario.load(file)
        elif "fleet" in keys:
            whole = yaml.safe_load((ROOT / "examples" / "scenario.yaml").read_text(encoding="utf-8"))
            file.write_text(yaml.safe_dump(whole | keys))
            scenario.load(file)
        else:
            sources.load(config=file, env={}, flags={}, sets=())


def test_keys_load(tmp_path: Path) -> None:
    page, file = ROOT / "docs" / "security.md", tmp_path / "keys.yaml"
    (block,) = [block for page in PAGES for block in blocks(page, "keys")]
    file.write_text(block.text)
    (tmp_path / "serve.yaml").write_text(blocks(page, "yaml")[0].text)
    deployment = sources.load(config=tmp_path / "serve.yaml", env={}, flags={}, sets=()).deployment
    assert [key.name for key in read_ring(file, deployment).keys] == ["web", "ops"]


@pages_with("promql")
def test_queries_are_understood(page: Path) -> None:
    for block in blocks(page, "promql"):
        assert all(each.name.startswith("hyperflexis_") for each in asked(block.text))


class Reader:
    """Does what a page says, from top to bottom, in a folder of their own and against a server that runs.

    Loads are cut to their first seconds, but where the page shows what comes of them. Servers are not started; their
    configuration is read.
    """

    def __init__(self, folder: Path, url: str, prints: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._url = url
        self._prints = prints

    def follow(self, page: Path) -> None:
        for block in blocks(page, "yaml"):
            if name := re.match(r"# (\S+\.yaml)\n", block.text):
                (self._folder / name[1]).write_text(block.text)
        told = ""
        for block, after in zip(each := blocks(page), [*each[1:], None], strict=True):
            is_shown = after is not None and after.language == "output"
            if block.language in SHELL:
                told = "".join(self._try(command, in_full=is_shown) for command in commands(block))
            elif block.language == "output":
                assert told.endswith(block.text), f"line {block.line}: what is printed:\n{told}"

    def _try(self, command: Command, *, in_full: bool) -> str:
        """What it prints, of those that are ours."""
        program, *words = command.words
        match program:
            case "hyperflexis":
                return self._run(words, in_full=in_full)
            case "curl":
                self._ask(command)
            case "make":
                assert words[0] in MAKE_TARGETS
            case "python":
                _look_for_script(words)
            case "pip":
                extras = re.search(r"hyperflexis\[(.*)\]", words[-1])
                assert set(extras[1].split(",") if extras else ()) <= EXTRAS
        return ""

    def _run(self, words: list[str], *, in_full: bool) -> str:
        words = [str(ROOT / word) if word.startswith("examples/") else word.replace(URL, self._url) for word in words]
        if words[0] in PARSED:
            command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
            command.make_context(words[0], [word.strip("[]") for word in words[1:]])
            return ""
        self._prints.readouterr()
        assert main(self._shortened(words, in_full=in_full)) == 0, words
        told = self._prints.readouterr()
        if words[0] in ("simulate", "explain", "replay"):
            assert told.err == ""
        if words[0] == "bench":
            head, row = told.out.splitlines()
            assert head.split()[3:7] == ["requests", "rejected", "failed", "cut"]
            assert row.split()[4:7] == ["0", "0", "0"]
        assert told.out
        return told.out

    def _ask(self, command: Command) -> None:
        """Ask the server that runs. What goes to another one has a body that could be read, at least."""
        words = command.words
        (url,) = [word for word in words if word.startswith("http://")]
        body = words[words.index("-d") + 1] if "-d" in words else None
        if not url.startswith(URL) or "vllm_xargs" in (body or ""):
            if body is not None:
                msgspec.json.decode(body, type=AttachBody if url.endswith("/instances") else dict)
            return
        header = dict([words[words.index("-H") + 1].split(": ")]) if "-H" in words else {}
        request = urllib.request.Request(url.replace(URL, self._url), body.encode() if body else None, header)
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = answer.read().decode()
        if body is not None:
            assert (
                told.endswith("data: [DONE]\n\n")
                if json.loads(body).get("stream")
                else "hyperflexis" in json.loads(told)
            )
        if command.piped:
            assert command.piped[0] == "grep"
            assert re.search(command.piped[-1], told)

    def _shortened(self, words: list[str], *, in_full: bool) -> list[str]:
        """The same of less load, and of what ends."""
        asks_journal = "journal/" in words and words[0] not in ("simulate", "serve")
        if asks_journal and not (self._folder / "journal").exists():
            main(["simulate", str(ROOT / "examples" / "scenario.yaml"), "--journal", "journal/", *FEWER])
        match words[0]:
            case "serve":
                return ["config", "show", *words[1:]]
            case "simulate" if not in_full:
                return [*words, *FEWER]
            case "plan":
                return [*words, *(FEWER if words[1] != "journal/" else ["--kinds", "mixed", "--max", "4"])]
            case "bench":
                return [*words, "--limit", "1", "--name", "here"]
            case "top":
                return ["top", self._url, "--once", *words[1:]]
            case "explain":
                return [ID_OF_AN_ANSWER.sub("7", word) for word in words]
        return words


def _look_for_script(words: list[str]) -> None:
    """A script of this repository or a module, which knows the options that it is given."""
    told = _help_of(*(words[:2] if words[0] == "-m" else [str(ROOT / words[0])]))
    assert all(word in told for word in words if word.startswith("--")), words


@functools.cache
def _help_of(*program: str) -> str:
    words = [sys.executable, *program, "--help"]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=True, cwd=ROOT).stdout


MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
COMMANDS = typer.main.get_command(app).commands.keys()  # type: ignore[attr-defined]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"].keys()
PARSED = {"dashboard", "profile"}
"""Commands that go on until they are ended, or for minutes: their words only are tried."""
FEWER = [word for index in (0, 1) for word in ("--set", f"workload.{index}.window_s=[0, 30]")]
ID_OF_AN_ANSWER = re.compile(r"cmpl-[0-9a-f]+")


def test_output_that_is_another_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("    hyperflexis version\n\n```output\nhyperflexis 99\n```\n")
    with pytest.raises(AssertionError, match="line 3: what is printed"):
        Reader(tmp_path, URL, capsys).follow(page)


@pages_with(*SHELL)
@pytest.mark.slow
def test_commands_run_one_after_the_other(
    page: Path,
    served: tuple[Serving, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Reader(tmp_path, served[1], capsys).follow(page)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    """Quickly; that headings are there, too, is seen where the site is built."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_named_in_passing_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= MAKE_TARGETS
    assert set(re.findall(r"`hyperflexis ([a-z]+)", text)) <= COMMANDS


def test_verdict_in_the_docs_has_the_fields_of_a_verdict() -> None:
    from hyperflexis.core.slo import Slo, Timeline, Verdict
    from hyperflexis.gateway.backend import End
    from hyperflexis.gateway.promises import Granted
    from hyperflexis.gateway.verdict import report

    (shown,) = [block for page in PAGES for block in blocks(page, "json")]
    times = Timeline(0.0, 0.0, 0.1, 0.2, 0.3, 2, 0.1, 0.1)
    real = report([End("stop", Verdict("chat", 0, Slo(), times, "i0"))], Granted("chat", 0))
    assert isinstance(real, dict)
    assert keys(json.loads(shown.text)) == keys(real)


def keys(told: object) -> object:
    return {name: keys(value) for name, value in told.items()} if isinstance(told, dict) else None
