"""Why a rule is true of a series or not: the tree of its parts, what each came to, and which of them decided."""

import ast
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any, TypeAlias

from talaria.model.bounds import Value, kind_of
from talaria.model.errors import Position, RuleError
from talaria.model.ruletext import Reading


class Came(StrEnum):
    """What became of a part of a rule."""

    VALUE = "value"
    """It has a value; the last one, if it was evaluated several times."""
    ABSENT = "absent"
    """It converts something that the series does not have, and so the rule is false."""
    ERROR = "error"
    SKIPPED = "skipped"
    """It was not evaluated: what stands before it decided."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a rule."""

    text: str
    """As written."""
    position: Position
    came: Came
    value: str
    """As Python writes it, cut short; empty where there is none."""
    decided: bool
    """Whether the answer hangs on it."""
    children: tuple["Part", ...]

    def as_document(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "text": self.text, "line": self.position.line, "column": self.position.column, "came": self.came.value,
            "value": self.value, "decided": self.decided, "children": [child.as_document() for child in self.children],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a rule is true of a series, false, or in error; holds values of tags, so for those who may see them."""

    matches: bool | None
    """None where it is in error."""
    error: RuleError | None
    absent: tuple[str, ...]
    """The tags that were to be converted and are absent."""
    tree: Part

    @property
    def decisive(self) -> tuple[Part, ...]:
        """The smallest parts that decided, in their order."""
        return tuple(_leaves(self.tree))

    def as_document(self) -> dict[str, Any]:
        """As JSON shows it."""
        error = self.error and {
            "message": self.error.message, "line": self.error.position.line, "column": self.error.position.column,
        }  # fmt: skip
        return {
            "matches": self.matches, "error": error, "absent": list(self.absent), "tree": self.tree.as_document(),
        }  # fmt: skip


def _leaves(part: Part) -> Iterator[Part]:
    deciding = [child for child in part.children if child.decided]
    if not deciding:
        yield part
    for child in deciding:
        yield from _leaves(child)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one node came to."""

    came: Came
    value: Value = None


#: Filled as a rule runs.
Trace: TypeAlias = dict[ast.expr, Seen]


def explanation_of(
    reading: Reading, trace: Trace, tags: Mapping[ast.expr, str], *, matches: bool | None, failure: RuleError | None
) -> Explanation:
    """
    The explanation of one evaluation.

    Args:
        reading: The rule.
        trace: What its nodes came to.
        tags: Which tag a node reads.
        matches, failure: How it ended.
    """
    decisive = set(_deciding(reading.body, trace))
    absent = [
        name for node, name in tags.items()
        if name and matches is False and _is_absent(trace, node) and _under_absent(reading.body, node, trace)
    ]  # fmt: skip
    tree = _part(reading, reading.body, trace, tags, decisive)
    return Explanation(matches=matches, error=failure, absent=tuple(dict.fromkeys(absent)), tree=tree)


def _is_absent(trace: Trace, node: ast.expr) -> bool:
    seen = trace.get(node)
    return seen is not None and seen.came is Came.VALUE and seen.value == ""


def _under_absent(root: ast.expr, node: ast.expr, trace: Trace) -> bool:
    """Whether *node* stands in the innermost part that found a value absent."""
    found = [each for each in ast.walk(root) if isinstance(each, ast.expr) and _came(trace, each) is Came.ABSENT]
    return bool(found) and node in set(ast.walk(found[-1]))


def _came(trace: Trace, node: ast.expr) -> Came:
    seen = trace.get(node)
    return seen.came if seen else Came.SKIPPED


def _deciding(node: ast.expr, trace: Trace) -> Iterator[ast.expr]:
    """The nodes that the answer hangs on, from the top down."""
    yield node
    seen = trace.get(node)
    if seen is None:
        return
    for child in _weighty(node, seen, trace):
        yield from _deciding(child, trace)


def _weighty(node: ast.expr, seen: Seen, trace: Trace) -> Sequence[ast.expr]:
    children = [child for child in _children(node) if child in trace]
    if seen.came is not Came.VALUE:
        return [child for child in children if _came(trace, child) is seen.came]
    match node:
        case ast.BoolOp(op=ast.And()):
            return children if seen.value else children[-1:]
        case ast.BoolOp():
            return children[-1:] if seen.value else children
        case ast.UnaryOp(op=ast.Not()) | ast.IfExp():
            return children
        case _:
            return ()


def _children(node: ast.expr) -> Sequence[ast.expr]:
    """The sub-expressions of a node, in the order they are written."""
    match node:
        case ast.Attribute(value=ast.Name()):
            return ()
        case ast.Call(func=ast.Attribute(value=base), args=arguments, keywords=named):
            return [base, *arguments, *(keyword.value for keyword in named)]
        case ast.Call(args=arguments, keywords=named):
            return [*arguments, *(keyword.value for keyword in named)]
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
            return [*_loops(node.generators), node.elt]
        case ast.DictComp():
            return [*_loops(node.generators), node.key, node.value]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return [test, body, orelse]
        case _:
            return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]


def _loops(generators: Sequence[ast.comprehension]) -> Iterator[ast.expr]:
    for generator in generators:
        yield generator.iter
        yield from generator.ifs


def _part(
    reading: Reading, node: ast.expr, trace: Trace, tags: Mapping[ast.expr, str], decisive: set[ast.expr]
) -> Part:
    seen = trace.get(node)
    shown = [] if node in tags else [child for child in _children(node) if _is_worth_showing(child, tags)]
    return Part(
        text=reading.source.segment(node),
        position=reading.source.start(node),
        came=_came(trace, node),
        value=in_short(seen.value) if seen and seen.came is Came.VALUE else "",
        decided=node in decisive,
        children=tuple(_part(reading, child, trace, tags, decisive) for child in shown),
    )


def _is_worth_showing(node: ast.expr, tags: Mapping[ast.expr, str]) -> bool:
    """Constants say what they are, and `tags` or the name of a function stand for no value of their own."""
    match node:
        case ast.Name():
            return node in tags or node.id in {"now", "count"}
        case ast.Constant():
            return False
        case ast.List() | ast.Tuple() | ast.Set() | ast.UnaryOp() | ast.Slice():
            return any(_is_worth_showing(child, tags) for child in _children(node))
        case _:
            return True


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120
        self.maxlong = 40

    def repr_instance(self, x: object, level: int) -> str:  # as reprlib calls it
        if isinstance(x, float | complex | bool | range | type(None)):
            return repr(x)
        if isinstance(x, str):
            return self.repr_str(str(x), level)
        return str(x) if isinstance(x, date) else f"<{kind_of(x).split(maxsplit=1)[-1]}>"


def in_short(value: Value) -> str:
    """
    A value as Python writes it, cut short.

    >>> in_short("CT"), in_short(len)
    ("'CT'", '<function>')
    """
    return _Short().repr(value)
