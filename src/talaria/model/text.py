"""Element values as text: character sets, numbers, and the clean-up that makes a value fit to keep (PS3.5 6)."""

import functools
import re
import struct
from collections.abc import Sequence

from pydicom.charset import CODES_TO_ENCODINGS, STAND_ALONE_ENCODINGS, python_encoding

#: How a value's control characters read afterwards, as mercure has it: CR `;`, LF blank, `"` an apostrophe; all
#: other controls become blanks, since neither JSON in PostgreSQL nor a terminal bears them.
_CLEAN = {**dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " "), 0x0D: ";", 0x0A: " ", 0x22: "'"}
CLEAN_BYTES = bytes(ord(_CLEAN.get(code, chr(code))) if code != 0x1E else code for code in range(0x100))
"""`clean` for many ASCII values at once, but for the padding and for 1E, which holds them apart."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(rb"\x1b[^\x1b]*|[^\x1b]+")
#: What ends a code extension inside a value (PS3.5 6.1.2.5.3).
_RESETS = re.compile(rb"[\t\n\f\r]")
#: Python codecs that read the escape sequence themselves.
_READS_ESCAPES = frozenset({"iso2022_jp", "iso2022_jp_2"})
_ASCII_ONLY = "iso8859"

#: Misspelt defined terms met in real files, upper case, `_` and `-` as blanks.
_MISSPELT = {"UTF 8": "ISO_IR 192", "UTF8": "ISO_IR 192", "ISO 8859 1": "ISO_IR 100", "LATIN1": "ISO_IR 100"}
_TERMS = {term.replace("_", " "): term for term in reversed(python_encoding)}


@functools.lru_cache(maxsize=64)
def codecs_of(specific_character_set: str) -> tuple[tuple[str, ...], bool]:
    r"""
    The Python codecs for a value of Specific Character Set (0008,0005) (PS3.3 C.12.1.1.2).

    Args:
        specific_character_set: As recorded: values joined by a backslash; empty for the default repertoire.

    Returns:
        The codecs, the first being in force until an escape sequence names another; and whether all terms were
        known. For an unknown term Latin-1 stands in, which loses no byte.

    >>> codecs_of("\\ISO 2022 IR 87")
    (('iso8859', 'iso2022_jp'), True)
    >>> codecs_of("KLINGON")
    (('iso8859',), False)
    """
    found = [_codec(term.strip(" ")) for term in specific_character_set.split("\\")[:16]]
    known = all(codec is not None for codec in found)
    codecs = [codec or _ASCII_ONLY for codec in found]
    alone = {python_encoding[term] for term in STAND_ALONE_ENCODINGS}
    if codecs[0] in alone:
        return tuple(codecs[:1]), known
    return (codecs[0], *(codec for codec in codecs[1:] if codec not in alone)), known


def _codec(term: str) -> str | None:
    if term in python_encoding:
        return python_encoding[term]
    plain = re.sub("[_-]", " ", term.upper())
    spelt = _TERMS.get(plain) or _MISSPELT.get(plain)
    return python_encoding[spelt] if spelt else None


def decode(raw: bytes, codecs: Sequence[str]) -> tuple[str, bool]:
    r"""
    Text of a value in the character sets given, escape sequences followed (PS3.5 6.1.2.5).

    Args:
        raw: The value; several values are not taken apart.
        codecs: From `codecs_of`; not empty.

    Returns:
        The text, and whether every byte was understood; what was not reads U+FFFD.

    >>> decode(b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", ("iso8859", "iso2022_jp"))
    ('Yamada^Tarou=山田^太郎', True)
    """
    if b"\x1b" not in raw:
        return _strictly(raw, codecs[0])
    pieces = [_fragment(piece, codecs) for piece in _ESCAPED.findall(raw)]
    return "".join(text for text, _ in pieces), all(good for _, good in pieces)


def _fragment(piece: bytes, codecs: Sequence[str]) -> tuple[str, bool]:
    """One stretch of a value: either it begins with an escape sequence, or the first codec is in force."""
    if not piece.startswith(b"\x1b"):
        return _strictly(piece, codecs[0])
    width = 4 if piece[1:3] in {b"$)", b"$("} else 3
    codec = CODES_TO_ENCODINGS.get(piece[:width])
    if codec is None:
        return _strictly(piece[1:], codecs[0])[0], False
    if codec in _READS_ESCAPES:
        return _strictly(piece, codec)
    body = piece[width:]
    reset = _RESETS.search(body)
    if not reset:
        return _strictly(body, codec)
    before, after = _strictly(body[: reset.start()], codec), _strictly(body[reset.start() :], codecs[0])
    return before[0] + after[0], before[1] and after[1]


def _strictly(raw: bytes, codec: str) -> tuple[str, bool]:
    try:
        return raw.decode(codec), True
    except UnicodeDecodeError:
        return raw.decode(codec, "replace"), False


def clean(text: str) -> str:
    r"""
    A value fit to be kept: no control characters, no surrogates, no padding around any of its values.

    CR becomes `;`, LF a blank and `"` an apostrophe, as in mercure, whose rules compare with such values; other
    control characters become blanks.

    >>> clean(' say "no"\r\n\\two \0')
    "say 'no';\\two"
    """
    text = text.translate(_CLEAN)
    text = _SURROGATE.sub("\ufffd", text)
    return "\\".join([value.strip(" ") for value in text.split("\\")]) if "\\" in text else text.strip(" ")


#: Struct formats of the binary VRs whose values are numbers (PS3.5 table 6.2-1).
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}

#: VRs whose values are text of the default repertoire, whatever Specific Character Set says.
_PLAIN = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
#: VRs whose values are text in the character set.
_TEXT = frozenset({"SH", "LO", "ST", "LT", "PN", "UC", "UT"})

TEXT_VRS = _PLAIN | _TEXT
BINARY_VRS = frozenset({*_NUMBERS, "AT", "OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UN"})


def is_plain(vr: str) -> bool:
    """Whether values of this VR take no part in character sets (PS3.5 6.1.2.2)."""
    return vr in _PLAIN


def from_binary(raw: bytes, *, vr: str, little_endian: bool) -> str:
    r"""
    Text of a binary value: numbers in decimal, AT as `(gggg,eeee)`, several joined by a backslash.

    Bulk data and sequences read `""`. Floats are written with as many digits as it takes to read the same number
    again. Bytes that do not make up a whole number are left out.

    >>> from_binary(b"\x00\x02\x01\x00", vr="US", little_endian=True)
    '512\\1'
    >>> from_binary(b"\xcd\xcc\xcc\x3d", vr="FL", little_endian=True)
    '0.1'
    """
    if len(raw) == 2 and vr == "US":  # nearly all of them
        return str(int.from_bytes(raw, "little" if little_endian else "big"))
    order = "<" if little_endian else ">"
    if vr == "AT":
        pairs = struct.unpack(f"{order}{len(raw) // 4 * 2}H", raw[: len(raw) // 4 * 4])
        return "\\".join(f"({pairs[i]:04x},{pairs[i + 1]:04x})" for i in range(0, len(pairs), 2))
    if vr not in _NUMBERS:
        return ""
    size = struct.calcsize(order + _NUMBERS[vr])
    numbers = struct.unpack(f"{order}{len(raw) // size}{_NUMBERS[vr]}", raw[: len(raw) // size * size])
    if vr == "FL":
        return "\\".join([_single(number) for number in numbers])
    return "\\".join([_plain(repr(number)) for number in numbers])


def _single(number: float) -> str:
    """The shortest decimal that reads as the same single-precision number."""
    exact = struct.pack("<f", number)
    for digits in range(6, 9):
        text = format(number, f".{digits}g")
        if struct.pack("<f", float(text)) == exact:
            return text
    return format(number, ".9g")


def _plain(text: str) -> str:
    return text.removesuffix(".0")
