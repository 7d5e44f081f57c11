"""`hyperflexis top`: a running fleet in a terminal, from the snapshots that its dashboard shows."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

import aiohttp
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hyperflexis.cli.errors import OperatorError
from hyperflexis.journal.story import seconds
from hyperflexis.view.snapshot import Instance, ServiceClass, Snapshot, Times

API_KEY_ENV = "HYPERFLEXIS_API_KEY"
_ANSWER_S = 10.0
_BAR_CHARS = 10
_LINE_BYTES_MAX = 16 * 2**20
_decoder = msgspec.json.Decoder(Snapshot)


class Request(NamedTuple):
    """What the command line asked for."""

    url: str
    is_once: bool = False
    as_json: bool = False


def run(request: Request) -> int:
    """Show it until Ctrl-C; returns the exit code.

    Raises:
        OperatorError: nothing answers there, or it has no dashboard.
    """
    try:
        asyncio.run(_show(request))
    except KeyboardInterrupt:
        pass
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OperatorError(f"{request.url}: {error or 'no answer'}", "is `hyperflexis serve` running there?") from None
    except msgspec.MsgspecError as error:
        raise OperatorError(f"{request.url}: it tells of its fleet otherwise than this version: {error}") from None
    return 0


async def _show(request: Request) -> None:
    snapshots = _snapshots(request)
    if request.as_json:
        async for told in snapshots:
            sys.stdout.buffer.write(told + b"\n")
            sys.stdout.buffer.flush()
        return
    console = Console()
    if request.is_once or not console.is_terminal:
        async for told in snapshots:
            console.print(render(_decoder.decode(told)))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        async for told in snapshots:
            live.update(render(_decoder.decode(told), console.height), refresh=True)


async def _snapshots(request: Request) -> AsyncIterator[bytes]:
    url, key = request.url.rstrip("/"), os.environ.get(API_KEY_ENV)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER_S, sock_read=_ANSWER_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, read_bufsize=_LINE_BYTES_MAX) as session:
        if request.is_once:
            async with session.get(f"{url}/dashboard/snapshot") as answer:
                _check(request, answer)
                yield await answer.read()
            return
        async with session.get(f"{url}/dashboard/events") as answer:
            _check(request, answer)
            async for line in answer.content:
                if line.startswith(b"data: "):
                    yield line[6:].strip()


def _check(request: Request, answer: aiohttp.ClientResponse) -> None:
    if answer.status in (401, 403):
        raise OperatorError(f"{request.url} asks for an API key", f"set {API_KEY_ENV}")
    if answer.status == 404:
        raise OperatorError(f"{request.url} shows no dashboard", "it may be off there: the key `dashboard`")
    if answer.status != 200:
        raise OperatorError(f"{request.url}: status {answer.status}")


def render(snapshot: Snapshot, height: int = 0) -> RenderableType:
    """A snapshot as a terminal shows it; `height` is that of the terminal, 0 for all there is to say."""
    classes = _classes(snapshot.classes)
    decisions_max = 10 if height else len(snapshot.decisions)
    used = 9 + len(snapshot.classes) + decisions_max
    instances_max = max(3, height - used) if height else len(snapshot.instances)
    parts: list[RenderableType] = [_head(snapshot), classes, _instances(snapshot.instances, instances_max)]
    parts += _decisions(snapshot, decisions_max)
    return Group(*parts)


def _head(snapshot: Snapshot) -> Text:
    cost = snapshot.cost
    attained = _share(snapshot.attained)
    asleep = f" + {cost.asleep} asleep" if cost.asleep else ""
    oldest = "" if snapshot.queue.oldest_s is None else f", oldest {seconds(snapshot.queue.oldest_s)}"
    text = Text.assemble(
        ("attained ", "dim"),
        (attained, _colour(snapshot.attained)),
        ("  running ", "dim"),
        str(snapshot.running),
        ("  waiting ", "dim"),
        f"{snapshot.waiting}{oldest}",
        ("  requests/s ", "dim"),
        f"{snapshot.arrivals_per_s:.1f}",
        ("  tokens/s ", "dim"),
        f"{snapshot.tokens_per_s:.0f}",
        ("  instances ", "dim"),
        f"{cost.awake}{asleep}",
        ("  cost/h ", "dim"),
        f"{cost.per_hour:.2f}",
    )
    if snapshot.is_blind:
        text.append("  it cannot be followed any more: see the server's log", "red")
    if snapshot.missing:
        text.append(f"  {snapshot.missing} events are not known of", "red")
    return text


def _table(*columns: str, left: Iterable[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold dim")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def _classes(classes: Iterable[ServiceClass]) -> Table:
    table = _table("class", "attained", "ended", "waiting", "running", "ttft p95", "tpot p95", left=("class",))
    for each in classes:
        table.add_row(
            Text(_printable(each.name)),
            Text(_share(each.attained), _colour(each.attained)),
            str(each.ended),
            str(each.waiting),
            str(each.running),
            _times(each.ttft),
            _times(each.tpot),
        )
    return table


def _times(times: Times) -> Text:
    if times.p95_s is None:
        return Text("–", "dim")
    target = "" if times.target_s is None else f" of {seconds(times.target_s)}"
    is_late = times.target_s is not None and times.p95_s > times.target_s
    return Text(f"{seconds(times.p95_s)}{target}", "yellow" if is_late else "")


def _instances(instances: list[Instance], most: int) -> Table:
    table = _table(
        "", "role", "state", "load", "KV", "running", "waiting", "slack", left=("", "role", "state", "load", "KV")
    )
    shown = sorted(instances, key=_urgency)[:most] if len(instances) > most else instances
    for each in shown:
        kv = each.blocks_used / each.blocks if each.blocks else 0.0
        slack = "–" if each.slack_s is None else seconds(each.slack_s)
        table.add_row(
            f"i{each.id}",
            each.role,
            Text(each.state, "" if each.state == "ready" else "yellow"),
            _bar(each.load),
            _bar(kv),
            str(each.running),
            str(each.waiting),
            Text(slack, "red" if each.slack_s is not None and each.slack_s < 0 else ""),
        )
    if len(shown) < len(instances):
        table.add_row(f"… {len(instances) - len(shown)} more", "", "", "", "", "", "", "")
    return table


def _urgency(instance: Instance) -> tuple[float, float, int]:
    """Where not all can be shown, those with the least slack are."""
    slack_s = float("inf") if instance.slack_s is None else instance.slack_s
    return slack_s, -instance.load, instance.id


def _bar(share: float) -> Text:
    full = round(share * _BAR_CHARS)
    return Text.assemble(("█" * full, "cyan"), ("░" * (_BAR_CHARS - full), "dim"), f" {share:4.0%}")


def _decisions(snapshot: Snapshot, most: int) -> Iterable[RenderableType]:
    for each in snapshot.decisions[:most]:
        about = f"request {each.request} " if each.request is not None else ""
        if not about and each.instance is not None:
            about = f"i{each.instance} "
        line = Text.assemble((f"{snapshot.now_s - each.at_s:6.1f} s ago  ", "dim"), f"{about}{_printable(each.text)}")
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def _printable(text: str) -> str:
    """What others wrote, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _colour(share: float | None) -> str:
    if share is None:
        return "dim"
    return "green" if share >= 0.99 else "yellow" if share >= 0.9 else "red"
