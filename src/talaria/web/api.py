"""The JSON of `/api/v1`: what there is to see, a page at a time."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from fastapi import HTTPException, Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict

from talaria.model import job as model
from talaria.model.dicom import UID
from talaria.model.errors import Refused
from talaria.model.plan import CaseState
from talaria.store.jobs import Jobs
from talaria.store.listing import PAGE, Listing, RunLine
from talaria.store.selection import Selection

ROOT = "/api/v1"

#: The largest key that a database counts to.
MOST = 2**63 - 1

#: Of moments that are asked for; beyond these, zones and databases have no words for them.
_FIRST_YEAR, _LAST_YEAR = 1900, 9000

#: The last of a module's log that is shown.
LOG_CHARACTERS = 64 * 1024

Item = TypeVar("Item")


# -- what is asked --


def _in_utc(moment: datetime) -> datetime:
    """A moment in UTC; one without a zone is UTC already."""
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(f"should be in the years {_FIRST_YEAR} to {_LAST_YEAR}")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL in it; leave it out")
    return text


Moment = Annotated[datetime, AfterValidator(_in_utc)]
Text = Annotated[str, AfterValidator(_without_nul)]
StudyUID = Annotated[UID, Path(description="Study Instance UID.", max_length=64)]
SOPInstanceUID = Annotated[UID, Path(description="SOP Instance UID.", max_length=64)]
JobId = Annotated[int, Path(description="The job's number.", ge=1, le=MOST)]
Limit = Annotated[int, Query(description="Items wanted; the answer may have fewer.", ge=1, le=PAGE)]
Number = Annotated[str | None, Query(description="`next` of the page before.", pattern=r"^[0-9]{1,18}$")]
Place = Annotated[
    str | None, Query(description="`next` of the page before.", pattern=r"^[0-9TZ:.-]{10,40}~[0-9]{1,18}$")
]
Name = Annotated[Text | None, Query(description="By the name it has in the rulebook.", max_length=200)]
Find = Annotated[
    Text | None,
    Query(description="With exactly this as UID, UID of a series, accession number or patient ID.", max_length=64),
]
OfStudy = Annotated[UID | None, Query(description="Of the study with this Study Instance UID.", max_length=64)]
OfSeries = Annotated[UID | None, Query(description="About the series with this Series Instance UID.", max_length=64)]
Sender = Annotated[Text | None, Query(description="About what this AE title sent.", max_length=64)]
Since = Annotated[Moment | None, Query(description="Made then or later; without a zone it is UTC.")]
Until = Annotated[Moment | None, Query(description="Made before; without a zone it is UTC.")]
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


class InstanceCase(Answer):
    """A case that has an instance."""

    id: int
    """Its number."""
    rule: str
    """The rule that took it; empty where none did."""
    revision: int
    """Of the rulebook that was asked."""
    is_study: bool
    """Whether it is the study; else the series."""
    state: CaseState
    """Where it stands."""
    reason: str
    """Why, in words."""
    supplement: int
    """How often late instances were added."""
    opened: datetime
    """When the rule took it."""
    updated: datetime
    """When it changed last."""


class InstanceJob(Answer):
    """A job whose business an instance is."""

    id: int
    """Its number."""
    kind: model.Kind
    """What it does."""
    state: model.State
    """Where it stands."""
    rule: str
    """The first that asked for it."""
    revision: int
    """Of the rulebook it was made under."""
    target: str | None
    """Of a dispatch job."""
    parent: int | None
    """The process job whose results it delivers."""
    supplement: int
    """0 for the first closing of its case, then counted."""
    attempt: int
    """Counted when it is taken up."""
    reason: str
    """Why it is where it is, in words."""
    created: datetime
    """When it was made."""
    updated: datetime
    """When its state changed last."""


class InstanceRun(Answer):
    """One step of one attempt of a job that an instance went into."""

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


class InstanceResult(Answer):
    """What a module found, an instance among its input; `/results` has it whole."""

    id: int
    """Its number."""
    job_id: int
    """The process job."""
    attempt: int
    """Of that job."""
    step: int
    """Of its chain, counted from 1."""
    module: str
    """By its name in the rulebook."""
    version: str
    """Of the module."""
    created: datetime
    """When it was found."""


class DerivedSeries(Answer):
    """A series that a module made, an instance among its input."""

    series_uid: str
    """Series Instance UID."""
    job_id: int
    """The process job."""
    instances: int
    """That are current."""
    superseded: bool
    """Whether later results took its place."""
    made: datetime
    """When."""
    dropped: datetime | None
    """When retention removed its files."""


class LifeLine(Answer):
    """One line of the life of an instance."""

    time: datetime
    """When; of what was sent without a word and long ago, when the last of its delivery was."""
    kind: str
    """What: `instance.received`, `instance.sent`, `instance.removed`, or the kind of an event."""
    job_id: int | None
    """The job it is about."""
    actor: str
    """Who did it; empty where it happened by itself."""
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
    calling_ae: str
    """Who sent it."""
    called_ae: str
    """To whom."""
    address: str
    """From which network address; empty where it came over no network."""
    association: str
    """ULID of the association it came by; empty where it came by none."""
    repeated: datetime | None
    """When the last of the identical copies came."""
    portion: int | None
    """Of its series; null while the series is not complete."""
    cases: list[InstanceCase]
    """What rules made of its series or study."""
    jobs: list[InstanceJob]
    """What was to be done with it, the oldest first."""
    runs: list[InstanceRun]
    """What modules did with it."""
    results: list[InstanceResult]
    """What modules found."""
    derived: list[DerivedSeries]
    """What modules made of it."""
    life: list[LifeLine]
    """All that has a date, in one list, the oldest first."""


class Instance(Answer):
    """The whole history of a SOP instance."""

    sop_instance_uid: str
    """SOP Instance UID."""
    versions: list[Version]
    """In the order in which they came."""


# -- answering --


def missing(error: Refused) -> HTTPException:
    """What is told where something that an address names is not there."""
    return HTTPException(404, str(error))


class Api:
    """The endpoints that show studies, instances, jobs, deliveries and events."""

    def __init__(self, *, listing: Listing, jobs: Jobs) -> None:
        self._listing, self._jobs = listing, jobs

    def list_studies(
        self, state: StudyState = None, find: Find = None, limit: Limit = 50, after: Place = None
    ) -> Listed[Study]:
        """Studies, the one heard of last first."""
        page = self._listing.studies(limit=limit, after=after, state=state, find=find)
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
        study: OfStudy = None,
        series: OfSeries = None,
        calling_ae: Sender = None,
        since: Since = None,
        until: Until = None,
        limit: Limit = 50,
        after: Number = None,
    ) -> Listed[Job]:
        """Jobs that fit all that is given, the newest first."""
        selection = Selection(
            study_uid=study, series_uid=series, state=state, rule=rule, target=target, kind=kind,
            calling_ae=calling_ae, since=since, until=until,
        )  # fmt: skip
        page = self._listing.jobs(selection=selection, limit=limit, after=after)
        return Listed[Job](items=[Job.of(job) for job in page.items], next=page.next)

    def show_job(self, job_id: JobId) -> Job:
        """One job."""
        return Job.of(self._jobs.show(job_id))

    def list_deliveries(
        self,
        target: Name = None,
        state: JobState = None,
        rule: Name = None,
        study: OfStudy = None,
        series: OfSeries = None,
        calling_ae: Sender = None,
        since: Since = None,
        until: Until = None,
        limit: Limit = 50,
        after: Number = None,
    ) -> Listed[Delivery]:
        """Deliveries that fit all that is given, the newest first."""
        selection = Selection(
            study_uid=study, series_uid=series, state=state, rule=rule, target=target, calling_ae=calling_ae,
            since=since, until=until,
        )  # fmt: skip
        page = self._listing.deliveries(selection=selection, limit=limit, after=after)
        return Listed[Delivery](items=[Delivery.model_validate(line) for line in page.items], next=page.next)

    def list_events(
        self,
        after: Annotated[int, Query(description="Events with a higher number.", ge=0, le=MOST)] = 0,
        limit: Annotated[int, Query(description="Items wanted.", ge=1, le=PAGE - 1)] = 100,
    ) -> Listed[Event]:
        """Events, the oldest first; to follow them, ask again with the number of the last one that was seen."""
        found = self._listing.events(after=after, limit=limit + 1)
        shown = found[:limit]
        return Listed[Event](
            items=[Event.model_validate(event) for event in shown],
            next=str(shown[-1].id) if len(found) > limit else None,
        )
