"""Who asks, and whether they may: tokens, sessions, the gate in front of every route, and signing in."""

import contextlib
import hashlib
import hmac
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import HTTPException, Request, Response, params
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from talaria.model.errors import LedgerAway, Refused
from talaria.store.access import SEEN_EVERY, Access, Credential, CredentialKind, Scope
from talaria.web.bodies import StrictRequest, refuse_other_than_json

COOKIE = "talaria_session"

#: A session ends after this, whatever happens.
SESSION_LIFETIME = timedelta(hours=12)

#: Methods that change nothing (RFC 9110 9.2.1).
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

#: Longer secrets than ours are nobody's, and are not looked up.
_LONGEST_SECRET = 512

#: Printable ASCII without a backslash, which browsers take for a slash; a second slash at the front is another host.
_LOCAL_PATH = re.compile(r"/(?!/)[\x21-\x5B\x5D-\x7E]{0,1000}", re.ASCII)


class Permission(StrEnum):
    """What a route asks of who calls it; every route declares one."""

    OPEN = "open"
    """Nothing: nobody need be signed in."""
    VIEW = "view"
    """To see studies, patients' names included, and how all of it goes."""
    OPERATE = "operate"
    """To act on jobs and studies, to pause work, to try out targets."""
    ADMINISTER = "administer"
    """To change the rulebook."""


#: What a credential of a scope is good for.
GRANTS: Mapping[Scope, frozenset[Permission]] = {
    Scope.VIEW: frozenset({Permission.OPEN, Permission.VIEW}),
    Scope.OPERATE: frozenset({Permission.OPEN, Permission.VIEW, Permission.OPERATE}),
    Scope.ADMINISTER: frozenset(Permission),
}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks."""

    name: str
    actor: str
    """By whom the ledger says that things were done: `token:NAME`, or whose session it is."""
    scope: Scope
    csrf: str | None
    """Must come with whatever a browser wants changed; None where a token was given, which no other site can send."""

    @property
    def may(self) -> frozenset[Permission]:
        """What the caller is let do."""
        return GRANTS[self.scope]


class SignInNeeded(HTTPException):
    """Nobody is signed in; pages send to the sign-in, the API answers 401."""

    def __init__(self) -> None:
        super().__init__(
            401,
            "no valid token or session came with the request; send `Authorization: Bearer TOKEN`, or sign in",
            headers={"WWW-Authenticate": 'Bearer realm="talaria"'},
        )


class Doorman:
    """Finds out who asks, and lets through who may."""

    def __init__(self, access: Access, *, clock: Callable[[], datetime]) -> None:
        self._access, self._clock = access, clock

    def caller(self, request: Request) -> Caller | None:
        """
        Who sends a request; None for nobody we know. A token that is given counts alone.

        Raises:
            LedgerAway: Nobody can be known now.
        """
        header = request.headers.get("authorization")
        if header is not None:
            scheme, _, token = header.partition(" ")
            return self._known(token.strip(), CredentialKind.TOKEN) if scheme.lower() == "bearer" else None
        return self._known(request.cookies.get(COOKIE, ""), CredentialKind.SESSION)

    def _known(self, secret: str, kind: CredentialKind) -> Caller | None:
        if not 0 < len(secret) <= _LONGEST_SECRET:
            return None
        now = self._clock()
        found = self._access.find(secret, kind, now=now)
        if found is None:
            return None
        if found.seen is None or now - found.seen >= SEEN_EVERY:
            with contextlib.suppress(LedgerAway):  # a ledger that can be read still answers
                self._access.saw(secret, now=now)
        is_token = kind is CredentialKind.TOKEN or found.of_token
        csrf = csrf_token(secret) if kind is CredentialKind.SESSION else None
        return Caller(
            name=found.name, actor=f"token:{found.name}" if is_token else found.name, scope=found.scope, csrf=csrf
        )

    async def admit(self, request: Request, permission: Permission | None) -> None:
        """
        Let a request through to its route, or raise.

        1. A route that declares no permission is closed to everybody.
        2. An open route is open.
        3. Else somebody must be signed in, and may do what the route asks.
        4. What changes something must come from our own pages, if it comes with a cookie.

        Raises:
            HTTPException: 401 or 403.
            LedgerAway: Nobody can be known now.
        """
        if permission is None:
            raise HTTPException(403, f"{request.url.path} declares no permission, so nobody has it")
        if permission is Permission.OPEN:
            return
        caller = await run_in_threadpool(self.caller, request)
        if caller is None:
            raise SignInNeeded
        if permission not in caller.may:
            raise HTTPException(
                403, f"{caller.actor} may {caller.scope}, and this asks for {permission}; use a token with that scope"
            )
        await _refuse_forged(request, caller)
        request.state.caller = caller


class GatedRoute(APIRoute):
    """A route behind the doorman, who is asked before the body of a request is read."""

    def __init__(
        self, path: str, endpoint: Callable[..., Any], *, permission: Permission | None = None, **rest: Any
    ) -> None:
        self.permission = permission
        super().__init__(path, endpoint, **rest)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request: the gate, then the endpoint."""
        answer = super().get_route_handler()

        field = self.body_field
        takes_json = field is not None and not isinstance(field.field_info, params.Form)

        async def gated(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            doorman: Doorman = request.app.state.doorman
            await doorman.admit(strict, self.permission)
            if takes_json:
                refuse_other_than_json(strict)
            return await answer(strict)

        return gated


def actor_of(request: Request) -> str:
    """Whom the ledger names for what a request asks, once it was let through."""
    caller: Caller = request.state.caller
    return caller.actor


def csrf_token(session: str) -> str:
    """The token that pages of a session put into their forms; tells nothing of the session itself."""
    return hmac.new(session.encode(), b"csrf", hashlib.sha256).hexdigest()


async def _refuse_forged(request: Request, caller: Caller) -> None:
    if request.method in _SAFE or caller.csrf is None:
        return
    if is_foreign(request.headers):
        raise HTTPException(403, "refused: the request does not say that it comes from a page of this server")
    given = request.headers.get("x-csrf-token") or await _form_token(request)
    if not hmac.compare_digest(given.encode(), caller.csrf.encode()):
        raise HTTPException(403, "refused: the page it comes from is out of date; load it again")


async def _form_token(request: Request) -> str:
    if not request.headers.get("content-type", "").startswith(_FORMS):
        return ""
    token = (await request.form()).get("csrf")
    return token if isinstance(token, str) else ""


def is_foreign(headers: Mapping[str, str]) -> bool:
    """
    Whether a request that changes something was not sent by one of our own pages, as far as the browser tells.

    A browser tells always; who does not is taken for foreign. Over plain HTTP, and under our policy of no referrer,
    our own forms send the origin `null`, as others may: then it is left to the CSRF token.

    Source: Fetch Metadata (`Sec-Fetch-Site`), Fetch 3.1 (`Origin`, when it is `null`).
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = headers.get("origin")
    if origin is None:
        return True
    return origin != "null" and _host(origin) != headers.get("host", "").lower()


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def local_path(text: str) -> str:
    """
    Where to go after signing in: a path of this server, `/` for anything else.

    >>> local_path("/studies/1.2?x=1"), local_path("//elsewhere.example/"), local_path("https://elsewhere.example")
    ('/studies/1.2?x=1', '/', '/')
    """
    return text if _LOCAL_PATH.fullmatch(text) else "/"


def sign_in_address(request: Request) -> str:
    """The sign-in that leads back to a page."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if request.method not in _SAFE or here == "/":
        return "/login"
    return f"/login?next={quote(here, safe='/')}"


# -- signing in --


class Throttle:
    """
    Slows down who guesses: after a few failures from one address each further one doubles the wait.

    Kept in memory, of so many addresses at most, the one longest silent forgotten first.
    """

    def __init__(
        self,
        *,
        free: int = 5,
        first: timedelta = timedelta(seconds=1),
        most: timedelta = timedelta(minutes=15),
        size: int = 10_000,
    ) -> None:
        self._free, self._first, self._most, self._size = free, first, most, size
        self._failures: OrderedDict[str, tuple[int, datetime]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, address: str, *, now: datetime) -> timedelta:
        """How long an address has to wait before its next attempt; nothing for most."""
        with self._lock:
            count, last = self._failures.get(_network(address), (0, now))
        if count < self._free:
            return timedelta(0)
        pause = min(self._first * (1 << min(count - self._free, 30)), self._most)
        return max(last + pause - now, timedelta(0))

    def failed(self, address: str, *, now: datetime) -> None:
        """Count a failure; what lies a day back is forgotten."""
        network = _network(address)
        with self._lock:
            count, last = self._failures.pop(network, (0, now))
            self._failures[network] = (1 if now - last > timedelta(days=1) else count + 1, now)
            while len(self._failures) > self._size:
                self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        """Forget the failures of an address."""
        with self._lock:
            self._failures.pop(_network(address), None)


def _network(address: str) -> str:
    """An IPv6 host has 2**64 addresses of its own, so its network counts as one (RFC 4291 2.5.4)."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((found, 64), strict=False)) if isinstance(found, IPv6Address) else address


class Entrance:
    """Exchanges what a person holds for a session, and ends it."""

    def __init__(self, access: Access, *, clock: Callable[[], datetime]) -> None:
        self._access, self._clock = access, clock
        self._throttle = Throttle()

    def pause(self, address: str) -> timedelta:
        """How long an address has to wait before it may try again."""
        return self._throttle.wait(address, now=self._clock())

    def enter(self, *, token: str, link: str, address: str) -> str | None:
        """
        A session for a token or a one-time link, which is used up by it.

        Returns:
            The session's secret; None when neither is good, which is counted against *address*.
        """
        now = self._clock()
        session = self._access.redeem(link, now=now, session=SESSION_LIFETIME) if link else None
        if session is None and token:
            with contextlib.suppress(Refused):  # it was revoked in this very moment
                session = self._session_of(self._access.find(token, CredentialKind.TOKEN, now=now), token, now)
        if session is None:
            self._throttle.failed(address, now=now)
        else:
            self._throttle.succeeded(address)
        return session

    def leave(self, session: str, *, name: str) -> None:
        """End a session."""
        self._access.revoke(
            kind=CredentialKind.SESSION, secret=session, name=name, actor=name, now=self._clock()
        )  # fmt: skip

    def _session_of(self, token: Credential | None, secret: str, now: datetime) -> str | None:
        """No longer than the token itself lives, and no more than it may do."""
        if token is None:
            return None
        lifetime = SESSION_LIFETIME if token.expires is None else min(SESSION_LIFETIME, token.expires - now)
        return self._access.issue(
            CredentialKind.SESSION, name=token.name, actor=f"token:{token.name}", now=now, lifetime=lifetime,
            scope=token.scope, parent=secret,
        )  # fmt: skip
