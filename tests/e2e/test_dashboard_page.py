"""The dashboard in a browser: a recorded fleet of 200, a live one, a phone, the keyboard, and names that are no names.

Needs Debian's `chromium` and the Python package `playwright`; skipped, with the reason, where one of them is missing.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from hyperflexis.cli.dashboard import listening
from hyperflexis.core.events import InstanceLost
from hyperflexis.core.fleet import Prices
from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.gateway.dashboard import LiveDashboard
from hyperflexis.journal.reading import open_all
from hyperflexis.view.live import LiveView
from hyperflexis.view.recording import RecordedView
from journal.recorded import D, M, P, World, play
from view.streams import ORIGIN_S, at, launched, sent, step

CHROMIUM = shutil.which("chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)"),
    # A page waits for the machine, which may be busy; nothing here is measured.
    pytest.mark.timeout(300),
]

EVIL = "<img src=x onerror=document.title='owned'>"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 60_000


class Loop:
    """An event loop on a thread of its own, as the browser's calls block this one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """A page, at the end of which nothing must have been complained of."""
    complaints: list[str] = []
    contexts = []

    def open_(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if not asked.url.startswith(url) else None)
        page.goto(f"{url}/dashboard")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Iterator[str]:
    """A journal of some kinds of instances at work."""
    folder = tmp_path_factory.mktemp("journal")
    play(World((P, P, D, D, M), moving="fixed", requests=150, rate=60.0, losses_s=(1.0,)), folder)
    yield from _showing(folder, loop)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, loop: Loop) -> Iterator[str]:
    """A journal of two hundred instances."""
    folder = tmp_path_factory.mktemp("journal")
    play(World((M,) * 200, requests=400, rate=400.0), folder)
    yield from _showing(folder, loop)


def _showing(folder: Path, loop: Loop) -> Iterator[str]:
    view = RecordedView(open_all(folder)[0])
    view.play()
    server = listening(view, "127.0.0.1", 0)
    yield loop.run(server.__aenter__())
    loop.run(server.__aexit__(None, None, None))


class Live:
    """A live view that is fed by hand, and served."""

    def __init__(self, loop: Loop) -> None:
        self.now = ORIGIN_S
        classes = {EVIL: ServiceClass(EVIL, Slo(ttft_s=0.5)), "strict": ServiceClass("strict", Slo(0.5, 0.1), 1)}
        self.view = LiveView(Prices(2.0), classes, EVIL, lambda: self.now, wall_s=1_790_000_000.0)
        self._loop = loop
        self._app = web.Application()
        self._dashboard = LiveDashboard(self.view)
        self._dashboard.add_to(self._app.router, lambda handler: handler)
        self._runner = web.AppRunner(self._app)
        loop.run(self._runner.setup())
        loop.run(web.TCPSite(self._runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def feed(self, *entries: Any) -> None:
        for entry in entries:
            self.now = entry.now
            self.view.observe(*entry)

    def end_streams(self) -> None:
        self._loop.run(self._end())

    async def _end(self) -> None:
        self._dashboard.end()

    def allow_streams(self) -> None:
        self._dashboard._ending.clear()

    def close(self) -> None:
        self.end_streams()
        self._loop.run(self._runner.cleanup())


@pytest.fixture
def live(loop: Loop) -> Iterator[Live]:
    live = Live(loop)
    live.feed(*launched(), *launched(instance_id=1))
    live.feed(sent(ORIGIN_S + 1, 7, name=EVIL), step(ORIGIN_S + 1.1, started=[7], began=[7]))
    yield live
    live.close()


def violations(page: Any) -> list[str]:
    """What axe finds, in a line each."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{each['id']} ({each['impact']}): {[node['target'] for node in each['nodes']][:3]}" for each in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_read_it(recorded: str, open_page: Open, scheme: str, viewport: dict[str, int]) -> None:
    page = open_page(recorded, color_scheme=scheme, viewport=viewport)
    page.locator(".box").first.wait_for()
    page.locator(".class").first.wait_for()
    assert violations(page) == []
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"], "something is wider than the screen"
    page.locator(".box").first.click()
    page.locator(".chapters li").first.wait_for()
    assert violations(page) == []


def test_two_hundred_instances_have_a_box_each(large: str, open_page: Open) -> None:
    page = open_page(large)
    page.locator(".box").nth(199).wait_for()
    assert page.locator(".box").count() == 200
    assert page.locator("#fleet").get_attribute("data-size") == "dot"
    page.get_by_role("button", name="i17, mixed, ready").wait_for()
    assert violations(page) == []


def test_recording_is_played_and_any_instant_is_shown(recorded: str, open_page: Open) -> None:
    page = open_page(recorded)
    page.get_by_role("button", name="Pause").click()
    slider = page.get_by_role("slider", name="Instant")
    slider.focus()
    page.keyboard.press("End")
    running = page.locator(".figure", has_text="Running").locator("dd").first
    sync_api.expect(running).to_have_text("0", timeout=PATIENCE_MS)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("PageDown")
    sync_api.expect(running).not_to_have_text("0", timeout=PATIENCE_MS)
    page.keyboard.press("Home")
    page.locator("#place", has_text="00:00 of 00:").wait_for()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pause").wait_for()


def test_keyboard_reaches_a_story_and_comes_back(recorded: str, open_page: Open) -> None:
    page = open_page(recorded)
    box = page.locator(".box").first
    box.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Instance i0").wait_for()
    assert page.evaluate("location.hash") == "#instance/0"
    page.keyboard.press("Escape")
    page.locator("dialog[open]").wait_for(state="detached")
    assert page.evaluate("location.hash") == ""
    assert box.evaluate("node => node === document.activeElement")


def test_request_is_found_by_number(recorded: str, open_page: Open) -> None:
    page = open_page(recorded)
    page.get_by_role("searchbox").fill("12")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Request 12").wait_for()
    page.locator(".chapters li", has_text="arrived").wait_for()


def test_live_fleet_changes_as_it_does(live: Live, open_page: Open) -> None:
    page = open_page(live.url)
    page.get_by_role("button", name="i0, mixed, ready").wait_for()
    page.locator(".status[data-state=live]").wait_for()
    live.feed(at(live.now + 2, InstanceLost(1, "it was killed")))
    page.locator(".box[data-state=lost]").wait_for()
    page.locator("#decisions", has_text="is lost: it was killed").wait_for()


def test_names_from_outside_are_text(live: Live, open_page: Open) -> None:
    page = open_page(live.url)
    page.locator(".class h3", has_text=EVIL).wait_for()
    live.feed(at(live.now + 1, InstanceLost(1, EVIL)))
    page.locator("#decisions", has_text=EVIL).wait_for()
    page.get_by_role("searchbox").fill(EVIL)
    page.keyboard.press("Enter")
    page.locator(".story .id", has_text=EVIL).wait_for()
    assert page.title() == "HyperFlexis"
    assert page.locator("main img, dialog img").count() == 0


def test_server_that_is_gone_is_said_and_found_again(live: Live, open_page: Open) -> None:
    page = open_page(live.url)
    page.locator(".status[data-state=live]").wait_for()
    page.evaluate("() => { window.fetch_ = window.fetch; window.fetch = () => Promise.reject(new Error('gone')); }")
    live.end_streams()
    page.locator(".status[data-state=lost]").wait_for()
    live.allow_streams()
    page.evaluate("() => { window.fetch = window.fetch_; }")
    page.locator(".status[data-state=live]").wait_for()
