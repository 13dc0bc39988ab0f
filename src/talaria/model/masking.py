"""A rulebook as it may be shown: its secrets masked, all else to the letter."""

import json
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import JsonValue, SecretStr

from talaria.model.document import DocumentError, Place, Problem, Scalar, Table, locate, plain, read
from talaria.model.extensions import Plug
from talaria.model.rulebook import RulebookError, Shelves

#: Stands for a secret; it is never taken for one.
MASK = "(secret)"


def masked(text: str, *, shelves: Shelves) -> str:
    """
    The text of a rulebook with a mask in place of each secret.

    Where a secret is written in a way that cannot be found in the text again (folded, escaped), the whole rulebook is
    shown as JSON, which is YAML as well, without its comments.

    Args:
        text: A rulebook that was accepted once; one that cannot be read any more is shown as it is.
        shelves: Which plugs there are: their fields of type `SecretStr` are the secrets.
    """
    found = dict(_secrets(text, shelves))
    if not found:
        return text
    shown = text
    for secret in sorted(found.values(), key=len, reverse=True):
        shown = shown.replace(secret, MASK)
    if set(dict(_secrets(shown, shelves)).values()) <= {MASK} and len(dict(_secrets(shown, shelves))) == len(found):
        return shown
    return json.dumps(plain_masked(text, shelves=shelves), ensure_ascii=False, indent=2) + "\n"


def plain_masked(text: str, *, shelves: Shelves) -> JsonValue:
    """
    The values of a rulebook with a mask in place of each secret.

    Raises:
        DocumentError: It cannot be read.
    """
    tree = plain(read(text).root)
    for place, _ in _secrets(text, shelves):
        _put(tree, place)
    return tree


def refuse_masks(text: str, *, shelves: Shelves) -> None:
    """
    See that no mask is about to be kept as a secret.

    Raises:
        RulebookError: It holds the mask where a secret should be.
    """
    places = [place for place, secret in _secrets(text, shelves) if secret == MASK]
    if not places:
        return
    root = read(text).root
    message = "shows where a secret is, and is not the secret; write the secret itself"
    raise RulebookError(
        tuple(Problem(place=place, position=locate(root, place)[0], message=message) for place in places)
    )


def _secrets(text: str, shelves: Shelves) -> Iterator[tuple[Place, str]]:
    """Where secrets stand in a rulebook, and what they are."""
    try:
        root = read(text).root
    except DocumentError:
        return
    targets = locate(root, ("targets",))[1]
    if not isinstance(targets, Table):
        return
    for name in targets.entries:
        kind = locate(root, ("targets", name, "kind"))[1]
        plug = shelves.targets.get(str(kind.value)) if isinstance(kind, Scalar) else None
        for field in _secret_fields(plug):
            place = ("targets", name, field)
            node = locate(root, place)[1]
            if isinstance(node, Scalar) and isinstance(node.value, str) and node.value:
                yield place, node.value


def _secret_fields(plug: type[Plug] | None) -> Iterator[str]:
    fields: Mapping[str, object] = {} if plug is None else {n: f.annotation for n, f in plug.model_fields.items()}
    for name, annotation in fields.items():
        if annotation is SecretStr or SecretStr in get_args(annotation):
            yield name


def _put(tree: JsonValue, place: Place) -> None:
    """Put the mask at a place of plain values."""
    for step in place[:-1]:
        assert isinstance(tree, dict)
        tree = tree[str(step)]
    assert isinstance(tree, dict)
    tree[str(place[-1])] = MASK
