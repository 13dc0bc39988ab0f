"""The bookkeeper: tells the log what the ledger's events say, and keeps the ledger small."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import structlog

from talaria.model.retention import JumpWatch
from talaria.services.loop import is_off_peak
from talaria.store.cleaning import Cleaning
from talaria.store.compaction import Compaction
from talaria.store.ledger import Ledger
from talaria.store.listing import EventLine, Listing
from talaria.store.notes import Notes
from talaria.store.pruning import Pruning
from talaria.store.revisions import Rulebooks

log = structlog.get_logger("talaria.events")

_PAUSE = timedelta(seconds=2)
_NOTE = "bookkeeper"


class Bookkeeper:
    """One step logs a batch of events, every event once, also across restarts; or does a piece of housekeeping."""

    name = "bookkeeper"
    lanes = 1

    def __init__(self, *, listing: Listing, notes: Notes, house: "Housekeeping | None" = None) -> None:
        self._listing, self._notes, self._house = listing, notes, house
        self._after: int | None = None

    def step(self, now: datetime) -> bool:
        """Log what was written since; whether there may be more."""
        if self._after is None:
            self._after = int(self._notes.get(_NOTE) or 0)
        events = self._listing.events(after=self._after, limit=500)
        for event in events:
            log.info(event.kind, **_keys(event))
        if events:
            self._after = events[-1].id
            self._notes.set(_NOTE, str(self._after))
        if len(events) == 500:
            return True
        return self._house is not None and self._house.step(now)

    def idle(self, now: datetime) -> timedelta:
        """Whatever is written wakes it; this is for safety."""
        return _PAUSE


#: Compaction goes over what is new so often.
_ROUND = timedelta(minutes=1)
#: Pruning begins again after this, in off-peak hours.
_NIGHT = timedelta(hours=20)
#: SQLite's log is begun anew when it has become larger; a commit keeps it near 4 MB where nobody is in the way.
_MOST_LOG_BYTES = 64 << 20
#: When it is larger than this though we tried, somebody has been reading for long: people are told.
_STRANGE_LOG_BYTES = 512 << 20
_NIGHT_NOTE = "pruned"


class Housekeeping:
    """Compaction by day and night, pruning off-peak, a piece at a step; a restart goes on where it was."""

    def __init__(
        self, ledger: Ledger, *, notes: Notes, rulebooks: Rulebooks, uptime: Callable[[], timedelta] | None = None
    ) -> None:
        self._compaction, self._pruning, self._cleaning = Compaction(ledger), Pruning(ledger), Cleaning(ledger)
        self._notes, self._rulebooks, self._uptime = notes, rulebooks, uptime or _since_boot
        self._watch = JumpWatch()
        self._round: datetime | None = None
        self._after: int | None = None  # where compaction is; None: at rest
        self._pieces: Iterator[Counter[str]] | None = None  # of a night's pruning
        self._pruned: Counter[str] = Counter()

    def step(self, now: datetime) -> bool:
        """Do a piece; whether there is more to do at once."""
        if self._after is None and (self._round is None or not self._round <= now < self._round + _ROUND):
            self._round, self._after = now, 0
            self._keep_log_small()
            self._begin_night(now)
        if self._after is not None:
            aged = timedelta(days=self._rulebooks.follow(now).settings.record_days)
            _, self._after = self._compaction.step(after=self._after, now=now, aged=aged)
            return True
        return self._prune(now)

    def _keep_log_small(self) -> None:
        if self._pruning.log_bytes() <= _MOST_LOG_BYTES or self._pruning.checkpoint():
            return
        size = self._pruning.log_bytes()
        if size > _STRANGE_LOG_BYTES:
            log.warning("the ledger's write-ahead log grows: a program has been reading it for long", size_bytes=size)

    def _begin_night(self, now: datetime) -> None:
        if self._pieces is not None or not is_off_peak(self._rulebooks.follow(now), now):
            return
        last = self._notes.get(_NIGHT_NOTE)
        if last is not None and timedelta(0) <= now - datetime.fromisoformat(last) < _NIGHT:
            return
        if not self._watch.trusts(now, uptime=self._uptime(), last_event=self._cleaning.last_event()):
            log.warning("nothing is pruned: the clock jumped; when it is right, restart the bookkeeper")
            return
        self._pruned.clear()
        self._pieces = self._night(now)

    def _prune(self, now: datetime) -> bool:
        """A piece of the night's work, if there is any and it is off-peak still."""
        if self._pieces is None or not is_off_peak(self._rulebooks.follow(now), now):
            return False
        piece = next(self._pieces, None)
        if piece is not None:
            self._pruned += piece
            return True
        self._pieces = None
        if self._pruned:
            self._pruning.tell(self._pruned, now=now)
        self._notes.set(_NIGHT_NOTE, now.isoformat())
        return False

    def _night(self, now: datetime) -> Iterator[Counter[str]]:
        """All there is to prune as of *now*, piece by piece, and how much went."""
        before = now - timedelta(days=self._rulebooks.running().settings.record_days)
        while count := self._pruning.reduce_tags(before=before):
            yield Counter(tags=count)
        while count := self._pruning.drop_logs(now=now, before=before):
            yield Counter(logs=count)
        yield Counter(credentials=self._pruning.forget_credentials(now=now))
        self._pruning.take_stock()


#: What the log itself says of every event.
_TAKEN = frozenset({"event", "level", "timestamp", "service"})


def _keys(event: EventLine) -> dict[str, object]:
    """An event's keys for the log, without those that say nothing."""
    keys = {
        "number": event.id, "study": event.study_uid, "series": event.series_uid, "job": event.job_id,
        "instance": event.instance_id, "actor": event.actor, **event.detail,
    }  # fmt: skip
    return {f"{key}_" if key in _TAKEN else key: value for key, value in keys.items() if value not in (None, "", [])}


def _since_boot() -> timedelta:
    """A clock that never jumps, the sleep of the machine counted."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))
