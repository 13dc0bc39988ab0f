"""YAML read into a tree that knows its lines."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talaria.model.document import (
    DEPTH_LIMIT,
    SIZE_LIMIT_BYTES,
    TOLD_LIMIT,
    DocumentError,
    Problem,
    decoded,
    locate,
    plain,
    read,
)
from talaria.model.errors import Position

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**16), 10**16)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")))
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text("abcdef"), inner), max_leaves=20)


def refusal(text: str) -> str:
    """Why a document is refused."""
    with pytest.raises(DocumentError) as raised:
        read(text)
    return str(raised.value)


@pytest.mark.slow
@given(st.dictionaries(st.text("abcdef ", min_size=1), JSON))
def test_json_is_read_as_it_is(value: dict[str, object]) -> None:
    """
    JSON is YAML: what was written comes back, keys as text, in order.
    """
    tree = plain(read(json.dumps(value, ensure_ascii=False)).root)

    assert value == tree
    assert isinstance(tree, dict)
    assert list(value) == list(tree)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("on", "on"),
        ("NO", "NO"),
        ("yes", "yes"),
        ("22:00", "22:00"),
        ("1_000", "1_000"),
        ("2030-01-01", "2030-01-01"),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("True", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("1.2.840.10008", "1.2.840.10008"),
        ("'123456789012345678901'", "123456789012345678901"),
    ],
)
def test_core_schema(written: str, expected: object) -> None:
    """
    Plain scalars follow the core schema of YAML 1.2, and no other version's.
    """
    assert {"a": expected} == plain(read(f"a: {written}").root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; an empty rulebook says `rules: {}`"),
        ("# nothing\n", "is empty; an empty rulebook says `rules: {}`"),
        ("null", "is empty; an empty rulebook says `rules: {}`"),
        ("[]", "line 1: should be a mapping such as `rules: {}` at its top level"),
        ("rules", "line 1: should be a mapping such as `rules: {}` at its top level"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins here; a rulebook is one"),
        ("%YAML 1.1\n---\na: 1", "line 2: is YAML 1.1; only YAML 1.2 is read"),
        ("a: *b", "line 1: a: alias *b stands for nothing; an anchor &b must come, and end, before it"),
        ("a: &b [*b]", "line 1: a[0]: alias *b stands for nothing; an anchor &b must come, and end, before it"),
        ("a: !!python/object:os.system x", "line 1: a: tag tag:yaml.org,2002:python/object:os.system has no meaning"),
        ("? [a]\n: b", "line 1: ?: a key should be a word, not a list or a mapping"),
        ("a: &x [1]\n*x : b", "line 2: ?: a key should be a word, not a list or a mapping"),
        ("a: .inf", "line 1: a: .inf is no number that can be kept; put it in quotes if it is meant as text"),
        ("a: 1e999", "line 1: a: 1e999 is no number that can be kept; put it in quotes if it is meant as text"),
        ("a:\n  - 12345678901234567890", "line 2: a[0]: 12345678901234567890 is no number that can be kept"),
        (
            "b: 1\na: 'x",
            "line 2: cannot be read as YAML: found unexpected end of stream while scanning a quoted scalar",
        ),
        ("a: b: c", "line 1: cannot be read as YAML: mapping values are not allowed here"),
        ("a: 1\nb: \x07", "line 2: control character 0x07 in the text; remove it"),
        ("a: \x00", "line 1: a NUL character: this is UTF-16 or no text; save it as UTF-8"),
        ("a: 1\nb: !" + "x" * 1000, "line 2: a tag of more than 1000 characters; leave it out"),
        ('a: "\\ud800"', "line 1: a: half a surrogate pair in the text; remove it"),
        ("a: \ud800", "line 1: half a surrogate pair in the text; remove it"),
    ],
)
def test_refused(text: str, message: str) -> None:
    """
    What is no document is refused with its line, its place and the reason.
    """
    assert refusal(text).startswith(message)


def test_deep_nesting_is_refused() -> None:
    """
    A hundred thousand brackets are refused at the first that is too many, and quickly.
    """
    began = time.monotonic()
    message = refusal("a: " + "[" * 100_000)

    assert message.endswith(f"more than {DEPTH_LIMIT} levels")
    assert time.monotonic() - began < 5


def test_alias_bomb_is_refused() -> None:
    """
    Aliases that stand for aliases, nine to the ninth values in all, are counted and refused.
    """
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]

    assert "more than 100000 values, each alias counted with what it stands for" in refusal("\n".join(lines))


def test_alias_ladder_is_refused() -> None:
    """
    Aliases that make a deep tree out of short lines are refused.
    """
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 50))]

    assert "levels through alias" in refusal("\n".join(lines))


def test_few_aliases_are_fine() -> None:
    """
    An alias stands for what its anchor holds.
    """
    assert {"a": {"b": 1}, "c": {"b": 1}} == plain(read("a: &x {b: 1}\nc: *x").root)


def test_merge_key_is_a_key() -> None:
    """
    `<<` belongs to YAML 1.1 and merges nothing.
    """
    assert {"a": {"b": 1}, "c": {"<<": {"b": 1}}} == plain(read("a: &x {b: 1}\nc: {<<: *x}").root)


def test_large_document_is_refused() -> None:
    """
    More than a megabyte is refused unread.
    """
    assert f"is {SIZE_LIMIT_BYTES + 4} bytes; at most {SIZE_LIMIT_BYTES} are read" == refusal(
        "a: 1" + " " * SIZE_LIMIT_BYTES
    )


def test_repeated_keys_are_noted() -> None:
    """
    A key that comes twice is noted with both lines, whatever its quotes, and the first stands.
    """
    document = read("a:\n  b: 1\n  'b': 2\n1: x\n'1': y\n")

    assert ["line 3: a.b: is given twice, first on line 2", "line 5: 1: is given twice, first on line 4"] == [
        str(problem) for problem in document.repeated
    ]
    assert {"a": {"b": 1}, "1": "x"} == plain(document.root)


def test_locate() -> None:
    """
    A place is found by its keys; one that is not there is where its nearest surroundings are.
    """
    root = read("a:\n  b:\n    - x\n    - y\n").root

    assert Position(line=4, column=7) == locate(root, ("a", "b", 1))[0]
    assert (Position(line=2, column=3), None) == locate(root, ("a", "b", 7))
    assert (Position(line=1, column=1), None) == locate(root, ("a", "c"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a: ü".encode("utf-16"), "is UTF-16 or UTF-32; save it as UTF-8"),
        ("a: ü".encode("utf-16-be"), None),
        ("a: 1\nb: ü".encode("latin-1"), "line 2: byte 0xfc is not UTF-8; save the file as UTF-8"),
        (b"x" * (SIZE_LIMIT_BYTES + 1), f"is {SIZE_LIMIT_BYTES + 1} bytes; at most {SIZE_LIMIT_BYTES} are read"),
    ],
)
def test_bytes_that_are_no_utf_8(data: bytes, message: str | None) -> None:
    """
    Other encodings are refused by name, with what to do; UTF-16 without a mark by its NULs or its bytes.
    """
    with pytest.raises(DocumentError) as raised:
        read(decoded(data))

    assert message is None or message == str(raised.value)


def test_byte_order_mark_is_fine() -> None:
    """
    A byte order mark, as some editors write it, is dropped.
    """
    assert {"a": "ü"} == plain(read(decoded("\ufeffa: ü".encode())).root)
    assert {"a": 1} == plain(read("\ufeffa: 1").root)


def test_long_list_of_problems_is_cut() -> None:
    """
    A message tells the first problems and counts the others; all of them are kept.
    """
    problems = tuple(Problem(message=f"no {number}", position=Position(line=number, column=1)) for number in range(200))
    error = DocumentError(problems)

    assert f"and {200 - TOLD_LIMIT} more" == str(error).splitlines()[-1]
    assert problems == error.problems


@settings(max_examples=300)
@given(st.text() | st.text("ab:-[]{},&*!#'\"|>? \n\t%@\\u0\x85\u2028") | st.binary())
def test_anything_is_read_or_refused(text: str | bytes) -> None:
    """
    No text, and no bytes, raise anything but the refusal of a document.
    """
    try:
        read(text if isinstance(text, str) else decoded(text))
    except DocumentError as error:
        problems = error.problems
    else:
        problems = None

    assert problems != ()
