"""The bookkeeper: tells the log what the ledger's events say."""

from datetime import datetime, timedelta

import structlog

from talaria.store.listing import EventLine, Listing
from talaria.store.notes import Notes

log = structlog.get_logger("talaria.events")

_PAUSE = timedelta(seconds=2)
_NOTE = "bookkeeper"


class Bookkeeper:
    """One step logs a batch of events; every event once, also across restarts."""

    name = "bookkeeper"
    lanes = 1

    def __init__(self, *, listing: Listing, notes: Notes) -> None:
        self._listing, self._notes = listing, notes
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
        return len(events) == 500

    def idle(self, now: datetime) -> timedelta:
        """Whatever is written wakes it; this is for safety."""
        return _PAUSE


#: What the log itself says of every event.
_TAKEN = frozenset({"event", "level", "timestamp", "service"})


def _keys(event: EventLine) -> dict[str, object]:
    """An event's keys for the log, without those that say nothing."""
    keys = {
        "number": event.id, "study": event.study_uid, "series": event.series_uid, "job": event.job_id,
        "instance": event.instance_id, "actor": event.actor, **event.detail,
    }  # fmt: skip
    return {f"{key}_" if key in _TAKEN else key: value for key, value in keys.items() if value not in (None, "", [])}
