"""What is seen at one instant, as plain data: what the dashboard draws and `hyperflexis top` prints.

Instants are seconds since the fleet began to be watched. None stands for what nobody promised or nothing is known of.
"""

from __future__ import annotations

import msgspec


class Instance(msgspec.Struct, frozen=True):
    """One instance, with the work that it is believed to have."""

    id: int
    role: str
    state: str
    """starting, ready, draining, asleep; or lost or stopped, for a moment."""
    since_s: float
    """When its state began."""
    waiting: int
    """Requests that were sent to it and have no token yet, or lost their KV."""
    running: int
    """Requests that decode."""
    standing: int
    """Requests that go on elsewhere as soon as they are there."""
    blocks: int
    """KV blocks that it has."""
    blocks_used: int
    """Of these, what its requests need; what several of them share is counted for each."""
    load: float
    """Share of the last seconds in which it computed."""
    slack_s: float | None
    """The least time that is left before a promise of a request here breaks; below 0 where one has."""
    tightest: int | None
    """That request."""
    links: int
    """Instances that it can pass KV to, or take KV from."""


class Times(msgspec.Struct, frozen=True):
    """A metric of the requests that ended in the window, and what was promised."""

    target_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None


class ServiceClass(msgspec.Struct, frozen=True):
    """One service class."""

    name: str
    priority: int
    ttft: Times
    tpot: Times
    e2e: Times
    attained: float | None
    """Of the requests that ended or were refused in the window, the share that got all they were promised."""
    ended: int
    """In the window, refused ones among them; those whose clients left are not."""
    attained_total: float | None
    """The same since the beginning."""
    ended_total: int
    refused_total: int
    waiting: int
    running: int


class Queued(msgspec.Struct, frozen=True):
    """A request without a token."""

    request: int
    service_class: str
    instance: int | None
    """Where it waits; None: no instance has it."""
    age_s: float
    slack_s: float | None


class Queue(msgspec.Struct, frozen=True):
    """What waits for a token: the first one, or the next where its KV was lost."""

    held: int
    """At no instance."""
    waiting: int
    """At instances."""
    oldest_s: float | None
    tightest: list[Queued]
    """The few with the least slack."""


class Decision(msgspec.Struct, frozen=True):
    """One decision, or what forced one, in words."""

    number: int
    at_s: float
    kind: str
    """sent, held, refused, moved, broken, fleet or lost."""
    text: str
    request: int | None
    instance: int | None


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The fleet at one instant, in figures that history keeps."""

    at_s: float
    arrivals_per_s: float
    tokens_per_s: float
    waiting: int
    running: int
    awake: int
    asleep: int
    cost_per_hour: float
    attained: list[float | None]
    """By class, in the order of a snapshot's classes; later ones may have more."""


class Cost(msgspec.Struct, frozen=True):
    """What the fleet costs, in whatever currency its prices are."""

    per_hour: float
    so_far: float
    awake: int
    asleep: int
    wanted: int | None
    """How many there are to be, where that was decided."""


class Snapshot(msgspec.Struct, frozen=True):
    """Everything, at one instant."""

    now_s: float
    attained: float | None
    """Of all classes in the window."""
    arrivals_per_s: float
    tokens_per_s: float
    waiting: int
    running: int
    instances: list[Instance]
    links: list[tuple[int, int]]
    """From whom to whom KV may go; none where there are too many to draw."""
    flows: list[tuple[int, int, int]]
    """From whom to whom how many requests went within the last seconds."""
    classes: list[ServiceClass]
    queue: Queue
    decisions: list[Decision]
    """The latest, newest first: those about the fleet and what went wrong are kept longer than others."""
    cost: Cost
    samples: list[Sample]
    """The latest of history."""
    missing: int
    """Events that are not known of, as they could not be written."""
    is_blind: bool = False
    """Nothing newer is known: the fleet cannot be followed any more, for a fault that the log tells."""


class Chapter(msgspec.Struct, frozen=True):
    """One thing that happened, or was decided."""

    at_s: float
    text: str


class RequestStory(msgspec.Struct, frozen=True):
    """What became of a request."""

    request: int
    name: str
    ending: str
    arrived_s: float | None
    chapters: list[Chapter]


class InstanceStory(msgspec.Struct, frozen=True):
    """What happened to an instance, and what it has."""

    instance: int
    chapters: list[Chapter]
    requests: list[Queued]
    """Those that are there now, the tightest first; none where that is not kept."""
