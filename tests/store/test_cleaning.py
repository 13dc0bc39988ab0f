"""Which series are over, and the end of their files."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from rows import SPOOL, Rows, arrival, book_of, series_of
from talaria.model.job import Event, State
from talaria.model.plan import Plan, plan_study
from talaria.model.retention import Candidate
from talaria.store.ledger import Ledger
from talaria.store.schema import cases, instances, series
from talaria.testing import MovedClock

BROKEN = "broken: {when: 'int(tags.SeriesDescription) > 1', send: [y]}"
DAY = timedelta(days=1)
STUDY = 'whole: {when: tags.Modality == "CT", trigger: study, send: [x]}'


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


def standing(rows: Rows) -> list[tuple[int, str]]:
    """Series that nothing is to happen to any more, and how they ended."""
    return [(found.id, found.state) for found in over(rows)]


def over(rows: Rows) -> list[Candidate]:
    return rows.cleaning.candidates(spool=SPOOL, before=rows.clock.now())[0]


def delivered(rows: Rows, event: Event = Event.FINISH) -> int:
    """Receive a series, route it, and end its delivery; the job."""
    rows.receive(*series_of(3))
    (job_id,) = rows.settle()
    rows.jobs.end(rows.claim(), event, now=rows.clock.now(), due=rows.clock.now() + DAY)
    return job_id


def clean(rows: Rows) -> list[str]:
    """Mark all that is over; the condemned."""
    for candidate in over(rows):
        assert rows.cleaning.mark(candidate, reason="retention is over", now=rows.clock.now())
    return sorted(instance_id for found in rows.cleaning.condemned(spool=SPOOL).values() for instance_id in found)


def test_arriving_series_is_not_over(rows: Rows) -> None:
    """
    A series that no rule was asked about is not to be cleaned.
    """
    rows.receive(*series_of())

    assert [] == standing(rows)


def test_series_with_a_waiting_job_is_not_over(rows: Rows) -> None:
    """
    A series that waits to be delivered, is under way or deferred is not to be cleaned.
    """
    rows.receive(*series_of())
    rows.settle()
    assert [] == standing(rows)
    claim = rows.claim()
    assert [] == standing(rows)
    rows.jobs.end(claim, Event.DEFER, now=rows.clock.now(), due=rows.clock.now() + DAY)
    assert [] == standing(rows)


@pytest.mark.parametrize(("event", "state"), [(Event.FINISH, "done"), (Event.FAIL, "failed"), (Event.BREAK, "held")])
def test_series_ends_as_its_job(rows: Rows, event: Event, state: str) -> None:
    """
    A series is kept by how its delivery ended.
    """
    delivered(rows, event)

    assert [(1, state)] == standing(rows)


def test_cancelled_is_not_delivered(rows: Rows) -> None:
    """
    A series whose delivery a person cancelled is not taken for delivered.
    """
    rows.jobs.act(rows.jobs_of()[0], Event.CANCEL, actor="p", now=rows.clock.now())

    assert [(1, "cancelled")] == standing(rows)


def test_worst_of_several_deliveries_counts(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series that one target has and another refused is failed.
    """
    rows = Rows(ledger, clock, "a: {when: 'True', send: [x, y]}")
    rows.receive(*series_of())
    rows.settle()
    rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
    assert [] == standing(rows)
    rows.jobs.end(rows.claim(), Event.FAIL, now=clock.now())

    assert [(1, "failed")] == standing(rows)


def test_discarded_series_is_discarded(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series that no rule took, or that a rule discards, is over as discarded.
    """
    rows = Rows(
        ledger,
        clock,
        "no: {when: 'False', send: [x]}",
        "junk: {when: 'tags.SeriesDescription == \"S2\"', action: discard}",
    )
    rows.receive(*series_of(), *series_of(series="2"))
    rows.settle()

    assert [(1, "discarded"), (2, "discarded")] == standing(rows)


def test_rule_in_error_is_never_cleaned_as_done(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series that was delivered by one rule, and of which another broke, is held.
    """
    rows = Rows(ledger, clock, BROKEN, "x: {when: 'True', send: [x]}")
    delivered(rows)

    assert [(1, "held")] == standing(rows)


def test_series_of_a_collecting_study_is_not_over(ledger: Ledger, clock: MovedClock) -> None:
    """
    While a study collects none of its series goes, not even one that the rule will not take.
    """
    rows = Rows(ledger, clock, "part: {when: 'tags.Modality == \"CT\"', trigger: study, collect: matching, send: [x]}")
    rows.receive(*series_of(), arrival("1", series="2", modality="SR"))
    rows.settle()
    assert [] == standing(rows)
    rows.settle(after=timedelta(minutes=10))
    assert [(2, "discarded")] == standing(rows)


def test_end_is_the_last_that_happened(rows: Rows) -> None:
    """
    Retention counts from the end of the last job, not from the arrival.
    """
    delivered(rows)
    ended = rows.clock.now()
    rows.clock.move(DAY)

    assert [(ended, 300)] == [(found.ended, found.size_bytes) for found in over(rows)]


def test_other_spools_are_left_alone(rows: Rows) -> None:
    """
    A cleaner looks at series of its own spool.
    """
    delivered(rows)

    assert ([], None) == rows.cleaning.candidates(spool="ANOTHER", before=rows.clock.now())


def test_marked_then_removed(rows: Rows) -> None:
    """
    What is marked is condemned until its files are said to be gone: a kill in between is mended at the next look.
    """
    delivered(rows)
    marked = clean(rows)

    assert 3 == len(marked)
    assert ([], marked) == (standing(rows), clean(rows))
    rows.cleaning.gone(1)
    assert [] == clean(rows)


def test_mark_is_refused_after_an_arrival(rows: Rows) -> None:
    """
    A series that something came for since it was looked at is not marked.
    """
    delivered(rows)
    (candidate,) = over(rows)
    rows.receive(arrival("9"))

    assert not rows.cleaning.mark(candidate, reason="", now=rows.clock.now())
    assert {} == rows.cleaning.condemned(spool=SPOOL)


def test_mark_is_refused_when_a_job_moves_again(rows: Rows) -> None:
    """
    A series one of whose jobs a person restarted since it was looked at is not marked.
    """
    job_id = delivered(rows)
    (candidate,) = over(rows)
    rows.clock.move(DAY)
    rows.jobs.act(job_id, Event.RESTART, actor="p", now=rows.clock.now())

    assert not rows.cleaning.mark(candidate, reason="", now=rows.clock.now())


def test_mark_is_refused_twice(rows: Rows) -> None:
    """
    Of two cleaners one marks.
    """
    delivered(rows)
    (candidate,) = over(rows)

    assert rows.cleaning.mark(candidate, reason="", now=rows.clock.now())
    assert not rows.cleaning.mark(candidate, reason="", now=rows.clock.now())


def test_mark_is_refused_when_its_study_wakes(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series of a study that another series came for since is not marked: the whole study may go again.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of())
    rows.settle()
    rows.settle(after=timedelta(minutes=10))
    rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
    (candidate,) = over(rows)
    rows.receive(*series_of(series="2"))
    rows.settle()

    assert not rows.cleaning.mark(candidate, reason="", now=clock.now())


def test_cleaned_series_is_told(rows: Rows) -> None:
    """
    The log says which series went, how it had ended and why.
    """
    delivered(rows)
    clean(rows)
    event = rows.listing.study("1.2.1").events[-1]

    assert ("series.cleaned", {"state": "done", "reason": "retention is over", "size_bytes": 300}) == (
        event.kind, event.detail
    )  # fmt: skip


def test_series_sent_again_after_cleaning_is_asked_anew(rows: Rows) -> None:
    """
    A series that is sent again after its files are gone is new: not a repeat, asked by every rule, sent again.
    """
    delivered(rows)
    clean(rows)
    rows.clock.move(DAY)

    assert {"new"} == set(rows.receive(*series_of(3)).values())
    assert 1 == len(rows.settle())
    assert [3, 3] == [line.total for line in rows.listing.deliveries().items][:1] * 2
    claim = rows.claim()
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    assert [(1, "done")] == standing(rows)


def test_old_files_are_still_condemned_when_new_ones_come(rows: Rows) -> None:
    """
    A kill between mark and removal, and then the series again: the old files go, the new stay.
    """
    delivered(rows)
    marked = clean(rows)
    new = series_of(3)
    rows.receive(*new)

    assert {1: marked} == {n: sorted(found) for n, found in rows.cleaning.condemned(spool=SPOOL).items()}
    assert not set(marked) & {a.instance.id for a in new}


def test_late_series_of_a_cleaned_study_is_sent(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series that comes after the other series of its study were cleaned is not kept waiting by them.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of())
    rows.settle()
    rows.settle(after=timedelta(minutes=10))
    rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
    clean(rows)
    clock.move(DAY)
    rows.receive(*series_of(2, series="2"))
    rows.settle()

    assert 1 == len(rows.settle(after=timedelta(minutes=10)))
    assert (None, [2, 3]) == (rows.cases.next_due(), [line.total for line in rows.listing.deliveries().items])


def test_cleaned_study_series_sent_again_goes_out_again(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series of a study case that is sent again after cleaning is a supplement of the case.
    """
    rows = Rows(ledger, clock, STUDY)
    for _ in range(2):
        rows.receive(*series_of())
        rows.settle()
        rows.settle(after=timedelta(minutes=10))
        rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
        clean(rows)
        rows.cleaning.gone(1)
        clock.move(DAY)

    assert 2 == len(rows.listing.jobs().items)


def test_study_sent_again_after_cleaning_is_asked_anew(ledger: Ledger, clock: MovedClock) -> None:
    """
    A study whose files are all gone is a fresh case when it is sent again: under the running rulebook, no supplement.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(), *series_of(series="2"))
    for _ in range(2):
        rows.settle()
        rows.settle(after=timedelta(minutes=10))
        rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
        clean(rows)
        rows.cleaning.gone(1)
        rows.cleaning.gone(2)
        with ledger.reading() as connection:
            assert {"cleaned"} == set(connection.execute(sa.select(cases.c.state)).scalars())
        clock.move(DAY)
        rows.receive(*series_of(), *series_of(series="2"))
        rows.book = book_of(STUDY.replace("[x]", "[y]"), number=2)

    assert [("y", 2, 0), ("x", 1, 0)] == [(j.target, j.revision, j.supplement) for j in rows.listing.jobs().items]


def test_cleaned_study_is_left_alone_by_another_rule(ledger: Ledger, clock: MovedClock) -> None:
    """
    A study case whose files are gone does not act on what is sent again if the running rulebook has its rule no more.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of())
    rows.settle()
    rows.settle(after=timedelta(minutes=10))
    rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
    clean(rows)
    clock.move(DAY)
    old, rows.book = rows.book, book_of("other: {when: 'True', send: [y]}", number=2)
    rows.receive(*series_of())
    clock.move(timedelta(minutes=1))
    rows.route(1)
    view = rows.cases.study_view(1)

    assert Plan(due=None) == plan_study(view, revisions=lambda _: old, now=clock.now())


def test_cleaned_study_is_shown_as_it_ended(rows: Rows) -> None:
    """
    A study whose files are gone is not shown as being received.
    """
    delivered(rows)
    clean(rows)

    assert "done" == rows.listing.studies().items[0].state


def test_cleaning_leaves_no_instance_behind(rows: Rows) -> None:
    """
    With a series go its replaced versions, too; the rows stay, for the history.
    """
    rows.receive(*series_of(2), arrival("1", content="b"))
    rows.settle()
    rows.jobs.end(rows.claim(), Event.FINISH, now=rows.clock.now())

    assert 3 == len(clean(rows))
    with rows.ledger.reading() as connection:
        assert 3 == len(connection.execute(sa.select(instances.c.id)).all())
        assert (True, 0) == tuple(connection.execute(sa.select(series.c.dropping, series.c.instances)).one())
        assert ["cleaned"] == list(connection.execute(sa.select(cases.c.state)).scalars())
    assert State.DONE == rows.jobs.show(1).state


def test_candidates_are_paged(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    However many series are over, each is found once.
    """
    monkeypatch.setattr("talaria.store.cleaning._MOST", 2)
    for number in range(5):
        rows.receive(arrival("1", series=str(number)))
    rows.settle()
    for _ in range(5):
        rows.jobs.end(rows.claim(), Event.FINISH, now=rows.clock.now())
    found, after = [], None
    while True:
        some, after = rows.cleaning.candidates(spool=SPOOL, before=rows.clock.now(), after=after)
        found += [candidate.id for candidate in some]
        if after is None:
            break

    assert [1, 2, 3, 4, 5] == found
