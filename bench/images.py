"""Synthetic CT instances of the usual size, as data sets, files and ready-made C-STORE messages."""

import functools
from collections.abc import Iterator
from pathlib import Path

from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from talaria.dimse import command, pdu
from talaria.model.part10 import FileMeta, build_meta
from talaria.model.recorded import RECORDED

SOP_CLASS, TRANSFER_SYNTAX = str(CTImageStorage), str(ExplicitVRLittleEndian)

#: 512 x 512 x 16 bit.
PIXEL_BYTES = 512 * 512 * 2
_ELEMENTS = 200
#: So many of the tags that are recorded does a CT have.
_OF_USE = 120
_PRIVATE_BLOCK = "SYNTHETIC BENCH"

#: A value that fits each VR.
_VALUES = {
    "AE": "SYNTHETIC", "AS": "056Y", "CS": "SYNTHETIC", "DA": "20260105", "DS": "1.5", "DT": "20260105081500",
    "FD": 1.5, "FL": 1.5, "IS": "7", "LO": "Synthetic value", "LT": "Synthetic text", "PN": "Synthetic^Ada",
    "SH": "SYNTHETIC", "SL": 1, "SS": 1, "ST": "Synthetic text", "TM": "081500", "UI": "1.2.3.4", "UL": 1, "US": 1,
    "UT": "Synthetic text",
}  # fmt: skip


def uid(kind: int, run: int, number: int) -> str:
    """A UID that is always as long as any other of these."""
    return f"2.999.{kind}.1{run:011d}.1{number:011d}"


#: What the template bears, to be replaced.
_STUDY, _SERIES, _INSTANCE = (uid(kind, 0, 0) for kind in (1, 2, 3))


@functools.cache
def template(pixel_bytes: int = PIXEL_BYTES) -> bytes:
    """A data set of 200 elements, explicit VR little endian, with zeros for pixels."""
    data = Dataset()
    for name in RECORDED[:_OF_USE]:
        tag = keyword_dict.get(name, 0)
        vr = dictionary_VR(tag) if tag else ""
        if 0x00080000 <= tag < 0x7FE00000 and vr in _VALUES:
            setattr(data, name, _VALUES[vr])
    data.SpecificCharacterSet, data.SOPClassUID, data.Modality = "ISO_IR 100", SOP_CLASS, "CT"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID = _STUDY, _SERIES, _INSTANCE
    data.Rows = data.Columns = 512
    data.BitsAllocated, data.PixelRepresentation = 16, 0
    block = data.private_block(0x0029, _PRIVATE_BLOCK, create=True)
    for number in range(_ELEMENTS - len(data) - 1):
        block.add_new(number, "LO", "PRIVATE VALUE")
    data.add_new(0x7FE00010, "OW", bytes(pixel_bytes))
    written = DicomBytesIO()
    written.is_little_endian, written.is_implicit_VR = True, False
    write_dataset(written, data)
    return written.getvalue()


def data_set(*, run: int, series: int, number: int) -> bytes:
    """A data set with UIDs of its own."""
    names = {_STUDY: uid(1, run, 1), _SERIES: uid(2, run, series), _INSTANCE: uid(3, run, series * 1_000_000 + number)}
    head, rest = template()[:65536], template()[65536:]
    for placeholder, name in names.items():
        head = head.replace(placeholder.encode(), name.encode())
    return head + rest


def write_files(folder: Path, count: int) -> list[Path]:
    """So many Part 10 files of one series."""
    paths = []
    for number in range(count):
        meta = FileMeta(
            offset=0, sop_class_uid=SOP_CLASS, sop_instance_uid=uid(3, 1, 1_000_000 + number),
            transfer_syntax_uid=TRANSFER_SYNTAX,
        )  # fmt: skip
        paths.append(folder / f"{number:05d}.dcm")
        paths[-1].write_bytes(build_meta(meta) + data_set(run=1, series=1, number=number))
    return paths


def message(*, context_id: int, max_length: int, pixel_bytes: int = PIXEL_BYTES) -> bytearray:
    """A C-STORE request with the template, as the P-DATA-TF PDUs that go over the wire."""
    request = command.store_request(message_id=1, sop_class_uid=SOP_CLASS, sop_instance_uid=_INSTANCE)
    built = bytearray(pdu.command_pdus(context_id, request, max_length=max_length))
    body, size = memoryview(template(pixel_bytes)), max_length - pdu.PDV_HEADER_BYTES
    header = memoryview(bytearray(pdu.DATA_HEADER_BYTES))
    for at in range(0, len(body), size):
        piece = body[at : at + size]
        is_last = at + size >= len(body)
        pdu.write_data_header(
            header, 0, length=len(piece), context_id=context_id, is_command=False, is_last=is_last
        )  # fmt: skip
        built += header
        built += piece
    return built


def renamed(built: bytearray, *, run: int, series: int, count: int) -> Iterator[bytearray]:
    """The same message again and again, each time as another instance; at next to no cost."""
    for placeholder, name in ((_STUDY, uid(1, run, 1)), (_SERIES, uid(2, run, series))):
        for at in _places(built, placeholder):
            built[at : at + len(name)] = name.encode()
    places = _places(built, _INSTANCE)
    for number in range(count):
        own = uid(3, run, series * 1_000_000 + number).encode()
        for at in places:
            built[at : at + len(own)] = own
        yield built


def _places(built: bytearray, text: str) -> list[int]:
    found, at = [], built.find(text.encode(), 0, 65536)
    while at >= 0:
        found.append(at)
        at = built.find(text.encode(), at + 1, 65536)
    return found
