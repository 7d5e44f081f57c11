"""Instances of the native engine as processes of this machine, forked from one zygote that holds one model.

A dead instance is heard of by the control plane, which decides what to do; this launcher only starts what it is asked
for. Accelerators are taken in turn. Where instances are kept, those that another gateway has left are taken first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from hyperflexis.adapters.contract import Adapter, Listener
from hyperflexis.adapters.native import inheritance
from hyperflexis.adapters.native.host import NativeAdapter, ZygoteHost
from hyperflexis.adapters.native.keep import Keep
from hyperflexis.adapters.native.messages import Fork, Load, Loaded, Profile, WeightsSpec
from hyperflexis.core.instance import Role
from hyperflexis.runtime.launchers.pulse import Pulse
from hyperflexis.wire.messages import News, Ping, Pong, Ready, StepReport


@dataclass(frozen=True, slots=True)
class LocalSpec:
    """What every instance of this launcher is like."""

    directory: str
    """Absolute, or relative to where this process started."""
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1
    block_tokens: int = 16
    kv_bytes: int | None = None
    """Of KV cache per instance; None: as much as suits the device."""
    seqs_max: int = 256
    instances: int = 1
    """How many are expected, for the check of memory."""
    samples: Sequence[tuple[tuple[int, int, int, int], float]] = ()
    """What is known of its steps; none: the first instance measures."""
    checks_transfers: bool = False
    """Whether KV that comes from other instances is compared with theirs."""
    silence_timeout_s: float = 30.0
    """Without a word from an instance that is ready, longer than its longest step, after which it is lost."""
    weights: WeightsSpec = field(default_factory=WeightsSpec)
    """Where they may come from besides the disk, and whether they are lent on."""


class LocalLauncher:
    """Make with `start`; it owns the zygote."""

    def __init__(self, zygote: ZygoteHost, spec: LocalSpec, loaded: Loaded) -> None:
        self._zygote = zygote
        self._spec = spec
        self.loaded = loaded
        self.inherited: Sequence[int] = ()
        """Process ids of the instances that another gateway had left."""
        sibling = loaded.profile
        self._samples = spec.samples or (sibling.samples if sibling and sibling.threads == spec.threads else ())
        self._sibling_weights = b""
        """Where the last instance that became ready lends them, if it is on a device."""
        self._tell_of_samples()

    @staticmethod
    def prepare() -> ZygoteHost:
        """Start a zygote without a model: what is imported by then, a later `start` need not wait for."""
        return ZygoteHost()

    @classmethod
    async def start(cls, spec: LocalSpec, zygote: ZygoteHost | None = None, keep: Keep | None = None) -> LocalLauncher:
        """Load the model, into a zygote that was prepared or into a new one; or find it loaded in the keep.

        Raises:
            KeepError: something else is kept there.
            StartError: the model cannot be loaded; says why and what may help.
        """
        order = _order(spec, is_kept=keep is not None)
        if zygote is None:
            found = None if keep is None else await inheritance.find(keep, order)
            zygote = ZygoteHost(keep, found)
        try:
            launcher = cls(zygote, spec, await zygote.load(order))
        except BaseException:
            await zygote.close()
            raise
        if keep is not None:
            launcher._see_to_orphans(keep.timeout_s)
        return launcher

    def _see_to_orphans(self, timeout_s: float) -> None:
        """More than there may ever be end now, those that nobody has wanted after some time end then."""
        self._zygote.dismiss_orphans(keeping=self._spec.instances)
        self.inherited = [each.pid for each in self._zygote.orphans]
        asyncio.get_running_loop().call_later(timeout_s, self._zygote.dismiss_orphans)

    def launch(self, instance_id: int, role: Role, listener: Listener) -> Adapter:
        """Fork an instance, or adopt an orphan. It learns of its role when it is ready, as of any other rules."""
        order = Fork(
            instance_id=instance_id,
            device=self._device(instance_id),
            threads=self._spec.threads,
            block_tokens=self._spec.block_tokens,
            blocks=self.loaded.blocks,
            seqs_max=self._spec.seqs_max,
            samples=self._samples,
            checks_transfers=self._spec.checks_transfers,
            weights=self._sibling_weights,
        )
        watching = _Watching(self, listener)
        watching.adapter = self._zygote.fork(order, watching)
        return watching.adapter

    async def close(self) -> None:
        """End all instances, or leave them to the next gateway."""
        await self._zygote.close()

    @property
    def is_left(self) -> bool:
        """Whether instances outlive this launcher, in its keep. At first those do that were found there."""
        return self._zygote.is_left

    @is_left.setter
    def is_left(self, is_left: bool) -> None:
        self._zygote.is_left = is_left

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of living instances."""
        return self._zygote.pids

    async def offer(self) -> bytes:
        """What leads other starts to these weights; empty if they are not lent."""
        return await self._zygote.offer()

    @property
    def digest(self) -> bytes:
        """Root digest of the weights that are lent, once it is known."""
        return self._zygote.digest

    def remember(self, ready: Ready) -> None:
        """Siblings compute the same model on the same kind of device: what one measured, the next need not."""
        self._sibling_weights = ready.weights
        if not self._samples:
            self._samples = ready.samples
            self._tell_of_samples()

    def watch(self, adapter: NativeAdapter) -> Pulse:
        """Give up an instance that falls silent: what it has goes on elsewhere, and its process ends.

        So it does if it was told to end and does not; by then its id may be another's.
        """

        def give_up(why: str) -> None:
            adapter.fail(why)
            self._zygote.kill(adapter)

        return Pulse(self._spec.silence_timeout_s, lambda: adapter.order(Ping()), give_up)

    def _tell_of_samples(self) -> None:
        """Siblings elsewhere need not measure either."""
        if self._samples and self._spec.weights.lends:
            self._zygote.tell(Profile(self.loaded.hardware, self._spec.threads, self._samples))

    def _device(self, instance_id: int) -> str:
        count = self.loaded.device_count
        return f"{self.loaded.device}:{instance_id % count}" if count > 1 else self.loaded.device


def _order(spec: LocalSpec, *, is_kept: bool) -> Load:
    has_own_files = is_kept and not spec.weights.candidates
    return Load(
        directory=spec.directory,
        device=spec.device,
        dtype=spec.dtype,
        block_tokens=spec.block_tokens,
        kv_bytes=spec.kv_bytes,
        instances=spec.instances,
        weights=spec.weights,
        checkpoint=inheritance.stamp(spec.directory) if has_own_files else "",
    )


class _Watching:
    """Lets the launcher see what an instance measured, and whether it still speaks; passes everything on."""

    adapter: NativeAdapter

    def __init__(self, launcher: LocalLauncher, listener: Listener) -> None:
        self._launcher = launcher
        self._listener = listener
        self._pulse: Pulse | None = None
        """Once it is ready."""

    def on_ready(self, ready: Ready) -> None:
        self._launcher.remember(ready)
        self._pulse = self._launcher.watch(self.adapter)
        self._listener.on_ready(ready)

    def on_report(self, report: StepReport) -> None:
        self._note_word()
        self._listener.on_report(report)

    def on_news(self, news: News) -> None:
        self._note_word()
        if not isinstance(news, Pong):
            self._listener.on_news(news)

    def on_lost(self, why: str) -> None:
        if self._pulse is not None:
            self._pulse.end()
        self._listener.on_lost(why)

    def _note_word(self) -> None:
        if self._pulse is not None:
            self._pulse.heard()
