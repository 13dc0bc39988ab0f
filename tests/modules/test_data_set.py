"""The walk over top-level elements: agrees with pydicom, and never runs away on bytes that make no sense."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data.data_manager import DATA_ROOT

from talaria.model.errors import NotAnInstance
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.modules.data_set import TAIL, Element, Encoding, Walker, spliced

EXPLICIT = Encoding(implicit_vr=False, big_endian=False)
IMPLICIT = Encoding(implicit_vr=True, big_endian=False)


#: What comes with pydicom itself; nothing is fetched.
PACKAGED = sorted(Path(DATA_ROOT, "test_files").rglob("*.dcm"))


def samples() -> list[Path]:
    """Real files where there are some, pydicom's own where not."""
    home = os.environ.get("TALARIA_TEST_DATA")
    if home:
        return sorted(path for path in Path(home).rglob("*") if path.is_file() and is_part10(path))[::7]
    return [path for path in PACKAGED if is_part10(path)]


def is_part10(path: Path) -> bool:
    """Whether it begins as a Part 10 file with a readable frame."""
    head = path.read_bytes()[:META_LIMIT_BYTES]
    try:
        return parse_meta(head).transfer_syntax_uid != "1.2.840.10008.1.2.1.99"
    except NotAnInstance:
        return False


def test_walk_agrees_with_pydicom() -> None:
    """
    On real files, whatever their transfer syntax, the walk finds the elements that pydicom finds.
    """
    seen = 0
    for path in samples():
        content = path.read_bytes()
        meta = parse_meta(content[:META_LIMIT_BYTES])
        try:
            walked = list(Walker(content, meta.offset, Encoding.of(meta.transfer_syntax_uid)).elements())
        except NotAnInstance:
            continue  # the files that pydicom keeps for being broken
        dataset = dcmread(path, defer_size=1024)

        assert [int(tag) for tag in sorted(dataset.keys()) if tag < TAIL] == [element.tag for element in walked], path
        seen += 1
    assert 10 < seen


@given(st.binary(max_size=400), st.booleans(), st.booleans())
def test_any_bytes_end(content: bytes, implicit: bool, big_endian: bool) -> None:
    """
    Whatever the bytes, the walk ends within them or says where it broke.
    """
    try:
        walked = list(Walker(content, 0, Encoding(implicit_vr=implicit, big_endian=big_endian)).elements())
    except NotAnInstance:
        return
    assert all(element.start < element.end <= len(content) for element in walked)


SEQUENCE, ITEM = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x08\x00", "the data set is cut off at byte 0"),
        (b"\x08\x00\x18\x00UI\x10\x00abc", "the data set is cut off: an element ends 13 bytes after it"),
        (b"\x08\x00\x18\x00\x04\0\0\0abcd", "no value representation at byte 4, in (0008,0018)"),
        (
            b"\x08\x00\x18\x00UI\x00\x00\x08\x00\x16\x00UI\x00\x00",
            "elements are out of order at byte 8: (0008,0016) after (0008,0018)",
        ),
        (SEQUENCE + b"\x08\x00\x18\x00UI\x00\x00", "(0008,0018) at byte 12 where an item was expected"),
        (SEQUENCE + ITEM, "the data set is cut off at byte 20"),
        ((SEQUENCE + ITEM) * 1000, "sequences are nested more than 64 deep at byte 1292"),
    ],
)
def test_what_makes_no_sense_is_told_by_its_place(content: bytes, message: str) -> None:
    """
    Bytes that are no data set are refused with the place.
    """
    with pytest.raises(NotAnInstance) as caught:
        list(Walker(content, 0, EXPLICIT).elements())

    assert message == str(caught.value)


def implicit_element(tag: int, value: bytes) -> bytes:
    """One element in implicit VR little endian."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


@given(
    st.sets(st.integers(0x00080001, 0x0008000F)),
    st.dictionaries(st.integers(0x00080001, 0x0008000F), st.binary(min_size=1, max_size=4)),
    st.binary(max_size=8),
)
def test_splicing_replaces_and_inserts_in_order(present: set[int], new: dict[int, bytes], tail: bytes) -> None:
    """
    The outcome is what one would get by writing all elements anew, in order, and then the untouched rest.
    """
    old = {tag: implicit_element(tag, b"old") for tag in sorted(present)}
    body = b"".join(old.values())
    content = body + implicit_element(0x7FE00010, tail)
    elements = list(Walker(content, 0, IMPLICIT).elements())
    replacements = {tag: implicit_element(tag, value) for tag, value in new.items()}

    pieces = spliced(elements, replacements, start=0, end=len(content))

    result = b"".join(piece if isinstance(piece, bytes) else content[piece[0] : piece[1]] for piece in pieces)
    assert b"".join(text for _, text in sorted({**old, **replacements}.items())) + content[len(body) :] == result


def test_stale_group_length_is_left_out() -> None:
    """
    The length of a group that was changed would be wrong; that of another group stays.
    """
    lengths = [implicit_element(0x00080000, b"len8"), implicit_element(0x00100000, b"leng")]
    content = lengths[0] + implicit_element(0x00080060, b"CT") + lengths[1]
    elements = [*Walker(content, 0, IMPLICIT).elements()]

    pieces = list(spliced(elements, {0x00080050: b"new"}, start=0, end=len(content)))

    result = b"".join(piece if isinstance(piece, bytes) else content[piece[0] : piece[1]] for piece in pieces)
    assert b"new" + implicit_element(0x00080060, b"CT") + lengths[1] == result
    assert Element(tag=0x00080000, start=0, value=8, end=12) == elements[0]
