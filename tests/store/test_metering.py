"""Figures for monitoring."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from rows import Rows, series_of
from talaria.model.job import Event, Kind, State
from talaria.store.ledger import Ledger
from talaria.store.metering import MOST_SENDERS, OTHER, Metering, count_delivery
from talaria.store.schema import OPEN, OVER, received
from talaria.testing import MovedClock


def finish(rows: Rows, *, after: timedelta) -> None:
    """Deliver all that waits, so long after it was made."""
    rows.clock.move(after)
    claim = rows.claim(Kind.DISPATCH)
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())


def test_deliveries_are_counted_as_they_end(ledger: Ledger, clock: MovedClock) -> None:
    """
    Each whole delivery is counted by how long it took since it was made, once; what failed is not counted.
    """
    rows = Rows(ledger, clock)
    for study, seconds in (("1", 3), ("2", 45)):
        rows.receive(*series_of(2, study=study))
        rows.settle()
        finish(rows, after=timedelta(seconds=seconds))
    rows.receive(*series_of(2, study="3"))
    rows.settle()
    rows.jobs.end(rows.claim(Kind.DISPATCH), Event.FAIL, now=clock.now(), reason="no")
    (taken,) = Metering(ledger).delivered()

    assert ("x", 2, 48.0) == (taken.target, taken.count, taken.seconds)
    assert (0, 1, 1, 2, 2) == tuple(taken.up_to[bound] for bound in (2, 5, 30, 60, 86_400))


def test_longest_deliveries_count_beyond_all_bounds(ledger: Ledger) -> None:
    """
    A delivery of two days is counted, beyond the last bound; a clock that was set back counts as nothing.
    """
    for took in (timedelta(days=2), timedelta(seconds=-5)):
        with ledger.writing("test.count") as connection:
            count_delivery(connection, "x", took, job_id=round(took.total_seconds()))
    (taken,) = Metering(ledger).delivered()

    assert (2, 1, 172_800.0) == (taken.count, taken.up_to[86_400], taken.seconds)


def test_jobs_are_counted_by_kind_and_state(ledger: Ledger, clock: MovedClock) -> None:
    """
    Open jobs are counted by target and with the oldest; those that are over without.
    """
    rows = Rows(ledger, clock, "a: {when: 'True', send: [x, y]}")
    rows.receive(*series_of(2))
    rows.settle()
    made = clock.now()
    finish(rows, after=timedelta(seconds=1))
    counts = {(c.kind, c.state, c.target): (c.number, c.oldest) for c in Metering(ledger).jobs()}

    assert 2 == len(counts)
    assert (1, None) == counts[Kind.DISPATCH, State.DONE, None]
    assert {(1, made)} == {value for (_, state, target), value in counts.items() if state is State.PENDING and target}


def test_count_is_used_again_for_a_while(ledger: Ledger, clock: MovedClock) -> None:
    """
    A count that took long stands for twenty times as long, one that was quick for five seconds.
    """
    rows, times = Rows(ledger, clock), iter([0.0, 2.0, 39.0, 41.0, 41.1, 45.9, 46.1, 46.2])
    metering = Metering(ledger, stopwatch=lambda: next(times))
    seen = []
    for study in ("1", "2", "3", "4", "5"):
        seen.append(sum(count.number for count in metering.jobs()))
        rows.receive(*series_of(2, study=study))
        rows.settle()

    assert [0, 0, 2, 2, 4] == seen


@pytest.mark.parametrize("state", ["done", "pending"])
def test_counting_reads_no_job(ledger: Ledger, state: str) -> None:
    """
    Jobs are counted over an index that holds all that is asked, whatever their number.
    """
    condition = OVER if state == "done" else OPEN
    columns = "kind, state, count(*)" if state == "done" else "kind, state, target, count(*), min(created)"
    group = "kind, state" if state == "done" else "kind, target, state"
    explain = "EXPLAIN QUERY PLAN" if ledger.engine.dialect.name == "sqlite" else "EXPLAIN"
    with ledger.writing("test.explain") as connection:
        if explain == "EXPLAIN":  # an empty table is read whole, whatever indexes there are
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
            connection.execute(sa.text("SET LOCAL enable_bitmapscan = off"))
        plan = str(
            connection.execute(
                sa.text(f"{explain} SELECT {columns} FROM jobs WHERE {condition} GROUP BY {group}")
            ).all()
        )

    assert ("ix_jobs_over" if state == "done" else "ix_jobs_open") in plan
    assert "COVERING INDEX" in plan or "Index Only Scan" in plan


def test_senders_are_bounded(ledger: Ledger) -> None:
    """
    However many names senders give themselves, so many are told one by one, the busiest; the others together.
    """
    rows = [
        {"calling_ae": f"AE{number}", "instances": number, "size_bytes": 10 * number, "repeats": 1}
        for number in range(1, MOST_SENDERS + 11)
    ]
    with ledger.writing("test.fill") as connection:
        connection.execute(received.insert(), rows)
    found = Metering(ledger).received()

    assert MOST_SENDERS + 1 == len(found)
    assert f"AE{MOST_SENDERS + 10}" == found[0].calling_ae
    assert (OTHER, 55, 550, 10) == (
        found[-1].calling_ae, found[-1].instances, found[-1].size_bytes, found[-1].repeats
    )  # fmt: skip
