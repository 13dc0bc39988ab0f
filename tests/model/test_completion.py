"""When a series or a study is complete."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from talaria.model.completion import RECHECK, Complete, Wait, series_verdict, study_verdict

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(seconds=60)
SPANS = st.timedeltas(timedelta(seconds=1), timedelta(days=7))
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - made aware


def test_series_waits_until_it_was_quiet() -> None:
    """
    A series with an image 20 s ago and a quiet time of 60 s waits 40 s more.
    """
    now = NOON + timedelta(seconds=20)

    assert Wait(until=NOON + MINUTE) == series_verdict(NOON, quiet=MINUTE, now=now)


def test_series_is_complete_in_words() -> None:
    """
    At the end of the quiet time the series is complete, and says why.
    """
    assert Complete(why="no new image for 60 s") == series_verdict(NOON, quiet=MINUTE, now=NOON + MINUTE)


def test_study_is_complete_in_words() -> None:
    """
    A study that was quiet, with no series waiting, is complete, and says why.
    """
    now = NOON + 15 * MINUTE
    verdict = study_verdict(NOON, quiet=15 * MINUTE, series_waiting=False, now=now)

    assert Complete(why="no new image in the study for 15 min") == verdict


def test_study_waits_for_its_series() -> None:
    """
    A study that was quiet for long enough waits on while one of its series does.
    """
    now = NOON + 15 * MINUTE
    verdict = study_verdict(NOON, quiet=15 * MINUTE, series_waiting=True, now=now)

    assert Wait(until=now + RECHECK) == verdict


@given(MOMENTS, SPANS, MOMENTS)
def test_never_early_and_always_later_than_now(last: datetime, quiet: timedelta, now: datetime) -> None:
    """
    Whatever the clock says: complete means quiet for the whole time, and a wait ends after now and within the time.
    """
    match series_verdict(last, quiet=quiet, now=now):
        case Complete():
            assert now - last >= quiet
        case Wait(until=until):
            assert now < until <= now + quiet


@given(SPANS, st.timedeltas(timedelta(seconds=1), timedelta(days=4000)))
def test_clock_set_back_completes_nothing_early(quiet: timedelta, jump: timedelta) -> None:
    """
    An image that came just now is waited for a whole quiet time even when the clock was set back after it came.
    """
    now = NOON - jump

    assert Wait(until=now + quiet) == series_verdict(NOON, quiet=quiet, now=now)


@given(SPANS, st.timedeltas(timedelta(days=8), timedelta(days=4000)))
def test_clock_set_back_waits_no_longer_than_watched(quiet: timedelta, jump: timedelta) -> None:
    """
    With the clock set back by years, a series is complete once the one who asks has watched it be quiet.
    """
    now = NOON - jump

    assert isinstance(series_verdict(NOON, quiet=quiet, now=now, watched=quiet), Complete)
    assert isinstance(study_verdict(NOON, quiet=quiet, series_waiting=False, now=now, watched=quiet), Complete)


def test_watching_does_not_count_while_the_clock_is_right() -> None:
    """
    The wall clock decides while it is past the last arrival, so a long watch does not complete a series early.
    """
    now = NOON + timedelta(seconds=1)

    assert Wait(until=NOON + MINUTE) == series_verdict(NOON, quiet=MINUTE, now=now, watched=timedelta(hours=1))
