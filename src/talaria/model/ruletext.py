"""Reads the text of a rule: one Python expression, each part with its place in the text as it was written."""

import ast
import keyword
import re
import warnings
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from talaria.model.errors import Position, RuleError

#: Characters of a rule.
LENGTH_LIMIT = 65_536
#: Nodes of its syntax tree: as many steps as an evaluation may take, so that only loops need counting.
NODE_LIMIT = 10_000
#: How deep brackets may stand in brackets.
BRACKET_LIMIT = 50
#: How deep the syntax tree may be; well below what Python's own stack can take.
DEPTH_LIMIT = 100

_TOKEN = re.compile(
    r"""
    (?P<text>(?P<prefix>[A-Za-z]{0,2})
        (?: \"\"\"(?:[^\\"]|\\.|"(?!""))*\"\"\" | '''(?:[^\\']|\\.|'(?!''))*'''
          | "(?!"")(?:[^\\"\n]|\\.)*" | '(?!'')(?:[^\\'\n]|\\.)*' ))
    | (?P<quote>["'])
    | (?P<legacy>@(?P<tag>[^@\s"'()]{1,200})@)
    | (?P<comment>\#[^\n]*)
    | (?P<open>[(\[{]) | (?P<close>[)\]}])
    | (?P<word>[^\W\d]\w*)
    | (?P<sign>&&|\|\||===|<>|:=|<<|>>|!(?!=))
    | (?P<blank>\s+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

#: Control characters, line separators that editors do not show, and what turns the direction of writing around.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

#: Python's words that no expression holds.
_STATEMENTS = frozenset(keyword.kwlist) - {
    *("and", "or", "not", "in", "is", "if", "else", "for", "True", "False", "None"),
    *("lambda", "yield", "await", "async", "from"),  # refused by the compiler, which knows what they are
}

_SIGNS: Mapping[str, str] = {
    "&&": "use 'and', not '&&'",
    "||": "use 'or', not '||'",
    "!": "use 'not', not '!'",
    "===": "use '==', not '==='",
    "<>": "use '!=', not '<>'",
    ":=": "an assignment ':=' is not available in rules",
    "<<": "the operator '<<' is not available in rules",
    ">>": "the operator '>>' is not available in rules",
}

_F_STRING = "an f-string is not available in rules; put the text together with '+'"

_PAIRS = {"(": ")", "[": "]", "{": "}"}

_START = Position(line=1, column=1)


class RuleText:
    """The text of a rule, and where the nodes of its syntax tree stand in it."""

    __slots__ = ("lines", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        #: As Python counts them: a line ends with `\n`, `\r` or `\r\n` and nothing else.
        self.lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")

    def error(self, message: str, position: Position) -> RuleError:
        """The error that points at *position*."""
        return RuleError(message, position=position, source=self.text)

    def within(self, line: int, column: int) -> Position:
        """That place, or the nearest that the text has."""
        if line < 1:
            return _START
        if line > len(self.lines):
            return Position(line=len(self.lines), column=len(self.lines[-1].rstrip()) + 1)
        return Position(line=line, column=max(1, min(column, len(self.lines[line - 1]) + 1)))

    def start(self, node: ast.expr) -> Position:
        """Where *node* begins."""
        return self._position(node.lineno, node.col_offset)

    def end(self, node: ast.expr) -> Position:
        """The place behind *node*."""
        return self._position(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def ending(self, node: ast.Attribute) -> Position:
        """Where the last name of *node* begins: `SeriesDescription` in `tags.SeriesDescription`."""
        end = self.end(node)
        return self.within(end.line, end.column - len(node.attr))

    def symbol(self, left: ast.expr, right: ast.expr, symbol: str) -> Position:
        """Where the operator between two nodes stands."""
        after, before = self.end(left), self.start(right)
        for line in range(after.line, before.line + 1):
            first = after.column - 1 if line == after.line else 0
            column = self.lines[line - 1].find(symbol.split(maxsplit=1)[0], first)
            if column >= 0:
                return Position(line=line, column=column + 1)
        return self.start(left)

    def segment(self, node: ast.expr) -> str:
        """The text of *node*, as written."""
        start, end = self.start(node), self.end(node)
        lines = self.lines[start.line - 1 : end.line]
        lines[-1] = lines[-1][: end.column - 1]
        lines[0] = lines[0][start.column - 1 :]
        return "\n".join(lines)

    def _position(self, line: int, offset: int) -> Position:
        """Python counts lines from our opening bracket, and columns in bytes of UTF-8 from 0."""
        line -= 1
        if not 1 <= line <= len(self.lines):
            return self.within(line, 1)
        before = self.lines[line - 1].encode()[:offset]
        return Position(line=line, column=len(before.decode(errors="ignore")) + 1)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A rule that was read."""

    source: RuleText
    body: ast.expr
    legacy: Mapping[Position, str]
    """Tags written as `@Keyword@`, by where the first `@` stands; in *body* they are names of the same length."""


def read(text: str) -> Reading:
    """
    Read a rule.

    Raises:
        RuleError: It is no single expression, or one beyond the limits of this module.

    >>> read("tags.Modality = 'CT'")
    Traceback (most recent call last):
    talaria.model.errors.RuleError: use '==' to compare, not '=' (line 1, column 15)
    """
    source = RuleText(text)
    if len(text) > LENGTH_LIMIT:
        raise source.error(f"the rule has {len(text):,} characters; {LENGTH_LIMIT:,} are possible", _START)
    scan = _Scan(source)
    legacy = dict(scan.legacy())
    body = _parsed(source, scan.without_legacy)
    _measure(source, body)
    return Reading(source=source, body=body, legacy=legacy)


class _Scan:
    """Walks through the tokens of a rule and refuses what Python would take, or would not explain."""

    def __init__(self, source: RuleText) -> None:
        self._source = source
        self._text = "\n".join(source.lines)
        self._starts = [0, *accumulate(len(line) + 1 for line in source.lines)]
        self._plain = list(self._text)
        self._brackets: list[tuple[str, int]] = []

    @property
    def without_legacy(self) -> str:
        """The rule with each `@Keyword@` as a name of the same length, so that every place stays where it is."""
        return "".join(self._plain)

    def legacy(self) -> Iterator[tuple[Position, str]]:
        """Where a tag is written as `@Keyword@`."""
        if unseen := _UNSEEN.search(self._text):
            raise self._error(f"the character U+{ord(unseen[0]):04X} cannot be seen; delete it", unseen.start())
        is_empty = True
        for token in _TOKEN.finditer(self._text):
            kind = token.lastgroup
            is_empty &= kind in {"blank", "comment"}
            if kind == "legacy":
                self._plain[token.start() : token.end()] = "_" * len(token[0])
                yield self._position(token.start()), token["tag"]
            else:
                self._check(token[0], token)
        if is_empty:
            raise self._error("the rule is empty; write True to match every series", 0)
        if self._brackets:
            bracket, at = self._brackets[-1]
            raise self._error(f"'{bracket}' is never closed", at)

    def _check(self, symbol: str, token: re.Match[str]) -> None:
        match token.lastgroup:
            case "text" if "f" in token["prefix"].lower():
                raise self._error(_F_STRING, token.start())
            case "quote":
                raise self._error("the text that begins here is never closed", token.start())
            case "word" if symbol in _STATEMENTS:
                raise self._error(f"'{symbol}' is not available in rules; a rule is one expression", token.start())
            case "sign":
                raise self._error(_SIGNS[symbol], token.start())
            case "blank" if odd := symbol.strip(" \t\n"):
                raise self._error(f"the character U+{ord(odd[0]):04X} is no blank; write a plain one", token.start())
            case "open":
                self._open(symbol, token.start())
            case "close":
                self._close(symbol, token.start())

    def _open(self, bracket: str, at: int) -> None:
        self._brackets.append((bracket, at))
        if len(self._brackets) > BRACKET_LIMIT:
            raise self._error(f"brackets are nested deeper than {BRACKET_LIMIT}", at)

    def _close(self, bracket: str, at: int) -> None:
        if not self._brackets:
            raise self._error(f"'{bracket}' closes nothing", at)
        opened, _ = self._brackets.pop()
        if _PAIRS[opened] != bracket:
            raise self._error(f"'{bracket}' does not close '{opened}'", at)

    def _position(self, index: int) -> Position:
        line = bisect(self._starts, index)
        return Position(line=line, column=index - self._starts[line - 1] + 1)

    def _error(self, message: str, index: int) -> RuleError:
        return self._source.error(message, self._position(index))


def _parsed(source: RuleText, text: str) -> ast.expr:
    """The syntax tree; in brackets of ours, so that a rule may run over several lines."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" is a matter of taste here
            body = ast.parse(f"(\n{text}\n)", mode="eval").body
    except SyntaxError as error:
        raise _explained(source, error) from None
    except (RecursionError, MemoryError):
        raise source.error("the rule is nested too deeply", _START) from None
    except ValueError as error:  # characters that are none; refused before, kept as a second lock
        raise source.error(f"the rule cannot be read: {type(error).__name__}", _START) from None
    if isinstance(body, ast.GeneratorExp) and body.lineno == 1:
        raise source.error("a generator alone is always true; write any(...) or all(...)", _START)
    return body


def _explained(source: RuleText, error: SyntaxError) -> RuleError:
    """Python's message in words that help, at the place in the rule."""
    line, column = (error.lineno or 1) - 1, error.offset or 1
    position = source.within(line, column)
    if "'=='" in error.msg and (equals := _equals_sign(source, position)):
        return source.error("use '==' to compare, not '='", equals)
    if "forgot a comma" in error.msg:
        return source.error("an operator is missing between two values here, such as '==', 'in', 'and'", position)
    if "unicode error" in error.msg:
        return source.error("a text has a backslash with nothing that Python knows behind it; write it twice", position)
    if "Exceeds the limit" in error.msg:
        return source.error("the number is too large", position)
    if error.msg == "invalid syntax":
        equals = _equals_sign(source, position)
        if equals == position:
            return source.error("use '==' to compare, not '='", position)
        if line > len(source.lines):
            return source.error("the rule ends too early: something is missing here", position)
        return source.error("the rule cannot be understood from here on", position)
    return source.error(error.msg[:1].lower() + error.msg[1:].rstrip("."), position)


def _equals_sign(source: RuleText, position: Position) -> Position | None:
    """The first lone `=` at or behind *position* in its line."""
    line = source.lines[position.line - 1]
    found = re.compile(r"(?<![=!<>:])=(?!=)").search(line, position.column - 1)
    return Position(line=position.line, column=found.start() + 1) if found else None


def _measure(source: RuleText, body: ast.expr) -> None:
    """Refuse a tree that is too large or too deep."""
    pending: list[tuple[ast.AST, int]] = [(body, 1)]
    nodes = 0
    while pending:
        node, depth = pending.pop()
        nodes += 1
        if nodes > NODE_LIMIT:
            raise source.error(f"the rule has more than {NODE_LIMIT:,} parts", _START)
        if depth > DEPTH_LIMIT:
            raise source.error(f"the rule is nested deeper than {DEPTH_LIMIT} levels", _START)
        pending += ((child, depth + 1) for child in ast.iter_child_nodes(node) if not _is_mark(child))


def _is_mark(node: ast.AST) -> bool:
    """Whether a node says only how another is used: an operator, a context."""
    return isinstance(node, ast.expr_context | ast.operator | ast.boolop | ast.unaryop | ast.cmpop)


def size(node: ast.AST) -> int:
    """How many nodes there are at and below *node*."""
    return sum(1 for each in ast.walk(node) if not _is_mark(each))
