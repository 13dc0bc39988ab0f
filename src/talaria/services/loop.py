"""How a worker is run: lanes, leases, heartbeat, stop; and the one `except Exception` of the program."""

import random
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from sqlalchemy import Connection

from talaria.model.errors import ConfigError, Congested, LedgerAway, NoRoom, Overtaken, Permanent, Refused, Transient
from talaria.model.extensions import Stopped
from talaria.model.job import Event, Patience, deferral
from talaria.model.rulebook import Rulebook
from talaria.store.jobs import LEASE, Claim, Jobs, NewJob
from talaria.store.ledger import Ledger
from talaria.store.workers import is_dead, is_here

log = structlog.get_logger()

Clock = Callable[[], datetime]

#: An idle lane looks again at least this often, whatever it was told.
_LONGEST_NAP = timedelta(seconds=2)
#: How often a process asks whether another one committed something.
_WATCH = timedelta(milliseconds=50)
#: However old, a job that may pass is tried so often before it fails.
_LEAST_ATTEMPTS = 5
_AFTER_A_BUG = timedelta(seconds=1)
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

    A bug in a step is logged, and the lane goes on after a pause. The number of lanes follows the worker's.
    """

    def __init__(self, worker: Worker, *, ledger: Ledger, clock: Clock = wall_clock) -> None:
        self._worker, self._ledger, self._clock = worker, ledger, clock
        self._stopping = threading.Event()
        self._wake = threading.Condition()
        self._news = 0
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
        self.wake()
        for lane in self._lanes:
            lane.join()

    def wake(self) -> None:
        """Tell idle lanes that there may be something to do."""
        with self._wake:
            self._news += 1
            self._wake.notify_all()

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
                self._nap(_LONGEST_NAP, self._news)
                continue
            seen = self._news
            nap = self._step()
            if nap is not None:
                self._nap(nap, seen)

    def _step(self) -> timedelta | None:
        """One step; how long to wait before the next, None for not at all."""
        more: list[bool] = []
        now = self._clock()
        bug = guarded(lambda: more.append(self._worker.step(now)))
        if isinstance(bug, LedgerAway):
            log.warning("ledger away", service=self._worker.name, reason=str(bug))
            return _AFTER_A_BUG
        if bug is not None:
            log.error("step failed", service=self._worker.name, bug=told(bug), exc_info=bug)
            return _AFTER_A_BUG
        if more[0]:
            return None
        idle: list[timedelta] = []
        bug = guarded(lambda: idle.append(self._worker.idle(now)))
        return min(idle[0], _LONGEST_NAP) if bug is None else _AFTER_A_BUG

    def _nap(self, length: timedelta, seen: int) -> None:
        """Sleep, unless something happened since the lane last looked."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._stopping.is_set() or self._news != seen, timeout=max(0.0, length.total_seconds())
            )

    def _watch(self) -> None:
        """Wake the lanes when another connection has committed."""
        while not self._stopping.is_set():
            bug = guarded(self._follow)
            if bug is not None and not isinstance(bug, LedgerAway):
                log.error("watching the ledger or adding a lane failed", service=self._worker.name, bug=told(bug))
            self._stopping.wait(_AFTER_A_BUG.total_seconds())

    def _follow(self) -> None:
        with self._ledger.watch() as version:
            last = version()
            while not self._stopping.wait(_WATCH.total_seconds()):
                self._grow()
                found = version()
                if found is None:
                    return
                if found != last:
                    last = found
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


class Heart:
    """Renews the leases of all jobs that this process has in hand, and finds those that dead workers left."""

    def __init__(self, jobs: Jobs, *, host: str, clock: Clock = wall_clock) -> None:
        self._jobs, self._host, self._clock = jobs, host, clock
        self._pulses: list[Pulse] = []
        self._lock = threading.Lock()
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

    def expire(self) -> None:
        """Make due again what dead workers left."""
        count = self._jobs.expire(
            now=self._clock(),
            is_dead=lambda owner: is_dead(owner, host=self._host),
            is_here=lambda owner: is_here(owner, host=self._host),
        )
        if count:
            log.warning("jobs of dead workers are due again", jobs=count)

    def _run(self) -> None:
        while True:
            bug = guarded(self.beat) or guarded(self.expire)
            if bug is not None:
                log.warning("heartbeat failed", reason=str(bug) if isinstance(bug, LedgerAway) else told(bug))
            if self.stopping.wait(LEASE.total_seconds() / 5):
                return


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a worker reports of a job that went well."""

    follow_ups: Callable[[Connection], Sequence[NewJob]] | None = None
    """Makes further changes in the transaction that finishes the job, and says which jobs follow."""


def perform(
    claim: Claim,
    work: Callable[[Pulse], Done],
    *,
    jobs: Jobs,
    heart: Heart,
    patience: Patience,
    clock: Clock = wall_clock,
) -> None:
    """
    Do a claimed job, and write down how it ended.

    1. `Done` finishes it.
    2. `Transient` defers it, until its patience is over; `Permanent`, `Refused` and `ConfigError` fail it.
    3. `Stopped` because the service stops gives it back, and the attempt does not count.
    4. Anything else is a bug: the job is held with its traceback. So is `Stopped` that nobody asked for: given back,
       it would be due again at once, for ever.

    A job that was taken away meanwhile is left to whoever has it now.
    """
    result: list[Done] = []
    with heart.holding(claim) as pulse:
        bug = guarded(lambda: result.append(work(pulse)))
        end = _ending(claim, result[0] if result else None, bug, pulse=pulse, patience=patience, now=clock())
        _write_down(claim, end, jobs=jobs, pulse=pulse, clock=clock)


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


def _write_down(claim: Claim, end: _End, *, jobs: Jobs, pulse: Pulse, clock: Clock) -> None:
    """Until it is written or not ours any more: what ended must not be forgotten because the ledger is away."""
    while True:
        bug = guarded(lambda: _report(claim, end, jobs=jobs, now=clock()))  # noqa: B023 - called at once
        if isinstance(bug, LedgerAway):
            log.warning("ledger away", job=claim.job.id, reason=str(bug))
            if pulse.wait(_AFTER_A_BUG):
                return
        elif bug is None or isinstance(bug, Overtaken):
            said = f"job {end.event}" if bug is None else "job was taken away"
            why = str(bug or end.reason)
            log.debug(said, job=claim.job.id, target=claim.job.target, attempt=claim.job.attempt, reason=why)
            return
        elif end.event is Event.BREAK:
            raise bug
        else:
            end = _broken(claim, bug)  # its follow-ups cannot be made; as it is, it would be done again for ever


def _report(claim: Claim, end: _End, *, jobs: Jobs, now: datetime) -> None:
    follow_ups = end.done.follow_ups if end.done else None
    jobs.end(claim, end.event, now=now, reason=end.reason, due=end.due, follow_ups=follow_ups)


def is_off_peak(book: Rulebook, now: datetime) -> bool:
    """Whether off-peak work may begin."""
    return book.settings.off_peak.contains(now.astimezone(book.settings.time_zone).time())


def drain(workers: Sequence[Worker], now: Callable[[], datetime]) -> None:
    """Step every worker until none has more to do: a whole orchestrator with no thread."""
    while any([worker.step(now()) for worker in workers]):  # noqa: C419 - each is to have its turn
        pass
