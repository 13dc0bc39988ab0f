"""Quantities as people write them: durations, sizes, rates and a daily window of time."""

import re
from dataclasses import dataclass
from datetime import time, timedelta
from typing import Annotated, Self

from pydantic import BeforeValidator, GetCoreSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

#: Longer is a slip of the finger, and what is added to a date must stay a date.
LONGEST = timedelta(days=36500)
#: More than any disk.
LARGEST_BYTES = 1 << 60


def duration(text: object) -> timedelta | None:
    """
    A duration: a whole number and one of `s m h d`, or `never`.

    Returns:
        None for `never`.

    Raises:
        ValueError: It is written otherwise, or longer than 100 years.

    >>> duration("90s"), duration("15m"), duration("never")
    (datetime.timedelta(seconds=90), datetime.timedelta(seconds=900), None)
    >>> duration("15 minutes")
    Traceback (most recent call last):
    ValueError: '15 minutes' is not a duration; write 90s, 15m, 2h, 3d or never
    """
    if text == "never":
        return None
    match = re.fullmatch(r"([0-9]{1,12})([smhd])", text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"{_shown(text)} is not a duration; write 90s, 15m, 2h, 3d or never")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST.total_seconds():
        raise ValueError(f"{text!r} is longer than 36500d; write never for no end")
    return timedelta(seconds=seconds)


def span(text: object) -> timedelta:
    """
    A duration that ends and is not nothing.

    Raises:
        ValueError: It is `never`, zero, or no duration.

    >>> span("2h")
    datetime.timedelta(seconds=7200)
    >>> span("never")
    Traceback (most recent call last):
    ValueError: 'never' is not possible here; write a duration such as 90s, 15m, 2h or 3d
    """
    length = duration(text)
    if not length:
        raise ValueError(f"{text!r} is not possible here; write a duration such as 90s, 15m, 2h or 3d")
    return length


def size(text: object) -> int:
    """
    A size in bytes: a whole number, alone or with one of `k m g t`, each 1024 times the one before.

    Raises:
        ValueError: It is written otherwise, or above 2**60.

    >>> size("512m"), size("8g"), size(4096)
    (536870912, 8589934592, 4096)
    >>> size("8 GB")
    Traceback (most recent call last):
    ValueError: '8 GB' is not a size; write 512m or 8g
    """
    written = str(text) if isinstance(text, int) and not isinstance(text, bool) else text
    match = re.fullmatch(r"([0-9]{1,19})([kmgt]?)", written) if isinstance(written, str) else None
    if not match:
        raise ValueError(f"{_shown(text)} is not a size; write 512m or 8g")
    count = int(match[1]) * _BYTES[match[2]]
    if count > LARGEST_BYTES:
        raise ValueError(f"{_shown(text)} is larger than any disk; write 512m or 8g")
    return count


def rate(text: object) -> int:
    """
    A rate in bytes per second: a size followed by `/s`.

    Raises:
        ValueError: It is written otherwise, or is nothing.

    >>> rate("20m/s")
    20971520
    >>> rate("20m")
    Traceback (most recent call last):
    ValueError: '20m' is not a rate; write 20m/s
    """
    match = re.fullmatch(r"([0-9]{1,19}[kmgt]?)/s", text) if isinstance(text, str) else None
    if not match or not size(match[1]):
        raise ValueError(f"{_shown(text)} is not a rate; write 20m/s")
    return size(match[1])


def spoken(length: timedelta) -> str:
    """
    A duration for a sentence, in the largest unit that tells it whole and is not 1.

    >>> [spoken(timedelta(seconds=s)) for s in (1, 60, 90, 900, 5400, 7200, 259200)]
    ['1 s', '60 s', '90 s', '15 min', '90 min', '2 h', '3 d']
    """
    seconds = round(length.total_seconds())
    for unit, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % unit == 0 and seconds // unit >= 2:
            return f"{seconds // unit} {word}"
    return f"{seconds} s"


def _shown(written: object) -> str:
    """What was written, short enough for a message."""
    if written is None:
        return "nothing"
    return repr(written)[:60] if isinstance(written, str | int | float) else "this"


@dataclass(frozen=True, kw_only=True)
class Window:
    """A time of day that comes every day, perhaps over midnight."""

    start: time
    """The first moment of it."""
    end: time
    """The first moment that is no longer of it."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """
        A window from text: two times of a 24-hour clock with `-` between them.

        Raises:
            ValueError: It is written otherwise, or begins when it ends.

        >>> Window.parse("22:00-06:00").contains(time(23, 30))
        True
        >>> Window.parse("22-6")
        Traceback (most recent call last):
        ValueError: '22-6' is not a window of time; write "22:00-06:00"
        """
        match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d) ?- ?([01]?\d|2[0-3]):([0-5]\d)", str(text), re.ASCII)
        if not match:
            raise ValueError(f'{_shown(text)} is not a window of time; write "22:00-06:00"')
        start, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
        if start == end:
            raise ValueError(f"{_shown(text)} begins when it ends; leave it out if it is meant to be all day")
        return cls(start=start, end=end)

    def contains(self, moment: time) -> bool:
        """
        Whether a local time of day lies in the window.

        >>> [Window.parse("22:00-06:00").contains(time(hour)) for hour in (21, 22, 0, 6)]
        [False, True, True, False]
        """
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.parse)


_TEXT = WithJsonSchema({"type": "string"})

#: Fields of a form that are written as above.
Duration = Annotated[timedelta | None, BeforeValidator(duration), _TEXT]
Span = Annotated[timedelta, BeforeValidator(span), _TEXT]
Size = Annotated[int, BeforeValidator(size), _TEXT]
Rate = Annotated[int, BeforeValidator(rate), _TEXT]
