"""The site: one table of routes, each with the permission it asks, and what is answered when something goes wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from talaria import __version__
from talaria.model.errors import LedgerAway, Overtaken, Refused
from talaria.store.access import Access
from talaria.store.jobs import Jobs
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing
from talaria.store.revisions import Rulebooks
from talaria.store.spool import Spool
from talaria.web import api
from talaria.web.api import Api, field_problems, problem
from talaria.web.auth import Doorman, Entrance, GatedRoute, Permission, SignInNeeded, sign_in_address
from talaria.web.health import Health
from talaria.web.pages import Pages, SignIn, Templates
from talaria.web.shield import Shield, cover

_AWAY = "the ledger cannot be reached; images go on being accepted, and nothing is lost; try again in a moment"
_BROKEN = "a bug stopped this request; the log has its place"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the route table."""

    method: str
    path: str
    endpoint: Callable[..., Any]
    permission: Permission

    @property
    def is_documented(self) -> bool:
        """Whether it stands in the OpenAPI document."""
        return self.path.startswith(f"{api.ROOT}/") and self.path != f"{api.ROOT}/openapi.json"

    def route(self) -> GatedRoute:
        """The route itself; what is not part of the API answers HEAD, too."""
        return GatedRoute(
            self.path, self.endpoint, permission=self.permission,
            methods=[self.method] if self.is_documented or self.method != "GET" else ["GET", "HEAD"],
            include_in_schema=self.is_documented,
            operation_id=getattr(self.endpoint, "__name__", None),
            responses=dict(api.PROBLEMS) if self.is_documented else None,
        )  # fmt: skip


class _Document:
    """Answers `/api/v1/openapi.json`."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    @cached_property
    def _content(self) -> dict[str, Any]:
        return api.document(self._app.routes, version=__version__)

    def show(self) -> JSONResponse:
        """The document; it tells what can be asked, and nothing of what there is."""
        return JSONResponse(self._content)


def create_site(
    *,
    ledger: Ledger,
    listing: Listing,
    access: Access,
    spools: Sequence[Spool],
    rulebooks: Rulebooks,
    clock: Callable[[], datetime],
    secure_cookies: bool,
    reserve_bytes: int = 1 << 30,
) -> FastAPI:
    """
    The pages and the API, ready to be served.

    Args:
        ledger, listing, access, rulebooks: What is shown, and who may see it.
        spools: Whose disks are shown.
        clock: The time; aware, UTC.
        secure_cookies: Whether it is served over TLS, and its cookies with nothing less.
        reserve_bytes: With less than this free on a spool, nothing is accepted and we are not ready.
    """
    templates = Templates()
    doorman = Doorman(access, clock=clock)
    app = FastAPI(
        title="Talaria", version=__version__, openapi_url=None, docs_url=None, redoc_url=None,
        middleware=[Middleware(Shield)], redirect_slashes=False,
    )  # fmt: skip
    app.state.doorman = doorman
    app.router.route_class = GatedRoute  # what is not in the table below declares nothing, and is closed
    health = Health(listing=listing, spools=spools, doorman=doorman, clock=clock, reserve_bytes=reserve_bytes)
    pages = Pages(
        listing=listing, spools=spools, rulebooks=rulebooks, templates=templates, clock=clock,
        reserve_bytes=reserve_bytes,
    )  # fmt: skip
    sign_in = SignIn(
        entrance=Entrance(access, clock=clock), templates=templates, secure_cookies=secure_cookies
    )  # fmt: skip
    table = _table(
        Api(listing=listing, jobs=Jobs(ledger)), health=health, pages=pages, sign_in=sign_in, templates=templates,
        document=_Document(app),
    )  # fmt: skip
    app.router.routes.extend(entry.route() for entry in table)
    _add_handlers(app, templates)
    return app


def _table(
    own: Api, *, health: Health, pages: Pages, sign_in: SignIn, templates: Templates, document: _Document
) -> tuple[Entry, ...]:
    """Every route there is."""
    open_, view = Permission.OPEN, Permission.VIEW
    lines: tuple[tuple[str, str, Callable[..., Any], Permission], ...] = (
        ("GET", "/", pages.overview, view),
        ("GET", "/studies/{study_uid}", pages.study, view),
        ("GET", "/login", sign_in.show, open_),
        ("POST", "/login", sign_in.enter, open_),
        ("POST", "/logout", sign_in.leave, view),
        ("GET", "/static/{name}", templates.static, open_),
        ("GET", "/health/live", health.live, open_),
        ("GET", "/health/ready", health.ready, open_),
        ("GET", "/api/v1/openapi.json", document.show, open_),
        ("GET", "/api/v1/studies", own.list_studies, view),
        ("GET", "/api/v1/studies/{study_uid}", own.show_study, view),
        ("GET", "/api/v1/instances/{sop_instance_uid}", own.show_instance, view),
        ("GET", "/api/v1/jobs", own.list_jobs, view),
        ("GET", "/api/v1/jobs/{job_id}", own.show_job, view),
        ("GET", "/api/v1/deliveries", own.list_deliveries, view),
        ("GET", "/api/v1/events", own.list_events, view),
    )
    return tuple(Entry(method=m, path=path, endpoint=endpoint, permission=p) for m, path, endpoint, p in lines)


# -- when something goes wrong --


def _is_for_machines(request: Request) -> bool:
    return request.url.path.startswith(("/api/", "/health/"))


def _add_handlers(app: FastAPI, templates: Templates) -> None:
    """Problem documents for machines, pages for people; neither shows a traceback."""

    def tell(request: Request, status: int, detail: str, **more: Any) -> Response:
        if _is_for_machines(request):
            return problem(status, detail, **more)
        return templates.error(status, detail, headers=more.get("headers"))

    async def sign_in_needed(request: Request, error: Exception) -> Response:
        assert isinstance(error, SignInNeeded)
        if _is_for_machines(request):
            return problem(401, error.detail, headers=error.headers)
        return RedirectResponse(sign_in_address(request), status_code=303)

    async def refused_by_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return tell(request, error.status_code, _http_words(request, error), headers=error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = field_problems(error.errors())
        detail = "; ".join(f"{each.field}: {each.message}" for each in found[:5])
        return tell(request, 422, detail, errors=found)

    async def refused(request: Request, error: Exception) -> Response:
        is_missing = request.method in {"GET", "HEAD"} and not isinstance(error, Overtaken)
        return tell(request, 404 if is_missing else 409, str(error))

    async def away(request: Request, _: Exception) -> Response:
        if _is_for_machines(request):
            return problem(503, _AWAY, headers={"Retry-After": "5"})
        return templates.degraded()

    async def broken(request: Request, _: Exception) -> Response:
        answer = tell(request, 500, _BROKEN)
        cover(answer.headers)  # it is made outside of what covers the others
        return answer

    app.add_exception_handler(SignInNeeded, sign_in_needed)
    app.add_exception_handler(HTTPException, refused_by_http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(LedgerAway, away)
    app.add_exception_handler(Exception, broken)


def _http_words(request: Request, error: HTTPException) -> str:
    """What an HTTP error says, where it says more than its number."""
    if error.status_code == 404:
        return "there is nothing at this address"
    if error.status_code == 405:
        return f"{request.method} is not possible here"
    return error.detail
