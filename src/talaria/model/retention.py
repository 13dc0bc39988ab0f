"""What may be deleted now, in which order when the disk is full, and when the clock is no ground to delete on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from talaria.model.quantity import Duration

#: Wall clock and monotonic clock may part by this; leap seconds and NTP's slewing stay below it.
CLOCK_TOLERANCE = timedelta(hours=1)

#: What may go before its time when the disk is full: what has arrived everywhere, and what nothing asked for.
EXPENDABLE = frozenset({"done", "discarded"})


class Retention(BaseModel):
    """How long a case is kept after it ended, by how it ended; never means until a person says so."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    discarded: Duration = timedelta(days=3)
    """Cases that no rule took, or that a rule discards; until then they can be routed after all."""
    done: Duration = timedelta(days=3)
    """Cases that were delivered to every target."""
    failed: Duration = None
    """Cases of which something could not be done, or was cancelled."""
    held: Duration = None
    """Cases that wait for a person."""

    def of(self, state: str) -> timedelta | None:
        """
        How long a case in *state* is kept; None for ever, which is also the answer for a state that has not ended.

        >>> Retention().of("done"), Retention().of("active")
        (datetime.timedelta(days=3), None)
        """
        match state:
            case "discarded":
                return self.discarded
            case "done":
                return self.done
            case "failed" | "cancelled":
                return self.failed
            case "held":
                return self.held
            case _:
                return None

    @property
    def least(self) -> timedelta | None:
        """
        What ended more recently is kept, however it ended; None where all is kept for ever.

        >>> Retention(done="12h").least
        datetime.timedelta(seconds=43200)
        """
        given = [kept for kept in (self.discarded, self.done, self.failed, self.held) if kept is not None]
        return min(given, default=None)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A case that has ended and still has files."""

    id: int
    state: str
    """How it ended: discarded, done, failed, held, cancelled."""
    ended: datetime
    """UTC."""
    size_bytes: int
    """What its removal frees."""


def expired(
    candidates: Iterable[Candidate], *, retention: Retention, now: datetime, is_clock_trusted: bool
) -> tuple[Candidate, ...]:
    """
    The cases whose time is over, oldest first.

    Args:
        candidates: In any order.
        retention: Of the running rulebook.
        now: UTC.
        is_clock_trusted: As `clock_is_trusted` says; nothing is deleted on the word of a clock that jumped.
    """
    if not is_clock_trusted:
        return ()
    return tuple(case for case in _oldest_first(candidates) if _is_over(case, retention=retention, now=now))


def to_make_room(
    candidates: Iterable[Candidate], *, needed_bytes: int, retention: Retention, is_clock_trusted: bool
) -> tuple[Candidate, ...]:
    """
    The cases that go before their time when the disk is full: oldest first, and no more than is needed.

    Only what is done or discarded goes, and not where the retention says never; when that is not enough, less is
    freed than was asked for, and the receiver refuses (A700) what it cannot keep.

    Args:
        candidates: In any order.
        needed_bytes: To be freed; nothing goes when it is not positive.
        retention: Of the running rulebook.
        is_clock_trusted: As for `expired`: the order is by times, too.
    """
    if not is_clock_trusted:
        return ()
    return tuple(_until_enough(_oldest_first(candidates), needed_bytes=needed_bytes, retention=retention))


def is_expendable(case: Candidate, *, retention: Retention) -> bool:
    """Whether a case may go before its time when the disk is full."""
    return case.state in EXPENDABLE and retention.of(case.state) is not None


def _until_enough(candidates: Iterable[Candidate], *, needed_bytes: int, retention: Retention) -> Iterator[Candidate]:
    freed = 0
    for case in candidates:
        if freed >= needed_bytes:
            return
        if is_expendable(case, retention=retention):
            freed += case.size_bytes
            yield case


def _oldest_first(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda case: (case.ended, case.id))


def _is_over(case: Candidate, *, retention: Retention, now: datetime) -> bool:
    kept = retention.of(case.state)
    return kept is not None and now - case.ended >= kept


class JumpWatch:
    """Whether the wall clock is ground enough to delete on, look by look; a jump is never forgotten."""

    def __init__(self) -> None:
        self._anchor: tuple[datetime, timedelta] | None = None

    def trusts(self, now: datetime, *, uptime: timedelta, last_event: datetime | None) -> bool:
        """
        As `clock_is_trusted`, from the first look at which the wall clock was not behind the last event.

        Args:
            now: The wall clock; UTC.
            uptime: A clock that never jumps, the sleep of the machine counted.
            last_event: When the last event was written down, if there was one.
        """
        if self._anchor is None and (last_event is None or last_event <= now):
            self._anchor = (now, uptime)
        wall, boot = self._anchor or (now, uptime)
        return clock_is_trusted(wall=now - wall, monotonic=uptime - boot, now=now, last_event=last_event)


#: An event written between asking for the time and asking for the last event, on whatever host, is no jump.
_IN_THE_SAME_BREATH = timedelta(minutes=1)


def clock_is_trusted(*, wall: timedelta, monotonic: timedelta, now: datetime, last_event: datetime | None) -> bool:
    """
    Whether the wall clock is ground enough to delete on.

    It is not when it has parted from the monotonic clock by more than an hour (a jump), nor while it is behind the last
    thing that was written down (it was set back, or the machine woke up in 1970). Both are counted from an anchor:
    the first look of this process at which the clock was not behind the last event. Were they counted from one look
    to the next, a jump would be forgotten a minute after it was seen. So a jump pauses what deletes until the clock
    has come back, or the service is started again by a person who has looked.

    Args:
        wall: By how much the wall clock went on since the anchor; negative when it was set back.
        monotonic: By how much a clock that never jumps did, the sleep of the machine counted (CLOCK_BOOTTIME).
        now: The wall clock; UTC.
        last_event: When the last event was written down, if there was one.

    >>> from datetime import UTC
    >>> clock_is_trusted(wall=timedelta(days=1), monotonic=timedelta(seconds=60),
    ...                  now=datetime(2030, 1, 2, tzinfo=UTC), last_event=None)
    False
    """
    if abs(wall - monotonic) > CLOCK_TOLERANCE:
        return False
    return last_event is None or now >= last_event - _IN_THE_SAME_BREATH
