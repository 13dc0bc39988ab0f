"""What rules may call: every function of mercure, the conversions, the bounds of arguments."""

import doctest
from datetime import date
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from talaria.model import bounds, explanation, functions, rules, ruletext
from talaria.model.bounds import AbsentValue, Exhausted, Lacking, Unfit, kind_of, weigh
from talaria.model.dicom import Tags
from talaria.model.functions import ATTRIBUTES, FUNCTIONS, METHODS

#: The functions that mercure's rules have; True, False, None, pi and e are no functions.
OF_MERCURE = """
    bool int float str complex list tuple dict set frozenset len sum min max abs all any sorted reversed range enumerate
    zip filter map round pow divmod chr ord hex oct bin format repr sqrt ceil floor log log10 log2 exp sin cos tan asin
    acos atan atan2 isinf isnan fabs factorial trunc
"""


@pytest.mark.parametrize("module", [functions, bounds, ruletext, rules, explanation])
def test_examples_of_the_documentation_hold(module: ModuleType) -> None:
    """
    Every example in a docstring gives what it says.
    """
    result = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)

    assert not result.failed
    assert result.attempted


@pytest.mark.parametrize("name", OF_MERCURE.split())
def test_every_function_of_mercure_is_there(name: str) -> None:
    """
    Rules written for mercure find their functions.
    """
    assert name in FUNCTIONS


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_is_documented_with_an_example(name: str) -> None:
    """
    The list of functions that people read is made from the functions.
    """
    function = FUNCTIONS[name]

    assert ">>>" in function.documentation
    assert function.text.startswith(f"{name}(")


def test_no_method_reaches_into_a_value_or_changes_it() -> None:
    """
    What formats by attribute, encodes, or changes a list in place is no method of rules.
    """
    forbidden = {
        "format", "format_map", "encode", "translate", "maketrans", "append", "extend", "sort", "update", "pop",
        "clear", "add", "remove", "insert", "setdefault", "popitem", "copy", "fromkeys", "reverse",
    }  # fmt: skip
    names = {name for methods in METHODS.values() for name in methods}
    attributes = {name for known in ATTRIBUTES.values() for name in known}

    assert not forbidden & names
    assert not [name for name in names | attributes if name.startswith("_")]


DATES = [
    ("20261120", date(2026, 11, 20)),
    (" 20261120 ", date(2026, 11, 20)),
    ("2026-11-20", date(2026, 11, 20)),
    ("2026.11.20", date(2026, 11, 20)),
    ("20261120101500", date(2026, 11, 20)),
    ("20261120101500.123456+0100", date(2026, 11, 20)),
    ("2026-11-20T10:15:00", date(2026, 11, 20)),
    ("20240229", date(2024, 2, 29)),
]


@pytest.mark.parametrize(("text", "expected"), DATES)
def test_date_reads_what_scanners_write(text: str, expected: date) -> None:
    """
    Dates, dates with a time, and the dotted dates of old devices are read.
    """
    assert expected == functions.date_(text)


@pytest.mark.parametrize(
    "text", ["00000000", "99991399", "20230229", "2026", "2026-11.20", "x", "20261120x", "٢٠٢٦١١٢٠"]
)
def test_date_refuses_what_is_none(text: str) -> None:
    """
    What is present and no date is an error, not a guess.
    """
    with pytest.raises(Unfit, match="the value is not a date such as 20261120"):
        functions.date_(text)


@pytest.mark.parametrize("text", ["", " ", "\t"])
@pytest.mark.parametrize("name", ["float", "int", "number", "date", "complex"])
def test_empty_text_is_an_absent_value(name: str, text: str) -> None:
    """
    Whatever converts tells an absent value from one that does not convert.
    """
    with pytest.raises(AbsentValue):
        FUNCTIONS[name].call(text)


@pytest.mark.parametrize("value", ["nan", "inf", "1,5", "x", float("nan"), float("inf"), None, [], 1j])
def test_number_refuses_what_is_none(value: object) -> None:
    """
    A decimal comma, an infinite number, a list are no numbers.
    """
    with pytest.raises(Unfit):
        functions.number(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_reads_what_python_writes(value: float) -> None:
    """
    Every finite number survives the way through text.
    """
    assert value == functions.number(repr(value))


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\\")), min_size=1).filter(any))
def test_values_undoes_joining(parts: list[str]) -> None:
    """
    The values of a joined text are the texts that were joined.
    """
    assert parts == functions.values("\\".join(parts))


FAR = [
    ("round", (1, -(10**9))),
    ("round", (1.5, 10**9)),
    ("range", (10**10,)),
    ("range", (0, 10**300, 2)),
    ("range", (0, -(10**5), -1)),
    ("factorial", (171,)),
    ("pow", (10, 10**9)),
    ("pow", (2**65, 2, 3)),
    ("log", (0,)),
    ("log", (-1, 2)),
    ("log2", (0,)),
    ("log10", (-5.0,)),
    ("sqrt", (-1,)),
    ("int", ("9" * 400,)),
    ("format", (1, ">1000")),
    ("format", (1, ".999f")),
    ("format", (date(2026, 1, 1), "%Y")),
    ("format", ("x", "{0}")),
    ("format", (1, 5)),
    ("sum", (["a"],)),
    ("sum", ([[1]],)),
    ("min", ([],)),
    ("map", (5, [1])),
    ("filter", ("x", [1])),
    ("str", (Tags({}),)),
    ("repr", ([len],)),
    ("values", (5,)),
    ("divmod", ("%s", 5)),
    ("matches", (5, "a")),
    ("matches", ("a", 5)),
    ("matches", ("a", "(")),
    ("matches", ("a", "(?=a)")),
    ("matches", ("a", r"(a)\1")),
    ("matches", ("a", "a" * 1001)),
    ("matches", ("a", "(((a{100}){100}){100}){100}")),
]


@pytest.mark.parametrize(("name", "arguments"), FAR)
def test_arguments_are_bounded_before_the_call(name: str, arguments: tuple[object, ...]) -> None:
    """
    What would take too long, too much, or has no answer is refused before it starts.
    """
    with pytest.raises(Unfit):
        FUNCTIONS[name].call(*arguments)


METHODS_FAR = [
    ("zfill", ("x", 10**11)),
    ("center", ("x", 10**11)),
    ("ljust", ("x", 10**11)),
    ("rjust", ("x", 10**11, "-")),
    ("replace", ("x" * 1000, "", "y" * 1000)),
    ("replace", ("x" * 60_000, "x", "yy")),
    ("join", ("x" * 60_000, ["a", "b", "c"])),
    ("expandtabs", ("\t", 10**11)),
    ("strip", ("x", "y" * 1000)),
    ("index", ("x", "y")),
]


@pytest.mark.parametrize(("name", "arguments"), METHODS_FAR)
def test_methods_of_texts_are_bounded_before_the_call(name: str, arguments: tuple[object, ...]) -> None:
    """
    What a method of a text would make is known before it is made.
    """
    with pytest.raises(Unfit):
        METHODS[str][name].call(*arguments)


@given(st.text(max_size=20), st.text(max_size=3), st.text(max_size=3), st.integers(-2, 5))
def test_methods_of_texts_are_those_of_python(text: str, old: str, new: str, count: int) -> None:
    """
    A method that is bounded gives what Python's own gives.
    """
    methods = METHODS[str]
    expected = (text.replace(old, new, count), old.join(text), text.strip(old), text.center(9), text.zfill(count))
    found = (
        methods["replace"].call(text, old, new, count), methods["join"].call(old, text),
        methods["strip"].call(text, old), methods["center"].call(text, 9), methods["zfill"].call(text, count),
    )  # fmt: skip

    assert expected == found


def test_pattern_is_searched_in_any_text() -> None:
    """
    A text that is no valid Unicode is searched all the same; time grows with its length and no faster.
    """
    assert functions.matches("\ud800CHEST", "CHEST$")
    assert not functions.matches("a" * 10_000 + "!", "(a+)+$")


def test_what_is_not_there_is_told_from_what_does_not_fit() -> None:
    """
    The largest of nothing is lacking, which makes a rule false where its tag is absent.
    """
    with pytest.raises(Lacking):
        functions.max_([])


def test_weight_counts_what_is_shared_as_often_as_it_is_reached() -> None:
    """
    A few lists that hold each other can be larger than memory when printed; their weight says so.
    """
    value: list[object] = ["x"]
    for _ in range(3):
        value = [value] * 10

    expected = 1 + 10 + 100 + 1000 * 2
    assert expected == weigh(value)
    with pytest.raises(Exhausted):
        weigh([value] * 10)


def test_kinds_are_named() -> None:
    """
    Messages name the kind of a value, never the value.
    """
    values: tuple[object, ...] = (
        None,
        True,
        1,
        1.5,
        "a",
        [],
        (),
        set(),
        {},
        date(2026, 1, 1),
        Tags({}),
        range(1),
        iter(""),
        len,
    )
    expected = (
        "nothing, a truth value, a number, a number, a text, a list, a tuple, a set, a dict, a date, a set of tags, "
        "a range, a generator, a function"
    )

    assert expected == ", ".join(kind_of(value) for value in values)
