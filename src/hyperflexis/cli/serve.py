"""`hyperflexis serve`: wires engine, control plane, driver and gateway, and sees them through start, run and end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import uvloop
from prometheus_client.registry import Collector

from hyperflexis.adapters.native.host import StartError as EngineStartError
from hyperflexis.adapters.native.keep import InUseError, Keep, KeepError
from hyperflexis.cli import recordings, traces
from hyperflexis.cli.attached import AttachedFleet, attach_spec, roles_of, serve_spec
from hyperflexis.cli.checkpoint import model_directory
from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.donors import weights_spec
from hyperflexis.cli.entrance import Entrance
from hyperflexis.cli.errors import OperatorError, StartError
from hyperflexis.cli.profile_file import WireSample, read_samples
from hyperflexis.core.control import ControlPlane
from hyperflexis.gateway.backend import ServedModel
from hyperflexis.gateway.server import Gateway
from hyperflexis.gateway.tokenizer import TextCodec, TokenizerError
from hyperflexis.gateway.tracing import Tracer
from hyperflexis.journal.recorder import LiveRecorder
from hyperflexis.runtime.driver import Driver, Observer
from hyperflexis.runtime.launchers.attached import OTHERS_S, AttachedLauncher, AttachError
from hyperflexis.runtime.launchers.cluster import RayLauncher, RaySpec
from hyperflexis.runtime.launchers.local import LocalLauncher, LocalSpec
from hyperflexis.runtime.launchers.vllm import VllmLauncher
from hyperflexis.runtime.registry import Launcher
from hyperflexis.telemetry.decisions import Decisions
from hyperflexis.telemetry.journal_loss import JournalLoss
from hyperflexis.view.live import LiveView

T = TypeVar("T")

log = logging.getLogger(__name__)


def run(deployment: Deployment) -> int:
    """Serve until a signal to stop; returns the exit code.

    Raises:
        OperatorError: the model is not there, or something that serving needs cannot be had.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if deployment.is_elastic:  # What comes and goes, and why, is for whoever watches.
        logging.getLogger("hyperflexis.runtime").setLevel(logging.INFO)
    if deployment.attach or deployment.launcher == "vllm":  # What a server does not tell is said, and what for.
        logging.getLogger("hyperflexis.adapters.vllm").setLevel(logging.INFO)
    logging.getLogger("hyperflexis.cli.entrance").setLevel(logging.INFO)  # Who may come in now is worth a line.
    entrance = Entrance(deployment)
    directory = model_directory(deployment).resolve()  # What is kept is found again by it.
    samples = _samples(deployment)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(deployment, entrance, directory, samples))


def _samples(deployment: Deployment) -> Sequence[WireSample]:
    profile = deployment.engine.profile
    return () if profile is None else read_samples(Path(profile).expanduser())


async def _serve(deployment: Deployment, entrance: Entrance, directory: Path, samples: Sequence[WireSample]) -> int:
    stopping = _stop_on_signals()
    started_s = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        engines = await _unless(stopping, stack.enter_async_context(_engines(deployment, directory, samples)))
        if engines is None:
            return 0
        driver, gateway = await stack.enter_async_context(_fleet(deployment, entrance, engines))
        _leave(engines.launcher, False)
        # What is alive now stays: collections need not look at it again, and so stop nobody's stream for it.
        gc.collect()
        gc.freeze()
        patience_s = OTHERS_S if deployment.attach else math.inf
        ready = await _unless(stopping, _fleet_ready(driver, deployment.instances_min, patience_s))
        if ready is not None:
            _announce(deployment, _ready_roles(driver), gateway, time.monotonic() - started_s)
            await _unless(stopping, _fleet_lost(driver))
        stopping.clear()
        _tell(f"stopping; {driver.live_requests} running requests may finish (once more to stop at once)")
        await _unless(stopping, gateway.drain(deployment.drain_timeout_s))
        if deployment.keep.path is not None and stopping.number == signal.SIGTERM:
            _leave(engines.launcher, True)
            _tell(f"the instances wait for another server, {deployment.keep.timeout_s:g} s")
    return 0


class _Stopping(asyncio.Event):
    """Set by a signal to stop."""

    number: signal.Signals | None = None
    """The last that came."""

    def hear(self, number: signal.Signals) -> None:
        self.number = number
        self.set()


def _stop_on_signals() -> _Stopping:
    stopping = _Stopping()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.hear, number)
    return stopping


def _leave(launcher: Launcher, is_left: bool) -> None:
    """Let instances that are kept outlive what follows, or not."""
    if isinstance(launcher, LocalLauncher):
        launcher.is_left = is_left


async def _unless(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work, unless `stopping` is set first; then it is cancelled and the result is None."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        for unfinished in (task, waiting):
            unfinished.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)


class _Engines(NamedTuple):
    """What launches instances, and what the rest has to know of them."""

    launcher: Launcher
    tokenizer: TextCodec | Path
    context_tokens_max: int
    block_tokens: int


@contextlib.asynccontextmanager
async def _engines(deployment: Deployment, directory: Path, samples: Sequence[WireSample]) -> AsyncIterator[_Engines]:
    if deployment.attach or deployment.launcher == "vllm":
        async with _vllm(deployment, directory, samples) as engines:
            yield engines
    else:
        async with _launcher(deployment, directory, samples) as launcher:
            context_max = launcher.loaded.context_tokens_max
            yield _Engines(launcher, directory, context_max, deployment.engine.block_tokens)


@contextlib.asynccontextmanager
async def _vllm(deployment: Deployment, directory: Path, samples: Sequence[WireSample]) -> AsyncIterator[_Engines]:
    """vLLM servers, those that run already or those that are started here, once the first of them answers."""
    try:
        codec = await asyncio.to_thread(TextCodec.load, directory)
    except TokenizerError as error:
        raise StartError(str(error), "give the directory of the model that the servers serve") from error
    spec = attach_spec(deployment, directory, codec, samples)
    launcher: AttachedLauncher | VllmLauncher
    try:
        if deployment.attach:
            _tell(f"attaching {', '.join(target.url for target in spec.targets)}")
            launcher = first = await AttachedLauncher.start(spec)
        else:
            _tell(f"starting {deployment.instances_min} vLLM servers")
            launcher = await VllmLauncher.start(serve_spec(deployment, directory, spec), roles_of(deployment))
            first = launcher.attached
    except AttachError as error:
        raise StartError(str(error), error.hint or None) from error
    # Where servers cache no prefixes, none is to be looked for: no prompt has a block as large as this.
    block_tokens = first.block_tokens if first.caches_prefixes else sys.maxsize
    try:
        yield _Engines(launcher, codec, first.context_tokens_max, block_tokens)
    finally:
        await launcher.close()


@contextlib.asynccontextmanager
async def _launcher(
    deployment: Deployment, directory: Path, samples: Sequence[WireSample]
) -> AsyncIterator[LocalLauncher | RayLauncher]:
    common: dict[str, Any] = {
        "device": deployment.device,
        "dtype": deployment.dtype,
        "threads": deployment.threads,
        "block_tokens": deployment.engine.block_tokens,
        "kv_bytes": deployment.kv_cache_bytes,
        "seqs_max": deployment.engine.seqs_max,
        "instances": deployment.instances_total,
        "samples": samples,
        "checks_transfers": deployment.kv_checksums,
    }
    launcher: LocalLauncher | RayLauncher
    with _keep(deployment) as keep:
        try:
            if deployment.launcher == "ray":
                launcher = await RayLauncher.start(_ray_spec(deployment, directory, common))
            else:
                silence_timeout_s = deployment.engine.silence_timeout_s
                weights = weights_spec(deployment)
                spec = LocalSpec(str(directory), silence_timeout_s=silence_timeout_s, weights=weights, **common)
                launcher = await LocalLauncher.start(spec, keep=keep)
        except EngineStartError as error:
            raise StartError(str(error), error.hint or None) from error
        except KeepError as error:
            raise OperatorError(str(error), error.hint or None) from error
        _tell_of_weights(launcher)
        try:
            yield launcher
        finally:
            await launcher.close()


@contextlib.contextmanager
def _keep(deployment: Deployment) -> Iterator[Keep | None]:
    """Where instances are left to the next server, held while this one is theirs."""
    path = deployment.keep.path
    if path is None:
        yield None
        return
    try:
        keep = Keep(Path(path).expanduser(), deployment.keep.timeout_s)
    except InUseError as error:
        raise StartError(str(error), error.hint) from error
    except KeepError as error:
        raise OperatorError(str(error), error.hint or None) from error
    with contextlib.closing(keep):
        yield keep


def _ray_spec(deployment: Deployment, directory: Path, common: dict[str, Any]) -> RaySpec:
    source, ray = deployment.model_source(), deployment.ray
    return RaySpec(
        # The demo model is part of the package, which may lie elsewhere on other nodes.
        directory="" if deployment.model is None else str(directory.resolve()),
        hub_id=source if isinstance(source, str) else "",
        address=ray.address or "",
        cpus=ray.cpus_per_instance,
        gpus=ray.gpus_per_instance,
        strategy=ray.strategy,
        start_timeout_s=ray.start_timeout_s,
        silence_timeout_s=ray.silence_timeout_s,
        instance_silence_s=deployment.engine.silence_timeout_s,
        **common,
    )


def _tell_of_weights(launcher: LocalLauncher | RayLauncher) -> None:
    """Where they came from, if somebody was asked, or left them."""
    loaded = launcher.loaded
    if isinstance(launcher, LocalLauncher) and launcher.inherited:
        pids = ", ".join(map(str, launcher.inherited))
        _tell(f"instances of the server before go on: processes {pids}")
        return
    for failure in loaded.failures:
        log.warning("no weights from a donor: %s", failure)
    if loaded.donor:
        _tell(f"weights from {loaded.donor} by {loaded.origin}, {loaded.load_s:.2f} s")


@contextlib.asynccontextmanager
async def _fleet(
    deployment: Deployment, entrance: Entrance, engines: _Engines
) -> AsyncIterator[tuple[Driver, Gateway]]:
    """Driver and gateway, running: the port answers from here on, /ready says when requests may come."""
    control = ControlPlane(deployment.core_policy(), deployment.fleet(), deployment.limits.requests_max)
    with _watch(deployment, control) as watch:
        driver = Driver(control, engines.launcher, engines.block_tokens, observers=watch.observers)
        async with _gateway(deployment, entrance, engines, driver, control, watch=watch) as gateway:
            yield driver, gateway


class _Watch(NamedTuple):
    """Who looks on: at every event and decision, at what `/metrics` shows, at single requests, at the fleet."""

    observers: Sequence[Observer]
    collectors: Sequence[Collector]
    tracer: Tracer | None
    view: LiveView | None


@contextlib.contextmanager
def _watch(deployment: Deployment, control: ControlPlane) -> Iterator[_Watch]:
    classes, prices = deployment.service_classes(), deployment.prices()
    decisions = Decisions(classes, deployment.attainment_min(), prices, clock=time.monotonic)
    collectors: list[Collector] = [decisions]
    with _journal(deployment, control) as journal, traces.tracing(deployment) as tracing:
        journals = () if journal is None else (journal.observe,)
        if journal is not None:
            collectors.append(JournalLoss(lambda: journal.lost_events))
        lives = () if tracing is None else (tracing.lives.observe,)
        view = None
        if deployment.dashboard:
            view = LiveView(prices, classes, deployment.public_name, wall_s=time.time())
        views = () if view is None else (view.observe,)
        yield _Watch((decisions.observe, *journals, *lives, *views), collectors, tracing, view)


@contextlib.contextmanager
def _journal(deployment: Deployment, control: ControlPlane) -> Iterator[LiveRecorder | None]:
    """What is to see every event, if a journal is to be written."""
    if deployment.journal.path is None:
        yield None
        return
    header = recordings.header(
        deployment.spelled_policy,
        deployment.engine.prefill_tokens_max,
        control,
        deployment.service_classes().values(),
        wall_s=time.time(),
        origin_s=time.monotonic(),
    )
    folder = Path(deployment.journal.path).expanduser()
    with recordings.recording_live(folder, header, int(deployment.journal.size_mib_max * 2**20)) as recorder:
        yield recorder


@contextlib.asynccontextmanager
async def _gateway(
    deployment: Deployment,
    entrance: Entrance,
    engines: _Engines,
    driver: Driver,
    control: ControlPlane,
    *,
    watch: _Watch,
) -> AsyncIterator[Gateway]:
    """The gateway, running, and the driver behind it."""
    limits = deployment.limits
    membership = None
    if deployment.vllm.changes_over_http and isinstance(engines.launcher, AttachedLauncher):
        moves_requests = control.policy.binder is not None
        membership = AttachedFleet(driver, engines.launcher, moves_requests=moves_requests)
    model = ServedModel(deployment.public_name, int(time.time()), engines.context_tokens_max)
    gateway = Gateway(
        driver,
        engines.tokenizer,
        models=[model],
        service_classes=deployment.service_classes(),
        default_class=deployment.default_class,
        host=deployment.host,
        port=deployment.port,
        limits=deployment.gateway_limits(),
        priority_max=limits.priority_max,
        membership=membership,
        keys=entrance.keys,
        tls=entrance.tls,
        admin_address=None if deployment.admin.port is None else (deployment.admin.host, deployment.admin.port),
        collectors=watch.collectors,
        tracer=watch.tracer,
        view=watch.view,
    )
    driver.start()
    try:
        await _listen(gateway, deployment)
        try:
            async with entrance.follow(gateway):
                yield gateway
        finally:
            await gateway.stop()
    finally:
        driver.close()


async def _listen(gateway: Gateway, deployment: Deployment) -> None:
    try:
        await gateway.start()
    except TokenizerError as error:
        raise StartError(str(error)) from error
    except OSError as error:
        where = f"{deployment.host}:{deployment.port}"
        if deployment.admin.port is not None:
            where += f" and {deployment.admin.host}:{deployment.admin.port}"
        raise StartError(f"cannot listen on {where}: {error.strerror}", "choose another with --port N") from error


async def _fleet_ready(driver: Driver, instances: int, patience_s: float) -> int:
    """Wait for all instances, or for those that could be started; returns how many there are.

    Once one is ready, the others are waited for no longer than `patience_s`.

    Raises:
        StartError: there are none, and none will be tried any more.
    """
    await driver.wait_until(lambda: driver.has_given_up() or driver.ready_instances >= min(1, instances))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if math.isinf(patience_s) else patience_s):
            await driver.wait_until(lambda: driver.has_given_up() or driver.ready_instances >= instances)
    if driver.ready_instances < min(1, instances):
        raise StartError("no instance could be started", "the lines above say why each of them failed")
    return driver.ready_instances


async def _fleet_lost(driver: Driver) -> None:
    """Wait until nothing is left that could serve, which a supervisor must hear of.

    Raises:
        StartError: that is the case.
    """
    await driver.wait_until(lambda: driver.has_given_up() and not driver.ready_instances)
    raise StartError("all instances are lost and none can be started", "the lines above say why each of them failed")


def _ready_roles(driver: Driver) -> Counter[str]:
    """How many of each role are ready."""
    return Counter(instance.role for instance in driver.instances() if instance.state == "ready")


def _announce(deployment: Deployment, ready: Counter[str], gateway: Gateway, seconds: float) -> None:
    port, *admin = gateway.ports
    name, url = deployment.public_name, _url(deployment, deployment.host, port)
    count = f"{ready.total()} of {deployment.instances_min}"
    if deployment.is_elastic:
        count = f"{ready.total()} ({deployment.instances_min} to {deployment.instances_total})"
    key = "KEY" if deployment.auth.keys_file else "none"
    bearing = " -H 'Authorization: Bearer KEY'" if deployment.auth.keys_file else ""
    _tell(f"""
{count} instances of {name}{_roles_told(deployment, ready)} are ready after {seconds:.1f} s: {url}/v1

  curl -N {url}/v1/completions -H 'Content-Type: application/json'{bearing} \\
       -d '{{"prompt": "def fibonacci(n):", "max_tokens": 48, "temperature": 0, "stream": true}}'

  python -c "from openai import OpenAI; print(OpenAI(base_url='{url}/v1', api_key='{key}').completions.create(
      model='{name}', prompt='def fibonacci(n):', max_tokens=48, temperature=0).choices[0].text)"
{_dashboard_told(deployment, gateway)}
Ctrl-C stops.
""")
    if admin:
        _tell(f"For admins: {_url(deployment, deployment.admin.host, admin[0])}/metrics\n")


def _url(deployment: Deployment, host: str, port: int) -> str:
    name = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{'https' if deployment.tls.cert_file else 'http'}://{name}:{port}"


def _dashboard_told(deployment: Deployment, gateway: Gateway) -> str:
    """Where it is: with all that shows the fleet."""
    if not deployment.dashboard:
        return ""
    host = deployment.host if deployment.admin.port is None else deployment.admin.host
    return f"\n  {_url(deployment, host, gateway.ports[-1])}/dashboard shows what it does\n"


def _roles_told(deployment: Deployment, ready: Counter[str]) -> str:
    """The roles of the instances, where there is more than one, or may be."""
    if deployment.moving == "keeps":
        return ""
    counts = [f"{ready[role]} {role}" for role in ("prefill", "decode", "mixed") if ready[role]]
    return f" ({', '.join(counts)}{'; roles are planned' if deployment.roles == 'planned' else ''})"


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
