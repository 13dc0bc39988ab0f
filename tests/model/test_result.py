"""What a module wrote into `result.json`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model.result import DEPTH_LIMIT, SIZE_LIMIT_BYTES, read_result

ODD_TEXT = st.text(st.characters()).map(lambda text: text.encode("utf-8", "surrogatepass"))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@given(st.binary(max_size=300) | ODD_TEXT)
def test_any_bytes_are_kept_or_refused_in_words(data: bytes) -> None:
    """
    Whatever a module wrote is kept as ASCII JSON, or it is said why not.
    """
    value, trouble = read_result(data)

    assert value or trouble
    if value:
        assert value.isascii()
        json.loads(value)


@given(VALUES)
def test_whole_value_is_kept(value: object) -> None:
    """
    What JSON can say comes back as it was.
    """
    assert value == json.loads(read_result(json.dumps(value).encode())[0])


@pytest.mark.parametrize(
    ("data", "value", "trouble"),
    [
        (b'\xef\xbb\xbf{"a": 1}', '{"a":1}', ""),
        (b"[1, -Infinity, NaN]", "[1,null,null]", "NaN and infinities became null"),
        (b"1e999", "null", "NaN and infinities became null"),
        (b'"a\\u0000b\\ud800"', '"ab"', "NUL and halves of characters were left out"),
        (b'{"a\\u0000": 1}', '{"a":1}', "NUL and halves of characters were left out"),
        (b"", "", "is not JSON: Expecting value, line 1, column 1"),
        (b"{'a': 1}", "", "is not JSON: Expecting property name enclosed in double quotes, line 1, column 2"),
        (b"\xff", "", "is not UTF-8 (byte 0)"),
        (b"9" * 500, "", "holds a number of 500 digits"),
        (b"[" * 100_000 + b"]" * 100_000, "", f"has more than {DEPTH_LIMIT} levels"),
        (b"[" * 66 + b"]" * 66, "", f"has more than {DEPTH_LIMIT} levels"),
        (b" " * (SIZE_LIMIT_BYTES + 1), "", "is larger than 16 MB"),
    ],
)
def test_odd_results(data: bytes, value: str, trouble: str) -> None:
    """
    What cannot be carried is mended and told; what cannot be read is told.
    """
    assert (value, trouble) == read_result(data)
