"""
The bounded header scanner: the first bytes of a data set in, its identity and its recorded tags out (PS3.5 7).

pydicom is its oracle in the tests, and takes no part at run time but for its dictionaries.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from talaria.model.dataset import (
    DEFLATED,
    ELEMENT_LIMIT,
    INFLATE_LIMIT,
    SHORT_VALUE_LIMIT,
    VALUE_LIMIT,
    VALUES_LIMIT,
    Found,
    Halt,
    Pass,
    ReadOn,
    inflated,
    plain,
    recognise,
)
from talaria.model.dicom import UID, Tags
from talaria.model.errors import NotAnInstance
from talaria.model.part10 import data_set_uid
from talaria.model.taglist import DEPTH_LIMIT, TRANSFER_SYNTAX_NAME, TagList, TagPath, resolve
from talaria.model.text import CLEAN_BYTES, TEXT_VRS, clean, codecs_of, decode, from_binary, is_plain

__all__ = ["FLAGS", "Header", "ReadOn", "TagList", "TagPath", "resolve", "scan"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a data set says of itself."""

    sop_class_uid: UID
    """From the data set; what the caller knew where it has none."""
    sop_instance_uid: UID
    study_instance_uid: UID
    series_instance_uid: UID
    tags: Tags
    """Every wanted name; None in its document where the element is absent."""
    flags: tuple[str, ...]
    """What was odd, in short words for machines, sorted; see `FLAGS`."""


#: Every flag, and what it tells.
FLAGS = MappingProxyType(
    {
        "broken-sequence": "items of a sequence do not add up; what follows was not read",
        "charset-undeclared": "text uses more than ASCII and no character set is named; read as Latin-1",
        "charset-unknown": "Specific Character Set has a term that nobody defined; read as Latin-1",
        "duplicate-element": "a wanted element comes twice; the last one counts",
        "element-limit": f"more than {ELEMENT_LIMIT} elements; the rest was not read",
        "header-cut": "the header goes on where it could not be read",
        "inflate-limit": f"inflates to more than {INFLATE_LIMIT >> 20} MB; the rest was not read",
        "long-value": "a wanted value was cut",
        "meta-in-data-set": "file meta information stands inside the data set",
        "no-delimiter": "a sequence or encapsulated pixel data has no end",
        "nonconformant-uid": "a UID breaks PS3.5 9.1",
        "odd-length": "a wanted value has an odd length",
        "other-encoding": "encoded otherwise than its transfer syntax says",
        "out-of-order": "wanted elements do not ascend",
        "read-limit": "the header is strewn over too many places; the rest was not read",
        "sop-class-missing": "no SOP class in the data set",
        "too-deep": f"sequences in sequences beyond {DEPTH_LIMIT} levels",
        "trailing-bytes": "something that is no element follows the data set",
        "undecodable-text": "a text does not fit its character set; what was not understood reads U+FFFD",
        "unknown-vr": "an element has a VR that does not exist",
    }
)


def scan(
    head: bytes,
    *,
    transfer_syntax_uid: str,
    wanted: TagList,
    read_on: ReadOn | None = None,
    size_bytes: int | None = None,
    sop_class_uid: str = "",
) -> Header:
    """
    Read identity and wanted tags of a data set.

    Where *size_bytes* is known, the top level is followed to the end by lengths alone, so that a data set that was
    cut off is seen. A data set cut exactly between two elements cannot be told from a whole one.

    Args:
        head: The first bytes of the data set, behind the file meta information; 64 KB are enough for nearly all.
        transfer_syntax_uid: As negotiated, or from the file meta information. Where the bytes contradict it, they
            are believed, and the header is flagged.
        wanted: What to record.
        read_on: Reads further bytes; called only where something that matters lies beyond *head*.
        size_bytes: Of the whole data set; None with *read_on* means unknown, None without it that *head* is all.
        sop_class_uid: What the command or the file meta information says, for a data set that says nothing.

    Raises:
        NotAnInstance: No usable Study, Series or SOP Instance UID within the limits of this module, no SOP class
            anywhere, or the data set is cut off; the message names which.

    Whatever `read_on` raises goes through.
    """
    one = (inflated if transfer_syntax_uid in DEFLATED else plain)(head, size_bytes, read_on)
    return _Reading(one, wanted, transfer_syntax_uid).header(sop_class_uid)


#: Codecs in force, and whether a Specific Character Set named them.
_Charset = tuple[tuple[str, ...], bool]
_IDENTITY = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_DEFAULT: _Charset = (codecs_of("")[0], False)


class _Reading:
    """From the bytes of one data set to its header, level by level."""

    def __init__(self, one: Pass, wanted: TagList, transfer_syntax_uid: str) -> None:
        self._pass = one
        self._wanted = wanted
        self._syntax = transfer_syntax_uid
        self._halted = ""

    def header(self, sop_class_uid: str) -> Header:
        """
        The header of the whole data set.

        Raises:
            NotAnInstance: See `scan`.
        """
        top = self._top()
        charset, texts = self._texts(top, _DEFAULT)
        identity = self._identity(texts)
        found = _named(top, texts)
        if top.sequences:
            self._add_nested(found, top, charset)
        if TRANSFER_SYNTAX_NAME in self._wanted.known:
            found[TRANSFER_SYNTAX_NAME] = clean(self._syntax)
        return Header(
            sop_instance_uid=identity["SOPInstanceUID"],
            study_instance_uid=identity["StudyInstanceUID"],
            series_instance_uid=identity["SeriesInstanceUID"],
            sop_class_uid=self._sop_class(texts, sop_class_uid),
            tags=Tags.of({**self._wanted.blank, **found}, self._wanted.known.difference(found)),
            flags=tuple(sorted(self._pass.flags)),
        )

    def _top(self) -> Found:
        at, encoding = recognise(self._pass, self._syntax)
        top = Found(self._wanted.top, encoding, is_top=True)
        try:
            self._pass.walk(top, at, self._pass.size)
        except Halt as halt:
            self._halted = f" in what could be read of the header ({halt})"
        return top

    def _identity(self, texts: Mapping[int, str]) -> dict[str, UID]:
        """The three UIDs without which nothing can be filed."""
        required = self._wanted.top.required
        found = {name: texts.get(required[name], "") for name in _IDENTITY}
        missing = [name for name, text in found.items() if not text]
        if missing:
            raise NotAnInstance(f"data set has no {' and no '.join(missing)}{self._halted}; it cannot be filed")
        return {name: self._uid(name, text) for name, text in found.items()}

    def _uid(self, name: str, text: str) -> UID:
        uid, is_conformant = _checked(text, name)
        if not is_conformant:
            self._pass.flags.add("nonconformant-uid")
        return uid

    def _sop_class(self, texts: Mapping[int, str], stated: str) -> UID:
        found = texts.get(self._wanted.top.required["SOPClassUID"])
        if not found:
            self._pass.flags.add("sop-class-missing")
        if not (found or stated):
            raise NotAnInstance(f"data set has no SOPClassUID{self._halted}, nor did its sender name one")
        return self._uid("SOPClassUID", found or stated)

    def _add_nested(self, tags: dict[str, str], top: Found, charset: _Charset) -> None:
        """Add to *tags* what stands below the top level."""
        pending = [(top, charset)]
        while pending:
            found, outer = pending.pop()
            for below in self._below(found):
                inner, texts = self._texts(below, outer)
                tags.update(_named(below, texts))
                pending.append((below, inner))

    def _below(self, found: Found) -> list[Found]:
        """What the wanted items of the sequences of one level hold."""
        results: list[Found] = []
        for number, sequence, encoding in found.sequences:
            levels = found.level.sequences[number][1]
            try:
                bounds = self._pass.items(sequence, encoding, last=max(levels))
                for item, level in levels.items():
                    if item < len(bounds):
                        results.append(Found(level, encoding, is_top=False))
                        self._pass.walk(results[-1], *bounds[item])
            except Halt:
                pass  # its flag is set; what was found so far counts
            except NotAnInstance:
                self._pass.flags.add("broken-sequence")  # the sequence itself lies within the data set
        return results

    def _texts(self, found: Found, outer: _Charset) -> tuple[_Charset, dict[int, str]]:
        """The values of one level as text, by slot, and the character set in force there."""
        charset, values = self._charset(found, outer), found.values
        if found.parity & 1:
            self._pass.flags.add("odd-length")
        other = {slot: text for slot, vr in found.binary if (text := _binary(found, slot, vr)) is not None}
        for slot in other:
            del values[slot]
        joined = _SEPARATOR.join(values.values())
        if not _is_simple(joined, len(values)):
            other.update(self._unusual(values, found.level.vrs, charset))
            joined = _SEPARATOR.join(values.values())
        texts = dict(zip(values, _apart(joined.translate(CLEAN_BYTES).decode("ascii")), strict=False))
        texts.update(other)
        return charset, texts

    def _charset(self, found: Found, outer: _Charset) -> _Charset:
        """Specific Character Set of one level; an item without one has that of what is around it (PS3.5 7.5.3)."""
        raw = found.values.get(found.level.required["SpecificCharacterSet"])
        if raw is None:
            return outer
        stated = clean(raw[:VALUE_LIMIT].decode("latin-1"))
        codecs, known = codecs_of(stated)
        if not known:
            self._pass.flags.add("charset-unknown")
        return codecs, bool(stated)

    def _unusual(self, values: dict[int, bytes], vrs: Sequence[str], charset: _Charset) -> dict[int, str]:
        """Texts of the values that are long or more than ASCII, which are taken out of *values*."""
        limit = VALUE_LIMIT if sum(map(len, values.values())) <= VALUES_LIMIT else SHORT_VALUE_LIMIT
        unusual = [slot for slot, raw in values.items() if len(raw) > limit or not _is_simple(raw, 1)]
        return {slot: self._unusual_text(values.pop(slot), vrs[slot], charset, limit=limit) for slot in unusual}

    def _unusual_text(self, raw: bytes, vr: str, charset: _Charset, *, limit: int) -> str:
        flags, (codecs, stated) = self._pass.flags, charset
        if len(raw) > limit:
            raw = raw[:limit]
            flags.add("long-value")
        if is_plain(vr):
            return clean(raw.decode("latin-1"))
        if not stated and not raw.isascii():
            flags.add("charset-undeclared")
        text, understood = decode(raw, codecs)
        if not understood:
            flags.add("undecodable-text")
        return clean(text)


def _named(found: Found, texts: Mapping[int, str]) -> dict[str, str]:
    """The texts of one level under the names they were asked for by."""
    names = found.level.names
    tags = dict(zip([names[slot] for slot in texts], texts.values(), strict=True))
    tags.pop("", None)
    for name, slot in found.level.aliases:
        if slot in texts:
            tags[name] = texts[slot]
    return tags


@functools.lru_cache(maxsize=1024)
def _checked(text: str, name: str) -> tuple[UID, bool]:
    """A UID and whether it keeps to PS3.5 9.1; those of a study come again with each of its images."""
    uid = data_set_uid(text, name=name)
    return uid, uid.conformant


#: Between values when all of a level are turned into text at once.
_SEPARATOR, _SEPARATOR_TEXT = b"\x1e", "\x1e"
_PAD = " " + _SEPARATOR_TEXT
#: What only padding looks like, once the blank that makes a length even is gone.
_PADDING = (_PAD, _SEPARATOR_TEXT + " ", " \\", "\\ ")


def _is_simple(joined: bytes, values: int) -> bool:
    """Whether so many values, joined, are ASCII, short, and free of what holds them apart."""
    return (
        joined.isascii()
        and len(joined) <= VALUE_LIMIT
        and b"\x1b" not in joined
        and joined.count(_SEPARATOR) == max(values - 1, 0)
    )


def _apart(joined: str) -> list[str]:
    """The values of a level, cleaned but for the padding around them."""
    joined = joined.strip(" ").replace(_PAD, _SEPARATOR_TEXT)
    texts = joined.split(_SEPARATOR_TEXT)
    if any(padding in joined for padding in _PADDING):
        return [clean(text) if " " in text else text for text in texts]
    return texts


_PRINTABLE = bytes(range(0x20, 0x7F))


def _binary(found: Found, slot: int, vr: str) -> str | None:
    """
    Text of a value whose VR is not text; None where it turns out to be text after all.

    A UN, and every VR of implicit encoding, is what the dictionary says (PS3.5 6.2.2).
    """
    raw, little_endian = found.values[slot][:VALUE_LIMIT], found.encoding.order.little_endian
    if vr in {"", "UN"}:
        vr, little_endian = _by_dictionary(found, slot), little_endian or vr == "UN"
    if vr in TEXT_VRS:
        return None
    if vr == "UN":
        return None if not raw.rstrip(b"\0").translate(None, _PRINTABLE) else ""
    return from_binary(raw, vr=vr, little_endian=little_endian)


def _by_dictionary(found: Found, slot: int) -> str:
    """The VR of the dictionary; where that leaves a choice, Pixel Representation (0028,0103) makes it (PS3.5 A.1)."""
    choice = found.level.vrs[slot].split(" or ")
    if len(choice) > 1 and choice[1] == "SS":
        sign = found.values.get(found.level.little.get(0x01030028, -1), b"")
        return "SS" if sign.startswith(b"\x01") else "US"
    return choice[0]
