"""What people look at, a page at a time."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rows import Rows, arrival, series_of
from talaria.model.errors import Refused
from talaria.model.job import Event, Kind
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing, Page, _cursor
from talaria.testing import MovedClock

SECOND = timedelta(seconds=1)


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


def walked(page: Callable[..., Page[Any]], *, limit: int) -> list[Any]:
    """All items of a list, page by page."""
    found, after = [], None
    for _ in range(100):
        one = page(limit=limit, after=after)
        assert len(one.items) <= limit
        found += one.items
        if one.next is None:
            return found
        after = one.next
    raise AssertionError("the list has no end")


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 500])
def test_paging_walks_all_once(rows: Rows, limit: int) -> None:
    """
    Pages of any size give every study, job and delivery once, the newest first, also of one moment.
    """
    for number in range(7):
        rows.receive(*series_of(1, study=str(number)))
        rows.clock.move(SECOND * (number % 2))  # some at the same moment
    rows.settle()

    assert [f"1.2.{number}" for number in (6, 5, 4, 3, 2, 1, 0)] == [
        line.study_uid for line in walked(rows.listing.studies, limit=limit)
    ]
    assert [7, 6, 5, 4, 3, 2, 1] == [job.id for job in walked(rows.listing.jobs, limit=limit)]
    assert [7, 6, 5, 4, 3, 2, 1] == [line.job_id for line in walked(rows.listing.deliveries, limit=limit)]


def test_limit_is_bounded(rows: Rows) -> None:
    """
    A limit below one or beyond measure is taken as the nearest that is served.
    """
    rows.jobs_of(2)

    assert (1, 2) == (len(rows.listing.jobs(limit=-5).items), len(rows.listing.jobs(limit=10**9).items))


@pytest.mark.parametrize(
    "after",
    ["x", "-1", "", "1.5", "9" * 30, "١٢", "2026-01-05", "2026-01-05~x", "~1", "0001-01-01T00:00:00+23:00~1", "1\0"],
)
def test_place_that_is_none_is_refused(rows: Rows, after: str) -> None:
    """
    What is no place of a list is refused in words, whatever it is.
    """
    for page in (rows.listing.studies, rows.listing.jobs, rows.listing.deliveries):
        with pytest.raises(Refused, match="is not a place in this list"):
            page(after=after)


@given(st.text(max_size=60))
def test_no_cursor_is_a_bug(text: str) -> None:
    """
    Any text as a cursor is understood or refused.
    """
    try:
        moment, number = _cursor(text)
    except Refused:
        return

    assert number >= 0
    assert moment.tzinfo is not None


def test_cursor_travels_in_an_address(rows: Rows) -> None:
    """
    A cursor has no character that an address would change.
    """
    rows.jobs_of(2)
    place = rows.listing.studies(limit=1).next

    assert place is not None
    assert not set(place) & set("+ &%#?")


def test_jobs_by_what_is_given(rows: Rows) -> None:
    """
    Jobs are chosen by state, rule, target and kind.
    """
    rows.jobs_of(3)
    rows.jobs.end(rows.claim(), Event.FAIL, now=rows.clock.now())
    listing = rows.listing

    assert [1, 2] == [len(listing.jobs(state=state).items) for state in ("failed", "pending")]
    assert [3, 0] == [len(listing.jobs(rule=rule).items) for rule in ("to-x", "other")]
    assert [3, 0] == [len(listing.jobs(target=target).items) for target in ("x", "y")]
    assert [3, 0] == [len(listing.jobs(kind=kind).items) for kind in (Kind.DISPATCH, Kind.PROCESS)]
    assert [1, 0] == [len(listing.deliveries(state="failed", target=target).items) for target in ("x", "y")]


def state_of(rows: Rows) -> tuple[str, str]:
    line = rows.listing.studies().items[0]
    return line.state, line.reason


def test_study_is_received_then_waits_then_is_done(rows: Rows) -> None:
    """
    A study goes from receiving over pending and active to done.
    """
    rows.receive(*series_of())
    seen = [state_of(rows)]
    rows.settle()
    seen.append(state_of(rows))
    claim = rows.claim()
    seen.append(state_of(rows))
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    seen.append(state_of(rows))

    assert [("receiving", ""), ("pending", ""), ("active", ""), ("done", "")] == seen


@pytest.mark.parametrize(("event", "state"), [(Event.DEFER, "deferred"), (Event.FAIL, "failed"), (Event.BREAK, "held")])
def test_study_tells_why_it_waits(rows: Rows, event: Event, state: str) -> None:
    """
    A study that waits or failed says at which target, and why.
    """
    rows.jobs_of()
    rows.jobs.end(rows.claim(), event, now=rows.clock.now(), reason="refused it", due=rows.clock.now())

    assert (state, "x: refused it") == state_of(rows)


def test_worst_part_is_the_state_of_the_study(ledger: Ledger, clock: MovedClock) -> None:
    """
    A study of which one delivery failed is failed, though another is done.
    """
    rows = Rows(ledger, clock, "a: {when: 'True', send: [x, y]}")
    rows.receive(*series_of())
    rows.settle()
    rows.jobs.end(rows.claim(), Event.FINISH, now=clock.now())
    rows.jobs.end(rows.claim(), Event.FAIL, now=clock.now(), reason="no")

    assert ("failed", "y: no") == state_of(rows)


def test_collecting_and_discarded_studies(ledger: Ledger, clock: MovedClock) -> None:
    """
    A study that is collected says so, as does one that no rule took.
    """
    rows = Rows(ledger, clock, "w: {when: 'tags.Modality == \"CT\"', trigger: study, send: [x]}")
    rows.receive(arrival("1", modality="SR", study="1"))
    rows.settle()
    assert ("discarded", "no rule matched") == state_of(rows)
    rows.receive(arrival("1", study="2"))
    rows.settle()
    assert "collecting" == state_of(rows)[0]


def test_studies_by_state(rows: Rows) -> None:
    """
    Studies are chosen by how they stand; a page may be short, and the walk goes on.
    """
    rows.jobs_of(4)
    rows.jobs.end(rows.claim(), Event.FAIL, now=rows.clock.now())

    def failed(*, limit: int, after: str | None) -> Page[Any]:
        return rows.listing.studies(state="failed", limit=limit, after=after)

    assert 1 == len(walked(failed, limit=1))


def test_life_of_a_study(rows: Rows) -> None:
    """
    A study's page tells its series, cases, jobs, deliveries and what happened, in order.
    """
    rows.receive(*series_of(2), arrival("1", content="b"), *series_of(1, series="2"))
    rows.settle()
    life = rows.listing.study("1.2.1")

    assert [(2, "CT"), (1, "CT")] == [(part.instances, part.modality) for part in life.series]
    assert [("to-x", "1.2.1.1"), ("to-x", "1.2.1.2")] == [(case.rule, case.series_uid) for case in life.cases]
    assert (2, 2) == (len(life.jobs), len(life.deliveries))
    assert "instance.conflict" == life.events[0].kind
    assert [event.id for event in life.events] == sorted(event.id for event in life.events)
    assert (("to-x",), 3, 2) == (life.line.rules, life.line.instances, life.line.series)


def test_unknown_study_is_refused(rows: Rows) -> None:
    """
    A study that was never received is refused in words.
    """
    with pytest.raises(Refused, match=r"no study 1\.9 is known here"):
        rows.listing.study("1.9")


def test_history_of_an_instance(rows: Rows) -> None:
    """
    Every version of an instance is told, with what replaced it; none where it was never received.
    """
    old, new = arrival("1"), arrival("1", content="b")
    rows.receive(old, new)
    versions = rows.listing.instance("1.2.1.1.1")

    assert [(old.instance.id, new.instance.id), (new.instance.id, None)] == [
        (version["id"], version["superseded_by"]) for version in versions
    ]
    assert ["instance.conflict"] == [event["kind"] for event in versions[1]["events"]]
    assert () == rows.listing.instance("1.9")


def test_queue_counts_by_target(rows: Rows) -> None:
    """
    The queue tells how many jobs of each target stand where, and when the oldest that goes on was made.
    """
    rows.jobs_of()
    made = rows.clock.now()
    rows.clock.move(SECOND)
    rows.jobs_of(2)
    rows.jobs.end(rows.claim(), Event.DEFER, now=rows.clock.now(), reason="gone", due=rows.clock.now())
    (line,) = rows.listing.queue()

    assert ("x", {"deferred": 1, "pending": 2}, made, "gone") == (line.target, line.states, line.oldest, line.reason)


def test_events_are_read_once(rows: Rows) -> None:
    """
    Who reads on after the last number misses nothing and sees nothing twice.
    """
    rows.jobs_of(3)
    seen: list[int] = []
    while batch := rows.listing.events(after=seen[-1] if seen else 0, limit=2):
        seen += [event.id for event in batch]

    assert list(range(1, rows.listing.last_event() + 1)) == seen


def test_empty_ledger_has_empty_lists(ledger: Ledger) -> None:
    """
    Before anything came every list is empty.
    """
    listing = Listing(ledger)

    assert ((), (), (), (), 0) == (
        listing.studies().items, listing.jobs().items, listing.queue(), listing.events(), listing.last_event()
    )  # fmt: skip
    assert {} == listing.instances_received()
