"""Several processes at one ledger on PostgreSQL: what one is about to commit, another does at the same time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from rows import QUIET, Rows, arrival, series_of
from talaria.model.errors import Overtaken, Refused
from talaria.model.extensions import Outcome, Standing
from talaria.model.job import Event, Extent, Kind
from talaria.model.plan import plan_study
from talaria.services.loop import guarded
from talaria.store import compaction
from talaria.store.access import Access, CredentialKind
from talaria.store.compaction import Compaction
from talaria.store.jobs import NewJob, make_job
from talaria.store.ledger import Ledger, Subject, write_event
from talaria.store.schema import cases, outcomes
from talaria.testing import MovedClock

pytestmark = [pytest.mark.server, pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)]

STUDY = "whole: {when: 'True', trigger: study, send: [x]}"
_PATIENCE_SECONDS = 20.0


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


class Other:
    """Another process: a thread that does something."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._bug: list[Exception | None] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._bug.append(guarded(self._work))

    def end(self) -> Exception | None:
        """Wait for its end; what it raised."""
        self.thread.join(_PATIENCE_SECONDS)
        assert not self.thread.is_alive()
        return self._bug[0]


@contextmanager
def before_commit(ledger: Ledger, work: Callable[[], object]) -> Iterator[Other]:
    """Another process does *work* up to its commit, and commits when this ends."""
    reached, go = threading.Event(), threading.Event()

    def pause(connection: Connection) -> None:
        is_writer = connection.get_execution_options().get("writer", False)
        if is_writer and threading.current_thread() is other.thread:
            reached.set()
            go.wait(_PATIENCE_SECONDS)

    go_on = threading.Event()

    def begin() -> object:
        go_on.wait(_PATIENCE_SECONDS)
        return work()

    other = Other(begin)
    sa.event.listen(ledger.engine, "commit", pause)
    go_on.set()
    try:
        assert reached.wait(_PATIENCE_SECONDS)
        yield other
    finally:
        go.set()


def await_lock(ledger: Ledger) -> None:
    """Until somebody waits for a row that another has."""
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with ledger.glancing() as connection:
            if connection.execute(waiting).scalar_one():
                return
    raise AssertionError("nobody waits")


def test_two_routers_open_the_same_study_case(ledger: Ledger, clock: MovedClock) -> None:
    """
    Two series of a study routed at the same time are both in the one case of the study's rule.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(series="1"), *series_of(series="2"))
    clock.move(QUIET)
    with before_commit(ledger, lambda: rows.route(1)) as first:
        second = Other(lambda: rows.route(2))
        await_lock(ledger)

    assert (None, None) == (first.end(), second.end())
    assert [("whole", 0)] == [tuple(row) for row in _all(ledger, sa.select(cases.c.rule, cases.c.series_id))]


def _all(ledger: Ledger, statement: sa.Select[Any]) -> list[Any]:
    with ledger.reading() as connection:
        return list(connection.execute(statement).all())


def test_what_arrives_and_what_is_routed_do_not_block_each_other(rows: Rows, ledger: Ledger) -> None:
    """
    A receiver that has locked the study, and a router that has locked its series and now opens a case, both end well.
    """
    rows.receive(*series_of())
    rows.clock.move(QUIET)
    reached, go = threading.Event(), threading.Event()

    def pause(connection: Connection, _c: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE series SET portions") and not reached.is_set():
            reached.set()
            go.wait(_PATIENCE_SECONDS)

    sa.event.listen(ledger.engine, "before_cursor_execute", pause)
    router = Other(lambda: rows.route(1))
    assert reached.wait(_PATIENCE_SECONDS)
    receiver = Other(lambda: rows.receive(arrival("9")))
    await_lock(ledger)
    go.set()

    assert (None, None) == (router.end(), receiver.end())


def test_series_and_study_of_one_case_are_routed_at_the_same_time(ledger: Ledger, clock: MovedClock) -> None:
    """
    A router that closes a study's case and one that routes a series of it do not wait for each other for ever.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(series="1"))
    clock.move(QUIET)
    rows.route(1)
    rows.receive(*series_of(4, series="1")[3:])
    clock.move(QUIET * 20)
    view, now = rows.cases.study_view(1), clock.now()
    plan = plan_study(view, revisions=lambda _: rows.book, now=now)
    reached, go = threading.Event(), threading.Event()

    def pause(connection: Connection, _c: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE cases") and not reached.is_set():
            reached.set()
            go.wait(_PATIENCE_SECONDS)

    sa.event.listen(ledger.engine, "before_cursor_execute", pause)
    series = Other(lambda: rows.route(1))
    assert reached.wait(_PATIENCE_SECONDS)
    study = Other(lambda: rows.cases.apply_study(view, plan, now=now))
    await_lock(ledger)
    go.set()
    found = (series.end(), study.end())

    assert found[0] is None
    assert isinstance(found[1], Overtaken)


def test_same_job_made_twice_at_the_same_time_is_one(rows: Rows, ledger: Ledger) -> None:
    """
    What two transactions ask for at the same time is one job.
    """
    rows.jobs_of()
    new = NewJob(
        kind=Kind.DISPATCH, rule="r", revision=1, extents=(Extent(series_id=1, first=1, last=1),), target="z"
    )  # fmt: skip
    made: list[int] = []

    def make() -> None:
        with ledger.writing("test.make") as connection:
            made.append(
                make_job(connection, new, study_id=1, series_id=1, case_id=1, spool="SPOOL", now=rows.clock.now())
            )

    with before_commit(ledger, make) as first:
        second = Other(make)
        await_lock(ledger)

    assert (None, None) == (first.end(), second.end())
    assert 1 == len(set(made))


def test_routers_seldom_begin_with_the_same_series(rows: Rows) -> None:
    """
    Where several series are due, not all routers begin with the one that is due longest.
    """
    for number in range(4):
        rows.receive(*series_of(1, study=str(number)))
        rows.clock.move(QUIET)
    rows.clock.move(QUIET)
    now = rows.clock.now()

    assert {1, 2, 3, 4} == {rows.cases.due_series(now) for _ in range(200)}


def tell(ledger: Ledger, clock: MovedClock, kind: str, *, fails: bool = False) -> None:
    """Write an event; or nothing, though its number is used up."""
    with ledger.writing("test.tell") as connection:
        write_event(connection, kind, now=clock.now(), subject=Subject())
        if fails:
            raise Refused("undone")


def test_event_that_is_committed_late_is_not_passed_over(rows: Rows, ledger: Ledger, clock: MovedClock) -> None:
    """
    Who reads events by their number gets each, though the one with the lower number is committed last.
    """
    with before_commit(ledger, lambda: tell(ledger, clock, "a")) as first:
        tell(ledger, clock, "b")
        tell(ledger, clock, "c")
        before = rows.listing.events()
    assert first.end() is None

    assert ([], ["a", "b", "c"]) == ([e.kind for e in before], [e.kind for e in rows.listing.events()])


def test_number_of_an_event_that_never_was_stops_nobody(rows: Rows, ledger: Ledger, clock: MovedClock) -> None:
    """
    A transaction that was undone leaves a gap: it is waited for only until those have ended that ran when it was seen.
    """
    with pytest.raises(Refused):
        tell(ledger, clock, "undone", fails=True)
    with before_commit(ledger, lambda: tell(ledger, clock, "a")) as first:
        tell(ledger, clock, "b")
        assert () == rows.listing.events()
    assert first.end() is None
    with before_commit(ledger, lambda: tell(ledger, clock, "c")) as second:
        found = [e.kind for e in rows.listing.events()]
    assert second.end() is None

    assert ["a", "b"] == found


def test_delivery_is_begun_anew_while_it_is_compacted(
    rows: Rows, ledger: Ledger, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Outcomes that compaction is just removing are there again when a person restarts the job.
    """
    monkeypatch.setattr(compaction, "_MOST_ROWS", 2)
    rows.receive(*series_of(5))
    rows.settle()
    claim = rows.claim()
    delivery = rows.deliveries.prepare(claim, locate=Path).delivery
    found = [Outcome(instance_id=p.instance_id, standing=Standing.SENT, status=0) for p in delivery.parcels]
    rows.deliveries.record(delivery, found, now=clock.now(), seconds=1, size_bytes=1)
    rows.jobs.end(claim, Event.FINISH, now=clock.now())
    clock.move(compaction.REST)
    house, finish = Compaction(ledger), Compaction._finish
    monkeypatch.setattr(Compaction, "_finish", lambda *_, **__: None)
    house.step(after=0, now=clock.now(), aged=compaction.REST)
    with before_commit(ledger, lambda: finish(house, delivery.id, now=clock.now())) as cleaning:
        person = Other(lambda: rows.jobs.act(claim.job.id, Event.RESTART, actor="eve", now=clock.now()))
        await_lock(ledger)

    assert (None, None) == (cleaning.end(), person.end())
    assert 5 == len(_all(ledger, sa.select(outcomes.c.instance_id)))


def test_session_of_a_token_that_is_just_revoked_ends_with_it(ledger: Ledger, clock: MovedClock) -> None:
    """
    Who revokes a token ends the session, too, that somebody is signing in to with it.
    """
    access, now, hour = Access(ledger), clock.now(), timedelta(hours=1)
    token = access.issue(CredentialKind.TOKEN, name="eve", actor="test", now=now, lifetime=hour)
    sessions: list[str] = []

    def sign_in() -> None:
        sessions.append(
            access.issue(CredentialKind.SESSION, name="eve", actor="test", now=now, lifetime=hour, parent=token)
        )

    with before_commit(ledger, sign_in) as signing:
        person = Other(lambda: access.revoke(kind=CredentialKind.TOKEN, name="eve", actor="test", now=now))
        await_lock(ledger)

    assert (None, None) == (signing.end(), person.end())
    assert access.find(sessions[0], CredentialKind.SESSION, now=now) is None
