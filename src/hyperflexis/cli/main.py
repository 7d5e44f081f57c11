"""The command `hyperflexis`: words in, exit code out.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 a replay differs, 2 usage or configuration, 3
failed to start, 4 a target was missed. Holds no logic: each command is wired in a module of its own, which is loaded
only when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hyperflexis import __version__
from hyperflexis.cli import keys, sources, trace_files
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
keys_app = typer.Typer(help="Make API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

DEFAULT_URL = "http://127.0.0.1:8000"


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


_DASHES = str.maketrans("_.", "--")


def _spelling(key: str) -> str:
    """How the command line spells a key that has a flag of its own."""
    if key == "model":
        return "MODEL"
    return f"--{key.removeprefix('scaling.').removesuffix('.path').translate(_DASHES)}"


# Flags are text here; the deployment's own checks give all sources the same messages.
Model = Annotated[str | None, typer.Argument(metavar="MODEL", help=_help("model"), show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help=f"YAML file of keys. Env: {sources.CONFIG_ENV}.", show_default=False
    ),
]
Instances = Annotated[str | None, _option("instances", "N")]
Prefill = Annotated[str | None, _option("prefill", "N")]
Decode = Annotated[str | None, _option("decode", "N")]
Fewest = Annotated[str | None, _option("scaling.min", "N")]
Most = Annotated[str | None, _option("scaling.max", "N")]
DryRun = Annotated[bool, typer.Option("--dry-run", help=_help("scaling.dry_run"), show_default=False)]
Host = Annotated[str | None, _option("host", "ADDRESS")]
Port = Annotated[str | None, _option("port", "N")]
Device = Annotated[str | None, _option("device", "NAME")]
Dtype = Annotated[str | None, _option("dtype", "NAME")]
Policy = Annotated[str | None, _option("policy", "NAME")]
Launcher = Annotated[str | None, _option("launcher", "NAME")]
RayAddress = Annotated[str | None, _option("ray.address", "HOST:PORT")]
Attach = Annotated[
    list[str] | None,
    typer.Option(
        "--attach",
        metavar="URL",
        help="A vLLM server that runs already, to be an instance; may be repeated. "
        f"Roles and more: the key attach. Env: {keys.ENV_PREFIX}ATTACH.",
        show_default=False,
    ),
]
Journal = Annotated[str | None, _option("journal.path", "DIR")]
Keep = Annotated[str | None, _option("keep.path", "DIR")]
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

ScenarioPath = Annotated[
    Path, typer.Argument(metavar="SCENARIO", help="YAML file of classes, fleet, profile and workload.")
]
Policies = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="A,B", help="Policies to compare, or 'all'. Default: the scenario's.", show_default=False
    ),
]
Rates = Annotated[
    str | None,
    typer.Option(
        "--rate", metavar="X,Y", help="Loads to run at; each multiplies all rates. Default: 1.", show_default=False
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option("--seed", metavar="M,N", help="Seeds to run with. Default: the scenario's.", show_default=False),
]
JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the results as JSON; - prints it in place of the table.",
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write curves and figures as one HTML page.", show_default=False),
]
Jobs = Annotated[int, typer.Option("--jobs", metavar="N", min=1, max=1024, help="Simulations to run at a time.")]
Traces = Annotated[
    list[Path] | None,
    typer.Option(
        trace_files.TRACES_FLAG,
        metavar="DIR",
        help=f"Folder of trace files; may be repeated. Env: {trace_files.TRACES_ENV}, with '{os.pathsep}' between.",
        show_default=False,
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out bad rows of traces and say how many, instead of stopping.")
]
ScenarioSets = Annotated[
    list[str] | None,
    typer.Option(
        sources.SET_FLAG,
        metavar="KEY=VALUE",
        help="Any key of the scenario, such as fleet.mixed=8 or workload.0.rate=2; may be repeated.",
        show_default=False,
    ),
]

SimulationJournal = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        help="Record every event and decision there, for `explain` and `replay`; for one policy, rate and seed.",
        show_default=False,
    ),
]

JournalPath = Annotated[
    Path, typer.Argument(metavar="JOURNAL", help="Folder of a journal, of which the newest run is taken; or one part.")
]

ProfileOut = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the profile as JSON.", show_default=False)
]
Quick = Annotated[bool, typer.Option("--quick", help="Measure fewer steps, fewer times.")]
GridWords = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="NAME=N,N",
        help="Change the grid, such as decode_seqs=1,8,64; may be repeated.",
        show_default=False,
    ),
]


@app.command()
def serve(
    model: Model = None,
    *,
    config: Config = None,
    instances: Instances = None,
    prefill: Prefill = None,
    decode: Decode = None,
    fewest: Fewest = None,
    most: Most = None,
    is_dry: DryRun = False,
    host: Host = None,
    port: Port = None,
    device: Device = None,
    dtype: Dtype = None,
    policy: Policy = None,
    launcher: Launcher = None,
    ray_address: RayAddress = None,
    attach: Attach = None,
    journal: Journal = None,
    keep: Keep = None,
    sets: Sets = None,
) -> None:
    """Serve a model over the OpenAI HTTP API. Flags win over the environment, that over the file."""
    settings = _load(
        config,
        sets,
        model=model,
        instances=instances,
        prefill=prefill,
        decode=decode,
        **_scaling_flags(fewest, most, is_dry=is_dry),
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        policy=policy,
        launcher=launcher,
        **{"ray.address": ray_address, "journal.path": journal, "keep.path": keep},
        attach=_listed(attach),
    )
    from hyperflexis.cli.serve import run

    raise typer.Exit(run(settings.deployment))


@app.command()
def top(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where `hyperflexis serve` answers.")] = DEFAULT_URL,
    *,
    is_once: Annotated[bool, typer.Option("--once", help="Print it once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print snapshots as JSON, one a line.")] = False,
) -> None:
    """Watch a running fleet in the terminal. An API key that it asks for is taken from HYPERFLEXIS_API_KEY."""
    from hyperflexis.cli.top import Request, run

    raise typer.Exit(run(Request(url, is_once, as_json)))


@app.command()
def dashboard(
    journal: JournalPath,
    *,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8001,
) -> None:
    """Show a journal, live or simulated, in the browser, as the dashboard of a running server shows its fleet."""
    from hyperflexis.cli.dashboard import run

    raise typer.Exit(run(journal, host, port))


@config_app.command("show")
def config_show(
    model: Model = None,
    *,
    config: Config = None,
    instances: Instances = None,
    prefill: Prefill = None,
    decode: Decode = None,
    fewest: Fewest = None,
    most: Most = None,
    is_dry: DryRun = False,
    host: Host = None,
    port: Port = None,
    device: Device = None,
    dtype: Dtype = None,
    policy: Policy = None,
    launcher: Launcher = None,
    ray_address: RayAddress = None,
    attach: Attach = None,
    journal: Journal = None,
    keep: Keep = None,
    sets: Sets = None,
) -> None:
    """Print every key, its effective value and where that came from, as YAML that `-c` takes again."""
    settings = _load(
        config,
        sets,
        model=model,
        instances=instances,
        prefill=prefill,
        decode=decode,
        **_scaling_flags(fewest, most, is_dry=is_dry),
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        policy=policy,
        launcher=launcher,
        **{"ray.address": ray_address, "journal.path": journal, "keep.path": keep},
        attach=_listed(attach),
    )
    from hyperflexis.cli.show import render

    typer.echo(render(settings), nl=False)


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the key in files and logs.")],
    *,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", metavar="NAME", help="Whose it is. Default: its own name.", show_default=False),
    ] = None,
    is_admin: Annotated[bool, typer.Option("--admin", help="Let it show and change the fleet.")] = False,
) -> None:
    """Make an API key: the key to stdout, which nothing shows again; its entry in auth.keys_file to stderr."""
    from hyperflexis.cli.api_keys import entry_of

    key, entry = entry_of(name, tenant, is_admin=is_admin)
    typer.echo(f"# Under 'keys:' in the file that auth.keys_file names:\n{entry}", nl=False, err=True)
    typer.echo(key)


@app.command()
def simulate(
    file: ScenarioPath,
    *,
    policy: Policies = None,
    rate: Rates = None,
    seed: Seeds = None,
    json_file: JsonFile = None,
    report: Report = None,
    jobs: Jobs = 1,
    traces: Traces = None,
    skip_bad: SkipBad = False,
    sets: ScenarioSets = None,
    journal: SimulationJournal = None,
) -> None:
    """Replay traces on a simulated fleet and print which promises each policy keeps."""
    from hyperflexis.cli.simulate import Request, run

    request = Request(
        file=file,
        policies=policy,
        rates=rate,
        seeds=seed,
        json_file=json_file,
        report=report,
        jobs=jobs,
        traces=tuple(traces or ()),
        skip_bad=skip_bad,
        sets=tuple(sets or ()),
        journal=journal,
    )
    raise typer.Exit(run(request))


@app.command()
def explain(
    journal: JournalPath,
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST",
            help="Id of its answer, which x-request-id says too; or its number; or an instance, such as i3.",
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, with what is behind each line.")] = False,
) -> None:
    """Tell what became of one request (or instance) and why, from a journal."""
    from hyperflexis.cli.explain import run

    raise typer.Exit(run(journal, request, as_json=as_json))


@app.command()
def replay(
    journal: JournalPath,
    *,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="A,B",
            help="Simulate what was asked for under these policies, in place of checking.",
            show_default=False,
        ),
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(
            "--fleet",
            metavar="FLEET",
            help="Simulate it on another fleet, such as '{mixed: 4}', as a scenario would have it.",
            show_default=False,
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Feed a journal's events to the control plane again: every decision must be the same. Or ask what if."""
    from hyperflexis.cli.replay import run

    raise typer.Exit(run(journal, policy, fleet, json_file))


@app.command()
def bench(
    url: Annotated[str, typer.Argument(metavar="URL", help="Server with an OpenAI API, such as http://HOST:8000.")],
    file: Annotated[
        Path, typer.Argument(metavar="SCENARIO", help="YAML file, as for simulate; its classes and workload count.")
    ],
    more_targets: Annotated[list[str] | None, typer.Argument(metavar="[ttft:MS]...", hidden=True)] = None,
    *,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            "--goodput",
            metavar="ttft:MS tpot:MS e2el:MS",
            help="Promise this to every request in place of what its class is promised, in vLLM's words.",
            show_default=False,
        ),
    ] = None,
    rate: Rates = None,
    seed: Seeds = None,
    duration_s: Annotated[
        float | None,
        typer.Option("--duration", metavar="S", min=0.001, help="Seconds of the trace to send.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Most arrivals to send.", show_default=False)
    ] = None,
    warmup_s: Annotated[float, typer.Option("--warmup", metavar="S", min=0, help="First seconds, not counted.")] = 0.0,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.001, help="Seconds until a request is given up.")
    ] = 600.0,
    requests_max: Annotated[
        int | None,
        typer.Option(
            "--concurrency-max",
            metavar="N",
            min=1,
            help="Most requests under way, for safety; more wait, and it is told. Default: 10000.",
            show_default=False,
        ),
    ] = None,
    is_plain: Annotated[bool, typer.Option("--plain", help="Send no promises.")] = False,
    is_by_name: Annotated[
        bool, typer.Option("--by-name", help="Send the class's name as service_tier, in place of numbers.")
    ] = False,
    is_chat: Annotated[bool, typer.Option("--chat", help="Ask /v1/chat/completions.")] = False,
    is_text: Annotated[bool, typer.Option("--text", help="Send text also where token ids are taken.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Default: the first that is listed.", show_default=False),
    ] = None,
    headers: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="NAME:VALUE",
            help="To send with every request; may be repeated. A key is better in OPENAI_API_KEY.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What to call it. Default: its address.", show_default=False),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            metavar="SHARE",
            min=0,
            max=1,
            help="Exit with 4 if a class attained less, such as 0.95.",
            show_default=False,
        ),
    ] = None,
    json_file: JsonFile = None,
    report: Report = None,
    traces: Traces = None,
    skip_bad: SkipBad = False,
    sets: ScenarioSets = None,
) -> None:
    """Send a scenario's traces to any OpenAI endpoint at their instants, and print which promises it kept."""
    from hyperflexis.cli import bench as command
    from hyperflexis.cli import simulate

    asked = command.Request(
        url=url,
        scenario=simulate.Request(
            file=file,
            rates=rate,
            seeds=seed,
            json_file=json_file,
            report=report,
            traces=tuple(traces or ()),
            skip_bad=skip_bad,
            sets=tuple(sets or ()),
        ),
        goodput=(*(goodput or ()), *(more_targets or ())),
        duration_s=duration_s,
        limit=limit,
        warmup_s=warmup_s,
        timeout_s=timeout_s,
        requests_max=requests_max,
        is_plain=is_plain,
        is_by_name=is_by_name,
        is_chat=is_chat,
        is_text=is_text,
        model=model,
        headers=tuple(headers or ()),
        name=name,
        target=target,
    )
    raise typer.Exit(command.run(asked))


@app.command()
def plan(
    source: Annotated[
        Path, typer.Argument(metavar="SCENARIO|JOURNAL", help="A scenario, as for simulate; or a journal's folder.")
    ],
    *,
    target: Annotated[
        float,
        typer.Option("--target", metavar="SHARE", min=0, max=1, help="What every class is to attain, such as 0.99."),
    ] = 0.99,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="NAME",
            help="Policy to plan for. Default: the scenario's, or the one that the journal records.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", metavar="X", min=1e-6, max=1e6, help="Load to plan for; multiplies all rates.")
    ] = 1.0,
    seed: Annotated[
        str | None,
        typer.Option(
            "--seed",
            metavar="M,N",
            help="Seeds to try every fleet with. Default: three, from the scenario's.",
            show_default=False,
        ),
    ] = None,
    instances_max: Annotated[
        int, typer.Option("--max", metavar="N", min=1, max=10_000, help="Most instances to think of.")
    ] = 256,
    kinds: Annotated[
        str,
        typer.Option("--kinds", metavar="A,B", help="Fleets to try: mixed, apart (prefill and decode), elastic."),
    ] = "mixed,apart,elastic",
    json_file: JsonFile = None,
    report: Report = None,
    jobs: Jobs = 1,
    traces: Traces = None,
    skip_bad: SkipBad = False,
    sets: ScenarioSets = None,
) -> None:
    """Find the cheapest fleet that keeps a target for every class, and show what others would keep at what cost."""
    from hyperflexis.cli import plan as command

    asked = command.Request(
        source=source,
        target=target,
        policy=policy,
        rate=rate,
        seeds=seed,
        instances_max=instances_max,
        kinds=tuple(word.strip() for word in kinds.split(",")),
        json_file=json_file,
        report=report,
        jobs=jobs,
        traces=tuple(traces or ()),
        skip_bad=skip_bad,
        sets=tuple(sets or ()),
    )
    raise typer.Exit(command.run(asked))


@app.command()
def profile(
    model: Model = None,
    *,
    out: ProfileOut = None,
    is_quick: Quick = False,
    grid: GridWords = None,
    config: Config = None,
    device: Device = None,
    dtype: Dtype = None,
    sets: Sets = None,
) -> None:
    """Measure an engine over a grid of steps and fit the latency profile that budgets and `simulate` are made from.

    MODEL may be the address of a running server, such as http://127.0.0.1:8000, which is then measured from outside.
    """
    if model is not None and model.startswith(("http://", "https://")):
        from hyperflexis.cli.profile_server import run as run_server

        _refuse_beside_address(config=config, device=device, dtype=dtype, set=sets)
        raise typer.Exit(run_server(model, out, is_quick=is_quick, grid=grid or ()))
    settings = _load(config, sets, model=model, device=device, dtype=dtype)
    from hyperflexis.cli.profile import run

    raise typer.Exit(run(settings.deployment, out, is_quick=is_quick, grid=grid or ()))


@app.command("traces")
def list_traces(*, traces: Traces = None) -> None:
    """List public request traces: what they hold, how to get them, and which of them are here."""
    from hyperflexis.cli.listing import traces_text

    typer.echo(traces_text(tuple(traces or ()), os.environ), nl=False)


@app.command("profiles")
def list_profiles() -> None:
    """List the shipped latency profiles that a scenario can name."""
    from hyperflexis.cli.listing import profiles_text

    typer.echo(profiles_text(), nl=False)


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


def _scaling_flags(fewest: str | None, most: str | None, *, is_dry: bool) -> dict[str, str | None]:
    return {"scaling.min": fewest, "scaling.max": most, "scaling.dry_run": "true" if is_dry else None}


def _listed(urls: list[str] | None) -> str | None:
    """As the key takes them: a YAML list."""
    return json.dumps(urls) if urls else None


def _refuse_beside_address(**given: object) -> None:
    for name, value in given.items():
        if value:
            raise OperatorError(f"--{name} says how a model is to be loaded, and a running server has loaded its own")


def _load(config: Path | None, sets: list[str] | None, **given: str | None) -> sources.Settings:
    flags = {key: (_spelling(key), text) for key, text in given.items() if text is not None}
    return sources.load(config=config, env=os.environ, flags=flags, sets=sets or ())


def _report(error: OperatorError) -> None:
    for line in error.message.splitlines():
        typer.secho("error: ", fg=typer.colors.RED, nl=False, err=True)
        typer.echo(line, err=True)
    if error.hint:
        typer.echo(f"\nhint: {error.hint}", err=True)
