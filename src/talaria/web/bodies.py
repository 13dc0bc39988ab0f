"""Bodies of requests, read strictly: what they say they are, and JSON that means one thing only."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from typing import Any

from fastapi import HTTPException, Request

from talaria.web.problems import FieldProblem

#: Levels of lists and objects in one another.
DEPTH_LIMIT = 32

#: Longer whole numbers than this no two programs agree on.
_LONGEST_NUMBER = 18

JSON_TYPE = "application/json"


class BodyRefused(HTTPException):
    """A body that cannot be taken as it is; says which field."""

    def __init__(self, problems: list[FieldProblem], *, status: int = 422) -> None:
        super().__init__(status, "; ".join(f"{each.field}: {each.message}" for each in problems[:5]))
        self.problems = problems


class StrictRequest(Request):
    """A request whose JSON is read by `read_json`."""

    async def json(self) -> Any:
        """
        Its body.

        Raises:
            BodyRefused: See `read_json`.
        """
        return read_json(await self.body())


def media_type(content_type: str) -> str:
    """
    What a body is said to be, without its parameters (RFC 9110 8.3.1); empty where nothing is said.

    >>> media_type("Application/JSON; charset=utf-8")
    'application/json'
    """
    if not content_type:
        return ""
    message = Message()
    message["content-type"] = content_type
    return message.get_content_type()


def refuse_other_than_json(request: Request) -> None:
    """
    See that a body is said to be JSON, where there is one.

    Raises:
        HTTPException: 415.
    """
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    found = media_type(request.headers.get("content-type", ""))
    if has_body and found != JSON_TYPE and not (found.startswith("application/") and found.endswith("+json")):
        said = f"is said to be {found}" if request.headers.get("content-type") else "does not say what it is"
        raise HTTPException(415, f"the body {said}; send JSON with `Content-Type: {JSON_TYPE}`")


class _Repeated(dict[str, Any]):
    """An object in which a name is given more than once."""

    names: tuple[str, ...] = ()


class _NoNumber:
    """Stands where a number is none that can be kept."""


def read_json(data: bytes) -> Any:
    """
    JSON (RFC 8259) that means the same to everybody.

    Names given twice, NaN and infinities, numbers of more than 18 digits, NUL, halves of characters and more than
    `DEPTH_LIMIT` levels are refused.

    Raises:
        BodyRefused: 400 where it is no JSON at all, else 422 with each field that is wrong.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=lambda _: _NoNumber(),
            parse_int=_whole, parse_float=_fraction,
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise _refused("body", f"is not UTF-8 (byte {error.start})", status=400) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _refused("body", f"is not JSON: {error.msg} ({where})", status=400) from None
    except RecursionError:
        raise _refused("body", f"has more than {DEPTH_LIMIT} levels") from None
    problems = list(_problems(value))
    if problems:
        raise BodyRefused(problems)
    return value


def _refused(field: str, message: str, *, status: int = 422) -> BodyRefused:
    return BodyRefused([FieldProblem(field=field, message=message)], status=status)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    times = Counter(name for name, _ in pairs)
    repeated.names = tuple(name for name, count in times.items() if count > 1)
    return repeated


def _whole(digits: str) -> int | _NoNumber:
    return int(digits) if len(digits.lstrip("-")) <= _LONGEST_NUMBER else _NoNumber()


def _fraction(digits: str) -> float | _NoNumber:
    value = float(digits)
    return value if math.isfinite(value) else _NoNumber()


def _problems(root: Any) -> Iterator[FieldProblem]:
    """What is wrong with a value and all in it; by a list of its own, since depth must not be a crash."""
    waiting: list[tuple[str, int, Any]] = [("body", 0, root)]
    while waiting:
        field, depth, value = waiting.pop()
        if depth > DEPTH_LIMIT:
            yield FieldProblem(field=field[:200], message=f"is nested in more than {DEPTH_LIMIT} levels")
            return
        if isinstance(value, _NoNumber):
            yield FieldProblem(field=field, message="is no number that can be kept")
        elif isinstance(value, str) and not _is_clean(value):
            yield FieldProblem(field=field, message="has a NUL or half of a character in it; leave it out")
        elif isinstance(value, list):
            waiting += [(f"{field}.{number}", depth + 1, item) for number, item in enumerate(value)]
        elif isinstance(value, dict):
            if isinstance(value, _Repeated):
                names = [name for name in value.names if _is_clean(name)]
                yield from (FieldProblem(field=f"{field}.{name}", message="is given twice") for name in names[:20])
            if not all(map(_is_clean, value)):
                yield FieldProblem(field=field, message="has a name with a NUL or half of a character in it")
                continue
            waiting += [(f"{field}.{name}", depth + 1, item) for name, item in value.items()]


def _is_clean(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
