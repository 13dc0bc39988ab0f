"""The JSON of `/api/v1`: what there is to see, a page at a time, and problem documents for all that goes wrong."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from fastapi import Path, Query
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.routing import BaseRoute

from talaria.model import job as model
from talaria.model.dicom import UID
from talaria.model.errors import Refused
from talaria.model.plan import CaseState
from talaria.store.jobs import Jobs
from talaria.store.listing import PAGE, Listing, RunLine

ROOT = "/api/v1"

#: The largest key that a database counts to.
_MOST = 2**63 - 1

#: The last of a module's log that is shown.
LOG_CHARACTERS = 64 * 1024

Item = TypeVar("Item")


# -- what is asked --

StudyUID = Annotated[UID, Path(description="Study Instance UID.", max_length=64)]
SOPInstanceUID = Annotated[UID, Path(description="SOP Instance UID.", max_length=64)]
JobId = Annotated[int, Path(description="The job's number.", ge=1, le=_MOST)]
Limit = Annotated[int, Query(description="Items wanted; the answer may have fewer.", ge=1, le=PAGE)]
Number = Annotated[str | None, Query(description="`next` of the page before.", pattern=r"^[0-9]{1,18}$")]
Place = Annotated[
    str | None, Query(description="`next` of the page before.", pattern=r"^[0-9TZ:.-]{10,40}~[0-9]{1,18}$")
]
Name = Annotated[str | None, Query(description="By the name it has in the rulebook.", max_length=200)]
JobState = Annotated[model.State | None, Query(description="Where it stands.")]
JobKind = Annotated[model.Kind | None, Query(description="What it does.")]

#: A study is said to stand as the worst of its parts does.
StudyStanding = Literal[
    "receiving", "collecting", "pending", "active", "deferred", "held", "done", "failed", "cancelled", "discarded"
]
StudyState = Annotated[
    StudyStanding | None,
    Query(description="Only these; pages may then be shorter than `limit`, or empty, though `next` leads on."),
]


# -- what is answered --


class Answer(BaseModel):
    """Something that is answered; times are UTC."""

    model_config = ConfigDict(frozen=True, from_attributes=True, use_attribute_docstrings=True)


class Listed(Answer, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    """In the order of the list."""
    next: str | None
    """Send it back as `after` for the next page; null at the end."""


class _StudyFacts(Answer):
    """What is told of a study, in a list and alone."""

    study_uid: str
    """Study Instance UID."""
    patient_name: str
    """As in the first instance received."""
    patient_id: str
    """As in the first instance received."""
    accession_number: str
    """As in the first instance received."""
    description: str
    """Study Description."""
    modalities: list[str]
    """Of its series."""
    instances: int
    """How many were received and are current."""
    size_bytes: int
    """Of these instances."""
    state: StudyStanding
    """Of the part of it that stands worst."""
    reason: str
    """Why it stands so, in words; empty when all is well."""
    rules: list[str]
    """Those that took it."""
    received: datetime
    """When its first instance came."""
    updated: datetime
    """When its last instance came."""


class Study(_StudyFacts):
    """A study in a list."""

    series: int
    """How many were received."""


class Series(Answer):
    """A series of a study, received or made by a module."""

    series_uid: str
    """Series Instance UID."""
    modality: str
    """Of its first instance received."""
    description: str
    """Series Description."""
    instances: int
    """That are current."""
    size_bytes: int
    """Of these instances."""
    calling_ae: str
    """Who sent it."""
    called_ae: str
    """To whom."""
    address: str
    """From which network address; empty where it came over no network."""
    received: datetime
    """When its first instance came."""
    updated: datetime
    """When its last instance came."""
    made_by_job: int | None
    """The process job that made it; null where it was received."""
    superseded: bool
    """Whether later results took its place."""
    odd: int
    """Instances with something odd in their header."""


class Case(Answer):
    """What a rule acts on: a series, or the collected series of a study."""

    id: int
    """Its number."""
    rule: str
    """The rule that took it; empty where none did."""
    series_uid: str | None
    """Series Instance UID; null where the case is the study."""
    state: CaseState
    """Where it stands."""
    reason: str
    """Why, in words."""
    supplement: int
    """How often late instances were added."""
    revision: int
    """Of the rulebook that was asked."""
    opened: datetime
    """When the rule took it."""


class Job(Answer):
    """One thing to be done."""

    id: int
    """Its number; later jobs have higher ones."""
    study_uid: str
    """Study Instance UID."""
    series_uid: str | None
    """Series Instance UID; null where it is about a study."""
    rule: str
    """The first that asked for it."""
    revision: int
    """Of the rulebook it was made under."""
    kind: model.Kind
    """What it does."""
    state: model.State
    """Where it stands."""
    attempt: int
    """Counted when it is taken up; 0 before."""
    reason: str
    """Why it is where it is, in words; empty when all is well."""
    created: datetime
    """When it was made."""
    due: datetime
    """It is not taken up before this."""
    updated: datetime
    """When its state changed last."""
    target: str | None
    """Of a dispatch job."""
    parent: int | None
    """The process job whose results it delivers."""
    priority: Literal["urgent", "normal", "offpeak"]
    """What goes first."""
    supplement: int
    """0 for the first closing of its case, then counted."""

    @classmethod
    def of(cls, job: model.Job) -> Self:
        """A job of the ledger."""
        return cls.model_validate(
            {
                **{name: getattr(job, name) for name in cls.model_fields.keys() & vars(job).keys()},
                "study_uid": job.study_instance_uid,
                "series_uid": job.series_instance_uid,
                "priority": job.priority.name.lower(),
            }
        )


class Delivery(Answer):
    """The record of a dispatch job."""

    id: str
    """ULID."""
    job_id: int
    """The dispatch job."""
    study_uid: str
    """Study Instance UID."""
    rule: str
    """The first that asked for it."""
    target: str
    """Where it goes."""
    state: model.State
    """Of its job."""
    sent: int
    """Instances that the target has."""
    total: int
    """Instances that it is to have."""
    attempt: int
    """Of its job."""
    reason: str
    """Why it is where it is, in words; empty when all is well."""
    due: datetime
    """It is not taken up before this."""
    created: datetime
    """When it was made."""
    updated: datetime
    """When its state changed last."""
    seconds: float
    """Spent sending, all attempts together."""
    size_bytes: int
    """Sent, all attempts together."""


class Run(Answer):
    """One step of one attempt of a process job."""

    job_id: int
    """The process job."""
    attempt: int
    """Of that job."""
    step: int
    """Of its chain, counted from 1."""
    module: str
    """By its name in the rulebook."""
    code: int
    """Its exit code."""
    reason: str
    """What that means, in words."""
    seconds: float
    """How long it took."""
    ended: datetime
    """When it ended."""
    log: str
    """The last of what it said."""

    @classmethod
    def of(cls, run: RunLine) -> Self:
        """A run of the ledger, its log cut."""
        return cls.model_validate({**vars(run), "log": run.log[-LOG_CHARACTERS:]})


class Event(Answer):
    """One thing that happened."""

    id: int
    """Its number; events are only ever added."""
    time: datetime
    """When."""
    kind: str
    """What."""
    actor: str
    """Who did it; empty where it happened by itself."""
    study_uid: str | None
    """The study it is about."""
    series_uid: str | None
    """The series it is about."""
    instance_id: str | None
    """The ULID of the instance it is about."""
    job_id: int | None
    """The job it is about."""
    detail: dict[str, Any]
    """More of it, as its kind has it."""


class StudyLife(_StudyFacts):
    """A study and all that happened to it."""

    series: list[Series]
    """Its series, received and made."""
    cases: list[Case]
    """What rules made of it."""
    jobs: list[Job]
    """The oldest first."""
    deliveries: list[Delivery]
    """The newest first."""
    runs: list[Run]
    """What modules did."""
    events: list[Event]
    """The last of them, the oldest first."""


class Sending(Answer):
    """What became of an instance at one target."""

    target: str
    """Where."""
    job_id: int
    """The dispatch job."""
    standing: str
    """pending, sent, warned, verified or failed."""
    status: int | None
    """The far end's status, where it gave one."""
    detail: str
    """What it said."""
    attempt: int
    """Of the job, when this was found out."""
    times_sent: int
    """How often it was sent."""
    time: datetime
    """When this was found out."""


class Happening(Answer):
    """One thing that happened to an instance."""

    time: datetime
    """When."""
    kind: str
    """What."""
    detail: dict[str, Any]
    """More of it, as its kind has it."""


class Version(Answer):
    """One content that came, or was made, under a SOP Instance UID."""

    id: str
    """ULID."""
    study_uid: str
    """Study Instance UID."""
    series_uid: str
    """Series Instance UID."""
    sop_class_uid: str
    """SOP Class UID."""
    transfer_syntax_uid: str
    """As received."""
    size_bytes: int
    """Of its data set."""
    sha256: str
    """Of its data set as received, in hex."""
    received: datetime
    """When its last byte was safe."""
    made_by_job: int | None
    """The process job that made it; null where it was received."""
    superseded_by: str | None
    """The ULID of the version that took its place."""
    repeats: int
    """How often an identical copy came again."""
    flags: list[str]
    """What is odd in its header."""
    dropped: datetime | None
    """When retention removed its file."""
    deliveries: list[Sending]
    """Where it went."""
    events: list[Happening]
    """What happened to it."""


class Instance(Answer):
    """The whole history of a SOP instance."""

    sop_instance_uid: str
    """SOP Instance UID."""
    versions: list[Version]
    """In the order in which they came."""


class FieldProblem(BaseModel):
    """What is wrong with one part of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str
    """Which part: `query.limit`."""
    message: str
    """What is wrong with it."""


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    """What the status says is all there is to the kind of problem."""
    title: str
    """The status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong this time, and what to do."""
    errors: list[FieldProblem] | None = None
    """One for each part of the request that is wrong."""


# -- answering --


class Api:
    """The endpoints; each reads, none writes."""

    def __init__(self, *, listing: Listing, jobs: Jobs) -> None:
        self._listing, self._jobs = listing, jobs

    def list_studies(self, state: StudyState = None, limit: Limit = 50, after: Place = None) -> Listed[Study]:
        """Studies, the one heard of last first."""
        page = self._listing.studies(limit=limit, after=after, state=state)
        return Listed[Study](items=[Study.model_validate(line) for line in page.items], next=page.next)

    def show_study(self, study_uid: StudyUID) -> StudyLife:
        """A study and all that happened to it."""
        life = self._listing.study(study_uid)
        return StudyLife.model_validate(
            {
                **vars(life.line),
                "series": life.series,
                "cases": life.cases,
                "jobs": [Job.of(job) for job in life.jobs],
                "deliveries": life.deliveries,
                "runs": [Run.of(run) for run in life.runs],
                "events": life.events,
            }
        )

    def show_instance(self, sop_instance_uid: SOPInstanceUID) -> Instance:
        """The whole history of an instance: every version, where it went, what happened to it."""
        versions = self._listing.instance(sop_instance_uid)
        if not versions:
            raise Refused(f"no instance {sop_instance_uid} was ever received here")
        return Instance.model_validate({"sop_instance_uid": sop_instance_uid, "versions": versions})

    def list_jobs(
        self,
        state: JobState = None,
        rule: Name = None,
        target: Name = None,
        kind: JobKind = None,
        limit: Limit = 50,
        after: Number = None,
    ) -> Listed[Job]:
        """Jobs, the newest first."""
        page = self._listing.jobs(state=state, rule=rule, target=target, kind=kind, limit=limit, after=after)
        return Listed[Job](items=[Job.of(job) for job in page.items], next=page.next)

    def show_job(self, job_id: JobId) -> Job:
        """One job."""
        return Job.of(self._jobs.show(job_id))

    def list_deliveries(
        self, target: Name = None, state: JobState = None, limit: Limit = 50, after: Number = None
    ) -> Listed[Delivery]:
        """Deliveries, the newest first."""
        page = self._listing.deliveries(target=target, state=state, limit=limit, after=after)
        return Listed[Delivery](items=[Delivery.model_validate(line) for line in page.items], next=page.next)

    def list_events(
        self,
        after: Annotated[int, Query(description="Events with a higher number.", ge=0, le=_MOST)] = 0,
        limit: Annotated[int, Query(description="Items wanted.", ge=1, le=PAGE - 1)] = 100,
    ) -> Listed[Event]:
        """Events, the oldest first; to follow them, ask again with the number of the last one that was seen."""
        found = self._listing.events(after=after, limit=limit + 1)
        shown = found[:limit]
        return Listed[Event](
            items=[Event.model_validate(event) for event in shown],
            next=str(shown[-1].id) if len(found) > limit else None,
        )


# -- problems --

PROBLEM_TYPE = "application/problem+json"


def problem(
    status: int,
    detail: str,
    *,
    errors: Sequence[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document as an answer."""
    document = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, errors=None if errors is None else list(errors)
    )
    return JSONResponse(
        document.model_dump(exclude_none=True),
        status_code=status,
        media_type=PROBLEM_TYPE,
        headers=dict(headers or {}),
    )


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """What pydantic found wrong with a request, without what was sent: it can be a secret."""
    return [
        FieldProblem(field=".".join(map(str, error["loc"])), message=str(error["msg"]).removeprefix("Value error, "))
        for error in errors
    ]


#: What every route of the API may answer besides its own, for the OpenAPI document.
PROBLEMS: Mapping[int | str, dict[str, Any]] = {
    status: {
        "description": words,
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, words in (
        (401, "No valid token or session came with the request."),
        (403, "The caller may not do this."),
        (404, "There is no such thing."),
        (422, "Something in the request is wrong; `errors` says what."),
        (503, "The ledger cannot be reached; try again."),
    )
}


def document(routes: Sequence[BaseRoute], *, version: str) -> dict[str, Any]:
    """The OpenAPI document of the routes that are in it."""
    found = get_openapi(
        title="Talaria",
        version=version,
        summary="What a DICOM orchestrator received, what it does with it, and where it went.",
        routes=routes,
    )
    components = found.setdefault("components", {})
    for schema in (Problem, FieldProblem):
        own = schema.model_json_schema(ref_template="#/components/schemas/{model}")
        own.pop("$defs", None)
        components.setdefault("schemas", {})[schema.__name__] = own
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "`talaria token create` makes one."},
        "session": {"type": "apiKey", "in": "cookie", "name": "talaria_session", "description": "Of a browser."},
    }
    found["security"] = [{"token": []}, {"session": []}]
    return found
