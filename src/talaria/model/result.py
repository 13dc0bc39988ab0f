"""What a step of a chain wrote into `result.json`: read within bounds, as JSON that everything else can carry."""

import json
import math
from dataclasses import dataclass
from typing import Any

#: A larger file is not read: one page of results must stay in reach of memory.
SIZE_LIMIT_BYTES = 16 << 20

#: Levels of lists and objects in one another.
DEPTH_LIMIT = 64

#: Longer whole numbers than this no two programs agree on; more digits cost time that grows with their square.
_LONGEST_NUMBER = 400

FILE_NAME = "result.json"


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step said besides its images."""

    step: int
    """Of the chain, counted from 1."""
    module: str
    """Its name in the rulebook."""
    version: str
    """Which of it: the image, or our own version for a built-in module."""
    value: str
    """JSON, ASCII alone; empty where it could not be read."""
    trouble: str
    """Why it could not be read, or what was changed in it, in words; empty when all is well."""


class _Unreadable(ValueError):
    """Says why, in words."""


def read_result(data: bytes) -> tuple[str, str]:
    """
    JSON as a module wrote it, mended where no database or program could carry it.

    NaN and infinities, which JSON has not, become null; NUL and halves of characters are left out. Modules written
    for numpy write the former every day, and the rest of their result is good.

    Args:
        data: The file, at most one byte more than `SIZE_LIMIT_BYTES`.

    Returns:
        The JSON, ASCII alone, and what is wrong with it in words; one of them may be empty.

    >>> read_result(b'{"volume": 3.5, "ratio": NaN}')
    ('{"volume":3.5,"ratio":null}', 'NaN and infinities became null')
    >>> read_result(b"<html>")
    ('', 'is not JSON: Expecting value, line 1, column 1')
    """
    if len(data) > SIZE_LIMIT_BYTES:
        return "", f"is larger than {SIZE_LIMIT_BYTES >> 20} MB"
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_int=_whole)
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8 (byte {error.start})"
    except json.JSONDecodeError as error:
        return "", f"is not JSON: {error.msg}, line {error.lineno}, column {error.colno}"
    except _Unreadable as error:
        return "", str(error)
    except RecursionError:
        return "", f"has more than {DEPTH_LIMIT} levels"
    mending = _Mending()
    try:
        mended = mending.of(value, depth=0)
    except _Unreadable as error:
        return "", str(error)
    return json.dumps(mended, ensure_ascii=True, separators=(",", ":")), mending.told()


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise _Unreadable(f"holds a number of {len(digits)} digits")
    return int(digits)


class _Mending:
    """Makes a value carriable, and remembers what it changed."""

    def __init__(self) -> None:
        self._changes: dict[str, None] = {}

    def told(self) -> str:
        """What was changed, in words."""
        return "; ".join(self._changes)

    def of(self, value: Any, *, depth: int) -> Any:
        """The value, mended."""
        if depth > DEPTH_LIMIT:
            raise _Unreadable(f"has more than {DEPTH_LIMIT} levels")
        if isinstance(value, dict):
            return {self._text(key): self.of(item, depth=depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item, depth=depth + 1) for item in value]
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, float) and not math.isfinite(value):
            self._changes["NaN and infinities became null"] = None
            return None
        return value

    def _text(self, text: str) -> str:
        clean = text.replace("\0", "").encode("utf-8", "ignore").decode()
        if clean != text:
            self._changes["NUL and halves of characters were left out"] = None
        return clean
