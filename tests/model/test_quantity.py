"""Durations, sizes, rates and windows as people write them."""

from collections.abc import Callable
from datetime import time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.quantity import LONGEST, Window, duration, rate, size, span, spoken

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
TIMES = st.times().map(lambda moment: moment.replace(second=0, microsecond=0))


def understood(read: Callable[[object], object], written: object) -> tuple[object, str]:
    """What is read, or why it is not."""
    try:
        return read(written), ""
    except ValueError as error:
        return None, str(error)


@given(st.integers(0, 36500), st.sampled_from("smhd"))
def test_duration_is_number_times_unit(number: int, unit: str) -> None:
    """
    Every whole number with a unit is that many of the unit.
    """
    expected = timedelta(seconds=number * UNITS[unit])

    assert expected == duration(f"{number}{unit}")


@given(st.text() | st.integers() | st.none() | st.booleans() | st.floats() | st.lists(st.text()))
def test_anything_else_is_a_value_error(written: object) -> None:
    """
    Whatever is written, a quantity is understood within its bounds or refused in words; nothing else is raised.
    """
    for read in (duration, span, size, rate, Window.parse):
        value, message = understood(read, written)

        assert message == "" or "write" in message or "leave it out" in message
        assert not isinstance(value, timedelta) or timedelta(0) <= value <= LONGEST


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "'' is not a duration; write 90s, 15m, 2h, 3d or never"),
        (60, "60 is not a duration; write 90s, 15m, 2h, 3d or never"),
        (None, "nothing is not a duration; write 90s, 15m, 2h, 3d or never"),
        (["60s"], "this is not a duration; write 90s, 15m, 2h, 3d or never"),
        ("-5s", "'-5s' is not a duration; write 90s, 15m, 2h, 3d or never"),
        ("1h30m", "'1h30m' is not a duration; write 90s, 15m, 2h, 3d or never"),
        ("٣s", "'٣s' is not a duration; write 90s, 15m, 2h, 3d or never"),
        ("36501d", "'36501d' is longer than 36500d; write never for no end"),
    ],
)
def test_no_duration(written: object, message: str) -> None:
    """
    What is no duration is refused with what it should look like.
    """
    with pytest.raises(ValueError) as raised:
        duration(written)

    assert message == str(raised.value)


@pytest.mark.parametrize("written", ["0s", "never", "0d"])
def test_span_ends_and_is_something(written: str) -> None:
    """
    A quiet time of nothing, or without end, is refused.
    """
    with pytest.raises(ValueError) as raised:
        span(written)

    assert f"{written!r} is not possible here; write a duration such as 90s, 15m, 2h or 3d" == str(raised.value)


@given(st.timedeltas(timedelta(0), LONGEST))
def test_spoken_duration_is_exact(length: timedelta) -> None:
    """
    A duration in words is the whole seconds of it, in whatever unit.
    """
    number, unit = spoken(length).split()

    assert round(length.total_seconds()) == int(number) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]


@pytest.mark.parametrize(("written", "expected"), [("0", 0), ("1k", 1024), ("3t", 3 << 40), (17, 17)])
def test_size(written: object, expected: int) -> None:
    """
    Sizes count in powers of 1024; a bare number is bytes.
    """
    assert expected == size(written)


@pytest.mark.parametrize("written", ["8 g", "8gb", "1.5g", "-1", True, 1.5, "0x10", "9999999t"])
def test_no_size(written: object) -> None:
    """
    What is no size, or larger than any disk, is refused.
    """
    with pytest.raises(ValueError, match="write 512m or 8g"):
        size(written)


@given(TIMES, TIMES, TIMES)
def test_window_and_its_complement_make_a_day(start: time, end: time, moment: time) -> None:
    """
    A moment lies in a window or in the window that begins when it ends, never in both.
    """
    if start == end:
        return
    window, rest = Window(start=start, end=end), Window(start=end, end=start)

    assert window.contains(moment) is not rest.contains(moment)


@given(TIMES, TIMES)
def test_window_reads_what_it_prints(start: time, end: time) -> None:
    """
    A window survives being written and read.
    """
    if start == end:
        return
    window = Window(start=start, end=end)

    assert window == Window.parse(str(window))


def test_window_of_nothing() -> None:
    """
    A window that begins when it ends is refused: nobody knows whether it is never or always.
    """
    with pytest.raises(ValueError) as raised:
        Window.parse("10:00-10:00")

    assert "'10:00-10:00' begins when it ends; leave it out if it is meant to be all day" == str(raised.value)
