"""Preamble and file meta information."""

import struct
import warnings
from io import BytesIO

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.errors import NotAnInstance
from talaria.model.part10 import (
    IMPLEMENTATION_CLASS_UID,
    META_LIMIT_BYTES,
    FileMeta,
    build_meta,
    data_set_uid,
    parse_meta,
)

META = FileMeta(
    offset=0,
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="1.2.3",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    source_ae="CT1",
    sending_ae="CT1",
    receiving_ae="TALARIA",
    source_address="10.0.1.7",
    receiving_address="10.0.1.1",
)


def element(number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH", 2, number) + vr + struct.pack("<H", len(value)) + value


SYNTAX = element(0x0010, b"UI", b"1.2.840.10008.1.2\0")


def test_what_is_written_is_read_again() -> None:
    """Every field survives, and the offset is where the data set begins."""
    written = build_meta(META)
    read = parse_meta(written + b"\x08\0\x60\0CS\x02\0CT")

    assert len(written) == read.offset
    assert vars(META) | {"offset": 0} == vars(read) | {"offset": 0}


def test_pydicom_reads_what_is_written() -> None:
    """Another implementation agrees, padding and group length included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meta = pydicom.dcmread(BytesIO(build_meta(META) + b"\x08\0\x60\0CS\x02\0CT")).file_meta

    assert META.transfer_syntax_uid == meta.TransferSyntaxUID
    assert META.sop_instance_uid == meta.MediaStorageSOPInstanceUID
    assert ("CT1", "TALARIA") == (meta.SourceApplicationEntityTitle, meta.ReceivingApplicationEntityTitle)
    assert ("10.0.1.7", "10.0.1.1") == (meta.SourcePresentationAddress, meta.ReceivingPresentationAddress)
    assert len(build_meta(META)) - 128 - 4 - 12 == meta.FileMetaInformationGroupLength


def test_empty_fields_are_left_out() -> None:
    """What is not known is not written."""
    known = FileMeta(offset=0, sop_class_uid="", sop_instance_uid="", transfer_syntax_uid="1.2")

    assert parse_meta(build_meta(known)) == FileMeta(
        offset=len(build_meta(known)), sop_class_uid="", sop_instance_uid="", transfer_syntax_uid="1.2"
    )


@pytest.mark.parametrize("group_length", [b"", element(0, b"UL", b"\xff\xff\0\0"), element(0, b"UL", bytes(4))])
def test_the_group_length_is_not_trusted(group_length: bytes) -> None:
    """The end is where group 0002 ends."""
    head = bytes(128) + b"DICM" + group_length + SYNTAX

    assert len(head) == parse_meta(head + b"\x08\0\x05\0CS\0\0").offset


def test_a_preamble_of_another_format_is_no_matter() -> None:
    """A file may be a DICOM file and something else (CVE-2019-11687); the preamble is not looked at."""
    assert "1.2.840.10008.1.2" == parse_meta(b"MZ" + bytes(126) + b"DICM" + SYNTAX).transfer_syntax_uid


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "no DICM prefix at byte 128: not a DICOM Part 10 file"),
        (b"GET / HTTP/1.1\r\n" * 20, "no DICM prefix at byte 128: not a DICOM Part 10 file"),
        (bytes(128) + b"DICM", "file meta information names no transfer syntax (0002,0010)"),
        (bytes(128) + b"DICM" + SYNTAX[:6], "file meta information is cut off"),
        (bytes(128) + b"DICM" + SYNTAX[:-4], "file meta element (0002,0010) runs 4 bytes too far"),
    ],
)
def test_refusals_say_what_is_wrong(head: bytes, message: str) -> None:
    """A file without usable meta information is refused, and says why."""
    with pytest.raises(NotAnInstance) as refusal:
        parse_meta(head)

    assert message == str(refusal.value)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_read_or_refused(rest: bytes) -> None:
    """Nothing but NotAnInstance, and never past the end."""
    for head in (rest, bytes(128) + b"DICM" + rest, bytes(128) + b"DICM" + SYNTAX + rest):
        try:
            assert parse_meta(head).offset <= len(head)
        except NotAnInstance:
            pass


def test_a_meta_of_full_size_is_read_in_one_go() -> None:
    """Thousands of elements are no trouble."""
    many = element(0x0102, b"SH", b"") * ((META_LIMIT_BYTES - 132 - len(SYNTAX)) // 8)
    head = bytes(128) + b"DICM" + SYNTAX + many

    assert len(head) == parse_meta(head).offset


def test_a_data_set_uid_names_itself_when_unusable() -> None:
    """The message says which UID it is."""
    assert "1.2" == data_set_uid("1.2", name="StudyInstanceUID")
    with pytest.raises(NotAnInstance, match=r"^StudyInstanceUID is unusable: '\.\./x' is not a UID"):
        data_set_uid("../x", name="StudyInstanceUID")


@pytest.mark.parametrize("data", [b"\x02\x00", b"\x02\x00\x10\x00UI\x02\x001\x00", b"\x02\x00\xff\xff" * 9])
def test_data_set_that_begins_like_file_meta_information(data: bytes) -> None:
    """
    In a file of our own the data set begins where the group length says, whatever a hostile sender began it with.
    """
    head = build_meta(
        FileMeta(offset=0, sop_class_uid="1.2", sop_instance_uid="1.3", transfer_syntax_uid="1.2.840.10008.1.2")
    )

    assert len(head) == parse_meta(head + data).offset


def test_rule_asked_for_by_name_stands_in_the_file() -> None:
    """
    The private information of a file is ours where its creator says so, and nobody else's is taken for ours.
    """
    meta = FileMeta(
        offset=0, sop_class_uid="1.2.3", sop_instance_uid="1.2.3.4", transfer_syntax_uid="1.2.840.10008.1.2",
        forced="Köpfe (CT)",
    )  # fmt: skip
    built = build_meta(meta)
    creator = f"{IMPLEMENTATION_CLASS_UID}.1".encode()

    assert "Köpfe (CT)" == parse_meta(built).forced
    assert "" == parse_meta(built.replace(creator, creator[:-1] + b"2")).forced
    assert len(built) == parse_meta(built).offset
