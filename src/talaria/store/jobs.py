"""Jobs in the ledger: made once, claimed under a lease, and moved only through one function."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import Overtaken, Refused
from talaria.model.job import TRANSITIONS, Event, Extent, Job, Kind, Priority, State, after, turn
from talaria.store.compaction import expand
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_unless_there, storable, write_event
from talaria.store.metering import count_delivery
from talaria.store.schema import UTCTime, deliveries, events, instances, job_series, jobs, outcomes, series, studies
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
#: What was written before the clock was set back is looked for so often, besides when it is seen to go back.
_MEND_EVERY = timedelta(minutes=1)
#: So many jobs that became due, or whose time means nothing, are made ready at once: nobody is to wait long for it.
_BATCH = 200
#: A look that finds nothing else makes so many batches ready.
_MOST_BATCHES = 50


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
    request: str = ""
    """ULID of a person's request outside of any rule: what was asked before does not count."""

    def key(self, *, is_study: bool) -> str:
        """The same for the same thing asked again; what a study's case asks is not what a series' asks."""
        if self.request:
            return f"{AD_HOC}{self.request}"
        extents = ",".join(f"{e.series_id}:{e.first}-{e.last}" for e in sorted(self.extents, key=_series_of))
        whose = self.target if self.kind is Kind.DISPATCH else f"{self.rule} #{self.supplement}"
        scope = "study" if is_study else "series"
        digest = hashlib.sha256(f"{scope} {whose}\n{extents}".encode()).hexdigest()
        return f"{self.kind}:{digest}"


#: How the keys of jobs begin that a person asked for outside of any rule.
AD_HOC = "request:"


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
        self._hear: Callable[[], None] = lambda: None
        self._mended: dict[Kind, tuple[datetime, datetime]] = {}

    def tell(self, hear: Callable[[], None]) -> None:
        """Call *hear* after each claim from now on: there may be more, for another lane."""
        self._hear = hear

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
        Take the job whose turn it is, of those that are due and not paused.

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
        self._mend_sometimes(kind, now)
        places = self._places(kind, spools, now, off_peak=off_peak, full=full)
        if not places:  # most looks find nothing: they must not take the pen
            return None
        with self._ledger.writing("jobs.claim", is_synced=self._outlasts_all(kind)) as connection:
            row = next((row for place in places if (row := _first(connection, place)) is not None), None)
            if row is None:
                return None
            taken = now if clock is None else clock()
            changes = {"owner": owner, "lease": taken + LEASE, "attempt": row.attempt + 1, "reason": ""}
            _move(connection, row, Event.CLAIM, now=now, changes=changes, actor=owner)
        self._hear()
        job = replace(
            as_job(row), state=State.ACTIVE, owner=owner, attempt=row.attempt + 1, reason="", updated=now
        )  # fmt: skip
        return Claim(job=job, owner=owner, since=row.since, extents=_extents(row.extents))

    def _outlasts_all(self, kind: Kind) -> bool:
        """
        Whether a claim is synced: not a delivery's on SQLite, which only a power cut takes, and then it is made again.

        A server that is killed would forget it, too, and what was sent under it would be sent again by others; and a
        module's attempt counts whatever happens, for it may be what brings the machine down.
        """
        return self._ledger.has_server or kind is Kind.PROCESS

    def _places(
        self, kind: Kind, spools: Collection[str], now: datetime, *, off_peak: bool, full: Collection[str]
    ) -> list["_Place"]:
        """Where a job may be claimed, that whose turn it is first; what became due meanwhile is made ready."""
        for _ in range(_MOST_BATCHES):
            look = self._look(kind, spools)
            places = look.places(kind, off_peak=off_peak, full=full)
            if look.next_due is None or look.next_due > now:
                return places
            self._promote(kind, now)
            if places:
                return self._look(kind, spools).places(kind, off_peak=off_peak, full=full)
        return []

    def _look(self, kind: Kind, spools: Collection[str]) -> "_Look":
        names = sorted(set(spools))
        with self._ledger.glancing() as connection:
            given = {"kind": kind, **{f"spool{number}": name for number, name in enumerate(names)}}
            return _Look(connection.execute(_look_at(len(names)), given).all())

    def _promote(self, kind: Kind, now: datetime) -> None:
        """Make some of the jobs ready that waited and became due."""
        due = (
            sa.select(jobs.c.id)
            .where(_WAITS, jobs.c.kind == kind, jobs.c.due <= now)
            .order_by(jobs.c.due)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        with self._ledger.writing("jobs.promote", is_synced=False) as connection:
            ids = connection.execute(due).scalars().all()
            connection.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(ready=True))

    def _mend_sometimes(self, kind: Kind, now: datetime) -> None:
        """At the first look, when the clock went back, and each minute, for what others wrote while it did."""
        latest, mended = self._mended.get(kind, (now, now - _MEND_EVERY))
        if latest - _SKEW <= now < mended + _MEND_EVERY:
            self._mended[kind] = (max(latest, now), mended)
            return
        while self._mend(kind, now):
            pass
        self._mended[kind] = (now, now)

    def _mend(self, kind: Kind, now: datetime) -> bool:
        """
        Make some jobs due now that are due at a time that means nothing, for it was written before a step back.

        1. What is ready was due when it was made so: it cannot be due later.
        2. What waits was written before now, and is due within `LONGEST_WAIT`.

        Whether there may be more.
        """
        later = jobs.c.due > now + _SKEW
        stray = sa.or_(jobs.c.due > now + LONGEST_WAIT, jobs.c.updated > now + _SKEW)
        found: list[int] = []
        with self._ledger.glancing() as connection:
            for where in ((_READY, later), (_WAITS, later, stray)):
                one = sa.select(jobs.c.id).where(jobs.c.kind == kind, *where).limit(_BATCH)
                found += connection.execute(one).scalars()
        if found:
            with self._ledger.writing("jobs.mend") as connection:
                connection.execute(
                    sa.update(jobs)
                    .where(jobs.c.id.in_(found), jobs.c.state.in_([State.PENDING, State.DEFERRED]), later)
                    .values(due=now, ready=True)
                )
        return len(found) >= _BATCH

    def active_ids(self, kind: Kind) -> set[int]:
        """Jobs of a kind that somebody has in hand."""
        with self._ledger.reading() as connection:
            return set(connection.execute(sa.select(jobs.c.id).where(jobs.c.kind == kind, _ACTIVE)).scalars())

    def next_due(self, kind: Kind) -> datetime | None:
        """When the first of the jobs of a kind that wait for their time is due; None if none waits."""
        with self._ledger.glancing() as connection:
            return connection.execute(
                sa.select(jobs.c.due).where(_WAITS, jobs.c.kind == kind).order_by(jobs.c.due).limit(1)
            ).scalar()

    def heartbeat(
        self, claims: Iterable[Claim], *, now: datetime, clock: Callable[[], datetime] | None = None
    ) -> set[int]:
        """Renew the leases of *claims*, from *now* or as `claim` by a *clock*; ids of the jobs that are still ours."""
        wanted = {claim.job.id: claim for claim in claims}
        if not wanted:
            return set()
        with self._ledger.writing("jobs.heartbeat", is_synced=False) as connection:
            rows = connection.execute(
                sa.select(jobs.c.id, jobs.c.owner, jobs.c.attempt, jobs.c.state)
                .where(jobs.c.id.in_(list(wanted)))
                .order_by(jobs.c.id)  # all lock in this order: nobody waits for somebody who waits for him
                .with_for_update()
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
            due: Of a deferred job; what lies beyond `LONGEST_WAIT` is cut to it.
            follow_ups: Makes further changes of the same transaction; the jobs it returns are made in it, too.

        Returns:
            Ids of the follow-up jobs.

        Raises:
            Overtaken: The lease was lost, or a person acted meanwhile; nothing was changed.
        """
        changes: dict[str, Any] = {"owner": None, "lease": None, "reason": storable(reason)[:4000]}
        if due is not None:
            changes["due"] = min(due, now + LONGEST_WAIT)
        if event is Event.YIELD:
            changes["attempt"] = claim.job.attempt - 1
        with self._ledger.writing("jobs.end") as connection:
            row = _lock(connection, claim.job.id)
            if not _is_ours(row, claim):
                raise Overtaken(f"job {claim.job.id} is not ours any more: {row.state}, attempt {row.attempt}")
            _move(connection, row, event, now=now, changes=changes, actor=claim.owner)
            news = follow_ups(connection) if follow_ups is not None else ()
            made = [
                make_job(
                    connection, new, study_id=row.study_id, series_id=row.series_id, case_id=row.case_id,
                    spool=row.spool, now=now,
                )
                for new in news
            ]  # fmt: skip
            if event is Event.FINISH and row.kind == Kind.DISPATCH:
                count_delivery(connection, row.target, now - row.since, job_id=row.id)
            return made

    def in_hand(self, job_id: int, *, owner: str, attempt: int) -> Claim:
        """
        The claim of an attempt that has not ended, as it was taken.

        Raises:
            Overtaken: It has ended, or somebody else has the job.
            Refused: There is no such job.
        """
        with self._ledger.reading() as connection:
            job = _job(connection, job_id)
            if (job.state, job.owner, job.attempt) != (State.ACTIVE, owner, attempt):
                raise Overtaken(f"job {job_id} is not ours any more: {job.state}, attempt {job.attempt}")
            since = connection.execute(sa.select(jobs.c.since).where(jobs.c.id == job_id)).scalar_one()
            own = sa.select(job_series).where(job_series.c.job_id == job_id).order_by(job_series.c.series_id)
            rows = connection.execute(own).all()
        extents = tuple(Extent(series_id=row.series_id, first=row.first, last=row.last) for row in rows)
        return Claim(job=job, owner=owner, since=since, extents=extents)

    def held_by(self, owner: str) -> dict[int, int]:
        """The jobs that an owner has in hand as the ledger knows, and which attempt that is."""
        with self._ledger.glancing() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.attempt).where(_ACTIVE, jobs.c.owner == owner))
            return {row.id: row.attempt for row in rows}

    def expire(
        self,
        *,
        now: datetime,
        is_dead: Callable[[str], bool],
        is_here: Callable[[str], bool] = lambda _: False,
        heeds_leases: bool = True,
    ) -> int:
        """
        Take back what workers have that are dead or were not heard of: it is due again, or held after `MOST_DEATHS`.

        Args:
            now: Leases that end before are over.
            is_dead: Whether an owner is known to run no more; its lease does not matter.
            is_here: Whether `is_dead` can tell of an owner; one that lives loses its job only when it hangs.
            heeds_leases: False where nobody could renew one lately: then only the dead lose their jobs.

        Returns:
            How many.
        """

        def is_lost(row: AnyRow) -> bool:
            owner = row.owner or ""
            grace = _HUNG if is_here(owner) else timedelta(0)
            return row.lease is None or (heeds_leases and row.lease + grace < now) or is_dead(owner)

        with self._ledger.reading() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.owner, jobs.c.lease).where(_ACTIVE)).all()
        expired = 0
        for job_id in [row.id for row in rows if is_lost(row)]:
            with self._ledger.writing("jobs.expire") as connection:
                row = connection.execute(
                    sa.select(jobs).where(jobs.c.id == job_id, _ACTIVE).with_for_update(skip_locked=True)
                ).first()  # none: somebody else is at it
                if row is not None and is_lost(row):
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
            act_on(connection, _lock(connection, job_id), event, actor=actor, now=now)
            return _job(connection, job_id)

    def show(self, job_id: int) -> Job:
        """
        One job.

        Raises:
            Refused: There is no such job.
        """
        with self._ledger.reading() as connection:
            return _job(connection, job_id)


def act_on(connection: Connection, row: AnyRow, event: Event, *, actor: str, now: datetime, reason: str = "") -> None:
    """
    What `Jobs.act` does, to a job's row that the caller has locked; with a *reason* for what is held or cancelled.

    Raises:
        Refused: Its state does not allow it; nothing was changed.
    """
    changes: dict[str, Any] = {"owner": None, "lease": None}
    if event in {Event.RETRY, Event.RELEASE, Event.RESTART}:
        changes |= {"due": now, "since": now, "reason": ""}
    if event in {Event.HOLD, Event.CANCEL}:
        changes["reason"] = reason or f"{event} by {actor}"
    _move(connection, row, event, now=now, changes=changes, actor=actor)
    if event is Event.RESTART:
        _forget_outcomes(connection, row.id)
    if event is Event.RETRY:
        _forget_refusals(connection, row.id)


def make_job(
    connection: Connection, new: NewJob, *, study_id: int, series_id: int, case_id: int, spool: str, now: datetime
) -> int:
    """
    Make a job and, for a dispatch job, its delivery, in the caller's transaction.

    Returns:
        Its id; that of the job made before, when the same thing was asked already.
    """
    key = new.key(is_study=series_id == 0)
    asked = sa.select(jobs.c.id).where(jobs.c.key == key)
    found = connection.execute(asked).scalar()
    if found is not None:
        return int(found)
    job_id = insert_unless_there(
        connection, jobs, kind=new.kind, state=State.HELD if new.held else State.PENDING, study_id=study_id,
        series_id=series_id, case_id=case_id, rule=new.rule, revision=new.revision, target=new.target,
        parent=new.parent, priority=new.priority, supplement=new.supplement, reason=new.held, ready=not new.held,
        created=now, due=now,
        updated=now, since=now, spool=spool, key=key,
    )  # fmt: skip
    if job_id is None:  # somebody else asked for it in this very moment
        return int(connection.execute(asked).scalar_one())
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
    if not new.held:
        Ledger.announce(connection, new.kind)
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


#: Partial indexes are used where their very condition is asked for, as it is written there.
_READY = sa.text("jobs.ready")
_WAITS = sa.text("NOT jobs.ready AND jobs.state IN ('pending', 'deferred')")
_ACTIVE = sa.text("jobs.state = 'active'")


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where jobs that are ready stand in line: one spool, target and priority."""

    kind: Kind
    spool: str
    target: str | None
    priority: Priority
    due: datetime
    """Of the first in line."""

    @property
    def turn(self) -> datetime:
        """When it is the first one's turn."""
        return turn(self.priority, self.due)


#: What a row of a look is about.
_PLACE, _PAUSE, _NEXT = 0, 1, 2


class _Look:
    """What one look at the queue shows."""

    def __init__(self, rows: Sequence[AnyRow]) -> None:
        self._rows = rows

    @property
    def next_due(self) -> datetime | None:
        """When the next of those is due that wait for their time."""
        return next((row.due for row in self._rows if row.what == _NEXT), None)

    def places(self, kind: Kind, *, off_peak: bool, full: Collection[str]) -> list[_Place]:
        """Where jobs may be claimed now, that whose turn it is first."""
        pauses = {(row.name, row.target) for row in self._rows if row.what == _PAUSE}
        if pauses & {(kind, ""), ("drain", "")}:
            return []
        found = [
            _Place(kind=kind, spool=row.name, target=row.target, priority=Priority(row.priority), due=row.due)
            for row in self._rows
            if row.what == _PLACE and row.due is not None
        ]
        closed = {*full, *(target for name, target in pauses if name == kind)}
        return sorted(
            (p for p in found if p.target not in closed and (off_peak or p.priority is not Priority.OFFPEAK)),
            key=_turn_of,
        )


def _turn_of(place: _Place) -> datetime:
    return place.turn


@cache
def _look_at(spools: int) -> sa.TextualSelect:
    """
    One statement that finds the first in line everywhere, what is paused, and when the next that waits is due.

    It hops from target to target and reads one entry of `ix_jobs_ready` for each target and priority, so that its cost
    grows with the number of targets alone.
    """
    ready = "FROM jobs WHERE jobs.ready AND jobs.kind = :kind AND jobs.spool"
    here = ", ".join(f"(:spool{number})" for number in range(spools)) or "(NULL)"
    ranks = ", ".join(f"({int(priority)})" for priority in Priority)
    first = f"{ready} = {{0}}.spool AND jobs.target {{1}} AND jobs.priority = ranks.priority"
    order = "ORDER BY jobs.due, jobs.id LIMIT 1"
    return sa.text(
        f"""
        WITH RECURSIVE here(spool) AS (VALUES {here}), ranks(priority) AS (VALUES {ranks}), reach(spool, target) AS (
          SELECT here.spool, (SELECT jobs.target {ready} = here.spool AND jobs.target IS NOT NULL
            ORDER BY jobs.target LIMIT 1) FROM here
          UNION ALL
          SELECT reach.spool, (SELECT jobs.target {ready} = reach.spool AND jobs.target > reach.target
            ORDER BY jobs.target LIMIT 1) FROM reach WHERE reach.target IS NOT NULL
        )
        SELECT {_PLACE} AS what, reach.spool AS name, reach.target AS target, ranks.priority AS priority,
          (SELECT jobs.due {first.format("reach", "= reach.target")} {order}) AS due
          FROM reach, ranks WHERE reach.target IS NOT NULL
        UNION ALL
        SELECT {_PLACE}, here.spool, NULL, ranks.priority,
          (SELECT jobs.due {first.format("here", "IS NULL")} {order}) FROM here, ranks
        UNION ALL
        SELECT {_PAUSE}, pauses.kind, pauses.target, 0, NULL FROM pauses
        UNION ALL
        SELECT {_NEXT}, NULL, NULL, 0,
          (SELECT jobs.due FROM jobs WHERE {_WAITS.text} AND jobs.kind = :kind ORDER BY jobs.due LIMIT 1)
        """  # noqa: S608 - made of constants
    ).columns(
        sa.column("what", sa.Integer), sa.column("name", sa.String), sa.column("target", sa.String),
        sa.column("priority", sa.Integer), sa.column("due", UTCTime),
    )  # fmt: skip


@cache
def _first_in_line(*, has_target: bool) -> sa.Select[Any]:
    """The first in line at a place, locked, with all that a claim tells; what another is about to take is skipped."""
    study_uid = sa.select(studies.c.study_instance_uid).where(studies.c.id == jobs.c.study_id).scalar_subquery()
    series_uid = sa.select(series.c.series_instance_uid).where(series.c.id == jobs.c.series_id).scalar_subquery()
    numbers = (sa.cast(column, sa.String) for column in (job_series.c.series_id, job_series.c.first, job_series.c.last))
    one, colon, first, last = next(numbers), sa.literal(":"), next(numbers), next(numbers)
    extents = sa.select(sa.func.aggregate_strings(one + colon + first + colon + last, " "))
    return (
        sa.select(
            jobs,
            study_uid.label("study_instance_uid"),
            series_uid.label("series_instance_uid"),
            extents.where(job_series.c.job_id == jobs.c.id).scalar_subquery().label("extents"),
        )
        .where(
            _READY,
            jobs.c.kind == sa.bindparam("kind"),
            jobs.c.spool == sa.bindparam("spool"),
            jobs.c.target == sa.bindparam("target") if has_target else jobs.c.target.is_(None),
            jobs.c.priority == sa.bindparam("priority"),
        )
        .order_by(jobs.c.due, jobs.c.id)
        .limit(1)
        .with_for_update(of=jobs, skip_locked=True)
    )


def _first(connection: Connection, place: _Place) -> AnyRow | None:
    statement = _first_in_line(has_target=place.target is not None)
    given = {"kind": place.kind, "spool": place.spool, "target": place.target, "priority": place.priority}
    return connection.execute(statement, given if place.target is not None else {**given, "target": ""}).first()


# Made once: to make a statement takes longer than to execute it.
_LOCKED = sa.select(jobs).where(jobs.c.id == sa.bindparam("its_id")).with_for_update()
_UNLESS_OVERTAKEN = sa.update(jobs).where(
    jobs.c.id == sa.bindparam("its_id"),
    jobs.c.state == sa.bindparam("its_state"),
    jobs.c.attempt == sa.bindparam("its_attempt"),
)


def _lock(connection: Connection, job_id: int) -> AnyRow:
    row = connection.execute(_LOCKED, {"its_id": job_id}).first() if 0 < job_id < 1 << 63 else None
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
    ready = _is_ready(state, changes.get("due", row.due), now)
    found = {"its_id": row.id, "its_state": row.state, "its_attempt": row.attempt}
    given = {**found, "state": state, "updated": now, "ready": ready, **changes}
    if connection.execute(_UNLESS_OVERTAKEN, given).rowcount != 1:
        raise Overtaken(f"job {row.id} was changed by somebody else meanwhile; look again")
    if ready:
        Ledger.announce(connection, row.kind)
    subject = Subject(study_id=row.study_id, series_id=row.series_id, case_id=row.case_id, job_id=row.id)
    detail = {"state": state, "attempt": changes.get("attempt", row.attempt)}
    if changes.get("reason"):
        detail["reason"] = changes["reason"]
    write_event(connection, f"job.{event}", now=now, subject=subject, actor=actor, **detail)


def _is_ready(state: State, due: datetime, now: datetime) -> bool:
    """Whether a job may be claimed that is in this state from now on."""
    return state is State.PENDING or (state is State.DEFERRED and due <= now)


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
    expand(connection, job_id)
    own = sa.select(deliveries.c.id).where(deliveries.c.job_id == job_id)
    connection.execute(sa.update(outcomes).where(outcomes.c.delivery_id.in_(own)).values(standing="pending"))
    connection.execute(sa.update(deliveries).where(deliveries.c.job_id == job_id).values(sent=0))


def _forget_refusals(connection: Connection, job_id: int) -> None:
    """What a target refused for good is offered once more."""
    expand(connection, job_id)
    own = sa.select(deliveries.c.id).where(deliveries.c.job_id == job_id)
    connection.execute(
        sa.update(outcomes)
        .where(outcomes.c.delivery_id.in_(own), outcomes.c.standing == "failed")
        .values(standing="pending")
    )


def _extents(told: str | None) -> tuple[Extent, ...]:
    """As `_first` tells them."""
    found = [[int(number) for number in extent.split(":")] for extent in (told or "").split()]
    return tuple(Extent(series_id=series_id, first=first, last=last) for series_id, first, last in sorted(found))


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
