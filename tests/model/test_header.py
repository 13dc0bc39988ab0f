"""The header scanner against pydicom, and against data sets that mean harm."""

import os
import struct
import time
import tracemalloc
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import DicomDictionary, keyword_dict
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from talaria.model.dataset import ELEMENT_LIMIT, INFLATE_LIMIT, READ_LIMIT, VALUE_LIMIT
from talaria.model.dicom import Tags
from talaria.model.errors import NotAnInstance
from talaria.model.header import FLAGS, Header, TagList, scan
from talaria.model.part10 import parse_meta
from talaria.model.recorded import RECORDED
from talaria.model.taglist import DEPTH_LIMIT

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"

WANTED = TagList.of(RECORDED)
HEAD = 64 * 1024

WIDE = {"OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UN", "UT", "UC", "UR", "SV", "UV"}
UNDEFINED = 0xFFFFFFFF


# Data sets by hand


def element(tag: int, vr: str, value: bytes = b"", *, length: int | None = None) -> bytes:
    """One element in explicit VR little endian; *length* may lie."""
    if len(value) % 2 and length is None:
        value += b"\0" if vr == "UI" else b" "
    length = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (struct.pack("<HI", 0, length) if vr in WIDE else struct.pack("<H", length)) + value


def item(value: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value) if length is None else length) + value


ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)

SOP = element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.7") + element(0x00080018, "UI", b"1.2.3.4")
STUDY = element(0x0020000D, "UI", b"1.2.3") + element(0x0020000E, "UI", b"1.2.3.5")
PIXELS = element(0x7FE00010, "OW", bytes(64))


def read(
    data: bytes, syntax: str = EXPLICIT, wanted: TagList = WANTED, *, head: int = HEAD, counts: list[int] | None = None
) -> Header:
    """Scan *data* as the receiver does."""

    def read_on(offset: int, length: int) -> bytes:
        if counts is not None:
            counts.append(length)
        return data[offset : offset + length]

    return scan(data[:head], transfer_syntax_uid=syntax, wanted=wanted, read_on=read_on, size_bytes=len(data))


def tags_of(data: bytes, *names: str, syntax: str = EXPLICIT) -> dict[str, str | None]:
    return read(data, syntax, TagList.of(names)).tags.as_document()


# pydicom as the oracle


def real_files() -> list[Path]:
    """pydicom's own files, and those of TALARIA_TEST_DATA."""
    shipped = Path(pydicom.data.__file__).parent
    places = [shipped / "test_files", shipped / "charset_files"]
    if named := os.environ.get("TALARIA_TEST_DATA"):
        places.append(Path(named))
    files = [path for place in places for path in sorted(place.rglob("*")) if path.is_file()]
    return [path for path in files if _begins_as_part10(path)]


def _begins_as_part10(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


KEYWORDS = [
    keyword
    for keyword, tag in keyword_dict.items()
    if keyword and 0x00080000 <= tag < 0x7FE00000 and DicomDictionary[tag][0] not in {"SQ", "NONE"}
]
EVERYTHING = TagList.of(KEYWORDS)


def cleaned(text: str) -> str:
    """The clean-up that mercure does, and the padding gone."""
    marks = {"\r": ";", "\n": " ", '"': "'"}
    text = "".join(marks.get(c, " " if ord(c) < 32 or 127 <= ord(c) < 160 else c) for c in text)
    return "\\".join(value.strip(" ") for value in text.split("\\"))


def by_pydicom(data_set: Dataset, tag: int) -> str | None:
    """Text of an element as pydicom reads it; None for what has no text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = data_set[tag]
        values = list(found.value) if found.VM > 1 else [found.value]
    if found.VR == "AT":
        return "\\".join(f"({int(v) >> 16:04x},{int(v) & 0xFFFF:04x})" for v in values)
    if any(isinstance(value, bytes) for value in values):
        return None
    return cleaned("\\".join("" if value is None else str(value) for value in values))


def agree(ours: str, theirs: str, vr: str) -> bool:
    if vr in {"FL", "FD"} and ours and theirs:
        code = "<f" if vr == "FL" else "<d"
        packed = [[struct.pack(code, float(value)) for value in text.split("\\")] for text in (ours, theirs)]
        return packed[0] == packed[1]
    if vr == "PN":  # pydicom drops component groups that are empty
        return ours.rstrip("=") == theirs.rstrip("=")
    return ours == theirs


@pytest.mark.parametrize("path", real_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_reads_real_files_as_pydicom_does(path: Path) -> None:
    """Every element with a keyword has the text that pydicom gives, and is absent where pydicom finds none."""
    raw = path.read_bytes()
    try:
        meta = parse_meta(raw[:HEAD])
        header = read(raw[meta.offset :], meta.transfer_syntax_uid, EVERYTHING)
    except NotAnInstance:
        return  # test_refuses_only_what_cannot_be_filed tells which
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_set = pydicom.dcmread(path, stop_before_pixels=True)
    found = header.tags.as_document()
    for keyword in KEYWORDS:
        tag = keyword_dict[keyword]
        assert (tag in data_set) == (found[keyword] is not None), keyword
        theirs = by_pydicom(data_set, tag) if tag in data_set else None
        if theirs is not None:
            assert agree(found[keyword] or "", theirs, data_set[tag].VR), keyword


def test_refuses_only_what_cannot_be_filed() -> None:
    """Of all real files, those are refused that lack a UID, a transfer syntax, or their end."""
    refused = set()
    for path in real_files():
        raw = path.read_bytes()
        try:
            meta = parse_meta(raw[:HEAD])
            read(raw[meta.offset :], meta.transfer_syntax_uid)
        except NotAnInstance:
            refused.add(path.name.split("-")[0])

    assert {
        "DICOMDIR",
        "DIRFILE",
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "MR_truncated.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_jls_lossy_sample.dcm",
        "UN_sequence.dcm",
        "chrSQEncoding.dcm",
        "chrSQEncoding1.dcm",
        "empty_charset_LEI.dcm",
        "meta_missing_tsyntax.dcm",
        "nested_priv_SQ.dcm",
        "no_meta_group_length.dcm",
        "priv_SQ.dcm",
        "rtplan_truncated.dcm",
    } == refused | {"DIRFILE"}


@pytest.mark.parametrize("path", real_files()[::9], ids=lambda path: path.name)
def test_a_small_head_reads_the_same(path: Path) -> None:
    """How much of the data set lies in memory changes nothing but how often it reads on."""
    raw = path.read_bytes()
    try:
        meta = parse_meta(raw[:HEAD])
        whole = read(raw[meta.offset :], meta.transfer_syntax_uid)
    except NotAnInstance:
        return

    for head in (0, 8, 100, 777):
        assert whole == read(raw[meta.offset :], meta.transfer_syntax_uid, head=head)


# Generated data sets

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\\="), max_size=30)
CODE = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _", max_size=16)
PLAIN_VALUES = {
    "Modality": CODE,
    "SeriesDescription": TEXT,
    "PatientName": TEXT,
    "PatientComments": TEXT,
    "ImageType": st.lists(CODE, max_size=4),
    "SeriesNumber": st.integers(-(2**31), 2**31 - 1),
    "SliceThickness": st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: f"{number:.5g}"),
    "Rows": st.integers(0, 65535),
    "PixelSpacing": st.lists(st.integers(0, 99).map(str), min_size=2, max_size=2),
    "DiffusionBValue": st.floats(allow_nan=False, allow_infinity=False),
    "FrameIncrementPointer": st.integers(0, 0xFFFFFFFF),
    "SmallestImagePixelValue": st.integers(0, 65535),
}


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 2) -> Dataset:
    """A data set with some elements, a private block, and sequences of defined and undefined length."""
    made = Dataset()
    for keyword in draw(st.lists(st.sampled_from(sorted(PLAIN_VALUES)), unique=True)):
        if keyword != "SmallestImagePixelValue" or depth == 2:
            setattr(made, keyword, draw(PLAIN_VALUES[keyword]))
    if draw(st.booleans()):
        block = made.private_block(0x0029, "TALARIA TEST", create=True)
        block.add_new(0x42, "LO", draw(TEXT))
        block.add_new(0x43, "DS", "1.5")
    for keyword in draw(
        st.lists(st.sampled_from(["RequestAttributesSequence", "ReferencedImageSequence"]), unique=True)
    ):
        items = draw(st.lists(data_sets(depth - 1), max_size=3)) if depth else []
        for each in items:
            each.is_undefined_length_sequence_item = draw(st.booleans())
        setattr(made, keyword, Sequence(items))
        made[keyword].is_undefined_length = draw(st.booleans())
    return made


PRIVATE = "0029,42xx/TALARIA TEST"
INNER = [*(name for name in sorted(PLAIN_VALUES) if name != "SmallestImagePixelValue"), PRIVATE]
PATHS = [
    *sorted(PLAIN_VALUES),
    PRIVATE,
    *(f"RequestAttributesSequence[{n}].{name}" for n in (0, 2) for name in INNER),
    *(f"ReferencedImageSequence[1].RequestAttributesSequence[0].{name}" for name in INNER),
]
SYNTHETIC = TagList.of(PATHS)


def looked_up(data_set: Dataset, path: str) -> str | None:
    """What pydicom finds on a path; None where there is nothing."""
    *sequences, last = path.split(".")
    for part in sequences:
        keyword, _, number = part.rstrip("]").partition("[")
        items = data_set.get(keyword) or []
        if int(number) >= len(items):
            return None
        data_set = items[int(number)]
    if last != PRIVATE:
        return by_pydicom(data_set, keyword_dict[last]) if last in data_set else None
    try:
        return by_pydicom(data_set, data_set.private_block(0x0029, "TALARIA TEST")[0x42].tag)
    except KeyError:
        return None


def written(data_set: Dataset, syntax: str) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = syntax != BIG_ENDIAN, syntax == IMPLICIT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(stream, data_set)
    return stream.getvalue()


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data_sets(), st.sampled_from([IMPLICIT, EXPLICIT, BIG_ENDIAN]), st.sampled_from([0, 60, HEAD]))
def test_reads_generated_data_sets_as_pydicom_does(data_set: Dataset, syntax: str, head: int) -> None:
    """Public, private and nested elements agree with pydicom in every encoding, whatever is read on for."""
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.SOPClassUID, data_set.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    raw = written(data_set, syntax)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pydicom.dcmread(BytesIO(_framed(raw, syntax)))
    header = read(raw, syntax, SYNTHETIC, head=head)
    found = header.tags.as_document()

    for path in PATHS:
        expected = looked_up(theirs, path)
        if path.endswith(PRIVATE) and syntax == IMPLICIT and expected is None and found[path] is not None:
            continue  # nothing tells what VR it had
        last = path.split(".")[-1]
        vr = "LO" if last == PRIVATE else DicomDictionary[keyword_dict[last]][0]
        assert agree(found[path] or "", expected or "", vr), path
        assert (expected is None) == (found[path] is None), path


def _framed(raw: bytes, syntax: str) -> bytes:
    meta = element(0x00020010, "UI", syntax.encode())
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + raw


# What a header says


def test_a_header_has_identity_tags_and_no_flags() -> None:
    """A plain data set gives its four UIDs, and every wanted name is answered."""
    header = read(SOP + element(0x00080060, "CS", b"CT") + STUDY + PIXELS)

    assert "1.2.840.10008.5.1.4.1.1.7" == header.sop_class_uid
    assert ("1.2.3.4", "1.2.3", "1.2.3.5") == (
        header.sop_instance_uid,
        header.study_instance_uid,
        header.series_instance_uid,
    )
    assert "CT" == header.tags["Modality"]
    assert EXPLICIT == header.tags["TransferSyntaxUID"]
    assert "1.2.840.10008.5.1.4.1.1.7" == header.tags["MediaStorageSOPClassUID"]
    assert set(WANTED.names) == set(header.tags)
    assert "PatientID" in header.tags.absent
    assert () == header.flags


def test_only_what_is_wanted_is_recorded() -> None:
    """The UIDs are always read, and recorded only where they are wanted; several names may mean one element."""
    data = SOP + element(0x00080060, "CS", b"CT") + STUDY

    assert {"Modality": "CT", "0008,0060": "CT"} == tags_of(data, "modality", "0008,0060")
    assert {"Rows": None, "Filename": None} == tags_of(data, "Rows", "filename")


def test_private_elements_are_found_by_their_creator() -> None:
    """A block may stand anywhere; the first of a creator counts, and without the creator there is nothing."""
    name = "0019,0cxx/SIEMENS MR HEADER"
    other = element(0x00190010, "LO", b"SOMEBODY ELSE")
    creator = element(0x00190011, "LO", b"SIEMENS MR HEADER")
    values = element(0x0019100C, "IS", b"1") + element(0x0019110C, "IS", b"1000")

    assert {name: "1000"} == tags_of(SOP + other + creator + values + STUDY, name)
    assert {name: None} == tags_of(SOP + other + values + STUDY, name)
    assert {"0019,110c": "1000"} == tags_of(SOP + values + STUDY, "0019,110C")
    assert {"0019,0010": "SOMEBODY ELSE", name: None} == tags_of(SOP + other + STUDY, "0019,0010", name)


def test_a_private_sequence_is_entered() -> None:
    """A path may go through a private sequence, of undefined length and written as UN too."""
    name = "0029,10xx/TALARIA TEST[1].Modality"
    creator = element(0x00290010, "LO", b"TALARIA TEST")
    inside = item(element(0x00080060, "CS", b"CT")) + item(element(0x00080060, "CS", b"MR"))
    implicit = item(struct.pack("<HHI", 8, 0x60, 2) + b"CT") + item(struct.pack("<HHI", 8, 0x60, 2) + b"MR")
    as_sequence = creator + element(0x00291010, "SQ", inside)
    as_unknown = creator + element(0x00291010, "UN", implicit + SEQUENCE_END, length=UNDEFINED)

    assert {name: "MR"} == tags_of(SOP + STUDY + as_sequence, name)
    assert {name: "MR"} == tags_of(SOP + STUDY + as_unknown, name)


def test_a_sequence_itself_reads_empty_but_present() -> None:
    """Whether a sequence is there can be asked for; it has no text."""
    sequence = element(0x00400275, "SQ", item(element(0x00400009, "SH", b"S1")))
    names = ("RequestAttributesSequence", "RequestAttributesSequence[0].ScheduledProcedureStepID")

    assert {names[0]: "", names[1]: "S1"} == tags_of(SOP + STUDY + sequence, *names)
    assert {names[0]: None, names[1]: None} == tags_of(SOP + STUDY, *names)


def test_the_longest_path_is_followed() -> None:
    """A path may go through 31 sequences."""
    name = "ReferencedImageSequence[0]." * (DEPTH_LIMIT - 1) + "Modality"
    inside = element(0x00080060, "CS", b"CT")
    for _ in range(DEPTH_LIMIT - 1):
        inside = element(0x00081140, "SQ", item(inside))

    assert {name: "CT"} == tags_of(SOP + inside + STUDY, name)


def test_an_item_may_have_a_character_set_of_its_own() -> None:
    """An item without a character set has that of what is around it (PS3.5 7.5.3)."""
    name = "RequestAttributesSequence[{}].ScheduledProcedureStepDescription"
    own = element(0x00080005, "CS", b"ISO_IR 192") + element(0x00400007, "LO", "größer".encode())
    inherited = element(0x00400007, "LO", "größer".encode("latin-1"))
    data = (
        element(0x00080005, "CS", b"ISO_IR 100") + SOP + STUDY + element(0x00400275, "SQ", item(own) + item(inherited))
    )

    assert {name.format(0): "größer", name.format(1): "größer"} == tags_of(data, name.format(0), name.format(1))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b' a "b"\r\nc ', "a 'b'; c"),
        (b"a\0b\0", "a b"),
        (b"A \\ B\\", "A\\B\\"),
        (b"\x1b]0;x\x07", "]0;x"),
        (b"{{7*7}}<script>", "{{7*7}}<script>"),
        (b"a\x1eb\x1d", "a b"),
        (b"   ", ""),
        (b"", ""),
    ],
)
def test_no_control_character_survives(raw: bytes, text: str) -> None:
    """Values are text as mercure gives it, and whatever a peer sends they can be kept and shown."""
    data = SOP + element(0x0008103E, "LO", raw) + STUDY

    assert {"SeriesDescription": text} == tags_of(data, "SeriesDescription")


def test_an_implicit_un_is_read_by_the_dictionary() -> None:
    """A UN of a known element has the VR of the dictionary; of an unknown one it is text if it looks like it."""
    data = SOP + STUDY + element(0x00280010, "UN", b"\x00\x02") + element(0x00291001, "UN", b"text")
    data += element(0x00291002, "UN", b"\x01\x02")

    assert {"Rows": "512", "0029,1001": "text", "0029,1002": ""} == tags_of(data, "Rows", "0029,1001", "0029,1002")


# What is odd


def flags(data: bytes, syntax: str = EXPLICIT) -> tuple[str, ...]:
    return read(data, syntax).flags


def test_flags() -> None:
    """What is odd and can be filed is filed, and says so in words that `FLAGS` explains."""
    modality, description = element(0x00080060, "CS", b"CT"), element(0x0008103E, "LO", "größe".encode())
    bad_study = element(0x0020000D, "UI", b"1.02") + element(0x0020000E, "UI", b"1..3")
    sequence = element(0x00081140, "SQ", length=UNDEFINED)
    cases = {
        ("nonconformant-uid",): SOP + bad_study,
        ("odd-length",): SOP + element(0x00080060, "CS", b"CTX", length=3) + STUDY,
        ("duplicate-element",): SOP + modality + modality + STUDY,
        ("out-of-order",): STUDY + SOP + modality,
        ("meta-in-data-set",): element(0x00020010, "UI", b"1.2") + SOP + STUDY,
        ("charset-undeclared",): SOP + description + STUDY,
        ("charset-unknown",): element(0x00080005, "CS", b"KLINGON") + SOP + description + STUDY,
        ("undecodable-text",): element(0x00080005, "CS", b"ISO_IR 192")
        + SOP
        + element(0x0008103E, "LO", b"\xff\xfe")
        + STUDY,
        ("long-value",): SOP + STUDY + element(0x00204000, "UT", b"x" * 20_000),
        ("unknown-vr",): SOP + b"\x08\0\x60\0??\x02\0CT" + STUDY,
        ("trailing-bytes",): SOP + STUDY + PIXELS + bytes(300),
        ("no-delimiter",): SOP + STUDY + element(0x7FE00010, "OB", item(b"abcd"), length=UNDEFINED),
        ("broken-sequence",): SOP + STUDY + element(0x00400275, "SQ", b"rubbish, no item", length=UNDEFINED),
        ("too-deep",): SOP + (sequence + item(length=UNDEFINED)) * 40 + (ITEM_END + SEQUENCE_END) * 40 + STUDY,
    }
    found = {flags(data): data for data in cases.values()}

    assert set(cases) == set(found)
    assert {flag for case in cases for flag in case} <= set(FLAGS)


@pytest.mark.parametrize("syntax", [IMPLICIT, BIG_ENDIAN, EXPLICIT])
@pytest.mark.parametrize("stated", [IMPLICIT, BIG_ENDIAN, EXPLICIT])
def test_bytes_are_believed_where_they_contradict_the_transfer_syntax(syntax: str, stated: str) -> None:
    """A data set in another encoding than its transfer syntax says is read as it is, and flagged."""
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    data_set.Modality, data_set.Rows = "CT", 512
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    header = read(written(data_set, syntax), stated)

    assert ("CT", "512") == (header.tags["Modality"], header.tags["Rows"])
    assert (() if syntax == stated else ("other-encoding",)) == header.flags


def test_an_unknown_vr_is_stepped_over() -> None:
    """A VR that does not exist is read with whichever length leads to another element (PS3.5 7.1.2)."""
    for odd in (b"\x08\0\x50\0ui\x04\0ABCD", b"\x08\0\x50\0ZZ\0\0\x04\0\0\0ABCD", b"\x08\0\x50\0\x04\0\0\0ABCD"):
        header = read(SOP + odd + element(0x00080060, "CS", b"CT") + STUDY)

        assert "CT" == header.tags["Modality"]
        assert ("unknown-vr",) == header.flags


def test_long_values_are_cut() -> None:
    """A value is kept up to 16 KB, and to 1 KB once all of them are long; the next elements are read as ever."""
    one = read(SOP + STUDY + element(0x00204000, "UT", b"x" * 10_000_000))
    names = [f"0021,{number:04x}" for number in range(0x1000, 0x1020)]
    many = SOP + STUDY + b"".join(element(0x00210000 | number, "UT", b"x" * 30_000) for number in range(0x1000, 0x1020))
    all_long = read(many, wanted=TagList.of(names))

    assert VALUE_LIMIT == len(one.tags["ImageComments"])
    assert {1024} == {len(value) for value in all_long.tags.values()}
    assert ("long-value",) == all_long.flags


@pytest.mark.parametrize("length", [0, 64_000, 10_000_000])
def test_identity_is_found_behind_a_long_value(length: int) -> None:
    """Values that nobody wants are skipped, not read."""
    counts: list[int] = []
    data = SOP + element(0x00081140, "OB", bytes(length)) + STUDY + PIXELS
    header = read(data, counts=counts)

    assert "1.2.3" == header.study_instance_uid
    assert sum(counts) <= 16_000


# What cannot be filed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "data set of 0 bytes is cut off: an element goes on to byte 8; send the instance again"),
        (STUDY, "data set has no SOPInstanceUID; it cannot be filed"),
        (SOP, "data set has no StudyInstanceUID and no SeriesInstanceUID; it cannot be filed"),
        (
            SOP[34:] + STUDY,
            "data set has no SOPClassUID, nor did its sender name one",
        ),
        (
            SOP + element(0x0020000D, "UI", b"../etc") + STUDY[14:],
            "StudyInstanceUID is unusable: '../etc' is not a UID: 1 to 64 digits and dots, a digit first and last",
        ),
        (
            SOP + element(0x00081140, "SQ", b"rubbish, no item", length=UNDEFINED) + STUDY,
            "data set has no StudyInstanceUID and no SeriesInstanceUID in what could be read of the header "
            "(broken-sequence); it cannot be filed",
        ),
        (
            SOP + STUDY + element(0x7FE00010, "OW", bytes(64), length=100),
            "data set of 156 bytes is cut off: an element goes on to byte 192; send the instance again",
        ),
    ],
)
def test_refusals_say_what_is_missing(data: bytes, message: str) -> None:
    """A refusal names the element, and what to do where something can be done."""
    with pytest.raises(NotAnInstance) as refusal:
        read(data)

    assert message == str(refusal.value)


def test_a_stated_sop_class_stands_in_for_a_missing_one() -> None:
    """The command names the SOP class of a data set that does not."""
    header = scan(SOP[34:] + STUDY, transfer_syntax_uid=EXPLICIT, wanted=WANTED, sop_class_uid="1.2.9")

    assert ("1.2.9", ("sop-class-missing",)) == (header.sop_class_uid, header.flags)


@pytest.mark.parametrize(
    "uid", [b"", b".", b"..", b"1.2.", b"9" * 65, b"error", b"1\0.2", b"1.2\\1.3", b"\xe9", b"1/2"]
)
def test_unusable_uids_are_refused(uid: bytes) -> None:
    """A UID becomes a name in the spool and in the ledger only if it is one."""
    for tag, data in ((0x00080018, SOP[:34]), (0x0020000D, SOP), (0x0020000E, SOP)):
        rest = STUDY if tag == 0x00080018 else (STUDY[:14] if tag == 0x0020000E else STUDY[14:])
        with pytest.raises(NotAnInstance):
            read(data + element(tag, "UI", uid) + rest)


def whole(syntax: str) -> bytes:
    """A small data set with all that can be cut: sequences of both kinds, a private block, pixel data."""
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID, data_set.Modality = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4", "CT"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.Rows = "1.2.3", "1.2.3.5", 2
    data_set.private_block(0x0029, "TALARIA TEST", create=True).add_new(1, "LO", "x")
    inner = Dataset()
    inner.ScheduledProcedureStepID = "S1"
    data_set.RequestAttributesSequence = Sequence([inner])
    data_set["RequestAttributesSequence"].is_undefined_length = True
    inner.is_undefined_length_sequence_item = True
    data_set.ReferencedImageSequence = Sequence([Dataset()])
    data_set.add_new(0x7FE00010, "OW", bytes(8))
    return written(data_set, syntax)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_a_data_set_cut_off_anywhere_is_refused_or_ends_with_an_element(syntax: str) -> None:
    """Cut at every byte: refused, unless the cut falls between two elements of the top level or their items."""
    data = whole(syntax)
    code = ">HH" if syntax == BIG_ENDIAN else "<HH"
    tags = [0x00080060, 0x00081140, 0x00280010, 0x00290010, 0x00291001, 0x00400275, 0x00400009, 0x7FE00010]
    tags += [0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD]
    beginnings = [struct.pack(code, tag >> 16, tag & 0xFFFF) for tag in tags]
    taken = []
    for end in range(len(data)):
        try:
            taken.append((end, read(data[:end], syntax).flags))
        except NotAnInstance:
            continue

    assert () == read(data, syntax).flags
    for end, found in taken:
        is_boundary = any(data[end:].startswith(begin) for begin in beginnings)
        assert is_boundary or found == ("trailing-bytes",), end


def test_a_cut_within_encapsulated_pixel_data_is_seen() -> None:
    """Fragments are counted through where the end is not a delimiter; padding behind them is no cut."""
    fragments = item() + item(bytes(1000)) + item(bytes(500))
    pixels = element(0x7FE00010, "OB", fragments + SEQUENCE_END, length=UNDEFINED)

    assert () == flags(SOP + STUDY + pixels, JPEG)
    assert () == flags(SOP + STUDY + pixels + element(0xFFFCFFFC, "OB", bytes(10)), JPEG)
    with pytest.raises(NotAnInstance):
        flags(SOP + STUDY + pixels[:-100], JPEG)


def test_without_a_way_to_read_on_the_head_is_all_there_is() -> None:
    """A head without read_on is the whole data set; with a size it is known to be cut, and flagged where it matters."""
    data = SOP + STUDY + element(0x00280010, "US", b"\x00\x02")

    assert "512" == scan(data, transfer_syntax_uid=EXPLICIT, wanted=WANTED).tags["Rows"]
    header = scan(data[:-10], transfer_syntax_uid=EXPLICIT, wanted=WANTED, size_bytes=len(data))
    assert (None, ("header-cut",)) == (header.tags.as_document()["Rows"], header.flags)


def test_of_unknown_size_the_end_is_where_reading_ends() -> None:
    """Without a size nothing is asked for twice, and a header that goes on behind the head is read."""
    data = SOP + element(0x00081140, "OB", bytes(100_000)) + STUDY + element(0x00280010, "US", b"\x00\x02")
    header = scan(
        data[:100], transfer_syntax_uid=EXPLICIT, wanted=WANTED, read_on=lambda at, length: data[at : at + length]
    )

    assert ("512", ()) == (header.tags["Rows"], header.flags)


# Limits


def measured(data: bytes, syntax: str = EXPLICIT) -> tuple[Header | NotAnInstance, float, float]:
    """Outcome, seconds without and megabytes with the allocations traced."""
    began = time.process_time()
    try:
        outcome: Header | NotAnInstance = read(data, syntax)
    except NotAnInstance as error:
        outcome = error
    seconds = time.process_time() - began
    tracemalloc.start()
    try:
        read(data, syntax)
    except NotAnInstance:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return outcome, seconds, peak / 1e6


NESTED = element(0x00081140, "SQ", length=UNDEFINED) + item(length=UNDEFINED)
UNNESTED = ITEM_END + SEQUENCE_END
WANTED_NESTED = element(0x00400275, "SQ", length=UNDEFINED) + item(length=UNDEFINED)


@pytest.mark.parametrize("depth", [33, 50, 200, 10_000])
def test_deep_sequences_are_passed_over(depth: int) -> None:
    """Nesting costs no stack: what follows is read, and the depth is flagged."""
    header = read(SOP + NESTED * depth + UNNESTED * depth + STUDY + PIXELS)

    assert ("too-deep",) == header.flags


@pytest.mark.slow
@pytest.mark.parametrize("begin", [NESTED, WANTED_NESTED])
def test_a_hundred_thousand_nested_sequences_cost_nothing(begin: bytes) -> None:
    """Fault R7: answered within 0.1 s."""
    before, seconds_before, _ = measured(SOP + begin * 100_000 + UNNESTED * 100_000 + STUDY)
    after, seconds_after, peak = measured(SOP + STUDY + begin * 100_000)

    assert isinstance(before, NotAnInstance)
    assert isinstance(after, Header)
    assert max(seconds_before, seconds_after) < 0.1
    assert peak < 5


@pytest.mark.parametrize("tag", [0x00081140, 0x00400275])
@pytest.mark.parametrize("length", [None, UNDEFINED])
def test_a_million_empty_items_cost_nothing(tag: int, length: int | None) -> None:
    """Fault R8: 8 MB of items within 0.2 s and 20 MB, whether anyone wants them or not."""
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 1_000_000
    outcome, seconds, peak = measured(
        SOP + STUDY + element(tag, "SQ", items + SEQUENCE_END, length=length or len(items) + 8)
    )

    assert isinstance(outcome, Header)
    assert seconds < 0.2
    assert peak < 20


@pytest.mark.slow
def test_a_deflate_bomb_is_inflated_a_little() -> None:
    """Fault R6: a megabyte that inflates to a gigabyte takes at most 64 MB and 0.5 s, and is filed."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    pixels = element(0x7FE00010, "OB", length=1_000_000_000)
    bomb = squeeze.compress(SOP + STUDY + pixels)
    bomb += b"".join(squeeze.compress(bytes(10_000_000)) for _ in range(100)) + squeeze.flush()
    outcome, seconds, peak = measured(bomb, DEFLATED)

    assert isinstance(outcome, Header)
    assert "inflate-limit" in outcome.flags
    assert seconds < 0.5
    assert peak < 64 >= INFLATE_LIMIT >> 20


def test_deflated_data_sets_are_read() -> None:
    """A deflated data set is inflated and read like any other; one that ends too early is refused."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = squeeze.compress(SOP + STUDY + element(0x00280010, "US", b"\x00\x02") + PIXELS) + squeeze.flush()
    header = read(data, DEFLATED, head=20)

    assert ("512", ()) == (header.tags["Rows"], header.flags)
    for end in range(len(data)):
        with pytest.raises(NotAnInstance):
            read(data[:end], DEFLATED)
    with pytest.raises(NotAnInstance):
        read(b"\xff" * 100, DEFLATED)


def test_a_million_elements_are_not_read() -> None:
    """After 65,536 elements the pass ends; the identity that it has found counts."""
    outcome, seconds, peak = measured(SOP + STUDY + element(0x00210010, "LO") * 1_000_000)

    assert isinstance(outcome, Header)
    assert ("element-limit",) == outcome.flags
    assert seconds < 0.2
    assert peak < 5
    assert ELEMENT_LIMIT == 65_536


def test_a_strewn_header_is_not_followed_for_ever() -> None:
    """Reading on happens at most a thousand times."""
    block = b"".join(element(0x00210000 | 0x1000 + n, "OB", bytes(9_000)) for n in range(READ_LIMIT + 100))
    counts: list[int] = []
    header = read(SOP + STUDY + block, counts=counts)

    assert ("read-limit",) == header.flags
    assert READ_LIMIT == len(counts)


# Whatever comes


def survives(data: bytes, syntax: str, wanted: TagList = SYNTHETIC, head: int = HEAD) -> None:
    """Read, or refused; nothing else, and text that can be kept."""
    try:
        header = read(data, syntax, wanted, head=head)
    except NotAnInstance:
        return
    assert set(header.flags) <= set(FLAGS)
    assert header.tags == Tags.from_json(header.tags.to_json())
    text = "".join(header.tags.values())
    text.encode("utf-8")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


SYNTAXES = st.sampled_from([IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, JPEG, ""])


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), SYNTAXES, st.sampled_from([0, 10, HEAD]))
def test_arbitrary_bytes_are_read_or_refused(data: bytes, syntax: str, head: int) -> None:
    """No bytes raise anything but NotAnInstance."""
    survives(data, syntax, head=head)
    survives(SOP + STUDY + data, syntax, head=head)


PIECES = st.sampled_from(
    [
        SOP,
        STUDY,
        PIXELS,
        NESTED,
        WANTED_NESTED,
        ITEM_END,
        SEQUENCE_END,
        item(),
        item(length=UNDEFINED),
        item(length=0xFFFFFFFE),
        element(0x00080005, "CS", b"\\ISO 2022 IR 87\\ISO 2022 IR 149"),
        element(0x0008103E, "LO", b"\x1b$B\x1b$)C\x1b(\xff"),
        element(0x00400275, "SQ", length=UNDEFINED),
        element(0x00400275, "UN", length=UNDEFINED),
        element(0x00400275, "SQ", item(element(0x00080060, "CS", b"CT")) + item(length=12)),
        element(0x7FE00010, "OB", length=UNDEFINED),
        element(0x00290010, "LO", b"TALARIA TEST"),
        element(0x00291042, "UN", b"\xff"),
        element(0x00280010, "US", b"\x01"),
        element(0x00280009, "AT", b"\x01\x02\x03\x04\x05"),
        element(0x00189087, "FD", struct.pack("<d", float("nan"))),
        element(0x00081140, "OB", length=0xFFFFFFFE),
        b"\x08\0\x60\0??",
        bytes(3),
        bytes(40),
    ]
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(PIECES | st.binary(max_size=12), max_size=14).map(b"".join), SYNTAXES, st.sampled_from([0, 30, HEAD]))
def test_pieces_in_any_order_are_read_or_refused(data: bytes, syntax: str, head: int) -> None:
    """Sequences and elements that fit nowhere raise nothing but NotAnInstance."""
    survives(data, syntax, head=head)
    survives(SOP + STUDY + data, syntax, head=head)


REAL = real_files()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_real_headers_are_read_or_refused(draws: st.DataObject) -> None:
    """Real headers with a few bytes changed, dropped or doubled raise nothing but NotAnInstance."""
    raw = draws.draw(st.sampled_from(REAL)).read_bytes()[:20_000]
    try:
        meta = parse_meta(raw)
    except NotAnInstance:
        return
    data = bytearray(raw[meta.offset :])
    for _ in range(draws.draw(st.integers(1, 6))):
        at, kind = draws.draw(st.integers(0, max(len(data) - 1, 0))), draws.draw(st.integers(0, 2))
        if kind == 0:
            data[at : at + 1] = draws.draw(st.binary(min_size=1, max_size=4))
        elif kind == 1:
            del data[at : at + draws.draw(st.integers(1, 50))]
        else:
            data[at:at] = data[at : at + 40]

    survives(bytes(data), meta.transfer_syntax_uid, EVERYTHING if draws.draw(st.booleans()) else WANTED)
