"""How large the values of a rule may become: what each weighs, and the operators, bounded before they run."""

import operator
from collections.abc import Callable, Iterator, Mapping
from datetime import date, timedelta
from typing import Any

from talaria.model.dicom import Tags

#: What a rule computes with: text, numbers, lists, dates, ...; looked at where it is used.
Value = Any

#: Steps that one evaluation may take; a step is a node of a loop's body, or 64 characters, or an item handed on.
STEP_LIMIT = 10_000
#: Characters of a text that a rule makes.
TEXT_LIMIT = 65_536
#: Bits of a whole number that a rule makes; what a float can hold.
INTEGER_BITS = 1_024
#: Characters that are read or made in one step.
CHARACTERS_PER_STEP = 64


class Unfit(Exception):  # no error of its own: the evaluator turns it into a RuleError with its place
    """An operation cannot take a value; the message never holds the value, which may name a patient."""


class Lacking(Unfit):
    """Something was looked for in a value and is not there: an item, a piece of text, the largest of nothing."""


class Exhausted(Unfit):
    """A limit of the whole evaluation is reached."""


class AbsentValue(Exception):  # an answer, no error: the rule does not match
    """A value that this series does not have was to be converted; the whole rule is false."""


#: What the kinds of values are called in messages; the first that fits.
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "nothing"),
    (bool, "a truth value"),
    ((int, float, complex), "a number"),
    (str, "a text"),
    (list, "a list"),
    (tuple, "a tuple"),
    ((set, frozenset), "a set"),
    (dict, "a dict"),
    (date, "a date"),
    (timedelta, "a span of time"),
    (Tags, "a set of tags"),
    (range, "a range"),
    (Iterator, "a generator"),
)

_CONTAINERS = (list, tuple, set, frozenset, dict)


def kind_of(value: Value) -> str:
    """
    What sort of value this is, for a message.

    >>> kind_of("CT"), kind_of(3.5), kind_of(len)
    ('a text', 'a number', 'a function')
    """
    return next((word for kind, word in _KINDS if isinstance(value, kind)), "a function")


def weigh(value: Value) -> int:
    """
    The steps that it takes to look at all of a value: one for each item at any depth, and one per 64 characters.

    An item that is reached twice weighs twice, as comparing or printing it would cost.

    Raises:
        Exhausted: It is more than a rule may take in all.

    >>> weigh(["CT", "MR", "x" * 640])
    14
    """
    weight = 0
    pending = [value]
    while pending:
        item = pending.pop()
        weight += 1
        if isinstance(item, str):
            weight += len(item) // CHARACTERS_PER_STEP
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, _CONTAINERS):
            pending += item
        if weight > STEP_LIMIT:
            raise Exhausted(f"the rule makes something with more than {STEP_LIMIT:,} items")
    return weight


def is_container(value: Value) -> bool:
    """Whether a value holds others, and holds them now."""
    return isinstance(value, _CONTAINERS)


def bounded_text(length: int) -> None:
    """
    Refuse to make a text of that many characters.

    Raises:
        Unfit: It is longer than a rule may make.
    """
    if length > TEXT_LIMIT:
        raise Unfit(f"the text becomes longer than {TEXT_LIMIT:,} characters")


def bounded_integer(bits: int) -> None:
    """
    Refuse to make a whole number of that many bits.

    Raises:
        Unfit: It is larger than a rule may make.
    """
    if bits > INTEGER_BITS:
        raise Unfit(f"the number becomes larger than {INTEGER_BITS:,} bits")


def add(left: Value, right: Value) -> Value:
    """`left + right`; a text within its limit."""
    if isinstance(left, str) and isinstance(right, str):
        bounded_text(len(left) + len(right))
    return left + right


def multiply(left: Value, right: Value) -> Value:
    """
    `left * right`, with the size of the answer known before it is made.

    >>> multiply("ab", 3)
    'ababab'
    """
    if isinstance(left, int) and isinstance(right, int):
        bounded_integer(left.bit_length() + right.bit_length() - 1)
    elif isinstance(right, str | list | tuple):
        return multiply(right, left) if isinstance(left, int) else left * right
    elif isinstance(left, str) and isinstance(right, int):
        bounded_text(len(left) * right)
    elif isinstance(left, list | tuple) and isinstance(right, int) and weigh(left) * right > STEP_LIMIT:
        raise Unfit(f"the answer becomes longer than {STEP_LIMIT:,} items")
    return left * right


def power(left: Value, right: Value) -> Value:
    """
    `left ** right`, with the size of the answer known before it is made.

    >>> power(2, 10)
    1024
    """
    if isinstance(left, int) and isinstance(right, int) and right > 0 and abs(left) > 1:
        bounded_integer((left.bit_length() - 1) * right)
    return left**right


def remainder(left: Value, right: Value) -> Value:
    """`left % right` of numbers; of a text it would be formatting, which is refused."""
    if isinstance(left, str):
        raise Unfit("'%' does not format text in rules; put the text together with '+'")
    return left % right


#: Symbol -> what it does.
BINARY: Mapping[str, Callable[[Value, Value], Value]] = {
    "+": add,
    "-": operator.sub,
    "*": multiply,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": remainder,
    "**": power,
    "|": operator.or_,
    "&": operator.and_,
    "^": operator.xor,
}


def invert(value: Value) -> Value:
    """`~value` of a whole number; of a truth value it would be a number that is always true."""
    if isinstance(value, bool):
        raise Unfit("'~' does not negate; write 'not'")
    return ~value


#: Symbol -> what it does.
UNARY: Mapping[str, Callable[[Value], Value]] = {"-": operator.neg, "+": operator.pos, "~": invert}


def _within(left: Value, right: Value) -> bool:
    return left in right


def _without(left: Value, right: Value) -> bool:
    return left not in right


#: Symbol -> what it tests.
COMPARE: Mapping[str, Callable[[Value, Value], Value]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": _within,
    "not in": _without,
    "is": operator.is_,
    "is not": operator.is_not,
}
