"""DIMSE command sets, read and written by hand, and what each status means (PS3.7)."""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType

from talaria.dimse.pdu import ProtocolError, Reason


class Field(IntEnum):
    """Command fields that are told apart here (PS3.7 table E.1-1)."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    C_CANCEL_RQ = 0x0FFF


#: Set in the command field of every response.
RESPONSE = 0x8000

#: (0000,0800) of a message without a data set (PS3.7 E.1).
NO_DATA_SET = 0x0101


class Status(IntEnum):
    """Statuses that we answer (PS3.7 annex C, PS3.4 table B.2-1)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    UNRECOGNISED_OPERATION = 0x0211
    OUT_OF_RESOURCES = 0xA700
    MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class Meaning(Enum):
    """What a status of a C-STORE response asks of the sender."""

    STORED = "stored"
    WARNED = "stored, with a warning"
    LATER = "no room now: stop and come back later"
    AGAIN = "failed inside the peer: this instance may pass on another try"
    REFUSED = "refused: this instance will not pass as it is"
    FORBIDDEN = "not authorised: nothing will pass until a person has changed something"


#: PS3.4 table B.2-1 and PS3.7 annex C: first and last status, what it asks of us, its name.
_MEANINGS: tuple[tuple[int, int, Meaning, str], ...] = (
    (0x0000, 0x0000, Meaning.STORED, "success"),
    (0x0001, 0x0001, Meaning.WARNED, "warning"),
    (0x0107, 0x0107, Meaning.WARNED, "attribute list error"),
    (0x0110, 0x0110, Meaning.AGAIN, "processing failure"),
    (0x0111, 0x0111, Meaning.WARNED, "duplicate SOP instance"),
    (0x0116, 0x0116, Meaning.WARNED, "attribute value out of range"),
    (0x0117, 0x0117, Meaning.REFUSED, "invalid SOP instance"),
    (0x0122, 0x0122, Meaning.REFUSED, "SOP class not supported"),
    (0x0124, 0x0124, Meaning.FORBIDDEN, "not authorised"),
    (0x0210, 0x0210, Meaning.REFUSED, "duplicate invocation"),
    (0x0211, 0x0211, Meaning.REFUSED, "unrecognised operation"),
    (0x0212, 0x0212, Meaning.REFUSED, "mistyped argument"),
    (0x0213, 0x0213, Meaning.LATER, "resource limitation"),
    (0xA700, 0xA7FF, Meaning.LATER, "out of resources"),
    (0xA900, 0xA9FF, Meaning.REFUSED, "data set does not match SOP class"),
    (0xB000, 0xB000, Meaning.WARNED, "coercion of data elements"),
    (0xB006, 0xB006, Meaning.WARNED, "elements discarded"),
    (0xB007, 0xB007, Meaning.WARNED, "data set does not match SOP class"),
    (0xB000, 0xBFFF, Meaning.WARNED, "warning"),
    (0xC000, 0xCFFF, Meaning.REFUSED, "cannot understand"),
)


def meaning(status: int) -> Meaning:
    """
    What *status* of a C-STORE response asks of the sender; one that no table knows is a refusal.

    >>> meaning(0xA701), meaning(0xB123), meaning(0x0999)
    (<Meaning.LATER: 'no room now: stop and come back later'>, <Meaning.WARNED: 'stored, with a warning'>, \
<Meaning.REFUSED: 'refused: this instance will not pass as it is'>)
    """
    return next((found for first, last, found, _ in _MEANINGS if first <= status <= last), Meaning.REFUSED)


def status_text(status: int) -> str:
    """
    A status as people read it.

    >>> status_text(0xA700)
    'status A700, out of resources'
    """
    name = next((name for first, last, _, name in _MEANINGS if first <= status <= last), "unknown")
    return f"status {status:04X}, {name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The elements of a command set that we look at; text as it came, without padding (PS3.7 section 9.3)."""

    field: int
    """(0000,0100)."""
    message_id: int
    """(0000,0110) of a request."""
    responded_to: int
    """(0000,0120) of a response."""
    has_data_set: bool
    """By (0000,0800)."""
    sop_class_uid: str
    """(0000,0002), or (0000,0003) of an N- request."""
    sop_instance_uid: str
    """(0000,1000), or (0000,1001) of an N- request."""
    status: int
    """(0000,0900) of a response."""
    comment: str
    """(0000,0902) of a response."""

    @property
    def is_response(self) -> bool:
        """Whether it answers something."""
        return self.field >= RESPONSE


_ELEMENT = struct.Struct("<HHI")
_US = struct.Struct("<H")

#: Elements that hold one US, and where they stand in a `Command`.
_NUMBERS: Mapping[int, str] = MappingProxyType(
    {0x0100: "field", 0x0110: "message_id", 0x0120: "responded_to", 0x0800: "data_set", 0x0900: "status"}
)


def parse(data: bytes) -> Command:
    """
    Read a command set: implicit VR little endian, group 0000 only (PS3.7 6.3.1).

    Raises:
        ProtocolError: An element runs past the end, is of another group or has the wrong length, or there is no
            command field or data set type.
    """
    numbers, texts = _elements(data)
    if "field" not in numbers or "data_set" not in numbers:
        raise ProtocolError("command set without command field or data set type", reason=Reason.NOT_SPECIFIED)
    return Command(
        field=numbers["field"],
        message_id=numbers.get("message_id", 0),
        responded_to=numbers.get("responded_to", 0),
        has_data_set=numbers["data_set"] != NO_DATA_SET,
        sop_class_uid=_text(texts.get(0x0002) or texts.get(0x0003, b"")),
        sop_instance_uid=_text(texts.get(0x1000) or texts.get(0x1001, b"")),
        status=numbers.get("status", 0),
        comment=_text(texts.get(0x0902, b"")),
    )


def _elements(data: bytes) -> tuple[dict[str, int], dict[int, bytes]]:
    """The numbers we look at by name, and everything else by element number."""
    numbers: dict[str, int] = {}
    texts: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _ELEMENT.size:
            raise ProtocolError("command set ends within an element", reason=Reason.NOT_SPECIFIED)
        group, element, length = _ELEMENT.unpack_from(data, at)
        at += _ELEMENT.size
        name = _NUMBERS.get(element)
        if group or at + length > len(data) or (name and length != 2):
            raise ProtocolError(
                f"command element ({group:04x},{element:04x}) of {length} bytes is malformed",
                reason=Reason.NOT_SPECIFIED,
            )
        if name:
            numbers[name] = _US.unpack_from(data, at)[0]
        else:
            texts[element] = data[at : at + length]
        at += length
    return numbers, texts


def _text(value: bytes) -> str:
    """As text without padding; any byte is something in Latin-1, and what it is meant to be is checked later."""
    return value.rstrip(b"\0 ").decode("latin-1")


def store_request(*, message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """A C-STORE-RQ of medium priority (PS3.7 table 9.3-1)."""
    return _encode(
        (
            (0x0002, _uid(sop_class_uid)),
            (0x0100, _US.pack(Field.C_STORE_RQ)),
            (0x0110, _US.pack(message_id)),
            (0x0700, _US.pack(0)),
            (0x0800, _US.pack(1)),
            (0x1000, _uid(sop_instance_uid)),
        )
    )


def echo_request(*, message_id: int) -> bytes:
    """A C-ECHO-RQ (PS3.7 table 9.3-12)."""
    return _encode(
        (
            (0x0002, _uid("1.2.840.10008.1.1")),
            (0x0100, _US.pack(Field.C_ECHO_RQ)),
            (0x0110, _US.pack(message_id)),
            (0x0800, _US.pack(NO_DATA_SET)),
        )
    )


def response(request: Command, status: int, *, comment: str = "") -> bytes:
    """
    The answer to *request*, without a data set (PS3.7 tables 9.3-2 and 9.3-13).

    UIDs are given back only where they are fit to be: characters of a UID, at most 64.

    Args:
        request: What is answered.
        status: PS3.7 annex C.
        comment: (0000,0902), cut to 64 characters; no patient data.
    """
    elements = [
        (0x0002, _uid(request.sop_class_uid)),
        (0x0100, _US.pack(request.field | RESPONSE)),
        (0x0120, _US.pack(request.message_id)),
        (0x0800, _US.pack(NO_DATA_SET)),
        (0x0900, _US.pack(status)),
    ]
    if comment:
        text = comment[:64].encode("ascii", "replace")
        elements.append((0x0902, text + b" " * (len(text) % 2)))
    elements.append((0x1000, _uid(request.sop_instance_uid)))
    return _encode((number, value) for number, value in elements if value)


def _uid(text: str) -> bytes:
    if len(text) > 64 or text.strip("0123456789."):
        return b""
    return text.encode("ascii") + b"\0" * (len(text) % 2)


def _encode(elements: Iterable[tuple[int, bytes]]) -> bytes:
    body = b"".join(_ELEMENT.pack(0, number, len(value)) + value for number, value in elements)
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(body)) + body
