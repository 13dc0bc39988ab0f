"""
P3: microseconds to read the header of one image, ours beside pydicom, in the same run and interleaved.

    python bench/header.py [FOLDER]

FOLDER (or TALARIA_TEST_DATA) holds DICOM files; the largest group of each of its folders is measured. Without it, a
synthetic CT header of 200 elements.
"""

import os
import struct
import sys
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median

import pydicom
from pydicom.datadict import keyword_dict

from talaria.model.errors import NotAnInstance
from talaria.model.header import TagList, scan
from talaria.model.part10 import parse_meta
from talaria.model.recorded import RECORDED

ROUNDS = 7
HEAD_BYTES = 64 * 1024
WANTED = TagList.of(RECORDED)
TOP_LEVEL = [keyword_dict[name] for name in RECORDED if keyword_dict.get(name, 0) >= 0x00080000]


def synthetic() -> bytes:
    """A data set of 200 elements, as a CT has them, and its pixel data."""

    def element(tag: int, vr: bytes, value: bytes) -> bytes:
        return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value

    uids = {0x00080016: b"1.2.840.10008.5.1.4.1.1.2\0", 0x00080018: b"1.2.3.4\0"}
    uids |= {0x0020000D: b"1.2.3\0", 0x0020000E: b"1.2.3.5\0"}
    texts = {tag: b"SOME TEXT " for tag in sorted(TOP_LEVEL)[:90] if tag not in uids and tag >> 16 < 0x28}
    private = {0x00190010 | number: b"PRIVATE VALUE " for number in range(0x1000, 0x1000 + 196 - len(texts))}
    elements = {**dict.fromkeys(uids, b"UI"), **dict.fromkeys((*texts, *private), b"LO")}
    values = {**texts, **private, **uids}
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 524_288) + bytes(524_288)
    return b"".join(element(tag, elements[tag], values[tag]) for tag in sorted(values)) + pixels


def ours(data: bytes, head: bytes, syntax: str) -> None:
    scan(
        head,
        transfer_syntax_uid=syntax,
        wanted=WANTED,
        read_on=lambda offset, length: data[offset : offset + length],
        size_bytes=len(data),
    )


def by_pydicom(raw: bytes) -> None:
    """The same tags of the top level as text."""
    data_set = pydicom.dcmread(BytesIO(raw), stop_before_pixels=True, force=True)
    for tag in TOP_LEVEL:
        if tag in data_set:
            str(data_set[tag].value)


def microseconds(act: Callable[[], None]) -> float:
    """Of one call, as the median of a short burst gives it."""
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < 0.05:
        act()
        count += 1
    return (time.perf_counter() - began) / count * 1e6


def row(name: str, raw: bytes) -> str:
    """One line of the table."""
    meta = parse_meta(raw[:HEAD_BYTES])
    data = raw[meta.offset :]
    head = data[:HEAD_BYTES]
    ours(data, head, meta.transfer_syntax_uid)
    mine, theirs = [], []
    for _ in range(ROUNDS):
        mine.append(microseconds(lambda: ours(data, head, meta.transfer_syntax_uid)))
        theirs.append(microseconds(lambda: by_pydicom(raw)))
    return f"{name[:40]:40} {median(mine):8.0f} {median(theirs):8.0f} {median(theirs) / median(mine):7.1f} x"


def main() -> None:
    warnings.simplefilter("ignore")
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TALARIA_TEST_DATA")
    print(f"{len(RECORDED)} tags wanted; microseconds per header, median of {ROUNDS}")
    print(f"{'':40} {'talaria':>8} {'pydicom':>8} {'ratio':>9}")
    meta = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
    print(row("synthetic CT, 200 elements", bytes(128) + b"DICM" + meta + synthetic()))
    for folder in sorted(path for path in Path(named).iterdir() if path.is_dir()) if named else ():
        for path in sorted(folder.iterdir()):
            try:
                print(row(f"{folder.name}/{path.name}", path.read_bytes()))
            except NotAnInstance:
                continue  # a licence, a media directory
            break


if __name__ == "__main__":
    main()
