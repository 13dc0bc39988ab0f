"""Cases that a person takes another way: to a chosen rule, back to the rules, or straight to a target."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import Overtaken, Refused
from talaria.model.job import Extent, Kind, Priority
from talaria.model.plan import CaseState, route_series, route_study
from talaria.model.rulebook import Action, Rule, Rulebook, Trigger
from talaria.model.wording import did_you_mean
from talaria.store.cases import SENT_BY, Cases, close_portions, dismiss, received_of, wake_study
from talaria.store.jobs import NewJob, make_job
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_ignoring, write_event
from talaria.store.schema import case_series, cases, instances, job_series, jobs, series
from talaria.store.spool import new_ulid

#: How often an act is begun anew because something arrived or the router was faster.
_TRIES = 25

Outcome = TypeVar("Outcome")


class Made(tuple[int, ...]):
    """
    Ids of the jobs that were made.

    Attributes:
        there: Targets that the originals went to before, and no second job was made for.
    """

    there: tuple[str, ...] = ()


class Redirection:
    """What a person decides in place of the rules."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._cases = ledger, Cases(ledger)

    # -- to a chosen rule --

    def route(
        self, study_uid: str, rule: str, *, book: Rulebook, series_uid: str | None, actor: str, now: datetime
    ) -> Made:
        """
        As `Operations.route`, by *book*.

        Raises:
            Refused: There is no such rule or study, its files are gone, or the rule has all of it.
        """
        chosen = rule_of(book, rule)
        found = self._cases.received(study_uid, series_uid=series_uid)
        if chosen.trigger is Trigger.STUDY and chosen.action is not Action.DISCARD:
            made = _again(lambda: self._route_study(list(found), chosen, book=book, actor=actor, now=now))
        else:
            whole = series_uid is None
            made = self._route_each(found, chosen, book=book, actor=actor, now=now, whole=whole)
        result = Made(made)
        result.there = self._there(found, chosen, made)
        return result

    def _route_each(
        self, found: dict[int, str], rule: Rule, *, book: Rulebook, actor: str, now: datetime, whole: bool
    ) -> list[int]:
        """Every series by itself; refused only where the rule has all of each."""
        made: list[int] = []
        refusals: list[str] = []
        for series_id in found:
            try:
                made += _again(
                    lambda: self._route_series(series_id, rule, book=book, actor=actor, now=now, whole=whole)  # noqa: B023 - called at once
                )
            except Refused as refusal:
                if isinstance(refusal, Overtaken):
                    raise
                refusals.append(self._with_advice(str(refusal), series_id, rule.name))
        if len(refusals) == len(found):
            raise Refused(refusals[0])
        return made

    def _route_series(
        self, series_id: int, rule: Rule, *, book: Rulebook, actor: str, now: datetime, whole: bool
    ) -> list[int]:
        view = self._cases.series_view(series_id)
        plan = route_series(view, rule, book=book, actor=actor, now=now, whole=whole)
        return self._cases.apply_series(view, plan, revision=book.number, actor=actor, now=now)

    def _route_study(
        self, series_ids: Sequence[int], rule: Rule, *, book: Rulebook, actor: str, now: datetime
    ) -> list[int]:
        view = self._cases.chosen_view(series_ids, rule.name, revision=book.number)
        try:
            plan = route_study(view, rule, book=book, actor=actor)
        except Refused as refusal:
            raise Refused(self._with_advice(str(refusal), series_ids[0], rule.name)) from None
        return self._cases.apply_chosen(view, plan, revision=book.number, actor=actor, now=now)

    def _with_advice(self, refusal: str, series_id: int, rule: str) -> str:
        """What to do instead: begin its job again."""
        with self._ledger.reading() as connection:
            row = connection.execute(
                sa.select(jobs.c.id, jobs.c.state)
                .join(job_series, job_series.c.job_id == jobs.c.id)
                .where(job_series.c.series_id == series_id)
                .order_by((jobs.c.rule == rule).desc(), jobs.c.id.desc())
                .limit(1)
            ).first()
        if row is None:
            return f"{refusal}; there is nothing to do"
        return f"{refusal} (job {row.id}, {row.state}); `talaria jobs restart {row.id}` does it again"

    def _there(self, found: dict[int, str], rule: Rule, made: Sequence[int]) -> tuple[str, ...]:
        """The targets of a rule that no job was made for."""
        if rule.action is not Action.ROUTE:
            return ()
        with self._ledger.reading() as connection:
            asked = set(connection.execute(sa.select(jobs.c.target).where(jobs.c.id.in_(made))).scalars())
        return tuple(target for target in rule.send if target not in asked)

    # -- back to the rules --

    def release(
        self, study_uid: str, *, book: Rulebook, series_uid: str | None, actor: str, now: datetime
    ) -> tuple[str, ...]:
        """
        As `Operations.release`, by *book*.

        Raises:
            Refused: Nothing of it is held, or a held study case's rule is gone; says what to do.
        """
        with self._ledger.writing("redirection.release") as connection:
            found = received_of(connection, study_uid, series_uid=series_uid)
            study_id = _lock_series(connection, list(found))
            held = _held_cases(connection, study_id, list(found))
            kept = set(_kept_back(connection, list(found)))
            if not held and not kept:
                raise Refused(f"nothing of study {study_uid} waits for a decision; `talaria jobs list` shows held jobs")
            for case in held:
                if case.series_id == 0:
                    _reopen(connection, case, book=book, now=now)
                else:
                    dismiss(connection, case.id, reason=f"released by {actor}: the rules are asked again", now=now)
                    kept.add(case.series_id)
            for series_id in sorted(kept):
                _ask_again(connection, study_id, series_id, now=now)
            wake_study(connection, study_id, due=now)
            write_event(
                connection, "study.released", now=now, subject=Subject(study_id=study_id), actor=actor,
                cases=len(held), series=len(kept),
            )  # fmt: skip
        return tuple(found[series_id] for series_id in sorted(kept))

    # -- straight to a target --

    def send(
        self, study_uid: str, target: str, *, book: Rulebook, series_uid: str | None, actor: str, now: datetime,
        priority: Priority,
    ) -> Made:  # fmt: skip
        """
        As `Operations.send`, by *book*.

        Raises:
            Refused: There is no such target or study, or its files are gone.
        """
        if target not in book.targets:
            near = did_you_mean(target, list(book.targets))
            raise Refused(f"target '{target}' is not in revision {book.number} of the rulebook{near}")
        with self._ledger.writing("redirection.send") as connection:
            found = received_of(connection, study_uid, series_uid=series_uid)
            study_id = _lock_series(connection, list(found))
            close_portions(connection, frozenset(found))
            extents, spool = _whole(connection, list(found))
            if not extents:
                raise Refused(f"study {study_uid} has no instance here; send it again, or import it")
            series_id = next(iter(found)) if series_uid else 0
            case_id = _case_for(connection, study_id, series_id, revision=book.number, actor=actor, now=now)
            new = NewJob(
                kind=Kind.DISPATCH, rule=SENT_BY + actor, revision=book.number, extents=extents, target=target,
                priority=priority, request=new_ulid(now),
            )  # fmt: skip
            job_id = make_job(
                connection, new, study_id=study_id, series_id=series_id, case_id=case_id, spool=spool, now=now
            )
            write_event(
                connection, "study.sent", now=now,
                subject=Subject(study_id=study_id, series_id=series_id, case_id=case_id, job_id=job_id), actor=actor,
                target=target, series=len(extents),
            )  # fmt: skip
        return Made([job_id])


def rule_of(book: Rulebook, name: str) -> Rule:
    """
    A rule of a rulebook.

    Raises:
        Refused: There is none of that name.
    """
    found = next((rule for rule in book.rules if rule.name == name), None)
    if found is None:
        near = did_you_mean(name, [rule.name for rule in book.rules])
        raise Refused(f"rule '{name}' is not in revision {book.number} of the rulebook, which runs{near}")
    return found


def _again(act: Callable[[], Outcome]) -> Outcome:
    """Look and act anew while others are faster."""
    for _ in range(_TRIES):
        try:
            return act()
        except Overtaken:
            continue
    return act()


def _lock_series(connection: Connection, series_ids: Sequence[int]) -> int:
    """Nothing arrives for these and none is routed until the transaction ends; the id of their study."""
    rows = connection.execute(
        sa.select(series.c.study_id)
        .where(series.c.id.in_(series_ids))
        .order_by(series.c.id)
        .with_for_update(key_share=True)
    )
    return int(rows.scalars().all()[0])


def _held_cases(connection: Connection, study_id: int, series_ids: Sequence[int]) -> Sequence[AnyRow]:
    return connection.execute(
        sa.select(cases)
        .where(
            cases.c.study_id == study_id,
            cases.c.series_id.in_([0, *series_ids]),
            cases.c.state == CaseState.HELD,
        )
        .order_by(cases.c.id)
        .with_for_update(key_share=True)
    ).all()


def _kept_back(connection: Connection, series_ids: Sequence[int]) -> Sequence[int]:
    held = sa.select(series.c.id).where(series.c.id.in_(series_ids), series.c.held != "")
    return connection.execute(held).scalars().all()


def _reopen(connection: Connection, case: AnyRow, *, book: Rulebook, now: datetime) -> None:
    """A held study case goes on under the running revision."""
    rule_of(book, case.rule)
    begun = connection.execute(
        sa.select(case_series.c.series_id).where(case_series.c.case_id == case.id, case_series.c.covered > 0).limit(1)
    ).first()
    connection.execute(
        sa.update(cases)
        .where(cases.c.id == case.id)
        .values(
            state=CaseState.CLOSED if begun else CaseState.COLLECTING, reason="", revision=book.number, due=now,
            updated=now, version=cases.c.version + 1,
        )
    )  # fmt: skip


def _ask_again(connection: Connection, study_id: int, series_id: int, *, now: datetime) -> None:
    """All rules but those that have the series are asked, and what is held of it is over."""
    having = (
        sa.select(cases.c.rule)
        .join(case_series, case_series.c.case_id == cases.c.id)
        .where(
            cases.c.study_id == study_id,
            case_series.c.series_id == series_id,
            cases.c.state.not_in([CaseState.CLEANED, CaseState.HELD]),
            cases.c.rule != "",
        )
    )
    asked = sorted(set(connection.execute(having).scalars()))
    connection.execute(
        sa.update(series)
        .where(series.c.id == series_id)
        .values(held="", asked=json.dumps(asked), settled=False, due=now, version=series.c.version + 1)
    )


def _whole(connection: Connection, series_ids: Sequence[int]) -> tuple[tuple[Extent, ...], str]:
    """All that came of these series so far, and the spool where the newest of it lies."""
    rows = connection.execute(
        sa.select(series.c.id, series.c.portions).where(series.c.id.in_(series_ids), series.c.portions > 0)
    ).all()
    spool = connection.execute(
        sa.select(instances.c.spool)
        .where(instances.c.series_id.in_(series_ids))
        .order_by(instances.c.id.desc())
        .limit(1)
    ).scalar()
    return tuple(Extent(series_id=row.id, first=1, last=row.portions) for row in rows), spool or ""


def _case_for(
    connection: Connection, study_id: int, series_id: int, *, revision: int, actor: str, now: datetime
) -> int:
    """The case of what one person sends of a study, or of a series, outside of any rule."""
    row = {
        "study_id": study_id, "series_id": series_id, "rule": SENT_BY + actor, "revision": revision,
        "state": CaseState.CLOSED, "reason": f"sent by {actor}", "opened": now, "updated": now,
    }  # fmt: skip
    insert_ignoring(connection, cases, [row])
    own = sa.select(cases.c.id).where(
        cases.c.study_id == study_id, cases.c.series_id == series_id, cases.c.rule == SENT_BY + actor
    )
    return int(connection.execute(own).scalar_one())
