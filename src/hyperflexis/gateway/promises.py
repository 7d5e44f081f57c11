"""What was asked for and what is granted: service class, priority and targets of one request.

Every dialect that peers speak is read here and nowhere else. Order of precedence: explicit numbers in headers, explicit
numbers in the body, the service class that was named, the default class. Urgency asked for by a client is a wish, so
explicit priorities are clamped; class priorities are the operator's own and stand. A key that names its classes gets no
tighter promise than its class gives, and no other class. Knows nothing of queues.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hyperflexis.core.slo import ServiceClass, Slo
from hyperflexis.gateway.access import ApiKey
from hyperflexis.gateway.backend import Offer
from hyperflexis.gateway.errors import ApiError, invalid
from hyperflexis.gateway.openai_types import DynamoTargets, GenerationBody, NvExt

TTFT_MS_MAX = 3_600_000.0
TPOT_MS_MAX = 60_000.0
E2E_MS_MAX = 3_600_000.0
PRIORITY_ABS_MAX = 2**31 - 1

TTFT_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
TPOT_HEADERS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
E2E_HEADERS = ("x-llm-d-slo-e2e-ms", "x-slo-e2e-ms")
CLASS_HEADERS = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
SMG_PRIORITIES = {"system": 20, "interactive": 10, "default": 0, "bulk": -10}

_NUMBER = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Granted:
    """What one request was promised, seconds."""

    service_class: str
    priority: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    refuses_late: bool = False

    def header(self) -> str:
        """One line for `x-hyperflexis-granted`."""
        parts = [f"class={self.service_class}", f"priority={self.priority}"]
        for name, target in (("ttft-ms", self.ttft_s), ("tpot-ms", self.tpot_s), ("e2e-ms", self.e2e_s)):
            if target is not None:
                parts.append(f"{name}={target * 1000:.6g}")
        return ", ".join(parts)


def grant(
    headers: Mapping[str, str],
    body: GenerationBody,
    offer: Offer,
    priority_max: int | None = None,
    key: ApiKey | None = None,
) -> Granted:
    """Resolve what is promised to one request, and lower it to what its key may have.

    Raises:
        ApiError: a number is malformed, not positive or not finite, or a class is unknown; it names header or field.
            Or the class is none that the key may use.
    """
    asked = _service_class(headers, body.service_tier, offer)
    chosen = _allowed_class(asked, key, offer)
    slo = chosen.slo
    targets = Slo(
        _target(headers, TTFT_HEADERS, _ttft_fields(body), TTFT_MS_MAX, slo.ttft_s),
        _target(headers, TPOT_HEADERS, _tpot_fields(body), TPOT_MS_MAX, slo.tpot_s),
        _target(headers, E2E_HEADERS, _e2e_fields(body), E2E_MS_MAX, slo.e2e_s),
    )
    if key is not None and key.classes is not None:
        targets = _no_tighter(targets, slo)
    return Granted(
        chosen.name,
        _priority(headers, body, chosen.priority, _highest(chosen, key, priority_max)),
        targets.ttft_s,
        targets.tpot_s,
        targets.e2e_s,
        chosen.refuses_late,
    )


def _service_class(headers: Mapping[str, str], tier: str | None, offer: Offer) -> ServiceClass | None:
    """The class that is named, if one is."""
    for header in CLASS_HEADERS:
        name = headers.get(header)
        if name is not None:
            return _known_class(header, name.strip(), offer.service_classes)
    if tier is None or tier in ("auto", "default"):
        return None
    return _known_class("service_tier", tier, offer.service_classes)


def _allowed_class(asked: ServiceClass | None, key: ApiKey | None, offer: Offer) -> ServiceClass:
    default = offer.service_classes[offer.default_class]
    if key is None or key.classes is None:
        return asked or default
    if asked is None:
        return default if default.name in key.classes else offer.service_classes[key.classes[0]]
    if asked.name in key.classes:
        return asked
    if key.fallback_class is None:
        allowed = ", ".join(key.classes)
        message = f"This API key may not use the service class {asked.name!r}. It may use: {allowed}."
        raise ApiError(403, message, code="class_not_allowed")
    return offer.service_classes[key.fallback_class]


def _no_tighter(asked: Slo, given: Slo) -> Slo:
    """Of each target the looser one; what is promised nothing can ask for nothing."""

    def looser(one_s: float | None, other_s: float | None) -> float | None:
        return None if one_s is None or other_s is None else max(one_s, other_s)

    return Slo(looser(asked.ttft_s, given.ttft_s), looser(asked.tpot_s, given.tpot_s), looser(asked.e2e_s, given.e2e_s))


def _highest(chosen: ServiceClass, key: ApiKey | None, priority_max: int | None) -> int | None:
    """The highest priority that may be asked for; None: any."""
    if key is None:
        return priority_max
    if key.priority_max is not None:
        return key.priority_max
    return priority_max if key.classes is None else chosen.priority


def _known_class(source: str, name: str, classes: Mapping[str, ServiceClass]) -> ServiceClass:
    found = classes.get(name)
    if found is None:
        known = ", ".join(sorted(classes))
        raise invalid(source, f"Unknown service class {name!r} in '{source}'. Known classes: {known}.")
    return found


Fields = Sequence[tuple[str, float | None]]


def _ttft_fields(body: GenerationBody) -> Fields:
    ours = body.slo.ttft_ms if body.slo else None
    return [("slo.ttft_ms", ours), *_dynamo_fields(body, "ttft_target", lambda targets: targets.ttft_target)]


def _tpot_fields(body: GenerationBody) -> Fields:
    ours = body.slo.tpot_ms if body.slo else None
    return [("slo.tpot_ms", ours), *_dynamo_fields(body, "itl_target", lambda targets: targets.itl_target)]


def _e2e_fields(body: GenerationBody) -> Fields:
    return [("slo.e2e_ms", body.slo.e2e_ms if body.slo else None)]


def _dynamo_fields(
    body: GenerationBody, name: str, read: Callable[[DynamoTargets | NvExt], float | None]
) -> list[tuple[str, float | None]]:
    """The places where Dynamo's clients put a target."""
    fields = []
    if body.extra_args is not None:
        fields.append((f"extra_args.{name}", read(body.extra_args)))
    if body.nvext is not None:
        if body.nvext.extra_args is not None:
            fields.append((f"nvext.extra_args.{name}", read(body.nvext.extra_args)))
        fields.append((f"nvext.{name}", read(body.nvext)))
    return fields


def _target(
    headers: Mapping[str, str], names: Sequence[str], fields: Fields, ms_max: float, class_s: float | None
) -> float | None:
    """The first explicit target in order of precedence, else the class's."""
    for name in names:
        text = headers.get(name)
        if text is not None:
            return _checked_ms(name, _parse_ms(name, text), ms_max)
    for name, value in fields:
        if value is not None:
            return _checked_ms(name, value, ms_max)
    return class_s


def _parse_ms(name: str, text: str) -> float:
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        raise _bad_ms(name, text)
    return float(text)


def _checked_ms(name: str, value_ms: float, ms_max: float) -> float:
    """Seconds; huge values are clamped, because they once overflowed other schedulers' queues and jumped them."""
    value_s = min(value_ms, ms_max) / 1000.0
    # The seconds: what is next to nothing in milliseconds is nothing in seconds.
    if not (math.isfinite(value_ms) and value_s > 0):
        raise _bad_ms(name, str(value_ms))
    return value_s


def _bad_ms(name: str, text: str) -> ApiError:
    return invalid(name, f"'{name}' must be a positive number of milliseconds, not {text[:40]!r}.")


def _priority(headers: Mapping[str, str], body: GenerationBody, class_priority: int, priority_max: int | None) -> int:
    asked = _header_priority(headers)
    if asked is None:
        asked = body.priority
    if asked is None and body.nvext is not None and body.nvext.agent_hints is not None:
        asked = body.nvext.agent_hints.priority
    if asked is None:
        return class_priority
    limit = PRIORITY_ABS_MAX if priority_max is None else min(priority_max, PRIORITY_ABS_MAX)
    return max(-PRIORITY_ABS_MAX, min(asked, limit))


def _header_priority(headers: Mapping[str, str]) -> int | None:
    for name in ("x-dynamo-request-priority", "x-override-priority"):
        text = headers.get(name)
        if text is not None:
            return _integer(name, text)
    word = headers.get("x-smg-priority")
    if word is not None:
        return _smg_priority(word)
    text = headers.get("x-vllm-priority")
    # vLLM serves lower numbers first; at this face higher numbers are more important.
    return None if text is None else -_integer("X-Vllm-Priority", text)


def _integer(name: str, text: str) -> int:
    text = text.strip()
    if len(text) > 40 or not _INTEGER.fullmatch(text):
        raise invalid(name, f"'{name}' must be an integer, not {text[:40]!r}.")
    return int(text)


def _smg_priority(word: str) -> int:
    priority = SMG_PRIORITIES.get(word.strip().lower())
    if priority is None:
        words = ", ".join(SMG_PRIORITIES)
        raise invalid("x-smg-priority", f"'x-smg-priority' must be one of {words}, not {word[:40]!r}.")
    return priority
