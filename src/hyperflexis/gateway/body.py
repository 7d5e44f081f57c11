"""Reading and decoding request bodies within their limits."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from hyperflexis.gateway.errors import ApiError, from_decoding
from hyperflexis.gateway.limits import Limits
from hyperflexis.gateway.openai_types import AttachBody, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

T = TypeVar("T")


async def read_body(request: web.Request, kind: type[T], limits: Limits) -> T:
    """Read a JSON body as `kind`.

    Raises:
        ApiError: it is too large, too slow, no JSON, or has a field of the wrong type.
    """
    data = await _read(request, limits)
    try:
        decoded: T = _DECODERS[kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_decoding(error) from error
    return decoded


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody, AttachBody)
}


async def _read(request: web.Request, limits: Limits) -> bytes:
    if (request.content_length or 0) > limits.body_bytes_max:
        raise too_large(limits)
    try:
        if request.content.is_eof():
            # It came with the head, as most do: nothing to wait for.
            return await request.read()
        async with asyncio.timeout(limits.body_s):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large(limits) from error
    except TimeoutError as error:
        raise ApiError(408, f"The body did not arrive within {limits.body_s:g} s.", code="body_timeout") from error
    except (web.RequestPayloadError, ValueError) as error:
        raise ApiError(400, f"The body could not be read: {error}", code="invalid_body") from error


def too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"The body is larger than {limits.body_bytes_max} bytes.", code="request_too_large")
