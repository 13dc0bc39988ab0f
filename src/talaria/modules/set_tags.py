"""The module that sets elements of each instance and leaves the others as they are."""

import json
import logging
import mmap
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator
from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement

from talaria.model.dicom import UID
from talaria.model.errors import NotAnInstance, Permanent
from talaria.model.extensions import Module
from talaria.model.part10 import META_LIMIT_BYTES, build_meta, data_set_uid, parse_meta
from talaria.modules import files
from talaria.modules.data_set import TAIL, Element, Encoding, Walker, encoded, spliced

log = logging.getLogger(__name__)

Value = str | int | float | list[str | int | float]

_CHARACTER_SET, _SOP_INSTANCE, _SERIES_INSTANCE = 0x00080005, 0x00080018, 0x0020000E
_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"
_CHUNK_BYTES = 1 << 20
_NAMESPACE = uuid.UUID("7b0c1f0e-7f1e-5b57-9a3e-0f6f2b9f5d11")  # of the UIDs made here, never to be changed

_TEXTS = frozenset(
    ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
)
_INTEGERS = frozenset(("US", "SS", "UL", "SL", "UV", "SV"))
_FLOATS = frozenset(("FL", "FD"))

_PIXEL_FORMAT = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)

#: What cannot be set, and why.
_REFUSED = {
    "SOPInstanceUID": "each instance needs its own; see keep_uids",
    "SOPClassUID": "an instance of another class has other elements",
    "SpecificCharacterSet": "the text that is there would read differently",
    **dict.fromkeys(_PIXEL_FORMAT, "the pixel data would read differently"),
}


def _checked(tags: dict[str, Value]) -> dict[str, Value]:
    for name, value in tags.items():
        _element(name, value)
    return tags


class SetTags(Module):
    """
    Sets top-level elements and leaves every other byte of the data set, pixel data too, as it is.

    The results get SOP and Series Instance UIDs of their own, made of the old ones and these settings: the same input
    gives the same UIDs each time. References from one instance to another still point at the originals. Files that
    are not DICOM instances are copied.
    """

    kind: ClassVar[str] = "set_tags"

    tags: Annotated[dict[str, Value], AfterValidator(_checked)]
    """Values by keyword or `gggg,eeee`; several values as a list, nothing as "". No sequences, no private elements."""
    keep_uids: bool = False
    """Keep SOP and Series Instance UIDs, so that the results pass for the originals."""

    def run(self, source: Path, destination: Path, task: Mapping[str, Any]) -> None:
        """
        Write every instance of *source* with its elements set, named `<SeriesInstanceUID>#<SOPInstanceUID>.dcm`.

        Raises:
            Permanent: A file that cannot be understood, a value that its character set cannot write, or two
                instances of one UID; names the file.
        """
        changed = copied = 0
        for name in files.inputs(source):
            if _is_instance(source / name):
                self._change(source / name, destination, str(name))
                changed += 1
            else:
                files.copy(name, source, destination)
                copied += 1
        log.info("%d instances changed, %d other files copied", changed, copied)

    def _change(self, path: Path, destination: Path, name: str) -> None:
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self._rewrite(content, destination)
        except NotAnInstance as error:
            raise Permanent(f"set_tags: {name}: {error}") from error
        except UnicodeEncodeError as error:
            raise Permanent(f"set_tags: {name}: its character set cannot write one of the values") from error
        except FileExistsError as error:
            raise Permanent(f"set_tags: {name}: another instance of the input has the same UIDs") from error

    def _rewrite(self, part10: mmap.mmap, destination: Path) -> None:
        meta = parse_meta(part10[:META_LIMIT_BYTES])
        deflated = meta.transfer_syntax_uid == _DEFLATED
        content, start = (_inflated(part10[meta.offset :]), 0) if deflated else (part10, meta.offset)
        encoding = Encoding.of(meta.transfer_syntax_uid)
        elements = list(Walker(content, start, encoding).elements())
        values = {tag: _text(content, elements, tag) for tag in (_CHARACTER_SET, _SOP_INSTANCE, _SERIES_INSTANCE)}
        new = self._new_elements(values)
        with _strict_writing():
            character_set = values[_CHARACTER_SET].split("\\")
            replacements = {tag: encoded(new[tag], encoding, character_set=character_set) for tag in new}
        sop = UID(str(new[_SOP_INSTANCE].value)) if _SOP_INSTANCE in new else UID(values[_SOP_INSTANCE])
        series = UID(str(new[_SERIES_INSTANCE].value)) if _SERIES_INSTANCE in new else UID(values[_SERIES_INSTANCE])
        pieces = _chunks(content, spliced(elements, replacements, start=start, end=len(content)))
        with (destination / f"{series}#{sop}.dcm").open("xb") as out:
            out.write(build_meta(replace(meta, sop_instance_uid=sop)))
            for chunk in _deflated(pieces) if deflated else pieces:
                out.write(chunk)

    def _new_elements(self, values: Mapping[int, str]) -> dict[int, DataElement]:
        """What is set in an instance with these UIDs; raises NotAnInstance where they are none."""
        sop = data_set_uid(values[_SOP_INSTANCE], name="SOP Instance UID (0008,0018)")
        series = data_set_uid(values[_SERIES_INSTANCE], name="Series Instance UID (0020,000e)")
        made = {} if self.keep_uids else {_SOP_INSTANCE: self._derived(sop), _SERIES_INSTANCE: self._derived(series)}
        given = (_element(name, value) for name, value in self.tags.items())
        return {tag: DataElement(tag, "UI", uid) for tag, uid in made.items()} | {int(e.tag): e for e in given}

    def _derived(self, uid: UID) -> str:
        """A UID made of a UUID (PS3.5 B.2), the same for the same old UID and settings."""
        settings = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"2.25.{uuid.uuid5(_NAMESPACE, f'{uid} {settings}').int}"


def _element(name: str, value: Value) -> DataElement:
    """
    The element that a setting asks for.

    Raises:
        ValueError: It has no such tag, cannot be set, or its value does not fit; says what fits.
    """
    tag = _tag(name)
    keyword = keyword_for_tag(tag)
    if keyword in _REFUSED:
        raise ValueError(f"{keyword} cannot be set: {_REFUSED[keyword]}")
    if not keyword or not 0x00080000 <= tag < TAIL or not tag & 0xFFFF:
        raise ValueError(f"{name} cannot be set: only data elements of PS3.6 from (0008,0001) to below the pixel data")
    vr = dictionary_VR(tag)
    several = value if isinstance(value, list) else [value]
    try:
        return DataElement(tag, vr, _typed(vr, several), validation_mode=config.RAISE)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name} cannot be set to that value: {str(error) or 'it does not fit'}") from None


def _tag(name: str) -> int:
    group, comma, element = name.partition(",")
    try:
        number = int(group, 16) << 16 | int(element, 16) if comma else tag_for_keyword(name)
    except ValueError:
        number = None
    if number is None:
        raise ValueError(f"{name!r} is neither a keyword of PS3.6 nor gggg,eeee")
    return number


def _typed(vr: str, values: list[str | int | float]) -> Any:  # what pydicom takes for the VR
    if vr in _TEXTS:
        return "\\".join(map(str, values))
    if vr not in _INTEGERS | _FLOATS:
        raise ValueError(f"it is {vr}, and only text and numbers can be set")
    numbers = [int(value) if vr in _INTEGERS else float(value) for value in values if value != ""]
    return numbers[0] if len(numbers) == 1 else numbers or None


def _is_instance(path: Path) -> bool:
    """Whether it is a DICOM Part 10 file, media directories left aside."""
    with path.open("rb") as file:
        head = file.read(META_LIMIT_BYTES)
    return head[128:132] == b"DICM" and _sop_class(head) != _DIRECTORY


def _sop_class(head: bytes) -> str:
    """The SOP class that file meta information names; empty where it cannot be read."""
    try:
        return parse_meta(head).sop_class_uid
    except NotAnInstance:
        return ""


def _text(content: bytes | mmap.mmap, elements: list[Element], tag: int) -> str:
    """The value of a short element as text, without its padding; empty where it is absent."""
    for element in elements:
        if element.tag == tag:
            return content[element.value : min(element.end, element.value + 1024)].decode("latin-1").strip("\0 ")
    return ""


@contextmanager
def _strict_writing() -> Iterator[None]:
    """Let pydicom refuse what a character set cannot write, rather than write question marks."""
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.RAISE
    try:
        yield
    finally:
        config.settings.writing_validation_mode = before


def _chunks(content: bytes | mmap.mmap, pieces: Iterator[bytes | tuple[int, int]]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            start, end = piece
            yield from (content[at : min(at + _CHUNK_BYTES, end)] for at in range(start, end, _CHUNK_BYTES))


def _inflated(content: bytes) -> bytes:
    """A deflated data set (PS3.5 A.5) in full; the memory limit of the run bounds it."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content)
    except zlib.error as error:
        raise NotAnInstance(f"the deflated data set cannot be inflated: {error}") from None


def _deflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Deflate as it comes, padded to even length (PS3.5 A.5)."""
    machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    total = 0
    for chunk in chunks:
        part = machine.compress(chunk)
        total += len(part)
        yield part
    rest = machine.flush()
    yield rest + bytes((total + len(rest)) % 2)
