"""Element values as text."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.charset import decode_bytes, encode_string
from pydicom.valuerep import TEXT_VR_DELIMS

from talaria.model.text import clean, codecs_of, decode, from_binary


@pytest.mark.parametrize(
    ("term", "codecs", "known"),
    [
        ("", ("iso8859",), True),
        ("ISO_IR 192", ("UTF8",), True),
        ("ISO-IR 192", ("UTF8",), True),
        ("iso_ir 100", ("latin_1",), True),
        ("UTF-8", ("UTF8",), True),
        ("GB18030\\ISO 2022 IR 87", ("GB18030",), True),
        ("ISO 2022 IR 13\\ISO_IR 192\\ISO 2022 IR 87", ("shift_jis", "iso2022_jp"), True),
        ("unicode_escape", ("iso8859",), False),
        ("idna\\rot13", ("iso8859", "iso8859"), False),
    ],
)
def test_only_defined_character_sets_are_used(term: str, codecs: tuple[str, ...], known: bool) -> None:
    """Defined terms and their usual misspellings; never a codec of Python's that a peer names."""
    assert (codecs, known) == codecs_of(term)


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("ISO_IR 100", "Äneas^Rüdiger"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 13", "ﾔﾏﾀﾞﾀﾛｳ"),
        ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎"),
        ("\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", "ﾔﾏﾀﾞﾀﾛｳ山田^太郎"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", "Dionysios\\Люкceмбypг"),
    ],
)
def test_decodes_as_pydicom_does(term: str, text: str) -> None:
    """Single character sets and code extensions agree with pydicom."""
    codecs, _ = codecs_of(term)
    raw = encode_string(text, list(codecs))

    assert (decode_bytes(raw, list(codecs), TEXT_VR_DELIMS), True) == decode(raw, codecs)
    assert text == decode(raw, codecs)[0]


def test_a_chinese_code_extension_leaves_no_escape_behind() -> None:
    """ISO 2022 IR 58 is designated to G1; its escape sequence is no text (PS3.5 K.2)."""
    assert ("王^小东", True) == decode(b"\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab", codecs_of("\\ISO 2022 IR 58")[0])


@given(st.binary(max_size=60), st.sampled_from(["", "ISO_IR 192", "GB18030", "ISO_IR 13", "\\ISO 2022 IR 87"]))
def test_any_bytes_can_be_kept(raw: bytes, term: str) -> None:
    """Whatever the bytes are, the text is free of control characters, surrogates and padding, and stays so."""
    text = clean(decode(raw, codecs_of(term)[0])[0])

    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)
    assert text == clean(text)


def test_surrogates_are_replaced() -> None:
    """A lone surrogate cannot be written as UTF-8."""
    assert "a\ufffdb" == clean("a\ud800b")


@given(st.floats(width=32, allow_nan=False))
def test_floats_read_back_as_they_were(number: float) -> None:
    """As many digits as it takes, for both precisions."""
    assert (
        number
        == struct.unpack(
            "<f", struct.pack("<f", float(from_binary(struct.pack("<f", number), vr="FL", little_endian=True)))
        )[0]
    )
    assert number == float(from_binary(struct.pack(">d", number), vr="FD", little_endian=False))


@pytest.mark.parametrize(
    ("vr", "raw", "text"),
    [
        ("US", b"\x01\x00\x02\x00\x03", "1\\2"),
        ("SS", b"\xff\xff", "-1"),
        ("UL", b"\x01\x00\x00\x00", "1"),
        ("SV", b"\xff" * 8, "-1"),
        ("UV", b"\xff" * 8, "18446744073709551615"),
        ("AT", b"\x18\x00\x63\x10", "(0018,1063)"),
        ("FD", struct.pack("<d", 3), "3"),
        ("FD", struct.pack("<d", float("nan")), "nan"),
        ("FL", struct.pack("<f", float("-inf")), "-inf"),
        ("US", b"\x01", ""),
        ("OB", b"1234", ""),
        ("SQ", b"", ""),
    ],
)
def test_binary_values(vr: str, raw: bytes, text: str) -> None:
    """Numbers are decimal; what is left over of a number is left out; bulk data has no text."""
    assert text == from_binary(raw, vr=vr, little_endian=True)
