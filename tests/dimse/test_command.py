"""Command sets and statuses."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset

from talaria.dimse import command
from talaria.dimse.command import Meaning
from talaria.dimse.pdu import ProtocolError

REQUEST = command.store_request(message_id=7, sop_class_uid="1.2.3", sop_instance_uid="1.2.3.44")


def test_request_reads_as_pydicom_reads_it() -> None:
    """What we write is a command set to another library, with the right group length."""
    found = read_dataset(DicomBytesIO(REQUEST), is_implicit_VR=True, is_little_endian=True)

    assert (
        found.CommandField,
        found.MessageID,
        found.AffectedSOPClassUID,
        found.AffectedSOPInstanceUID,
    ) == (1, 7, "1.2.3", "1.2.3.44")
    assert len(REQUEST) - 12 == found.CommandGroupLength


def test_response_answers_its_request() -> None:
    """Ids and UIDs come back, the comment is cut to 64 characters."""
    answer = command.parse(command.response(command.parse(REQUEST), 0xA700, comment="n" * 99))

    assert (
        answer.field,
        answer.responded_to,
        answer.status,
        answer.comment,
        answer.has_data_set,
    ) == (0x8001, 7, 0xA700, "n" * 64, False)
    assert (answer.sop_class_uid, answer.sop_instance_uid) == ("1.2.3", "1.2.3.44")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_command_or_the_declared_error(data: bytes) -> None:
    """Nothing but ProtocolError is ever raised."""
    try:
        command.response(command.parse(data), 0)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        REQUEST[:-1],
        struct.pack("<HHI", 0, 0x0100, 4) + bytes(4),
        struct.pack("<HHI", 8, 0x0100, 2) + bytes(2),
        struct.pack("<HHI", 0, 0x0002, 0xFFFFFFFF),
    ],
)
def test_malformed_command_is_refused(data: bytes) -> None:
    """Cut off, of another group, of the wrong length, or without what every command has."""
    with pytest.raises(ProtocolError):
        command.parse(data)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0x0000, Meaning.STORED),
        (0xA700, Meaning.LATER),
        (0xA7FF, Meaning.LATER),
        (0xA900, Meaning.REFUSED),
        (0xB000, Meaning.WARNED),
        (0xB007, Meaning.WARNED),
        (0xBFFF, Meaning.WARNED),
        (0xC123, Meaning.REFUSED),
        (0x0110, Meaning.AGAIN),
        (0x0122, Meaning.REFUSED),
        (0x0124, Meaning.FORBIDDEN),
        (0xFF00, Meaning.REFUSED),
    ],
)
def test_each_status_asks_something_of_us(status: int, expected: Meaning) -> None:
    """The table of PS3.4 B.2-1 and PS3.7 annex C."""
    assert expected is command.meaning(status)
