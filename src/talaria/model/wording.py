"""What is wrong with something a person wrote, in words: near misses, and the findings of pydantic."""

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

#: Longer words are no slip of the finger, and comparing them costs.
_LONGEST = 64


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """
    The end of a message: the known word nearest to *word*, or nothing where none is near.

    >>> did_you_mean("archve", ["archive", "share"])
    "; did you mean 'archive'?"
    >>> did_you_mean("x", ["archive"])
    ''
    """
    if len(word) > _LONGEST:
        return ""
    spelled = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.6)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


def one_of(word: str, known: Sequence[str]) -> str:
    """
    The message for a word that is none of the few that are possible.

    >>> one_of("serie", ["series", "study"])
    "should be one of: series, study; is 'serie'; did you mean 'series'?"
    """
    return f"should be one of: {', '.join(known)}; is {word[:_LONGEST]!r}{did_you_mean(word, known)}"


#: pydantic's error types in our words; `{given}` is the kind of what was given, `{value}` the number itself.
_WORDS: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "should be text, is {given}; put it in quotes if it is meant as text",
    "string_sub_type": "should be text, is {given}",
    "path_type": "should be a path, is {given}",
    "int_type": "should be a whole number, is {given}",
    "int_from_float": "should be a whole number, is {given}",
    "int_parsing": "should be a whole number, is {given}",
    "float_type": "should be a number, is {given}",
    "float_parsing": "should be a number, is {given}",
    "bool_type": "should be true or false, is {given}",
    "bool_parsing": "should be true or false, is {given}",
    "greater_than_equal": "should be at least {ge}, is {value}",
    "greater_than": "should be above {gt}, is {value}",
    "less_than_equal": "should be at most {le}, is {value}",
    "less_than": "should be below {lt}, is {value}",
    "list_type": "should be a list such as [a, b], is {given}",
    "tuple_type": "should be a list such as [a, b], is {given}",
    "dict_type": "should be a mapping such as {{key: value}}, is {given}",
    "model_type": "should be a mapping such as {{key: value}}, is {given}",
    "model_attributes_type": "should be a mapping such as {{key: value}}, is {given}",
    "string_too_long": "is longer than {max_length} characters",
    "string_too_short": "is shorter than {min_length} characters",
    "too_long": "has more than {max_length} items",
    "too_short": "has fewer than {min_length} items",
    "value_error": "{error}",
}


def in_words(detail: ErrorDetails, *, value: object, keys: Sequence[str]) -> str:
    """
    One finding of pydantic as a message of ours.

    Text is never repeated, since it can be a secret, except where it had to be one of a few words.

    Args:
        detail: As `ValidationError.errors` gives it.
        value: What was given at that place; None where nothing was.
        keys: What could have been written there, for a key that is not known.
    """
    kind = detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(detail['loc'][-1]), keys)}"
    if kind in {"literal_error", "enum"}:
        possible = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return one_of(value, possible) if isinstance(value, str) else f"should be one of: {', '.join(possible)}"
    template = _WORDS.get(kind)
    if template is None:
        return detail["msg"][:1].lower() + detail["msg"][1:]
    return template.format(**{**context, "given": kind_of(value), "value": value})


def kind_of(value: object) -> str:
    """
    What sort of thing was written, for a message.

    >>> kind_of(["a"]), kind_of(True), kind_of(None)
    ('a list', 'true or false', 'nothing')
    """
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int():
            return "a number"
        case float():
            return "a fraction"
        case str():
            return "text"
        case Mapping():
            return "a mapping"
        case _:
            return "a list"


def keys_at(form: type[BaseModel], place: Sequence[str | int]) -> tuple[str, ...]:
    """
    The keys that *form* knows at *place*; empty where it is no form.

    >>> class Retry(BaseModel): first: str
    >>> class Target(BaseModel): retry: Retry | None
    >>> keys_at(Target, ["retry"])
    ('first',)
    """
    here: Any = form
    for step in place:
        here = _form_in(here.model_fields[step].annotation if step in here.model_fields else None)
        if here is None:
            return ()
    return tuple(here.model_fields)


def _form_in(annotation: Any) -> type[BaseModel] | None:
    """The form in `Form`, `Form | None`, `Annotated[Form, ...]`, `tuple[Form, ...]`."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    if isinstance(annotation, TypeVar) or get_origin(annotation) not in {Union, types.UnionType, tuple, list}:
        return None
    forms = (_form_in(argument) for argument in get_args(annotation))
    return next((form for form in forms if form is not None), None)
