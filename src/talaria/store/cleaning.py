"""Which series are over, and the end of their files: marked first, removed after, so that a kill is mended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from talaria.model.job import State
from talaria.model.plan import CaseState
from talaria.model.retention import Candidate
from talaria.store.ledger import AnyRow, Ledger, Subject, write_event
from talaria.store.schema import case_series, cases, events, instances, job_series, jobs, series

#: Looked at in one go.
_MOST = 1000
#: Series whose files are told in one go.
_MOST_CONDEMNED = 100
#: A study case that may still want the files of its series.
_COLLECTING = sa.and_(cases.c.series_id == 0, sa.or_(cases.c.state == CaseState.COLLECTING, cases.c.due.is_not(None)))


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a walk along the kept series has come: they go by when they last grew."""

    moment: datetime
    series_id: int


class Cleaning:
    """What the cleaner reads and writes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def candidates(
        self, *, spool: str, before: datetime, after: Place | None = None
    ) -> tuple[list[Candidate], Place | None]:
        """
        Series that nothing is to happen to any more, those that last grew longest ago first.

        A walk reads only what still has files, and as much of that as the caller asks for. None ended before it last
        grew, so one that grew after a moment cannot have ended before it.

        Args:
            spool: Whose files.
            before: Nothing came for the series since.
            after: Where the call before ended.

        Returns:
            Series by how their cases and jobs ended, and where to go on; None at the end.
        """
        with self._ledger.reading() as connection:
            walked = connection.execute(_kept(spool, before=before, after=after)).all()
            rows = [row for row in walked if row.settled and row.due is None and row.is_here]
            ids = [row.id for row in rows]
            standings = _standings(
                rows,
                connection.execute(
                    sa.select(job_series.c.series_id, jobs.c.state, jobs.c.updated)
                    .join(jobs, jobs.c.id == job_series.c.job_id)
                    .where(job_series.c.series_id.in_(ids))
                ).all(),
                connection.execute(
                    sa.select(case_series.c.series_id, cases.c.state, cases.c.updated)
                    .join(cases, cases.c.id == case_series.c.case_id)
                    .where(case_series.c.series_id.in_(ids))
                ).all(),
                set(
                    connection.execute(
                        sa.select(cases.c.study_id).where(
                            cases.c.study_id.in_([row.study_id for row in rows]), _COLLECTING
                        )
                    ).scalars()
                ),
            )
        found = [
            Candidate(id=row.id, state=standings[row.id][0], ended=standings[row.id][1], size_bytes=row.size_bytes)
            for row in rows
            if row.id in standings
        ]
        last = walked[-1] if len(walked) == _MOST else None
        return found, None if last is None else Place(moment=last.last_received, series_id=last.id)

    def last_event(self) -> datetime | None:
        """When the last event was written."""
        with self._ledger.reading() as connection:
            return connection.execute(sa.select(events.c.time).order_by(events.c.id.desc()).limit(1)).scalar()

    def mark(self, candidate: Candidate, *, reason: str, now: datetime) -> bool:
        """
        Say in the ledger that a series' files go, and that it is new again should it be sent again.

        Returns:
            False when something came or happened since it was looked at; then nothing was changed.
        """
        with self._ledger.writing("cleaning.mark") as connection:
            row = connection.execute(
                sa.select(series.c.study_id, series.c.due, series.c.settled, series.c.dropped)
                .where(series.c.id == candidate.id)
                .with_for_update()
            ).one()
            moving = connection.execute(
                sa.select(sa.func.count())
                .select_from(jobs.join(job_series, job_series.c.job_id == jobs.c.id))
                .where(
                    job_series.c.series_id == candidate.id,
                    sa.or_(jobs.c.state.not_in(_OVER), jobs.c.updated > candidate.ended),
                )
            ).scalar_one()
            collecting = connection.execute(
                sa.select(cases.c.id).where(cases.c.study_id == row.study_id, _COLLECTING).limit(1)
            ).first()
            if row.due is not None or not row.settled or row.dropped is not None or moving or collecting:
                return False
            connection.execute(
                sa.update(instances)
                .where(instances.c.series_id == candidate.id, instances.c.dropped.is_(None))
                .values(dropped=now)
            )
            connection.execute(
                sa.update(series)
                .where(series.c.id == candidate.id)
                .values(
                    dropped=now, dropping=True, asked="[]", settled=False, forced="", held="",
                    instances=0, size_bytes=0, version=series.c.version + 1,
                )
            )  # fmt: skip
            over = sa.and_(cases.c.study_id == row.study_id, cases.c.series_id == 0, ~_has_files(row.study_id))
            connection.execute(
                sa.update(cases)
                .where(sa.or_(cases.c.series_id == candidate.id, over))
                .values(state=CaseState.CLEANED, updated=now, version=cases.c.version + 1)
            )
            write_event(
                connection, "series.cleaned", now=now, subject=Subject(study_id=row.study_id, series_id=candidate.id),
                state=candidate.state, reason=reason, size_bytes=candidate.size_bytes,
            )  # fmt: skip
        return True

    def condemned(self, *, spool: str, after: int = 0) -> dict[int, list[str]]:
        """Files marked to go and perhaps not gone yet, by series; the next series after a number, some at a time."""
        marked = sa.and_(
            instances.c.series_id == series.c.id, instances.c.dropped.is_not(None), instances.c.spool == spool
        )
        some = (
            sa.select(series.c.id)
            .where(_IS_DROPPING, series.c.id > after, sa.select(instances.c.id).where(marked).exists())
            .order_by(series.c.id)
            .limit(_MOST_CONDEMNED)
        )
        with self._ledger.reading() as connection:
            ids = list(connection.execute(some).scalars())
            rows = connection.execute(
                sa.select(instances.c.series_id, instances.c.id)
                .where(instances.c.series_id.in_(ids), instances.c.dropped.is_not(None), instances.c.spool == spool)
                .order_by(instances.c.series_id, instances.c.id)
            ).all()
        found: dict[int, list[str]] = {}
        for row in rows:
            found.setdefault(row.series_id, []).append(row.id)
        return found

    def gone(self, series_id: int) -> None:
        """The files of a marked series are gone."""
        with self._ledger.writing("cleaning.gone") as connection:
            connection.execute(sa.update(series).where(series.c.id == series_id).values(dropping=False))


#: As the indexes say it: a bound value in its place, and they are not used.
_IS_DROPPING = sa.text("series.dropping")


def _kept(spool: str, *, before: datetime, after: Place | None) -> sa.Select[Any]:
    """The next series that have files, with what decides whether they are over."""
    here = sa.select(instances.c.id).where(instances.c.series_id == series.c.id, instances.c.spool == spool).exists()
    statement = (
        sa.select(
            series.c.id, series.c.study_id, series.c.size_bytes, series.c.last_received, series.c.settled,
            series.c.due, here.label("is_here"),
        )
        .where(series.c.dropped.is_(None), series.c.last_received <= before)
        .order_by(series.c.last_received, series.c.id)
        .limit(_MOST)
    )  # fmt: skip
    if after is None:
        return statement
    place = sa.tuple_(sa.literal(after.moment, series.c.last_received.type), sa.literal(after.series_id))
    return statement.where(sa.tuple_(series.c.last_received, series.c.id) > place)


def _has_files(study_id: int) -> sa.ColumnElement[bool]:
    """Whether a received series of a study was not cleaned; results go by their own time."""
    return (
        sa.select(series.c.id)
        .where(series.c.study_id == study_id, series.c.origin_job == 0, series.c.dropped.is_(None))
        .exists()
    )


_OVER = [State.DONE, State.FAILED, State.CANCELLED, State.HELD]


def _standings(
    rows: Sequence[AnyRow], of_jobs: Sequence[AnyRow], of_cases: Sequence[AnyRow], collecting: set[int]
) -> Mapping[int, tuple[str, datetime]]:
    """How each series ended and when; those that anything may still happen to are left out."""
    states: dict[int, set[str]] = {row.id: set() for row in rows}
    ended: dict[int, datetime] = {row.id: row.last_received for row in rows}
    for part in (*of_jobs, *of_cases):
        states[part.series_id].add(part.state)
        ended[part.series_id] = max(ended[part.series_id], part.updated)
    found = {}
    for row in rows:
        state = _standing(states[row.id])
        if state is not None and row.study_id not in collecting:
            found[row.id] = (state, ended[row.id])
    return found


def _standing(states: set[str]) -> str | None:
    """
    The state by which retention goes: the most careful of all its cases and jobs; None while one moves.

    A series that no case took is a result of a module, or belongs to none: done.
    """
    if states & {State.PENDING, State.ACTIVE, State.DEFERRED, CaseState.COLLECTING}:
        return None
    for state in (State.FAILED, State.HELD, State.CANCELLED):
        if state in states:
            return state
    if CaseState.DISCARDED in states and State.DONE not in states:
        return CaseState.DISCARDED
    return State.DONE
