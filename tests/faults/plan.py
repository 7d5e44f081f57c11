"""What happens in one world: its setting, what is asked of it, and what goes wrong; drawn from a seed, or written.

A plan is data. Its repr is Python that makes it again, and any part of its asks and faults is a plan as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Literal, get_args

Kind = Literal[
    # an instance
    "kill",  # its process dies; what it had said is still heard
    "vanish",  # its host is gone: nothing of it is heard any more, which is noticed `amount` seconds later
    "cut",  # its connection breaks: what is under way is lost, each end notices, the driver `amount` seconds later
    "hang",  # it stands still for `amount` seconds, and goes on
    "slow",  # everything takes it 2 to 10 times longer, for `amount` seconds
    "clock",  # its clock is set `amount` seconds forth, or back
    "give back",  # it has a request of its no more, and says so
    "fail",  # it says that it cannot compute one
    # messages: the next one to it (odd `which`) or from it
    "lose",
    "repeat",
    "swap",  # comes after the one that follows
    "delay",  # all of them take `amount` seconds longer, for a second
    # transfers
    "corrupt",  # what is copied to it is not what was read, for `amount` seconds
    "stall",  # copies to it take a quarter of a second, for `amount` seconds
    "unlink",  # it says that it cannot take from a peer any more (odd `which`: that a peer cannot take from it)
    "linkless",  # no link of its can be made, for `amount` seconds
    # starts
    "unlaunchable",  # none begins, for `amount` seconds
    "stillborn",  # those that begin end at once, for `amount` seconds
    "endless",  # those that begin never end, for `amount` seconds
    "insomnia",  # who sleeps cannot wake, and says so, for `amount` seconds
    # tenants, and who runs all this
    "flood",  # `amount` requests at once
    "leave",  # a client
    "drain",
    "remove",
    "resize",  # bounds of the fleet: `amount` instances, or up to as many more
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SECONDS: dict[Kind, tuple[float, ...]] = {
    "vanish": (0.0, 0.2, 3.0),
    "cut": (0.0, 0.01, 0.3),
    "hang": (0.02, 0.3, 2.0, 7.0),
    "slow": (0.5, 3.0),
    "clock": (-3600.0, -1.0, -0.02, 0.02, 1.0, 3600.0),
    "delay": (0.01, 0.2, 1.0),
    "flood": (5, 12, 30),
    "resize": (1, 2, 3),
}
"""`amount`s; the others' are a window's."""
_WINDOWS_S = (0.1, 0.5, 2.0)
UPON = ("Migrate", "Migrate", "Abandon", "Stay", "Dispatch", "AssignRole", "Link", "Launch", "Drain", "Sleep", "Wake")
"""Commands that faults wait for."""


class Brief:
    """Says of itself what is not as usual."""

    def __repr__(self) -> str:
        words = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)  # type: ignore[arg-type]
            if getattr(self, each.name) != each.default
        ]
        return f"{type(self).__name__}({', '.join(words)})"


@dataclass(frozen=True, repr=False)
class Ask(Brief):
    """One request, and how patient its client is."""

    at_s: float
    prompt_tokens: int = 20
    max_tokens: int = 10
    text: int = 0
    """What its prompt repeats: alike prompts share blocks."""
    tpot_s: float | None = None
    ttft_s: float | None = None
    priority: int = 0
    refuses_late: bool = False
    leaves_after: int | None = None
    """Its client leaves as soon as it has so many tokens; with 0 at once."""
    breaks_after: int | None = None
    """Its client fails on hearing that many."""


@dataclass(frozen=True, repr=False)
class Fault(Brief):
    at_s: float
    kind: Kind
    which: int = 0
    """Of the instances that live then, that one, counted around."""
    amount: float = 0.0
    upon: str = ""
    """It comes with the next command of that name instead, and concerns an instance, or the request, of it."""
    after_s: float = 0.0
    """So long after that."""


@dataclass(frozen=True, repr=False)
class Setting(Brief):
    roles: tuple[str, ...] = ("mixed", "mixed")
    policy: str = "hyperflexis:roles=fixed"
    restlessness: float = 0.0
    """How often, of all looks, something is moved, and a role or the size of the fleet changed, for no reason."""
    spare: int = 0
    """Instances above those of `roles` that there may be, of each of them."""
    least: int = 1
    """Of each role, where there may be more."""
    asleep_max: int = 0
    requests_max: int = 1000
    chunk_tokens: int = 64
    blocks: int = 40
    seqs_max: int = 4
    startup_s: float = 0.05
    start_timeout_s: float = 8.0
    message_s: float = 0.0005
    copy_s: float = 0.005
    kv_token_bytes: int = 1000
    has_sources: bool = False
    """Whether weights can be had of peers, too."""


@dataclass(frozen=True, repr=False)
class Plan(Brief):
    seed: int = 0
    """Of what is left to chance besides."""
    setting: Setting = Setting()
    asks: tuple[Ask, ...] = ()
    faults: tuple[Fault, ...] = ()


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    chance = random.Random(seed)
    setting = _draw_setting(chance)
    span_s = chance.choice([0.3, 1.0, 4.0])
    asks = sorted((_draw_ask(chance, span_s) for _ in range(chance.randint(3, 18))), key=lambda ask: ask.at_s)
    kinds = chance.sample(KINDS, chance.choice([1, 3, len(KINDS)]))
    faults = sorted(
        (_draw_fault(chance, span_s, kinds) for _ in range(chance.choice([0, 2, 5, 10, 20]))), key=lambda f: f.at_s
    )
    return Plan(seed, setting, tuple(asks), tuple(faults))


def _draw_setting(chance: random.Random) -> Setting:
    roles = chance.choice(
        [
            ("mixed",),
            ("mixed", "mixed"),
            ("mixed", "mixed", "mixed"),
            ("prefill", "decode"),
            ("prefill", "decode", "decode"),
            ("prefill", "prefill", "decode", "mixed"),
        ]
    )
    has_roles = set(roles) != {"mixed"}
    policies = ["hyperflexis:roles=fixed", "hyperflexis:roles=planned"] + ["hyperflexis"] * (not has_roles)
    is_elastic = chance.random() < 0.5 and "mixed" not in set(roles) - {roles[0]}
    return Setting(
        roles=roles,
        policy=chance.choice(policies),
        restlessness=chance.choice([0.0, 0.1, 0.5, 1.0]),
        spare=chance.choice([1, 2]) if is_elastic else 0,
        least=chance.choice([0, 1]) if is_elastic and not has_roles else 1,
        asleep_max=chance.choice([0, 2, 2]) if is_elastic else 0,
        requests_max=chance.choice([1000, 1000, 12]),
        chunk_tokens=chance.choice([16, 64]),
        blocks=chance.choice([12, 40, 60]),
        seqs_max=chance.choice([1, 2, 4, 16]),
        startup_s=chance.choice([0.0, 0.05, 0.5]),
        start_timeout_s=chance.choice([3.0, 8.0]),
        message_s=chance.choice([0.0, 0.0005, 0.02, 0.1]),
        copy_s=chance.choice([0.0, 0.005, 0.05, 0.3]),
        kv_token_bytes=chance.choice([1000, 1000, 10**9]),
        has_sources=chance.random() < 0.3,
    )


def _draw_ask(chance: random.Random, span_s: float) -> Ask:
    has_left, has_failed = chance.random() < 0.15, chance.random() < 0.05
    return Ask(
        at_s=round(chance.uniform(0.0, span_s), 3),
        prompt_tokens=chance.choice([1, 16, 17, chance.randint(1, 120), chance.randint(120, 600)]),
        max_tokens=chance.choice([1, 8, 16, *(chance.randint(2, 60) for _ in range(2)), chance.randint(60, 150)]),
        text=chance.randrange(3),
        tpot_s=chance.choice([None, 0.02, 0.05]),
        ttft_s=chance.choice([None, 0.1, 2.0]),
        priority=chance.choice([0, 0, 1]),
        refuses_late=chance.random() < 0.1,
        leaves_after=chance.choice([0, 1, 2, 10]) if has_left else None,
        breaks_after=chance.choice([1, 3]) if has_failed else None,
    )


def _draw_fault(chance: random.Random, span_s: float, kinds: list[Kind]) -> Fault:
    kind = chance.choice(kinds)
    at_s, which = round(chance.uniform(0.0, span_s * 1.2), 3), chance.randrange(8)
    amount = chance.choice(_SECONDS.get(kind, _WINDOWS_S))
    if chance.random() < 0.5:
        return Fault(at_s, kind, which, amount)
    return Fault(at_s, kind, which, amount, chance.choice(UPON), chance.choice([0.0, 0.0, 0.001, 0.02, 0.1, 0.4]))
