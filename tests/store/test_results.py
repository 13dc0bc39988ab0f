"""What modules made, and which of it stands."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from rows import ORIGIN, Rows, arrival, series_of
from talaria.model.job import Event, Extent, Kind, State
from talaria.store.jobs import Claim, NewJob
from talaria.store.ledger import Ledger
from talaria.store.results import Output, Results, RunRecord, adopt
from talaria.store.schema import series
from talaria.testing import MovedClock

WORK = "work: {when: 'True', action: process, process: [nothing]"


@pytest.fixture
def results(ledger: Ledger) -> Results:
    return Results(ledger)


def finish(rows: Rows, claim: Claim, *made: str) -> tuple[Extent, ...]:
    """End a process job with a result in each of some series."""
    found = [arrival("1", series=name, study="1") for name in made]
    outputs = [Output(instance=a.instance, tags=a.tags) for a in found]
    extents: list[tuple[Extent, ...]] = []

    def follow(connection: sa.Connection) -> list[object]:
        extents.append(adopt(connection, claim, outputs, origin=ORIGIN, now=rows.clock.now()))
        return []

    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now(), follow_ups=follow)  # type: ignore[arg-type]  # no jobs
    return extents[0]


def superseded(rows: Rows) -> dict[str, bool]:
    """The last part of the UID of each result series, and whether something newer stands for it."""
    lines = rows.listing.study("1.2.1").series
    return {line.series_uid.rpartition(".")[2]: line.superseded for line in lines if line.made_by_job}


def processed(ledger: Ledger, clock: MovedClock, late: str) -> Rows:
    """A case that was processed, and then again for an instance that came late."""
    rows = Rows(ledger, clock, f"{WORK}, late: {late}}}")
    rows.receive(*series_of(2))
    rows.settle()
    finish(rows, rows.claim(Kind.PROCESS), "100")
    rows.receive(arrival("9"))
    rows.settle()
    finish(rows, rows.claim(Kind.PROCESS), "200")
    return rows


def test_result_is_a_series_of_its_job(ledger: Ledger, clock: MovedClock) -> None:
    """
    What a module made is a settled series of its study that names the job; the router leaves it alone.
    """
    rows = Rows(ledger, clock, WORK + "}")
    rows.receive(*series_of(2))
    (job_id,) = rows.settle()
    (extent,) = finish(rows, rows.claim(Kind.PROCESS), "100")
    made = rows.listing.study("1.2.1").series[-1]

    assert (job_id, 1, "CT1") == (made.made_by_job, made.instances, made.calling_ae)
    assert (1, 1) == (extent.first, extent.last)
    assert None is rows.cases.next_due()


def test_whole_supersedes_earlier_results(ledger: Ledger, clock: MovedClock) -> None:
    """
    A chain that ran again on the whole case replaces what it made before.
    """
    assert {"100": True, "200": False} == superseded(processed(ledger, clock, "whole"))


def test_new_leaves_earlier_results(ledger: Ledger, clock: MovedClock) -> None:
    """
    A chain that ran on what came late alone replaces nothing.
    """
    assert {"100": False, "200": False} == superseded(processed(ledger, clock, "new"))


def supplemented(ledger: Ledger, clock: MovedClock) -> tuple[Rows, list[Claim]]:
    """A case whose chain was asked for twice, the second time for all; both in hand."""
    rows = Rows(ledger, clock, f"{WORK}, late: whole, send: [x]}}")
    rows.receive(*series_of(2))
    rows.settle()
    first = rows.claim(Kind.PROCESS)
    rows.receive(arrival("9"))
    rows.settle()
    return rows, [first, rows.claim(Kind.PROCESS)]


def deliver_results(rows: Rows, claim: Claim, name: str) -> list[int]:
    """End a process job with a result that is to go to `x`; the delivery made for it."""
    found = arrival("1", series=name, study="1")

    def follow(connection: sa.Connection) -> list[NewJob]:
        output = Output(instance=found.instance, tags=found.tags)
        extents = adopt(connection, claim, [output], origin=ORIGIN, now=rows.clock.now())
        made = NewJob(
            kind=Kind.DISPATCH, rule=claim.job.rule, revision=1, extents=extents, target="x", parent=claim.job.id
        )
        return [made] if extents else []

    return rows.jobs.end(claim, Event.FINISH, now=rows.clock.now(), follow_ups=follow)


def test_superseded_results_are_not_delivered(ledger: Ledger, clock: MovedClock) -> None:
    """
    What waits to be delivered of results is cancelled when they are made again, and says by whom.
    """
    rows, (first, second) = supplemented(ledger, clock)
    (old,) = deliver_results(rows, first, "100")
    (new,) = deliver_results(rows, second, "200")

    assert (State.CANCELLED, "made again by job 2") == (rows.jobs.show(old).state, rows.jobs.show(old).reason)
    assert State.PENDING == rows.jobs.show(new).state


def test_delivered_results_stay_delivered(ledger: Ledger, clock: MovedClock) -> None:
    """
    A delivery that is over stays as it is when its results are made again.
    """
    rows, (first, second) = supplemented(ledger, clock)
    (old,) = deliver_results(rows, first, "100")
    rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
    deliver_results(rows, second, "200")

    assert State.DONE == rows.jobs.show(old).state


def test_results_that_come_after_newer_ones_are_superseded(ledger: Ledger, clock: MovedClock) -> None:
    """
    A chain that ends after a later one over the same images and more has made nothing to be delivered.
    """
    rows, (first, second) = supplemented(ledger, clock)
    deliver_results(rows, second, "200")

    assert [] == deliver_results(rows, first, "100")
    assert {"100": True, "200": False} == superseded(rows)


def test_restart_supersedes_what_the_job_made(ledger: Ledger, clock: MovedClock) -> None:
    """
    A restarted job replaces all that it made, also a series that it makes no more.
    """
    rows = Rows(ledger, clock, WORK + "}")
    rows.receive(*series_of(2))
    (job_id,) = rows.settle()
    finish(rows, rows.claim(Kind.PROCESS), "100", "200")
    rows.clock.move(timedelta(seconds=1))
    rows.jobs.act(job_id, Event.RESTART, actor="p", now=rows.clock.now())
    finish(rows, rows.claim(Kind.PROCESS), "200", "300")

    assert {"100": True, "200": False, "300": False} == superseded(rows)


def test_result_with_an_original_uid_replaces_nothing(ledger: Ledger, clock: MovedClock) -> None:
    """
    A result that bears the UIDs of an original stands beside it.
    """
    rows = Rows(ledger, clock, WORK + "}")
    rows.receive(*series_of(2))
    rows.settle()
    finish(rows, rows.claim(Kind.PROCESS), "1")

    assert [None, None] == [version["superseded_by"] for version in rows.listing.instance("1.2.1.1.1")]
    assert [2, 1] == [line.instances for line in rows.listing.study("1.2.1").series]


def test_run_is_recorded_once(ledger: Ledger, clock: MovedClock, results: Results) -> None:
    """
    Of a step and attempt told twice the later word stands; a log with any bytes is kept.
    """
    rows = Rows(ledger, clock, WORK + "}")
    rows.receive(*series_of(2))
    (job_id,) = rows.settle()
    for code in (1, 0):
        results.record_run(
            RunRecord(
                job_id=job_id, attempt=1, step=1, module="nothing", code=code, reason="", seconds=1.0,
                log="a\0b\udcff", ended=clock.now(),
            )
        )  # fmt: skip

    assert [(0, "ab?")] == [(run.code, run.log) for run in rows.listing.study("1.2.1").runs]


def test_known_of_very_many(ledger: Ledger, clock: MovedClock, results: Results) -> None:
    """
    However many instances are asked about, those that the ledger has are named.
    """
    rows = Rows(ledger, clock)
    one = arrival("1")
    rows.receive(one)
    asked = [f"{number:026d}" for number in range(70_000)]

    assert {one.instance.id} == results.known([*asked, one.instance.id])
    assert set() == results.known([])


def test_derived_series_counts_no_twins(ledger: Ledger, clock: MovedClock) -> None:
    """
    An original that comes again after a result bore its UID is a repeat of the original.
    """
    rows = Rows(ledger, clock, WORK + "}")
    rows.receive(*series_of(2))
    rows.settle()
    finish(rows, rows.claim(Kind.PROCESS), "1")
    again = arrival("1")

    assert {again.instance.id: "repeat"} == rows.receive(again)
    with ledger.reading() as connection:
        assert [0, 1] == sorted(set(connection.execute(sa.select(series.c.origin_job)).scalars()))
