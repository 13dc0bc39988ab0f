"""The JSON of `/api/v1` that acts: on jobs, on studies, and on the flow of work as a whole."""

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from fastapi import Body, HTTPException, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from talaria.model import job as model
from talaria.model.dicom import UID
from talaria.model.errors import Refused
from talaria.store.jobs import Jobs
from talaria.store.listing import Listing
from talaria.store.operations import Operations
from talaria.store.selection import MOST_IDS, Selection
from talaria.web.api import MOST, Answer, Job, JobId, Listed, Moment, StudyUID, Text, missing
from talaria.web.auth import actor_of


class Act(StrEnum):
    """What a person can do to a job."""

    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    CANCEL = "cancel"
    RESTART = "restart"

    @property
    def event(self) -> model.Event:
        """What then happens to the job."""
        return model.Event(self.value)


#: What can be paused as a whole, and what target by target.
PausedKind = Literal["process", "dispatch", "notify", "route"]
PausedTargetKind = Literal["dispatch"]

ActName = Annotated[Act, Path(description="What to do.")]
Kind = Annotated[PausedKind, Path(description="Which work.")]
TargetKind = Annotated[PausedTargetKind, Path(description="Which work.")]
TargetName = Annotated[Text, Path(description="By the name it has in the rulebook.", min_length=1, max_length=200)]
RuleWord = Annotated[Text, Field(min_length=1, max_length=200)]
Uid = Annotated[UID, Field(max_length=64)]


# -- what is asked --


class Asked(BaseModel):
    """The body of a request; what it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Which(Asked):
    """Jobs that fit every field that is given; at least one must be."""

    ids: list[Annotated[int, Field(strict=True, ge=1, le=MOST)]] = Field(default=[], max_length=MOST_IDS)
    """By their numbers."""
    study_uid: Uid | None = None
    """Of this study."""
    series_uid: Uid | None = None
    """About this series."""
    state: model.State | None = None
    """In this state."""
    rule: RuleWord | None = None
    """Of this rule."""
    target: RuleWord | None = None
    """For this target."""
    kind: model.Kind | None = None
    """Of this kind."""
    calling_ae: RuleWord | None = None
    """About what this AE title sent."""
    since: Moment | None = None
    """Made then or later; without a zone it is UTC."""
    until: Moment | None = None
    """Made before; without a zone it is UTC."""

    def selection(self) -> Selection:
        """The same, for the ledger."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "ids"}
        return Selection(ids=tuple(self.ids), **given)


class RouteTo(Asked):
    """To which rule."""

    rule: RuleWord
    """By its name in the running rulebook; its `when` is not asked."""
    series_uid: Uid | None = None
    """This series alone."""


class SendTo(Asked):
    """To which target."""

    target: RuleWord
    """By its name in the running rulebook."""
    series_uid: Uid | None = None
    """This series alone."""


class ReleaseWhat(Asked):
    """What of a study."""

    series_uid: Uid | None = None
    """This series alone."""


class Why(Asked):
    """Why, for those who come upon it."""

    reason: Annotated[Text, Field(max_length=500)] = ""
    """In words."""


_NO_REASON = Why()
_ALL_OF_IT = ReleaseWhat()


# -- what is answered --


class Acted(Answer):
    """What became of an act on many jobs."""

    done: int
    """Jobs that it was done to."""
    refused: list[str]
    """Why, of the first of those that it could not be done to."""
    refusals: int
    """How many these are."""


class Made(Answer):
    """What follows of an act on a study."""

    jobs: list[int]
    """Numbers of the jobs that were made."""
    there: list[str]
    """Targets that got the originals before, and to which no second job was made."""


class Released(Answer):
    """What follows of releasing a study."""

    series: list[str]
    """Series Instance UIDs of which the rules are asked again."""


class Pause(Answer):
    """What a person has stopped for a while."""

    kind: str
    """Which work: process, dispatch, notify or route."""
    target: str
    """Empty: all of it."""
    actor: str
    """Who stopped it."""
    reason: str
    """Why, in words."""
    since: datetime
    """When."""


class Drain(Answer):
    """Whether we finish what runs and begin nothing new."""

    draining: bool
    """While it is true, associations are refused and no job is taken up."""
    actor: str | None
    """Who asked for it."""
    reason: str | None
    """Why, in words."""
    since: datetime | None
    """When."""
    active: dict[str, int]
    """Jobs that are still being worked on, by kind; none left: all is done."""

    @classmethod
    def of(cls, operations: Operations) -> Self:
        """As it stands now."""
        found = next((pause for pause in operations.paused() if pause.kind == "drain"), None)
        return cls(
            draining=found is not None,
            actor=None if found is None else found.actor,
            reason=None if found is None else found.reason,
            since=None if found is None else found.since,
            active={str(kind): count for kind, count in operations.active().items()},
        )


# -- answering --


class JobActs:
    """The endpoints that act on jobs, studies and the flow of work; each act is written down with who asked for it."""

    def __init__(self, *, operations: Operations, jobs: Jobs, listing: Listing, clock: Callable[[], datetime]) -> None:
        self._operations, self._jobs, self._listing, self._clock = operations, jobs, listing, clock

    def act_on_job(self, request: Request, job_id: JobId, act: ActName) -> Job:
        """Retry, hold, release, cancel or restart one job; 409 where its state does not allow it."""
        try:
            self._jobs.show(job_id)
        except Refused as error:
            raise missing(error) from error
        acted = self._operations.act(
            Selection(ids=(job_id,)), act.event, actor=actor_of(request), now=self._clock()
        )  # fmt: skip
        if not acted.done:
            raise Refused(acted.refused[0] if acted.refused else f"job {job_id} is not there any more")
        return Job.of(self._jobs.show(job_id))

    def act_on_jobs(self, request: Request, act: ActName, which: Which) -> Acted:
        """Retry, hold, release, cancel or restart all jobs that fit; those whose state does not allow it are told."""
        selection = which.selection()
        if selection.is_empty:
            raise HTTPException(422, "body: says of no job; name ids, a state, a rule, a target or any other field")
        acted = self._operations.act(selection, act.event, actor=actor_of(request), now=self._clock())
        return Acted(done=acted.done, refused=list(acted.refused), refusals=acted.refusals)

    def route_study(self, request: Request, study_uid: StudyUID, asked: RouteTo) -> Made:
        """Take a study to a rule, whatever the rules said of it."""
        self._refuse_unknown(study_uid)
        made = self._operations.route(
            study_uid, asked.rule, series_uid=asked.series_uid, actor=actor_of(request), now=self._clock()
        )  # fmt: skip
        return Made(jobs=list(made), there=list(made.there))

    def send_study(self, request: Request, study_uid: StudyUID, asked: SendTo) -> Made:
        """Send a study to a target outside of any rule, however often it went there."""
        self._refuse_unknown(study_uid)
        made = self._operations.send(
            study_uid, asked.target, series_uid=asked.series_uid, actor=actor_of(request), now=self._clock()
        )  # fmt: skip
        return Made(jobs=list(made), there=list(made.there))

    def release_study(
        self, request: Request, study_uid: StudyUID, asked: Annotated[ReleaseWhat, Body()] = _ALL_OF_IT
    ) -> Released:
        """Let the rules be asked again about what is held of a study."""
        self._refuse_unknown(study_uid)
        found = self._operations.release(
            study_uid, series_uid=asked.series_uid, actor=actor_of(request), now=self._clock()
        )  # fmt: skip
        return Released(series=list(found))

    def list_pauses(self) -> Listed[Pause]:
        """What is paused, the drain not among it."""
        found = [Pause.model_validate(pause) for pause in self._operations.paused() if pause.kind != "drain"]
        return Listed[Pause](items=found, next=None)

    def pause_kind(self, request: Request, kind: Kind, why: Annotated[Why, Body()] = _NO_REASON) -> Listed[Pause]:
        """Stop a kind of work; what is under way goes on to its end."""
        return self._pause(request, kind, "", why)

    def pause_target(
        self, request: Request, kind: TargetKind, target: TargetName, why: Annotated[Why, Body()] = _NO_REASON
    ) -> Listed[Pause]:
        """Stop deliveries to one target; what is under way goes on to its end."""
        return self._pause(request, kind, target, why)

    def _pause(self, request: Request, kind: str, target: str, why: Why) -> Listed[Pause]:
        self._operations.pause(kind, target, actor=actor_of(request), reason=why.reason, now=self._clock())
        return self.list_pauses()

    def resume_kind(self, request: Request, kind: Kind) -> Listed[Pause]:
        """Let a kind of work go on; targets that are paused one by one stay so."""
        return self._resume(request, kind, "")

    def resume_target(self, request: Request, kind: TargetKind, target: TargetName) -> Listed[Pause]:
        """Let deliveries to one target go on."""
        return self._resume(request, kind, target)

    def _resume(self, request: Request, kind: str, target: str) -> Listed[Pause]:
        try:
            self._operations.resume(kind, target, actor=actor_of(request), now=self._clock())
        except Refused as error:
            raise missing(error) from error
        return self.list_pauses()

    def show_drain(self) -> Drain:
        """Whether we drain, and what is still being worked on."""
        return Drain.of(self._operations)

    def drain(self, request: Request, why: Annotated[Why, Body()] = _NO_REASON) -> Drain:
        """Finish what runs, and begin nothing new."""
        self._operations.drain(actor=actor_of(request), reason=why.reason, now=self._clock())
        return Drain.of(self._operations)

    def undrain(self, request: Request) -> Drain:
        """Accept and begin again."""
        self._operations.undrain(actor=actor_of(request), now=self._clock())
        return Drain.of(self._operations)

    def _refuse_unknown(self, study_uid: str) -> None:
        """
        Raises:
            HTTPException: 404: no such study was received.
        """
        if not self._listing.knows(study_uid):
            raise missing(Refused(f"no study {study_uid} is known here"))
