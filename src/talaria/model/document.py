"""YAML text read into a tree that knows its lines: YAML 1.2 core schema, bounded, duplicate keys refused."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from pydantic import JsonValue
from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from talaria.model.errors import ConfigError, Position

#: A document is read into memory, and by people.
SIZE_LIMIT_BYTES = 1 << 20
#: Levels of lists and mappings in one another.
DEPTH_LIMIT = 32
#: Values in all, each alias counted with everything it stands for.
VALUE_LIMIT = 100_000
#: Problems that a message tells; all of them are kept.
TOLD_LIMIT = 50

#: Plain scalars that are no text (YAML 1.2.2 section 10.3.2).
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
#: Longer numbers are names of something, and no two programs agree on what they are.
_LONGEST_NUMBER = 18
_KNOWN_TAGS = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"})

#: What a scalar can mean.
Value = bool | int | float | str | None

#: What the parser would take for a tag, character by character, each time from the beginning.
_ENDLESS_TAG = re.compile(r"![\w!-]{1000}")

#: Keys and list positions from the top: `("rules", "ct", "process", 0)`.
Place = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, or worth knowing, in a document."""

    place: Place = ()
    """Empty where it is the document as a whole."""
    position: Position | None = None
    message: str
    caret: str = ""
    """The line of a rule with a caret below the column, where there is one."""

    @property
    def path(self) -> str:
        """The place as people write it: `rules.ct.process[0]`."""
        return path_of(self.place)

    @property
    def line(self) -> int | None:
        """Counted from 1."""
        return self.position.line if self.position else None

    def order(self) -> tuple[int, int]:
        """By which problems are sorted: as they come in the text."""
        return (self.position.line, self.position.column) if self.position else (0, 0)

    def __str__(self) -> str:
        where = [f"line {self.line}" if self.position else "", self.path]
        head = ": ".join(part for part in (*where, self.message) if part)
        return "\n    ".join([head, *self.caret.splitlines()])


def path_of(place: Place) -> str:
    """
    A place as people write it.

    >>> path_of(("rules", "ct", "process", 0, "module"))
    'rules.ct.process[0].module'
    """
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


class DocumentError(ConfigError):
    """
    A document that cannot be used.

    Attributes:
        problems: Everything found wrong with it, in the order of the lines.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        ordered = sorted(problems, key=Problem.order)
        self.problems = tuple(ordered)
        told = [str(problem) for problem in ordered[:TOLD_LIMIT]]
        more = len(ordered) - len(told)
        super().__init__("\n".join([*told, *([f"and {more} more"] if more else [])]))


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """One value, as written and as meant."""

    position: Position
    text: str
    """As written, without its quotes."""
    value: Value
    style: str | None
    """`'`, `"`, `|` or `>`; None for a plain one."""
    weight: int = 1
    height: int = 0


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A list."""

    position: Position
    items: tuple["Node", ...]
    weight: int
    """Values in it, itself included."""
    height: int
    """Levels below it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One key of a mapping and what it stands for."""

    position: Position
    """Of the key."""
    node: "Node"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A mapping; its keys are text, whatever they look like, in the order of the document."""

    position: Position
    entries: Mapping[str, Entry]
    weight: int
    height: int


Node = Scalar | Listing | Table


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document that could be read."""

    root: Table
    repeated: tuple[Problem, ...]
    """Keys that are given twice; the first stands in the tree."""


def decoded(data: bytes) -> str:
    """
    The text of a file: UTF-8, with or without a byte order mark.

    Raises:
        DocumentError: It is too large, UTF-16, or no text.
    """
    if len(data) > SIZE_LIMIT_BYTES:
        raise _refusal(f"is {len(data)} bytes; at most {SIZE_LIMIT_BYTES} are read")
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise _refusal("is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(
            f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8", Position(line=line, column=1)
        ) from None


def read(text: str) -> Document:
    """
    Read one YAML document whose top level is a mapping.

    Values follow the core schema of YAML 1.2, so that `on`, `NO` and `22:00` are text; keys are always text. `<<` is a
    key like any other. What JSON cannot carry (infinities, numbers past 18 digits, half a surrogate pair) is refused.

    Raises:
        DocumentError: It is too large, too deep, several documents, not YAML, or no mapping; with the line.
    """
    text = text.removeprefix("\ufeff")
    _check_text(text)
    builder = _Builder()
    try:
        for event in _events(text):
            builder.feed(event)
    except MarkedYAMLError as error:
        raise _refusal(_problem_of(error), _position(error.problem_mark or error.context_mark)) from None
    except ReaderError as error:
        position = Position(line=text.count("\n", 0, error.position) + 1, column=1)
        raise _refusal(f"control character {error.character:#04x} in the text; remove it", position) from None
    except (YAMLError, ValueError, OverflowError) as error:
        raise _refusal(f"cannot be read as YAML: {str(error).splitlines()[0]}", builder.position) from None
    return builder.document()


def _events(text: str) -> Iterator[events.Event]:
    """The events of YAML's own parser, which keeps no tree and so knows no depth."""
    yield from YAML(typ="safe", pure=True).parse(text)


def _check_text(text: str) -> None:
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        message = "a NUL character: this is UTF-16 or no text; save it as UTF-8"
        raise _refusal(message, Position(line=line, column=1))
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise _refusal("half a surrogate pair in the text; remove it", Position(line=line, column=1)) from None
    if size > SIZE_LIMIT_BYTES:
        raise _refusal(f"is {size} bytes; at most {SIZE_LIMIT_BYTES} are read")
    if endless := _ENDLESS_TAG.search(text):
        line = text.count("\n", 0, endless.start()) + 1
        raise _refusal("a tag of more than 1000 characters; leave it out", Position(line=line, column=1))


def _problem_of(error: MarkedYAMLError) -> str:
    parts = (str(part).splitlines()[0] for part in (error.problem, error.context) if part)
    return f"cannot be read as YAML: {' '.join(parts)}"


def _position(mark: Any) -> Position | None:
    return Position(line=mark.line + 1, column=mark.column + 1) if mark is not None else None


def _refusal(message: str, position: Position | None = None, place: Place = ()) -> DocumentError:
    return DocumentError((Problem(message=message, position=position, place=place),))


@dataclass(kw_only=True)
class _Open:
    """A list or mapping whose end has not been read."""

    position: Position
    place: Place
    is_table: bool
    anchor: str | None
    key: Scalar | None = None
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def next_place(self) -> Place:
        """Where the next value goes."""
        step: str | int = len(self.items) if not self.is_table else self.key.text if self.key else "?"
        return (*self.place, step)

    def closed(self) -> Listing | Table:
        """The finished node."""
        nodes = self.items or [entry.node for entry in self.entries.values()]
        weight = 1 + sum(node.weight for node in nodes)
        height = 1 + max((node.height for node in nodes), default=0)
        if self.is_table:
            return Table(position=self.position, entries=self.entries, weight=weight, height=height)
        return Listing(position=self.position, items=tuple(self.items), weight=weight, height=height)


class _Builder:
    """Makes the tree from events, with a stack of its own: depth is a number here and not a crash."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._weight = 0
        self._root: Node | None = None
        self._repeated: list[Problem] = []

    def document(self) -> Document:
        """What was read."""
        if self._root is None or (isinstance(self._root, Scalar) and self._root.value is None):
            raise _refusal("is empty; an empty rulebook says `rules: {}`")
        if not isinstance(self._root, Table):
            raise _refusal("should be a mapping such as `rules: {}` at its top level", self._root.position)
        return Document(root=self._root, repeated=tuple(self._repeated))

    def feed(self, event: events.Event) -> None:
        """Take the next event."""
        self.position = _position(event.start_mark)
        match event:
            case events.DocumentStartEvent():
                self._begin(event)
            case events.MappingStartEvent() | events.SequenceStartEvent():
                self._open(event)
            case events.MappingEndEvent() | events.SequenceEndEvent():
                self._close()
            case events.AliasEvent():
                self._add(self._alias(str(event.anchor)), anchor=None)
            case events.ScalarEvent():
                self._add(self._scalar(event), anchor=event.anchor)

    def _place(self) -> Place:
        return self._stack[-1].next_place if self._stack else ()

    def _refuse(self, message: str) -> DocumentError:
        return _refusal(message, self.position, self._place())

    def _begin(self, event: Any) -> None:
        if self._root is not None:
            raise self._refuse("a second document begins here; a rulebook is one")
        if event.version not in {None, (1, 2)}:
            raise self._refuse(f"is YAML {event.version[0]}.{event.version[1]}; only YAML 1.2 is read")

    def _open(self, event: Any) -> None:
        self._check_tag(event)
        if len(self._stack) >= DEPTH_LIMIT:
            raise self._refuse(f"more than {DEPTH_LIMIT} levels")
        position = _position(event.start_mark)
        if position is None:
            raise self._refuse("a place without a line")
        is_table = isinstance(event, events.MappingStartEvent)
        if self._stack and self._stack[-1].is_table and self._stack[-1].key is None:
            raise self._refuse("a key should be a word, not a list or a mapping")
        self._stack.append(_Open(position=position, place=self._place(), is_table=is_table, anchor=event.anchor))

    def _close(self) -> None:
        done = self._stack.pop()
        self._add(done.closed(), anchor=done.anchor, counted=True)

    def _alias(self, name: str) -> Node:
        if name not in self._anchors:
            raise self._refuse(f"alias *{name} stands for nothing; an anchor &{name} must come, and end, before it")
        node = self._anchors[name]
        if len(self._stack) + node.height > DEPTH_LIMIT:
            raise self._refuse(f"more than {DEPTH_LIMIT} levels through alias *{name}")
        return node

    def _scalar(self, event: Any) -> Scalar:
        self._check_tag(event)
        text: str = event.value
        value = text if event.style or event.ctag else self._meaning(text)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self._refuse("half a surrogate pair in the text; remove it") from None
        return Scalar(position=self.position or Position(line=1, column=1), text=text, value=value, style=event.style)

    def _meaning(self, text: str) -> Value:
        """A plain scalar by the core schema."""
        if text in _WORDS:
            return _WORDS[text]
        is_integer = _INTEGER.fullmatch(text) is not None
        if not is_integer and not _FLOAT.fullmatch(text) and not _NOT_FINITE.fullmatch(text):
            return text
        if is_integer and len(text) <= _LONGEST_NUMBER:
            return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
        if not is_integer and _FLOAT.fullmatch(text) and isfinite(float(text)):
            return float(text)
        raise self._refuse(f"{text[:40]} is no number that can be kept; put it in quotes if it is meant as text")

    def _check_tag(self, event: Any) -> None:
        tag = str(event.ctag) if event.ctag else None
        if tag not in _KNOWN_TAGS:
            raise self._refuse(f"tag {str(tag)[:60]} has no meaning here; leave it out")

    def _add(self, node: Node, *, anchor: str | None, counted: bool = False) -> None:
        """Put a finished node where it belongs."""
        self._weight += 1 if counted else node.weight
        if self._weight > VALUE_LIMIT:
            raise self._refuse(f"more than {VALUE_LIMIT} values, each alias counted with what it stands for")
        if anchor:
            self._anchors[str(anchor)] = node
        if not self._stack:
            self._root = node
        elif self._stack[-1].is_table:
            self._add_to_table(self._stack[-1], node)
        else:
            self._stack[-1].items.append(node)

    def _add_to_table(self, table: _Open, node: Node) -> None:
        if table.key is None:
            if not isinstance(node, Scalar):
                raise self._refuse("a key should be a word, not a list or a mapping")
            table.key = node
            return
        key, table.key = table.key, None
        first = table.entries.setdefault(key.text, Entry(position=key.position, node=node))
        if first.node is not node or first.position != key.position:
            self._repeated.append(_repeated((*table.place, key.text), key.position, first.position))


def _repeated(place: Place, position: Position, first: Position) -> Problem:
    return Problem(place=place, position=position, message=f"is given twice, first on line {first.line}")


def plain(node: Node) -> JsonValue:
    """The values without their lines."""
    match node:
        case Scalar():
            return node.value
        case Listing():
            return [plain(item) for item in node.items]
        case Table():
            return {key: plain(entry.node) for key, entry in node.entries.items()}


def locate(node: Node, place: Place) -> tuple[Position, Node | None]:
    """
    Where *place* is, counted from *node*: the position of its key, or of the nearest thing around it.

    Returns:
        The position, and the node itself; None where there is none.
    """
    position = node.position
    for step in place:
        match node:
            case Table() if step in node.entries:
                entry = node.entries[str(step)]
                position, node = entry.position, entry.node
            case Listing() if isinstance(step, int) and step < len(node.items):
                node = node.items[step]
                position = node.position
            case _:
                return position, None
    return position, node
