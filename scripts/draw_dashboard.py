"""Draw the pictures of the dashboard that the docs show, from simulations: docs/images/dashboard-*.jpg.

    python scripts/draw_dashboard.py

Needs Debian's `chromium` and the Python package `playwright`.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from playwright.async_api import Browser, async_playwright

from hyperflexis.cli import fleets, recordings
from hyperflexis.cli.dashboard import listening
from hyperflexis.core.control import ControlPlane
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Capacity, Role
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.journal.reading import open_all
from hyperflexis.sim.job import Job
from hyperflexis.sim.profiles import load_profile
from hyperflexis.sim.simulation import FleetSpec, simulate
from hyperflexis.view.recording import RecordedView

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BYTES_MAX = 150_000
PROFILE = load_profile("llama-3-70b/h100/tp4/bfloat16")
CLASSES = {
    "code": ServiceClass("code", Slo(ttft_s=0.5, tpot_s=0.1), 1),
    "chat": ServiceClass("chat", Slo(ttft_s=2.0, tpot_s=0.05)),
    "batch": ServiceClass("batch", Slo(e2e_s=60.0)),
}
LENGTHS = {"code": (1200, 40), "chat": (500, 350), "batch": (2500, 200)}
"""Mean tokens of prompts and answers."""
P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


class World(NamedTuple):
    """What is simulated."""

    roles: tuple[Role, ...]
    moving: fleets.Moving
    rate: float
    length_s: float
    losses_s: tuple[float, ...] = ()

    def jobs(self) -> list[Job]:
        rng, jobs, at_s = random.Random(7), list[Job](), 0.0
        while at_s < self.length_s:
            burst = 1.7 if int(at_s / 20) % 3 == 1 else 0.8
            at_s += rng.expovariate(self.rate * burst)
            name = rng.choices(tuple(CLASSES), (4, 5, 1))[0]
            prompt, answer = (max(1, round(rng.gammavariate(2.0, mean / 2))) for mean in LENGTHS[name])
            jobs.append(Job(at_s, prompt, min(answer, 1500), name))
        return jobs


APART = World((P, P, P, D, D, D, M), "planned", 13.0, 150.0, (96.0,))
LARGE = World((M,) * 200, "keeps", 420.0, 20.0)


class Picture(NamedTuple):
    """One of them: which world, at which instant, and how it is looked at."""

    name: str
    world: World
    at_s: float
    width: int
    height: int
    scheme: str
    target: str = ""


PICTURES = (
    Picture("light", APART, 88.0, 1280, 1010, "light"),
    Picture("dark", APART, 99.0, 1280, 1010, "dark"),
    Picture("story", APART, 88.0, 1280, 760, "light", "request/812"),
    Picture("phone", APART, 88.0, 390, 844, "dark"),
    Picture("large", LARGE, 14.0, 1280, 700, "dark"),
)


def record(world: World, folder: Path) -> None:
    """Simulate it and write its journal."""
    policy = fleets.create("hyperflexis", 8192, world.moving)
    control = ControlPlane(policy, FleetBounds.fixed(len(world.roles), world.roles), 10**6)
    header = recordings.header("hyperflexis", 8192, control, CLASSES.values(), seed=0, max_tokens=1500)
    spec = FleetSpec(
        len(world.roles),
        Capacity(2600, 16, 128, 327_680),
        PROFILE.latency,
        noise=0.05,
        max_tokens=1500,
        losses_s=world.losses_s,
        bounds=control.sizing.fleet,
    )
    with recordings.recording(folder, header) as recorder:
        simulate(world.jobs(), CLASSES, policy, spec, observe=recorder.observe)


async def draw(picture: Picture, view: RecordedView, browser: Browser) -> int:
    """Look at it; returns how many bytes the picture has."""
    async with listening(view, "127.0.0.1", 0) as url:
        viewport = {"width": picture.width, "height": picture.height}
        page = await browser.new_page(viewport=viewport, color_scheme=picture.scheme)  # type: ignore[arg-type]
        await page.goto(f"{url}/dashboard?at={picture.at_s}#{picture.target}")
        await page.locator(".box").nth(len(picture.world.roles) - 2).wait_for()
        if picture.target:
            await page.locator(".chapters li").first.wait_for()
        await page.wait_for_timeout(1500)  # Until what moves has come to rest.
        file = IMAGES / f"dashboard-{picture.name}.jpg"
        await page.screenshot(path=file, type="jpeg", quality=72)
        await page.close()
    return file.stat().st_size


async def draw_all(folder: Path) -> int:
    views: dict[World, RecordedView] = {}
    for number, world in enumerate(dict.fromkeys(picture.world for picture in PICTURES)):
        record(world, folder / str(number))
        views[world] = RecordedView(open_all(folder / str(number))[0])
        views[world].play()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        sizes = {each.name: await draw(each, views[each.world], browser) for each in PICTURES}
        await browser.close()
    for name, size in sizes.items():
        print(f"dashboard-{name}.jpg {size / 1e3:.0f} kB")
    return int(max(sizes.values()) > BYTES_MAX)


def main() -> int:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(draw_all(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
