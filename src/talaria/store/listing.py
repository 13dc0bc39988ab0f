"""What people look at: studies, jobs, deliveries, events and the queue, a page at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import Refused
from talaria.model.job import Job, Kind, State
from talaria.model.plan import CaseState
from talaria.store.jobs import as_job, job_columns
from talaria.store.ledger import AnyRow, Ledger
from talaria.store.schema import (
    cases,
    deliveries,
    events,
    instances,
    jobs,
    outcomes,
    runs,
    series,
    studies,
    workers,
)

Item = TypeVar("Item")

#: No page is longer.
PAGE = 500

#: How a study is said to stand when its parts stand differently: the first of these that any part is in.
_WORST_FIRST = (
    "failed",
    "held",
    "active",
    "deferred",
    "pending",
    "receiving",
    "collecting",
    "done",
    "cancelled",
    "discarded",
    "cleaned",
)


@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """A page of a list, and where the next one begins."""

    items: tuple[Item, ...]
    next: str | None
    """Given back as *after*; None at the end."""


@dataclass(frozen=True, kw_only=True)
class StudyLine:
    """A study in a list."""

    study_uid: str
    patient_name: str
    patient_id: str
    accession_number: str
    description: str
    modalities: tuple[str, ...]
    series: int
    instances: int
    size_bytes: int
    state: str
    reason: str
    """Why it stands so, in words; empty when all is well."""
    rules: tuple[str, ...]
    received: datetime
    """When its first instance came."""
    updated: datetime
    """When its last instance came."""


@dataclass(frozen=True, kw_only=True)
class SeriesLine:
    """A series of a study."""

    series_uid: str
    modality: str
    description: str
    instances: int
    size_bytes: int
    calling_ae: str
    called_ae: str
    address: str
    received: datetime
    updated: datetime
    made_by_job: int | None
    """The process job that made it; None where it was received."""
    superseded: bool
    odd: int
    """Instances with something odd in their header."""


@dataclass(frozen=True, kw_only=True)
class CaseLine:
    """A case of a study."""

    id: int
    rule: str
    series_uid: str | None
    state: str
    reason: str
    supplement: int
    revision: int
    opened: datetime


@dataclass(frozen=True, kw_only=True)
class DeliveryLine:
    """A delivery with its job's state."""

    id: str
    job_id: int
    study_uid: str
    rule: str
    target: str
    state: str
    sent: int
    total: int
    attempt: int
    reason: str
    due: datetime
    created: datetime
    updated: datetime
    seconds: float
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One step of a process job."""

    job_id: int
    attempt: int
    step: int
    module: str
    code: int
    reason: str
    seconds: float
    ended: datetime
    log: str


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One thing that happened."""

    id: int
    time: datetime
    kind: str
    actor: str
    study_uid: str | None
    series_uid: str | None
    instance_id: str | None
    job_id: int | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyLife:
    """All there is to tell of a study."""

    line: StudyLine
    series: tuple[SeriesLine, ...]
    cases: tuple[CaseLine, ...]
    jobs: tuple[Job, ...]
    deliveries: tuple[DeliveryLine, ...]
    runs: tuple[RunLine, ...]
    events: tuple[EventLine, ...]
    """The last of them, the oldest first."""


@dataclass(frozen=True, kw_only=True)
class QueueLine:
    """What waits for one target, or to be processed."""

    kind: Kind
    target: str | None
    states: Mapping[str, int]
    oldest: datetime | None
    """When the oldest job that is not over was made."""
    reason: str
    """Why the last deferred or failed one is."""


@dataclass(frozen=True, kw_only=True)
class WorkerLine:
    """A service that was heard of."""

    service: str
    host: str
    pid: int
    started: datetime
    seen: datetime


class Listing:
    """Reads only."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def studies(self, *, limit: int = 50, after: str | None = None, state: str | None = None) -> Page[StudyLine]:
        """
        Studies, the one heard of last first.

        Args:
            limit: Lines wanted, at most `PAGE`.
            after: Where the page before ended.
            state: Only those; a page may then be shorter than *limit* though more follow.
        """
        statement = sa.select(studies).order_by(studies.c.last_received.desc(), studies.c.id.desc())
        if after is not None:
            moment, study_id = _cursor(after)
            statement = statement.where(
                sa.tuple_(studies.c.last_received, studies.c.id)
                < sa.tuple_(sa.literal(moment, studies.c.last_received.type), sa.literal(study_id))
            )
        with self._ledger.reading() as connection:
            rows = connection.execute(statement.limit(_bounded(limit) + 1)).all()
            shown = rows[: _bounded(limit)]
            lines = _study_lines(connection, shown)
        more = len(rows) > len(shown)
        last = f"{shown[-1].last_received:%Y-%m-%dT%H:%M:%S.%fZ}~{shown[-1].id}" if more else None
        return Page(items=tuple(line for line in lines if state in {None, line.state}), next=last)

    def study(self, study_uid: str) -> StudyLife:
        """
        A study's life.

        Raises:
            Refused: No study of that UID was received.
        """
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(studies).where(studies.c.study_instance_uid == study_uid)).first()
            if row is None:
                raise Refused(f"no study {study_uid} is known here; `talaria studies list` shows all")
            found = connection.execute(job_columns().where(jobs.c.study_id == row.id).order_by(jobs.c.id)).all()
            return StudyLife(
                line=_study_lines(connection, [row])[0],
                series=_series_lines(connection, row.id),
                cases=_case_lines(connection, row.id),
                jobs=tuple(as_job(job) for job in found),
                deliveries=_delivery_lines(connection, jobs.c.study_id == row.id),
                runs=_run_lines(connection, row.id),
                events=_event_lines(connection, events.c.study_id == row.id, limit=PAGE, newest=True),
            )

    def jobs(
        self,
        *,
        state: str | None = None,
        rule: str | None = None,
        target: str | None = None,
        kind: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Job]:
        """Jobs, the newest first, by what is given."""
        wanted = {jobs.c.state: state, jobs.c.rule: rule, jobs.c.target: target, jobs.c.kind: kind}
        statement = job_columns().order_by(jobs.c.id.desc())
        for column, value in wanted.items():
            if value is not None:
                statement = statement.where(column == value)
        if after is not None:
            statement = statement.where(jobs.c.id < _number(after))
        with self._ledger.reading() as connection:
            rows = connection.execute(statement.limit(_bounded(limit) + 1)).all()
        shown = rows[: _bounded(limit)]
        return Page(
            items=tuple(as_job(row) for row in shown), next=str(shown[-1].id) if len(rows) > len(shown) else None
        )

    def deliveries(
        self, *, target: str | None = None, state: str | None = None, limit: int = 50, after: str | None = None
    ) -> Page[DeliveryLine]:
        """Deliveries, the newest first."""
        conditions: list[sa.ColumnElement[bool]] = [sa.true()]
        if target is not None:
            conditions.append(deliveries.c.target == target)
        if state is not None:
            conditions.append(jobs.c.state == state)
        if after is not None:
            conditions.append(deliveries.c.job_id < _number(after))
        with self._ledger.reading() as connection:
            lines = _delivery_lines(connection, sa.and_(*conditions), limit=_bounded(limit) + 1)
        shown = lines[: _bounded(limit)]
        return Page(items=shown, next=str(shown[-1].job_id) if len(lines) > len(shown) else None)

    def events(self, *, after: int = 0, limit: int = 100) -> tuple[EventLine, ...]:
        """Events after a number, the oldest first."""
        with self._ledger.reading() as connection:
            return _event_lines(connection, events.c.id > after, limit=_bounded(limit))

    def last_event(self) -> int:
        """The number of the last event; 0 before the first."""
        with self._ledger.reading() as connection:
            return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0))).scalar_one())

    def instance(self, sop_instance_uid: str) -> tuple[Mapping[str, Any], ...]:
        """Every version of an instance and where it went; empty when it was never received."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(instances, series.c.series_instance_uid, series.c.origin_job, studies.c.study_instance_uid)
                .join(series, series.c.id == instances.c.series_id)
                .join(studies, studies.c.id == series.c.study_id)
                .where(instances.c.sop_instance_uid == sop_instance_uid)
                .order_by(instances.c.id)
            ).all()
            return tuple(_instance_history(connection, row) for row in rows)

    def queue(self) -> tuple[QueueLine, ...]:
        """What is not over, by kind and target."""
        waiting = [state for state in State if state not in {State.DONE, State.CANCELLED}]
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(
                    jobs.c.kind, jobs.c.target, jobs.c.state, sa.func.count().label("number"),
                    sa.func.min(jobs.c.created).label("oldest"), sa.func.max(jobs.c.id).label("last"),
                )
                .where(jobs.c.state.in_(waiting))
                .group_by(jobs.c.kind, jobs.c.target, jobs.c.state)
            ).all()  # fmt: skip
            reasons = dict(
                connection.execute(
                    sa.select(jobs.c.id, jobs.c.reason).where(jobs.c.id.in_([row.last for row in rows]))
                ).all()
            )
        return _queue_lines(rows, reasons)

    def workers(self, *, since: datetime) -> tuple[WorkerLine, ...]:
        """Services heard of since a moment, by name."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(workers).where(workers.c.seen >= since).order_by(workers.c.service, workers.c.started)
            ).all()
        return tuple(
            WorkerLine(service=r.service, host=r.host, pid=r.pid, started=r.started, seen=r.seen) for r in rows
        )

    def instances_received(self) -> Mapping[str, int]:
        """Instances kept, by calling AE title."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(series.c.calling_ae, sa.func.sum(series.c.instances))
                .where(series.c.origin_job == 0)
                .group_by(series.c.calling_ae)
            ).all()
        return {ae: int(count) for ae, count in rows}


def _bounded(limit: int) -> int:
    return max(1, min(limit, PAGE))


def _number(after: str) -> int:
    if not (after.isascii() and after.isdecimal() and len(after) <= 18):  # a database's integers end there
        raise Refused(f"after={after[:40]!r} is not a place in this list; use `next` of the page before")
    return int(after)


def _cursor(after: str) -> tuple[datetime, int]:
    moment, _, number = after.partition("~")
    try:
        return datetime.fromisoformat(moment).astimezone(UTC), _number(number)
    except (ValueError, OverflowError):
        raise Refused(f"after={after[:40]!r} is not a place in this list; use `next` of the page before") from None


def _study_lines(connection: Connection, rows: Sequence[AnyRow]) -> tuple[StudyLine, ...]:
    ids = [row.id for row in rows]
    parts = _series_totals(connection, ids)
    standings = _standings(connection, ids)
    return tuple(
        StudyLine(
            study_uid=row.study_instance_uid,
            patient_name=row.patient_name,
            patient_id=row.patient_id,
            accession_number=row.accession_number,
            description=row.study_description,
            modalities=tuple(sorted({part.modality for part in parts.get(row.id, ()) if part.modality})),
            series=len(parts.get(row.id, ())),
            instances=sum(part.instances for part in parts.get(row.id, ())),
            size_bytes=sum(part.size_bytes for part in parts.get(row.id, ())),
            received=row.first_received,
            updated=row.last_received,
            **standings[row.id],
        )
        for row in rows
    )


def _series_totals(connection: Connection, ids: Sequence[int]) -> dict[int, list[AnyRow]]:
    found: dict[int, list[AnyRow]] = {}
    rows = connection.execute(
        sa.select(series.c.study_id, series.c.modality, series.c.instances, series.c.size_bytes).where(
            series.c.study_id.in_(ids), series.c.origin_job == 0
        )
    )
    for row in rows:
        found.setdefault(row.study_id, []).append(row)
    return found


def _standings(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """State, reason and rules of studies, from all their parts."""
    parts: dict[int, list[tuple[str, str]]] = {study_id: [] for study_id in ids}
    rules: dict[int, list[str]] = {study_id: [] for study_id in ids}
    unsettled = sa.select(series.c.study_id).where(
        series.c.study_id.in_(ids), series.c.origin_job == 0, series.c.dropped.is_(None),
        sa.or_(~series.c.settled, series.c.due.is_not(None)),
    )  # fmt: skip
    for study_id in connection.execute(unsettled).scalars():
        parts[study_id].append(("receiving", ""))
    for row in connection.execute(sa.select(cases).where(cases.c.study_id.in_(ids)).order_by(cases.c.id)):
        if row.state != CaseState.CLOSED:
            parts[row.study_id].append((row.state, row.reason))
        if row.rule and row.rule not in rules[row.study_id]:
            rules[row.study_id].append(row.rule)
    for row in connection.execute(
        sa.select(jobs.c.study_id, jobs.c.state, jobs.c.target, jobs.c.reason).where(jobs.c.study_id.in_(ids))
    ):
        is_told = not row.reason or not row.target or f"'{row.target}'" in row.reason
        reason = row.reason if is_told else f"{row.target}: {row.reason}"
        parts[row.study_id].append((row.state, reason))
    return {study_id: {**_worst(parts[study_id]), "rules": tuple(rules[study_id])} for study_id in ids}


def _worst(parts: Sequence[tuple[str, str]]) -> dict[str, str]:
    for state in _WORST_FIRST:
        reasons = [reason for found, reason in parts if found == state]
        if reasons:
            return {"state": state, "reason": next((reason for reason in reasons if reason), "")}
    return {"state": "done", "reason": ""}


def _series_lines(connection: Connection, study_id: int) -> tuple[SeriesLine, ...]:
    odd = (
        sa.select(sa.func.count())
        .where(instances.c.series_id == series.c.id, instances.c.flags != "")
        .scalar_subquery()
        .label("odd")
    )
    rows = connection.execute(sa.select(series, odd).where(series.c.study_id == study_id).order_by(series.c.id))
    return tuple(
        SeriesLine(
            series_uid=row.series_instance_uid,
            modality=row.modality,
            description=row.series_description,
            instances=row.instances,
            size_bytes=row.size_bytes,
            calling_ae=row.calling_ae,
            called_ae=row.called_ae,
            address=row.address,
            received=row.first_received,
            updated=row.last_received,
            made_by_job=row.origin_job or None,
            superseded=row.superseded,
            odd=row.odd,
        )
        for row in rows
    )


def _case_lines(connection: Connection, study_id: int) -> tuple[CaseLine, ...]:
    rows = connection.execute(
        sa.select(cases, series.c.series_instance_uid)
        .outerjoin(series, series.c.id == cases.c.series_id)
        .where(cases.c.study_id == study_id)
        .order_by(cases.c.id)
    )
    return tuple(
        CaseLine(
            id=row.id,
            rule=row.rule,
            series_uid=row.series_instance_uid,
            state=row.state,
            reason=row.reason,
            supplement=row.supplement,
            revision=row.revision,
            opened=row.opened,
        )
        for row in rows
    )


def _delivery_lines(
    connection: Connection, condition: sa.ColumnElement[bool], *, limit: int = PAGE
) -> tuple[DeliveryLine, ...]:
    rows = connection.execute(
        sa.select(
            deliveries, jobs.c.state, jobs.c.attempt, jobs.c.reason, jobs.c.due, jobs.c.created, jobs.c.updated,
            jobs.c.rule, studies.c.study_instance_uid,
        )
        .join(jobs, jobs.c.id == deliveries.c.job_id)
        .join(studies, studies.c.id == jobs.c.study_id)
        .where(condition)
        .order_by(deliveries.c.job_id.desc())
        .limit(limit)
    )  # fmt: skip
    return tuple(
        DeliveryLine(
            id=row.id,
            job_id=row.job_id,
            study_uid=row.study_instance_uid,
            rule=row.rule,
            target=row.target,
            state=row.state,
            sent=row.sent,
            total=row.total,
            attempt=row.attempt,
            reason=row.reason,
            due=row.due,
            created=row.created,
            updated=row.updated,
            seconds=row.seconds,
            size_bytes=row.size_bytes,
        )
        for row in rows
    )


def _run_lines(connection: Connection, study_id: int) -> tuple[RunLine, ...]:
    rows = connection.execute(
        sa.select(runs)
        .join(jobs, jobs.c.id == runs.c.job_id)
        .where(jobs.c.study_id == study_id)
        .order_by(runs.c.job_id, runs.c.attempt, runs.c.step)
    )
    return tuple(
        RunLine(
            job_id=row.job_id,
            attempt=row.attempt,
            step=row.step,
            module=row.module,
            code=row.code,
            reason=row.reason,
            seconds=row.seconds,
            ended=row.ended,
            log=row.log,
        )
        for row in rows
    )


def _event_lines(
    connection: Connection, condition: sa.ColumnElement[bool], *, limit: int, newest: bool = False
) -> tuple[EventLine, ...]:
    """The first or the *newest* of them, the oldest first."""
    rows = connection.execute(
        sa.select(events, studies.c.study_instance_uid, series.c.series_instance_uid)
        .outerjoin(studies, studies.c.id == events.c.study_id)
        .outerjoin(series, series.c.id == events.c.series_id)
        .where(condition)
        .order_by(events.c.id.desc() if newest else events.c.id)
        .limit(limit)
    ).all()
    return tuple(
        EventLine(
            id=row.id,
            time=row.time,
            kind=row.kind,
            actor=row.actor,
            study_uid=row.study_instance_uid,
            series_uid=row.series_instance_uid,
            instance_id=row.instance_id,
            job_id=row.job_id,
            detail=json.loads(row.detail),
        )
        for row in (reversed(rows) if newest else rows)
    )


def _instance_history(connection: Connection, row: AnyRow) -> Mapping[str, Any]:
    found = connection.execute(
        sa.select(outcomes, deliveries.c.target, deliveries.c.job_id)
        .join(deliveries, deliveries.c.id == outcomes.c.delivery_id)
        .where(outcomes.c.instance_id == row.id)
        .order_by(outcomes.c.time)
    )
    return {
        "id": row.id,
        "study_uid": row.study_instance_uid,
        "series_uid": row.series_instance_uid,
        "sop_instance_uid": row.sop_instance_uid,
        "sop_class_uid": row.sop_class_uid,
        "transfer_syntax_uid": row.transfer_syntax_uid,
        "size_bytes": row.size_bytes,
        "sha256": row.sha256.hex(),
        "received": row.received,
        "made_by_job": row.origin_job or None,
        "superseded_by": row.superseded_by,
        "repeats": row.repeats,
        "flags": row.flags.split(),
        "dropped": row.dropped,
        "deliveries": [
            {
                "target": o.target, "job_id": o.job_id, "standing": o.standing, "status": o.status,
                "detail": o.detail, "attempt": o.attempt, "times_sent": o.times_sent, "time": o.time,
            }
            for o in found
        ],
        "events": [
            {"time": e.time, "kind": e.kind, "detail": e.detail}
            for e in _event_lines(connection, events.c.instance_id == row.id, limit=PAGE)
        ],
    }  # fmt: skip


def _queue_lines(rows: Sequence[AnyRow], reasons: Mapping[int, str]) -> tuple[QueueLine, ...]:
    grouped: dict[tuple[str, str | None], list[AnyRow]] = {}
    for row in rows:
        grouped.setdefault((row.kind, row.target), []).append(row)
    return tuple(
        QueueLine(
            kind=Kind(kind),
            target=target,
            states={row.state: row.number for row in members},
            oldest=min((row.oldest for row in members if row.state != State.FAILED), default=None),
            reason=next((reasons[row.last] for row in members if reasons.get(row.last)), ""),
        )
        for (kind, target), members in sorted(grouped.items(), key=str)
    )
