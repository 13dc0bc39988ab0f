"""How a worker is run: lanes, leases, heartbeat, stop; and the one `except Exception` of the program."""

import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from sqlalchemy import Connection

from talaria.model.errors import (
    ConfigError,
    Congested,
    LedgerAway,
    NoRoom,
    Overtaken,
    Permanent,
    Refused,
    TalariaError,
    Transient,
)
from talaria.model.extensions import Stopped
from talaria.model.job import Event, Patience, deferral
from talaria.model.rulebook import Rulebook
from talaria.store.deliveries import Noted
from talaria.store.jobs import LEASE, Claim, Jobs, NewJob
from talaria.store.journal import Ended, Entry, Journal, Leftover, Replay
from talaria.store.ledger import Ledger
from talaria.store.results import Made, RunRecord, follow_ups
from talaria.store.workers import is_dead, is_here

log = structlog.get_logger()

Clock = Callable[[], datetime]

#: An idle lane looks again at least this often, whatever it was told.
_LONGEST_NAP = timedelta(seconds=2)
#: How long a process listens for news before it sees to its lanes.
_WATCH = timedelta(milliseconds=50)
#: However old, a job that may pass is tried so often before it fails.
_LEAST_ATTEMPTS = 5
_AFTER_A_BUG = timedelta(seconds=1)
#: A ledger that stays away is tried less and less often, but at least so often.
_LONGEST_AWAY = timedelta(seconds=5)
_MOST_CAUSES = 4


def wall_clock() -> datetime:
    """Now, aware, UTC."""
    return datetime.now(UTC)


def guarded(work: Callable[[], object]) -> Exception | None:
    """
    Run *work*; a bug in it must not end what runs it.

    Returns:
        What it raised, or None.
    """
    try:
        work()
    except Exception as bug:  # noqa: BLE001 - the one: all else catches only what it can name
        return bug
    return None


def told(bug: BaseException) -> str:
    """A bug, and what caused it, without the values it was about: types and places, innermost first."""
    said: list[str] = []
    chain: BaseException | None = bug
    while chain is not None and len(said) < _MOST_CAUSES:
        said.append(_place(chain))
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return "; from ".join(said)


def _place(bug: BaseException) -> str:
    frames = traceback.extract_tb(bug.__traceback__)
    places = [f"{frame.filename.rpartition('/talaria/')[2]}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
    return " at ".join([type(bug).__name__, " < ".join(reversed(places))] if places else [type(bug).__name__])


class Worker(Protocol):
    """Something that is done a step at a time."""

    name: str

    def step(self, now: datetime) -> bool:
        """Do one thing that is due, if there is one; whether there may be more."""

    def idle(self, now: datetime) -> timedelta:
        """How long it may be left alone if nothing wakes it."""

    @property
    def lanes(self) -> int:
        """How many threads may call `step` at once."""


class Server(Protocol):
    """Something that answers until it is stopped."""

    def start(self) -> None:
        """Begin; returns when it answers."""

    def stop(self) -> None:
        """End in good order; returns when it has ended."""

    @property
    def is_alive(self) -> bool:
        """Whether every thread that it needs runs."""


class Loop:
    """
    Runs one worker in its lanes until it is stopped.

    News wake one idle lane. One that finds work wakes the next, so as many wake as there is work for: a lane whose
    step says "more" does, and a worker that does long work in its step says so through `wake` when it begins. Of all
    idle lanes, one looks again when it is time to.

    A bug in a step is logged, and the lane goes on after a pause. The number of lanes follows the worker's.
    """

    def __init__(self, worker: Worker, *, ledger: Ledger, clock: Clock = wall_clock) -> None:
        self._worker, self._ledger, self._clock = worker, ledger, clock
        self._stopping = threading.Event()
        self._wake = threading.Condition()
        self._has_news = False  # that no look has begun since
        self._idle = 0
        self._look_at = float("inf")  # monotonic: when an idle lane looks again without any news
        self._pause = _AFTER_A_BUG  # before a ledger that is away is tried again
        self._away_until = 0.0  # monotonic
        self._lanes: list[threading.Thread] = []
        self._wanted = 1
        self._watcher = threading.Thread(target=self._watch, name=f"{worker.name}-watch", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._grow()
        self._watcher.start()

    @property
    def is_alive(self) -> bool:
        """Whether every lane runs, and what wakes them."""
        return self._watcher.is_alive() and all(lane.is_alive() for lane in self._lanes)

    def stop(self) -> None:
        """Let every lane finish its step; returns when they have."""
        self._stopping.set()
        with self._wake:
            self._wake.notify_all()
        for lane in self._lanes:
            lane.join()

    def wake(self) -> None:
        """Tell that there may be something to do: a look follows that begins after this."""
        with self._wake:
            self._has_news = True
            self._wake.notify()

    def _wake_another(self) -> None:
        """Where a lane is idle, let it look, too."""
        with self._wake:
            if self._idle:
                self._has_news = True
                self._wake.notify()

    def _grow(self) -> None:
        while len(self._lanes) < self._count_wanted():
            number = len(self._lanes)
            lane = threading.Thread(target=self._run, args=(number,), name=f"{self._worker.name}-{number}")
            lane.start()
            self._lanes.append(lane)  # only now: one that never began cannot be joined

    def _count_wanted(self) -> int:
        """How many lanes the worker has; as many as before where a bug keeps it from telling."""
        found: list[int] = []
        bug = guarded(lambda: found.append(int(self._worker.lanes)))
        self._wanted = found[0] if bug is None else self._wanted
        return self._wanted

    def _run(self, number: int) -> None:
        while not self._stopping.is_set():
            if number >= self._count_wanted():
                self._stopping.wait(_LONGEST_NAP.total_seconds())
                continue
            nap = self._step()
            if nap is None:
                self._wake_another()
            elif self._nap(nap) and number >= self._count_wanted():
                self.wake()  # what woke this lane was meant for one that works

    def _step(self) -> timedelta | None:
        """One step; how long to wait before the next, None for not at all."""
        more: list[bool] = []
        now = self._clock()
        bug = guarded(lambda: more.append(self._worker.step(now)))
        if isinstance(bug, LedgerAway):
            return self._after_absence(bug)
        self._pause = _AFTER_A_BUG
        if bug is not None:
            log.error("step failed", service=self._worker.name, bug=told(bug), exc_info=bug)
            return _AFTER_A_BUG
        if more[0]:
            return None
        idle: list[timedelta] = []
        bug = guarded(lambda: idle.append(self._worker.idle(now)))
        return min(idle[0], _LONGEST_NAP) if bug is None else _AFTER_A_BUG

    def _after_absence(self, error: LedgerAway) -> timedelta:
        """How long the ledger is left alone: longer each time, and never the same as all others."""
        log.warning("ledger away", service=self._worker.name, reason=str(error))
        with self._wake:
            now = time.monotonic()
            if now >= self._away_until:  # of lanes that fail together the first one counts
                spread = random.uniform(0.8, 1.2)  # noqa: S311 - parts a herd, guards nothing
                self._away_until = now + self._pause.total_seconds() * spread
                self._pause = min(self._pause * 1.5, _LONGEST_AWAY)
            self._look_at = self._away_until
            return timedelta(seconds=self._away_until - now)

    def _nap(self, length: timedelta) -> bool:
        """Sleep until there are news, or it is time to look and no other lane does; whether there were news."""
        with self._wake:
            self._look_at = min(self._look_at, time.monotonic() + max(0.0, length.total_seconds()))
            self._idle += 1
            while not (self._stopping.is_set() or self._has_news) and (left := self._look_at - time.monotonic()) > 0:
                self._wake.wait(left)
            self._idle -= 1
            had_news, self._has_news = self._has_news, False
            self._look_at = time.monotonic() + _LONGEST_NAP.total_seconds()
            return had_news

    def _watch(self) -> None:
        """Wake a lane when there are news."""
        while not self._stopping.is_set():
            bug = guarded(self._follow)
            if bug is not None and not isinstance(bug, LedgerAway):
                log.error("watching the ledger or adding a lane failed", service=self._worker.name, bug=told(bug))
            self._stopping.wait(_AFTER_A_BUG.total_seconds())

    def _follow(self) -> None:
        with self._ledger.watch() as has_news:
            self.wake()  # whatever happened before it listened
            while not self._stopping.is_set():
                self._grow()
                if has_news(_WATCH):
                    self.wake()


# -- jobs --


class Pulse:
    """Says whether a job in hand is still ours."""

    def __init__(self, claim: Claim, stopping: threading.Event) -> None:
        self.claim = claim
        self._stopping = stopping
        self._lost = threading.Event()

    def lose(self) -> None:
        """The job was taken away: cancelled, held, or claimed by another."""
        self._lost.set()

    @property
    def is_lost(self) -> bool:
        """Whether it was."""
        return self._lost.is_set()

    def wait(self, length: timedelta) -> bool:
        """Pause; whether the service stops."""
        return self._stopping.wait(length.total_seconds())

    def __call__(self) -> bool:
        """Whether whoever works on it should give up."""
        return self._lost.is_set() or self._stopping.is_set()


class Books:
    """
    Where a process writes what became of its work: into the ledger, and into its journal while that is away.

    While anything waits in the journal all goes there, so that nobody waits for a ledger that is known to be away.
    """

    def __init__(self, ledger: Ledger, journal: Journal) -> None:
        self._replay, self._journal = Replay(ledger), journal
        self._settling = threading.Lock()
        self._has_recovered = False

    def note(self, entry: Noted | RunRecord) -> None:
        """
        Write down what happened.

        Raises:
            NoRoom: The ledger is away, and the journal cannot be written; it waits in memory for either.
        """
        if self._journal.is_empty:
            try:
                self._replay.first(entry)
                return
            except LedgerAway as error:
                log.warning("ledger away; what is done meanwhile goes to the journal", reason=str(error))
        self._journal.append(entry)

    @property
    def is_behind(self) -> bool:
        """Whether the ledger does not have all of what happened."""
        return not self._journal.is_empty

    def catch_up(self) -> bool:
        """
        Whether the ledger knows all that was done, after an attempt to tell it: before, nothing new may be begun.

        A server that crashes may forget the last claims it gave (`Ledger.writing`): then their jobs are due again, and
        only the outcomes say that they are done.

        Raises:
            LedgerAway: Not now.
        """
        if not self._has_recovered:
            self._has_recovered = self.recover()
        if self.is_behind:
            self.settle()
        return self._has_recovered and not self.is_behind

    def keep(self, end: Ended) -> None:
        """Remember the end of a job for when this process dies before the ledger is back."""
        try:
            self._journal.append(end)
        except NoRoom as error:
            log.error("the end of a job waits in memory alone", job=end.job_id, reason=str(error))

    def forget(self, end: Ended | None) -> None:
        """The end of a job is in the ledger, or means nothing any more."""
        if end is not None:
            self._journal.drop(end)

    def settle(self) -> None:
        """
        Write down what of this process waits but the ends of jobs: whoever worked on them is at that.

        Raises:
            LedgerAway: Not now.
        """
        with self._settling:
            for entry in self._journal.entries():
                if not isinstance(entry, Ended):
                    if not self._is_written(entry):
                        path = self._journal.set_aside(entry)
                        log.error("set aside: the ledger cannot take it", file=str(path))
                    self._journal.drop(entry)

    def recover(self) -> bool:
        """
        Write down what processes left that run no more; False: another one is at it, and nobody can tell yet.

        Raises:
            LedgerAway: Not now; it is all still there.
        """
        with self._journal.left() as left:
            for leftover in left or ():
                self._take_over(leftover)
            return left is not None

    def close(self) -> None:
        """End the journal; what waits in it is written down by whoever starts next."""
        self._journal.close()

    def _take_over(self, leftover: Leftover) -> None:
        written = [self._is_written(entry) for entry in leftover.entries]
        if all(written) and not leftover.damage:
            leftover.remove()
            if written:
                log.info("replayed what a process left that ended while the ledger was away", entries=len(written))
            return
        reason = leftover.damage or f"the ledger cannot take {written.count(False)} of {len(written)} entries"
        path = leftover.set_aside()
        log.error(
            "a journal was set aside: what could be understood is in the ledger", file=str(path), reason=reason
        )  # fmt: skip

    def _is_written(self, entry: Entry) -> bool:
        """Whether the ledger has it now, or does not need it any more."""
        bug = guarded(lambda: self._replay.again(entry))
        if isinstance(bug, LedgerAway):
            raise bug
        if bug is None or isinstance(bug, Overtaken):
            return True
        reason = str(bug) if isinstance(bug, TalariaError) else told(bug)
        log.error("an entry of the journal cannot be written down", job=entry.job_id, reason=reason)
        return False


class Heart:
    """
    Renews the leases of all jobs that this process has in hand, and finds those that dead workers left.

    While the ledger is away nobody can renew anything, so a lease that is over means nothing then: it is heeded again
    when all had the time to be heard of. Processes of this host that died are known anyhow.
    """

    def __init__(self, jobs: Jobs, *, books: Books, host: str, owner: str = "", clock: Clock = wall_clock) -> None:
        """
        Args:
            jobs: The queue.
            books: Of this process; what the dead left in theirs is written down before their jobs are taken back.
            host: This one.
            owner: In whose name this process claims; without it nobody looks after claims whose answer was lost.
            clock: For leases.
        """
        self._jobs, self.books, self._host, self._owner, self._clock = jobs, books, host, owner, clock
        self._pulses: list[Pulse] = []
        self._lock = threading.Lock()
        self._heard: datetime | None = None  # when the ledger answered last
        self._since: datetime | None = None  # since when it always did
        self._strange: set[tuple[int, int]] = set()
        self.stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[Pulse]:
        """Keep a claim alive while it is worked on."""
        pulse = Pulse(claim, self.stopping)
        with self._lock:
            self._pulses.append(pulse)
        try:
            yield pulse
        finally:
            with self._lock:
                self._pulses.remove(pulse)

    def start(self) -> None:
        """Begin to beat."""
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it beats."""
        return self._thread is not None and self._thread.is_alive()

    def beat(self) -> None:
        """Renew once; jobs that are not ours any more are told so."""
        with self._lock:
            pulses = list(self._pulses)
        newest = {pulse.claim.job.id: pulse for pulse in sorted(pulses, key=lambda pulse: pulse.claim.job.attempt)}
        ours = self._jobs.heartbeat([pulse.claim for pulse in newest.values()], now=self._clock(), clock=self._clock)
        for pulse in pulses:
            if pulse.claim.job.id not in ours or newest[pulse.claim.job.id] is not pulse:
                pulse.lose()

    def recover(self) -> bool:
        """Write down what this process and dead ones could not; whether all that the dead left is in the ledger."""
        self.books.settle()
        return self.books.recover()

    def expire(self) -> None:
        """Make due again what dead workers left."""
        now = self._clock()
        count = self._jobs.expire(
            now=now,
            is_dead=lambda owner: is_dead(owner, host=self._host),
            is_here=lambda owner: is_here(owner, host=self._host),
            heeds_leases=self._had_time(now),
        )
        self._hear(self._clock())
        if count:
            log.warning("jobs of dead workers are due again", jobs=count)

    def give_back(self) -> None:
        """Make due again what the ledger says is in our hands and is not: the answer to a claim was lost with it."""
        if not self._owner:
            return
        with self._lock:
            known = {(pulse.claim.job.id, pulse.claim.job.attempt) for pulse in self._pulses}
        strange = set(self._jobs.held_by(self._owner).items()) - known
        for job_id, attempt in strange & self._strange:  # at the first look it may just be on its way to a lane
            with suppress(Overtaken):
                claim = self._jobs.in_hand(job_id, owner=self._owner, attempt=attempt)
                self._jobs.end(claim, Event.YIELD, now=self._clock(), reason="the answer to its claim was lost")
        self._strange = strange

    def _hear(self, now: datetime) -> None:
        """The ledger answered."""
        if self._heard is None or not timedelta(0) <= now - self._heard < LEASE / 2:
            self._since = now
        self._heard = now

    def _had_time(self, now: datetime) -> bool:
        """Whether everybody could renew their leases, so that one which is over means a worker that is gone."""
        if self._heard is None or self._since is None:
            return False
        return timedelta(0) <= now - self._heard < LEASE / 2 and now - self._since >= LEASE

    def _turn(self) -> None:
        self.beat()
        if self.recover():  # else those may be dead whose ends somebody writes down just now
            self.expire()
        self.give_back()

    def turn(self) -> None:
        """All that a heart does every few seconds; what goes wrong is logged, and tried again with the next."""
        bug = guarded(self._turn)
        if bug is not None:
            log.warning("heartbeat failed", reason=str(bug) if isinstance(bug, LedgerAway) else told(bug))

    def _run(self) -> None:
        while True:
            self.turn()
            if self.stopping.wait(LEASE.total_seconds() / 5):
                return


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a worker reports of a job that went well."""

    follow_ups: Callable[[Connection], Sequence[NewJob]] | None = None
    """Makes further changes in the transaction that finishes the job, and says which jobs follow."""
    made: Made | None = None
    """What a process job made; unlike *follow_ups* it can be journaled."""


def perform(
    claim: Claim,
    work: Callable[[Pulse], Done],
    *,
    jobs: Jobs,
    heart: Heart,
    patience: Patience,
    clock: Clock = wall_clock,
) -> bool:
    """
    Do a claimed job, and write down how it ended.

    1. `Done` finishes it.
    2. `Transient` defers it, until its patience is over; `Permanent`, `Refused` and `ConfigError` fail it.
    3. `Stopped` because the service stops gives it back, and the attempt does not count.
    4. Anything else is a bug: the job is held with its traceback. So is `Stopped` that nobody asked for: given back,
       it would be due again at once, for ever.

    A job that was taken away meanwhile is left to whoever has it now. While the ledger is away the end waits: in the
    journal, so that it is not forgotten when the process dies or is stopped, and here, until the ledger takes it.

    Returns:
        Whether nothing of it waits any more; else its end is in the journal alone.
    """
    result: list[Done] = []
    with heart.holding(claim) as pulse:
        bug = guarded(lambda: result.append(work(pulse)))
        end = _ending(claim, result[0] if result else None, bug, pulse=pulse, patience=patience, now=clock())
        return _write_down(claim, end, jobs=jobs, books=heart.books, pulse=pulse, clock=clock)


@dataclass(frozen=True, kw_only=True)
class _End:
    event: Event
    reason: str = ""
    due: datetime | None = None
    done: Done | None = None


def _ending(
    claim: Claim, done: Done | None, bug: Exception | None, *, pulse: Pulse, patience: Patience, now: datetime
) -> _End:
    if bug is None:
        assert done is not None
        return _End(event=Event.FINISH, done=done)
    if isinstance(bug, Stopped) and pulse():
        return _End(event=Event.YIELD, reason="its service was stopped; goes on when it is back")
    if isinstance(bug, Transient):
        return _deferred(claim, bug, patience=patience, now=now)
    if isinstance(bug, Permanent | Refused | ConfigError):
        return _End(event=Event.FAIL, reason=str(bug))
    return _broken(claim, bug)


def _broken(claim: Claim, bug: Exception) -> _End:
    log.error("job broke", job=claim.job.id, bug=told(bug), exc_info=bug)
    return _End(event=Event.BREAK, reason=f"a bug stopped it: {told(bug)}")


def _deferred(claim: Claim, error: Transient, *, patience: Patience, now: datetime) -> _End:
    age = max(now - claim.since, timedelta(0))
    tried = claim.job.attempt >= _LEAST_ATTEMPTS  # the time may have passed while we were not running
    if age >= patience.budget and tried and not isinstance(error, NoRoom | LedgerAway):
        return _End(event=Event.FAIL, reason=f"{error} (given up after {age.total_seconds() / 3600:.1f} h)")
    wait = deferral(age, patience=patience, jitter=random.random())  # noqa: S311 - spreads a herd, guards nothing
    if isinstance(error, Congested) and error.retry_after is not None:
        wait = max(wait, min(error.retry_after, timedelta(days=1)))
    return _End(event=Event.DEFER, reason=str(error), due=now + wait)


def _write_down(claim: Claim, end: _End, *, jobs: Jobs, books: Books, pulse: Pulse, clock: Clock) -> bool:
    """Until it is written or not ours any more, or we have to stop; whether it needs no journal any more."""
    kept: Ended | None = None
    while True:
        bug = guarded(lambda: _report(claim, end, jobs=jobs, books=books, now=clock()))  # noqa: B023 - called at once
        if isinstance(bug, LedgerAway):
            log.warning("ledger away", job=claim.job.id, reason=str(bug))
            kept = kept or _kept(claim, end, books=books, now=clock())
            if pulse.wait(_AFTER_A_BUG):
                return False
            continue
        books.forget(kept)
        kept = None
        if bug is None or isinstance(bug, Overtaken):
            said = f"job {end.event}" if bug is None else "job was taken away"
            why = str(bug or end.reason)
            log.debug(said, job=claim.job.id, target=claim.job.target, attempt=claim.job.attempt, reason=why)
            return True
        if end.event is Event.BREAK:
            raise bug
        end = _broken(claim, bug)  # its follow-ups cannot be made; as it is, it would be done again for ever


def _kept(claim: Claim, end: _End, *, books: Books, now: datetime) -> Ended | None:
    """Journal an end; None for one that leads to what no journal can hold: after our death it is done again."""
    done = end.done or Done()
    if done.follow_ups is not None:
        return None
    kept = Ended(
        job_id=claim.job.id, owner=claim.owner, attempt=claim.job.attempt, event=end.event, reason=end.reason,
        due=end.due, time=now, made=done.made,
    )  # fmt: skip
    books.keep(kept)
    return kept


def _report(claim: Claim, end: _End, *, jobs: Jobs, books: Books, now: datetime) -> None:
    """What happened first, and then that it ended."""
    if books.is_behind:
        books.settle()
    jobs.end(claim, end.event, now=now, reason=end.reason, due=end.due, follow_ups=_follow_ups(claim, end.done))


def _follow_ups(claim: Claim, done: Done | None) -> Callable[[Connection], Sequence[NewJob]] | None:
    made = done.made if done else None
    if made is not None:
        return lambda connection: follow_ups(connection, claim, made)
    return done.follow_ups if done else None


def is_off_peak(book: Rulebook, now: datetime) -> bool:
    """Whether off-peak work may begin."""
    return book.settings.off_peak.contains(now.astimezone(book.settings.time_zone).time())


def drain(workers: Sequence[Worker], now: Callable[[], datetime]) -> None:
    """Step every worker until none has more to do: a whole orchestrator with no thread."""
    while any([worker.step(now()) for worker in workers]):  # noqa: C419 - each is to have its turn
        pass
