"""The cleaner: removes what retention allows and nothing else; the oldest first when the disk fills."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from talaria.model.errors import NoRoom
from talaria.model.retention import Candidate, Retention, clock_is_trusted, expired, to_make_room
from talaria.store.cleaning import Cleaning
from talaria.store.revisions import Rulebooks
from talaria.store.spool import Spool

log = structlog.get_logger()

_EVERY = timedelta(minutes=1)
#: Of the file system; above it the oldest of what is delivered or discarded goes early.
_WATERMARK = 0.90


class Cleaner:
    """One step looks over all that has ended."""

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
        self._anchor: tuple[datetime, timedelta] | None = None
        self._due: datetime | None = None

    def step(self, now: datetime) -> bool:
        """Look over everything once a minute; never more to do at once."""
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
        """Against the first look at which the wall clock was not behind the last event; a jump is never forgotten."""
        last = self._cleaning.last_event()
        if self._anchor is None and (last is None or last <= now):
            self._anchor = (now, self._uptime())
        wall, boot = self._anchor or (now, self._uptime())
        return clock_is_trusted(wall=now - wall, monotonic=self._uptime() - boot, now=now, last_event=last)

    def _clean(self, now: datetime) -> None:
        retention = self._rulebooks.running().settings.retention
        ended = self._ended(retention, now)
        for candidate in expired(ended, retention=retention, now=now, is_clock_trusted=True):
            self._mark(candidate, "retention is over", now)
        self._remove_files()  # before looking how much room is still needed
        needed = self._needed_bytes()
        if needed > 0:
            rest = self._ended(retention, now)
            for candidate in to_make_room(rest, needed_bytes=needed, retention=retention, is_clock_trusted=True):
                self._mark(candidate, "the disk is nearly full", now)
        self._remove_files()

    def _ended(self, retention: Retention, now: datetime) -> list[Candidate]:
        found: list[Candidate] = []
        after: int | None = 0
        while after is not None:
            some, after = self._cleaning.candidates(spool=self._spool.name, before=now, after=after)
            found += some
        return found

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
        for series_id, instance_ids in self._cleaning.condemned(spool=self._spool.name).items():
            left = 0
            for instance_id in instance_ids:
                try:
                    self._spool.drop(instance_id)
                except OSError as error:
                    left += 1
                    log.warning("a file cannot be removed", instance=instance_id, reason=error.strerror)
            if not left:
                self._cleaning.gone(series_id)


def _since_boot() -> timedelta:
    """A clock that never jumps, the sleep of the machine counted."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))
