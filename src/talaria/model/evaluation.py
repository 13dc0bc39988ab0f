"""What runs when a rule is asked: the context, the count of steps, and the closures that a rule is compiled to."""

import ast
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from talaria.model.bounds import (
    CHARACTERS_PER_STEP,
    COMPARE,
    STEP_LIMIT,
    AbsentValue,
    Exhausted,
    Lacking,
    Unfit,
    Value,
    bounded_integer,
    bounded_text,
    is_container,
    kind_of,
    weigh,
)
from talaria.model.dicom import Tags
from talaria.model.errors import Position, RuleError
from talaria.model.functions import COSTS, METHODS, PATTERN_WORK, Method, RuleFunction, pattern_of
from talaria.model.ruletext import RuleText


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a rule is asked about."""

    tags: Tags
    """Of the series."""
    now: datetime
    """When it is asked; aware, in the rulebook's zone."""
    count: int
    """Instances of the series so far."""
    series: Sequence[Tags] = ()
    """All series of the study so far, this one among them."""
    values: Mapping[str, str] = field(init=False, repr=False, compare=False)
    """The tags, for quick look-up."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", self.tags.plain)


#: Said when the budget is spent.
TOO_MANY_STEPS = f"the rule takes more than {STEP_LIMIT:,} steps"


class Run:
    """One evaluation: what it reads, its variables, and the steps it has taken."""

    __slots__ = ("context", "root", "steps", "values", "variables")

    def __init__(self, context: Context, variables: int) -> None:
        self.context = context
        self.values = context.values
        self.variables: list[Value] = [None] * variables if variables else _NONE
        self.root = self
        self.steps = 0

    def branch(self) -> "Run":
        """The same evaluation with variables of its own: for a generator, which is read while others go on."""
        other = Run(self.context, 0)
        other.variables = [*self.variables]
        other.root = self.root
        return other

    def lacking(self, name: str) -> str:
        """A tag that does not stand under that very name: in another case, or `""`."""
        return self.context.tags.get(name, "")

    def charge(self, steps: int) -> None:
        """
        Count steps.

        Raises:
            Exhausted: There are too many.
        """
        root = self.root
        root.steps += steps
        if root.steps > STEP_LIMIT:
            raise Exhausted(TOO_MANY_STEPS)

    def charged(self, value: Value) -> Value:
        """The same value, its size counted; what comes one by one is counted as it comes."""
        if isinstance(value, str):
            if len(value) >= CHARACTERS_PER_STEP:
                self.charge(len(value) // CHARACTERS_PER_STEP)
        elif is_container(value):
            self.charge(weigh(value))
        elif isinstance(value, range):
            self.charge(len(value))
        elif isinstance(value, Iterator) and not isinstance(value, Generator):  # those of a loop count by themselves
            return self.each(value)
        return value

    def each(self, items: Iterable[Value]) -> Iterator[Value]:
        """The items, each counted as it comes."""
        for item in items:
            self.charge(weigh(item))
            yield item

    def made(self, value: Value) -> Value:
        """
        The same value, once it is known to be within its limit; its size counted.

        Raises:
            Unfit: It is not.
        """
        if isinstance(value, str):
            bounded_text(len(value))
            if len(value) >= CHARACTERS_PER_STEP:
                self.charge(len(value) // CHARACTERS_PER_STEP)
        elif isinstance(value, int):
            bounded_integer(value.bit_length())
        elif is_container(value):
            self.charge(weigh(value))
        return value


#: The variables of a rule that has none.
_NONE: list[Value] = []

Step: TypeAlias = Callable[[Run], Value]

#: What Python raises for values that an operation cannot take.
BREAKS = (Unfit, ArithmeticError, TypeError, ValueError, LookupError, MemoryError, RecursionError)


class Place:
    """Where a step stands, for the errors it may meet when it runs."""

    __slots__ = ("_position", "_shown", "_source", "_tags")

    def __init__(self, source: RuleText, node: ast.expr, *, at: Position | None = None, tags: Iterable[Step]) -> None:
        self._source = source
        self._position = at or source.start(node)
        shown = " ".join(source.segment(node).split())
        self._shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        self._tags = tuple(tags)

    def broke(self, run: Run, error: Exception, *operands: Value, verb: str = "take") -> Exception:
        """What to raise for *error*: an absent value makes the rule false, anything else is an error of the rule."""
        if isinstance(error, Exhausted):
            return self._source.error(str(error), self._position)
        if isinstance(error, Lacking | LookupError) and any(_is_absent(run, tag) for tag in self._tags):
            return AbsentValue()
        return self._source.error(f"{self._shown}: {in_words(error, operands, verb)}", self._position)


def _is_absent(run: Run, tag: Step) -> bool:
    """Whether a tag that was read is absent; what a generator read is gone with it."""
    try:
        value = tag(run)
    except (RuleError, AbsentValue, Unfit):
        return False
    return isinstance(value, str) and not value


def in_words(error: Exception, operands: Sequence[Value], verb: str) -> str:
    """Why an operation failed, without its values: they may name a patient."""
    match error:
        case Unfit():
            return str(error)
        case ZeroDivisionError():
            return "division by 0"
        case OverflowError():
            return "the number becomes too large"
        case IndexError():
            return "there is no item at that place"
        case KeyError():
            return "there is no such key"
        case MemoryError() | RecursionError():
            return "it becomes too large"
        case TypeError() if operands:
            kinds = " and ".join(kind_of(operand) for operand in operands)
            return f"cannot {verb} {kinds}{_hint(operands, verb)}"
        case _:
            return "a value is not one that it takes"


def _hint(operands: Sequence[Value], verb: str) -> str:
    types = {type(operand) for operand in operands}
    if str in types and types & {int, float}:
        return "; convert the text with number(...)"
    if str in types and verb in {"apply '&' to", "apply '|' to"}:
        return "; put each comparison in brackets"
    return ""


class Bound:
    """A function as a value, for `map(float, ...)`, `max(..., key=len)`."""

    __slots__ = ("_function", "_place", "_run")

    def __init__(self, run: Run, function: RuleFunction, place: Place) -> None:
        self._run = run
        self._function = function
        self._place = place

    def __call__(self, *arguments: Value) -> Value:
        self._run.charge(1)
        return invoke(self._run, self._function, self._place, arguments, {})


def invoke(
    run: Run, function: RuleFunction, place: Place, arguments: Sequence[Value], named: Mapping[str, Value]
) -> Value:
    """
    Call a function, the size of what it is given and of what it gives counted.

    Raises:
        RuleError, AbsentValue: It cannot take the values.
    """
    try:
        counted = [run.charged(argument) for argument in arguments]
        if function.name in COSTS:
            run.charge(COSTS[function.name](*counted, **named))
        return run.made(function.call(*counted, **named))
    except BREAKS as error:
        raise place.broke(run, error, *arguments) from None


def called_with_one(function: RuleFunction, argument: Step, place: Place) -> Step:
    """The call of a function with a single argument; as `invoke`, quicker."""
    call = function.call

    def call_with_one(run: Run) -> Value:
        value = argument(run)
        try:
            if value.__class__ is not str or len(value) >= CHARACTERS_PER_STEP:
                value = run.charged(value)
            answer = call(value)
            return answer if answer.__class__ is float or answer.__class__ is bool else run.made(answer)
        except BREAKS as error:
            raise place.broke(run, error, value) from None

    return call_with_one


def matching(text: Step, pattern: str, function: RuleFunction, place: Place) -> Step:
    """`matches` with a pattern that is known, compiled already; as `invoke`, quicker."""
    compiled = pattern_of(pattern)
    search, free = compiled.search, min(CHARACTERS_PER_STEP, PATTERN_WORK // compiled.programsize)

    def match(run: Run) -> Value:
        value = text(run)
        if value.__class__ is str and len(value) < free and value.isascii():
            return search(value.encode()) is not None
        return invoke(run, function, place, (value, pattern), {})

    return match


def method_of(value: Value, name: str) -> Method:
    """
    The method of that name that values of this kind have.

    Raises:
        Unfit: They have none.
    """
    kind = str if isinstance(value, str) else type(value)
    method = METHODS.get(kind, {}).get(name)
    if method is None:
        raise Unfit(f"{kind_of(value)} has no method '{name}'")
    return method


def constant(value: Value) -> Step:
    """Always the same."""

    def give(_: Run) -> Value:
        return value

    return give


def gathered(run: Run, steps: Iterable[tuple[Step, bool]]) -> list[Value]:
    """The values of several steps, each with whether it is `*items`, which stands for its items."""
    values: list[Value] = []
    for step, starred in steps:
        if starred:
            values += run.each(step(run))
        else:
            values.append(step(run))
    return values


def applied(run: Run, name: str, place: Place, value: Value, arguments: Sequence[Value]) -> Value:
    """
    Call a method, the size of what it is given and of what it gives counted.

    Raises:
        RuleError, AbsentValue: There is none, or it cannot take the values.
    """
    try:
        method = method_of(value, name)
        if not method.fewest <= len(arguments) <= method.most:
            raise Unfit(f"{kind_of(value)} has a method '{name}' that takes other arguments")
        counted = [run.charged(argument) for argument in arguments]
        return run.made(method.call(run.charged(value), *counted))
    except BREAKS as error:
        raise place.broke(run, error, value, *arguments, verb=f"call {name}() of") from None


def called_method(name: str, base: Step, steps: Sequence[tuple[Step, bool]], place: Place) -> Step:
    """The call of a method of whatever *base* gives; quick on short texts, which most are."""
    text = METHODS[str].get(name)
    if text and not steps and text.fewest == 0:
        return _method_of_text(text, name, base, place)
    if text and len(steps) == 1 and not steps[0][1] and text.fewest <= 1 <= text.most:
        return _method_with_text(text, name, base, steps[0][0], place)
    return lambda run: applied(run, name, place, base(run), gathered(run, steps))


def _method_of_text(method: Method, name: str, base: Step, place: Place) -> Step:
    call = method.call

    def call_quickly(run: Run) -> Value:
        value = base(run)
        if value.__class__ is str and len(value) < CHARACTERS_PER_STEP:
            return call(value)
        return applied(run, name, place, value, ())

    return call_quickly


def _method_with_text(method: Method, name: str, base: Step, argument: Step, place: Place) -> Step:
    call = method.call

    def call_quickly(run: Run) -> Value:
        value, given = base(run), argument(run)
        if value.__class__ is str is given.__class__ and len(value) + len(given) < CHARACTERS_PER_STEP:
            try:
                return call(value, given)
            except BREAKS as error:
                raise place.broke(run, error, value, given, verb=f"call {name}() of") from None
        return applied(run, name, place, value, (given,))

    return call_quickly


def joined(steps: Sequence[Step], *, is_and: bool) -> Step:
    """`and` or `or` of several steps."""
    if len(steps) == 2:
        left, right = steps
        if is_and:
            return lambda run: left(run) and right(run)
        return lambda run: left(run) or right(run)
    *others, last = steps

    def join(run: Run) -> Value:
        for step in others:
            value = step(run)
            if bool(value) is not is_and:
                return value
        return last(run)

    return join


def conditional(test: Step, body: Step, orelse: Step) -> Step:
    """`body if test else orelse`."""
    return lambda run: body(run) if test(run) else orelse(run)


#: Compares two values that were evaluated.
Link: TypeAlias = Callable[[Run, Value, Value], Value]

#: What costs nothing worth counting to compare.
_CHEAP = frozenset({str, int, float, bool, type(None)})


def comparison(symbol: str, place: Place) -> Link:
    """The comparison by *symbol*, the sizes of both sides counted."""
    test, searches = COMPARE[symbol], symbol in {"in", "not in"}
    verb = f"apply '{symbol}' to"

    def compare(run: Run, left: Value, right: Value) -> Value:
        try:
            if searches or left.__class__ not in _CHEAP or right.__class__ not in _CHEAP:
                return test(run.charged(left), run.charged(right))
            return test(left, right)
        except BREAKS as error:
            raise place.broke(run, error, left, right, verb=verb) from None

    return compare


def chained(steps: Sequence[Step], links: Sequence[Link]) -> Step:
    """`a < b < c`: each step evaluated once, and only while all before were true."""
    first, *others = steps

    def compare(run: Run) -> Value:
        left = first(run)
        answer: Value = True
        for step, link in zip(others, links, strict=True):
            right = step(run)
            answer = link(run, left, right)
            if not answer:
                return answer
            left = right
        return answer

    return compare


def compared_to(left: Step, fixed: Value, symbol: str, place: Place) -> Step:
    """A comparison with a constant, which costs nothing worth counting."""
    if symbol == "==":
        return lambda run: left(run) == fixed
    if symbol == "!=":
        return lambda run: left(run) != fixed
    test, verb = COMPARE[symbol], f"apply '{symbol}' to"

    def compare(run: Run) -> Value:
        value = left(run)
        try:
            return test(value, fixed)
        except BREAKS as error:
            raise place.broke(run, error, value, fixed, verb=verb) from None

    return compare


def searched(text: str, right: Step, symbol: str, link: Link) -> Step:
    """`"text" in right`, quick on short texts."""
    wanted = symbol == "in"

    def search(run: Run) -> Value:
        value = right(run)
        if value.__class__ is str and len(value) < CHARACTERS_PER_STEP:
            return (text in value) is wanted
        return link(run, text, value)

    return search


def among(left: Step, constants: Value, symbol: str, place: Place) -> Step:
    """`left in (...)` of constants only, which is paid for by the length of the rule."""
    wanted = symbol == "in"

    def search(run: Run) -> Value:
        value = left(run)
        try:
            return (value in constants) is wanted
        except TypeError:
            raise place.broke(run, Unfit(f"{kind_of(value)} cannot be looked up in a set")) from None

    return search


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One `for` of a comprehension."""

    items: Callable[[Run], Iterator[Value]]
    slot: int
    """The variable that takes each item."""
    unpack: Callable[[Run, Value], None] | None
    """Gives the item to several variables, where it has to be taken apart."""
    test: Step | None
    """Whether a round counts: its `if`s."""
    cost: int
    """Steps of one round."""
    place: Place


def looped(run: Run, items: Iterator[Value], loops: Sequence[Loop], element: Step) -> Iterator[Value]:
    """The values of *element* for every round of the loops, the outermost going through *items*."""
    loop, *inner = loops
    root, variables, slot, cost, test, unpack = run.root, run.variables, loop.slot, loop.cost, loop.test, loop.unpack
    for item in items:
        root.steps += cost
        if root.steps > STEP_LIMIT:
            raise loop.place.broke(run, Exhausted(TOO_MANY_STEPS))
        variables[slot] = item
        if unpack:
            unpack(run, item)
        if test and not test(run):
            continue
        if inner:
            yield from looped(run, inner[0].items(run), inner, element)
        else:
            yield element(run)
