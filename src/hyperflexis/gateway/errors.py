"""What a client is told when its request cannot be served, in the shape of the OpenAI API.

Whose fault it was decides the status: 4xx the client's, 429 and 503 the fleet's load, 500 ours. Knows no HTTP server.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from hyperflexis.gateway.backend import Ending, EndReason


class ApiError(Exception):
    """A refusal with everything that goes onto the wire."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Encode as a JSON body, or as the data of an event inside a stream."""
        # Headers may carry bytes that are no UTF-8; they reach messages as lone surrogates, which JSON cannot hold.
        message = self.message.encode("utf-8", "backslashreplace").decode()
        param = None if self.param is None else self.param.encode("utf-8", "backslashreplace").decode()
        error = {"message": message, "type": self.kind, "param": param, "code": self.code}
        return msgspec.json.encode({"error": error})


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A field or header whose value cannot be taken."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """A field that means something, but nothing that is served here; ignoring it would change the answer silently."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")


def from_decoding(error: Exception) -> ApiError:
    """Translate what msgspec says of a body."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return ApiError(400, f"The body is not valid JSON: {text}", code="invalid_json")
    path = _PATH.search(text)
    param = path.group(1) if path else None
    missing = _MISSING.search(text)
    if missing:
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        return invalid(param, f"Missing required field '{param}'.", "missing_required_parameter")
    problem = text[: path.start()] if path else text
    if not param:
        return invalid(None, f"The body must be a JSON object: {problem}.", "invalid_type")
    return invalid(param, f"Invalid '{param}': {problem}.", "invalid_type")


def context_exceeded(
    param: str, context_tokens: int, prompt_tokens: int, max_tokens: int, *, at_least: bool = False
) -> ApiError:
    """A prompt that leaves no room, by itself or with the tokens asked for."""
    message = (
        f"This model's maximum context length is {context_tokens} tokens. However, you requested "
        f"{'at least ' if at_least else ''}"
        f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the {param}, {max_tokens} in the completion). "
        f"Please reduce the length of the {param} or completion."
    )
    return invalid(param, message, "context_length_exceeded")


_DROPPED = {429: "rejected-saturated", 503: "rejected-no-endpoints"}
_KINDS = {429: "rate_limit_error", 503: "service_unavailable_error"}


def from_end(end: Ending) -> ApiError:
    """Translate an end that brought no answer."""
    status = end.status if end.status >= 400 else (503 if end.reason == EndReason.CANCELLED else 500)
    kind = _KINDS.get(status, "server_error")
    if end.reason != EndReason.REJECTED:
        message = end.message or "The request could not be completed."
        code = "cancelled" if end.reason == EndReason.CANCELLED else "failed"
        return ApiError(status, message, kind=kind, code=code, headers=_retry_after(end.retry_after_s))
    if status == 400:
        message = end.message or "No instance could hold this request."
        headers = {"x-hyperflexis-reason": _header_safe(message)}
        return ApiError(400, message, code="context_length_exceeded", headers=headers)
    dropped = _DROPPED.get(status, "rejected-other")
    message = end.message or "The fleet cannot take this request now."
    headers = {"x-llm-d-request-dropped-reason": dropped, "x-hyperflexis-reason": _header_safe(message)}
    headers |= _retry_after(end.retry_after_s)
    return ApiError(status, message, kind=kind, code=dropped.replace("-", "_"), headers=headers)


def limited(rule: str, wait_s: float) -> ApiError:
    """A request that is one too many for whoever sends it, whatever the fleet could do."""
    headers = {"x-hyperflexis-reason": _header_safe(rule), **_retry_after(wait_s)}
    return ApiError(
        429,
        f"Rate limit reached: {rule}. Try again in {headers['Retry-After']} s.",
        kind=_KINDS[429],
        code="rate_limit_exceeded",
        headers=headers,
    )


def shutting_down() -> ApiError:
    """The answer to whoever comes while the gateway drains."""
    headers = {"Retry-After": "1", "x-llm-d-request-dropped-reason": "rejected-shutting-down"}
    headers["x-hyperflexis-reason"] = "draining"
    return ApiError(
        503,
        "The server is draining and takes no new requests.",
        kind=_KINDS[503],
        code="rejected_shutting_down",
        headers=headers,
    )


def _retry_after(seconds: float | None) -> dict[str, str]:
    """Whole seconds, at least one: 0 would ask for an immediate repetition of what was just refused."""
    if seconds is None or not math.isfinite(seconds):
        return {}
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _header_safe(text: str) -> str:
    """Cut to one line of printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:200]
