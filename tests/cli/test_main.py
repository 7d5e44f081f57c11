"""The command as people meet it: words in; exit code, stdout and stderr out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperflexis import __version__
from hyperflexis.cli import keys, sources
from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.errors import OperatorError, StartError

Run = Callable[..., Any]
"""Words in; (code, out, err) out. A fixture of this folder."""

FLAGS = {
    "instances": ("--instances", "3"),
    "prefill": ("--prefill", "0"),
    "decode": ("--decode", "0"),
    "host": ("--host", "0.0.0.0"),
    "port": ("--port", "9"),
    "device": ("--device", "cpu"),
    "dtype": ("--dtype", "float32"),
    "policy": ("--policy", "round_robin"),
}
"""Key → its flag and a value for it."""


def test_serve_without_words_serves_the_defaults(run: Run, served: list[Deployment]) -> None:
    assert run("serve") == (0, "", "")
    assert served == [Deployment()]


def test_serve_hands_over_what_it_was_told(run: Run, served: list[Deployment], tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("port: 1\ninstances: 7\nclasses: {code: {ttft_ms: 500}}\n", encoding="utf-8")
    words = [word for pair in FLAGS.values() for word in pair]
    assert run("serve", "owner/name", "-c", str(config), *words, "--set", "engine.seqs_max=4", "--set", "port=10") == (
        0,
        "",
        "",
    )
    (deployment,) = served
    assert deployment == Deployment.model_validate(
        {
            "model": "owner/name",
            "instances": 3,
            "host": "0.0.0.0",
            "port": 10,
            "device": "cpu",
            "dtype": "float32",
            "policy": "round_robin",
            "engine": {"seqs_max": 4},
            "classes": {"code": {"ttft_ms": 500}},
        }
    )  # fmt: skip


@pytest.mark.parametrize("dotted", FLAGS)
def test_flag_and_its_variable_say_the_same(
    dotted: str, run: Run, served: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, text = FLAGS[dotted]
    assert run("serve", flag, text).code == 0
    monkeypatch.setenv(f"HYPERFLEXIS_{flag.removeprefix('--').replace('-', '_').upper()}", text)
    assert run("serve").code == 0
    assert served[0] == served[1] == sources.load(sets=[f"{dotted}={text}"]).deployment


def test_flags_of_roles_go_together(run: Run, served: list[Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("serve", "--prefill", "1", "--decode", "2").code == 0
    monkeypatch.setenv("HYPERFLEXIS_PREFILL", "1")
    monkeypatch.setenv("HYPERFLEXIS_DECODE", "2")
    assert run("serve").code == 0
    assert served[0] == served[1] == Deployment(prefill=1, decode=2)
    assert (served[0].instances_total, served[0].mixed) == (3, 0)


def test_flag_wins_over_its_variable(run: Run, served: list[Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERFLEXIS_PORT", "1")
    assert run("serve", "--port", "2").code == 0
    assert served[0].port == 2


@pytest.mark.parametrize("command", [("serve",), ("config", "show")])
def test_help_names_every_flag_with_its_words_and_its_variable(command: tuple[str, ...], run: Run) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    words = " ".join(out.replace("│", " ").split())
    for dotted in ("model", *FLAGS):
        key = keys.key(dotted)
        assert key.description in words
        assert f"Env: {key.env}." in words
        assert dotted in FLAGS or f"Default: {key.default}." not in words
    for flag in ("MODEL", "--config", "-c", "--set", sources.CONFIG_ENV, *(flag for flag, _ in FLAGS.values())):
        assert flag in words


def test_help_lists_the_commands(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("serve", "config", "version"))


def test_version(run: Run) -> None:
    assert run("version") == run("--version") == (0, f"hyperflexis {__version__}\n", "")


def test_config_show_prints_a_config_on_stdout(run: Run, tmp_path: Path) -> None:
    code, out, err = run("config", "show", "owner/name", "--port", "9", "--set", "classes.chat.tpot_ms=50")
    assert (code, err) == (0, "")
    (tmp_path / "shown.yaml").write_text(out, encoding="utf-8")
    assert run("config", "show", "-c", str(tmp_path / "shown.yaml")).code == 0
    assert sources.load(config=tmp_path / "shown.yaml").deployment == Deployment.model_validate(
        {"model": "owner/name", "port": 9, "classes": {"chat": {"tpot_ms": 50}}}
    )


@pytest.mark.parametrize("command", [("serve",), ("config", "show")])
def test_mistake_is_one_line_a_hint_and_exit_code_2(
    command: tuple[str, ...], run: Run, served: list[Deployment], tmp_path: Path
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("instnces: 2\n", encoding="utf-8")
    assert run(*command, "-c", str(config)) == (
        2,
        "",
        f"error: unknown key 'instnces' in {config}:1: did you mean 'instances'?\n"
        "\nhint: `hyperflexis config show` prints every key and its value\n",
    )
    assert served == []


@pytest.mark.parametrize(
    "words", [("serve", "--prot", "1"), ("srve",), ("serve", "a", "b"), ("config", "hide"), ("serve", "-c")]
)
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...], run: Run, served: list[Deployment]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err
    assert served == []


@pytest.mark.parametrize(
    ("error", "code"), [(OperatorError("a", "b"), 2), (StartError("a", "b"), 3), (StartError("a\nb"), 3)]
)
def test_operator_errors_from_serving(
    error: OperatorError, code: int, run: Run, served: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def _fail(deployment: Deployment) -> int:
        raise error

    monkeypatch.setattr(sys.modules["hyperflexis.cli.serve"], "run", _fail)
    text = "error: a\nerror: b\n" if error.hint is None else "error: a\n\nhint: b\n"
    assert run("serve") == (code, "", text)


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_of_serving_is_passed_on(
    code: int, run: Run, served: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["hyperflexis.cli.serve"], "run", lambda deployment: code)
    assert run("serve").code == code


def test_our_own_mistakes_keep_their_stack_trace(
    run: Run, served: list[Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    def _break(deployment: Deployment) -> int:
        raise AssertionError("ours")

    monkeypatch.setattr(sys.modules["hyperflexis.cli.serve"], "run", _break)
    with pytest.raises(AssertionError, match="ours"):
        run("serve")


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_python_dash_m() -> None:
    done = _python("-m", "hyperflexis", "version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hyperflexis {__version__}\n", "")
    assert _python("-m", "hyperflexis", "serve", "--port", "x").returncode == 2


def test_help_loads_nothing_that_serves() -> None:
    heavy = ("torch", "aiohttp", "numpy", "msgspec", "tokenizers", "hyperflexis.core")
    code = (
        "import sys; from hyperflexis.cli.main import main; main(['serve', '--help']);"
        f"print(set({heavy}) & {{*sys.modules}})"
    )
    done = _python("-c", code)
    assert done.stdout.splitlines()[-1] == "set()"
