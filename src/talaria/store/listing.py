"""What people look at: studies, jobs, deliveries, events and the queue, a page at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import Refused
from talaria.model.job import Job, Kind, State
from talaria.model.plan import CaseState
from talaria.store.history import instance_history
from talaria.store.jobs import as_job, job_columns
from talaria.store.ledger import AnyRow, Ledger
from talaria.store.schema import (
    ARRIVING,
    OPEN,
    cases,
    deliveries,
    events,
    instances,
    job_series,
    jobs,
    received,
    runs,
    series,
    studies,
    workers,
)
from talaria.store.selection import Selection

Item = TypeVar("Item")

#: No page is longer.
PAGE = 500
#: Of what fits one of several conditions so many are read, one window after the other, to find what fits the others;
#: then the page is given as it is, short, and the next begins where this one stopped reading.
_WINDOWS = (200, 2_000, 10_000, 20_000)
#: Ids grow with time, but for a clock that was set back by no more than this.
_DISORDER = timedelta(days=1)
#: The same of studies, whose state is found by reading their parts.
_STUDY_WINDOWS = (100, 400, 500, 500)
#: A state that more parts are in is common: studies in it are found by reading studies.
_RARE = 5_000
#: So many gaps between event numbers are remembered; one that is forgotten is waited for anew.
_MOST_GAPS = 1000
#: The transactions that have written an event, or are about to: they hold this until they end (`pg_locks`).
_EVENT_WRITERS = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' "
    "AND relation = 'events'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
#: Studies with the same patient ID or accession number are found up to this many, the newest.
_MOST_FOUND = 5_000

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
        self._gaps: dict[int, frozenset[str]] = {}  # event after a gap: the transactions that may still fill it

    def knows(self, study_uid: str) -> bool:
        """Whether a study of that UID was received."""
        with self._ledger.reading() as connection:
            own = sa.select(studies.c.id).where(studies.c.study_instance_uid == study_uid)
            return connection.execute(own).first() is not None

    def studies(
        self, *, limit: int = 50, after: str | None = None, state: str | None = None, find: str | None = None
    ) -> Page[StudyLine]:
        """
        Studies, the one heard of last first.

        Args:
            limit: Lines wanted, at most `PAGE`.
            after: Where the page before ended.
            state: Only those; a page may then be shorter than *limit* though more follow.
            find: Only those with exactly this as UID, as UID of a series, as accession number or as patient ID.
        """
        place, wanted = None if after is None else _cursor(after), _bounded(limit)
        with self._ledger.reading() as connection:
            statement = sa.select(studies).order_by(studies.c.last_received.desc(), studies.c.id.desc())
            if find is not None:
                statement = statement.where(studies.c.id.in_(_ids_of(find)))
            parts = None if state is None else _rare_parts(connection, state)
            if parts is not None:
                statement = statement.where(studies.c.id.in_(parts))
            items: list[StudyLine] = []
            for most in (wanted,) if state is None else _STUDY_WINDOWS:
                rows = connection.execute(_below(statement, place).limit(most + 1)).all()
                shown = rows[:most]
                for row, line in zip(shown, _study_lines(connection, shown), strict=True):
                    place = (row.last_received, row.id)
                    items += [line] if state in {None, line.state} else []
                    if len(items) == wanted:
                        return Page(items=tuple(items), next=None if row is rows[-1] else _cursor_text(place))
                if len(rows) == len(shown):
                    return Page(items=tuple(items), next=None)
        return Page(items=tuple(items), next=None if place is None else _cursor_text(place))

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
        selection: Selection | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[Job]:
        """
        Jobs, the newest first.

        Args:
            state, rule, target, kind: Only those that fit all that are given.
            selection: The same and more, in place of these.
            limit: Lines wanted, at most `PAGE`; several conditions at once may give fewer though more follow.
            after: Where the page before ended.
        """
        chosen = selection or Selection(state=state, rule=rule, target=target, kind=kind)
        with self._ledger.reading() as connection:
            rows, place = _walk(connection, chosen, job_columns(), limit=_bounded(limit), after=after)
        return Page(items=tuple(as_job(row) for row in rows), next=place)

    def deliveries(
        self,
        *,
        target: str | None = None,
        state: str | None = None,
        selection: Selection | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[DeliveryLine]:
        """Deliveries, the newest first, by target and state or by the *selection* of their jobs; else as `jobs`."""
        chosen = replace(selection or Selection(state=state, target=target), kind=Kind.DISPATCH)
        if selection is not None and selection.kind not in {None, Kind.DISPATCH}:
            return Page(items=(), next=None)
        with self._ledger.reading() as connection:
            rows, place = _walk(connection, chosen, _delivery_columns(), limit=_bounded(limit), after=after)
        return Page(items=tuple(_delivery_line(row) for row in rows), next=place)

    def events(self, *, after: int = 0, limit: int = 100) -> tuple[EventLine, ...]:
        """
        Events after a number, the oldest first; none is ever found later that goes before one of these.

        A server commits events in another order than it numbers them: where a number is missing, the list ends
        there until all transactions have ended that may still bring it.
        """
        with self._ledger.reading() as connection:
            found = _event_lines(connection, events.c.id > after, limit=_bounded(limit))
        numbers = [event.id for event in found]
        if not self._ledger.has_server or not _after_gaps(after, numbers):
            return found
        last = self._settled(after, numbers)
        with self._ledger.reading() as connection:
            return _event_lines(connection, events.c.id.between(after + 1, last), limit=_bounded(limit))

    def _settled(self, after: int, numbers: Sequence[int]) -> int:
        """The last of these event numbers that none can come before any more."""
        with self._ledger.glancing() as connection:
            writers = frozenset(connection.execute(_EVENT_WRITERS).scalars())
        for number in _after_gaps(after, numbers):
            left = self._may_fill(number, writers)
            if left:
                self._gaps[number] = left
                while len(self._gaps) > _MOST_GAPS:
                    self._gaps.pop(next(iter(self._gaps)), None)
                return max((one for one in numbers if one < number), default=after)
        return numbers[-1]

    def _may_fill(self, number: int, writers: frozenset[str]) -> frozenset[str]:
        """Those that may still bring an event before this one: not who began after it, or a later one, was seen."""
        for later, before in list(self._gaps.items()):
            if later >= number:
                writers &= before
        return writers

    def last_event(self) -> int:
        """The number of the last event; 0 before the first."""
        with self._ledger.reading() as connection:
            return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(events.c.id), 0))).scalar_one())

    def instance(self, sop_instance_uid: str) -> tuple[Mapping[str, Any], ...]:
        """Every version of an instance and its life, as `history` tells it; empty when it was never received."""
        with self._ledger.reading() as connection:
            return instance_history(connection, sop_instance_uid)

    def queue(self) -> tuple[QueueLine, ...]:
        """What is not over, by kind and target."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(
                    jobs.c.kind, jobs.c.target, jobs.c.state, sa.func.count().label("number"),
                    sa.func.min(jobs.c.created).label("oldest"), sa.func.max(jobs.c.id).label("last"),
                )
                .where(sa.text(OPEN))
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
        """Instances received over all time, by calling AE title; a copy that came again is not counted."""
        with self._ledger.reading() as connection:
            return dict(connection.execute(sa.select(received.c.calling_ae, received.c.instances)).all())


def _after_gaps(after: int, numbers: Sequence[int]) -> list[int]:
    """Those that do not follow the one before."""
    return [number for before, number in zip([after, *numbers], numbers, strict=False) if number != before + 1]


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


def _cursor_text(place: tuple[datetime, int]) -> str:
    return f"{place[0]:%Y-%m-%dT%H:%M:%S.%fZ}~{place[1]}"


# -- studies --


def _below(statement: sa.Select[Any], place: tuple[datetime, int] | None) -> sa.Select[Any]:
    """The studies of a statement that come after a place."""
    if place is None:
        return statement
    mark = sa.tuple_(sa.literal(place[0], studies.c.last_received.type), sa.literal(place[1]))
    return statement.where(sa.tuple_(studies.c.last_received, studies.c.id) < mark)


def _ids_of(name: str) -> sa.ScalarSelect[int]:
    """Ids of studies that are called so: each way of calling has its index."""
    ways = (
        sa.select(studies.c.id).where(studies.c.study_instance_uid == name),
        sa.select(series.c.study_id).where(series.c.series_instance_uid == name),
        sa.select(studies.c.id).where(studies.c.accession_number == name),
        sa.select(studies.c.id).where(studies.c.patient_id == name),
    )
    newest = [sa.select(way.order_by(way.selected_columns[0].desc()).limit(_MOST_FOUND).subquery()) for way in ways]
    return sa.union_all(*newest).scalar_subquery()


def _rare_parts(connection: Connection, state: str) -> sa.CompoundSelect[Any] | None:
    """Ids of the studies that have a part in a state; None where so many have that reading studies finds them."""
    if state == State.DONE:  # said of a study that has no part, too
        return None
    ways = [sa.select(jobs.c.study_id).where(jobs.c.state == state)]
    ways.append(sa.select(cases.c.study_id).where(cases.c.state == state))
    if state == "receiving":
        ways = [sa.select(series.c.study_id).where(sa.text(ARRIVING))]
    few = [sa.select(way.limit(_RARE + 1).subquery()) for way in ways]
    counts = [connection.execute(sa.select(sa.func.count()).select_from(way.subquery())).scalar_one() for way in few]
    return sa.union_all(*few) if sum(counts) <= _RARE else None


# -- jobs and deliveries --


def _walk(
    connection: Connection, chosen: Selection, columns: sa.Select[Any], *, limit: int, after: str | None
) -> tuple[list[AnyRow], str | None]:
    """
    The next jobs of a selection, the newest first, and where to go on.

    One condition leads along its index; the others are asked of a window of what it gives. So a page costs the same
    whatever is stored, and is short where a window after the other holds nothing that fits.
    """
    first, last = _id_span(connection, chosen)
    last = last if after is None else min(last, _number(after) - 1)
    lead, rest = _lead(chosen)
    found: list[AnyRow] = []
    for most in _WINDOWS if rest else (limit + 1,):
        window = lead.where(jobs.c.id.between(first, last)).order_by(jobs.c.id.desc())
        inner = window.limit(most).subquery()
        fitting = columns.add_columns(jobs.c.id.label("number")).join(inner, inner.c.id == jobs.c.id).where(*rest)
        found += connection.execute(fitting.order_by(jobs.c.id.desc()).limit(limit + 1 - len(found))).all()
        if len(found) > limit:
            return found[:limit], str(found[limit - 1].number)
        span = sa.select(sa.func.count().label("read"), sa.func.min(inner.c.id).label("least")).select_from(inner)
        reached = connection.execute(span).one()
        if reached.read < most:
            return found, None
        last = reached.least - 1
    return found, str(last + 1)


def _lead(chosen: Selection) -> tuple[sa.Select[Any], list[sa.ColumnElement[bool]]]:
    """Ids by the condition that leaves least, and the conditions that remain."""
    ids = sa.select(jobs.c.id)
    if chosen.ids:
        return ids.where(jobs.c.id.in_(chosen.ids)), replace(chosen, ids=()).conditions()
    if chosen.study_uid is not None:
        lead = ids.where(*Selection(study_uid=chosen.study_uid).conditions())
        return lead, replace(chosen, study_uid=None).conditions()
    if chosen.series_uid is not None:
        own = sa.select(job_series.c.job_id).join(series, series.c.id == job_series.c.series_id)
        about = own.where(series.c.series_instance_uid == chosen.series_uid)
        return ids.where(jobs.c.id.in_(about)), replace(chosen, series_uid=None).conditions()
    names = ["rule", "target", "kind", "state"]
    if chosen.state is not None and chosen.state != State.DONE:
        names.insert(0, "state")
    name = next((name for name in names if getattr(chosen, name) is not None), None)
    if name is None:
        return ids, chosen.conditions()
    leading = {name, "kind"} if name == "target" else {name}  # nearly all that has a target is of one kind
    others = {field.name: getattr(chosen, field.name) for field in fields(chosen) if field.name not in leading}
    lead = ids.where(*(jobs.c[each] == getattr(chosen, each) for each in sorted(leading) if getattr(chosen, each)))
    return lead, Selection(**others).conditions()


def _id_span(connection: Connection, chosen: Selection) -> tuple[int, int]:
    """Between which ids the jobs of a time are: found by halves, since ids grow with time."""
    last = connection.execute(sa.select(sa.func.coalesce(sa.func.max(jobs.c.id), 0))).scalar_one()
    first = 0 if chosen.since is None else _first_made(connection, chosen.since - _DISORDER, last)
    if chosen.until is not None:
        last = _first_made(connection, chosen.until + _DISORDER, last)
    return first, last


def _first_made(connection: Connection, moment: datetime, last: int) -> int:
    """The least id from which on jobs were made at a moment or later; *last* if there is none."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        made = connection.execute(
            sa.select(jobs.c.created).where(jobs.c.id <= middle).order_by(jobs.c.id.desc()).limit(1)
        ).scalar()
        if made is None or made < moment:
            low = middle + 1
        else:
            high = middle
    return low


# -- lines --


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
    of_cases = connection.execute(sa.select(cases).where(cases.c.study_id.in_(ids))).all()
    for row in sorted(of_cases, key=lambda case: case.id):
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
    columns = [column for column in series.c if column is not series.c.tags]
    rows = connection.execute(sa.select(*columns, odd).where(series.c.study_id == study_id).order_by(series.c.id))
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


def _delivery_columns() -> sa.Select[Any]:
    return (
        sa.select(
            deliveries, jobs.c.state, jobs.c.attempt, jobs.c.reason, jobs.c.due, jobs.c.created, jobs.c.updated,
            jobs.c.rule, studies.c.study_instance_uid,
        )
        .select_from(jobs)
        .join(deliveries, deliveries.c.job_id == jobs.c.id)
        .join(studies, studies.c.id == jobs.c.study_id)
    )  # fmt: skip


def _delivery_line(row: AnyRow) -> DeliveryLine:
    return DeliveryLine(
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


def _delivery_lines(connection: Connection, condition: sa.ColumnElement[bool]) -> tuple[DeliveryLine, ...]:
    rows = connection.execute(_delivery_columns().where(condition).order_by(jobs.c.id.desc()).limit(PAGE))
    return tuple(_delivery_line(row) for row in rows)


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
