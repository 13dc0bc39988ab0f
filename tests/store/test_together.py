"""Several processes at one ledger on PostgreSQL: what one is about to commit, another does at the same time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from rows import QUIET, Rows, arrival, series_of
from talaria.model.errors import Overtaken
from talaria.model.job import Extent, Kind
from talaria.model.plan import plan_study
from talaria.store.jobs import NewJob, make_job
from talaria.store.ledger import Ledger
from talaria.store.schema import cases, events
from talaria.testing import MovedClock

pytestmark = [pytest.mark.server, pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)]

STUDY = "whole: {when: 'True', trigger: study, send: [x]}"
_PATIENCE_SECONDS = 20.0


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


class Other:
    """Another process: a thread that does something; what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work, self.error = work, None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - told to the test
            self.error: Exception | None = error

    def end(self) -> Exception | None:
        """Wait for its end; what it raised."""
        self.thread.join(_PATIENCE_SECONDS)
        assert not self.thread.is_alive()
        return self.error


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
        assert reached.wait(_PATIENCE_SECONDS), other.error
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


def _all(ledger: Ledger, statement: sa.Select[tuple[object, ...]]) -> list[sa.Row[tuple[object, ...]]]:
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
