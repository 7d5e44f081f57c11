"""What `simulate` simulates: one file of classes, fleet, profile and workload; its keys, meanings, limits and defaults.

Milliseconds stand here, seconds in the core. Says what was asked for and whether it makes sense; nothing here reads a
trace or runs anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from hyperflexis.cli import fleets, kv_sizes, scenario_file
from hyperflexis.cli.deployment import (
    ClassName,
    ClassSection,
    Line,
    PricesSection,
    Section,
    contradictions,
    late_shares,
    service_class,
)
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.scenario_file import Sources

if TYPE_CHECKING:
    from hyperflexis.core.control import Policy
    from hyperflexis.core.fleet import FleetBounds, Range
    from hyperflexis.core.instance import Role
    from hyperflexis.core.latency import LatencyModel
    from hyperflexis.core.slo import ServiceClass
    from hyperflexis.sim.profiles import Profile
    from hyperflexis.sim.startup import StartupSpec

RATE_MAX = 1_000_000.0
SECONDS_MAX = 10 * 366 * 86_400.0
RANDOM = "random"
YAML_SUFFIXES = (".yaml", ".yml")


class RangeSection(Section):
    """A number of instances that may change."""

    min: int = Field(ge=0, le=10_000)
    """Fewest instances."""
    max: int = Field(ge=1, le=10_000)
    """Most instances."""

    @model_validator(mode="after")
    def _is_a_range(self) -> RangeSection:
        if self.max < self.min:
            raise ValueError(f"should have a max of at least min, {self.min}, not {self.max}")
        return self


def _range(count: RangeSection | int) -> Range:
    """As the core has it."""
    from hyperflexis.core.fleet import Range  # here, so that --help loads nothing of the core

    return Range(count.min, count.max) if isinstance(count, RangeSection) else Range(count, count)


def _count_or_range(value: Any) -> Any:
    if isinstance(value, dict):
        return RangeSection.model_validate(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
        raise ValueError("should be a number of instances from 1 to 10000, or {min: 1, max: 8}")
    return value


Instances = Annotated[Any, BeforeValidator(_count_or_range)]

SOURCES = ("sleeper", "peer", "cache", "disk")
"""Where a start can take what it needs from, the quickest first."""


class StartSection(Section):
    """What a start from one source takes, in seconds, if it is alone."""

    schedule_s: float = Field(default=0.0, ge=0, le=SECONDS_MAX)
    """Until there is a place for it."""
    boot_s: float = Field(default=0.0, ge=0, le=SECONDS_MAX)
    """Process, libraries, device."""
    weights_s: float = Field(default=0.0, ge=0, le=SECONDS_MAX)
    """Reading the weights; those that read the same at once share the way."""
    post_s: float = Field(default=0.0, ge=0, le=SECONDS_MAX)
    """Warm-up, memory, graphs."""


def _startup(value: Any) -> Any:
    if isinstance(value, dict):
        unknown = sorted(set(value) - set(SOURCES))
        if unknown or not value:
            raise ValueError(f"should be seconds, or a table by source: {', '.join(SOURCES)}")
        return {source: StartSection.model_validate(each) for source, each in value.items()}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= SECONDS_MAX:
        raise ValueError("should be seconds from 0, or a table by source such as {peer: {boot_s: 1, weights_s: 2}}")
    return float(value)


Startup = Annotated[Any, BeforeValidator(_startup)]


class FleetSection(Section):
    """The instances that serve, by role, and what is between them."""

    mixed: Instances | None = None
    """Instances that prefill and decode."""
    prefill: Instances | None = None
    """Instances that only prefill; each answer goes on at one that decodes, its KV copied there."""
    decode: Instances | None = None
    """Instances that decode what others prefilled."""
    roles: fleets.Roles = "fixed"
    """fixed: roles stay; planned: hyperflexis changes them as demand does. Other policies have ways of their own."""
    link_gb_s: float = Field(default=40.0, gt=0, le=1_000_000)
    """What each instance can send, and what it can receive, in 10^9 bytes per second."""
    link_latency_ms: float = Field(default=5.0, ge=0, le=60_000)
    """Between a copy's last byte being sent and its being there."""
    startup_s: Startup = 0.0
    """Seconds from the decision to have an instance until it takes requests: a number, or a table by source."""
    asleep_max: int = Field(default=0, ge=0, le=10_000)
    """Most instances that sleep in place of ending."""
    prices: PricesSection = PricesSection()
    """What an instance costs, from its launch to its end."""
    cost_per_hour_max: float | None = Field(default=None, gt=0, le=1_000_000_000)
    """The most that all instances may cost; null sets no limit."""
    loss_per_hour: float = Field(default=0.0, ge=0, le=3600)
    """How often each instance dies, at random, as those do that are lent for less."""

    @property
    def counts(self) -> dict[str, Any]:
        """What there is of each role that has instances: a number or a range."""
        given = {"prefill": self.prefill, "mixed": self.mixed, "decode": self.decode}
        return {role: count for role, count in given.items() if count is not None}

    @property
    def is_elastic(self) -> bool:
        return any(isinstance(count, RangeSection) for count in self.counts.values())

    @property
    def moving(self) -> fleets.Moving:
        """What it asks of its policy."""
        return fleets.moving(self.prefill is not None, self.decode is not None, self.roles)

    def in_order(self) -> tuple[Role, ...]:
        """The roles of the instances in the order of their launch; the fewest, where their number follows demand."""
        return fleets.in_order(*self._fewest())

    def _fewest(self) -> tuple[int, int, int]:
        """Instances that prefill, that do both, that decode."""
        prefill, mixed, decode = (
            each.min if isinstance(each, RangeSection) else each or 0
            for each in (self.prefill, self.mixed, self.decode)
        )
        return prefill, mixed, decode

    def startup(self) -> StartupSpec:
        """What starts take."""
        from hyperflexis.core.instance import StartSource
        from hyperflexis.sim.startup import StartPhases, StartupSpec

        given = self.startup_s
        if not isinstance(given, dict):
            return StartupSpec.constant(given)
        return StartupSpec({StartSource(source): StartPhases(**dict(each)) for source, each in given.items()})

    def bounds(
        self, startup: StartupSpec | None = None, classes: Mapping[str, ClassSection] | None = None
    ) -> FleetBounds | None:
        """Of a fleet whose size follows demand; None of any other. Starts take what it says, or what is given.

        Raises:
            ValueError: the budget does not pay for the fewest instances.
        """
        from hyperflexis.core.fleet import FleetBounds, Prices
        from hyperflexis.core.instance import Role, StartSource

        if not self.is_elastic:
            return None
        startup_s = (startup or self.startup()).seconds()
        sources = [source for source in StartSource if source in startup_s and source is not StartSource.SLEEPER]
        return FleetBounds(
            {Role(role): _range(count) for role, count in self.counts.items()},
            prices=Prices(self.prices.active_per_hour, self.prices.asleep_per_hour),
            cost_per_hour_max=math.inf if self.cost_per_hour_max is None else self.cost_per_hour_max,
            sources=sources,
            startup_s=startup_s,
            asleep_max=self.asleep_max,
            late_shares=late_shares(classes or {}),
        )

    @model_validator(mode="after")
    def _is_elastic_whole(self) -> FleetSection:
        if self.is_elastic and self.roles == "planned" and set(self.counts) != {"mixed"}:
            raise ValueError("can change its size with planned roles if all instances begin as mixed ones")
        return self

    @model_validator(mode="after")
    def _is_whole(self) -> FleetSection:
        has_mixed, has_prefill, has_decode = (each is not None for each in (self.mixed, self.prefill, self.decode))
        if not (has_mixed or has_prefill or has_decode):
            raise ValueError("should be {mixed: 4}, or {prefill: 2, decode: 3}, or all of these")
        if lacks := fleets.lonely(has_prefill, has_mixed, has_decode):
            raise ValueError(f"has {lacks}")
        return self


class BandSection(Section):
    """The class of requests up to some prompt length."""

    up_to: int | None = Field(default=None, ge=1)
    """Longest prompt of the band in tokens; the last band has none and takes the rest."""
    class_name: ClassName = Field(alias="class")
    """Its service class."""


def _ascending(bands: list[BandSection]) -> list[BandSection]:
    *limited, last = bands
    limits = [band.up_to for band in limited]
    known = [limit for limit in limits if limit is not None]
    if last.up_to is not None or len(known) < len(limits) or known != sorted(set(known)):
        raise ValueError("should be bands of growing 'up_to', the last one without it")
    return bands


def _window(bounds: list[float]) -> list[float]:
    if not 0 <= bounds[0] < bounds[1]:
        raise ValueError("should be [start, end] in seconds with 0 <= start < end")
    return bounds


def _format(name: str) -> str:
    from hyperflexis.sim.traces import FORMATS  # here, so that --help loads nothing of the simulator

    if name not in FORMATS:
        raise ValueError(f"should be one of the formats: {', '.join(FORMATS)}")
    return name


def _rotation(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value != RANDOM and not (is_number and 0 <= value <= SECONDS_MAX):
        raise ValueError(f"should be seconds from 0, or {RANDOM}")
    return value


class StreamSection(Section):
    """One stream of requests: a trace, or the part of it that is replayed."""

    trace: Line
    """Trace file: absolute, or relative to the scenario or one of the folders of traces."""
    class_name: ClassName | None = Field(default=None, alias="class")
    """Service class of all its requests; without it, the class that the trace names."""
    class_by_prompt_tokens: Annotated[list[BandSection], AfterValidator(_ascending)] | None = Field(
        default=None, min_length=1
    )
    """Service classes by prompt length, in place of `class`."""
    format: Annotated[str, AfterValidator(_format)] | None = None
    """Format of the file; told from its first line if not given."""
    rate: float = Field(default=1.0, gt=0, le=RATE_MAX)
    """Speed of the replay: 2 compresses time to a half, so that bursts keep their shape."""
    requests_per_s: float | None = Field(default=None, gt=0, le=RATE_MAX)
    """Mean rate to bring the stream to, in place of `rate`."""
    window_s: Annotated[list[float], AfterValidator(_window)] | None = Field(default=None, min_length=2, max_length=2)
    """Part of the trace that is replayed, [start, end] in seconds of its own time."""
    rotate_s: Annotated[Any, BeforeValidator(_rotation)] = 0.0
    """Seconds of the window that are moved to its end; random draws them anew for each seed."""
    repeat: int = Field(default=1, ge=1, le=1_000_000)
    """Times the window is replayed, one after the other."""
    offset_s: float = Field(default=0.0, ge=0, le=SECONDS_MAX)
    """When the stream begins."""
    limit: int | None = Field(default=None, ge=1)
    """Most arrivals that are taken, the first ones."""
    arrivals_per_s: float | None = Field(default=None, gt=0, le=RATE_MAX)
    """Mean arrivals of a trace without arrival times: of requests, of sessions, or of all clients of a rate table."""
    cv: float = Field(default=1.0, ge=0, le=1000)
    """Coefficient of variation of arrivals that are generated; 1 is a Poisson process."""
    clients: list[int] = Field(default_factory=list)
    """Clients of a rate table that are taken; none means all."""
    origin: Line | None = None
    """Wall clock at second 0 of the trace as YYYY-MM-DD HH:MM:SS, to keep traces of one clock in step."""
    context_tokens_max: int | None = Field(default=None, ge=2)
    """Longest prompt and answer together; longer ones are bad rows."""
    think_s_max: float | None = Field(default=None, ge=0, le=SECONDS_MAX)
    """Longer pauses inside a session are shortened to this."""
    hash_tokens: int = Field(default=512, ge=1)
    """Prompt tokens that one hash id of a replay file stands for."""
    spread: bool = True
    """Spread what arrives in one tick of a coarse clock evenly over the tick."""

    @model_validator(mode="after")
    def _has_one_of_each(self) -> StreamSection:
        if self.class_name is not None and self.class_by_prompt_tokens is not None:
            raise ValueError("has 'class' and 'class_by_prompt_tokens', of which one decides")
        if self.requests_per_s is not None and "rate" in self.model_fields_set:
            raise ValueError("has 'rate' and 'requests_per_s', which say the same thing twice")
        return self

    @property
    def classes(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """The classes it uses, each with the path of the key that names it."""
        if self.class_name is not None:
            return ((("class",), self.class_name),)
        bands = self.class_by_prompt_tokens or ()
        return tuple(
            (("class_by_prompt_tokens", str(index), "class"), band.class_name) for index, band in enumerate(bands)
        )


class SimulatedEngineSection(Section):
    """How each simulated instance computes."""

    block_tokens: int = Field(default=16, ge=1, le=1024)
    """Tokens per KV block."""
    seqs_max: int = Field(default=256, ge=1)
    """Requests that one instance computes at a time."""
    prefill_tokens_max: int = Field(default=2048, ge=1)
    """Prompt tokens that may enter one step."""
    kv_token_bytes: int | None = Field(default=None, ge=1, le=2**40)
    """KV of one token, which moves with a request; null takes what is known of the profile, which may say it."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer that requests ask for; what the policy knows of a length before the answer ends."""


def _policy(text: str) -> str:
    from hyperflexis.policies import create  # here, so that --help loads nothing of the core

    create(text, prefill_tokens_max=1024)
    return text


class LatencyScaleSection(Section):
    """How much longer steps really take than the profile says, which the policy has to find out by itself."""

    prefill: float = Field(default=1.0, gt=0, le=100)
    """Factor on the coefficients of prefill."""
    decode: float = Field(default=1.0, gt=0, le=100)
    """Factor on the coefficients of decode."""


class Scenario(Section):
    """Everything `hyperflexis simulate` can be told in its file."""

    classes: dict[ClassName, ClassSection] = Field(default_factory=dict)
    """Service classes by name: the promises and priority that their requests share."""
    fleet: FleetSection
    """Instances by role."""
    profile: Line
    """Step times and KV memory of an instance: a name in the shipped table, or a JSON or YAML file."""
    workload: list[StreamSection] = Field(min_length=1)
    """Streams of requests, all on one clock."""
    policy: Annotated[str, AfterValidator(_policy)] = "hyperflexis"
    """Rules that decide which request goes where and when, with their tuning if any: `name:key=value,key=value`."""
    engine: SimulatedEngineSection = SimulatedEngineSection()
    """How each instance computes."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of everything drawn at random."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Spread of step times around the profile's, as a share of them."""
    latency_scale: LatencyScaleSection = LatencyScaleSection()
    """How much longer steps really take than the profile says."""

    def service_classes(self) -> dict[str, ServiceClass]:
        """The classes as the core knows them, in seconds."""
        return {name: service_class(name, each) for name, each in self.classes.items()}


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A scenario, where its values came from, its text, and what the command line changed in it."""

    scenario: Scenario
    file: FilePath
    sources: Sources
    text: str
    sets: tuple[str, ...] = ()

    def place(self, *path: str) -> str:
        return scenario_file.place(path, self.sources)

    def profile(self) -> Profile:
        """Load the profile that the scenario names; files are looked for beside the scenario.

        Raises:
            OperatorError: there is none of that name, or it is not sound.
        """
        from hyperflexis.sim.profiles import from_fields, load_profile, names

        name = self.scenario.profile
        beside = self.file.parent / name
        try:
            if name in names():
                return load_profile(name)
            if beside.suffix in YAML_SUFFIXES:
                return from_fields(scenario_file.mapping(beside), str(beside))
            return load_profile(str(beside) if beside.is_file() else name)
        except ValueError as error:
            hint = "`hyperflexis profiles` lists the names" if str(error).startswith("no profile") else None
            raise OperatorError(f"profile in {self.place('profile')}: {error}", hint) from None

    def truth(self, latency: LatencyModel) -> LatencyModel | None:
        """How long steps really take, where that differs from what the profile says."""
        scale = self.scenario.latency_scale
        if scale.prefill == scale.decode == 1:
            return None
        return replace(
            latency,
            prefill_base_s=latency.prefill_base_s * scale.prefill,
            prefill_token_s=latency.prefill_token_s * scale.prefill,
            prefill_pair_s=latency.prefill_pair_s * scale.prefill,
            decode_base_s=latency.decode_base_s * scale.decode,
            decode_seq_s=latency.decode_seq_s * scale.decode,
            context_token_s=latency.context_token_s * scale.decode,
        )

    @property
    def instances(self) -> int:
        """How many instances there are, of all roles; the fewest, where that follows demand."""
        return len(self.roles())

    @property
    def is_elastic(self) -> bool:
        """Whether the number of instances follows demand."""
        return self.scenario.fleet.is_elastic

    def roles(self) -> tuple[Role, ...]:
        """The roles of the instances in the order of their launch."""
        return self.scenario.fleet.in_order()

    @property
    def moving(self) -> fleets.Moving:
        """What the fleet asks of its policy."""
        return self.scenario.fleet.moving

    def policy(self, text: str) -> Policy:
        """A fresh policy, its tuning with its name if any, that can serve this fleet.

        Raises:
            ValueError: there is none of that name, or it cannot.
        """
        tokens = self.scenario.engine.prefill_tokens_max
        return fleets.create(text, tokens, self.moving, is_elastic=self.is_elastic)

    def startup(self) -> StartupSpec:
        """What starts take."""
        return self.scenario.fleet.startup()

    def bounds(self) -> FleetBounds | None:
        """Of a fleet whose size follows demand; None of any other.

        Raises:
            OperatorError: the budget does not pay for the fewest instances.
        """
        try:
            return self.scenario.fleet.bounds(classes=self.scenario.classes)
        except ValueError as error:
            raise OperatorError(f"fleet in {self.place('fleet')}: {error}") from None

    def kv_token_bytes(self, *, is_needed: bool) -> int:
        """What moving the KV of a token moves; 0 where that is not known, and not needed.

        Raises:
            OperatorError: it is needed and not known.
        """
        given, name = self.scenario.engine.kv_token_bytes, self.scenario.profile
        known = given if given is not None else kv_sizes.token_bytes(name) or self.profile().kv_token_bytes
        if known is None and is_needed:
            raise OperatorError(
                f"'engine.kv_token_bytes' is missing in {self.place('engine')}: requests move with their KV, whose "
                f"size {name!r} does not say",
                "2 x layers x KV heads x head size x bytes of a number; 327680 for Llama 3 70B in bfloat16",
            )
        return known or 0


def load(file: FilePath, sets: Sequence[str] = ()) -> ScenarioFile:
    """Read a scenario and check all that can be checked without reading other files.

    Raises:
        OperatorError: it cannot be read, or something in it is wrong; the message says where.
    """
    values, sources, text = scenario_file.read(file, sets)
    try:
        scenario = Scenario.model_validate(values)
    except ValidationError as error:
        raise scenario_file.complain(error, Scenario, sources) from None
    loaded = ScenarioFile(scenario, file, sources, text, tuple(sets))
    if found := [*contradictions(scenario.classes, loaded.place), *_undeclared(loaded)]:
        raise OperatorError("\n".join(found))
    return loaded


def _undeclared(loaded: ScenarioFile) -> list[str]:
    known: Mapping[str, ClassSection] = loaded.scenario.classes
    return [
        f"class '{name}' in {loaded.place('workload', str(index), *path)} has no entry in classes"
        + (f"; there are: {', '.join(known)}" if known else "")
        for index, stream in enumerate(loaded.scenario.workload)
        for path, name in stream.classes
        if name not in known
    ]
