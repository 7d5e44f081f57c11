"""The command `hyperflexis`: words in, exit code out.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 2 usage or configuration, 3 failed to start. Holds
no logic of serving: `serve` wires that, and is loaded only when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperflexis import __version__
from hyperflexis.cli import keys, sources
from hyperflexis.cli.errors import OperatorError

app = typer.Typer(
    name="hyperflexis",
    help="Serve large language models to many kinds of traffic at once, each with its own latency promise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    try:
        app(args=argv, prog_name="hyperflexis")
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except OperatorError as error:
        _report(error)
        return error.exit_code
    return 0


def _help(dotted: str) -> str:
    """The key's own words, its default and its twin in the environment."""
    key = keys.key(dotted)
    default = "" if key.default is None else f" Default: {key.default}."
    return f"{key.description}{default} Env: {key.env}."


def _option(dotted: str, metavar: str) -> Any:
    return typer.Option(_spelling(dotted), metavar=metavar, help=_help(dotted), show_default=False)


def _spelling(key: str) -> str:
    """How the command line spells a key that has a flag of its own."""
    return "MODEL" if key == "model" else f"--{key.replace('_', '-')}"


# Flags are text here; the deployment's own checks give all sources the same messages.
Model = Annotated[str | None, typer.Argument(metavar="MODEL", help=_help("model"), show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help=f"YAML file of keys. Env: {sources.CONFIG_ENV}.", show_default=False
    ),
]
Instances = Annotated[str | None, _option("instances", "N")]
Host = Annotated[str | None, _option("host", "ADDRESS")]
Port = Annotated[str | None, _option("port", "N")]
Device = Annotated[str | None, _option("device", "NAME")]
Dtype = Annotated[str | None, _option("dtype", "NAME")]
Policy = Annotated[str | None, _option("policy", "NAME")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        sources.SET_FLAG,
        metavar="KEY=VALUE",
        help="Any key by its dotted path, such as engine.seqs_max=64; may be repeated. "
        f"Env: {keys.ENV_PREFIX}ENGINE__SEQS_MAX, and so on.",
        show_default=False,
    ),
]


@app.command()
def serve(
    model: Model = None,
    *,
    config: Config = None,
    instances: Instances = None,
    host: Host = None,
    port: Port = None,
    device: Device = None,
    dtype: Dtype = None,
    policy: Policy = None,
    sets: Sets = None,
) -> None:
    """Serve a model over the OpenAI HTTP API. Flags win over the environment, that over the file."""
    settings = _load(
        config,
        sets,
        model=model,
        instances=instances,
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        policy=policy,
    )
    from hyperflexis.cli.serve import run

    raise typer.Exit(run(settings.deployment))


@config_app.command("show")
def config_show(
    model: Model = None,
    *,
    config: Config = None,
    instances: Instances = None,
    host: Host = None,
    port: Port = None,
    device: Device = None,
    dtype: Dtype = None,
    policy: Policy = None,
    sets: Sets = None,
) -> None:
    """Print every key, its effective value and where that came from, as YAML that `-c` takes again."""
    settings = _load(
        config,
        sets,
        model=model,
        instances=instances,
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        policy=policy,
    )
    from hyperflexis.cli.show import render

    typer.echo(render(settings), nl=False)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"hyperflexis {__version__}")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


@app.callback()
def _root(
    is_version_asked: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _load(config: Path | None, sets: list[str] | None, **given: str | None) -> sources.Settings:
    flags = {key: (_spelling(key), text) for key, text in given.items() if text is not None}
    return sources.load(config=config, env=os.environ, flags=flags, sets=sets or ())


def _report(error: OperatorError) -> None:
    for line in error.message.splitlines():
        typer.secho("error: ", fg=typer.colors.RED, nl=False, err=True)
        typer.echo(line, err=True)
    if error.hint:
        typer.echo(f"\nhint: {error.hint}", err=True)
