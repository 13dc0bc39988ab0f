"""What a rule may call: functions, and methods of texts, lists, tuples, sets and dicts; nothing else can be called."""

import builtins
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import TypeVar

import re2  # type: ignore[import-untyped]  # it comes without types

from talaria.model.bounds import (
    STEP_LIMIT,
    AbsentValue,
    Lacking,
    Unfit,
    Value,
    bounded_integer,
    bounded_text,
    kind_of,
    power,
    weigh,
)

#: Characters of a pattern.
PATTERN_LIMIT = 1_000
#: Instructions of a compiled pattern, times characters of the text, that one step pays for.
PATTERN_WORK = 1_024
#: Bytes that one compiled pattern may take.
_PATTERN_MEMORY = 1 << 18
#: `factorial(170)` is the last that fits.
_FACTORIAL_LIMIT = 170
#: Digits that `round` may be asked for, either way.
_DIGITS_LIMIT = 308
#: Characters that `strip` may look for: it compares each with each.
_STRIP_LIMIT = 256
#: `format` takes fill, alignment, sign, width, grouping, precision and type: what is written here, nothing else.
_FORMAT = re.compile(r"(.?[<>=^])?[-+ ]?#?0?\d{0,3}[,_]?(\.\d{1,2})?[bcdeEfFgGnosxX%]?", re.DOTALL)

#: A date, with or without its separators, and a time that is not looked at.
_DATE = re.compile(r"(\d{4})([-.]?)(\d\d)\2(\d\d)([T ]?[\d:.]*([+-]\d{4})?)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RuleFunction:
    """A function that rules may call."""

    name: str
    call: Callable[..., Value]
    signature: inspect.Signature
    text: str
    """How it is written: `matches(text, pattern)`."""
    documentation: str


#: By name.
FUNCTIONS: dict[str, RuleFunction] = {}

F = TypeVar("F", bound=Callable[..., Value])


def rule_function(function: F) -> F:
    """
    Make *function* callable from rules, under its name without a trailing underscore.

    It is handed values whose size has been counted. It checks what it would make, and raises `Unfit` (never with a
    value in the message), `AbsentValue` for an empty text that it was to convert, or what Python raises.
    """
    name = function.__name__.removesuffix("_")
    signature = inspect.signature(function)
    arguments = ", ".join(("*" if p.kind is p.VAR_POSITIONAL else "") + p.name for p in signature.parameters.values())
    FUNCTIONS[name] = RuleFunction(
        name=name, call=function, signature=signature, text=f"{name}({arguments})",
        documentation=inspect.getdoc(function) or "",
    )  # fmt: skip
    return function


def _present(text: Value) -> Value:
    """The same value; a text that is empty was absent."""
    if isinstance(text, str) and not text.strip():
        raise AbsentValue
    return text


# --- what converts ----------------------------------------------------------------------------------------------------


@rule_function
def number(value: Value) -> Value:
    r"""
    The number that a text says; a number stays what it is.

    >>> number("2.50"), number(3)
    (2.5, 3)
    >>> number("0.5\\0.5")
    Traceback (most recent call last):
    talaria.model.bounds.Unfit: the text has several values; take one with values(...)[0]
    """
    if isinstance(value, str) and "\\" in value:
        raise Unfit("the text has several values; take one with values(...)[0]")
    converted = float_(value) if isinstance(value, str) else value
    if not isinstance(converted, int | float) or not math.isfinite(converted):
        raise Unfit("the value is not a number" if isinstance(value, str) else f"{kind_of(value)} is not a number")
    return converted


@rule_function
def date_(value: Value) -> date:
    """
    The day that a date, or a date with a time, says: `20261120`, `2026-11-20`, `2026.11.20` (PS3.5 6.2 DA and DT).

    >>> date_("20261120103000.5+0100")
    datetime.date(2026, 11, 20)
    """
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    if not isinstance(value, str):
        raise Unfit(f"{kind_of(value)} is not a date")
    found = _DATE.fullmatch(_present(value).strip())
    try:
        if found:
            return date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        pass
    raise Unfit("the value is not a date such as 20261120")


@rule_function
def values(text: Value) -> list[str]:
    r"""
    The single values of a multi-valued tag; none of an empty one (PS3.5 6.4).

    >>> values("ORIGINAL\\PRIMARY\\AXIAL"), values("")
    (['ORIGINAL', 'PRIMARY', 'AXIAL'], [])
    """
    if not isinstance(text, str):
        raise Unfit(f"{kind_of(text)} has no single values")
    return text.split("\\") if text else []


@rule_function
def float_(value: Value = 0.0) -> float:
    """
    As in Python.

    >>> float_(" 1.5 ")
    1.5
    """
    try:
        return builtins.float(_present(value))
    except ValueError:
        raise Unfit("the value is not a number") from None


@rule_function
def int_(value: Value = 0, base: Value = 10) -> int:
    """
    As in Python.

    >>> int_("007"), int_("ff", 16)
    (7, 255)
    """
    bounded_integer(len(value) * 3 if isinstance(value, str) else 0)
    try:
        return builtins.int(_present(value), base) if isinstance(value, str) else builtins.int(value)
    except ValueError:
        raise Unfit("the value is not a whole number") from None


@rule_function
def bool_(value: Value = False) -> bool:
    """
    Whether a value is true: not empty, not 0.

    >>> bool_("")
    False
    """
    return builtins.bool(value)


@rule_function
def str_(value: Value = "") -> str:
    """
    The text of a number, a date, a list, ...

    >>> str_(1.5)
    '1.5'
    """
    return value if type(value) is str else builtins.str(_plain(value))


@rule_function
def repr_(value: Value) -> str:
    """
    As in Python.

    >>> repr_("CT")
    "'CT'"
    """
    return builtins.repr(_plain(value))


@rule_function
def complex_(real: Value = 0, imag: Value = 0) -> complex:
    """
    As in Python.

    >>> complex_("1+2j")
    (1+2j)
    """
    try:
        return builtins.complex(_present(real)) if isinstance(real, str) else builtins.complex(real, imag)
    except ValueError:
        raise Unfit("the value is not a number") from None


@rule_function
def format_(value: Value, specification: Value = "") -> str:
    """
    As in Python, of texts and numbers; widths below 1,000.

    >>> format_(3.14159, ".2f")
    '3.14'
    """
    if not isinstance(value, str | int | float) or not isinstance(specification, str):
        raise Unfit(f"{kind_of(value)} cannot be formatted")
    if not _FORMAT.fullmatch(specification):
        raise Unfit("the format is not one that rules know; write it like '.2f' or '>8'")
    return builtins.format(value, specification)


def _plain(value: Value) -> Value:
    """The same value, if all of it is made of texts, numbers, dates and containers: the rest prints its address."""
    weigh(value)
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            pending += item
        elif not isinstance(item, str | int | float | complex | date | timedelta | range | None):
            raise Unfit(f"{kind_of(item)} has no text")
    return value


# --- texts ------------------------------------------------------------------------------------------------------------


@rule_function
def matches(text: Value, pattern: Value) -> bool:
    """
    Whether a regular expression is found anywhere in the text; `^` and `$` tie it to the ends, `(?i)` ignores case.

    The syntax is RE2's: it has no look-around and no back-references, and its time grows with the text, no faster.

    >>> matches("CHEST CT 2.0", "^CHEST.*[0-9]")
    True
    """
    if not isinstance(text, str) or not isinstance(pattern, str):
        raise Unfit(f"matches(text, pattern) cannot take {kind_of(text)} and {kind_of(pattern)}")
    return pattern_of(pattern).search(text.encode("utf-8", "replace")) is not None


def _pattern_cost(text: Value, pattern: Value) -> int:
    if not isinstance(text, str) or not isinstance(pattern, str):
        return 0
    return builtins.len(text) * builtins.int(pattern_of(pattern).programsize) // PATTERN_WORK


#: Functions that take more than one step, and how many.
COSTS: Mapping[str, Callable[..., int]] = {"matches": _pattern_cost}


@lru_cache(maxsize=512)
def pattern_of(pattern: str) -> "re2._Regexp":
    """
    A pattern, compiled.

    Raises:
        Unfit: It is too long, too large, or none.
    """
    if len(pattern) > PATTERN_LIMIT:
        raise Unfit(f"the pattern is longer than {PATTERN_LIMIT:,} characters")
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY
    options.never_capture = True
    options.log_errors = False
    try:
        return re2.compile(pattern.encode("utf-8", "replace"), options)
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        said = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else builtins.str(reason)
        raise Unfit(f"not a pattern that RE2 takes: {said[:120]}") from None


@rule_function
def len_(value: Value) -> int:
    """
    How many characters, items, tags there are.

    >>> len_("CT")
    2
    """
    return builtins.len(value)


@rule_function
def chr_(code: Value) -> str:
    """
    As in Python.

    >>> chr_(67)
    'C'
    """
    return builtins.chr(code)


@rule_function
def ord_(character: Value) -> int:
    """
    As in Python.

    >>> ord_("C")
    67
    """
    return builtins.ord(character)


@rule_function
def hex_(value: Value) -> str:
    """
    As in Python.

    >>> hex_(255)
    '0xff'
    """
    return builtins.hex(value)


@rule_function
def oct_(value: Value) -> str:
    """
    As in Python.

    >>> oct_(8)
    '0o10'
    """
    return builtins.oct(value)


@rule_function
def bin_(value: Value) -> str:
    """
    As in Python.

    >>> bin_(5)
    '0b101'
    """
    return builtins.bin(value)


# --- several values ---------------------------------------------------------------------------------------------------


@rule_function
def any_(items: Value) -> bool:
    """
    Whether one item at least is true.

    >>> any_(["", "CT"])
    True
    """
    return builtins.any(items)


@rule_function
def all_(items: Value) -> bool:
    """
    Whether every item is true.

    >>> all_([])
    True
    """
    return builtins.all(items)


@rule_function
def sum_(items: Value, start: Value = 0) -> Value:
    """
    The sum of numbers.

    >>> sum_([1, 2.5])
    3.5
    """
    total = start
    for item in items:
        if not isinstance(item, int | float | complex):
            raise Unfit(f"sum() cannot take {kind_of(item)}; convert it with number(...)")
        total = total + item
    return total


@rule_function
def min_(*items: Value, key: Value = None, default: Value = ...) -> Value:
    """
    As in Python.

    >>> min_(3, 2), min_([], default=0)
    (2, 0)
    """
    return _extreme(builtins.min, items, key, default)


@rule_function
def max_(*items: Value, key: Value = None, default: Value = ...) -> Value:
    """
    As in Python.

    >>> max_(["CT", "MRI"], key=len)
    'MRI'
    """
    return _extreme(builtins.max, items, key, default)


def _extreme(choose: Callable[..., Value], items: tuple[Value, ...], key: Value, default: Value) -> Value:
    candidates = builtins.list(items[0] if builtins.len(items) == 1 else items)
    weigh(candidates)
    if candidates:
        return choose(candidates, key=key)
    if default is ...:
        raise Lacking("there is nothing to choose from")
    return default


@rule_function
def sorted_(items: Value, key: Value = None, reverse: Value = False) -> list[Value]:
    """
    As in Python.

    >>> sorted_(["b", "a"])
    ['a', 'b']
    """
    listed = builtins.list(items)
    weigh(listed)
    return builtins.sorted(listed, key=key, reverse=builtins.bool(reverse))


@rule_function
def reversed_(items: Value) -> Iterator[Value]:
    """
    As in Python.

    >>> list_(reversed_("CT"))
    ['T', 'C']
    """
    return builtins.reversed(items)


@rule_function
def range_(start: Value, stop: Value = None, step: Value = 1) -> range:
    """
    As in Python, of at most 10,000 numbers.

    >>> range_(3)
    range(0, 3)
    """
    made = builtins.range(0, start, step) if stop is None else builtins.range(start, stop, step)
    first, last, stride = made.start, made.stop, made.step
    if abs(last - first) // abs(stride) > STEP_LIMIT:
        raise Unfit(f"range() of more than {STEP_LIMIT:,} numbers")
    return made


@rule_function
def enumerate_(items: Value, start: Value = 0) -> Iterator[Value]:
    """
    As in Python.

    >>> list_(enumerate_("C", 1))
    [(1, 'C')]
    """
    return builtins.enumerate(items, start)


@rule_function
def zip_(*items: Value) -> Iterator[Value]:
    """
    As in Python.

    >>> list_(zip_("C", "T"))
    [('C', 'T')]
    """
    return builtins.zip(*items, strict=False)


@rule_function
def map_(function: Value, *items: Value) -> Iterator[Value]:
    """
    As in Python; *function* is one of these functions, by its name.

    >>> list_(map_(float_, ["1", "2"]))
    [1.0, 2.0]
    """
    if not callable(function):
        raise Unfit("map() takes a function first, by its name")
    return builtins.map(function, *items)


@rule_function
def filter_(function: Value, items: Value) -> Iterator[Value]:
    """
    As in Python; *function* is one of these functions, by its name, or None.

    >>> list_(filter_(None, ["", "CT"]))
    ['CT']
    """
    if function is not None and not callable(function):
        raise Unfit("filter() takes a function first, by its name, or None")
    return builtins.filter(function, items)


@rule_function
def list_(items: Value = ()) -> list[Value]:
    """
    As in Python.

    >>> list_("CT")
    ['C', 'T']
    """
    return builtins.list(items)


@rule_function
def tuple_(items: Value = ()) -> tuple[Value, ...]:
    """
    As in Python.

    >>> tuple_("CT")
    ('C', 'T')
    """
    return builtins.tuple(items)


@rule_function
def set_(items: Value = ()) -> set[Value]:
    """
    As in Python.

    >>> set_("CC")
    {'C'}
    """
    return builtins.set(items)


@rule_function
def frozenset_(items: Value = ()) -> frozenset[Value]:
    """
    As in Python.

    >>> frozenset_("CC")
    frozenset({'C'})
    """
    return builtins.frozenset(items)


@rule_function
def dict_(items: Value = (), **named: Value) -> dict[Value, Value]:
    """
    As in Python.

    >>> dict_([("a", 1)], b=2)
    {'a': 1, 'b': 2}
    """
    return {**builtins.dict(items), **named}


# --- numbers ----------------------------------------------------------------------------------------------------------


@rule_function
def abs_(value: Value) -> Value:
    """
    As in Python.

    >>> abs_(-2)
    2
    """
    return builtins.abs(value)


@rule_function
def round_(value: Value, digits: Value = None) -> Value:
    """
    As in Python: to the even neighbour in the middle.

    >>> round_(2.567, 1)
    2.6
    """
    if isinstance(digits, int) and abs(digits) > _DIGITS_LIMIT:
        raise Unfit(f"round() takes at most {_DIGITS_LIMIT} digits")
    return builtins.round(value, digits)


@rule_function
def pow_(base: Value, exponent: Value, modulus: Value = None) -> Value:
    """
    As in Python; with a modulus, of numbers of at most 64 bits.

    >>> pow_(2, 10), pow_(2, 10, 1000)
    (1024, 24)
    """
    if modulus is None:
        return power(base, exponent)
    if any(isinstance(value, int) and value.bit_length() > 64 for value in (base, exponent, modulus)):
        raise Unfit("pow() with a modulus takes numbers of at most 64 bits")
    return builtins.pow(base, exponent, modulus)


@rule_function
def divmod_(left: Value, right: Value) -> Value:
    """
    As in Python.

    >>> divmod_(7, 2)
    (3, 1)
    """
    if isinstance(left, str):
        raise Unfit("divmod() cannot take a text")
    return builtins.divmod(left, right)


@rule_function
def factorial(value: Value) -> int:
    """
    As in Python, up to 170.

    >>> factorial(5)
    120
    """
    if value > _FACTORIAL_LIMIT:
        raise Unfit(f"factorial() takes numbers up to {_FACTORIAL_LIMIT}")
    return math.factorial(value)


@rule_function
def log(value: Value, base: Value = math.e) -> float:
    """
    The logarithm to *base*, the natural one where none is given.

    >>> round_(log(8, 2))
    3
    """
    return _logarithm(value) if base == math.e else _logarithm(value) / _logarithm(base)


def _logarithm(value: Value, logarithm: Callable[[float], float] = math.log) -> float:
    if isinstance(value, int | float) and value <= 0:
        raise Unfit("a logarithm takes a number above 0")
    return logarithm(value)


@rule_function
def log2(value: Value) -> float:
    """
    The logarithm to base 2.

    >>> log2(8)
    3.0
    """
    return _logarithm(value, math.log2)


@rule_function
def log10(value: Value) -> float:
    """
    The logarithm to base 10.

    >>> log10(100)
    2.0
    """
    return _logarithm(value, math.log10)


@rule_function
def sqrt(value: Value) -> float:
    """
    The square root.

    >>> sqrt(9)
    3.0
    """
    if isinstance(value, int | float) and value < 0:
        raise Unfit("a square root takes no number below 0")
    return math.sqrt(value)


@rule_function
def ceil(value: Value) -> Value:
    """
    The next whole number up.

    >>> ceil(1.2)
    2
    """
    return math.ceil(value)


@rule_function
def floor(value: Value) -> Value:
    """
    The next whole number down.

    >>> floor(1.8)
    1
    """
    return math.floor(value)


@rule_function
def trunc(value: Value) -> Value:
    """
    The whole number towards 0.

    >>> trunc(-1.8)
    -1
    """
    return math.trunc(value)


@rule_function
def fabs(value: Value) -> float:
    """
    The distance from 0.

    >>> fabs(-1)
    1.0
    """
    return math.fabs(value)


@rule_function
def exp(value: Value) -> float:
    """
    e to that power.

    >>> exp(0)
    1.0
    """
    return math.exp(value)


@rule_function
def sin(value: Value) -> float:
    """
    Of an angle in radians.

    >>> sin(0)
    0.0
    """
    return math.sin(value)


@rule_function
def cos(value: Value) -> float:
    """
    Of an angle in radians.

    >>> cos(0)
    1.0
    """
    return math.cos(value)


@rule_function
def tan(value: Value) -> float:
    """
    Of an angle in radians.

    >>> tan(0)
    0.0
    """
    return math.tan(value)


@rule_function
def asin(value: Value) -> float:
    """
    An angle in radians.

    >>> asin(0)
    0.0
    """
    return math.asin(value)


@rule_function
def acos(value: Value) -> float:
    """
    An angle in radians.

    >>> acos(1)
    0.0
    """
    return math.acos(value)


@rule_function
def atan(value: Value) -> float:
    """
    An angle in radians.

    >>> atan(0)
    0.0
    """
    return math.atan(value)


@rule_function
def atan2(y: Value, x: Value) -> float:
    """
    The angle of a point, in radians.

    >>> atan2(0, 1)
    0.0
    """
    return math.atan2(y, x)


@rule_function
def isinf(value: Value) -> bool:
    """
    Whether a number is infinite.

    >>> isinf(1.0)
    False
    """
    return math.isinf(value)


@rule_function
def isnan(value: Value) -> bool:
    """
    Whether a number is none.

    >>> isnan(float_("nan"))
    True
    """
    return math.isnan(value)


# --- methods ----------------------------------------------------------------------------------------------------------


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    times = text.count(old) if count < 0 else min(text.count(old), count)
    bounded_text(builtins.len(text) + times * (builtins.len(new) - builtins.len(old)))
    return text.replace(old, new, count)


def _join(text: str, items: Iterable[str]) -> str:
    parts = builtins.list(items)
    bounded_text(builtins.sum(builtins.len(part) for part in parts) + builtins.len(text) * builtins.len(parts))
    return text.join(parts)


def _expandtabs(text: str, tabsize: int = 8) -> str:
    bounded_text(builtins.len(text) + text.count("\t") * max(0, tabsize))
    return text.expandtabs(tabsize)


def _padded(pad: Callable[..., str]) -> Callable[..., str]:
    def method(text: str, width: int, *fill: str) -> str:
        bounded_text(width)
        return pad(text, width, *fill)

    return method


def _zfill(text: str, width: int) -> str:
    bounded_text(width)
    return text.zfill(width)


def _stripped(strip: Callable[..., str]) -> Callable[..., str]:
    def method(text: str, characters: str | None = None) -> str:
        if characters is not None and builtins.len(characters) > _STRIP_LIMIT:
            raise Unfit(f"strip() takes at most {_STRIP_LIMIT} characters")
        return strip(text, characters)

    return method


def _found(find: Callable[..., int]) -> Callable[..., int]:
    def method(value: Value, *arguments: Value) -> int:
        try:
            return find(value, *arguments)
        except ValueError:
            raise Lacking("what is looked for is not there") from None

    return method


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method that values of one kind have in rules."""

    call: Callable[..., Value]
    """Takes the value first."""
    fewest: int
    most: int
    """Arguments, all by position."""


def _methods(*entries: tuple[str, Callable[..., Value], int, int]) -> Mapping[str, Method]:
    return {name: Method(call=call, fewest=fewest, most=most) for name, call, fewest, most in entries}


#: By kind of value, then by name. Nothing here changes a value, and nothing reaches into one (`format`, `encode`).
METHODS: Mapping[type, Mapping[str, Method]] = {
    str: _methods(
        *((method.__name__, method, 0, 0) for method in (
            str.capitalize, str.casefold, str.lower, str.swapcase, str.title, str.upper,
            str.isalnum, str.isalpha, str.isascii, str.isdecimal, str.isdigit, str.isidentifier, str.islower,
            str.isnumeric, str.isprintable, str.isspace, str.istitle, str.isupper,
        )),
        *((method.__name__, _stripped(method), 0, 1) for method in (str.strip, str.lstrip, str.rstrip)),
        *((method.__name__, _padded(method), 1, 2) for method in (str.center, str.ljust, str.rjust)),
        *((method.__name__, method, 1, 3) for method in (str.startswith, str.endswith, str.count, str.find, str.rfind)),
        *((method.__name__, _found(method), 1, 3) for method in (str.index, str.rindex)),
        *((method.__name__, method, 0, 2) for method in (str.split, str.rsplit)),
        *((method.__name__, method, 1, 1) for method in (
            str.partition, str.rpartition, str.removeprefix, str.removesuffix,
        )),
        ("splitlines", str.splitlines, 0, 1), ("zfill", _zfill, 1, 1), ("replace", _replace, 2, 3),
        ("join", _join, 1, 1), ("expandtabs", _expandtabs, 0, 1),
    ),
    list: _methods(("count", list.count, 1, 1), ("index", _found(list.index), 1, 3)),
    tuple: _methods(("count", tuple.count, 1, 1), ("index", _found(tuple.index), 1, 3)),
    range: _methods(("count", range.count, 1, 1), ("index", _found(range.index), 1, 1)),
    dict: _methods(
        ("get", dict.get, 1, 2), ("keys", lambda value: [*value], 0, 0),
        ("values", lambda value: [*value.values()], 0, 0), ("items", lambda value: [*value.items()], 0, 0),
    ),
    **{kind: _methods(*((name, getattr(kind, name), 1, 1) for name in (
        "union", "intersection", "difference", "symmetric_difference", "issubset", "issuperset", "isdisjoint",
    ))) for kind in (set, frozenset)},
    float: _methods(("is_integer", float.is_integer, 0, 0)),
}  # fmt: skip

#: All names of methods.
METHOD_NAMES = frozenset(name for methods in METHODS.values() for name in methods)


#: What can be asked of a date, a moment and a span of time without a call; `weekday` counts from Monday, 0.
ATTRIBUTES: Mapping[type, Mapping[str, Callable[[Value], Value]]] = {
    date: {
        "year": lambda day: day.year, "month": lambda day: day.month, "day": lambda day: day.day,
        "weekday": lambda day: day.weekday(),
    },
    datetime: {
        "year": lambda now: now.year, "month": lambda now: now.month, "day": lambda now: now.day,
        "weekday": lambda now: now.weekday(), "hour": lambda now: now.hour, "minute": lambda now: now.minute,
        "second": lambda now: now.second, "date": lambda now: now.date(),
    },
    timedelta: {"days": lambda span: span.days, "seconds": lambda span: span.seconds},
}  # fmt: skip

#: All names of attributes.
ATTRIBUTE_NAMES = frozenset(name for attributes in ATTRIBUTES.values() for name in attributes)

#: Names that stand for a value.
CONSTANTS: Mapping[str, Value] = {"pi": math.pi, "e": math.e}
