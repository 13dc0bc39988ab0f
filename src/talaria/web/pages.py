"""The pages: what stands on each, gathered for its template."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated

from fastapi import Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from talaria.model.job import Kind, State
from talaria.model.rulebook import Rulebook
from talaria.store.listing import Listing, QueueLine, StudyLife
from talaria.store.operations import Operations
from talaria.store.revisions import Rulebooks
from talaria.store.spool import Spool
from talaria.web.api import LOG_CHARACTERS, StudyUID
from talaria.web.auth import COOKIE, SESSION_LIFETIME, Caller, Entrance, local_path
from talaria.web.health import MISSED, disk_of, services_of
from talaria.web.phrases import Clockface, bytes_in_words, event_in_words, name_in_words, seconds_in_words, thousands

#: Studies on the first page.
_LAST = 50

#: What waits, in the order of its columns.
_WAITING = (State.PENDING, State.ACTIVE, State.DEFERRED, State.HELD, State.FAILED)

_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, kw_only=True)
class QueueRow:
    """A row of the queue."""

    target: str
    counts: tuple[tuple[State, int], ...]
    """How many are in which state, for every column."""
    oldest: datetime | None
    reason: str


class Templates:
    """The templates, and the static files they name."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=PackageLoader("talaria.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        folder = files("talaria.web") / "static"
        self._static = {file.name: file.read_bytes() for file in folder.iterdir()}
        self._environment.globals["static"] = self.static_address
        self._environment.filters |= {
            "bytes": bytes_in_words,
            "person": name_in_words,
            "thousands": thousands,
            "seconds": seconds_in_words,
        }

    def static_address(self, name: str) -> str:
        """Where a static file is; another address once its content is another, so that it is kept for ever."""
        return f"/static/{name}?v={hashlib.sha256(self._static[name]).hexdigest()[:12]}"

    def static(self, name: str, v: str = "") -> Response:
        """A static file of ours, by its name alone."""
        content = self._static.get(name)
        media_type = _MEDIA_TYPES.get(name[name.rfind(".") :])
        if content is None or media_type is None:
            raise HTTPException(404)
        return Response(content, media_type=media_type, headers={"Cache-Control": _FOREVER if v else "no-cache"})

    def page(self, name: str, context: Mapping[str, object], *, status: int = 200) -> HTMLResponse:
        """A page from its template."""
        return HTMLResponse(self._environment.get_template(name).render(context), status_code=status)

    def error(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> HTMLResponse:
        """A page that says what went wrong; it names nobody's data."""
        page = self.page("error.html", {"title": HTTPStatus(status).phrase, "detail": detail}, status=status)
        page.headers.update(headers or {})
        return page

    def degraded(self) -> HTMLResponse:
        """The page while the ledger is away."""
        return self.page("degraded.html", {}, status=503)


class Pages:
    """The pages behind the sign-in."""

    def __init__(
        self,
        *,
        listing: Listing,
        operations: Operations,
        spools: Sequence[Spool],
        rulebooks: Rulebooks,
        templates: Templates,
        clock: Callable[[], datetime],
        reserve_bytes: int,
    ) -> None:
        self._operations = operations
        self._listing, self._spools, self._rulebooks, self._templates = listing, spools, rulebooks, templates
        self._clock, self._reserve_bytes = clock, reserve_bytes

    def overview(self, request: Request) -> HTMLResponse:
        """Services, disk, queue, and the last studies."""
        now = self._clock()
        book = self._rulebooks.follow(now)
        services = services_of(self._listing.workers(since=now - MISSED), now=now)
        context = {
            "book": book,
            "services": services,
            "pauses": self._operations.paused(),
            "silent": [service for service in services if not service.is_heard],
            "disks": [disk_of(spool, reserve_bytes=self._reserve_bytes) for spool in self._spools],
            "queue": [_queue_row(line) for line in self._listing.queue()],
            "states": _WAITING,
            "studies": self._listing.studies(limit=_LAST),
        }
        return self._templates.page("overview.html", {**_seen_by(request, book, now), **context})

    def study(self, request: Request, study_uid: StudyUID) -> HTMLResponse:
        """The life of one study."""
        now = self._clock()
        life = self._listing.study(study_uid)
        context = {
            "life": life,
            "study": life.line,
            "words": _events_in_words(life),
            "log_characters": LOG_CHARACTERS,
        }
        return self._templates.page("study.html", {**_seen_by(request, self._rulebooks.follow(now), now), **context})


class SignIn:
    """The way in, and the way out."""

    def __init__(self, *, entrance: Entrance, templates: Templates, secure_cookies: bool) -> None:
        self._entrance, self._templates, self._secure_cookies = entrance, templates, secure_cookies

    def show(
        self,
        link: Annotated[str, Query(max_length=512)] = "",
        after: Annotated[str, Query(alias="next", max_length=2000)] = "/",
    ) -> HTMLResponse:
        """The form; a one-time link is not used up by looking, as programs that preview links do."""
        return self._form(link=link, after=after)

    def enter(
        self,
        request: Request,
        token: Annotated[str, Form(max_length=512)] = "",
        link: Annotated[str, Form(max_length=512)] = "",
        after: Annotated[str, Form(alias="next", max_length=2000)] = "/",
    ) -> Response:
        """Exchange a token or a link for a session."""
        address = request.client.host if request.client else ""
        pause = self._entrance.pause(address)
        if pause:
            return self._slow_down(pause, after=after)
        session = self._entrance.enter(token=token.strip(), link=link, address=address)
        if session is None:
            wrong = "This link was used before, or has expired." if link else "This is no valid token."
            return self._form(after=after, wrong=wrong, status=401)
        answer = RedirectResponse(local_path(after), status_code=303)
        answer.set_cookie(
            COOKIE, session, max_age=int(SESSION_LIFETIME.total_seconds()), httponly=True, samesite="lax",
            secure=self._secure_cookies,
        )  # fmt: skip
        return answer

    def leave(self, request: Request) -> Response:
        """End the session."""
        caller: Caller = request.state.caller
        self._entrance.leave(request.cookies.get(COOKIE, ""), name=caller.name)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=self._secure_cookies)
        return answer

    def _slow_down(self, pause: timedelta, *, after: str) -> HTMLResponse:
        seconds = math.ceil(pause.total_seconds())
        page = self._form(after=after, wrong=f"Too many failed attempts; try again in {seconds} s.", status=429)
        page.headers["Retry-After"] = str(seconds)
        return page

    def _form(self, *, link: str = "", after: str, wrong: str = "", status: int = 200) -> HTMLResponse:
        return self._templates.page(
            "login.html", {"link": link, "next": local_path(after), "wrong": wrong}, status=status
        )


def _seen_by(request: Request, book: Rulebook, now: datetime) -> dict[str, object]:
    """What every page needs of who reads it and when."""
    caller: Caller = request.state.caller
    return {"caller": caller, "clock": Clockface(now=now, zone=book.settings.time_zone)}


def _queue_row(line: QueueLine) -> QueueRow:
    return QueueRow(
        target=line.target or ("to be processed" if line.kind is Kind.PROCESS else "messages"),
        counts=tuple((state, line.states.get(state, 0)) for state in _WAITING),
        oldest=line.oldest,
        reason=line.reason,
    )


def _events_in_words(life: StudyLife) -> dict[int, str]:
    return {event.id: event_in_words(event.kind, actor=event.actor, detail=event.detail) for event in life.events}
