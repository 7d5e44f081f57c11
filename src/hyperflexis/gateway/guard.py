"""Who may pass to which route: clients with a key, admins with theirs, everybody on a server that has no keys.

A server without keys is there for whoever sits at its machine. Its one enemy is a page that their browser has open: it
may send requests to local addresses, or have a name of its own that leads there. So requests from foreign pages, and
for foreign names, are refused. With keys no page can do anything, for it does not know them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from hyperflexis.gateway.access import ApiKey, KeyRing
from hyperflexis.gateway.errors import ApiError
from hyperflexis.gateway.quota import Passage, Quotas

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CountedHandler = Callable[[web.Request, Passage], Awaitable[web.StreamResponse]]

READING = ("GET", "HEAD")


class Guard:
    """Stands before handlers."""

    def __init__(
        self, keys: KeyRing | None, on_refused: Callable[[int], None], *, is_local: bool, is_admin_local: bool
    ) -> None:
        """Guard a server.

        Args:
            keys: None: whoever reaches it is served.
            on_refused: Hears the status of each refusal.
            is_local: Whether only this machine reaches the routes for clients.
            is_admin_local: The same of those for admins.
        """
        self._keys = keys
        self._on_refused = on_refused
        self._is_local = is_local
        self._is_admin_local = is_admin_local
        self._quotas = Quotas()
        if keys is not None:
            self.follow(keys)

    @property
    def has_keys(self) -> bool:
        return self._keys is not None

    def follow(self, keys: KeyRing) -> None:
        """Let these be the keys from now on. What was let in before goes on."""
        self._keys = keys
        self._quotas.follow(keys, _now())

    def counted(self, handler: CountedHandler) -> Handler:
        """For routes that cost something: any key, within its limits."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            passage = self._enter(request)
            try:
                response = await handler(request, passage)
            except ApiError as error:
                error.headers |= passage.headers(_now())
                raise
            finally:
                passage.end(_now())
            if not response.prepared:
                response.headers.update(passage.headers(_now()))
            return response

        return guarded

    def known(self, handler: Handler) -> Handler:
        """For routes that cost next to nothing: any key."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self.check(request)
            return await handler(request)

        return guarded

    def admin(self, handler: Handler) -> Handler:
        """For routes that show or change the fleet: the key of an admin."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._check_admin(request)
            return await handler(request)

        return guarded

    def is_admin(self, request: web.Request) -> bool:
        """Whether whoever asks may see the fleet."""
        try:
            self._check_admin(request)
        except ApiError:
            return False
        return True

    def check(self, request: web.Request) -> ApiKey | None:
        """Find the key of a request.

        Raises:
            ApiError: there is none, or none that is valid.
        """
        if self._keys is None:
            if self._is_local:
                refuse_pages(request)
            return None
        presented = bearer(request)
        return self._found(presented, self._keys, "Bearer")

    def _check_admin(self, request: web.Request) -> None:
        if self._keys is None:
            # Also beyond this machine: a page must not change a fleet that its reader can reach.
            refuse_pages(request, checks_name=self._is_admin_local)
            return
        presented = bearer(request)
        # A browser can be asked for a password, and sends it along with whatever any page has it send: to look, only.
        may_ask = request.method in READING
        if presented is None and may_ask:
            presented = password(request)
        key = self._found(presented, self._keys, 'Basic realm="hyperflexis", Bearer' if may_ask else "Bearer")
        if not key.is_admin:
            raise ApiError(403, "This needs the key of an admin.", code="admin_key_required")

    def _found(self, presented: str | None, keys: KeyRing, scheme: str) -> ApiKey:
        key = None if presented is None else keys.find(presented)
        if key is None:
            what = "No API key was sent" if presented is None else "The API key is not valid"
            message = f"{what}. Send one in the header 'Authorization: Bearer KEY'."
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": scheme})
        return key

    def _enter(self, request: web.Request) -> Passage:
        try:
            key = self.check(request)
            return Passage() if key is None else self._quotas.enter(key, _now())
        except ApiError as error:
            self._on_refused(error.status)
            raise


def _now() -> float:
    return asyncio.get_running_loop().time()


def bearer(request: web.Request) -> str | None:
    """The key that a request brings as OpenAI's clients do."""
    scheme, _, presented = request.headers.get("Authorization", "").strip().partition(" ")
    return presented.strip() if scheme.lower() == "bearer" and presented.strip() else None


def password(request: web.Request) -> str | None:
    """The key that a person has typed into a browser; the user's name does not matter."""
    scheme, _, encoded = request.headers.get("Authorization", "").strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def refuse_pages(request: web.Request, *, checks_name: bool = True) -> None:
    """Refuse what a page of somebody else has a browser send.

    Raises:
        ApiError: it comes from one, or was sent to a name that such a page could have.
    """
    if checks_name and not is_own_name(request.headers.get("Host", "")):
        message = "A server without API keys answers to addresses and local names only."
        raise ApiError(403, message, code="foreign_host")
    origin = request.headers.get("Origin")
    if origin is not None and _authority(origin) != request.headers.get("Host", "").lower():
        raise ApiError(403, "Pages of other sites may not use a server without API keys.", code="foreign_origin")


def is_own_name(host: str) -> bool:
    """Whether a Host header holds no name that a stranger could own: an address, localhost, or a name without a dot."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if "." not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _authority(origin: str) -> str:
    return origin.lower().partition("://")[2]
