"""
A bounded pass over the elements of a data set: skips by length, keeps what is wanted, enters nothing else (PS3.5 7).

It reads explicit and implicit VR, little and big endian, and deflated data sets; nothing recurses, and the limits
below hold whatever the bytes are.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from talaria.model.errors import NotAnInstance
from talaria.model.taglist import DEPTH_LIMIT, Level
from talaria.model.text import BINARY_VRS, TEXT_VRS

#: Elements and items looked at, at all levels together.
ELEMENT_LIMIT = 65_536
#: Bytes kept of one value: more than the longest that PS3.5 6.2 allows in ASCII (LT, 10,240); the rest is cut.
VALUE_LIMIT = 16 * 1024
#: Bytes kept of one value once all values of a level together are longer than `VALUES_LIMIT`.
SHORT_VALUE_LIMIT = 1024
VALUES_LIMIT = 128 * 1024
#: Calls of `read_on`.
READ_LIMIT = 1024
#: The shortest and the longest stretch asked of `read_on`, in bytes.
WINDOW_BYTES = (8 * 1024, 64 * 1024)
#: How far a deflated data set is inflated, in bytes; past it neither tags nor its end are seen.
INFLATE_LIMIT = 16 << 20

ReadOn = Callable[[int, int], bytes]
"""Given offset and length, the bytes of the data set there; fewer where it ends."""

_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
#: PS3.5 A.5 and the JPIP syntaxes that deflate the whole data set.
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

_UNDEFINED = 0xFFFFFFFF
_UNKNOWN_SIZE = 1 << 62
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = 0x7FE00010

#: VRs with a length of 32 bits after two reserved bytes (PS3.5 table 7.1-1).
_WIDE_VRS = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UN", "UT", "UC", "UR", "SV", "UV"})


class Halt(Exception):
    """The pass cannot or may not go on; the flags say why."""


class Order:
    """How numbers are read in one byte order."""

    def __init__(self, *, little_endian: bool) -> None:
        sign = "<" if little_endian else ">"
        codes = {int.from_bytes(vr.encode(), "little" if little_endian else "big"): vr for vr in TEXT_VRS | BINARY_VRS}
        self.little_endian = little_endian
        self.header = struct.Struct(sign + "IHH").unpack_from
        """Tag as one number, VR, 16-bit length."""
        self.plain = struct.Struct(sign + "II").unpack_from
        """Tag as one number, 32-bit length."""
        self.long = struct.Struct(sign + "I").unpack_from
        self.short = struct.Struct(sign + "H").unpack_from
        self.vrs = codes
        self.narrow = frozenset(code for code, vr in codes.items() if vr not in _WIDE_VRS)
        self.wide = frozenset(code for code, vr in codes.items() if vr in _WIDE_VRS)
        self.text = frozenset(code for code, vr in codes.items() if vr in TEXT_VRS)
        self.sq = next(code for code, vr in codes.items() if vr == "SQ")
        self.item = self.key(_ITEM)
        self.marks = {self.item: 1, self.key(_SEQUENCE_END): 1, self.key(_ITEM_END): 0}
        """What holds items together, read as one number: 1 among items, 0 among elements."""

    def key(self, tag: int) -> int:
        """The opposite of `tag`."""
        return ((tag & 0xFFFF) << 16) | (tag >> 16) if self.little_endian else tag

    def tag(self, key: int) -> int:
        """Group and element, as PS3.6 writes them, of a tag read as one number."""
        return ((key & 0xFFFF) << 16) | (key >> 16) if self.little_endian else key

    def codes(self, level: Level) -> Mapping[int, int]:
        """What the scanner does at a tag read as one number."""
        return level.little if self.little_endian else level.big


_LITTLE = Order(little_endian=True)
_BIG = Order(little_endian=False)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How elements are written (PS3.5 7.1)."""

    order: Order
    explicit: bool


_IMPLICIT_LITTLE = Encoding(order=_LITTLE, explicit=False)
#: Where these have an undefined length, their items are encoded as what is around them; all else is implicit.
_KEEP_ENCODING = frozenset({"", "SQ"})


class Element(NamedTuple):
    """The header of one element; a tuple, since hostile data sets have very many."""

    tag: int
    vr: str
    """Empty in implicit VR."""
    start: int
    """Where its value begins."""
    length: int
    """`_UNDEFINED` where a delimiter ends it."""


class Found:
    """What one pass over one level has found."""

    def __init__(self, level: Level, encoding: Encoding, *, is_top: bool) -> None:
        self.level = level
        self.is_top = is_top
        self.encoding = encoding
        self.codes = encoding.order.codes(level)
        self.values: dict[int, bytes] = {}
        """By slot, in the order found."""
        self.binary: list[tuple[int, str]] = []
        """Slots whose value is not text, with their VR."""
        self.sequences: list[tuple[int, Element, Encoding]] = []
        """Number, where it stands, and how its items are encoded."""
        self.creators: set[tuple[int, str]] = set()
        """(group, creator) of the private blocks met."""
        self.parity = 0
        """All lengths of wanted values, or-ed: odd as soon as one is."""
        self.last = -1
        """The slot found last, of those that have an order."""

    def admit(self, group: int, block: int, creator: str) -> None:
        """From here on take the wanted elements of a private block (PS3.5 7.8.1); the first block of a name counts."""
        wanted = self.level.private.get((group, creator))
        if wanted is None or (group, creator) in self.creators:
            return
        self.creators.add((group, creator))
        key = self.encoding.order.key
        self.codes = {**self.codes, **{key((group << 16) | (block << 8) | last): code for last, code in wanted.items()}}


class Pass:
    """One pass over one data set: what it sees of the bytes, and what it may still spend."""

    def __init__(self, head: bytes, *, size: int, read_on: ReadOn | None) -> None:
        self.head = head
        self.size = size
        """Of the data set in bytes; lowered when it turns out to end earlier."""
        self.read_on = read_on
        self.flags: set[str] = set()
        self.elements = ELEMENT_LIMIT
        self._buffer, self._base = head, 0
        self._reads = READ_LIMIT
        self._width = WINDOW_BYTES[0]

    def halt(self, flag: str) -> Halt:
        """Why the pass ends here."""
        self.flags.add(flag)
        return Halt(flag)

    # Seeing the bytes

    def window(self, at: int, need: int) -> tuple[bytes, int]:
        """
        A stretch of the data set and where it begins; holds *need* bytes from *at* on, or all that there are.

        Raises:
            Halt: They cannot be read, or too much was read already.
        """
        need = min(need, self.size - at)
        if self._base <= at and at + need <= self._base + len(self._buffer):
            return self._buffer, self._base
        if at + need <= len(self.head):
            self._buffer, self._base = self.head, 0
        else:
            follows = at <= self._base + len(self._buffer)
            self._width = min(self._width * 4, WINDOW_BYTES[1]) if follows else WINDOW_BYTES[0]
            self._buffer, self._base = self._read(at, max(need, self._width)), at
        return self._buffer, self._base

    def peek(self, at: int, need: int = 8) -> tuple[bytes, int]:
        """
        A stretch of the data set and where *at* lies in it; 8 bytes at least, *need* if there are so many.

        Raises:
            NotAnInstance: The data set ends before.
            Halt: See `window`.
        """
        buffer, base = self.window(at, need)
        if len(buffer) - (at - base) < 8:
            raise self.cut(at + 8)
        return buffer, at - base

    def _read(self, at: int, length: int) -> bytes:
        length = min(length, self.size - at)
        if length <= 0:
            return b""
        if self.read_on is None:
            raise self.halt("header-cut")
        if not self._reads:
            raise self.halt("read-limit")
        self._reads -= 1
        chunk = self.read_on(at, length)
        if len(chunk) < length:
            self.size = at + len(chunk)
        return chunk

    def value(self, start: int, length: int) -> bytes:
        """A value, cut at `VALUE_LIMIT`; may be cut otherwise where the data set ends."""
        length = min(length, VALUE_LIMIT + 1)
        buffer, base = self.window(start, length)
        return buffer[start - base : start - base + length]

    def spend(self) -> None:
        """Count one element or item outside the fast loops."""
        self.elements -= 1
        if self.elements < 0:
            raise self.halt("element-limit")

    # Walking a level

    def walk(self, found: Found, at: int, end: int) -> None:
        """
        Read the elements of one level, from *at* to *end* or to a delimiter.

        Raises:
            NotAnInstance: An element runs past the end of the data set.
            Halt: The level cannot be read to its end.
        """
        loop = self._explicit if found.encoding.explicit else self._implicit
        while 0 <= at < min(end, self.size):
            if min(end, self.size) - at < 8:
                at = self._rest(at, min(end, self.size))
                continue
            at, is_odd = loop(found, at, end)
            if is_odd:
                at = self._odd(found, at)
            elif at > self.size:
                raise self.cut(at)
        if at > end:
            self.flags.add("broken-sequence")

    def cut(self, at: int) -> NotAnInstance:
        """The data set ends before *at*, which an element promised to reach."""
        return NotAnInstance(
            f"data set of {self.size} bytes is cut off: an element goes on to byte {at}; send the instance again"
        )

    def _rest(self, at: int, end: int) -> int:
        """Fewer bytes than an element has: padding, or the data set was cut off in the middle of a header."""
        buffer, base = self.window(at, end - at)
        if buffer[at - base : end - base].strip(b"\0"):
            raise self.cut(at + 8)
        self.flags.add("trailing-bytes")
        return -1

    def _explicit(self, found: Found, at: int, end: int) -> tuple[int, bool]:
        """
        The fast loop for explicit VR; tables and offsets are local names, since each look-up counts here.

        Returns:
            Where it stopped, and whether an element that it does not understand begins there.
        """
        buffer, base = self.window(at, 12)
        order, values, public, get = found.encoding.order, found.values, found.level.public, found.codes.get
        header, long, narrow, wide, text = order.header, order.long, order.narrow, order.wide, order.text
        offset, limit, last, left = at - base, min(len(buffer), end - base) - 8, found.last, 0
        slot, start, length, parity, is_odd = None, 0, 0, 0, False
        for left in range(self.elements, -1, -1):  # noqa: B007 - what is left of the limit is settled in _after
            if offset > limit:
                break
            key, vr, length = header(buffer, offset)
            if vr in narrow:
                start = offset + 8
            elif vr in wide and offset + 4 <= limit:
                length = long(buffer, offset + 8)[0]
                start = offset + 12
                if length == _UNDEFINED:
                    is_odd = True
                    break
            else:
                is_odd = True
                break
            slot = get(key)
            if slot is not None:
                if last < slot < public:
                    last = slot
                elif slot < 0:
                    is_odd = True
                    break
                else:
                    self._disorder(found, slot)
                values[slot] = buffer[start : start + length]
                parity |= length
                if vr not in text:
                    found.binary.append((slot, order.vrs[vr]))
            offset = start + length
        found.parity, found.last = found.parity | parity, last
        slot = None if is_odd else slot
        return self._after(found, slot, base + start, length, left=left, at=base + offset), is_odd

    def _implicit(self, found: Found, at: int, end: int) -> tuple[int, bool]:
        """The fast loop for implicit VR; see `_explicit`."""
        buffer, base = self.window(at, 8)
        values, vrs, public, get = found.values, found.level.vrs, found.level.public, found.codes.get
        plain = found.encoding.order.plain
        offset, limit, last, left = at - base, min(len(buffer), end - base) - 8, found.last, 0
        slot, length, parity, is_odd = None, 0, 0, False
        for left in range(self.elements, -1, -1):  # noqa: B007 - what is left of the limit is settled in _after
            if offset > limit:
                break
            key, length = plain(buffer, offset)
            slot = get(key)
            if length == _UNDEFINED:
                is_odd = True
                break
            if slot is not None:
                if last < slot < public:
                    last = slot
                elif slot < 0:
                    is_odd = True
                    break
                else:
                    self._disorder(found, slot)
                values[slot] = buffer[offset + 8 : offset + 8 + length]
                parity |= length
                if vrs[slot] not in TEXT_VRS:
                    found.binary.append((slot, ""))
            offset += 8 + length
        found.parity, found.last = found.parity | parity, last
        slot = None if is_odd else slot
        return self._after(found, slot, base + offset - length, length, left=left, at=base + offset), is_odd

    def _after(self, found: Found, slot: int | None, start: int, length: int, *, left: int, at: int) -> int:
        """Settle what a fast loop has spent, and fetch the last value where it goes on behind the window."""
        if left <= 0:
            raise self.halt("element-limit")
        self.elements = left
        if slot is not None and at > self._base + len(self._buffer):
            found.values[slot] = self.value(start, length)
        return at

    def _disorder(self, found: Found, slot: int) -> None:
        """A wanted element is not the next one in order; private blocks have no order among each other."""
        if slot in found.values:
            self.flags.add("duplicate-element")
            found.binary = [(other, vr) for other, vr in found.binary if other != slot]
        elif slot < found.level.public:
            self.flags.add("out-of-order")

    # Elements that are not plain

    def _odd(self, found: Found, at: int) -> int:
        """
        An element that the fast loops leave alone: delimiter, wanted sequence, undefined length, unknown VR.

        Returns:
            Where the next element begins; -1 where the level ends.
        """
        self.spend()
        order = found.encoding.order
        key = order.plain(*self.peek(at))[0]
        code = found.codes.get(key)
        if code == Level.END:
            if not found.is_top:
                return -1
            self.flags.add("broken-sequence")
            return at + 8
        if code == Level.NOTHING:
            self.flags.add("trailing-bytes")
            return -1
        element = self.element(at, found.encoding)
        if element.length != _UNDEFINED and element.start + element.length > self.size:
            raise self.cut(element.start + element.length)
        inside = found.encoding if element.vr in _KEEP_ENCODING else _IMPLICIT_LITTLE
        self._note(found, element, code, inside)
        if element.length != _UNDEFINED:
            return element.start + element.length
        if element.tag == _PIXELS:
            return self._fragments(element.start, order)
        return self.skip(element.start, inside)

    def _note(self, found: Found, element: Element, code: int | None, inside: Encoding) -> None:
        """Keep what was wanted of an element that is not plain."""
        if code is None:
            return
        slot: int | None = code
        if code <= Level.SEQUENCE:
            found.sequences.append((Level.SEQUENCE - code, element, inside))
            slot = found.level.sequence_slots[Level.SEQUENCE - code]
        if code == Level.CREATOR:
            creator = self.value(element.start, element.length).decode("latin-1").strip(" \0")
            found.admit(element.tag >> 16, element.tag & 0xFF, creator)
            slot = found.level.creators.get(element.tag)
        if slot is None or slot < 0:
            return
        found.values[slot] = b"" if element.length == _UNDEFINED else self.value(element.start, element.length)
        if (element.vr or found.level.vrs[slot]) not in TEXT_VRS:
            found.binary.append((slot, element.vr))

    def element(self, at: int, encoding: Encoding) -> Element:
        """
        The header of the element at *at*.

        Raises:
            Halt: Its VR does not exist, and its length cannot be guessed either.
            NotAnInstance: The data set ends within the header.
        """
        buffer, offset = self.peek(at, 12)
        key, vr, length = encoding.order.header(buffer, offset)
        tag = encoding.order.tag(key)
        if not encoding.explicit or tag >> 16 == 0xFFFE:
            length = encoding.order.long(buffer, offset + 4)[0]
            return Element(tag, "", at + 8, length)
        if vr in encoding.order.narrow:
            return Element(tag, encoding.order.vrs[vr], at + 8, length)
        if vr in encoding.order.wide:
            if self.size - at < 12:
                raise self.cut(at + 12)
            length = encoding.order.long(buffer, offset + 8)[0]
            return Element(tag, encoding.order.vrs[vr], at + 12, length)
        return self._guess(at, tag, encoding.order)

    def _guess(self, at: int, tag: int, order: Order) -> Element:
        """An element whose VR does not exist: the first reading of its length that leads to another element."""
        self.flags.add("unknown-vr")
        buffer, offset = self.peek(at, 12)
        readings = [(at + 8, order.short(buffer, offset + 6)[0]), (at + 8, order.long(buffer, offset + 4)[0])]
        if self.size - at >= 12:
            readings.insert(1, (at + 12, order.long(buffer, offset + 8)[0]))
        for start, length in readings:
            if length != _UNDEFINED and self._leads_on(start + length, tag, order):
                return Element(tag, "UN", start, length)
        raise self.halt("unknown-vr")

    def _leads_on(self, at: int, tag: int, order: Order) -> bool:
        """Whether an element could begin at *at*, behind the one with this *tag*."""
        if at >= self.size - 8:
            return at == self.size
        buffer, base = self.window(at, 8)
        if len(buffer) - (at - base) < 8:
            return False
        key, vr, _ = order.header(buffer, at - base)
        return order.tag(key) > tag and (vr in order.vrs or order.tag(key) >> 16 == 0xFFFE)

    # Skipping what has no length

    def skip(self, at: int, encoding: Encoding, *, depth: int = 1, floor: int = 0) -> int:
        """
        Past the end of a sequence or item of undefined length (PS3.5 7.5), however deep it is nested.

        No stack is needed: at an odd *depth* stand items, at an even one elements, and a UN that makes everything
        below it implicit (PS3.5 6.2.2) is remembered by its depth.

        Returns:
            Where the next element begins.

        Raises:
            Halt: What stands there is no item, or nothing ends it.
            NotAnInstance: It runs past the end of the data set.
        """
        order, implicit_from, inside, deepest = encoding.order, 0, encoding, depth
        header, long, narrow, wide, marks = order.header, order.long, order.narrow, order.wide, order.marks
        while depth > floor:
            if at > self.size - 8:
                raise self.halt("no-delimiter") if at == self.size else self.cut(max(at, self.size + 1))
            buffer, offset = self.peek(at, 12)
            base, explicit, is_odd, left = at - offset, inside.explicit, False, 0
            limit = len(buffer) - (8 if base + len(buffer) >= self.size else 12)
            for left in range(self.elements, -1, -1):  # noqa: B007 - what is left of the limit is settled below
                if offset > limit or depth <= floor:
                    break
                key, vr, length = header(buffer, offset)
                if (due := marks.get(key)) is not None:
                    if due != depth % 2:
                        raise self.halt("broken-sequence")
                    length = long(buffer, offset + 4)[0]
                    offset += 8
                    if key != order.item:
                        length, depth = 0, depth - 1
                        explicit = explicit or (encoding.explicit and depth < implicit_from)
                elif depth % 2:
                    raise self.halt("broken-sequence")
                elif not explicit:
                    length = long(buffer, offset + 4)[0]
                    offset += 8
                elif vr in narrow:
                    offset += 8
                elif vr in wide and offset + 12 <= len(buffer):
                    length = long(buffer, offset + 8)[0]
                    offset += 12
                    if length == _UNDEFINED and vr != order.sq:
                        implicit_from, explicit = depth + 1, False
                else:
                    is_odd = True
                    break
                if length != _UNDEFINED:
                    offset += length
                    continue
                depth += 1
                deepest = max(deepest, depth)
            at, inside = base + offset, encoding if explicit == encoding.explicit else _IMPLICIT_LITTLE
            self._settle(left, deepest)
            if is_odd:
                element = self.element(at, inside)
                at = element.start + element.length
        return at

    def _settle(self, left: int, deepest: int) -> None:
        """What `skip` has spent in one window, and whether it went too deep."""
        if left <= 0:
            raise self.halt("element-limit")
        self.elements = left
        if deepest > 2 * DEPTH_LIMIT:
            self.flags.add("too-deep")

    def _item(self, at: int, order: Order) -> Element:
        """What stands where an item is due: an item, the delimiter behind the last one, or rubbish (PS3.5 7.5)."""
        key, length = order.plain(*self.peek(at))
        return Element(order.tag(key), "", at + 8, length)

    def _fragments(self, at: int, order: Order) -> int:
        """
        Past encapsulated pixel data (PS3.5 A.4).

        A data set that ends with a delimiter is taken to be whole. Otherwise the fragments are counted through.

        Returns:
            Where the next element begins; -1 where that is not known.
        """
        if self.read_on is None and self.size > len(self.head):
            return -1
        if self.size != _UNKNOWN_SIZE:
            tail = self.value(self.size - 8, 8)
            if order.tag(order.plain(tail, 0)[0]) == _SEQUENCE_END:
                return self.size
        try:
            return self.skip(at, Encoding(order=order, explicit=True))
        except Halt:
            return -1  # its flag is set; the header itself was read to its end

    # Wanted sequences

    def items(self, sequence: Element, encoding: Encoding, *, last: int) -> list[tuple[int, int]]:
        """
        Where the items up to number *last* begin and end; an end is the data set's where a delimiter ends an item.

        Raises:
            Halt: What stands there is no item.
            NotAnInstance: An item runs past the end of the data set.
        """
        bounded = sequence.length != _UNDEFINED
        at, end = sequence.start, sequence.start + sequence.length if bounded else self.size
        found: list[tuple[int, int]] = []
        while at < end and len(found) <= last:
            self.spend()
            if min(end, self.size) - at < 8:
                raise self.halt("broken-sequence")
            item = self._item(at, encoding.order)
            if item.tag != _ITEM:
                break
            if item.length == _UNDEFINED:
                found.append((item.start, end))
                at = self.skip(item.start, encoding, depth=2, floor=1) if len(found) <= last else end
            else:
                found.append((item.start, min(item.start + item.length, end)))
                at = item.start + item.length
        return found


def recognise(one: Pass, transfer_syntax_uid: str) -> tuple[int, Encoding]:
    """
    Where the data set begins, and how it is encoded by the looks of its first element.

    Raises:
        NotAnInstance: There is not even one element.
    """
    try:
        at = _past_meta(one)
        buffer, offset = one.peek(at)
    except Halt as halt:
        raise NotAnInstance(f"the beginning of the data set cannot be read ({halt})") from halt
    first = buffer[offset : offset + 8]
    stated = Encoding(
        order=_BIG if transfer_syntax_uid == _BIG_ENDIAN else _LITTLE, explicit=transfer_syntax_uid != _IMPLICIT
    )
    order = stated.order
    if (first[0] == 0) != (first[1] == 0):  # the first group is below 0100, so one of its bytes is 0
        order = _BIG if first[0] == 0 else _LITTLE
    seen = Encoding(order=order, explicit=order.header(first)[1] in order.vrs)
    if seen == stated or (seen.explicit < stated.explicit and not _reads_implicit(one, at, first)):
        return at, stated
    one.flags.add("other-encoding")
    return at, seen


def _reads_implicit(one: Pass, at: int, first: bytes) -> bool:
    """Whether what claims to be explicit VR and has no VR makes sense as implicit VR."""
    key, length = _LITTLE.plain(first)
    following = at + 8 + length
    if length == _UNDEFINED or following > one.size - 8:
        return bool(length != _UNDEFINED and following == one.size)
    try:
        return _LITTLE.tag(_LITTLE.plain(*one.peek(following))[0]) > _LITTLE.tag(key)
    except (Halt, NotAnInstance):
        return False


def _past_meta(one: Pass) -> int:
    """Where group 0002 ends, if somebody put it into the data set; always explicit little endian (PS3.10 7.1)."""
    at, encoding = 0, Encoding(order=_LITTLE, explicit=True)
    while one.size - at >= 8:
        buffer, offset = one.peek(at)
        if buffer[offset : offset + 2] != b"\x02\x00":
            break
        one.spend()
        one.flags.add("meta-in-data-set")
        element = one.element(at, encoding)
        at = element.start + element.length
    if at > one.size:
        raise one.cut(at)
    return at


def plain(head: bytes, size: int | None, read_on: ReadOn | None) -> Pass:
    """A pass over a data set that stands there as it is; arguments as of `inflated`."""
    unknown = len(head) if read_on is None else _UNKNOWN_SIZE
    return Pass(head, size=unknown if size is None else size, read_on=read_on)


def inflated(head: bytes, size: int | None, read_on: ReadOn | None) -> Pass:
    """
    A pass over what a deflated data set holds, up to `INFLATE_LIMIT` (PS3.5 A.5).

    Args:
        head: Its first bytes.
        size: All its bytes; None without *read_on* means that *head* is all, with it that nobody knows.
        read_on: Reads on behind *head*.

    Raises:
        NotAnInstance: It is not deflated data, or ends too early.
    """
    unknown = len(head) if read_on is None else _UNKNOWN_SIZE
    source = _Chunks(head, size=unknown if size is None else size, read_on=read_on)
    try:
        data, is_whole = _inflate(source)
    except zlib.error as error:
        raise NotAnInstance(f"deflated data set cannot be inflated: {error}") from error
    if is_whole:
        return Pass(data, size=len(data), read_on=None)
    if len(data) < INFLATE_LIMIT and source.is_spent:
        raise NotAnInstance("deflated data set is cut off: its last block has no end; send the instance again")
    one = Pass(data, size=_UNKNOWN_SIZE, read_on=None)
    one.flags.add("inflate-limit" if len(data) >= INFLATE_LIMIT else "header-cut")
    return one


class _Chunks:
    """The bytes of a deflated data set one stretch after the other."""

    def __init__(self, head: bytes, *, size: int, read_on: ReadOn | None) -> None:
        self._next, self._at, self._size, self._read_on = head, 0, size, read_on
        self.is_spent = False
        """Whether the data set ended, not only what could be read of it."""

    def next(self) -> bytes:
        """The next stretch; empty where there is none, or enough was read."""
        chunk, self._next = self._next, b""
        if not chunk and self._read_on and self._at < min(self._size, INFLATE_LIMIT):
            chunk = self._read_on(self._at, min(WINDOW_BYTES[1], self._size - self._at))
        self._at += len(chunk)
        self.is_spent = not chunk and (
            self._at >= self._size or (self._read_on is not None and self._at < INFLATE_LIMIT)
        )
        return chunk


def _inflate(source: _Chunks) -> tuple[bytes, bool]:
    """What the chunks inflate to, up to `INFLATE_LIMIT`, and whether that is all."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, room = [], INFLATE_LIMIT
    while room > 0 and not inflater.eof:
        chunk = inflater.unconsumed_tail or source.next()
        part = inflater.decompress(chunk, min(room, 1 << 20))
        if not part and not chunk:
            break
        parts.append(part)
        room -= len(part)
    return b"".join(parts), inflater.eof
