"""What `serve` serves: one configuration, its keys, their meanings, limits and defaults.

The text under a key is its documentation: `--help` and docs/configuration.md are made from it. Milliseconds stand here,
seconds in the core; `service_classes` is the border. Knows nothing of files, flags or the environment (`sources` does),
and nothing of how the parts are built from it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from hyperflexis.cli import fleets
from hyperflexis.cli.errors import OperatorError

if TYPE_CHECKING:
    from hyperflexis.core.control import Policy as CorePolicy
    from hyperflexis.core.fleet import FleetBounds, Prices, Range
    from hyperflexis.core.instance import Role
    from hyperflexis.core.slo import ServiceClass
    from hyperflexis.gateway.limits import Limits

DEFAULT_CLASS = "default"
DEMO_NAME = "demo"
INSTANCES_DEFAULT, INSTANCES_MAX = 2, 1024
PRIORITY_MIN, PRIORITY_MAX = -(2**31), 2**31 - 1
"""An int32, as in the priorities of other gateways."""
ATTEMPTS_MAX = 2**31
"""To attach servers of others: it is never given up."""
MS_MIN, MS_MAX = 0.001, 86_400_000.0
"""A microsecond and a day: what lies outside is a slip of the unit."""


class Section(BaseModel):
    """A mapping of known keys. Nothing is coerced: `instances: yes` is a mistake, not 1."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class EngineSection(Section):
    """How each instance computes."""

    block_tokens: int = Field(default=16, ge=1, le=1024)
    """Tokens per KV block."""
    kv_cache_gib: float | None = Field(default=None, gt=0, le=1_000_000)
    """KV memory of one instance in GiB; null sizes it from what the device has free."""
    seqs_max: int = Field(default=256, ge=1)
    """Requests that one instance computes at a time."""
    prefill_tokens_max: int = Field(default=2048, ge=1)
    """Prompt tokens that may enter one step."""
    step_ms_max: float | None = Field(default=None, ge=1, le=MS_MAX)
    """Longest that a step should take that holds prompt tokens, as predicted; null: as long as promises allow."""
    silence_timeout_s: float = Field(default=30.0, ge=1, le=86_400)
    """Seconds without a word from one of our instances after which it is lost; its longest step is shorter."""
    profile: Line | None = None
    """File that `hyperflexis profile` wrote, to start instances from; null lets the first one measure itself."""


def server_url(text: str) -> str:
    """The address of a server, without what all of them have behind it.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("should be the address of a server, such as http://10.0.0.2:8000")
    return text.rstrip("/").removesuffix("/v1")


def _collector(text: str) -> str:
    try:
        return server_url(text.rstrip("/").removesuffix("/v1/traces"))
    except ValueError:
        raise ValueError("should be the address of a collector, such as http://127.0.0.1:4318") from None


def _addresses(text: str) -> str:
    for each in text.split(","):
        host, _, port = each.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("should be HOST:PORT, or several with commas between")
    return text


def _address(text: str) -> str:
    if "," in text:
        raise ValueError("should be one HOST:PORT")
    return _addresses(text)


class WeightsSection(Section):
    """Servers elsewhere that start from each other's weights in place of the disk's."""

    donors: Annotated[str, AfterValidator(_addresses)] | None = None
    """HOST:PORT of servers that lend these weights, with commas between; the disk comes after them."""
    lend_on: Annotated[str, AfterValidator(_address)] | None = None
    """HOST:PORT on which this server lends its weights to others; null lends none."""
    token_file: str | None = None
    """File with a secret that all these servers share: who knows it may take the weights."""
    lend_gb_per_s: float | None = Field(default=None, gt=0, le=1_000_000)
    """The most that is sent to all of them together, GB per second; null sets no limit."""


class PricesSection(Section):
    """What an instance costs, from its launch to its end."""

    active_per_hour: float = Field(default=1.0, ge=0, le=1_000_000)
    """While it starts, serves or drains, in any currency."""
    asleep_per_hour: float = Field(default=0.25, ge=0, le=1_000_000)
    """While it sleeps."""


class ScalingSection(Section):
    """How many instances there are, where that follows demand."""

    min: int = Field(default=1, ge=0, le=INSTANCES_MAX)
    """Fewest instances; with 0 the first request waits for one to start."""
    max: int | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Most instances; null keeps as many as `instances` says."""
    prefill_max: int | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Most instances that only prefill, `prefill` being the fewest; null keeps as many."""
    decode_max: int | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Most instances that only decode, `decode` being the fewest; null keeps as many."""
    asleep_max: int = Field(default=0, ge=0, le=INSTANCES_MAX)
    """Most that sleep in place of ending: they hold no KV, and take work again within milliseconds."""
    prices: PricesSection = PricesSection()
    """What an instance costs, from its launch to its end."""
    cost_per_hour_max: float | None = Field(default=None, gt=0, le=1_000_000_000)
    """The most that all instances may cost; null sets no limit."""
    start_timeout_s: float = Field(default=600.0, ge=1, le=86_400)
    """A start that takes longer is given up, and another one tried."""
    dry_run: bool = False
    """Whether changes of size are only told, with their reasons, and nothing is done."""

    @property
    def is_elastic(self) -> bool:
        return self.max is not None or self.is_apart

    @property
    def is_apart(self) -> bool:
        """Whether instances that prefill or that decode are as many as demand asks for."""
        return self.prefill_max is not None or self.decode_max is not None


class JournalSection(Section):
    """Where what happens and what is decided is written down, for `explain` and `replay`."""

    path: Line | None = None
    """Folder of the journal: every event and decision, without prompts and answers; null writes none."""
    size_mib_max: float = Field(default=1024.0, ge=1, le=1_000_000_000)
    """The most that all its parts may take, in MiB; beyond it the oldest go."""


class KeepSection(Section):
    """Whether instances outlive this server, for the next one to go on with them."""

    path: Line | None = None
    """Folder, of this user alone, in which the next server finds the instances that this one leaves; null: none."""
    timeout_s: float = Field(default=60.0, ge=0.1, le=86_400)
    """Seconds that they wait for it; then they end."""


class AuthSection(Section):
    """Who may ask, and for what."""

    keys_file: Line | None = None
    """YAML file of API keys (docs/security.md), read anew when it changes; null asks for none."""
    serves_anyone: bool = False
    """Whether, without API keys, an address that other machines reach may be listened on all the same."""
    per_tenant_max: int | None = Field(default=1000, ge=1)
    """Requests that one tenant may have waiting and running, where the file of keys says nothing else; null: any."""


class AdminSection(Section):
    """Where the routes are that show or change the fleet: /metrics, /dashboard and /instances."""

    host: Line = "127.0.0.1"
    """Address to listen on for them, if they have a port of their own."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """Port of their own, 0 takes a free one; null: they are beside all others, on `port`."""


class TlsSection(Section):
    """Encryption of what clients and admins send and get."""

    cert_file: Line | None = None
    """PEM file of the certificate and those above it, read anew when it changes; null: plain HTTP."""
    key_file: Line | None = None
    """PEM file of its private key, without a password."""
    client_ca_file: Line | None = None
    """PEM file of the authorities whose certificates clients have to show; null asks for none."""


class TracingSection(Section):
    """Where what happens to single requests is told, for OpenTelemetry."""

    endpoint: Annotated[str, AfterValidator(_collector)] | None = None
    """Collector of traces (OTLP over HTTP), as http://127.0.0.1:4318; null: OTEL_EXPORTER_OTLP_ENDPOINT, if set."""
    sample_share: float = Field(default=1.0, ge=0, le=1)
    """Of the requests whose clients do not say whether they are traced, the share that is."""


class LimitsSection(Section):
    """What one client, or all of them together, may take."""

    connections_max: int = Field(default=10_000, ge=1)
    """Connections to each port, at most what open files allow; those make room that have waited longest to ask."""
    head_timeout_s: float = Field(default=10.0, ge=0.1, le=86_400)
    """Seconds that a request's head may take."""
    body_timeout_s: float = Field(default=60.0, ge=0.1, le=86_400)
    """Seconds that a request's body may take."""
    idle_timeout_s: float = Field(default=75.0, ge=0.1, le=86_400)
    """Seconds between two requests on a connection."""
    body_mib: float = Field(default=16.0, ge=0.001, le=1_000_000)
    """Largest request body in MiB; above it, 413."""
    stream_buffer_kib: int = Field(default=1024, ge=1)
    """Unsent output in KiB after which a stream whose reader stalls is cancelled."""
    requests_max: int = Field(default=10_000, ge=1)
    """Requests that may be waiting and running together; above it, 429 for the least important without a token."""
    priority_max: int = Field(default=100, ge=0, le=PRIORITY_MAX)
    """Highest priority that a client can ask for by itself; higher wishes are lowered to it."""


class ClassSection(Section):
    """The promises and priority that the requests of one service class share."""

    ttft_ms: float | None = Field(default=None, ge=MS_MIN, le=MS_MAX)
    """Promised time to the first token, milliseconds; null promises nothing."""
    tpot_ms: float | None = Field(default=None, ge=MS_MIN, le=MS_MAX)
    """Promised mean time per token after the first, milliseconds; null promises nothing."""
    e2e_ms: float | None = Field(default=None, ge=MS_MIN, le=MS_MAX)
    """Promised time to the last token, milliseconds; null promises nothing."""
    priority: int = Field(default=0, ge=PRIORITY_MIN, le=PRIORITY_MAX)
    """Higher is more important: where not all promises can be kept, those of higher priority are."""
    refuse_late: bool = False
    """Whether what could not be kept is refused at once (429, with Retry-After) instead of served late."""
    attainment_min: float = Field(default=0.99, gt=0, lt=1)
    """Share of its requests whose promises are to be kept; sizes the fleet. The rest is its error budget."""


def late_shares(classes: Mapping[str, ClassSection]) -> dict[str, float]:
    """What share of each class's work may be late, of those of which it was said; the policy knows of the others."""
    said = {name: section for name, section in classes.items() if "attainment_min" in section.model_fields_set}
    return {name: 1.0 - section.attainment_min for name, section in said.items()}


class RaySection(Section):
    """Where instances run, and what they take there, with launcher ray."""

    address: HeadAddress | None = None
    """Head of the Ray cluster, HOST:PORT; null takes the cluster that this machine belongs to."""
    cpus_per_instance: float = Field(default=1.0, ge=0, le=1024)
    """CPUs that Ray sets aside for each instance."""
    gpus_per_instance: float | None = Field(default=None, ge=0, le=1)
    """GPUs, or a share of one, that Ray sets aside for each instance; null takes one if the cluster has any."""
    strategy: Literal["auto", "pack", "spread"] = "auto"
    """pack: on few nodes; spread: on many; auto: those that prefill with those that decode, mixed ones on many."""
    start_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    """Seconds from asking for an instance until it is ready, waiting for a node with room included."""
    silence_timeout_s: float = Field(default=10.0, ge=1, le=3600)
    """Seconds without an answer after which a node counts as lost."""


class AttachedSection(Section):
    """One vLLM server that runs already."""

    url: Annotated[str, AfterValidator(server_url)]
    """Where it answers, such as http://10.0.0.2:8000."""
    role: Literal["prefill", "decode", "mixed"] = "mixed"
    """What it is to do."""
    model: Line | None = None
    """Name by which it serves the model; null takes the first that it names."""
    kv_tokens: int | None = Field(default=None, ge=1)
    """Tokens that its KV cache holds, where it does not tell."""


def _attached(given: object) -> object:
    """A URL alone stands for a server with nothing else to say; one server for a list of one."""
    listed = given if isinstance(given, list) else [given]
    return [{"url": each} if isinstance(each, str) else each for each in listed]


class VllmSection(Section):
    """vLLM servers, those that are attached and those that are started here."""

    passes_kv: bool = False
    """Whether they were started with a connector (NixlConnector) by which they pass KV to each other."""
    kv_lease_s: float = Field(default=30.0, gt=0, le=86_400)
    """How long they keep the KV of a prompt for each other, their kv_lease_duration; later nothing is fetched."""
    api_key_file: str | None = None
    """File with the key that they ask for (--api-key)."""
    health_ms: float = Field(default=1000.0, ge=1, le=MS_MAX)
    """Between two looks at whether each of them lives."""
    metrics_ms: float = Field(default=100.0, ge=1, le=MS_MAX)
    """Between two looks at the metrics of each, while it has work; ten times as much while it has none."""
    silence_timeout_s: float = Field(default=10.0, ge=0.1, le=3600)
    """Seconds without a byte from a server after which it is lost; a stalled stream goes on elsewhere after 3 times."""
    changes_over_http: bool = False
    """Whether whoever reaches our port may attach servers (POST /instances) and detach them (DELETE /instances/ID)."""
    command: Line = "vllm serve"
    """What starts one, with launcher vllm; model and port are added to it."""
    args: str = ""
    """Further words for that command, quoted as in a shell."""
    gpus_per_instance: int = Field(default=1, ge=0, le=64)
    """GPUs of each that is started here, its tensor parallel size; 0 sets neither."""
    first_port: int = Field(default=8100, ge=1, le=65535)
    """Port of the first that is started here; the others follow it."""


def _class_name(name: str) -> str:
    # Names travel in headers, metric labels and dotted paths, so they hold nothing that those would have to quote.
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError("a class name is 1 to 64 letters, digits, '-' or '_'")
    return name


def _one_line(text: str) -> str:
    if not text.isprintable() or text.strip() != text or not text:
        raise ValueError("should be one line of printable text")
    return text


def _device(name: str) -> str:
    if not re.fullmatch(r"[a-z]+(:[0-9]+)?", name):
        raise ValueError("should be a device such as auto, cpu, cuda or cuda:1")
    return name


def _head_address(text: str) -> str:
    if not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", text):
        raise ValueError("should be HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
    return text


def _policy(name: str) -> str:
    from hyperflexis.policies import POLICIES  # here, so that --help loads nothing of the core

    if name not in POLICIES:
        raise ValueError(f"should be one of the policies: {', '.join(sorted(POLICIES))}")
    return name


ClassName = Annotated[str, AfterValidator(_class_name)]
Line = Annotated[str, AfterValidator(_one_line)]
Device = Annotated[str, AfterValidator(_device)]
HeadAddress = Annotated[str, AfterValidator(_head_address)]
Policy = Annotated[str, AfterValidator(_policy)]


class Deployment(Section):
    """Everything `hyperflexis serve` can be told."""

    model: Line | None = None
    """Model directory or Hugging Face id; null serves the demo model that comes with the package."""
    served_name: Line | None = None
    """Name that clients ask for; null takes the model's own."""
    instances: int | None = Field(default=None, ge=1, le=INSTANCES_MAX)
    """Engine processes; null takes prefill + decode, or 2. They share one copy of the weights in memory."""
    prefill: int = Field(default=0, ge=0, le=INSTANCES_MAX)
    """Of the instances, those that only prefill; each answer goes on at one that decodes, its KV copied there."""
    decode: int = Field(default=0, ge=0, le=INSTANCES_MAX)
    """Of the instances, those that decode what others prefilled. Those left over are mixed and do both."""
    roles: fleets.Roles = "fixed"
    """fixed: roles stay; planned: hyperflexis changes them as demand does. Other policies have ways of their own."""
    kv_checksums: bool = False
    """Whether KV that was copied between instances is compared with the original, which costs time."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 or any other torch device."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and KV; auto takes the model's own where the device can."""
    threads_per_instance: int | None = Field(default=None, ge=1)
    """CPU threads of each instance; null shares the cores out evenly, with launcher ray it takes cpus_per_instance."""
    host: Line = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    policy: Policy = "hyperflexis"
    """Rules that decide which request goes where and when: hyperflexis, or another that docs/policies.md names."""
    launcher: Literal["local", "ray", "vllm"] = "local"
    """What instances are: local, engines on this machine; ray, on the nodes of a cluster; vllm, `vllm serve` here."""
    attach: Annotated[list[AttachedSection], BeforeValidator(_attached)] = Field(default_factory=list)
    """vLLM servers that run already, to be the instances: URLs, or mappings of url, role, model, kv_tokens."""
    vllm: VllmSection = VllmSection()
    """vLLM servers, those that are attached and those that are started here."""
    ray: RaySection = RaySection()
    """Where instances run, and what they take there, with launcher ray."""
    engine: EngineSection = EngineSection()
    """How each instance computes."""
    scaling: ScalingSection = ScalingSection()
    """How many instances there are, where that follows demand."""
    weights: WeightsSection = WeightsSection()
    """Servers elsewhere that start from each other's weights in place of the disk's."""
    keep: KeepSection = KeepSection()
    """Whether instances outlive this server, for the next one to go on with them."""
    auth: AuthSection = AuthSection()
    """Who may ask, and for what."""
    admin: AdminSection = AdminSection()
    """Where the routes are that show or change the fleet: /metrics, /dashboard and /instances."""
    tls: TlsSection = TlsSection()
    """Encryption of what clients and admins send and get."""
    limits: LimitsSection = LimitsSection()
    """What one client, or all of them together, may take."""
    journal: JournalSection = JournalSection()
    """Where what happens and what is decided is written down, for `explain` and `replay`."""
    tracing: TracingSection = TracingSection()
    """Where what happens to single requests is told, for OpenTelemetry."""
    dashboard: bool = True
    """Whether /dashboard shows the fleet, its requests and what was decided: to admins where there are API keys."""
    classes: dict[ClassName, ClassSection] = Field(default_factory=dict)
    """Service classes by name: the promises and priority that their requests share."""
    default_class: str = DEFAULT_CLASS
    """Class of the requests that name none."""
    drain_timeout_s: float = Field(default=30.0, ge=0, le=86_400)
    """Seconds that running requests get to finish after a signal to stop."""

    @field_validator("default_class")
    @classmethod
    def _names_a_class(cls, name: str, info: ValidationInfo) -> str:
        known = {DEFAULT_CLASS, *info.data.get("classes", {name: None})}
        if name not in known:
            raise ValueError(f"should be one of the classes: {', '.join(sorted(known))}")
        return name

    @property
    def public_name(self) -> str:
        """The model's name as clients ask for it."""
        if self.served_name is not None:
            return self.served_name
        if self.model is None:
            return DEMO_NAME
        path = Path(self.model).expanduser()
        return path.resolve().name if path.is_dir() else self.model

    @property
    def threads(self) -> int:
        """CPU threads of each instance."""
        is_ray = self.launcher == "ray"
        share = int(self.ray.cpus_per_instance) if is_ray else _cores() // self.instances_total
        return self.threads_per_instance or max(1, share)

    @property
    def instances_total(self) -> int:
        """How many there are to be, of all roles; the most, where that follows demand."""
        if self.attach:
            return len(self.attach)
        if self.scaling.is_apart:
            return (self.scaling.prefill_max or self.prefill) + self.mixed + (self.scaling.decode_max or self.decode)
        return self.scaling.max or self._counted

    @property
    def _counted(self) -> int:
        return self.instances or self.prefill + self.decode or (0 if self.scaling.is_apart else INSTANCES_DEFAULT)

    @property
    def instances_min(self) -> int:
        """How many there are at first."""
        if self.scaling.is_apart:
            return self._counted
        return self.scaling.min if self.is_elastic else self.instances_total

    @property
    def is_elastic(self) -> bool:
        """Whether the number of instances follows demand."""
        return self.scaling.is_elastic

    @property
    def mixed(self) -> int:
        """Instances that both prefill and decode."""
        total = self._counted if self.scaling.is_apart else self.instances_total
        return total - self.prefills - self.decodes

    @property
    def prefills(self) -> int:
        """Instances that only prefill."""
        return self.prefill + sum(each.role == "prefill" for each in self.attach)

    @property
    def decodes(self) -> int:
        """Instances that only decode."""
        return self.decode + sum(each.role == "decode" for each in self.attach)

    @property
    def moving(self) -> fleets.Moving:
        """What the fleet asks of its policy."""
        return fleets.moving(self.prefills or self.scaling.is_apart, self.decodes, self.roles)

    def fleet(self) -> FleetBounds:
        """The instances as the core knows them."""
        # Here, so that --help loads nothing of the core.
        from hyperflexis.core.fleet import FleetBounds
        from hyperflexis.core.instance import StartSource

        given = self.scaling
        # All instances of a machine share one copy of the weights; other machines get it from those that have it.
        shared = {"local": (StartSource.CACHE,), "vllm": (StartSource.DISK,)}
        sources = shared.get(self.launcher, (StartSource.PEER, StartSource.DISK))
        if not self.is_elastic:
            fixed = FleetBounds.fixed(
                self.instances_total,
                fleets.in_order(self.prefills, self.mixed, self.decodes),
                # A server that somebody else starts is waited for as long as that takes.
                start_timeout_s=math.inf if self.attach else given.start_timeout_s,
                launch_attempts_max=ATTEMPTS_MAX if self.attach else 5,
            )
            # Of no use to it, but to whoever replays its journal as of a fleet that changes its size.
            return replace(fixed, late_shares=late_shares(self.classes))
        return FleetBounds(
            self._ranges(),
            prices=self.prices(),
            cost_per_hour_max=math.inf if given.cost_per_hour_max is None else given.cost_per_hour_max,
            sources=sources,
            startup_s={
                StartSource.SLEEPER: 0.05,
                StartSource.CACHE: 0.5,
                StartSource.PEER: 5.0,
                StartSource.DISK: 60.0 if self.launcher == "vllm" else 20.0,
            },
            asleep_max=given.asleep_max,
            start_timeout_s=given.start_timeout_s,
            is_dry=given.dry_run,
            late_shares=late_shares(self.classes),
        )

    def prices(self) -> Prices:
        """What instances cost, whether or not their number follows demand."""
        from hyperflexis.core.fleet import Prices  # here, so that --help loads nothing of the core

        given = self.scaling.prices
        return Prices(given.active_per_hour, given.asleep_per_hour)

    def _ranges(self) -> dict[Role, Range]:
        """By role, where the number of instances follows demand."""
        from hyperflexis.core.fleet import Range
        from hyperflexis.core.instance import Role

        given = self.scaling
        if not given.is_apart:
            return {Role.MIXED: Range(given.min, self.instances_total)}
        bounds = {
            Role.PREFILL: (self.prefill, given.prefill_max or self.prefill),
            Role.MIXED: (self.mixed, self.mixed),
            Role.DECODE: (self.decode, given.decode_max or self.decode),
        }
        return {role: Range(*pair) for role, pair in bounds.items() if pair[1]}

    def core_policy(self) -> CorePolicy:
        """A fresh policy, able to serve this fleet."""
        made = fleets.create(self.policy, self.engine.prefill_tokens_max, self.moving, is_elastic=self.is_elastic)
        step_s_max = _seconds(self.engine.step_ms_max)
        if step_s_max is None:
            return made
        role_rules = {role: replace(rules, step_s_max=step_s_max) for role, rules in made.role_rules.items()}
        return replace(made, rules=replace(made.rules, step_s_max=step_s_max), role_rules=role_rules)

    @property
    def spelled_policy(self) -> str:
        """Its name with all the tuning that the fleet gives it."""
        return fleets.spelled(self.policy, self.moving, is_elastic=self.is_elastic)

    @property
    def kv_cache_bytes(self) -> int | None:
        gib = self.engine.kv_cache_gib
        return None if gib is None else int(gib * 2**30)

    def model_source(self) -> Path | str:
        """Say where the weights are: a directory that exists, or a hub id.

        Raises:
            OperatorError: it is written as a path, and there is no such directory.
        """
        if self.model is None:
            from hyperflexis.runtime.checkpoint import (
                demo_directory,
            )  # here, so that --help loads nothing of the runtime

            return demo_directory()
        path = Path(self.model).expanduser()
        if path.is_dir():
            return path
        if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", self.model):
            return self.model
        raise OperatorError(
            f"no model directory {self.model!r}", hint="give a directory, or a Hugging Face id such as 'owner/name'"
        )

    def service_classes(self) -> dict[str, ServiceClass]:
        """The classes as the core knows them, in seconds. "default" is always among them."""
        return {name: service_class(name, section) for name, section in self._named_classes.items()}

    def attainment_min(self) -> dict[str, float]:
        """Of each class, the share of its requests whose promises are to be kept."""
        return {name: section.attainment_min for name, section in self._named_classes.items()}

    @property
    def _named_classes(self) -> dict[str, ClassSection]:
        return {DEFAULT_CLASS: ClassSection(), **self.classes}

    def gateway_limits(self) -> Limits:
        """The gateway's limits, those that are configured in its own units."""
        from hyperflexis.gateway.limits import Limits  # here, so that --help loads nothing of the gateway

        return Limits(
            connections_max=self.limits.connections_max,
            head_s=self.limits.head_timeout_s,
            body_s=self.limits.body_timeout_s,
            idle_s=self.limits.idle_timeout_s,
            body_bytes_max=int(self.limits.body_mib * 2**20),
            stream_backlog_bytes_max=self.limits.stream_buffer_kib * 2**10,
        )


def contradictions(classes: Mapping[str, ClassSection], place: Callable[..., str]) -> list[str]:
    """One sentence for each promise that could not be kept without breaking another; `place` says where a key is."""
    found = []
    for name, promised in classes.items():
        for shorter in ("ttft_ms", "tpot_ms"):
            target = getattr(promised, shorter)
            if target is not None and promised.e2e_ms is not None and target > promised.e2e_ms:
                found.append(
                    f"class '{name}' in {place('classes', name, 'e2e_ms')} contradicts itself: e2e_ms "
                    f"{promised.e2e_ms:g} is shorter than {shorter} {target:g}"
                )
    return found


def fleet_contradictions(deployment: Deployment, place: Callable[..., str]) -> list[str]:
    """One sentence for each thing that a fleet of these instances lacks; `place` says where a key is."""
    given, found = deployment, _scaling_contradictions(deployment, place) + _keep_contradictions(deployment, place)
    if given.attach:
        found += _attach_contradictions(deployment, place)
    elif given.mixed < 0:
        parts = " and ".join(f"{name} {count}" for name in ("prefill", "decode") if (count := getattr(given, name)))
        found.append(f"instances in {place('instances')}: {given.instances} are fewer than {parts}")
    prefills, decodes = given.scaling.prefill_max or given.prefills, given.scaling.decode_max or given.decodes
    if given.mixed >= 0 and (lacks := fleets.lonely(prefills, given.mixed, decodes)):
        key = "attach" if given.attach else "prefill" if prefills else "decode"
        found.append(f"{key} in {place(key)}: a fleet of {lacks}")
    if given.moving != "keeps" or given.is_elastic:
        try:
            given.core_policy()
        except ValueError as error:
            found.append(f"policy in {place('policy')}: {error}")
    return found


def _attach_contradictions(deployment: Deployment, place: Callable[..., str]) -> list[str]:
    given = deployment
    found = [
        f"{key} in {place(key)}: the instances are the servers of attach, with the role that stands beside each"
        for key in ("instances", "prefill", "decode")
        if getattr(given, key)
    ]
    if given.launcher != "local":
        found.append(f"launcher in {place('launcher')}: servers of attach run already; leave one of the two out")
    found += [
        f"scaling.{key} in {place('scaling', key)}: there are as many instances as servers in attach"
        for key in ("max", "prefill_max", "decode_max")
        if getattr(given.scaling, key) is not None
    ]
    urls = [each.url for each in given.attach]
    found += [
        f"attach in {place('attach')}: {url} stands there more than once"
        for url in dict.fromkeys(urls)
        if urls.count(url) > 1
    ]
    return found


def _keep_contradictions(deployment: Deployment, place: Callable[..., str]) -> list[str]:
    given = deployment
    where = f"keep.path in {place('keep', 'path')}"
    if given.keep.path is None:
        return []
    if given.attach:
        return [f"{where}: servers of attach are found again by their addresses; leave it out"]
    if given.launcher != "local":
        return [f"{where}: only instances of launcher local can be kept, not those of {given.launcher}"]
    return []


def _scaling_contradictions(deployment: Deployment, place: Callable[..., str]) -> list[str]:
    given, found = deployment.scaling, []
    if not given.is_elastic:
        return [f"scaling.dry_run in {place('scaling', 'dry_run')}: needs scaling.max"] if given.dry_run else []
    if given.is_apart:
        found += _apart_contradictions(deployment, place)
    else:
        found += _together_contradictions(deployment, place)
    least = deployment.instances_min
    if given.cost_per_hour_max is not None and least * given.prices.active_per_hour > given.cost_per_hour_max:
        what = "the fewest instances" if given.is_apart else "scaling.min"
        found.append(
            f"scaling.cost_per_hour_max in {place('scaling', 'cost_per_hour_max')}: {given.cost_per_hour_max:g} does "
            f"not pay for {what}, {least} at {given.prices.active_per_hour:g}"
        )
    return found


def _together_contradictions(deployment: Deployment, place: Callable[..., str]) -> list[str]:
    given, found = deployment.scaling, []
    if given.max is not None and given.max < given.min:
        found.append(f"scaling.max in {place('scaling', 'max')}: {given.max} is less than scaling.min, {given.min}")
    found += [
        f"{key} in {place(key)}: the number of instances follows scaling.min and scaling.max"
        for key in ("instances", "prefill", "decode")
        if getattr(deployment, key)
    ]
    return found


def _apart_contradictions(deployment: Deployment, place: Callable[..., str]) -> list[str]:
    given, found = deployment.scaling, []
    if given.max is not None:
        found.append(
            f"scaling.max in {place('scaling', 'max')}: it is about mixed instances; leave it out beside "
            "scaling.prefill_max and scaling.decode_max"
        )
    if given.min != ScalingSection().min:
        found.append(
            f"scaling.min in {place('scaling', 'min')}: it is about mixed instances; beside scaling.prefill_max and "
            "scaling.decode_max, prefill and decode say the fewest"
        )
    if deployment.roles == "planned":
        found.append(
            f"roles in {place('roles')}: planned roles would change what scaling.prefill_max and scaling.decode_max "
            "count; let mixed instances follow demand (scaling.max)"
        )
    for role in ("prefill", "decode"):
        most, least = getattr(given, f"{role}_max"), getattr(deployment, role)
        if most is not None and most < least:
            found.append(
                f"scaling.{role}_max in {place('scaling', f'{role}_max')}: {most} is less than {role}, {least}, which "
                "says how many there are at least"
            )
    return found


def service_class(name: str, section: ClassSection) -> ServiceClass:
    """A class as the core knows it, in seconds."""
    from hyperflexis.core.slo import ServiceClass, Slo  # here, so that --help loads nothing of the core

    slo = Slo(_seconds(section.ttft_ms), _seconds(section.tpot_ms), _seconds(section.e2e_ms))
    return ServiceClass(name, slo, section.priority, section.refuse_late)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _cores() -> int:
    """Cores this process may use; fewer than the machine has under a cpuset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
