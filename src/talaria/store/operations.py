"""What people do to work that is there: acts on many jobs, cases sent another way, kinds of work paused."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import LedgerAway, Refused
from talaria.model.job import TRANSITIONS, Event, Kind, Priority, State, after
from talaria.model.rulebook import Rulebook
from talaria.model.wording import did_you_mean
from talaria.store.jobs import act_on
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_ignoring, write_event
from talaria.store.redirection import Made, Redirection
from talaria.store.revisions import Rulebooks
from talaria.store.schema import deliveries, jobs, pauses
from talaria.store.selection import Selection

__all__ = ["Acted", "Made", "Operations", "Pause"]

#: So many jobs are acted on in one transaction: others wait for it no longer than that.
_PORTION = 200
#: So many refusals are told with their reason.
_MOST_REASONS = 5
#: A portion that the database threw out (two people in each other's way) is done again so often.
_TRIES = 3
#: What can be paused.
PAUSABLE = ("process", "dispatch", "notify", "route")
_DRAIN = "drain"

Id = TypeVar("Id", int, str)


@dataclass(frozen=True, kw_only=True)
class Acted:
    """What became of an act on many jobs."""

    done: int
    refused: tuple[str, ...] = ()
    """Why, of the first of them."""
    refusals: int = 0
    """How many were refused."""


@dataclass(frozen=True, kw_only=True)
class Pause:
    """What a person has stopped for a while."""

    kind: str
    """process, dispatch, notify, route or drain."""
    target: str
    """Empty: the whole kind."""
    actor: str
    reason: str
    since: datetime

    def __str__(self) -> str:
        what = f"{self.kind} to {self.target}" if self.target else self.kind
        return f"{what}, by {self.actor}{f': {self.reason}' if self.reason else ''}"


class Operations:
    """What people do, each written down with who did it."""

    def __init__(self, ledger: Ledger, rulebooks: Rulebooks) -> None:
        self._ledger, self._rulebooks = ledger, rulebooks
        self._redirection = Redirection(ledger)

    # -- jobs --

    def count(self, selection: Selection) -> int:
        """How many jobs fit."""
        return sum(self._states(selection).values())

    def preview(self, selection: Selection, event: Event) -> Acted:
        """What `act` would do now: how many jobs, and how many it would refuse, with a reason for each state."""
        states = {State(state): count for state, count in self._states(selection).items()}
        refused = {state: count for state, count in states.items() if (state, event) not in TRANSITIONS}
        reasons = [f"{count} of them: {_refusal(state, event)}" for state, count in sorted(refused.items())]
        refusals = sum(refused.values())
        return Acted(done=sum(states.values()) - refusals, refused=tuple(reasons), refusals=refusals)

    def act(self, selection: Selection, event: Event, *, actor: str, now: datetime, everything: bool = False) -> Acted:
        """
        Retry, hold, release, cancel or restart all jobs that fit.

        They are done a portion at a time, each job by its own state: what a kill interrupts is done by doing it
        again. Jobs made after the beginning are left alone.

        Args:
            selection: Which.
            event: What to do.
            actor: Who asked.
            now: When.
            everything: Said where an empty selection is meant.

        Raises:
            Refused: The selection is empty and *everything* was not said.
        """
        if selection.is_empty and not everything:
            raise Refused("no job was chosen: name ids or a filter, or say explicitly that all are meant")
        tally = _Tally()
        portions = self._named(selection) if selection.ids else self._fitting(selection)
        for statement, ids in portions:
            tally.last = 0 if ids else tally.last
            while self._portion(statement, ids, event, tally, actor=actor, now=now) and not ids:
                pass
        if len(selection.ids) != 1:
            self._tell(selection, event, tally, actor=actor, now=now)
        return Acted(done=tally.done, refused=tuple(tally.reasons), refusals=tally.refusals)

    def jobs_of(self, delivery_ids: Sequence[str]) -> tuple[int, ...]:
        """
        The jobs whose records these deliveries are: to act on one is to act on the other.

        Raises:
            Refused: There is no such delivery.
        """
        found: dict[str, int] = {}
        with self._ledger.reading() as connection:
            for some in _chunks(list(delivery_ids)):
                rows = connection.execute(
                    sa.select(deliveries.c.id, deliveries.c.job_id).where(deliveries.c.id.in_(some))
                )
                found |= {row.id: row.job_id for row in rows}
        for delivery_id in delivery_ids:
            if delivery_id not in found:
                raise Refused(f"there is no delivery {delivery_id[:40]}; `talaria deliveries list` shows what there is")
        return tuple(found[delivery_id] for delivery_id in delivery_ids)

    def active(self) -> dict[Kind, int]:
        """How many jobs of each kind are being worked on."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(jobs.c.kind, sa.func.count()).where(jobs.c.state == State.ACTIVE).group_by(jobs.c.kind)
            ).all()
        return {Kind(kind): count for kind, count in rows}

    def note(self, act: str, *, actor: str, now: datetime, **detail: Any) -> None:
        """Write down that somebody did something to the whole."""
        with self._ledger.writing("operations.told") as connection:
            write_event(connection, "operation", now=now, subject=Subject(), actor=actor, act=act, **detail)

    # -- cases --

    def route(self, study_uid: str, rule: str, *, series_uid: str | None = None, actor: str, now: datetime) -> Made:
        """
        Take a study, or one series of it, to a rule of the running revision, whatever its `when` says.

        A discarded, held or finished case goes, complete or not. Originals go to one target once, as ever.

        Returns:
            Ids of the jobs made, and which targets got the originals before.

        Raises:
            Refused: There is no such study or rule, its files are gone, or the rule has all of it; says what to do.
        """
        return self._redirection.route(
            study_uid, rule, book=self._book(), series_uid=series_uid, actor=actor, now=now
        )  # fmt: skip

    def release(self, study_uid: str, *, series_uid: str | None = None, actor: str, now: datetime) -> tuple[str, ...]:
        """
        Let the rules be asked again, by the running revision, about what is held of a study.

        Returns:
            UIDs of the series that are asked about.

        Raises:
            Refused: Nothing of it is held.
        """
        return self._redirection.release(
            study_uid, book=self._book(), series_uid=series_uid, actor=actor, now=now
        )  # fmt: skip

    def send(
        self, study_uid: str, target: str, *, series_uid: str | None = None, actor: str, now: datetime,
        priority: Priority = Priority.NORMAL,
    ) -> Made:  # fmt: skip
        """
        Send a study, or one series, to a target outside of any rule, each time it is asked.

        Returns:
            Ids of the jobs made.

        Raises:
            Refused: There is no such study or target, or its files are gone.
        """
        return self._redirection.send(
            study_uid, target, book=self._book(), series_uid=series_uid, actor=actor, now=now, priority=priority
        )

    # -- pauses --

    def pause(self, kind: str, target: str = "", *, actor: str, reason: str = "", now: datetime) -> None:
        """
        Stop a kind of work, or one target of it; what is active goes on. Pausing again changes the reason.

        Raises:
            Refused: There is no such kind or target.
        """
        self._check(kind, target)
        self._stop(kind, target, actor=actor, reason=reason, now=now)

    def resume(self, kind: str, target: str = "", *, actor: str, now: datetime) -> None:
        """
        Let what was paused go on.

        Raises:
            Refused: It is not paused.
        """
        if not self._lift(kind, target, actor=actor, now=now):
            what = f"{kind} to {target}" if target else kind
            paused = "; ".join(f"{p.kind} {p.target}".strip() for p in self.paused()) or "nothing"
            raise Refused(f"{what} is not paused; paused now: {paused}")

    def paused(self) -> tuple[Pause, ...]:
        """All that is paused, the longest first."""
        with self._ledger.reading() as connection:
            rows = connection.execute(sa.select(pauses).order_by(pauses.c.since, pauses.c.kind, pauses.c.target))
            return tuple(
                Pause(kind=row.kind, target=row.target, actor=row.actor, reason=row.reason, since=row.since)
                for row in rows
            )

    def drain(self, *, actor: str, reason: str = "", now: datetime) -> None:
        """Accept nothing new, route and claim nothing more; what is active goes on to its end."""
        self._stop(_DRAIN, "", actor=actor, reason=reason, now=now)

    def undrain(self, *, actor: str, now: datetime) -> bool:
        """End `drain`; whether there was one."""
        return self._lift(_DRAIN, "", actor=actor, now=now)

    # -- within --

    def _book(self) -> Rulebook:
        self._rulebooks.refresh()
        return self._rulebooks.running()

    def _states(self, selection: Selection) -> dict[str, int]:
        found: dict[str, int] = {}
        statement = sa.select(jobs.c.state, sa.func.count()).where(*selection.conditions()).group_by(jobs.c.state)
        with self._ledger.reading() as connection:
            for some in _chunks(sorted(set(selection.ids))) if selection.ids else [None]:
                narrowed = statement if some is None else statement.where(jobs.c.id.in_(_usable(some)))
                for state, count in connection.execute(narrowed).all():
                    found[state] = found.get(state, 0) + count
        return found

    def _named(self, selection: Selection) -> Iterator[tuple[sa.Select[Any], list[int]]]:
        for some in _chunks(sorted(set(selection.ids))):
            yield _locking(selection).where(jobs.c.id.in_(_usable(some))), some

    def _fitting(self, selection: Selection) -> Iterator[tuple[sa.Select[Any], list[int]]]:
        with self._ledger.reading() as connection:
            last = connection.execute(sa.select(sa.func.max(jobs.c.id))).scalar() or 0
        yield _locking(selection).where(jobs.c.id <= last), []

    def _portion(
        self, statement: sa.Select[Any], ids: list[int], event: Event, tally: "_Tally", *, actor: str,
        now: datetime,
    ) -> bool:  # fmt: skip
        """One transaction's worth; whether there may be more."""

        def work() -> _Tally:
            part = _Tally(last=tally.last)
            with self._ledger.writing("operations.act") as connection:
                rows = connection.execute(statement.where(jobs.c.id > part.last)).all()
                for row in rows:
                    part.take(connection, row, event, actor=actor, now=now)
                part.miss(connection, set(ids) - {row.id for row in rows})
            part.is_full = len(rows) == _PORTION
            return part

        part = _tried(work)
        tally.add(part)
        return part.is_full

    def _tell(self, selection: Selection, event: Event, tally: "_Tally", *, actor: str, now: datetime) -> None:
        chosen = selection.given() or "all"
        self.note(event, actor=actor, now=now, selection=chosen, done=tally.done, refused=tally.refusals)

    def _check(self, kind: str, target: str) -> None:
        if kind not in PAUSABLE:
            raise Refused(f"'{kind}' is no kind of work; these can be paused: {', '.join(PAUSABLE)}")
        if not target:
            return
        if kind != Kind.DISPATCH:
            raise Refused(f"{kind} has no targets; pause it whole, or pause dispatch to '{target}'")
        book = self._book()
        with self._ledger.reading() as connection:
            has_jobs = connection.execute(sa.select(jobs.c.id).where(jobs.c.target == target).limit(1)).first()
        if target not in book.targets and has_jobs is None:
            near = did_you_mean(target, list(book.targets))
            raise Refused(f"target '{target}' is not in revision {book.number} of the rulebook{near}")

    def _stop(self, kind: str, target: str, *, actor: str, reason: str, now: datetime) -> None:
        with self._ledger.writing("operations.pause") as connection:
            row = {"kind": kind, "target": target, "actor": actor, "reason": reason, "since": now}
            insert_ignoring(connection, pauses, [row])
            connection.execute(sa.update(pauses).where(_is_pause(kind, target)).values(actor=actor, reason=reason))
            Ledger.announce(connection, "pauses")
            write_event(
                connection, "work.paused", now=now, subject=Subject(), actor=actor, work=kind, target=target,
                reason=reason,
            )  # fmt: skip

    def _lift(self, kind: str, target: str, *, actor: str, now: datetime) -> bool:
        with self._ledger.writing("operations.resume") as connection:
            if not connection.execute(sa.delete(pauses).where(_is_pause(kind, target))).rowcount:
                return False
            Ledger.announce(connection, "pauses")
            write_event(
                connection, "work.resumed", now=now, subject=Subject(), actor=actor, work=kind, target=target
            )  # fmt: skip
            return True


@dataclass(kw_only=True)
class _Tally:
    """What became of jobs so far."""

    last: int = 0
    done: int = 0
    refusals: int = 0
    reasons: list[str] = field(default_factory=list)
    is_full: bool = False

    def take(self, connection: Connection, row: AnyRow, event: Event, *, actor: str, now: datetime) -> None:
        """Act on one job."""
        self.last = row.id
        try:
            act_on(connection, row, event, actor=actor, now=now)
        except Refused as refusal:
            self._refuse(str(refusal))
        else:
            self.done += 1

    def miss(self, connection: Connection, ids: set[int]) -> None:
        """Jobs that were named: those that are not there at all are refused."""
        if ids:
            ids -= set(connection.execute(sa.select(jobs.c.id).where(jobs.c.id.in_(_usable(ids)))).scalars())
        for job_id in sorted(ids):
            self._refuse(f"there is no job {job_id}; `talaria jobs list` shows what there is")

    def add(self, part: "_Tally") -> None:
        """Count a portion that was written."""
        self.last, self.done = part.last, self.done + part.done
        self.refusals += part.refusals
        self.reasons = (self.reasons + part.reasons)[:_MOST_REASONS]

    def _refuse(self, reason: str) -> None:
        self.refusals += 1
        if len(self.reasons) < _MOST_REASONS:
            self.reasons.append(reason)


def _locking(selection: Selection) -> sa.Select[Any]:
    """The next portion of what fits, in one order, so that two people wait for each other and are never crossed."""
    return sa.select(jobs).where(*selection.conditions()).order_by(jobs.c.id).limit(_PORTION).with_for_update()


def _tried(work: Callable[[], _Tally]) -> _Tally:
    """A portion is whole or nothing: what the database threw out is done again."""
    for _ in range(_TRIES - 1):
        try:
            return work()
        except LedgerAway:
            continue
    return work()


def _chunks(ids: list[Id]) -> Iterator[list[Id]]:
    return (ids[start : start + _PORTION] for start in range(0, len(ids), _PORTION))


def _usable(ids: Iterable[int]) -> list[int]:
    """Without numbers that a database has no place for."""
    return [job_id for job_id in ids if 0 < job_id < 1 << 63]


def _refusal(state: State, event: Event) -> str:
    try:
        after(state, event)
    except Refused as refusal:
        return str(refusal)
    return ""


def _is_pause(kind: str, target: str) -> sa.ColumnElement[bool]:
    return sa.and_(pauses.c.kind == kind, pauses.c.target == target)
