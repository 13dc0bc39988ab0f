"""Jobs in the ledger: made once, claimed under a lease, and moved only through one function."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import Overtaken, Refused
from talaria.model.job import TRANSITIONS, Event, Extent, Job, Kind, Priority, State, after
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_one, storable, write_event
from talaria.store.schema import deliveries, events, instances, job_series, jobs, outcomes, series, studies
from talaria.store.spool import new_ulid

#: A worker that was not heard of for this long has lost its job.
LEASE = timedelta(seconds=20)
#: A job that so many workers died of since a person last looked is held: it may be what kills them.
MOST_DEATHS = 10
#: A living process of this host keeps its job for so long without being heard of: its lease may be overdue because
#: the clock was set, or because it waits for the ledger.
_HUNG = 10 * LEASE
#: What is due later than this was written before the clock was set back: its time means nothing, it is due now.
LONGEST_WAIT = timedelta(days=1)
#: So far the clocks of two hosts may differ; what was written later than that was written before a step back, too.
_SKEW = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job about to be made."""

    kind: Kind
    rule: str
    revision: int
    extents: tuple[Extent, ...]
    target: str | None = None
    parent: int | None = None
    priority: Priority = Priority.NORMAL
    supplement: int = 0
    held: str = ""
    """Made in state *held*, for this reason."""

    def key(self, *, is_study: bool) -> str:
        """The same for the same thing asked again; what a study's case asks is not what a series' asks."""
        extents = ",".join(f"{e.series_id}:{e.first}-{e.last}" for e in sorted(self.extents, key=_series_of))
        whose = self.target if self.kind is Kind.DISPATCH else f"{self.rule} #{self.supplement}"
        scope = "study" if is_study else "series"
        digest = hashlib.sha256(f"{scope} {whose}\n{extents}".encode()).hexdigest()
        return f"{self.kind}:{digest}"


def _series_of(extent: Extent) -> int:
    return extent.series_id


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that is ours for as long as we are heard of."""

    job: Job
    owner: str
    since: datetime
    """When its present patience began."""
    extents: tuple[Extent, ...] = field(default=())


class Jobs:
    """The queue."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def claim(
        self,
        kind: Kind,
        *,
        owner: str,
        spools: Collection[str],
        now: datetime,
        off_peak: bool,
        full: Collection[str] = (),
        clock: Callable[[], datetime] | None = None,
    ) -> Claim | None:
        """
        Take the next job that is due: the most urgent, then the longest due.

        Args:
            kind: What the worker can do.
            owner: Who takes it: host, process and lane.
            spools: Mounted here.
            now: Due times are measured from here.
            off_peak: Whether off-peak work may run now.
            full: Targets that take no further delivery now.
            clock: The lease is measured from what it says once the ledger is ours to write, which may be long after
                *now*; without it from *now*.
        """
        wanted = _next_due(kind, spools, now, off_peak=off_peak, full=full)
        with self._ledger.reading() as connection:  # most looks find nothing: they must not take the pen
            if connection.execute(wanted).first() is None:
                return None
        with self._ledger.writing("jobs.claim") as connection:
            row = connection.execute(wanted.with_for_update(skip_locked=True)).first()
            if row is None:
                return None
            taken = now if clock is None else clock()
            changes = {"owner": owner, "lease": taken + LEASE, "attempt": row.attempt + 1, "reason": ""}
            _move(connection, row, Event.CLAIM, now=now, changes=changes, actor=owner)
            job = _job(connection, row.id)
            return Claim(job=job, owner=owner, since=row.since, extents=_extents(connection, row.id))

    def active_ids(self, kind: Kind) -> set[int]:
        """Jobs of a kind that somebody has in hand."""
        with self._ledger.reading() as connection:
            return set(
                connection.execute(
                    sa.select(jobs.c.id).where(jobs.c.kind == kind, jobs.c.state == State.ACTIVE)
                ).scalars()
            )

    def next_due(self, kind: Kind) -> datetime | None:
        """When the first waiting job of a kind is due; None if none waits."""
        with self._ledger.reading() as connection:
            return connection.execute(
                sa.select(sa.func.min(jobs.c.due)).where(
                    jobs.c.kind == kind, jobs.c.state.in_([State.PENDING, State.DEFERRED])
                )
            ).scalar()

    def heartbeat(
        self, claims: Iterable[Claim], *, now: datetime, clock: Callable[[], datetime] | None = None
    ) -> set[int]:
        """Renew the leases of *claims*, from *now* or as `claim` by a *clock*; ids of the jobs that are still ours."""
        wanted = {claim.job.id: claim for claim in claims}
        if not wanted:
            return set()
        with self._ledger.writing("jobs.heartbeat") as connection:
            rows = connection.execute(
                sa.select(jobs.c.id, jobs.c.owner, jobs.c.attempt, jobs.c.state).where(jobs.c.id.in_(list(wanted)))
            )
            ours = {row.id for row in rows if _is_ours(row, wanted[row.id])}
            heard = now if clock is None else clock()
            connection.execute(sa.update(jobs).where(jobs.c.id.in_(ours)).values(lease=heard + LEASE))
        return ours

    def end(  # what a worker found out about its job
        self,
        claim: Claim,
        event: Event,
        *,
        now: datetime,
        reason: str = "",
        due: datetime | None = None,
        follow_ups: Callable[[Connection], Sequence[NewJob]] | None = None,
    ) -> list[int]:
        """
        End an attempt: finish, defer, fail, break or yield.

        Args:
            claim: As it was taken; a job that was taken away since is left alone.
            event: What happened.
            now: Written as the time of change.
            reason: In words, shown to people.
            due: Of a deferred job.
            follow_ups: Makes further changes of the same transaction; the jobs it returns are made in it, too.

        Returns:
            Ids of the follow-up jobs.

        Raises:
            Overtaken: The lease was lost, or a person acted meanwhile; nothing was changed.
        """
        changes: dict[str, Any] = {"owner": None, "lease": None, "reason": storable(reason)[:4000]}
        if due is not None:
            changes["due"] = due
        if event is Event.YIELD:
            changes["attempt"] = claim.job.attempt - 1
        with self._ledger.writing("jobs.end") as connection:
            row = _lock(connection, claim.job.id)
            if not _is_ours(row, claim):
                raise Overtaken(f"job {claim.job.id} is not ours any more: {row.state}, attempt {row.attempt}")
            _move(connection, row, event, now=now, changes=changes, actor=claim.owner)
            news = follow_ups(connection) if follow_ups is not None else ()
            return [
                make_job(
                    connection, new, study_id=row.study_id, series_id=row.series_id, case_id=row.case_id,
                    spool=row.spool, now=now,
                )
                for new in news
            ]  # fmt: skip

    def expire(
        self, *, now: datetime, is_dead: Callable[[str], bool], is_here: Callable[[str], bool] = lambda _: False
    ) -> int:
        """
        Take back what workers have that are dead or were not heard of: it is due again, or held after `MOST_DEATHS`.

        Args:
            now: Leases that end before are over.
            is_dead: Whether an owner is known to run no more; its lease does not matter.
            is_here: Whether `is_dead` can tell of an owner; one that lives loses its job only when it hangs.

        Returns:
            How many.
        """

        def is_lost(row: AnyRow) -> bool:
            owner = row.owner or ""
            grace = _HUNG if is_here(owner) else timedelta(0)
            return row.lease is None or row.lease + grace < now or is_dead(owner)

        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(jobs.c.id, jobs.c.owner, jobs.c.lease).where(jobs.c.state == State.ACTIVE)
            ).all()
        expired = 0
        for job_id in [row.id for row in rows if is_lost(row)]:
            with self._ledger.writing("jobs.expire") as connection:
                row = _lock(connection, job_id)
                if row.state == State.ACTIVE and is_lost(row):
                    _take_back(connection, row, now=now)
                    expired += 1
        return expired

    def act(self, job_id: int, event: Event, *, actor: str, now: datetime) -> Job:
        """
        Do what a person asked: retry, hold, release, cancel, restart.

        Raises:
            Refused: There is no such job, or its state does not allow it.
        """
        with self._ledger.writing("jobs.act") as connection:
            row = _lock(connection, job_id)
            changes: dict[str, Any] = {"owner": None, "lease": None}
            if event in {Event.RETRY, Event.RELEASE, Event.RESTART}:
                changes |= {"due": now, "since": now, "reason": ""}
            if event in {Event.HOLD, Event.CANCEL}:
                changes["reason"] = f"{event} by {actor}"
            if event is Event.RESTART:
                _forget_outcomes(connection, job_id)
            if event is Event.RETRY:
                _forget_refusals(connection, job_id)
            _move(connection, row, event, now=now, changes=changes, actor=actor)
            return _job(connection, job_id)

    def show(self, job_id: int) -> Job:
        """
        One job.

        Raises:
            Refused: There is no such job.
        """
        with self._ledger.reading() as connection:
            return _job(connection, job_id)


def make_job(
    connection: Connection, new: NewJob, *, study_id: int, series_id: int, case_id: int, spool: str, now: datetime
) -> int:
    """
    Make a job and, for a dispatch job, its delivery, in the caller's transaction.

    Returns:
        Its id; that of the job made before, when the same thing was asked already.
    """
    key = new.key(is_study=series_id == 0)
    found = connection.execute(sa.select(jobs.c.id).where(jobs.c.key == key)).scalar()
    if found is not None:
        return int(found)
    job_id = insert_one(
        connection, jobs, kind=new.kind, state=State.HELD if new.held else State.PENDING, study_id=study_id,
        series_id=series_id, case_id=case_id, rule=new.rule, revision=new.revision, target=new.target,
        parent=new.parent, priority=new.priority, supplement=new.supplement, reason=new.held, created=now, due=now,
        updated=now, since=now, spool=spool, key=key,
    )  # fmt: skip
    rows = [{"job_id": job_id, "series_id": e.series_id, "first": e.first, "last": e.last} for e in new.extents]
    connection.execute(job_series.insert(), rows)
    if new.kind is Kind.DISPATCH:
        total = connection.execute(
            sa.select(sa.func.count()).select_from(instances).where(_of_job(job_id))
        ).scalar_one()
        connection.execute(deliveries.insert().values(id=new_ulid(now), job_id=job_id, target=new.target, total=total))
    subject = Subject(study_id=study_id, series_id=series_id, case_id=case_id, job_id=job_id)
    write_event(
        connection, "job.made", now=now, subject=subject, job_kind=new.kind, rule=new.rule, revision=new.revision,
        target=new.target, supplement=new.supplement,
    )  # fmt: skip
    return job_id


def cancel_deliveries(connection: Connection, parents: Collection[int], *, reason: str, now: datetime) -> None:
    """Cancel what was not delivered yet of the results of process jobs, in the caller's transaction."""
    waiting = [state for state in State if (state, Event.CANCEL) in TRANSITIONS]
    rows = connection.execute(
        sa.select(jobs)
        .where(jobs.c.parent.in_(list(parents)), jobs.c.kind == Kind.DISPATCH, jobs.c.state.in_(waiting))
        .order_by(jobs.c.id)
        .with_for_update()
    ).all()
    for row in rows:
        changes = {"owner": None, "lease": None, "reason": reason}
        _move(connection, row, Event.CANCEL, now=now, changes=changes, actor="")


def is_current(job_id: int) -> sa.ColumnElement[bool]:
    """Whether an instance is of a job's portions and no newer version has replaced it; its file may be gone."""
    covered = (
        sa.select(job_series.c.job_id)
        .where(
            job_series.c.job_id == job_id,
            job_series.c.series_id == instances.c.series_id,
            instances.c.portion.between(job_series.c.first, job_series.c.last),
        )
        .exists()
    )
    own = sa.select(job_series.c.series_id).where(job_series.c.job_id == job_id)
    return sa.and_(instances.c.series_id.in_(own), covered, instances.c.superseded_by.is_(None))


def _of_job(job_id: int) -> sa.ColumnElement[bool]:
    """Whether an instance belongs to a job: current, still on disk, of its portions."""
    return sa.and_(is_current(job_id), instances.c.dropped.is_(None))


def dropped_of(connection: Connection, job: Job) -> set[str]:
    """The instances of a job that retention took since it was made; those it took before were never its business."""
    return set(
        connection.execute(
            sa.select(instances.c.id).where(is_current(job.id), instances.c.dropped >= job.created)
        ).scalars()
    )


def instances_of(connection: Connection, job_id: int) -> Sequence[AnyRow]:
    """The instances a job is about, with their series and study, in the order of arrival."""
    return connection.execute(
        sa.select(
            instances.c.id, instances.c.sop_instance_uid, instances.c.sop_class_uid, instances.c.transfer_syntax_uid,
            instances.c.size_bytes, instances.c.sha256, series.c.series_instance_uid, studies.c.study_instance_uid,
        )
        .join(series, series.c.id == instances.c.series_id)
        .join(studies, studies.c.id == series.c.study_id)
        .where(_of_job(job_id))
        .order_by(instances.c.series_id, instances.c.id)
    ).all()  # fmt: skip


def _next_due(
    kind: Kind, spools: Collection[str], now: datetime, *, off_peak: bool, full: Collection[str]
) -> sa.Select[Any]:
    statement = sa.select(jobs).where(
        jobs.c.kind == kind,
        jobs.c.state.in_([State.PENDING, State.DEFERRED]),
        sa.or_(jobs.c.due <= now, jobs.c.due > now + LONGEST_WAIT, jobs.c.updated > now + _SKEW),
        jobs.c.spool.in_(list(spools)),
    )
    if not off_peak:
        statement = statement.where(jobs.c.priority < Priority.OFFPEAK)
    if full:
        statement = statement.where(jobs.c.target.not_in(list(full)))
    return statement.order_by(jobs.c.priority, jobs.c.due, jobs.c.id).limit(1)


def _lock(connection: Connection, job_id: int) -> AnyRow:
    row = connection.execute(sa.select(jobs).where(_is_job(job_id)).with_for_update()).first()
    if row is None:
        raise Refused(f"there is no job {job_id}; `talaria jobs list` shows what there is")
    return row


def _is_job(job_id: int) -> sa.ColumnElement[bool]:
    return jobs.c.id == job_id if 0 < job_id < 1 << 63 else sa.false()  # a larger number is an error to a database


def _is_ours(row: AnyRow, claim: Claim) -> bool:
    return bool(row.state == State.ACTIVE and row.owner == claim.owner and row.attempt == claim.job.attempt)


def _move(  # the one place where a job's state changes
    connection: Connection, row: AnyRow, event: Event, *, now: datetime, changes: Mapping[str, Any], actor: str
) -> None:
    """Check the transition, change the row by compare-and-set, write the event."""
    try:
        state = after(State(row.state), event)
    except Refused as refusal:
        raise Refused(f"job {row.id}: {refusal}") from None
    changed = connection.execute(
        sa.update(jobs)
        .where(jobs.c.id == row.id, jobs.c.state == row.state, jobs.c.attempt == row.attempt)
        .values(state=state, updated=now, **changes)
    ).rowcount
    if changed != 1:
        raise Overtaken(f"job {row.id} was changed by somebody else meanwhile; look again")
    subject = Subject(study_id=row.study_id, series_id=row.series_id, case_id=row.case_id, job_id=row.id)
    detail = {"state": state, "attempt": changes.get("attempt", row.attempt)}
    if changes.get("reason"):
        detail["reason"] = changes["reason"]
    write_event(connection, f"job.{event}", now=now, subject=subject, actor=actor, **detail)


def _take_back(connection: Connection, row: AnyRow, *, now: datetime) -> None:
    deaths = (
        1
        + connection.execute(
            sa.select(sa.func.count()).where(
                events.c.job_id == row.id, events.c.kind == f"job.{Event.EXPIRE}", events.c.time >= row.since
            )
        ).scalar_one()
    )
    reason, what = f"taken up again: its worker {row.owner} was heard of no more", Event.EXPIRE
    if deaths >= MOST_DEATHS:
        reason, what = f"{deaths} workers died with it in hand; release it to try again", Event.BREAK
    changes = {"owner": None, "lease": None, "due": now, "reason": reason}
    _move(connection, row, what, now=now, changes=changes, actor=row.owner or "")


def _forget_outcomes(connection: Connection, job_id: int) -> None:
    """All is to be delivered again."""
    own = sa.select(deliveries.c.id).where(deliveries.c.job_id == job_id)
    connection.execute(sa.update(outcomes).where(outcomes.c.delivery_id.in_(own)).values(standing="pending"))
    connection.execute(sa.update(deliveries).where(deliveries.c.job_id == job_id).values(sent=0))


def _forget_refusals(connection: Connection, job_id: int) -> None:
    """What a target refused for good is offered once more."""
    own = sa.select(deliveries.c.id).where(deliveries.c.job_id == job_id)
    connection.execute(
        sa.update(outcomes)
        .where(outcomes.c.delivery_id.in_(own), outcomes.c.standing == "failed")
        .values(standing="pending")
    )


def _extents(connection: Connection, job_id: int) -> tuple[Extent, ...]:
    rows = connection.execute(
        sa.select(job_series).where(job_series.c.job_id == job_id).order_by(job_series.c.series_id)
    )
    return tuple(Extent(series_id=row.series_id, first=row.first, last=row.last) for row in rows)


def job_columns() -> sa.Select[Any]:
    """A job's columns with its study's and series' UIDs, for `as_job`."""
    return (
        sa.select(jobs, studies.c.study_instance_uid, series.c.series_instance_uid)
        .join(studies, studies.c.id == jobs.c.study_id)
        .outerjoin(series, series.c.id == jobs.c.series_id)
    )


def as_job(row: AnyRow) -> Job:
    """A job of a row of `job_columns`."""
    return Job(
        id=row.id,
        kind=Kind(row.kind),
        state=State(row.state),
        study_id=row.study_id,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        case_id=row.case_id,
        rule=row.rule,
        revision=row.revision,
        target=row.target,
        parent=row.parent,
        priority=Priority(row.priority),
        supplement=row.supplement,
        attempt=row.attempt,
        reason=row.reason,
        created=row.created,
        due=row.due,
        updated=row.updated,
        owner=row.owner,
    )


def _job(connection: Connection, job_id: int) -> Job:
    row = connection.execute(job_columns().where(_is_job(job_id))).first()
    if row is None:
        raise Refused(f"there is no job {job_id}; `talaria jobs list` shows what there is")
    return as_job(row)
