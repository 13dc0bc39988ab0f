"""Plans made true: cases, portions and jobs, whole or not at all."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from rows import QUIET, Rows, arrival, book_of, series_of
from talaria.model.errors import Overtaken
from talaria.model.job import Kind, State
from talaria.model.plan import CaseState, plan_series, plan_study
from talaria.store.cases import Cases
from talaria.store.ledger import Ledger
from talaria.store.schema import cases, events, instances, jobs, series
from talaria.testing import MovedClock

STUDY = 'whole: {when: tags.Modality == "CT", trigger: study, send: [x]}'
BROKEN = "broken: {when: 'int(tags.SeriesDescription) > 1', send: [y]}"
TEN_MINUTES = timedelta(minutes=10)


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


def states(rows: Rows) -> list[tuple[str, int, str]]:
    """Rule, series (0: the study) and state of every case."""
    with rows.ledger.reading() as connection:
        found = connection.execute(sa.select(cases.c.rule, cases.c.series_id, cases.c.state).order_by(cases.c.id))
        return [tuple(row) for row in found]  # type: ignore[misc]  # three columns


def reached(rows: Rows, number: int = 1) -> dict[str, int]:
    """How many instances each target is to get, of a job or of all."""
    totals: dict[str, int] = {}
    for line in rows.listing.deliveries().items:
        totals[line.target] = totals.get(line.target, 0) + line.total
    return totals


def test_series_is_due_after_its_quiet_time(rows: Rows) -> None:
    """
    A new series is looked at when it may be quiet, and not before.
    """
    rows.receive(*series_of())

    assert None is rows.cases.due_series(rows.clock.now())
    assert 1 == rows.cases.due_series(rows.clock.now() + QUIET)
    assert rows.clock.now() + QUIET == rows.cases.next_due()


def test_plan_becomes_case_portion_and_job(rows: Rows) -> None:
    """
    A routed series has a closed case, its instances a portion, and there is one job for its target.
    """
    rows.receive(*series_of())
    made = rows.settle()
    with rows.ledger.reading() as connection:
        portions = set(connection.execute(sa.select(instances.c.portion)).scalars())
        told = list(connection.execute(sa.select(events.c.kind).order_by(events.c.id)).scalars())

    assert [("to-x", 1, "closed")] == states(rows)
    assert ({1}, {"x": 3}) == (portions, reached(rows))
    assert (Kind.DISPATCH, "x", State.PENDING) == tuple(
        getattr(rows.jobs.show(made[0]), name) for name in ("kind", "target", "state")
    )
    assert ["case.closed", "series.asked", "job.made"] == told


def test_settled_series_is_left_alone(rows: Rows) -> None:
    """
    A series with nothing new is not looked at again.
    """
    rows.receive(*series_of())
    rows.settle()

    assert (None, None) == (rows.cases.next_due(), rows.cases.due_series(rows.clock.now() + timedelta(days=9)))


def test_arrival_while_planning_overtakes_the_plan(rows: Rows) -> None:
    """
    A plan made from a series that has grown since changes nothing.
    """
    rows.receive(*series_of())
    rows.clock.move(QUIET)
    view = rows.cases.series_view(1)
    plan = plan_series(view, active=rows.book, revisions=lambda _: rows.book, now=rows.clock.now())
    rows.receive(arrival("9"))

    with pytest.raises(Overtaken):
        rows.cases.apply_series(view, plan, revision=1, now=rows.clock.now())
    assert ([], []) == (states(rows), list(rows.listing.jobs().items))


def test_the_same_plan_is_made_true_once(rows: Rows) -> None:
    """
    Of two routers with the same plan one is overtaken: there are no twins of jobs.
    """
    rows.receive(*series_of())
    rows.clock.move(QUIET)
    view = rows.cases.series_view(1)
    plan = plan_series(view, active=rows.book, revisions=lambda _: rows.book, now=rows.clock.now())
    other = Cases(rows.ledger)

    assert 1 == len(rows.cases.apply_series(view, plan, revision=1, now=rows.clock.now()))
    with pytest.raises(Overtaken):
        other.apply_series(view, plan, revision=1, now=rows.clock.now())


def test_late_instances_are_a_supplement(rows: Rows) -> None:
    """
    What comes late is a portion of its own, sent by a job of the same case, counted as its supplement.
    """
    rows.receive(*series_of())
    rows.settle()
    rows.receive(arrival("8"), arrival("9"))
    (job_id,) = rows.settle()
    (case,) = rows.listing.study("1.2.1").cases

    assert [2, 3] == [line.total for line in rows.listing.deliveries().items]
    assert (1, 1) == (rows.jobs.show(job_id).supplement, case.supplement)


def test_conflict_is_sent_as_a_supplement(rows: Rows) -> None:
    """
    Another content of an instance that was sent is sent alone.
    """
    rows.receive(*series_of())
    rows.settle()
    rows.receive(arrival("2", content="b"))
    rows.settle()

    assert [1, 3] == [line.total for line in rows.listing.deliveries().items]


def test_nothing_matched_is_discarded_and_not_sent(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series that no rule took has a discarded case and no job.
    """
    rows = Rows(ledger, clock, "mr: {when: 'tags.Modality == \"MR\"', send: [x]}")
    rows.receive(*series_of())

    assert [] == rows.settle()
    assert [("", 1, "discarded")] == states(rows)


def test_study_collects_and_is_closed_once(ledger: Ledger, clock: MovedClock) -> None:
    """
    A study's series are collected in one case, and go out in one job when the study is quiet.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(2), *series_of(3, series="2"))

    assert [] == rows.settle()
    assert [("whole", 0, "collecting")] == states(rows)
    (job_id,) = rows.settle(after=TEN_MINUTES)
    assert ([("whole", 0, "closed")], {"x": 5}) == (states(rows), reached(rows))
    assert None is rows.jobs.show(job_id).series_instance_uid


def test_discarded_series_is_taken_from_the_discarded_by_its_study(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series that matched nothing before its study had a case belongs to the case once that is closed.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(arrival("1", modality="SR"))
    rows.settle()
    assert [("", 1, "discarded")] == states(rows)
    rows.receive(*series_of(2, series="2"))
    rows.settle()
    rows.settle(after=TEN_MINUTES)

    assert [("", 1, "closed"), ("whole", 0, "closed")] == states(rows)
    assert {"x": 3} == reached(rows)


def test_late_series_of_a_closed_study(ledger: Ledger, clock: MovedClock) -> None:
    """
    A series that comes after its study was closed is sent alone, as a supplement of the same case.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(2))
    rows.settle()
    rows.settle(after=TEN_MINUTES)
    rows.receive(*series_of(4, series="2"))
    rows.settle()
    (job_id,) = rows.settle(after=TEN_MINUTES)

    assert [4, 2] == [line.total for line in rows.listing.deliveries().items]
    assert (1, 1) == (rows.jobs.show(job_id).supplement, len(states(rows)))


def test_late_images_of_a_series_in_a_closed_study(ledger: Ledger, clock: MovedClock) -> None:
    """
    Images that come late to a series of a closed study are sent alone.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(2))
    rows.settle()
    rows.settle(after=TEN_MINUTES)
    rows.receive(arrival("9"))
    rows.settle()
    rows.settle(after=TEN_MINUTES)

    assert [1, 2] == [line.total for line in rows.listing.deliveries().items]


def test_two_study_rules_to_one_target_both_end(ledger: Ledger, clock: MovedClock) -> None:
    """
    Of two study rules to the same target the first sends; the second's case has nothing to send, and ends as well.
    """
    rows = Rows(ledger, clock, STUDY, "again: {when: 'True', trigger: study, send: [x]}")
    rows.receive(*series_of(2))
    rows.settle()
    rows.settle(after=TEN_MINUTES)

    assert [("whole", 0, "closed"), ("again", 0, "closed")] == states(rows)
    assert ({"x": 2}, None) == (reached(rows), rows.cases.next_due())


def test_study_of_discarded_series_ends(ledger: Ledger, clock: MovedClock) -> None:
    """
    A study case whose only series a slower rule discards collects no more, and says why.
    """
    rows = Rows(ledger, clock, STUDY, "junk: {when: 'True', action: discard, complete: {quiet: 90s}}")
    rows.receive(*series_of(2))
    rows.settle()
    rows.settle(after=timedelta(seconds=30))
    rows.settle(after=TEN_MINUTES)

    assert [("whole", 0, "closed"), ("junk", 1, "discarded")] == states(rows)
    assert "every series of it was discarded" == rows.listing.study("1.2.1").cases[0].reason
    assert ({}, None) == (reached(rows), rows.cases.next_due())


def test_arrival_overtakes_the_plan_of_a_study(ledger: Ledger, clock: MovedClock) -> None:
    """
    A study's plan made before another series came changes nothing.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(2))
    rows.settle()
    clock.move(TEN_MINUTES)
    view = rows.cases.study_view(1)
    plan = plan_study(view, revisions=lambda _: rows.book, now=clock.now())
    rows.receive(*series_of(1, series="2"))

    with pytest.raises(Overtaken):
        rows.cases.apply_study(view, plan, now=clock.now())
    assert {} == reached(rows)


def test_two_series_of_a_study_share_its_case(ledger: Ledger, clock: MovedClock) -> None:
    """
    The second series that a study rule matches joins the case that the first has opened.
    """
    rows = Rows(ledger, clock, STUDY)
    rows.receive(*series_of(1))
    rows.settle()
    rows.receive(*series_of(1, series="2"))
    rows.settle()

    assert [("whole", 0, "collecting")] == states(rows)


def test_rule_in_error_is_held_beside_the_others(ledger: Ledger, clock: MovedClock) -> None:
    """
    A rule that broke has a held case with its reason; what the others ask for is done.
    """
    rows = Rows(ledger, clock, BROKEN, "x: {when: 'True', send: [x]}")
    rows.receive(*series_of(2))
    rows.settle()

    assert [("broken", 1, "held"), ("x", 1, "closed")] == states(rows)
    assert {"x": 2} == reached(rows)
    assert rows.listing.study("1.2.1").cases[0].reason.startswith("rule in error: ")


def test_held_supplement_waits_for_a_person(ledger: Ledger, clock: MovedClock) -> None:
    """
    With `late: hold` the job of what came late is made held, and says what to do.
    """
    rows = Rows(ledger, clock, "a: {when: 'True', send: [x], late: hold}")
    rows.receive(*series_of(2))
    rows.settle()
    rows.receive(arrival("9"))
    (job_id,) = rows.settle()

    assert (State.HELD, "images came late: release to go on") == (
        rows.jobs.show(job_id).state, rows.jobs.show(job_id).reason
    )  # fmt: skip


def test_postponed_series_does_not_stop_the_others(rows: Rows) -> None:
    """
    A series that a bug stopped is looked at again later; the one after it is due now.
    """
    rows.receive(*series_of(1), *series_of(1, series="2"))
    rows.clock.move(QUIET)
    rows.cases.postpone_series(1, rows.clock.now() + timedelta(minutes=5))

    assert 2 == rows.cases.due_series(rows.clock.now())


def test_view_tells_what_rules_may_ask_for(rows: Rows) -> None:
    """
    A series is seen with its tags, its count and the tags of all series of its study.
    """
    rows.receive(*series_of(2), *series_of(1, series="2"))
    view = rows.cases.series_view(1)

    assert (2, 2, "S1") == (view.series.instances, view.fresh, view.series.tags["SeriesDescription"])
    assert ["S1", "S2"] == [tags["SeriesDescription"] for tags in view.siblings]


def test_revision_is_written_with_the_case_and_the_job(rows: Rows) -> None:
    """
    Case and job keep the number of the rulebook that they were made under.
    """
    rows.book = book_of("to-x: {when: 'True', send: [x]}", number=7)
    rows.receive(*series_of(1))
    (job_id,) = rows.settle()
    with rows.ledger.reading() as connection:
        numbers = connection.execute(sa.select(cases.c.revision, jobs.c.revision).join_from(cases, jobs)).one()

    assert (7, 7) == tuple(numbers)
    assert CaseState.CLOSED == states(rows)[0][2]
    assert 7 == rows.jobs.show(job_id).revision


def test_version_counts_every_change(rows: Rows) -> None:
    """
    Whoever compares the version of a series sees every arrival and every plan.
    """
    seen = []
    for step in (lambda: rows.receive(arrival("1")), lambda: rows.receive(arrival("2")), rows.settle):
        step()
        with rows.ledger.reading() as connection:
            seen.append(connection.execute(sa.select(series.c.version)).scalar_one())

    assert sorted(set(seen)) == seen
