"""The cleaner: removes what retention allows and nothing else; the oldest first when the disk fills."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from talaria.failpoint import failpoint
from talaria.model.errors import NoRoom
from talaria.model.retention import Candidate, JumpWatch, Retention, expired, is_expendable, to_make_room
from talaria.store.cleaning import Cleaning, Place
from talaria.store.revisions import Rulebooks
from talaria.store.spool import Spool

log = structlog.get_logger()

_EVERY = timedelta(minutes=1)
#: Of the file system; above it the oldest of what is delivered or discarded goes early.
_WATERMARK = 0.90


#: Of what has ended; one step looks at no more, and the next goes on there: it costs the same however much is kept.
_PAGES = 10


class Cleaner:
    """One step looks over some of what has ended, those that last grew longest ago first."""

    name = "cleaner"
    lanes = 1

    def __init__(
        self,
        *,
        cleaning: Cleaning,
        rulebooks: Rulebooks,
        spool: Spool,
        watermark: float = _WATERMARK,
        uptime: Callable[[], timedelta] | None = None,
    ) -> None:
        self._cleaning, self._rulebooks, self._spool, self._watermark = cleaning, rulebooks, spool, watermark
        self._uptime = uptime or _since_boot
        self._watch = JumpWatch()
        self._due: datetime | None = None
        self._place: Place | None = None

    def step(self, now: datetime) -> bool:
        """Look once a minute; never more to do at once."""
        if self._due is not None and self._due - _EVERY <= now < self._due:
            return False
        self._due = now + _EVERY
        try:
            self._spool.check()
        except NoRoom as error:
            log.warning("nothing is deleted: the spool is away", reason=str(error))
            return False
        self._rulebooks.follow(now)
        self._remove_files()
        if not self._is_clock_trusted(now):
            log.warning("nothing is deleted: the clock jumped; when it is right, restart the cleaner")
            return False
        self._clean(now)
        return False

    def idle(self, now: datetime) -> timedelta:
        """Until the next look."""
        return _EVERY if self._due is None else max(self._due - now, timedelta(0))

    def _is_clock_trusted(self, now: datetime) -> bool:
        return self._watch.trusts(now, uptime=self._uptime(), last_event=self._cleaning.last_event())

    def _clean(self, now: datetime) -> None:
        retention = self._rulebooks.running().settings.retention
        for candidate in expired(self._ended(retention, now), retention=retention, now=now, is_clock_trusted=True):
            self._mark(candidate, "retention is over", now)
        self._remove_files()  # before looking how much room is still needed
        needed = self._needed_bytes()
        if needed > 0:
            for candidate in self._oldest(needed, retention, now):
                self._mark(candidate, "the disk is nearly full", now)
        self._remove_files()

    def _ended(self, retention: Retention, now: datetime) -> list[Candidate]:
        """Some of what may be over by its age; the next step goes on after it, and begins anew at the end."""
        found: list[Candidate] = []
        if retention.least is None:
            return found
        for _ in range(_PAGES):
            some, self._place = self._cleaning.candidates(
                spool=self._spool.name, before=now - retention.least, after=self._place
            )
            found += some
            if self._place is None:
                break
        return found

    def _oldest(self, needed_bytes: int, retention: Retention, now: datetime) -> tuple[Candidate, ...]:
        """What goes before its time: read only until nothing that was not read can have ended earlier."""
        found: list[Candidate] = []
        after: Place | None = None
        while True:
            some, after = self._cleaning.candidates(spool=self._spool.name, before=now, after=after)
            found += [candidate for candidate in some if is_expendable(candidate, retention=retention)]
            sure = found if after is None else [candidate for candidate in found if candidate.ended <= after.moment]
            going = to_make_room(sure, needed_bytes=needed_bytes, retention=retention, is_clock_trusted=True)
            if after is None or sum(candidate.size_bytes for candidate in going) >= needed_bytes:
                return going

    def _needed_bytes(self) -> int:
        total, free = self._spool.capacity()
        return int(total * (1 - self._watermark)) - free

    def _mark(self, candidate: Candidate, reason: str, now: datetime) -> None:
        if self._cleaning.mark(candidate, reason=reason, now=now):
            log.info(
                "cleaned", series=candidate.id, state=candidate.state, size_bytes=candidate.size_bytes, reason=reason
            )

    def _remove_files(self) -> None:
        """What is marked goes; a file that does not go is tried again, and stops no other."""
        after = 0
        while condemned := self._cleaning.condemned(spool=self._spool.name, after=after):
            after = max(condemned)
            for series_id, instance_ids in condemned.items():
                if all([self._removes(instance_id) for instance_id in instance_ids]):  # noqa: C419 - each is tried
                    failpoint("cleaner.series.empty")
                    self._cleaning.gone(series_id)

    def _removes(self, instance_id: str) -> bool:
        try:
            self._spool.drop(instance_id)
            failpoint("cleaner.file.removed")
        except OSError as error:
            log.warning("a file cannot be removed", instance=instance_id, reason=error.strerror)
            return False
        return True


def _since_boot() -> timedelta:
    """A clock that never jumps, the sleep of the machine counted."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))
