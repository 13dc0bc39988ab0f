"""The dispatcher: delivers what waits for each target, all targets at once, and records every instance."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from talaria.failpoint import failpoint
from talaria.model.errors import ConfigError, LedgerAway, Permanent, Transient
from talaria.model.extensions import Delivery, Outcome, Stopped
from talaria.model.job import Kind, Patience
from talaria.model.rulebook import Rulebook, TargetEntry
from talaria.services.loop import Books, Clock, Done, Heart, Pulse, is_off_peak, perform, wall_clock
from talaria.store.deliveries import Deliveries, Noted, Prepared, Tally
from talaria.store.jobs import Claim, Jobs
from talaria.store.revisions import Rulebooks
from talaria.store.spool import Spool

log = structlog.get_logger()

#: However many targets there are.
_MOST_LANES = 64
#: Outcomes are written down at least this often, or when so many have come together.
_RECORD_EVERY = timedelta(seconds=1)
_RECORD_COUNT = 200


class Dispatcher:
    """
    One step delivers one job.

    There are as many lanes as all targets together may use, and no target may use more than its own, so one that
    hangs takes nothing from the others.
    """

    name = "dispatcher"

    def __init__(
        self,
        *,
        jobs: Jobs,
        deliveries: Deliveries,
        rulebooks: Rulebooks,
        spool: Spool,
        heart: Heart,
        owner: str,
        clock: Clock = wall_clock,
    ) -> None:
        self._jobs, self._deliveries, self._rulebooks = jobs, deliveries, rulebooks
        self._spool, self._heart, self._owner, self._clock = spool, heart, owner, clock
        self._busy: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def lanes(self) -> int:
        """Enough for every target to be busy at once, and one that finds those whose target is missing."""
        return min(_MOST_LANES, 1 + sum(entry.plug.lanes for entry in self._rulebooks.running().targets.values()))

    def step(self, now: datetime) -> bool:
        """Deliver the next job that is due and whose target has room; whether there may be more."""
        claim = self._claim(now) if self._heart.books.catch_up() else None
        if claim is None:
            return False
        target = claim.job.target or ""
        try:
            entry = self._rulebooks.running().targets.get(target)
            perform(
                claim,
                lambda pulse: self._deliver(claim, entry, pulse),
                jobs=self._jobs,
                heart=self._heart,
                patience=entry.patience if entry else Patience(budget=timedelta.max),
                clock=self._clock,
            )
        finally:
            with self._lock:
                self._busy[target] -= 1
        return True

    def idle(self, now: datetime) -> timedelta:
        """Until the next delivery is due."""
        due = self._jobs.next_due(Kind.DISPATCH)
        return timedelta(seconds=1) if due is None or due <= now else due - now

    def _claim(self, now: datetime) -> Claim | None:
        """Claim one lane at a time: how busy a target is and what is claimed must agree."""
        with self._lock:
            book = self._rulebooks.follow(now)
            claim = self._jobs.claim(
                Kind.DISPATCH,
                owner=self._owner,
                spools=[self._spool.name],
                now=now,
                clock=self._clock,
                off_peak=is_off_peak(book, now),
                full=[name for name, count in self._busy.items() if count >= _room(book, name)],
            )
            if claim is not None:
                self._busy[claim.job.target or ""] += 1
            return claim

    def _deliver(self, claim: Claim, entry: TargetEntry | None, pulse: Pulse) -> Done:
        """One attempt: what is missing is sent, and each answer is written down."""
        if entry is None:
            raise Transient(
                f"target '{claim.job.target}' is missing from the running rulebook; add it, and this goes on"
            )
        prepared = self._deliveries.prepare(claim, locate=self._locate)
        recorder = _Recorder(prepared, books=self._heart.books, clock=self._clock)
        failpoint("dispatcher.delivery.prepared")
        try:
            if _is_wanted(prepared):
                _follow(entry.plug.deliver(prepared.delivery), recorder, pulse)
            failpoint("dispatcher.delivery.answered")
        except ConfigError as error:
            raise Permanent(f"target '{claim.job.target}': {error}") from error
        finally:
            recorder.flush()
        return _judge(self._tally(prepared.delivery, recorder))

    def _locate(self, instance_id: str) -> Path:
        """
        Where the spool has an instance.

        Raises:
            FileNotFoundError: Its file is gone.
            NoRoom: The whole spool is away, so nobody can tell.
        """
        try:
            return self._spool.path(instance_id)
        except FileNotFoundError:
            self._spool.check()
            raise

    def _tally(self, delivery: Delivery, recorder: "_Recorder") -> Tally:
        """As the ledger has it; as we know while it is away, or has not got all."""
        if not self._heart.books.is_behind:
            with suppress(LedgerAway):
                return self._deliveries.tally(delivery)
        return recorder.tally()


def _is_wanted(prepared: Prepared) -> bool:
    """Whether the target has work: with no parcel left it may still have to finish what it was given before."""
    delivery, lost, before = prepared
    return bool(delivery.parcels) or (delivery.total > 0 and not before.after(lost).failed)


def _judge(tally: Tally) -> Done:
    if tally.failed:
        raise Permanent(f"{tally.failed} of {tally.total} instances cannot be delivered: {tally.reason}")
    if tally.there < tally.total:
        raise Transient(f"{tally.total - tally.there} of {tally.total} instances were not answered for")
    return Done()


def _room(book: Rulebook, target: str) -> int:
    entry = book.targets.get(target)
    return entry.plug.lanes if entry else 1


def _follow(outcomes: Iterator[Outcome], recorder: "_Recorder", pulse: Pulse) -> None:
    """Take outcomes as they come, until there are no more or somebody says stop."""
    close: Callable[[], None] | None = getattr(outcomes, "close", None)
    if close is None:  # a target may answer with any iterator, a list's among them
        recorder.note(*outcomes)
        return
    with closing(outcomes):  # type: ignore[type-var]  # it has a close(), seen above
        for outcome in outcomes:
            recorder.note(outcome)
            if pulse():
                raise Stopped


class _Recorder:
    """Gathers outcomes and writes them down by the second, in the journal while the ledger is away."""

    def __init__(self, prepared: Prepared, *, books: Books, clock: Clock) -> None:
        self._prepared, self._books, self._clock = prepared, books, clock
        self._sizes = {parcel.instance_id: parcel.size_bytes for parcel in prepared.delivery.parcels}
        self._last = {outcome.instance_id: outcome for outcome in prepared.lost}
        self._waiting = list(prepared.lost)
        self._since = clock()
        self.flush()

    def tally(self) -> Tally:
        """How the delivery stands as far as we know."""
        return self._prepared.before.after(self._last.values())

    def note(self, *outcomes: Outcome) -> None:
        """Take outcomes; written down when many or old. One of an instance that was not handed over counts for none."""
        strange = [outcome.instance_id for outcome in outcomes if outcome.instance_id not in self._sizes]
        if strange:
            log.error(
                "target answered for what it was not given", job=self._prepared.delivery.job_id,
                instances=len(strange), first=strange[0],
            )  # fmt: skip
        found = [outcome for outcome in outcomes if outcome.instance_id in self._sizes]
        self._waiting += found
        self._last |= {outcome.instance_id: outcome for outcome in found}
        failpoint("dispatcher.outcome.noted")
        if len(self._waiting) >= _RECORD_COUNT or self._clock() - self._since >= _RECORD_EVERY:
            self.flush()

    def flush(self) -> None:
        """
        Write down what waits.

        Raises:
            NoRoom: Neither the ledger nor the journal can take it now; it is kept for them.
        """
        now, delivery = self._clock(), self._prepared.delivery
        found, self._waiting = self._waiting, []
        if found:
            self._books.note(
                Noted(
                    delivery_id=delivery.id, job_id=delivery.job_id, attempt=delivery.attempt, found=tuple(found),
                    time=now, seconds=max(0.0, (now - self._since).total_seconds()),
                    size_bytes=sum(self._sizes.get(o.instance_id, 0) for o in found if o.standing.is_there),
                )
            )  # fmt: skip
        self._since = now
