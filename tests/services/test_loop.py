"""How a worker is run: what ends a job and how, who wakes a lane, and who takes a job away."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from rows import Rows
from talaria.model.errors import (
    ConfigError,
    Congested,
    LedgerAway,
    NoRoom,
    Overtaken,
    Permanent,
    Refused,
    Transient,
)
from talaria.model.extensions import Stopped
from talaria.model.job import Event, Job, Kind, Patience, State
from talaria.services.loop import Books, Done, Heart, Loop, Pulse, drain, guarded, perform, told
from talaria.store.jobs import LEASE, Claim, NewJob
from talaria.store.journal import Journal
from talaria.store.ledger import Ledger, Subject, write_event
from talaria.testing import MovedClock

SECOND = timedelta(seconds=1)
PATIENCE = Patience(first=5 * SECOND, most=timedelta(minutes=10), budget=timedelta(hours=72))


@pytest.fixture
def rows(ledger: Ledger, clock: MovedClock) -> Rows:
    return Rows(ledger, clock)


def heart_of(rows: Rows, folder: Path, *, host: str) -> Heart:
    """The heart of a process of some host, which keeps its journal in a folder."""
    books = Books(rows.ledger, Journal(folder, clock=rows.clock.now))
    return Heart(rows.jobs, books=books, host=host, owner=f"{host}/1/1", clock=rows.clock.now)


@pytest.fixture
def heart(rows: Rows, tmp_path: Path) -> Heart:
    return heart_of(rows, tmp_path / "journal", host="here")


def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        threading.Event().wait(0.005)


# -- guarded --


def test_guarded_tells_what_was_raised() -> None:
    """
    What the work raised is given back; where it went well there is nothing.
    """
    bug = KeyError("x")

    def work() -> None:
        raise bug

    assert (bug, None) == (guarded(work), guarded(lambda: 1))


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_guarded_does_not_hold_up_the_end(end: type[BaseException]) -> None:
    """
    What ends the process ends it.
    """

    def work() -> None:
        raise end

    with pytest.raises(end):
        guarded(work)


def test_bug_is_told_without_its_values() -> None:
    """
    A bug is told by its place and type, never by its text: that may name a patient.
    """

    def work() -> None:
        raise ValueError("ZZPHI^SENTINEL")

    bug = guarded(work)
    assert bug is not None
    assert "ZZPHI" not in told(bug)
    assert told(bug).startswith("ValueError at ")
    assert "test_loop.py:" in told(bug)


# -- perform --


def performed(rows: Rows, heart: Heart, work: Callable[[Pulse], Done], *, after: timedelta = timedelta(0)) -> Job:
    """A job on which *work* was done, claimed so long after it was made."""
    (job_id,) = rows.jobs_of()
    rows.clock.move(after)
    perform(rows.claim(), work, jobs=rows.jobs, heart=heart, patience=PATIENCE, clock=rows.clock.now)
    return rows.jobs.show(job_id)


def raising(error: BaseException) -> Callable[[Pulse], Done]:
    def work(pulse: Pulse) -> Done:
        raise error

    return work


def test_done_finishes(rows: Rows, heart: Heart) -> None:
    """
    Work that comes to its end finishes the job.
    """
    job = performed(rows, heart, lambda pulse: Done())

    assert (State.DONE, "", 1) == (job.state, job.reason, job.attempt)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Transient("target 'x': gone"), State.DEFERRED),
        (NoRoom("the spool is full"), State.DEFERRED),
        (LedgerAway("ledger: away"), State.DEFERRED),
        (Permanent("target 'x': never"), State.FAILED),
        (Refused("not in this state"), State.FAILED),
        (ConfigError("target 'x': kind sftp is not installed"), State.FAILED),
    ],
)
def test_error_raised_on_purpose_is_the_reason(rows: Rows, heart: Heart, error: Exception, state: State) -> None:
    """
    What may pass defers the job, what will not fails it; the error's text is the reason, to the letter.
    """
    job = performed(rows, heart, raising(error))

    assert (state, str(error)) == (job.state, job.reason)


def test_deferred_job_waits_as_long_as_it_has_waited(rows: Rows, heart: Heart) -> None:
    """
    A deferred job is due after a time between three quarters of its age and its age.
    """
    job = performed(rows, heart, raising(Transient("gone")), after=40 * SECOND)

    assert 30 * SECOND <= job.due - rows.clock.now() <= 40 * SECOND


def test_far_end_may_ask_for_more_patience(rows: Rows, heart: Heart) -> None:
    """
    A far end that says when to come back is believed, up to a day.
    """
    asked = performed(rows, heart, raising(Congested("busy", retry_after=timedelta(hours=2))))
    endless = performed(rows, heart, raising(Congested("busy", retry_after=timedelta(days=900))))

    assert rows.clock.now() - asked.updated + timedelta(hours=2) >= asked.due - asked.updated >= timedelta(hours=2)
    assert timedelta(days=1) == endless.due - endless.updated


def test_patience_ends(rows: Rows, heart: Heart) -> None:
    """
    A job that is older than its budget fails with its last reason, and says for how long it was tried.
    """
    job = performed(rows, heart, raising(Transient("target 'x': gone")), after=PATIENCE.budget)
    for _ in range(4):  # so often it is tried at least
        rows.clock.move(PATIENCE.most)
        again = raising(Transient("target 'x': gone"))
        perform(rows.claim(), again, jobs=rows.jobs, heart=heart, patience=PATIENCE, clock=rows.clock.now)
    job = rows.jobs.show(job.id)

    assert (State.FAILED, "target 'x': gone (given up after 72.7 h)") == (job.state, job.reason)


@pytest.mark.parametrize("error", [NoRoom("full"), LedgerAway("away")])
def test_what_is_wrong_here_never_ends_patience(rows: Rows, heart: Heart, error: Exception) -> None:
    """
    No job fails because our own disk was full or our ledger away, however long.
    """
    assert State.DEFERRED is performed(rows, heart, raising(error), after=10 * PATIENCE.budget).state


def test_retry_renews_patience(rows: Rows, heart: Heart) -> None:
    """
    A failed job that a person retries has its whole budget again.
    """
    failed = performed(rows, heart, raising(Transient("gone")), after=PATIENCE.budget)
    rows.jobs.act(failed.id, Event.RETRY, actor="p", now=rows.clock.now())
    perform(
        rows.claim(), raising(Transient("gone")), jobs=rows.jobs, heart=heart, patience=PATIENCE, clock=rows.clock.now
    )

    assert State.DEFERRED is rows.jobs.show(failed.id).state


def test_stopped_job_is_given_back(rows: Rows, heart: Heart) -> None:
    """
    A job whose service stops is due again at once, says so, and the attempt does not count.
    """
    heart.stopping.set()
    job = performed(rows, heart, raising(Stopped()))

    assert (State.PENDING, 0, "its service was stopped; goes on when it is back") == (
        job.state, job.attempt, job.reason
    )  # fmt: skip


def test_plug_that_stops_by_itself_has_a_bug(rows: Rows, heart: Heart) -> None:
    """
    A job that is given back though nobody asked for it is held: it would be taken again at once, for ever.
    """
    job = performed(rows, heart, raising(Stopped()))

    assert (State.HELD, 1) == (job.state, job.attempt)
    assert job.reason.startswith("a bug stopped it: Stopped at ")


def test_bug_holds_the_job(rows: Rows, heart: Heart) -> None:
    """
    Anything unexpected holds the job with the bug's place, and without its text.
    """
    job = performed(rows, heart, raising(ZeroDivisionError("ZZPHI^SENTINEL")))

    assert State.HELD is job.state
    assert job.reason.startswith("a bug stopped it: ZeroDivisionError at ")
    assert "ZZPHI" not in job.reason


def test_follow_ups_are_made(rows: Rows, heart: Heart) -> None:
    """
    What follows a job is made as it ends.
    """

    def follow(connection: sa.Connection) -> Sequence[NewJob]:
        return [NewJob(kind=Kind.DISPATCH, rule="r", revision=1, extents=claim.extents, target="y")]

    rows.jobs_of()
    claim = rows.claim()
    perform(
        claim, lambda pulse: Done(follow_ups=follow), jobs=rows.jobs, heart=heart, patience=PATIENCE,
        clock=rows.clock.now,
    )  # fmt: skip

    assert [("y", State.PENDING), ("x", State.DONE)] == [(j.target, j.state) for j in rows.listing.jobs().items]


def test_bug_in_follow_ups_holds_the_job(rows: Rows, heart: Heart) -> None:
    """
    A job whose end cannot be written as it is does not come back for ever: it is held.
    """

    def broken(connection: sa.Connection) -> Sequence[NewJob]:
        raise IndexError

    job = performed(rows, heart, lambda pulse: Done(follow_ups=broken))

    assert State.HELD is job.state
    assert job.reason.startswith("a bug stopped it: IndexError at ")


def test_end_is_written_when_the_ledger_is_back(rows: Rows, heart: Heart) -> None:
    """
    What ended while the ledger was away is written when it is back: the work is not done again.
    """
    away = iter([LedgerAway("away")])

    def follow(connection: sa.Connection) -> Sequence[NewJob]:
        for error in away:
            raise error
        return ()

    assert State.DONE is performed(rows, heart, lambda pulse: Done(follow_ups=follow)).state


def test_job_taken_away_is_left_alone(rows: Rows, heart: Heart) -> None:
    """
    Work that ends after a person cancelled the job changes nothing.
    """

    def work(pulse: Pulse) -> Done:
        rows.jobs.act(pulse.claim.job.id, Event.CANCEL, actor="p", now=rows.clock.now())
        return Done()

    assert State.CANCELLED is performed(rows, heart, work).state


# -- the heart --


def test_heart_keeps_what_is_worked_on(rows: Rows, tmp_path: Path) -> None:
    """
    However long the work takes, its job is not taken away while the heart beats.
    """
    heart = heart_of(rows, tmp_path, host="elsewhere")

    def work(pulse: Pulse) -> Done:
        for _ in range(20):
            rows.clock.move(LEASE / 5)
            heart.beat()
            heart.expire()
        assert not pulse()
        return Done()

    assert State.DONE is performed(rows, heart, work).state


@pytest.mark.parametrize("event", [Event.CANCEL, Event.HOLD])
def test_heart_loses_a_job_that_a_person_stopped(rows: Rows, heart: Heart, event: Event) -> None:
    """
    Whoever works on a job that is cancelled or held is told at the next beat.
    """
    seen: list[bool] = []

    def work(pulse: Pulse) -> Done:
        rows.jobs.act(pulse.claim.job.id, event, actor="p", now=rows.clock.now())
        seen.append(pulse())
        heart.beat()
        seen.append(pulse() and pulse.is_lost)
        raise Stopped

    job = performed(rows, heart, work)

    assert [False, True] == seen
    assert job.state in {State.CANCELLED, State.HELD}


def test_heart_tells_the_first_of_two_that_hold_a_job(rows: Rows, heart: Heart) -> None:
    """
    A job that was held, released and claimed again here has two at work: the first gives up, the second goes on.
    """
    (job_id,) = rows.jobs_of()
    first = rows.claim()
    with heart.holding(first) as old:
        rows.jobs.act(job_id, Event.HOLD, actor="p", now=rows.clock.now())
        rows.jobs.act(job_id, Event.RELEASE, actor="p", now=rows.clock.now())
        with heart.holding(rows.claim()) as new:
            heart.beat()

            assert (True, False) == (old.is_lost, new.is_lost)


def test_heart_takes_back_what_the_dead_left(rows: Rows, heart: Heart) -> None:
    """
    A job of a process of this host that runs no more is due again at once.
    """
    (job_id,) = rows.jobs_of()
    rows.claim(owner="here/999999999/1")
    heart.expire()

    assert State.PENDING is rows.jobs.show(job_id).state


def test_stopping_is_a_pulse(rows: Rows, heart: Heart) -> None:
    """
    Whoever works is told when the service stops, without any beat.
    """
    rows.jobs_of()
    with heart.holding(rows.claim()) as pulse:
        heart.stopping.set()

        assert (True, False) == (pulse(), pulse.is_lost)


# -- the loop --


class Scripted:
    """A worker that does what the test says."""

    name = "scripted"

    def __init__(self, *, lanes: int = 1) -> None:
        self.lanes = lanes
        self.todo: list[Callable[[], bool]] = []
        self.steps = 0
        self.busy = 0
        self.most = 0
        self.gate = threading.Event()
        self._lock = threading.Lock()

    def step(self, now: object) -> bool:
        with self._lock:
            self.steps += 1
            act = self.todo.pop(0) if self.todo else None
        return act() if act else False

    def block(self) -> bool:
        """Be busy until the gate opens."""
        with self._lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        self.gate.wait(30)
        with self._lock:
            self.busy -= 1
        return True

    def idle(self, now: object) -> timedelta:
        return timedelta(hours=1)


@pytest.fixture
def run(ledger: Ledger) -> Iterator[Callable[[Scripted], Loop]]:
    """Starts workers, and stops them in the end."""
    loops: list[tuple[Scripted, Loop]] = []

    def start(worker: Scripted) -> Loop:
        loop = Loop(worker, ledger=ledger)
        loops.append((worker, loop))
        loop.start()
        return loop

    yield start
    for worker, loop in loops:
        worker.gate.set()
        loop.stop()


def raises(error: Exception) -> Callable[[], bool]:
    def act() -> bool:
        raise error

    return act


Start = Callable[[Scripted], Loop]


def test_loop_steps_while_there_is_more(run: Start) -> None:
    """
    A lane goes on without a pause while a step says that there may be more.
    """
    worker = Scripted()
    worker.todo = [lambda: True] * 500
    run(worker)

    until(lambda: worker.steps >= 501)


@pytest.mark.parametrize("error", [KeyError("a bug"), LedgerAway("away"), Overtaken("by another")])
def test_loop_outlives_a_bug(run: Start, error: Exception) -> None:
    """
    A bug in a step, or the ledger's absence, does not end the lane.
    """
    worker = Scripted()
    worker.todo = [raises(error), lambda: False]
    run(worker)

    until(lambda: worker.steps >= 2)


def test_news_of_another_process_wake_the_loop(run: Start, ledger: Ledger, ledger_url: str) -> None:
    """
    An idle lane looks again within moments when another connection commits work, on both databases.
    """
    worker = Scripted()
    run(worker)
    until(lambda: worker.steps >= 2)  # the first look, and that when it began to listen
    other = Ledger.open(ledger_url)
    threading.Event().wait(0.2)
    began, before = time.monotonic(), worker.steps
    with other.writing("test") as connection:
        write_event(connection, "news", now=MovedClock().now(), subject=Subject())
        Ledger.announce(connection, "dispatch")
    until(lambda: worker.steps > before)

    assert time.monotonic() - began < 1
    other.close()


def test_loop_listens_again_when_its_connection_was_killed(run: Start, ledger: Ledger, ledger_url: str) -> None:
    """
    On PostgreSQL the connection that listens may be ended: the loop makes another, looks, and hears again.
    """
    if not ledger.has_server:
        return
    worker = Scripted()
    run(worker)
    until(lambda: worker.steps >= 2)
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname ="
            " current_database()"
        )
    until(lambda: listeners(ledger) == 1)
    before = worker.steps
    with ledger.writing("test") as connection:
        Ledger.announce(connection, "dispatch")

    until(lambda: worker.steps > before)


def listeners(ledger: Ledger) -> int:
    """How many connections listen."""
    with ledger.glancing() as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = current_database()"
        )
        return int(found.scalar_one())


@pytest.mark.slow
def test_news_wake_one_lane(run: Start) -> None:
    """
    Of many idle lanes one looks when there are news, and one when it is time to: an idle service costs little.
    """
    worker = Scripted(lanes=16)
    loop = run(worker)
    until(lambda: worker.steps >= 17)
    threading.Event().wait(0.3)
    before = worker.steps
    loop.wake()
    threading.Event().wait(0.5)
    woken = worker.steps - before
    threading.Event().wait(4.2)

    assert 1 <= woken <= 2
    assert 2 <= worker.steps - before <= 6


def test_lane_that_finds_work_wakes_the_next(run: Start) -> None:
    """
    Where there is work for eight lanes one piece of news brings all of them to it: each says so when it begins.
    """
    worker = Scripted(lanes=8)
    loop = run(worker)
    until(lambda: worker.steps >= 8)
    threading.Event().wait(0.3)

    def act() -> bool:
        loop.wake()
        return worker.block()

    worker.todo = [act] * 8
    began = time.monotonic()
    loop.wake()
    until(lambda: worker.busy == 8)

    assert time.monotonic() - began < 1.5


def test_lane_with_more_to_do_wakes_the_next(run: Start) -> None:
    """
    A lane whose step says "more" has another look while it goes on itself.
    """
    worker = Scripted(lanes=2)
    loop = run(worker)
    until(lambda: worker.steps >= 2)
    threading.Event().wait(0.3)
    worker.todo = [lambda: True, worker.block, worker.block]
    began = time.monotonic()
    loop.wake()
    until(lambda: worker.busy == 2)

    assert time.monotonic() - began < 1.5


@pytest.mark.slow
def test_ledger_that_is_away_is_tried_by_one_lane_and_ever_less_often(run: Start) -> None:
    """
    A dozen lanes do not storm a database that is away: one tries, after a second at first, then more slowly.
    """
    worker = Scripted(lanes=12)
    worker.todo = [raises(LedgerAway("away"))] * 200
    loop = run(worker)
    until(lambda: worker.steps >= 12)
    loop.wake()
    threading.Event().wait(5)

    assert 14 <= worker.steps <= 19
    worker.todo = []


def test_wake_is_not_lost(run: Start) -> None:
    """
    News that comes while a step runs makes the lane look again after it.
    """
    worker = Scripted()
    loops: list[Loop] = []

    def act() -> bool:
        until(lambda: bool(loops))
        loops[0].wake()
        return False

    worker.todo = [act]
    began = time.monotonic()
    loops.append(run(worker))
    until(lambda: worker.steps >= 2)

    assert time.monotonic() - began < 1.5


def test_lanes_follow_the_worker(run: Start) -> None:
    """
    As many steps run at once as the worker has lanes; more when it gets more, fewer when it gets fewer.
    """
    worker = Scripted(lanes=2)
    worker.todo = [worker.block] * 50
    loop = run(worker)
    until(lambda: worker.busy == 2)
    worker.lanes = 5
    until(lambda: worker.busy == 5)
    worker.lanes, worker.todo = 1, []
    worker.gate.set()
    until(lambda: worker.busy == 0)
    worker.gate.clear()
    worker.most, worker.todo = 0, [worker.block] * 10
    loop.wake()
    until(lambda: worker.busy == 1)

    assert 1 == worker.most


def test_stop_is_prompt(ledger: Ledger) -> None:
    """
    An idle loop stops at once, however long it might have napped.
    """
    worker = Scripted(lanes=8)
    loop = Loop(worker, ledger=ledger)
    loop.start()
    until(lambda: worker.steps >= 8)
    began = time.monotonic()
    loop.stop()
    steps = worker.steps

    assert time.monotonic() - began < 1
    loop.wake()
    assert steps == worker.steps


def test_stop_waits_for_the_step_under_way(ledger: Ledger) -> None:
    """
    A step under way is let come to its end.
    """
    worker = Scripted()
    worker.todo = [worker.block]
    loop = Loop(worker, ledger=ledger)
    loop.start()
    until(lambda: worker.busy == 1)
    stopper = threading.Thread(target=loop.stop)
    stopper.start()
    stopper.join(0.2)
    assert stopper.is_alive()
    worker.gate.set()
    stopper.join(10)

    assert (False, 0) == (stopper.is_alive(), worker.busy)


class Moody(Scripted):
    """A worker whose number of lanes cannot always be told."""

    def __init__(self) -> None:
        self.is_moody = False
        super().__init__()

    @property
    def lanes(self) -> int:
        if self.is_moody:
            raise KeyError("Doe^Jane")
        return self._lanes

    @lanes.setter
    def lanes(self, count: int) -> None:
        self._lanes = count


def test_number_of_lanes_that_cannot_be_told_stays(run: Start) -> None:
    """
    A bug in what tells the number of lanes ends no lane: there are as many as before, and more when it can be told.
    """
    worker = Moody()
    loop = run(worker)
    until(lambda: worker.steps >= 1)
    worker.is_moody, worker.todo = True, [lambda: True] * 50
    loop.wake()
    until(lambda: worker.steps >= 51)
    assert loop.is_alive
    worker.todo = [worker.block] * 5
    worker.is_moody, worker.lanes = False, 3

    until(lambda: worker.busy == 3)


def test_lanes_that_cannot_be_told_at_start_come_later(run: Start) -> None:
    """
    A worker that cannot tell its lanes yet has one.
    """
    worker = Moody()
    worker.is_moody = True
    run(worker)

    until(lambda: worker.steps >= 1)


def test_loop_stops_though_threads_ran_out(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where no further thread can be started, the lanes there are go on, and stop in good order.
    """
    worker = Scripted(lanes=1)
    loop = Loop(worker, ledger=ledger)
    loop.start()
    start, refused = threading.Thread.start, threading.Event()

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("scripted-"):
            refused.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        worker.lanes = 4
        until(refused.is_set)
        assert loop.is_alive
    worker.todo = [worker.block] * 4
    until(lambda: worker.busy == 4)
    worker.gate.set()
    loop.stop()

    assert 0 == worker.busy


def test_loop_is_alive_while_all_its_threads_are(ledger: Ledger) -> None:
    """
    A loop lives from its start to its end.
    """
    loop = Loop(Scripted(lanes=2), ledger=ledger)
    before = loop.is_alive
    loop.start()
    meanwhile = loop.is_alive
    loop.stop()

    assert (False, True, False) == (before, meanwhile, loop.is_alive)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_loop_that_lost_a_lane_is_not_alive(run: Start) -> None:
    """
    A lane that something ended for good is seen to be missing.
    """

    def leave() -> bool:
        raise SystemExit

    worker = Scripted(lanes=2)
    loop = run(worker)
    until(lambda: worker.steps >= 2)
    worker.todo = [leave]
    loop.wake()

    until(lambda: not loop.is_alive)


def test_heart_is_alive_while_it_beats(rows: Rows, tmp_path: Path) -> None:
    """
    A heart lives from its start until it is stopped.
    """
    heart = heart_of(rows, tmp_path, host="here")
    before = heart.is_alive
    heart.start()
    meanwhile = heart.is_alive
    heart.stopping.set()

    assert (False, True) == (before, meanwhile)
    until(lambda: not heart.is_alive)


def test_drain_gives_each_worker_its_turn() -> None:
    """
    Workers are stepped until none has more to do, each in every round.
    """
    one, two = Scripted(), Scripted()
    one.todo = [lambda: True, lambda: True]
    drain([one, two], MovedClock().now)

    assert (3, 3) == (one.steps, two.steps)


def test_claim_has_what_the_heart_needs(rows: Rows) -> None:
    """
    A claim is a value: its owner and attempt tell whether it is still ours.
    """
    rows.jobs_of()
    claim = rows.claim(owner="here/4/2")

    assert isinstance(claim, Claim)
    assert ("here/4/2", 1) == (claim.owner, claim.job.attempt)
