"""The frame around a data set in a file: preamble and file meta information, read and written (PS3.10 section 7.1)."""

import struct
from dataclasses import dataclass

from talaria.model.dicom import UID
from talaria.model.errors import NotAnInstance

#: Our own implementation: a root derived from a UUID (PS3.5 B.2), never to be changed.
IMPLEMENTATION_CLASS_UID = "2.25.113218430158721649213771208395601173249"
IMPLEMENTATION_VERSION_NAME = "TALARIA_0_1"

#: Says that the private information of a file is ours: the rule that was asked for by name (PS3.10 table 7.1-1).
_PRIVATE_CREATOR = IMPLEMENTATION_CLASS_UID + ".1"

#: Bytes that are enough to read any file meta information we accept.
META_LIMIT_BYTES = 64 * 1024

_LONG_LENGTH = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV"})


@dataclass(frozen=True, kw_only=True)
class FileMeta:
    """File meta information of a Part 10 file (PS3.10 table 7.1-1)."""

    offset: int
    """Where the data set begins in the file."""
    sop_class_uid: str
    """(0002,0002), or empty."""
    sop_instance_uid: str
    """(0002,0003), or empty."""
    transfer_syntax_uid: str
    """(0002,0010)."""
    source_ae: str = ""
    """(0002,0016) Source Application Entity Title."""
    sending_ae: str = ""
    """(0002,0017) Sending Application Entity Title."""
    receiving_ae: str = ""
    """(0002,0018) Receiving Application Entity Title."""
    source_address: str = ""
    """(0002,0026) Source Presentation Address."""
    receiving_address: str = ""
    """(0002,0028) Receiving Presentation Address."""
    forced: str = ""
    """(0002,0102) Private Information, where (0002,0100) says that it is ours: the rule asked for by name."""


_FIELDS = {
    0x0002: "sop_class_uid",
    0x0003: "sop_instance_uid",
    0x0010: "transfer_syntax_uid",
    0x0016: "source_ae",
    0x0017: "sending_ae",
    0x0018: "receiving_ae",
    0x0026: "source_address",
    0x0028: "receiving_address",
}


#: Private Information Creator UID and Private Information.
_PRIVATE = (0x0100, 0x0102)


def parse_meta(head: bytes) -> FileMeta:
    """
    Read preamble and file meta information from the first bytes of a file.

    The end is where group 0002 ends, whatever its group length says: some writers get that wrong. In a file of our own
    it is where the group length says, since the data set of a hostile sender may begin with group 0002, too.

    Args:
        head: The file's first `META_LIMIT_BYTES`, or all of it.

    Raises:
        NotAnInstance: No `DICM` at byte 128, no transfer syntax, or an element that runs past *head*.
    """
    if head[128:132] != b"DICM":
        raise NotAnInstance("no DICM prefix at byte 128: not a DICOM Part 10 file")
    values: dict[str, str] = {}
    private: dict[int, str] = {}
    at = 132
    end = _declared_end(head) if IMPLEMENTATION_CLASS_UID.encode() in head[132:1024] else -1
    while head[at : at + 2] == b"\x02\x00" and at != end:
        element, at, length = _element(head, at)
        field = _FIELDS.get(element)
        if field:
            values[field] = head[at : at + length].decode("latin-1").rstrip("\0 ")
        elif element in _PRIVATE:
            private[element] = head[at : at + length].decode("utf-8", "replace").rstrip("\0 ")
        at += length
    if not values.get("transfer_syntax_uid"):
        raise NotAnInstance("file meta information names no transfer syntax (0002,0010)")
    if private.get(_PRIVATE[0]) == _PRIVATE_CREATOR:
        values["forced"] = private.get(_PRIVATE[1], "")
    return FileMeta(offset=at, **{"sop_class_uid": "", "sop_instance_uid": "", **values})


def _declared_end(head: bytes) -> int:
    """Where the group length (0002,0000) says that the data set begins; -1 where there is none."""
    if head[132:140] != b"\x02\x00\x00\x00UL\x04\x00" or len(head) < 144:
        return -1
    return 144 + int(struct.unpack_from("<I", head, 140)[0])


def _element(head: bytes, at: int) -> tuple[int, int, int]:
    """Element number, where its value begins, and its length; explicit VR little endian."""
    try:
        element = struct.unpack_from("<H", head, at + 2)[0]
        if head[at + 4 : at + 6] in _LONG_LENGTH:
            length, start = struct.unpack_from("<I", head, at + 8)[0], at + 12
        else:
            length, start = struct.unpack_from("<H", head, at + 6)[0], at + 8
    except struct.error:
        raise NotAnInstance("file meta information is cut off") from None
    if start + length > len(head):
        raise NotAnInstance(f"file meta element (0002,{element:04x}) runs {start + length - len(head)} bytes too far")
    return element, start, length


def build_meta(meta: FileMeta) -> bytes:
    """
    Preamble, prefix and file meta information, ready to be followed by the data set.

    `meta.offset` is not looked at; empty optional fields are left out.
    """
    body = [_write(0x0001, b"OB", b"\0\1")]
    named = {number: getattr(meta, name) for number, name in _FIELDS.items()}
    texts = {**named, 0x0012: IMPLEMENTATION_CLASS_UID, 0x0013: IMPLEMENTATION_VERSION_NAME}
    body.extend(
        _write(number, _VR[number], texts[number].encode("latin-1", "replace"))
        for number in sorted(texts)
        if texts[number]
    )
    if meta.forced:
        body.append(_write(_PRIVATE[0], b"UI", _PRIVATE_CREATOR.encode()))
        body.append(_write(_PRIVATE[1], b"OB", meta.forced.encode()))
    joined = b"".join(body)
    return bytes(128) + b"DICM" + _write(0x0000, b"UL", struct.pack("<I", len(joined))) + joined


_VR = {
    0x0002: b"UI",
    0x0003: b"UI",
    0x0010: b"UI",
    0x0012: b"UI",
    0x0013: b"SH",
    0x0016: b"AE",
    0x0017: b"AE",
    0x0018: b"AE",
    0x0026: b"UR",
    0x0028: b"UR",
}


def _write(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr in {b"UI", b"OB"} else b" "
    head = struct.pack("<HH", 2, number) + vr
    return head + (struct.pack("<HI", 0, len(value)) if vr in _LONG_LENGTH else struct.pack("<H", len(value))) + value


def data_set_uid(text: str, *, name: str) -> UID:
    """
    A UID that a file must have.

    Raises:
        NotAnInstance: Says which one is missing or wrong.
    """
    try:
        return UID(text)
    except ValueError as error:
        raise NotAnInstance(f"{name} is unusable: {error}") from None
