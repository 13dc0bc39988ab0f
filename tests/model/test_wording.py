"""What is wrong, in words."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from talaria.model.wording import did_you_mean, in_words, keys_at


class Inner(BaseModel):
    """A form in a form."""

    model_config = ConfigDict(extra="forbid")

    first: str = ""


class Outer(BaseModel):
    """One field of each sort."""

    model_config = ConfigDict(extra="forbid", strict=True)

    port: Annotated[int, Field(ge=1, le=65535)] = 1
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    word: Literal["series", "study"] = "series"
    on: bool = False
    names: tuple[str, ...] = ()
    inner: Inner | None = None
    many: Annotated[tuple[Inner, ...], Field(max_length=1)] = ()
    password: SecretStr = SecretStr("")


@pytest.mark.parametrize(
    ("key", "json", "value", "message"),
    [
        ("port", '"x"', "x", "should be a whole number, is text"),
        ("port", "0", 0, "should be at least 1, is 0"),
        ("port", "70000", 70000, "should be at most 65535, is 70000"),
        ("port", "1.5", 1.5, "should be a whole number, is a fraction"),
        ("share", "1", 1, "should be below 1.0, is 1"),
        ("share", "[]", [], "should be a number, is a list"),
        ("word", '"serie"', "serie", "should be one of: series, study; is 'serie'; did you mean 'series'?"),
        ("word", "5", 5, "should be one of: series, study"),
        ("on", '"yes"', "yes", "should be true or false, is text"),
        ("names", '"a"', "a", "should be a list such as [a, b], is text"),
        ("inner", "true", True, "should be a mapping such as {key: value}, is true or false"),
        ("inner", '{"frist": 1}', 1, "unknown key; did you mean 'first'?"),
        ("many", "[{}, {}]", [], "has more than 1 items"),
        ("password", "1234", 1234, "should be text, is a number; put it in quotes if it is meant as text"),
    ],
)
def test_finding_in_words(key: str, json: str, value: object, message: str) -> None:
    """
    Each finding of pydantic says what was expected and what was given, and never repeats what can be a secret.
    """
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate_json(f'{{"{key}": {json}}}', strict=True)
    detail = raised.value.errors(include_input=False, include_url=False)[0]

    assert message == in_words(detail, value=value, keys=keys_at(Outer, detail["loc"][:-1]))


def test_keys_of_forms_in_lists() -> None:
    """
    The keys of a form are found through options and lists, and there are none where no form is.
    """
    assert ("first",) == keys_at(Outer, ("inner",))
    assert () == keys_at(Outer, ("port",))
    assert () == keys_at(Outer, ("nothing", "here"))


@given(st.text(), st.lists(st.text(), max_size=5))
def test_near_miss_is_one_of_the_known(word: str, known: list[str]) -> None:
    """
    Only a word that is known is proposed.
    """
    hint = did_you_mean(word, known)

    assert hint == "" or hint in {f"; did you mean {name!r}?" for name in known}
