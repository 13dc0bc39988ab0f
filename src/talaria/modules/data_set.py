"""An encoded data set as a row of top-level elements: found, and some replaced, without decoding the others."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from mmap import mmap

from pydicom.dataelem import DataElement
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_data_element

from talaria.model.errors import NotAnInstance

_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

_LONG_LENGTH = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV"})
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_MOST_DEPTH = 64

#: From here on nothing is looked at: pixel data and what follows it.
TAIL = 0x7FE00000


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the elements of a data set are written (PS3.5 7.1, 7.3)."""

    implicit_vr: bool
    big_endian: bool

    @classmethod
    def of(cls, transfer_syntax_uid: str) -> "Encoding":
        """That of a transfer syntax, inflated; everything but the two oldest is explicit VR little endian."""
        return cls(implicit_vr=transfer_syntax_uid == _IMPLICIT, big_endian=transfer_syntax_uid == _BIG_ENDIAN)


@dataclass(frozen=True, kw_only=True)
class Element:
    """Where one top-level element stands: [start, end) with its head, its value from *value* on."""

    tag: int
    start: int
    value: int
    end: int


class Walker:
    """
    Finds the elements of a data set.

    Args:
        content: Holds the data set from *start* on; a memory map will do, only heads of elements are read.
    """

    def __init__(self, content: bytes | mmap, start: int, encoding: Encoding) -> None:
        self._content = content
        self._start = start
        self._encoding = encoding
        order = ">" if encoding.big_endian else "<"
        self._tag = struct.Struct(f"{order}HH")
        self._short = struct.Struct(f"{order}H")
        self._long = struct.Struct(f"{order}I")

    def elements(self) -> Iterator[Element]:
        """
        The top-level elements below `TAIL`, in the order of the file.

        Raises:
            NotAnInstance: Cut off, out of order, or not the encoding it is said to be; says at which byte.
        """
        at, last = self._start, 0
        while at < len(self._content):
            tag, value, length = self._head(at, implicit=self._encoding.implicit_vr)
            if tag <= last:
                raise NotAnInstance(f"elements are out of order at byte {at}: {_shown(tag)} after {_shown(last)}")
            if tag >= TAIL:
                return
            end = self._end(at, value, length)
            yield Element(tag=tag, start=at, value=value, end=end)
            at, last = end, tag

    def _head(self, at: int, *, implicit: bool) -> tuple[int, int, int]:
        """Tag, where its value begins, and the value's length."""
        try:
            group, element = self._tag.unpack_from(self._content, at)
            tag = group << 16 | element
            if implicit or group == 0xFFFE:
                return tag, at + 8, self._long.unpack_from(self._content, at + 4)[0]
            vr = bytes(self._content[at + 4 : at + 6])
            if vr in _LONG_LENGTH:
                return tag, at + 12, self._long.unpack_from(self._content, at + 8)[0]
            length: int = self._short.unpack_from(self._content, at + 6)[0]
        except struct.error:
            raise NotAnInstance(f"the data set is cut off at byte {at}") from None
        if not (vr.isalpha() and vr.isupper()):
            raise NotAnInstance(f"no value representation at byte {at + 4}, in {_shown(tag)}")
        return tag, at + 8, length

    def _end(self, at: int, value: int, length: int) -> int:
        """Where an element whose head is at *at* ends."""
        if length != _UNDEFINED:
            return self._inside(value + length)
        return self._sequence_end(value, implicit=self._is_implicit(at, within=self._encoding.implicit_vr), depth=1)

    def _is_implicit(self, at: int, *, within: bool) -> bool:
        """Whether the items of the sequence at *at* are; those of unknown VR are, always (PS3.5 6.2.2 note 4)."""
        return within or bytes(self._content[at + 4 : at + 6]) == b"UN"

    def _inside(self, end: int) -> int:
        if end > len(self._content):
            raise NotAnInstance(f"the data set is cut off: an element ends {end - len(self._content)} bytes after it")
        return end

    def _sequence_end(self, at: int, *, implicit: bool, depth: int) -> int:
        """Where a sequence of undefined length ends, its first item at *at* (PS3.5 7.5)."""
        if depth > _MOST_DEPTH:
            raise NotAnInstance(f"sequences are nested more than {_MOST_DEPTH} deep at byte {at}")
        while True:
            tag, value, length = self._head(at, implicit=implicit)
            if tag == _SEQUENCE_END:
                return value
            if tag != _ITEM:
                raise NotAnInstance(f"{_shown(tag)} at byte {at} where an item was expected")
            undefined = length == _UNDEFINED
            at = self._item_end(value, implicit=implicit, depth=depth) if undefined else self._inside(value + length)

    def _item_end(self, at: int, *, implicit: bool, depth: int) -> int:
        """Where an item of undefined length ends, its first element at *at*."""
        while True:
            tag, value, length = self._head(at, implicit=implicit)
            if tag == _ITEM_END:
                return value
            if length == _UNDEFINED:
                inner = self._is_implicit(at, within=implicit)
                at = self._sequence_end(value, implicit=inner, depth=depth + 1)
            else:
                at = self._inside(value + length)


def spliced(
    elements: list[Element], replacements: Mapping[int, bytes], *, start: int, end: int
) -> Iterator[bytes | tuple[int, int]]:
    """
    The data set in [*start*, *end*) with some elements replaced or put in at their place.

    The retired group length of a group that is changed is left out (PS3.5 7.2); everything else stays as it is.

    Args:
        elements: All below `TAIL`, in order.
        replacements: Whole encoded elements by tag; empty bytes remove one.

    Returns:
        In order, new bytes or the [start, end) of old ones.
    """
    stale = {tag & 0xFFFF0000 for tag in replacements}
    waiting = sorted(replacements)
    kept = start
    for element in elements:
        due = [tag for tag in waiting if tag <= element.tag]
        if due or element.tag in stale:
            yield kept, element.start
            yield from (replacements[tag] for tag in due)
            waiting = waiting[len(due) :]
            kept = element.end if element.tag in replacements or element.tag in stale else element.start
    last = elements[-1].end if elements else start
    yield kept, last
    yield from (replacements[tag] for tag in waiting)
    yield last, end


def encoded(element: DataElement, encoding: Encoding, *, character_set: str | list[str]) -> bytes:
    """
    One element as it is written.

    Raises:
        ValueError: Its value cannot be written, in this character set for one.
    """
    buffer = DicomIO(BytesIO())
    buffer.is_implicit_VR = encoding.implicit_vr
    buffer.is_little_endian = not encoding.big_endian
    write_data_element(buffer, element, character_set)
    buffer.seek(0)
    return bytes(buffer.read())


def _shown(tag: int) -> str:
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
