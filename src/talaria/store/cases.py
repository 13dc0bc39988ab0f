"""Series that are due, the cases that rules or people open on them, and the plans that become jobs."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.dicom import UID, Series, Tags
from talaria.model.errors import Overtaken, Refused
from talaria.model.job import Extent, Job, Kind
from talaria.model.plan import CaseState, CaseView, Member, Opening, Plan, SeriesView, StudyView
from talaria.store.jobs import AD_HOC, NewJob, make_job
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_ignoring, insert_unless_there, write_event
from talaria.store.schema import case_series, cases, instances, job_series, jobs, pauses, series, studies

#: Longer lists of siblings are not shown to rules: a study of more series is no study.
_SIBLINGS = 2000
#: However long a quiet time is, what waits for it is looked at so often: the clock may have been set back meanwhile.
LONGEST_WAIT = timedelta(hours=1)
#: Routers that share a server begin with any of so many, which are due about the same.
_HERD = 16
#: Stands for the rule of a case that a person opened outside of any; no rule's name has a colon in it.
SENT_BY = "sent by: "
#: While one of these is paused, nothing is routed.
_STOPS_ROUTING = ("route", "drain")


@dataclass(frozen=True, kw_only=True)
class DueStudy:
    """A study case to look at, with the row it was seen as."""

    view: StudyView
    spool: str


class Cases:
    """What the router reads and writes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    # -- series --

    def due_series(self, now: datetime) -> int | None:
        """A received series that wants to be looked at, the longest due first; on a server one of the first few."""
        return self._one_of(
            sa.select(series.c.id).where(_is_due(series.c.due, now), _is_running()).order_by(series.c.due)
        )

    def next_due(self) -> datetime | None:
        """When the router has next to look at anything; None also while routing is paused."""
        with self._ledger.reading() as connection:
            if not connection.execute(sa.select(_is_running())).scalar():
                return None
            one = connection.execute(sa.select(sa.func.min(series.c.due)).where(series.c.due.is_not(None))).scalar()
            other = connection.execute(sa.select(sa.func.min(cases.c.due)).where(cases.c.due.is_not(None))).scalar()
        return min((moment for moment in (one, other) if moment is not None), default=None)

    def series_view(self, series_id: int) -> SeriesView:
        """A series as it stands."""
        with self._ledger.reading() as connection:
            row = connection.execute(
                sa.select(series, studies.c.study_instance_uid)
                .join(studies, studies.c.id == series.c.study_id)
                .where(series.c.id == series_id)
            ).one()
            siblings = connection.execute(
                sa.select(series.c.tags)
                .where(series.c.study_id == row.study_id, series.c.origin_job == 0)
                .order_by(series.c.id)
                .limit(_SIBLINGS)
            ).scalars()
            return SeriesView(
                series=_as_series(row),
                version=row.version,
                portions=row.portions,
                fresh=_fresh(connection, series_id),
                asked=frozenset(json.loads(row.asked)),
                settled=row.settled,
                cases=_case_views(connection, row.study_id, series_id),
                siblings=tuple(Tags.from_json(text) for text in siblings),
                sent=_sent_of_series(connection, series_id),
                forced=row.forced,
                held=row.held,
            )

    def apply_series(self, view: SeriesView, plan: Plan, *, revision: int, now: datetime, actor: str = "") -> list[int]:
        """
        Make a plan true, whole or not at all.

        Args:
            view: What the plan was made from.
            plan: What is to be done.
            revision: Of the rulebook that was asked.
            now: Written as the time of change.
            actor: Who chose, where it was not the rulebook.

        Returns:
            Ids of the jobs made.

        Raises:
            Overtaken: The series changed since it was looked at; look again.
        """
        series_id = view.series.id
        with self._ledger.writing("cases.series") as connection:
            study_id = _take_series(connection, view, plan, now=now)
            close_portions(connection, plan.close)
            ids = {(case.rule, case.is_study): case.id for case in view.cases}
            for case_id, reason in plan.dismissed.items():
                dismiss(connection, case_id, reason=reason, now=now)
            for opening in plan.openings:
                ids[opening.rule, opening.is_study] = _open_case(connection, study_id, series_id, opening, now=now)
            _cover(connection, plan, ids)
            _count_supplements(connection, plan, ids, now=now)
            if plan.fired or plan.openings:
                write_event(
                    connection, "series.routed" if plan.is_decided else "series.asked", now=now,
                    subject=Subject(study_id=study_id, series_id=series_id), actor=actor,
                    revision=revision, fired=list(plan.fired), why=plan.why, settled=plan.settled,
                )  # fmt: skip
            if plan.wake is not None:
                wake_study(connection, study_id, due=plan.wake)
            spool = _spool_of(connection, series_id)
            return _make_jobs(
                connection, plan, {rule: key for (rule, is_study), key in ids.items() if not is_study},
                study_id=study_id, series_id=series_id, spool=spool, now=now,
            )  # fmt: skip

    def received(self, study_uid: str, *, series_uid: str | None = None) -> dict[int, str]:
        """
        The received series of a study that still have files, or the one asked for: id -> UID.

        Raises:
            Refused: There are none; says why, and what to do.
        """
        with self._ledger.reading() as connection:
            return received_of(connection, study_uid, series_uid=series_uid)

    def _one_of(self, due: sa.Select[int]) -> int | None:
        """The first; any of the first `_HERD` where several routers look, so that they seldom do the same work."""
        with self._ledger.reading() as connection:
            found = connection.execute(due.limit(_HERD if self._ledger.has_server else 1)).scalars().all()
        return random.choice(found) if found else None  # noqa: S311 - parts a herd, guards nothing

    def postpone_series(self, series_id: int, until: datetime) -> None:
        """Look at a series again only then: a bug stopped its routing."""
        with self._ledger.writing("cases.postpone_series") as connection:
            connection.execute(sa.update(series).where(series.c.id == series_id).values(due=until))

    def postpone_case(self, case_id: int, until: datetime) -> None:
        """Look at a study case again only then: a bug stopped its routing."""
        with self._ledger.writing("cases.postpone_case") as connection:
            connection.execute(sa.update(cases).where(cases.c.id == case_id).values(due=until))

    # -- studies --

    def due_study(self, now: datetime) -> int | None:
        """A study case that wants to be looked at, chosen as by `due_series`."""
        return self._one_of(
            sa.select(cases.c.id).where(_is_due(cases.c.due, now), _is_running()).order_by(cases.c.due)
        )  # fmt: skip

    def study_view(self, case_id: int) -> StudyView:
        """A study case as it stands."""
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(cases).where(cases.c.id == case_id)).one()
            return StudyView(
                case=_case_view(row, covered=None),
                version=row.version,
                study_id=row.study_id,
                members=_members(connection, row.study_id, row.id),
                sent=_sent_of_study(connection, row.study_id),
            )

    def apply_study(self, view: StudyView, plan: Plan, *, now: datetime) -> list[int]:
        """
        Make a plan for a study case true, whole or not at all.

        Raises:
            Overtaken: The case or one of its series changed since it was looked at; look again.
        """
        with self._ledger.writing("cases.study") as connection:
            is_same = _unchanged(connection, view)  # first: who routes a series locks it, and then the study's cases
            state = {"state": CaseState.CLOSED, "reason": "" if plan.covered else plan.why} if plan.settled else {}
            changed = connection.execute(
                sa.update(cases)
                .where(cases.c.id == view.case.id, cases.c.version == view.version)
                .values(due=_soon(plan.due, now), version=cases.c.version + 1, updated=now, **state)
            ).rowcount
            if changed != 1 or not is_same:
                raise Overtaken(f"case {view.case.id} changed while it was looked at")
            for opening in plan.openings:
                _hold_case(connection, view.case.id, opening.reason, now=now)
            close_portions(connection, plan.close)
            ids = {(view.case.rule, True): view.case.id}
            _cover(connection, plan, ids)
            _count_supplements(connection, plan, ids, now=now)
            if not plan.covered:
                return []
            _take_from_discarded(connection, plan, view.case.rule, now=now)
            write_event(
                connection, "study.complete", now=now, subject=Subject(study_id=view.study_id, case_id=view.case.id),
                rule=view.case.rule, why=plan.why, series=len(plan.covered),
            )  # fmt: skip
            spool = _spool_of(connection, next(iter(plan.covered))[2])
            return _make_jobs(
                connection, plan, {view.case.rule: view.case.id}, study_id=view.study_id, series_id=0, spool=spool,
                now=now,
            )  # fmt: skip

    # -- what a person chose --

    def chosen_view(self, series_ids: Sequence[int], rule: str, *, revision: int) -> StudyView:
        """
        The case of a study rule that a person chose, as it stands or would stand, and these series of one study.

        Its id is 0 where there is none yet.
        """
        with self._ledger.reading() as connection:
            study_id = connection.execute(sa.select(series.c.study_id).where(series.c.id == series_ids[0])).scalar_one()
            row = connection.execute(_study_case(study_id, rule)).first()
            case = CaseView(
                id=0, rule=rule, revision=revision, is_study=True, state=CaseState.COLLECTING, supplement=0,
                covered=None,
            )  # fmt: skip
            members = _members(connection, study_id, row.id if row is not None else 0)
            return StudyView(
                case=case if row is None else _case_view(row, covered=None),
                version=0 if row is None else row.version,
                study_id=study_id,
                members=tuple(member for member in members if member.series_id in series_ids),
                sent=_sent_of_study(connection, study_id),
            )

    def apply_chosen(self, view: StudyView, plan: Plan, *, revision: int, actor: str, now: datetime) -> list[int]:
        """
        Make a person's choice for a study true: its case is closed, and what stopped its series ends.

        Raises:
            Overtaken: The case or one of the series changed since it was looked at; look again.
        """
        with self._ledger.writing("cases.chosen") as connection:
            if not _unchanged(connection, view, every=False):
                raise Overtaken(f"study {view.study_id} changed while it was looked at")
            case_id = _choose_case(connection, view, plan, revision=revision, now=now)
            _end_what_stops(connection, view, case_id, reason=plan.why, now=now)
            close_portions(connection, plan.close)
            ids = {(view.case.rule, True): case_id}
            _cover(connection, plan, ids)
            _count_supplements(connection, plan, ids, now=now)
            spool = _spool_of(connection, view.members[0].series_id)
            made = _make_jobs(
                connection, plan, {view.case.rule: case_id}, study_id=view.study_id, series_id=0, spool=spool, now=now
            )
            write_event(
                connection, "study.routed", now=now, subject=Subject(study_id=view.study_id, case_id=case_id),
                actor=actor, rule=view.case.rule, revision=revision, series=len(view.members), jobs=made,
            )  # fmt: skip
            return made


def received_of(connection: Connection, study_uid: str, *, series_uid: str | None) -> dict[int, str]:
    """As `Cases.received`, in the caller's transaction."""
    rows = connection.execute(
        sa.select(series.c.id, series.c.series_instance_uid, series.c.dropped)
        .join(studies, studies.c.id == series.c.study_id)
        .where(studies.c.study_instance_uid == study_uid, series.c.origin_job == 0)
        .order_by(series.c.id)
    ).all()
    if not rows:
        raise Refused(f"no study {study_uid} is known here; `talaria studies list` shows all")
    wanted = [row for row in rows if series_uid in (None, row.series_instance_uid)]
    if not wanted:
        raise Refused(f"study {study_uid} has no series {series_uid}; `talaria studies show {study_uid}` lists them")
    found = {row.id: row.series_instance_uid for row in wanted if row.dropped is None}
    if not found:
        what = "series" if series_uid else "study"
        raise Refused(
            f"the files of {what} {series_uid or study_uid} were removed by retention; send it again, or import it"
        )
    return found


def wake_study(connection: Connection, study_id: int, *, due: datetime) -> None:
    """Let the router look at the cases of a study rule then."""
    connection.execute(
        sa.update(cases)
        .where(cases.c.study_id == study_id, cases.c.series_id == 0, _is_standing())
        .values(due=due, version=cases.c.version + 1)
    )


def _is_standing() -> sa.ColumnElement[bool]:
    """Whether a case has anything: one that was dismissed has not, nor what a person sent outside of any rule."""
    own = case_series.alias()
    has_any = sa.select(own.c.case_id).where(own.c.case_id == cases.c.id).correlate(cases).exists()
    return sa.or_(cases.c.state != CaseState.CLOSED, has_any)


def dismiss(connection: Connection, case_id: int, *, reason: str, now: datetime) -> None:
    """A case ends, and nothing is its own any more: neither what came nor what comes late."""
    connection.execute(sa.delete(case_series).where(case_series.c.case_id == case_id))
    connection.execute(
        sa.update(cases)
        .where(cases.c.id == case_id)
        .values(state=CaseState.CLOSED, reason=reason, due=None, updated=now, version=cases.c.version + 1)
    )
    row = connection.execute(sa.select(cases).where(cases.c.id == case_id)).one()
    write_event(
        connection, "case.dismissed", now=now,
        subject=Subject(study_id=row.study_id, series_id=row.series_id, case_id=case_id), rule=row.rule, reason=reason,
    )  # fmt: skip


def _study_case(study_id: int, rule: str) -> sa.Select[Any]:
    return sa.select(cases).where(cases.c.study_id == study_id, cases.c.series_id == 0, cases.c.rule == rule)


def _choose_case(connection: Connection, view: StudyView, plan: Plan, *, revision: int, now: datetime) -> int:
    """The case that a person chose, closed; compare-and-set on the one that is there."""
    fresh = {"state": CaseState.CLOSED, "reason": plan.why, "revision": revision, "updated": now}
    if view.case.id == 0:
        row = {"study_id": view.study_id, "series_id": 0, "rule": view.case.rule, "opened": now, **fresh}
        insert_ignoring(connection, cases, [row])
    elif view.case.state is CaseState.CLOSED and plan.supplemented:
        del fresh["revision"]  # what comes late by itself stays with its own
    found = connection.execute(_study_case(view.study_id, view.case.rule).with_for_update(key_share=True)).one()
    if found.version != view.version or view.case.id not in (0, found.id):
        raise Overtaken(f"case {found.id} changed while it was looked at")
    again = {} if plan.supplemented else {"supplement": 0}
    connection.execute(
        sa.update(cases)
        .where(cases.c.id == found.id)
        .values(due=now, version=cases.c.version + 1, **fresh, **again)
    )  # fmt: skip
    Ledger.announce(connection, "series")
    write_event(
        connection, f"case.{CaseState.CLOSED}", now=now, subject=Subject(study_id=view.study_id, case_id=found.id),
        rule=view.case.rule, revision=revision, reason=plan.why,
    )  # fmt: skip
    return int(found.id)


def _end_what_stops(connection: Connection, view: StudyView, case_id: int, *, reason: str, now: datetime) -> None:
    """No case discards or holds what a person chose a way for."""
    members = [member.series_id for member in view.members]
    stopped = sa.select(cases.c.id).where(
        cases.c.study_id == view.study_id, cases.c.series_id.in_([0, *members]), cases.c.id != case_id,
        cases.c.state.in_([CaseState.DISCARDED, CaseState.HELD]),
    )  # fmt: skip
    for found in list(connection.execute(stopped.order_by(cases.c.id)).scalars()):
        dismiss(connection, found, reason=reason, now=now)
    connection.execute(
        sa.update(series)
        .where(series.c.id.in_(members), series.c.held != "")
        .values(settled=True)
    )  # fmt: skip
    connection.execute(
        sa.update(series)
        .where(series.c.id.in_(members))
        .values(forced="", held="", due=now, version=series.c.version + 1)
    )  # fmt: skip
    Ledger.announce(connection, "series")


def _is_running() -> sa.ColumnElement[bool]:
    """Whether nobody has paused routing."""
    return ~sa.select(pauses.c.kind).where(pauses.c.kind.in_(_STOPS_ROUTING)).exists()


def _is_due(due: sa.ColumnElement[datetime | None], now: datetime) -> sa.ColumnElement[bool]:
    """Whether it is time; what is due later than anything ever waits was written before the clock was set back."""
    is_time = sa.or_(due <= now, due > now + LONGEST_WAIT)
    return sa.and_(due.is_not(None), is_time)  # as the index has it, which knows only those with a time


def _soon(due: datetime | None, now: datetime) -> datetime | None:
    """No wait is longer than `LONGEST_WAIT`: looking too early only costs the look."""
    return None if due is None else min(due, now + LONGEST_WAIT)


def _as_series(row: AnyRow) -> Series:
    return Series(
        id=row.id,
        series_instance_uid=UID(row.series_instance_uid),
        study_instance_uid=UID(row.study_instance_uid),
        tags=Tags.from_json(row.tags),
        instances=row.instances,
        first_received=row.first_received,
        last_received=row.last_received,
    )


def _fresh(connection: Connection, series_id: int) -> int:
    return connection.execute(
        sa.select(sa.func.count()).where(instances.c.series_id == series_id, instances.c.portion.is_(None))
    ).scalar_one()


def _case_view(row: AnyRow, *, covered: int | None) -> CaseView:
    return CaseView(
        id=row.id,
        rule=row.rule,
        revision=row.revision,
        is_study=row.series_id == 0,
        state=CaseState(row.state),
        supplement=row.supplement,
        covered=covered,
    )


def _case_views(connection: Connection, study_id: int, series_id: int) -> tuple[CaseView, ...]:
    rows = connection.execute(
        sa.select(cases, case_series.c.covered)
        .outerjoin(case_series, sa.and_(case_series.c.case_id == cases.c.id, case_series.c.series_id == series_id))
        .where(cases.c.study_id == study_id, cases.c.series_id.in_([0, series_id]), _is_standing())
        .order_by(cases.c.id)
    )
    return tuple(_case_view(row, covered=row.covered) for row in rows)


_BY_RULE = ~jobs.c.key.startswith(AD_HOC)


def _sent(connection: Connection, *conditions: sa.ColumnElement[bool]) -> Sequence[AnyRow]:
    """The last portion of originals that dispatch jobs of rules have, by target and series."""
    return connection.execute(
        sa.select(jobs.c.target, job_series.c.series_id, sa.func.max(job_series.c.last).label("last"))
        .join(job_series, job_series.c.job_id == jobs.c.id)
        .where(jobs.c.kind == Kind.DISPATCH, jobs.c.parent.is_(None), _BY_RULE, *conditions)
        .group_by(jobs.c.target, job_series.c.series_id)
    ).all()


def _sent_of_series(connection: Connection, series_id: int) -> dict[str, int]:
    rows = _sent(connection, job_series.c.series_id == series_id, jobs.c.series_id == series_id)
    return {row.target: row.last for row in rows}


def _sent_of_study(connection: Connection, study_id: int) -> dict[tuple[str, int], int]:
    rows = _sent(connection, jobs.c.study_id == study_id, jobs.c.series_id == 0)
    return {(row.target, row.series_id): row.last for row in rows}


def not_sent(connection: Connection, job: Job, target: str, extents: Sequence[Extent]) -> tuple[Extent, ...]:
    """Which of these originals no dispatch job of the same case has for a target yet: they go to it once."""
    own = jobs.c.series_id != 0 if job.series_instance_uid else jobs.c.series_id == 0
    rows = _sent(
        connection, own, jobs.c.study_id == job.study_id, jobs.c.target == target,
        job_series.c.series_id.in_([extent.series_id for extent in extents]),
    )  # fmt: skip
    last = {row.series_id: row.last for row in rows}
    return tuple(
        replace(extent, first=max(extent.first, last.get(extent.series_id, 0) + 1))
        for extent in extents
        if extent.last > last.get(extent.series_id, 0)
    )


def _take_series(connection: Connection, view: SeriesView, plan: Plan, *, now: datetime) -> int:
    """Compare-and-set on the series; the id of its study."""
    decided = {"forced": "", "held": ""} if plan.is_decided else {}
    changed = connection.execute(
        sa.update(series)
        .where(series.c.id == view.series.id, series.c.version == view.version)
        .values(
            due=_soon(plan.due, now),
            asked=json.dumps(sorted(plan.asked)),
            settled=plan.settled,
            version=series.c.version + 1,
            **decided,
        )
    ).rowcount
    if changed != 1:
        raise Overtaken(f"series {view.series.id} changed while it was looked at")
    return int(connection.execute(sa.select(series.c.study_id).where(series.c.id == view.series.id)).scalar_one())


def _unchanged(connection: Connection, view: StudyView, *, every: bool = True) -> bool:
    """Whether no series of the view, or no series at all, got more instances since; locks them until the end."""
    seen = {(m.series_id, m.last_received, m.settled, m.portions, m.is_held) for m in view.members}
    rows = connection.execute(
        sa.select(series.c.id, series.c.last_received, series.c.settled, series.c.portions, series.c.held)
        .where(_is_member(view.study_id))
        .order_by(series.c.id)
        .with_for_update(key_share=True)
    )
    now = {(row.id, row.last_received, row.settled, row.portions, row.held != "") for row in rows}
    return now == seen if every else seen <= now


def close_portions(connection: Connection, series_ids: frozenset[int]) -> None:
    """What is fresh becomes the next portion of its series."""
    for series_id in sorted(series_ids):
        if not _fresh(connection, series_id):
            continue
        last = connection.execute(sa.select(series.c.portions).where(series.c.id == series_id)).scalar_one()
        connection.execute(
            sa.update(instances)
            .where(instances.c.series_id == series_id, instances.c.portion.is_(None))
            .values(portion=last + 1)
        )
        connection.execute(
            sa.update(series).where(series.c.id == series_id).values(portions=last + 1, version=series.c.version + 1)
        )


def _open_case(connection: Connection, study_id: int, series_id: int, opening: Opening, *, now: datetime) -> int:
    """A new case; or the one there is, which a study rule's further series join."""
    subject = Subject(study_id=study_id, series_id=0 if opening.is_study else series_id)
    fresh = {"state": opening.state, "reason": opening.reason, "revision": opening.revision, "updated": now}
    own = {"study_id": study_id, "series_id": subject.series_id, "rule": opening.rule}
    statement = sa.select(cases).where(*(cases.c[name] == value for name, value in own.items()))
    row = connection.execute(statement).first()
    if row is None:  # or so it seems: another router may be opening it for another series of the study
        case_id = insert_unless_there(connection, cases, **own, opened=now, **fresh)
        if case_id is not None:
            _say_opened(connection, replace(subject, case_id=case_id), opening, now=now)
            return case_id
        row = connection.execute(statement).one()
    begins = opening.anew or row.state == CaseState.CLEANED or _has_nothing(connection, row.id)
    if begins:
        connection.execute(sa.update(cases).where(cases.c.id == row.id).values(supplement=0, **fresh))
    if opening.state is CaseState.HELD:
        _hold_case(connection, row.id, opening.reason, now=now)
    elif begins:
        _say_opened(connection, replace(subject, case_id=row.id), opening, now=now)
    return int(row.id)


def _say_opened(connection: Connection, subject: Subject, opening: Opening, *, now: datetime) -> None:
    write_event(
        connection, f"case.{opening.state}", now=now, subject=subject, rule=opening.rule, revision=opening.revision,
        reason=opening.reason,
    )  # fmt: skip


def _has_nothing(connection: Connection, case_id: int) -> bool:
    """Whether a case was dismissed, and the rule may take the series again."""
    return connection.execute(sa.select(case_series.c.case_id).where(case_series.c.case_id == case_id)).first() is None


def _hold_case(connection: Connection, case_id: int, reason: str, *, now: datetime) -> None:
    """A case that cannot go on; a person sees why."""
    connection.execute(
        sa.update(cases).where(cases.c.id == case_id).values(state=CaseState.HELD, reason=reason, updated=now)
    )
    row = connection.execute(sa.select(cases).where(cases.c.id == case_id)).one()
    write_event(
        connection, f"case.{CaseState.HELD}", now=now,
        subject=Subject(study_id=row.study_id, series_id=row.series_id, case_id=case_id), rule=row.rule,
        revision=row.revision, reason=reason,
    )  # fmt: skip


def _cover(connection: Connection, plan: Plan, ids: Mapping[tuple[str, bool], int]) -> None:
    for (rule, is_study, series_id), last in plan.covered.items():
        case_id = ids[rule, is_study]
        changed = connection.execute(
            sa.update(case_series)
            .where(case_series.c.case_id == case_id, case_series.c.series_id == series_id)
            .values(covered=sa.case((case_series.c.covered < last, last), else_=case_series.c.covered))
        ).rowcount
        if not changed:
            connection.execute(case_series.insert().values(case_id=case_id, series_id=series_id, covered=last))


def _count_supplements(
    connection: Connection, plan: Plan, ids: Mapping[tuple[str, bool], int], *, now: datetime
) -> None:
    for rule, is_study in plan.supplemented:
        case_id = ids[rule, is_study]
        connection.execute(
            sa.update(cases).where(cases.c.id == case_id).values(supplement=cases.c.supplement + 1, updated=now)
        )
        row = connection.execute(sa.select(cases).where(cases.c.id == case_id)).one()
        write_event(
            connection, "case.supplement", now=now,
            subject=Subject(study_id=row.study_id, series_id=row.series_id, case_id=case_id), rule=rule,
            supplement=row.supplement,
        )  # fmt: skip


def _take_from_discarded(connection: Connection, plan: Plan, rule: str, *, now: datetime) -> None:
    """A series that no rule of its own took is not discarded once a study case has it."""
    connection.execute(
        sa.update(cases)
        .where(
            cases.c.series_id.in_([series_id for _, _, series_id in plan.covered]),
            cases.c.rule == "",
            cases.c.state == CaseState.DISCARDED,
        )
        .values(state=CaseState.CLOSED, reason=f"collected by rule '{rule}'", updated=now)
    )


def _spool_of(connection: Connection, series_id: int) -> str:
    """The spool of a series' newest instance; jobs run where that is mounted."""
    return (
        connection.execute(
            sa.select(instances.c.spool)
            .where(instances.c.series_id == series_id)
            .order_by(instances.c.id.desc())
            .limit(1)
        ).scalar()
        or ""
    )


def _make_jobs(
    connection: Connection, plan: Plan, ids: Mapping[str, int], *, study_id: int, series_id: int, spool: str,
    now: datetime,
) -> list[int]:  # fmt: skip
    return [
        make_job(
            connection,
            NewJob(
                kind=job.kind, rule=job.rule, revision=job.revision, extents=job.extents, target=job.target,
                priority=job.priority, supplement=job.supplement, held=job.held,
            ),
            study_id=study_id, series_id=series_id, case_id=ids[job.case], spool=spool, now=now,
        )
        for job in plan.jobs
    ]  # fmt: skip


def _is_member(study_id: int) -> sa.ColumnElement[bool]:
    """Whether a series was received for a study and still has files: one that retention took is waited for by none."""
    return sa.and_(series.c.study_id == study_id, series.c.origin_job == 0, series.c.dropped.is_(None))


def _members(connection: Connection, study_id: int, case_id: int) -> tuple[Member, ...]:
    rows = connection.execute(
        sa.select(series, case_series.c.covered)
        .outerjoin(case_series, sa.and_(case_series.c.series_id == series.c.id, case_series.c.case_id == case_id))
        .where(_is_member(study_id))
        .order_by(series.c.id)
    ).all()
    discarded = set(
        connection.execute(
            sa.select(cases.c.series_id).where(
                cases.c.study_id == study_id, cases.c.state == CaseState.DISCARDED, cases.c.rule != ""
            )
        ).scalars()
    )
    return tuple(
        Member(
            series_id=row.id,
            last_received=row.last_received,
            portions=row.portions,
            fresh=_fresh(connection, row.id),
            settled=row.settled,
            covered=row.covered or 0,
            is_discarded=row.id in discarded,
            is_match=row.covered is not None,
            is_held=row.held != "",
        )
        for row in rows
    )
