"""The site: one table of routes, each with the permission it asks, and what is answered when something goes wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from http import HTTPStatus
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
from talaria.store.metering import Metering
from talaria.store.operations import Operations
from talaria.store.results import Results
from talaria.store.revisions import Rulebooks
from talaria.store.spool import Spool
from talaria.web import api, api_results, api_rulebook
from talaria.web.api import Api
from talaria.web.api_jobs import JobActs
from talaria.web.api_results import ResultsApi
from talaria.web.api_rulebook import RulebookApi
from talaria.web.auth import Doorman, Entrance, GatedRoute, Permission, SignInNeeded, sign_in_address
from talaria.web.bodies import BodyRefused
from talaria.web.health import Health
from talaria.web.metrics import Metrics
from talaria.web.pages import Pages, SignIn, Templates
from talaria.web.problems import PROBLEMS, document, field_problems, problem
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
    answers: Mapping[int | str, dict[str, Any]] = field(default_factory=dict)
    """What it answers besides what all do, for the OpenAPI document."""
    takes: Mapping[str, Any] = field(default_factory=dict)
    """What it takes that its signature does not say, for the same."""

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
            responses={**PROBLEMS, **self.answers} if self.is_documented else None,
            openapi_extra={**self.takes, "x-permission": self.permission} if self.is_documented else None,
        )  # fmt: skip


class _Document:
    """Answers `/api/v1/openapi.json`."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    @cached_property
    def _content(self) -> dict[str, Any]:
        return document(self._app.routes, version=__version__)

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
    metrics_open: bool = False,
) -> FastAPI:
    """
    The pages and the API, ready to be served.

    Args:
        ledger, listing, access, rulebooks: What is shown, and who may see it.
        spools: Whose disks are shown.
        clock: The time; aware, UTC.
        secure_cookies: Whether it is served over TLS, and its cookies with nothing less.
        reserve_bytes: With less than this free on a spool, nothing is accepted and we are not ready.
        metrics_open: Whether `/metrics` is told to everybody.
    """
    templates = Templates()
    doorman = Doorman(access, clock=clock)
    app = FastAPI(
        title="Talaria", version=__version__, openapi_url=None, docs_url=None, redoc_url=None,
        middleware=[Middleware(Shield)], redirect_slashes=False,
    )  # fmt: skip
    app.state.doorman = doorman
    app.router.route_class = GatedRoute  # what is not in the table below declares nothing, and is closed
    operations, jobs = Operations(ledger, rulebooks), Jobs(ledger)
    shown = _Shown(
        api=Api(listing=listing, jobs=jobs),
        acts=JobActs(operations=operations, jobs=jobs, listing=listing, clock=clock),
        results=ResultsApi(results=Results(ledger)),
        rulebook=RulebookApi(rulebooks=rulebooks, clock=clock),
        health=Health(
            listing=listing, operations=operations, spools=spools, doorman=doorman, clock=clock,
            reserve_bytes=reserve_bytes,
        ),
        metrics=Metrics(
            metering=Metering(ledger), listing=listing, revisions=rulebooks.revisions, operations=operations,
            spools=spools, clock=clock, reserve_bytes=reserve_bytes,
        ),
        pages=Pages(
            listing=listing, operations=operations, spools=spools, rulebooks=rulebooks, templates=templates,
            clock=clock, reserve_bytes=reserve_bytes,
        ),
        sign_in=SignIn(
            entrance=Entrance(access, clock=clock), templates=templates, secure_cookies=secure_cookies
        ),
        templates=templates,
        document=_Document(app),
    )  # fmt: skip
    app.router.routes.extend(entry.route() for entry in _table(shown, metrics_open=metrics_open))
    _add_handlers(app, templates)
    return app


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Whose methods answer."""

    api: Api
    acts: JobActs
    results: ResultsApi
    rulebook: RulebookApi
    health: Health
    metrics: Metrics
    pages: Pages
    sign_in: SignIn
    templates: Templates
    document: _Document


def _table(shown: _Shown, *, metrics_open: bool) -> tuple[Entry, ...]:
    """Every route there is."""
    open_, view = Permission.OPEN, Permission.VIEW
    lines = (
        ("GET", "/", shown.pages.overview, view),
        ("GET", "/studies/{study_uid}", shown.pages.study, view),
        ("GET", "/login", shown.sign_in.show, open_),
        ("POST", "/login", shown.sign_in.enter, open_),
        ("POST", "/logout", shown.sign_in.leave, view),
        ("GET", "/static/{name}", shown.templates.static, open_),
        ("GET", "/health/live", shown.health.live, open_),
        ("GET", "/health/ready", shown.health.ready, open_),
        ("GET", "/metrics", shown.metrics.metrics, open_ if metrics_open else view),
        ("GET", "/api/v1/openapi.json", shown.document.show, open_),
    )
    own = tuple(Entry(method=m, path=path, endpoint=endpoint, permission=p) for m, path, endpoint, p in lines)
    return (*own, *_api_of_work(shown), *_api_of_rulebook(shown))


def _api_of_work(shown: _Shown) -> tuple[Entry, ...]:
    """What is told and done about studies and jobs."""
    own, acts, view, operate = shown.api, shown.acts, Permission.VIEW, Permission.OPERATE
    lines = (
        ("GET", "/studies", own.list_studies, view),
        ("GET", "/studies/{study_uid}", own.show_study, view),
        ("POST", "/studies/{study_uid}/route", acts.route_study, operate),
        ("POST", "/studies/{study_uid}/send", acts.send_study, operate),
        ("POST", "/studies/{study_uid}/release", acts.release_study, operate),
        ("GET", "/instances/{sop_instance_uid}", own.show_instance, view),
        ("GET", "/jobs", own.list_jobs, view),
        ("GET", "/jobs/{job_id}", own.show_job, view),
        ("POST", "/jobs/{act}", acts.act_on_jobs, operate),
        ("POST", "/jobs/{job_id}/{act}", acts.act_on_job, operate),
        ("GET", "/deliveries", own.list_deliveries, view),
        ("GET", "/events", own.list_events, view),
        ("GET", "/pauses", acts.list_pauses, view),
        ("PUT", "/pauses/{kind}", acts.pause_kind, operate),
        ("DELETE", "/pauses/{kind}", acts.resume_kind, operate),
        ("PUT", "/pauses/{kind}/{target}", acts.pause_target, operate),
        ("DELETE", "/pauses/{kind}/{target}", acts.resume_target, operate),
        ("GET", "/drain", acts.show_drain, view),
        ("PUT", "/drain", acts.drain, operate),
        ("DELETE", "/drain", acts.undrain, operate),
    )
    results = Entry(
        method="GET", path=f"{api.ROOT}/results", endpoint=shown.results.list_results, permission=view,
        answers=api_results.FORMS,
    )  # fmt: skip
    return (*(Entry(method=m, path=f"{api.ROOT}{path}", endpoint=e, permission=p) for m, path, e, p in lines), results)


def _api_of_rulebook(shown: _Shown) -> tuple[Entry, ...]:
    """What is told and done about the rulebook."""
    book, view, administer, root = shown.rulebook, Permission.VIEW, Permission.ADMINISTER, f"{api.ROOT}/rulebook"
    changed = {**api_rulebook.SAVED, **api_rulebook.PRECONDITIONS}
    return (
        Entry(method="GET", path=root, endpoint=book.show_rulebook, permission=view, answers=api_rulebook.SHOWN),
        Entry(
            method="PUT", path=root, endpoint=book.save_rulebook, permission=administer, answers=changed,
            takes=api_rulebook.TAKEN,
        ),
        Entry(method="GET", path=f"{root}/revisions", endpoint=book.list_revisions, permission=view),
        Entry(method="GET", path=f"{root}/revisions/{{number}}", endpoint=book.show_revision, permission=view),
        Entry(method="GET", path=f"{root}/diff", endpoint=book.diff_revisions, permission=view),
        Entry(
            method="POST", path=f"{root}/rollback", endpoint=book.roll_back, permission=administer, answers=changed
        ),
        Entry(
            method="POST", path=f"{api.ROOT}/targets/{{target}}/check", endpoint=book.check_target,
            permission=Permission.OPERATE,
        ),
    )  # fmt: skip


# -- when something goes wrong --


def _is_for_machines(request: Request) -> bool:
    return request.url.path.startswith(("/api/", "/health/", "/metrics"))


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
        more = {"errors": error.problems} if isinstance(error, BodyRefused) and _is_for_machines(request) else {}
        return tell(request, error.status_code, _http_words(request, error), headers=error.headers, **more)

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
    if error.status_code == 404 and error.detail == HTTPStatus.NOT_FOUND.phrase:
        return "there is nothing at this address"
    if error.status_code == 405:
        return f"{request.method} is not possible here"
    return error.detail
