"""The queue: made once, claimed under a lease, ended by whoever has it, moved by persons."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from rows import SPOOL, TO_X, Rows, arrival, series_of
from talaria.model.errors import Overtaken, Refused
from talaria.model.extensions import Outcome, Standing
from talaria.model.job import Event, Extent, Kind, Priority, State
from talaria.store.jobs import LEASE, LONGEST_WAIT, MOST_DEATHS, Claim, NewJob, make_job
from talaria.store.ledger import Ledger
from talaria.store.schema import events, jobs, outcomes, pauses
from talaria.testing import MovedClock

SECOND = timedelta(seconds=1)


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


def told(ledger: Ledger, job_id: int) -> list[str]:
    """What the event log has of a job."""
    with ledger.reading() as connection:
        found = connection.execute(sa.select(events.c.kind).where(events.c.job_id == job_id).order_by(events.c.id))
        return list(found.scalars())


def take(rows: Rows, **how: object) -> Claim | None:
    """Claim what is next, if anything is."""
    given = {"owner": "here/1/1", "spools": [SPOOL], "now": rows.clock.now(), "off_peak": True, **how}
    return rows.jobs.claim(Kind.DISPATCH, **given)  # type: ignore[arg-type]  # a test names its arguments


def set_columns(rows: Rows, job_id: int, **values: object) -> None:
    with rows.ledger.writing("test") as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(**values))


def order_of_claims(rows: Rows) -> list[int]:
    found = []
    while (claim := take(rows)) is not None:
        found.append(claim.job.id)
    return found


# -- claims --


def test_claim_takes_the_job_and_counts_the_attempt(rows: Rows) -> None:
    """
    A claimed job is active, has an owner and one more attempt, and its event says so.
    """
    (job_id,) = rows.jobs_of()
    claim = rows.claim()

    assert (job_id, State.ACTIVE, 1, "here/1/1") == (
        claim.job.id, claim.job.state, claim.job.attempt, claim.job.owner
    )  # fmt: skip
    assert (Extent(series_id=1, first=1, last=1),) == claim.extents
    assert ["job.made", "job.claim"] == told(rows.ledger, job_id)


def test_nothing_to_claim(rows: Rows) -> None:
    """
    Where nothing is due nothing is claimed.
    """
    assert None is take(rows)


def test_most_urgent_first_then_longest_due(rows: Rows) -> None:
    """
    Jobs are claimed by priority, then by when they became due, then in the order made.
    """
    a, b, c, d = rows.jobs_of(4)
    now = rows.clock.now()
    for job_id, priority, due in ((a, 1, now), (b, 1, now - SECOND), (c, 0, now), (d, 1, now)):
        set_columns(rows, job_id, priority=priority, due=due)

    assert [c, b, a, d] == order_of_claims(rows)


def test_job_is_not_claimed_before_it_is_due(rows: Rows) -> None:
    """
    A deferred job is left alone until it is due.
    """
    (job_id,) = rows.jobs_of()
    due = rows.clock.now() + 5 * SECOND
    rows.jobs.end(rows.claim(), Event.DEFER, now=rows.clock.now(), reason="gone", due=due)

    assert (None, due) == (take(rows), rows.jobs.next_due(Kind.DISPATCH))
    rows.clock.move(5 * SECOND)
    assert job_id == rows.claim().job.id


@pytest.mark.parametrize(
    ("how", "values"),
    [
        ({"spools": ["ANOTHER"]}, {}),
        ({"off_peak": False}, {"priority": int(Priority.OFFPEAK)}),
        ({"full": ["x"]}, {}),
        ({}, {"kind": "process", "target": None}),
    ],
    ids=["spool is not mounted", "not off-peak", "target is full", "of another kind"],
)
def test_job_is_left_to_others(rows: Rows, how: dict[str, object], values: dict[str, object]) -> None:
    """
    A worker leaves what it cannot or may not do now.
    """
    (job_id,) = rows.jobs_of()
    if values:
        set_columns(rows, job_id, **values)

    assert None is take(rows, **how)


def test_a_full_target_does_not_hide_the_others(rows: Rows) -> None:
    """
    While one target takes no more, deliveries to the others are claimed.
    """
    a, b = rows.jobs_of(2)
    set_columns(rows, b, target="y")

    claim = take(rows, full=["x"])
    assert claim is not None
    assert b == claim.job.id
    assert a == rows.claim().job.id


def test_two_claimers_in_threads_never_get_one_job(rows: Rows) -> None:
    """
    Of workers that claim at once each job goes to one.
    """
    made = rows.jobs_of(12, images=1)
    got: list[int] = []
    gate = threading.Barrier(3)

    def work(number: int) -> None:
        gate.wait(10)
        while (claim := take(rows, owner=f"here/{number}/1")) is not None:
            got.append(claim.job.id)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert made == sorted(got)


CLAIMER = """
import sys
from datetime import datetime
from talaria.model.job import Kind
from talaria.store.jobs import Jobs
from talaria.store.ledger import Ledger
jobs, now = Jobs(Ledger.open(sys.argv[1])), datetime.fromisoformat(sys.argv[2])
sys.stdin.readline()
while claim := jobs.claim(Kind.DISPATCH, owner=sys.argv[3], spools=["SPOOL"], now=now, off_peak=True):
    print(claim.job.id, flush=True)
"""


def test_two_claimers_in_processes_never_get_one_job(rows: Rows, ledger_url: str) -> None:
    """
    Of processes that claim at once each job goes to one.
    """
    made = rows.jobs_of(12, images=1)
    argv = [sys.executable, "-c", CLAIMER, ledger_url, rows.clock.now().isoformat()]
    children = [
        subprocess.Popen([*argv, f"here/{n}/1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    got = [child.communicate("go\n", timeout=60)[0].split() for child in children]

    assert made == sorted(int(word) for part in got for word in part)


def test_normal_job_that_waited_an_hour_longer_goes_first(rows: Rows) -> None:
    """
    Urgent jobs go first, but none that was made an hour after another: so an endless stream of them starves nothing.
    """
    a, b, c = rows.jobs_of(3)
    now = rows.clock.now()
    for job_id, priority, hours, target in ((a, 1, 2, "x"), (b, 0, 0, "y"), (c, 2, 5.5, "z")):
        set_columns(rows, job_id, priority=priority, due=now - timedelta(hours=hours), target=target)

    assert [a, c, b] == order_of_claims(rows)


@pytest.mark.parametrize(
    ("kind", "target", "left"),
    [("dispatch", "x", "y"), ("dispatch", "", None), ("drain", "", None), ("process", "", "x"), ("notify", "x", "x")],
)
def test_what_is_paused_is_left_alone(rows: Rows, kind: str, target: str, left: str | None) -> None:
    """
    A paused target is passed over; of a paused kind, and while the whole is drained, nothing is claimed.
    """
    _, b = rows.jobs_of(2)
    set_columns(rows, b, target="y", due=rows.clock.now() + SECOND)
    with rows.ledger.writing("test") as connection:
        connection.execute(
            pauses.insert().values(kind=kind, target=target, actor="p", reason="", since=rows.clock.now())
        )
    claim = take(rows)

    assert left == (claim.job.target if claim else None)


def test_process_jobs_have_no_target(rows: Rows) -> None:
    """
    Jobs without a target stand in line, too.
    """
    (job_id,) = rows.jobs_of()
    set_columns(rows, job_id, kind="process", target=None)
    claim = rows.claim(Kind.PROCESS)

    assert (job_id, None) == (claim.job.id, claim.job.target)


def test_deferred_jobs_become_ready_many_at_once(rows: Rows) -> None:
    """
    What became due is made ready in batches, however much it is, until there is something to claim.
    """
    (first,) = rows.jobs_of()
    due = rows.clock.now() + SECOND
    multiply(rows, first, 700, due=due, state="deferred", ready=False, target="full")
    set_columns(rows, first, due=due + SECOND, state="deferred", ready=False)
    rows.clock.move(2 * SECOND)
    claim = take(rows, full=["full"])

    assert first == (claim.job.id if claim else None)


@pytest.mark.parametrize("back", [timedelta(minutes=5), timedelta(days=3650)])
def test_clock_that_was_set_back_holds_up_nothing(rows: Rows, back: timedelta) -> None:
    """
    What waited, and what was ready, when the clock was set back is due now; and what was ready stays first in line.
    """
    ready, waiting = rows.jobs_of(2)
    set_columns(rows, waiting, due=rows.clock.now() + timedelta(minutes=9), state="deferred", ready=False)
    assert take(rows, full=["x"]) is None
    rows.clock.move(-back)

    assert [ready, waiting] == order_of_claims(rows)


def test_clock_that_was_set_back_while_nobody_looked(rows: Rows) -> None:
    """
    A worker that starts after the clock was set back finds what was written before.
    """
    (waiting,) = rows.jobs_of()
    set_columns(rows, waiting, due=rows.clock.now() + timedelta(minutes=9), state="deferred", ready=False)
    rows.clock.move(-timedelta(minutes=30))

    assert waiting == rows.claim().job.id


def test_job_that_another_is_about_to_take_is_passed_over(rows: Rows, ledger_url: str) -> None:
    """
    On PostgreSQL who comes second gets the next in line instead of waiting, or of nothing.
    """
    if ledger_url.startswith("sqlite"):
        return
    a, b = rows.jobs_of(2)
    with rows.ledger.writing("test") as connection:
        connection.execute(sa.select(jobs).where(jobs.c.id == a).with_for_update())
        claim = rows.claim()

    assert b == claim.job.id


def test_claim_is_told(rows: Rows) -> None:
    """
    Who asked for it is told of each claim, and of nothing else: there may be more for another lane.
    """
    rows.jobs_of(2)
    heard: list[int] = []
    rows.jobs.tell(lambda: heard.append(1))
    order_of_claims(rows)

    assert [1, 1] == heard


# -- cost --


def multiply(rows: Rows, job_id: int, count: int, **values: object) -> None:
    """So many more jobs like one, but for some of their columns."""
    with rows.ledger.writing("test") as connection:
        row = dict(connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()._mapping)
        row = {name: value for name, value in row.items() if name != "id"} | values
        connection.execute(jobs.insert(), [{**row, "key": f"{values.get('target')}:{n}"} for n in range(count)])


@pytest.fixture
def crowded(rows: Rows) -> Rows:
    """Ten thousand jobs are over, as many wait for their time, and as many for a target that takes no more."""
    (first,) = rows.jobs_of()
    later = rows.clock.now() + timedelta(minutes=9)
    multiply(rows, first, 10_000, state="done", ready=False, target="over")
    multiply(rows, first, 10_000, state="deferred", ready=False, due=later, target="away")
    multiply(rows, first, 10_000, target="full")
    set_columns(rows, first, state="cancelled", ready=False)
    if not rows.ledger.has_server:
        return rows
    with rows.ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE jobs")
    return rows


def statements(rows: Rows, act: Callable[[], object]) -> list[tuple[str, object]]:
    """What *act* asks of the database, with its parameters."""
    found: list[tuple[str, object]] = []

    def note(*given: object) -> None:
        found.append((str(given[2]), given[3]))

    sa.event.listen(rows.ledger.engine, "before_cursor_execute", note)
    act()
    sa.event.remove(rows.ledger.engine, "before_cursor_execute", note)
    return found


def plan_of(rows: Rows, statement: str, parameters: object) -> str:
    """How the database goes about it."""
    explain = "EXPLAIN" if rows.ledger.has_server else "EXPLAIN QUERY PLAN"
    with rows.ledger.reading() as connection:
        found = connection.exec_driver_sql(f"{explain} {statement}", parameters)  # type: ignore[arg-type]  # as it was
        return "\n".join(str(row[-1]) for row in found)


@pytest.mark.server
def test_look_and_claim_go_by_index(crowded: Rows) -> None:
    """
    Whatever is stored, waits, or stands in line for a full target: nothing reads the jobs one by one.
    """
    (last,) = crowded.jobs_of()
    set_columns(crowded, last, target="free")
    take(crowded, full=["full", "free"])  # the first look, and one each minute, sees whether the clock was set back

    def act() -> None:
        assert crowded.jobs.next_due(Kind.DISPATCH) is not None
        assert take(crowded, full=["full"]) is not None
        assert take(crowded, full=["full"]) is None

    asked = [(text, given) for text, given in statements(crowded, act) if "jobs" in text]
    plans = [plan_of(crowded, text, given) for text, given in asked]
    assert 4 <= len(asked) <= 10
    for plan in plans:
        assert "Seq Scan on jobs" not in plan
        assert not re.search(r"SCAN jobs(?! USING COVERING INDEX ix_jobs_(ready|waiting))", plan), plan
    used = "\n".join(plans)
    assert ("ix_jobs_ready" in used, "ix_jobs_waiting" in used) == (True, True)


@pytest.mark.server
def test_look_that_finds_nothing_is_one_cheap_read(crowded: Rows) -> None:
    """
    An idle look is one statement outside of any transaction, takes no lock, and about a millisecond.
    """
    take(crowded, full=["full"])
    asked = statements(crowded, lambda: take(crowded, full=["full"]))
    took = []
    for _ in range(50):
        began = time.perf_counter()
        take(crowded, full=["full"])
        took.append(time.perf_counter() - began)

    assert 1 == len(asked)
    assert min(took) < 0.004  # all of it, on a machine that does other things, too


def test_look_that_finds_nothing_does_not_wait_for_writers(rows: Rows) -> None:
    """
    While somebody writes, who finds nothing to do finds it at once.
    """
    with rows.ledger.writing("test"):
        began = time.monotonic()
        assert take(rows) is None
        assert rows.jobs.next_due(Kind.DISPATCH) is None

    assert time.monotonic() - began < 5


# -- leases --


def test_heartbeat_renews_the_lease(rows: Rows) -> None:
    """
    A job whose worker is heard of is not taken back.
    """
    claim = rows.jobs_of() and rows.claim()
    rows.clock.move(LEASE - SECOND)
    assert {claim.job.id} == rows.jobs.heartbeat([claim], now=rows.clock.now())
    rows.clock.move(LEASE - SECOND)

    assert 0 == rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: False)


def test_heartbeat_tells_what_was_taken_away(rows: Rows) -> None:
    """
    Of several claims those still ours are named; a cancelled job is not.
    """
    rows.jobs_of(2)
    kept, cancelled = rows.claim(), rows.claim()
    rows.jobs.act(cancelled.job.id, Event.CANCEL, actor="p", now=rows.clock.now())

    assert {kept.job.id} == rows.jobs.heartbeat([kept, cancelled], now=rows.clock.now())
    assert set() == rows.jobs.heartbeat([cancelled], now=rows.clock.now())
    assert set() == rows.jobs.heartbeat([], now=rows.clock.now())


def test_silent_worker_loses_its_job(rows: Rows) -> None:
    """
    A job whose worker was not heard of for the lease is due again at once, with the reason in words.
    """
    claim = rows.jobs_of() and rows.claim(owner="there/7/3")
    rows.clock.move(LEASE + SECOND)

    assert 1 == rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: False)
    job = rows.jobs.show(claim.job.id)
    assert (State.PENDING, 1, None, "taken up again: its worker there/7/3 was heard of no more") == (
        job.state, job.attempt, job.owner, job.reason
    )  # fmt: skip
    assert 2 == rows.claim().job.attempt


def test_dead_worker_loses_its_job_at_once(rows: Rows) -> None:
    """
    A job whose worker is known to be dead does not wait for the lease.
    """
    rows.jobs_of(2)
    dead, alive = rows.claim(owner="here/1/1"), rows.claim(owner="here/2/1")

    assert 1 == rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: owner == "here/1/1")
    assert (State.PENDING, State.ACTIVE) == tuple(rows.jobs.show(c.job.id).state for c in (dead, alive))


def test_living_worker_here_keeps_its_job_when_the_clock_is_set(rows: Rows) -> None:
    """
    A clock stepped forward takes nothing from a process of this host that lives; only one that hangs loses its job.
    """
    rows.jobs_of(2)
    rows.claim(owner="here/1/1"), rows.claim(owner="there/1/1")

    def expire() -> int:
        return rows.jobs.expire(
            now=rows.clock.now(), is_dead=lambda owner: False, is_here=lambda owner: owner.startswith("here/")
        )

    rows.clock.move(LEASE + 30 * SECOND)
    assert (1, 0) == (expire(), expire())
    rows.clock.move(9 * LEASE)
    assert 1 == expire()


def test_lease_begins_when_the_ledger_is_written(rows: Rows) -> None:
    """
    A lease is whole though its worker had to wait for the ledger since its step began.
    """
    rows.jobs_of()
    began = rows.clock.now()
    rows.clock.move(LEASE)
    claim = take(rows, now=began, clock=rows.clock.now)
    assert claim is not None
    rows.clock.move(LEASE - SECOND)
    assert 0 == rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: False)
    rows.jobs.heartbeat([claim], now=began, clock=rows.clock.now)
    rows.clock.move(LEASE - SECOND)

    assert 0 == rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: False)


def test_job_that_kills_its_workers_is_held(rows: Rows) -> None:
    """
    A job that ten workers died of is held for a person; released, it is tried as often again.
    """
    (job_id,) = rows.jobs_of()
    for _ in range(MOST_DEATHS):
        rows.claim()
        rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: True)
    held = rows.jobs.show(job_id)
    rows.clock.move(SECOND)
    rows.jobs.act(job_id, Event.RELEASE, actor="p", now=rows.clock.now())
    rows.claim()
    rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: True)

    assert (State.HELD, "10 workers died with it in hand; release it to try again") == (held.state, held.reason)
    assert State.PENDING == rows.jobs.show(job_id).state


# -- ends --


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (Event.FINISH, State.DONE),
        (Event.DEFER, State.DEFERRED),
        (Event.FAIL, State.FAILED),
        (Event.BREAK, State.HELD),
        (Event.YIELD, State.PENDING),
    ],
)
def test_end_of_an_attempt(rows: Rows, event: Event, state: State) -> None:
    """
    An attempt ends in the state that its event leads to, with its reason, and belongs to nobody.
    """
    claim = rows.jobs_of() and rows.claim()
    rows.jobs.end(claim, event, now=rows.clock.now(), reason="so it was")
    job = rows.jobs.show(claim.job.id)

    assert (state, "so it was", None) == (job.state, job.reason, job.owner)
    assert f"job.{event}" == told(rows.ledger, claim.job.id)[-1]


def test_yield_does_not_count(rows: Rows) -> None:
    """
    An attempt that was given back in good order does not count.
    """
    claim = rows.jobs_of() and rows.claim()
    rows.jobs.end(claim, Event.YIELD, now=rows.clock.now())

    assert 0 == rows.jobs.show(claim.job.id).attempt


def test_reason_from_outside_is_made_storable(rows: Rows) -> None:
    """
    A reason with characters that a database cannot keep is kept without them.
    """
    claim = rows.jobs_of() and rows.claim()
    rows.jobs.end(claim, Event.FAIL, now=rows.clock.now(), reason="far\0 end \ud800")

    assert "far end ?" == rows.jobs.show(claim.job.id).reason


@pytest.mark.parametrize("event", [Event.HOLD, Event.CANCEL])
def test_end_is_fenced_by_what_a_person_did(rows: Rows, event: Event) -> None:
    """
    A worker whose job was held or cancelled meanwhile changes nothing any more.
    """
    claim = rows.jobs_of() and rows.claim()
    rows.jobs.act(claim.job.id, event, actor="p", now=rows.clock.now())
    before = rows.jobs.show(claim.job.id)

    with pytest.raises(Overtaken):
        rows.jobs.end(claim, Event.FINISH, now=rows.clock.now())
    assert before == rows.jobs.show(claim.job.id)


def test_end_is_fenced_by_the_next_claim(rows: Rows) -> None:
    """
    A worker that lost its lease cannot end the attempt of the one that has the job now, not even the same owner's.
    """
    stale = rows.jobs_of() and rows.claim()
    rows.jobs.expire(now=rows.clock.now(), is_dead=lambda owner: True)
    rows.claim()

    with pytest.raises(Overtaken):
        rows.jobs.end(stale, Event.FAIL, now=rows.clock.now())
    assert State.ACTIVE == rows.jobs.show(stale.job.id).state


def test_follow_ups_are_made_with_the_end_or_not_at_all(rows: Rows) -> None:
    """
    What follows a job is made in the transaction that ends it: when that breaks, nothing has happened.
    """
    claim = rows.jobs_of() and rows.claim()
    new = NewJob(kind=Kind.DISPATCH, rule="r", revision=1, extents=claim.extents, target="y")

    def breaks(connection: sa.Connection) -> Collection[NewJob]:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        rows.jobs.end(claim, Event.FINISH, now=rows.clock.now(), follow_ups=breaks)  # type: ignore[arg-type]  # no job
    assert State.ACTIVE == rows.jobs.show(claim.job.id).state
    (made,) = rows.jobs.end(claim, Event.FINISH, now=rows.clock.now(), follow_ups=lambda connection: [new])
    assert ("y", State.PENDING) == (rows.jobs.show(made).target, rows.jobs.show(made).state)


def test_same_thing_is_made_once(rows: Rows) -> None:
    """
    A job that was asked for already is not made again.
    """
    (job_id,) = rows.jobs_of()
    job = rows.jobs.show(job_id)
    new = NewJob(
        kind=Kind.DISPATCH, rule="other", revision=9, extents=(Extent(series_id=1, first=1, last=1),), target="x"
    )
    with rows.ledger.writing("test") as connection:
        again = make_job(
            connection, new, study_id=job.study_id, series_id=1, case_id=job.case_id, spool=SPOOL, now=rows.clock.now()
        )

    assert job_id == again
    assert ["job.made"] == told(rows.ledger, job_id)


def test_study_asks_beside_its_series(rows: Rows) -> None:
    """
    What a series' case asked and a person cancelled is a job of its own when the study's case asks for it.
    """
    (job_id,) = rows.jobs_of()
    job = rows.jobs.act(job_id, Event.CANCEL, actor="p", now=rows.clock.now())
    new = NewJob(kind=Kind.DISPATCH, rule="s", revision=1, extents=(Extent(series_id=1, first=1, last=1),), target="x")
    with rows.ledger.writing("test") as connection:
        made = make_job(
            connection, new, study_id=job.study_id, series_id=0, case_id=job.case_id, spool=SPOOL, now=rows.clock.now()
        )

    assert job_id != made


# -- persons --


def test_hold_and_release(rows: Rows) -> None:
    """
    A held job says by whom, is not claimed, and goes on when released.
    """
    (job_id,) = rows.jobs_of()
    held = rows.jobs.act(job_id, Event.HOLD, actor="local:eve", now=rows.clock.now())

    assert (State.HELD, "hold by local:eve") == (held.state, held.reason)
    assert None is take(rows)
    released = rows.jobs.act(job_id, Event.RELEASE, actor="local:eve", now=rows.clock.now())
    assert (State.PENDING, "") == (released.state, released.reason)
    assert job_id == rows.claim().job.id


def test_retry_brings_a_deferred_job_forward(rows: Rows) -> None:
    """
    A deferred job that a person retries is due now, with new patience.
    """
    rows.jobs_of()
    rows.jobs.end(rows.claim(), Event.DEFER, now=rows.clock.now(), due=rows.clock.now() + timedelta(hours=1))
    rows.clock.move(SECOND)
    rows.jobs.act(1, Event.RETRY, actor="p", now=rows.clock.now())

    assert rows.clock.now() == rows.claim().since


def test_refused_act_changes_nothing(rows: Rows) -> None:
    """
    An act that the state does not allow is refused with what is possible.
    """
    (job_id,) = rows.jobs_of()
    with pytest.raises(Refused, match=f"job {job_id}: a job that is pending cannot release; possible now: cancel, "):
        rows.jobs.act(job_id, Event.RELEASE, actor="p", now=rows.clock.now())

    assert ["job.made"] == told(rows.ledger, job_id)


@pytest.mark.parametrize("number", [99, 0, -1, 10**30])
def test_unknown_job_is_refused(rows: Rows, number: int) -> None:
    """
    A number that no job has, however large, is refused in words.
    """
    with pytest.raises(Refused, match="there is no job"):
        rows.jobs.show(number)
    with pytest.raises(Refused, match="there is no job"):
        rows.jobs.act(number, Event.HOLD, actor="p", now=rows.clock.now())


def standings_after(rows: Rows, event: Event) -> list[str]:
    """Of a failed delivery of which one instance was sent, one warned of and one refused."""
    (job_id,) = rows.jobs_of()
    claim = rows.claim()
    delivery, *_ = rows.deliveries.prepare(claim, locate=Path)
    said = (Standing.SENT, Standing.WARNED, Standing.FAILED)
    found = [Outcome(instance_id=p.instance_id, standing=s) for p, s in zip(delivery.parcels, said, strict=True)]
    rows.deliveries.record(delivery, found, now=rows.clock.now(), seconds=1, size_bytes=1)
    rows.jobs.end(claim, Event.FAIL, now=rows.clock.now())
    rows.jobs.act(job_id, event, actor="p", now=rows.clock.now())
    with rows.ledger.reading() as connection:
        return list(connection.execute(sa.select(outcomes.c.standing).order_by(outcomes.c.instance_id)).scalars())


def test_retry_offers_again_what_was_refused(rows: Rows) -> None:
    """
    A retry keeps what is there, and offers again what the target refused.
    """
    assert ["sent", "warned", "pending"] == standings_after(rows, Event.RETRY)


def test_restart_delivers_all_again(rows: Rows) -> None:
    """
    A restart forgets all outcomes, and the delivery counts from nothing.
    """
    assert ["pending"] * 3 == standings_after(rows, Event.RESTART)
    assert [0] == [line.sent for line in rows.listing.deliveries().items]


def test_job_is_about_current_instances_alone(rows: Rows) -> None:
    """
    A delivery counts the instances of its portions that are in use: not those replaced, and not the late.
    """
    rows.receive(*series_of(3), arrival("1", content="b"))
    rows.settle()
    rows.receive(arrival("9"))

    assert [3] == [line.total for line in rows.listing.deliveries().items]
    assert TO_X.startswith(rows.listing.deliveries().items[0].rule)


def test_wait_longer_than_any_is_cut_and_not_taken_for_a_clock_set_back(rows: Rows) -> None:
    """
    A job whose target lets it wait for days is not due at once: it waits for as long as anything may.
    """
    rows.jobs_of()
    claim = rows.claim()
    due = rows.clock.now() + 3 * LONGEST_WAIT
    rows.jobs.end(claim, Event.DEFER, now=rows.clock.now(), reason="away", due=due)
    rows.clock.move(timedelta(minutes=2))
    early = rows.jobs.claim(
        Kind.DISPATCH, owner="here/1/1", spools=[SPOOL], now=rows.clock.now(), off_peak=True
    )  # fmt: skip
    rows.clock.move(LONGEST_WAIT)

    assert early is None
    assert claim.job.id == rows.claim().job.id
