"""What the runtime needs of an instance, whatever computes its tokens, and what it is told in return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hyperflexis.wire.messages import News, Order, Ready, StepReport, Submit


class Listener(Protocol):
    """Hears of one instance, on the event loop's thread and never within a call of the adapter or the launcher.

    Nothing follows `on_lost`.
    """

    def on_ready(self, ready: Ready) -> None:
        """It takes requests from now on."""

    def on_report(self, report: StepReport) -> None:
        """One step ended."""

    def on_news(self, news: News) -> None:
        """It has said something of links or of sleep, or to a peer."""

    def on_lost(self, why: str) -> None:
        """It is gone, and what it had is to be computed elsewhere."""


class Adapter(Protocol):
    """One instance. Calls return at once; their effects are heard of through the listener."""

    def submit(self, submit: Submit) -> None:
        """Take a request. What is submitted in one turn of the event loop travels as one message."""

    def cancel(self, request_id: int) -> None:
        """Stop computing it, within one step. Ids that are not there (any more) are ignored."""

    def configure(self, rules: Mapping[str, str | int | float | bool], version: int = 0) -> None:
        """Put these step rules in force. Reports say of which version those are that are."""

    def order(self, order: Order) -> None:
        """Have it do something about links, moves or sleep, after all that it was told before."""

    def close(self) -> None:
        """End the instance at once. The listener hears no more of it."""
