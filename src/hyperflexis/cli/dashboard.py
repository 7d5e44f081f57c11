"""`hyperflexis dashboard`: the dashboard of a journal, on a port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from hyperflexis.cli import journals
from hyperflexis.cli.errors import StartError
from hyperflexis.gateway.dashboard import RecordedDashboard
from hyperflexis.gateway.server import speak_openai
from hyperflexis.view.recording import RecordedView


def run(path: Path, host: str, port: int) -> int:
    """Show the newest run of a journal until a signal to stop; returns the exit code.

    Raises:
        OperatorError: there is no such journal, or the port cannot be had.
    """
    journal = journals.opened(path)[0]
    asyncio.run(_serve(RecordedView(journal), host, port))
    journals.tell_damages(journal)
    return 0


async def _serve(view: RecordedView, host: str, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with listening(view, host, port) as url:
        sys.stderr.write(f"{url}/dashboard shows it; Ctrl-C stops\n")
        sys.stderr.flush()
        playing = asyncio.create_task(asyncio.to_thread(view.play))
        await stopping.wait()
        view.close()
        await playing


@contextlib.asynccontextmanager
async def listening(view: RecordedView, host: str, port: int) -> AsyncIterator[str]:
    """Answer while the block runs; gives the address.

    Raises:
        StartError: the address cannot be had.
    """
    app = web.Application(middlewares=[speak_openai])
    RecordedDashboard(view).add_to(app.router)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}", "choose another with --port N") from error
    finally:
        await runner.cleanup()
