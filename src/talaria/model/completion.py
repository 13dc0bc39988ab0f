"""When a series or a study is complete: (last arrival, quiet time, now) -> Wait | Complete | TimedOut."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from talaria.model.quantity import spoken


class GiveUp(StrEnum):
    """What becomes of a study that never became complete."""

    DISCARD = "discard"
    PROCEED = "proceed"
    WAIT = "wait"


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Not yet."""

    until: datetime
    """Ask again then, or when something arrives; UTC, after *now*."""


@dataclass(frozen=True, kw_only=True)
class Complete:
    """It is what the rule asks for."""

    why: str
    """In words for people."""


@dataclass(frozen=True, kw_only=True)
class TimedOut:
    """It took longer than the rule allows."""

    action: GiveUp


Verdict = Wait | Complete | TimedOut


#: How soon a study is looked at again that waits for one of its series and for nothing else.
RECHECK = timedelta(seconds=1)


def series_verdict(
    last_received: datetime, *, quiet: timedelta, now: datetime, watched: timedelta = timedelta(0)
) -> Wait | Complete:
    """
    Whether a series has been quiet for *quiet*.

    The wall clock decides, so that a restart costs no second wait. When it stands before the last arrival it was set
    back and says nothing about how long ago that was: then only what the one who asks has itself watched counts, so
    a series is neither complete too early nor waited for until the clock is back where it was.

    Args:
        last_received: When the last instance was safe; UTC.
        quiet: How long nothing new must have come.
        now: UTC.
        watched: How long the one who asks has seen nothing new come, by its monotonic clock. Where it is not given,
            a series from the future waits, a quiet time at a time, until the clock has passed it.

    >>> from datetime import UTC
    >>> noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    >>> series_verdict(noon, quiet=timedelta(seconds=60), now=noon + timedelta(seconds=60))
    Complete(why='no new image for 60 s')
    """
    left = _left(last_received, quiet=quiet, now=now, watched=watched)
    return Wait(until=now + left) if left > timedelta(0) else Complete(why=f"no new image for {spoken(quiet)}")


def study_verdict(
    last_received: datetime,
    *,
    quiet: timedelta,
    series_waiting: bool,
    now: datetime,
    watched: timedelta = timedelta(0),
) -> Wait | Complete:
    """
    Whether a study has been quiet for *quiet*, and none of its series is still waiting for its own quiet time.

    Args:
        last_received: The latest arrival in any of its series; UTC.
        quiet: How long nothing new must have come.
        series_waiting: Whether a series of the study is not complete yet.
        now: UTC.
        watched: As for `series_verdict`.
    """
    left = _left(last_received, quiet=quiet, now=now, watched=watched)
    if left > timedelta(0):
        return Wait(until=now + left)
    if series_waiting:
        return Wait(until=now + RECHECK)
    return Complete(why=f"no new image in the study for {spoken(quiet)}")


def _left(last_received: datetime, *, quiet: timedelta, now: datetime, watched: timedelta) -> timedelta:
    """How much of the quiet time is still to come; not positive when it is over."""
    return quiet - (watched if now < last_received else now - last_received)
