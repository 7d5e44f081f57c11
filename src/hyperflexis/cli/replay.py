"""`hyperflexis replay`: decides a journal's events again and compares; or asks what would have been otherwise.

Without more, every command of the journal must come about again, to the last bit. With a policy or a fleet, what was
asked for is simulated under it, and shown beside what was recorded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hyperflexis import __version__
from hyperflexis.cli import fleets, journals, recordings, scenario_file, whatif
from hyperflexis.cli.entry import Source
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.explain import clock_of
from hyperflexis.cli.profile_file import check_writable, write
from hyperflexis.cli.results import Cell, Result, table
from hyperflexis.cli.scenario import FleetSection
from hyperflexis.core.control import Policy
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.journal.checking import Comparison, Difference, compare
from hyperflexis.journal.entries import Entry, Gap
from hyperflexis.journal.header import Header
from hyperflexis.journal.reading import Journal
from hyperflexis.policies import split_names
from hyperflexis.sim import summary
from hyperflexis.sim.errors import InputError
from hyperflexis.sim.fabric import FabricSpec
from hyperflexis.sim.outcome import Outcome
from hyperflexis.sim.simulation import FleetSpec, simulate
from hyperflexis.sim.startup import StartupSpec

STDOUT = "-"
FLEET_FLAG = "--fleet"


def run(path: Path, policies: str | None, fleet: str | None, json_file: str | None) -> int:
    """Check or simulate; returns the exit code.

    Raises:
        OperatorError: there is no such journal, or something asked for is wrong.
    """
    journal = journals.opened(path)[0]
    if policies is None and fleet is None:
        if json_file is not None:
            raise OperatorError("--json has the results of simulations: say which, with --policy or --fleet")
        return _check(journal)
    _simulate(journal, policies, fleet, json_file)
    return 0


# Checking.


def _check(journal: Journal) -> int:
    if not journal.begins:
        folder = journal.parts[0].path.parent
        raise OperatorError(
            f"{folder}: the oldest parts of this run are gone, and what decisions rest on with them",
            "`explain` works all the same, and so does `replay --policy NAME`, of what is left",
        )
    clock, header = clock_of(journal.header), journal.header
    comparison = compare(journal.until_damage(), recordings.control_plane(header))
    journals.tell_damages(journal)
    if comparison.difference is not None:
        sys.stdout.write(_differs(comparison.difference, header))
        return 1
    told = f"{comparison.events} events, {comparison.commands} commands: all the same again\n"
    sys.stdout.write(told + _gap(comparison, clock(comparison.gap.now) if comparison.gap else ""))
    return 1 if comparison.gap is not None or journal.is_damaged else 0


def _gap(comparison: Comparison, at: str) -> str:
    if comparison.gap is None:
        return ""
    gap = comparison.gap.event
    assert isinstance(gap, Gap)
    return f"at {at} {gap.events} events are missing ({gap.why}): what follows cannot be compared\n"


def _differs(found: Difference, header: Header) -> str:
    clock = clock_of(header)
    lines = [
        f"event {found.number} was decided otherwise, at {clock(found.entry.now)}:",
        *_shown(found.entry, "  "),
        "and is now:",
        *(f"    → {command}" for command in found.made),
        *((f"    failed: {found.failure}",) if found.failure else ()),
        "before it:",
        *(line for entry in found.before for line in _shown(entry, "  ")),
    ]
    if header.hyperflexis != __version__:
        lines.append(f"hyperflexis {header.hyperflexis} wrote the journal, this is {__version__}")
    return "".join(f"{line}\n" for line in lines)


def _shown(entry: Entry, indent: str) -> list[str]:
    return [f"{indent}{entry.now!r} {entry.event}", *(f"{indent}  → {command}" for command in entry.commands)]


# What if.


@dataclass(frozen=True, slots=True)
class _Fleet:
    """What is simulated: the recorded fleet, or another."""

    bounds: FleetBounds
    moving: fleets.Moving
    startup: StartupSpec
    fabric: FabricSpec

    def policy(self, text: str, header: Header) -> Policy:
        """A fresh policy that can serve it.

        Raises:
            OperatorError: there is none of that name, or it cannot.
        """
        try:
            return fleets.create(text, header.prefill_tokens_max, self.moving, is_elastic=self.bounds.is_elastic)
        except ValueError as error:
            raise OperatorError(f"bad value for --policy: {error}") from None


def _simulate(journal: Journal, policies: str | None, fleet: str | None, json_file: str | None) -> None:
    header = journal.header
    if json_file not in (None, STDOUT):
        check_writable(Path(str(json_file)))
    section = None if fleet is None else _section(fleet)
    was = recorded(journal)
    chosen = _recorded_fleet(was.record) if section is None else _other_fleet(section, was.record)
    names = [header.policy] if policies is None else list(dict.fromkeys(split_names(policies)))
    made = [(name, chosen.policy(name, header)) for name in names]
    assert was.record.outcome is not None
    results = [_result("recorded", header, was.record.outcome, 0.0)]
    results += [was.simulated_by(name, policy, chosen) for name, policy in made]
    sys.stderr.write("".join(f"{line}\n" for line in was.doubts()))
    _write(results, json_file)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a journal says was asked for, ready to be simulated."""

    record: whatif.Record
    load: whatif.Load

    @property
    def header(self) -> Header:
        return self.record.header

    def simulated(self, policy: str, section: FleetSection) -> Result:
        """What a policy makes of it on another fleet.

        Raises:
            OperatorError: the policy cannot serve the fleet, or the fleet the load.
        """
        fleet = _other_fleet(section, self.record)
        return self.simulated_by(policy, fleet.policy(policy, self.header), fleet)

    def simulated_by(self, name: str, policy: Policy, fleet: _Fleet) -> Result:
        started_s = time.process_time()
        outcome = _outcome(policy, fleet, self.record, self.load)
        return _result(name, self.header, outcome, time.process_time() - started_s)

    def doubts(self) -> list[str]:
        """What is not known of it."""
        told = []
        if self.record.events_missing:
            told.append(f"{self.record.events_missing} events are missing in the journal")
        if self.load.guessed:
            told.append(
                f"answers of which not all is known: {self.load.guessed}; the median of their class stands for each"
            )
        if self.load.left_out:
            told.append(f"{self.load.left_out} requests that no instance could hold are left out")
        return told


def recorded(journal: Journal) -> Recorded:
    """Read all of a journal, and say what of it could not be read.

    Raises:
        OperatorError: it has no instance that was ready.
    """
    record = whatif.read(journal.header, journal.entries())
    journals.tell_damages(journal)
    if record.capacity is None or record.latency is None or record.outcome is None:
        raise OperatorError("no instance was ready in what the journal has: nothing is known of step times")
    return Recorded(record, whatif.load_of(record, record.capacity))


def _outcome(policy: Policy, fleet: _Fleet, record: whatif.Record, load: whatif.Load) -> Outcome:
    assert record.capacity is not None
    assert record.latency is not None
    assert record.outcome is not None
    spec = FleetSpec(
        instances=fleet.bounds.instances_min,
        capacity=record.capacity,
        latency=record.latency,
        startup=fleet.startup,
        bounds=fleet.bounds,
        fabric=fleet.fabric,
    )
    try:
        outcome = simulate(load.jobs, load.classes, policy, spec, seed=record.header.seed or 0)
    except InputError as error:
        raise OperatorError(str(error)) from None
    return whatif.by_name(outcome, load.classes, record.outcome.classes)


def _recorded_fleet(record: whatif.Record) -> _Fleet:
    header = record.header
    counts = {role: each.min for role, each in header.fleet.ranges.items()}
    is_planned = "roles=planned" in header.policy
    moving = fleets.moving(
        counts.get(Role.PREFILL, 0), counts.get(Role.DECODE, 0), "planned" if is_planned else "fixed"
    )
    return _Fleet(header.fleet, moving, record.startup(), FabricSpec())


def _section(text: str) -> FleetSection:
    try:
        return FleetSection.model_validate(scenario_file.values_of(text, Source("flag", FLEET_FLAG)))
    except ValidationError as error:
        raise scenario_file.complain(error, FleetSection, {(): Source("flag", FLEET_FLAG)}) from None


def _other_fleet(section: FleetSection, record: whatif.Record) -> _Fleet:
    startup = section.startup() if "startup_s" in section.model_fields_set else record.startup()
    try:
        bounds = section.bounds(startup)
    except ValueError as error:
        raise OperatorError(f"bad value for {FLEET_FLAG}: {error}") from None
    if bounds is not None:  # What is to be kept of each class goes with the requests, and not with the fleet.
        bounds = replace(bounds, late_shares=record.header.fleet.late_shares)
    roles = section.in_order()
    fabric = FabricSpec(bytes_s=section.link_gb_s * 1e9, latency_s=section.link_latency_ms / 1e3)
    return _Fleet(bounds or FleetBounds.fixed(len(roles), roles), section.moving, startup, fabric)


def _result(name: str, header: Header, outcome: Outcome, cpu_s: float) -> Result:
    cell = Cell(name, 1.0, header.seed or 0)
    row: dict[str, Any] = {"policy": name, "rate": 1.0, "seed": cell.seed, **summary.row(outcome), "cpu_seconds": cpu_s}
    return Result(cell, row, summary.curves(outcome))


def _write(results: Sequence[Result], json_file: str | None) -> None:
    text = json.dumps({"results": [result.row for result in results]}, indent=2, allow_nan=False) + "\n"
    sys.stdout.write(text if json_file == STDOUT else table(results))
    if json_file not in (None, STDOUT):
        write(Path(str(json_file)), text)
