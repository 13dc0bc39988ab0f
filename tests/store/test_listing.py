"""What people look at, a page at a time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rows import Rows, arrival, series_of
from talaria.model.errors import Refused
from talaria.model.extensions import Outcome, Standing
from talaria.model.job import Event, Kind
from talaria.store.arrivals import Arrival
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing, Page, _cursor
from talaria.store.selection import Selection
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


@pytest.mark.parametrize("name", ["1.2.3", "1.2.3.1", "P1"])
def test_studies_are_found_by_name(rows: Rows, name: str) -> None:
    """
    A study is found by its UID, by that of a series, and by the patient's ID; by nothing that only looks alike.
    """
    for number in range(5):
        rows.receive(arrival("1", study=str(number)))
    found = walked(lambda **page: rows.listing.studies(find=name, **page), limit=2)

    assert (5 if name == "P1" else 1) == len(found)
    assert () == rows.listing.studies(find=name[:-1] + "x").items


@pytest.mark.parametrize("rare", [0, 5000])
def test_studies_of_a_state_are_all_found(rows: Rows, monkeypatch: pytest.MonkeyPatch, rare: int) -> None:
    """
    Whether a state is rare or common, every study in it is found once, with pages of any size.
    """
    monkeypatch.setattr("talaria.store.listing._RARE", rare)
    monkeypatch.setattr("talaria.store.listing._STUDY_WINDOWS", (2, 1))
    rows.jobs_of(9)
    for event in (Event.FAIL, Event.FINISH, Event.FINISH, Event.FAIL):
        rows.jobs.end(rows.claim(), event, now=rows.clock.now())
    rows.receive(arrival("1", study="77"))

    def count(state: str) -> int:
        return len(walked(lambda **page: rows.listing.studies(state=state, **page), limit=2))

    assert {"failed": 2, "done": 2, "pending": 5, "receiving": 1, "held": 0} == {
        state: count(state) for state in ("failed", "done", "pending", "receiving", "held")
    }


def test_several_conditions_are_walked_in_windows(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    However small the window, a walk finds all that fit, once, the newest first; pages in between may be empty.
    """
    monkeypatch.setattr("talaria.store.listing._WINDOWS", (2, 1))
    rows.jobs_of(9)
    for _ in range(2):
        rows.jobs.end(rows.claim(), Event.FINISH, now=rows.clock.now())
    chosen = Selection(state="done", rule="to-x", calling_ae="CT1")

    assert [2, 1] == [job.id for job in walked(lambda **p: rows.listing.jobs(selection=chosen, **p), limit=5)]
    assert [2, 1] == [
        line.job_id for line in walked(lambda **p: rows.listing.deliveries(state="done", target="x", **p), limit=5)
    ]


def test_jobs_of_a_time(rows: Rows) -> None:
    """
    Jobs made in a span of time are found by it, both ends as `Selection` says.
    """
    made = []
    for _ in range(6):
        rows.jobs_of()
        made.append(rows.clock.now())
        rows.clock.move(timedelta(days=2))

    def found(**given: Any) -> list[int]:
        return [job.id for job in rows.listing.jobs(selection=Selection(**given)).items]

    assert [6, 5, 4] == found(since=made[3])
    assert [3, 2, 1] == found(until=made[3])
    assert [4, 3] == found(since=made[2], until=made[4])
    assert [] == found(since=rows.clock.now())
    assert [3] == found(study_uid=rows.jobs.show(3).study_instance_uid)
    assert [5, 2] == found(ids=(2, 5))
    assert [4] == found(series_uid=rows.jobs.show(4).series_instance_uid)


def test_life_of_an_instance_is_one_dated_list(rows: Rows) -> None:
    """
    From its reception to its removal everything is told in order, with rule, job and target.
    """
    rows.receive(arrival("1"))
    rows.clock.move(SECOND)
    rows.receive(arrival("1"), arrival("1"))
    rows.settle()
    claim = rows.claim()
    delivery = rows.deliveries.prepare(claim, locate=Path).delivery
    sent = Outcome(instance_id=delivery.parcels[0].instance_id, standing=Standing.SENT, status=0)
    rows.clock.move(SECOND)
    rows.deliveries.record(delivery, [sent], now=rows.clock.now(), seconds=1, size_bytes=1)
    rows.clock.move(SECOND)
    rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    rows.clock.move(SECOND)
    (candidate,) = rows.cleaning.candidates(spool="SPOOL", before=rows.clock.now())[0]
    rows.cleaning.mark(candidate, reason="retention is over", now=rows.clock.now())
    (version,) = rows.listing.instance("1.2.1.1.1")
    kinds = [line["kind"] for line in version["life"]]

    assert ["instance.received", "instance.repeated"] == kinds[:2]
    assert kinds.index("job.made") < kinds.index("instance.sent") < kinds.index("job.finish")
    assert {"series.cleaned", "instance.removed"} == set(kinds[-2:])
    assert version["life"] == sorted(version["life"], key=lambda line: line["time"])
    assert (2, "x", ["to-x"], ["done"]) == (
        version["repeats"], version["deliveries"][0]["target"], [case["rule"] for case in version["cases"]],
        [job["state"] for job in version["jobs"]],
    )  # fmt: skip


def test_replaced_version_has_no_part_in_what_came_after(rows: Rows) -> None:
    """
    A version that was replaced before the rules were asked has no job; the one in its place has.
    """
    rows.receive(arrival("1"))
    rows.clock.move(SECOND)
    rows.receive(replace_received(arrival("1", content="b"), rows))
    rows.settle()
    old, new = rows.listing.instance("1.2.1.1.1")

    assert ([], [1]) == tuple([job["id"] for job in version["jobs"]] for version in (old, new))


def replace_received(one: Arrival, rows: Rows) -> Arrival:
    return replace(one, instance=replace(one.instance, received=rows.clock.now()))
