"""A deployment whose instances are vLLM servers, in the words of the launchers that attach or start them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperflexis.adapters.vllm.probe import TokenProbe
from hyperflexis.adapters.vllm.watch import WatchRules
from hyperflexis.cli.deployment import ATTEMPTS_MAX, Deployment, server_url
from hyperflexis.cli.errors import OperatorError
from hyperflexis.cli.fleets import in_order, lonely
from hyperflexis.cli.profile_file import WireSample
from hyperflexis.core.fleet import FleetBounds
from hyperflexis.core.instance import Role
from hyperflexis.core.latency import StepShape
from hyperflexis.gateway.tokenizer import TextCodec
from hyperflexis.runtime.driver import Driver
from hyperflexis.runtime.launchers.attached import AttachedLauncher, AttachSpec, Target
from hyperflexis.runtime.launchers.vllm import ServeSpec

PROBE_TEXT = "def walk(tree):\n    return [Größe, naïve, 3.14159, 東京] # Hello, world!\n"
"""What our tokenizer and theirs are compared by: words, numbers, indents, and letters of other scripts."""
STALLED_FACTOR = 3
"""A request stands still for so many times as long as a server may be silent before it is taken elsewhere."""
_KV_NUMBER_BYTES = 2


def attach_spec(deployment: Deployment, directory: Path, codec: TextCodec, samples: Sequence[WireSample]) -> AttachSpec:
    """What a launcher is told. Servers that are started here ask for a key, if only for one that nobody else knows.

    Raises:
        OperatorError: the file with the key cannot be read.
    """
    vllm, engine = deployment.vllm, deployment.engine
    stalled_s = STALLED_FACTOR * vllm.silence_timeout_s
    return AttachSpec(
        targets=[Target(each.url, Role(each.role), each.model or "", each.kv_tokens) for each in deployment.attach],
        tokens=TokenProbe(PROBE_TEXT, codec.encode(PROBE_TEXT, add_special_tokens=False)),
        seqs_max=engine.seqs_max,
        block_tokens=engine.block_tokens,
        kv_token_bytes=kv_token_bytes(directory),
        samples=[(StepShape(*shape), actual_s) for shape, actual_s in samples],
        watch=WatchRules(vllm.health_ms / 1000, vllm.metrics_ms / 1000, vllm.silence_timeout_s, stalled_s),
        passes_kv=vllm.passes_kv,
        lease_s=vllm.kv_lease_s,
        api_key=_secret(vllm.api_key_file) or ("" if deployment.attach else secrets.token_urlsafe()),
    )


def serve_spec(deployment: Deployment, directory: Path, attach: AttachSpec) -> ServeSpec:
    """What the launcher is told that starts servers."""
    source, vllm = deployment.model_source(), deployment.vllm
    return ServeSpec(
        model=source if isinstance(source, str) else str(directory.resolve()),
        served_name=deployment.public_name,
        attach=attach,
        command=vllm.command,
        args=vllm.args,
        gpus=vllm.gpus_per_instance,
        first_port=vllm.first_port,
        start_timeout_s=deployment.scaling.start_timeout_s,
    )


def roles_of(deployment: Deployment) -> list[Role]:
    """Of the servers that are started first; there is one at least, for it tells what all of them can do."""
    if deployment.scaling.max is not None:
        return [Role.MIXED] * max(1, deployment.instances_min)
    fewest = in_order(deployment.prefills, deployment.mixed, deployment.decodes)
    return list(fewest) or [next(iter(deployment.fleet().ranges))]


class AttachedFleet:
    """Attaches and detaches servers while others serve."""

    def __init__(self, driver: Driver, launcher: AttachedLauncher, *, moves_requests: bool) -> None:
        """`moves_requests` says whether the policy lets instances have roles."""
        self._driver = driver
        self._launcher = launcher
        self._moves_requests = moves_requests

    def attach(self, url: str, role: str) -> None:
        """Have one more.

        Raises:
            ValueError: it is no address, is attached already, or cannot have that role.
        """
        if role not in (each.value for each in Role):
            raise ValueError(f"its role should be one of {', '.join(each.value for each in Role)}")
        if role != Role.MIXED.value and not self._moves_requests:
            raise ValueError("the servers here have no roles; give some of them one at the start")
        self._launcher.add(Target(server_url(url), Role(role)))
        self._change()

    def detach(self, name: str) -> bool:
        """Have one less; what it has goes on elsewhere.

        Raises:
            ValueError: it is the last one, or the last one of what is needed.
        """
        number = name.removeprefix("i")
        adapter = self._driver.adapter(int(number)) if number.isdecimal() else None
        if adapter is None:
            return False
        left = self._launcher.without(adapter)
        roles = [target.role for target in left]
        if not left:
            raise ValueError("it is the last one")
        if lacks := lonely(*(roles.count(role) for role in (Role.PREFILL, Role.MIXED, Role.DECODE))):
            raise ValueError(f"it would leave {lacks}")
        self._launcher.keep(left)
        self._change()
        self._driver.remove(int(number))
        return True

    def _change(self) -> None:
        roles = [target.role for target in self._launcher.targets]
        self._driver.change_fleet(FleetBounds.fixed(len(roles), roles, launch_attempts_max=ATTEMPTS_MAX))


def kv_token_bytes(directory: Path) -> int:
    """What moving a token's KV moves, by the model's configuration; 0 where that does not tell."""
    try:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        heads = config["num_attention_heads"]
        head_size = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config.get("num_key_value_heads") or heads
        return int(2 * config["num_hidden_layers"] * kv_heads * head_size * _KV_NUMBER_BYTES)
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _secret(name: str | None) -> str:
    if name is None:
        return ""
    try:
        return Path(name).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise OperatorError(f"vllm.api_key_file {name!r} cannot be read: {error.strerror}") from error
