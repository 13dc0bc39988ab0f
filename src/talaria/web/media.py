"""Which form of an answer a client wants, by `Accept`, and which state of a thing it knows, by entity tags."""

import re
from collections.abc import Sequence

from fastapi import HTTPException, Response

#: An entity tag as we make them (RFC 9110 8.8.3), and the number alone, as some clients send it.
_TAG = re.compile(r'(?P<weak>W/)?"(?P<text>[^"]*)"|(?P<bare>[0-9]{1,18})', re.ASCII)

_LONGEST_HEADER = 1000


def preferred(accept: str, offered: Sequence[str]) -> str:
    """
    Which of the media types on offer a client likes best; the first where it likes none, which RFC 9110 12.5.1 allows.

    >>> preferred("text/html, application/json;q=0.9, */*;q=0.1", ["application/yaml", "application/json"])
    'application/json'
    >>> preferred("*/*", ["application/yaml", "application/json"])
    'application/yaml'
    """
    ranges = [_range(part) for part in accept[:_LONGEST_HEADER].split(",") if part.strip()]
    liked = [(_quality(kind, ranges), -place, kind) for place, kind in enumerate(offered)]
    return max(liked)[2]


def _range(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
    return kind, float(quality) if re.fullmatch(r"[01](\.[0-9]{0,3})?", quality, re.ASCII) else 0.0


def _quality(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Of the range that names the type most exactly."""
    for wanted in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        found = [quality for given, quality in ranges if given == wanted]
        if found:
            return max(found)
    return 0.0 if ranges else 1.0


def entity_tag(number: int) -> str:
    """
    The tag of a revision.

    >>> entity_tag(7)
    '"7"'
    """
    return f'"{number}"'


def revisions_in(header: str) -> tuple[int, ...] | None:
    """
    The revisions that `If-Match` or `If-None-Match` names; None for `*`. A weak tag matches nothing (RFC 9110 13.1.1).

    Raises:
        HTTPException: 400: it is no list of entity tags.

    >>> revisions_in('"7", W/"8", "x"'), revisions_in("*")
    ((7,), None)
    """
    if header.strip() == "*":
        return None
    found = []
    for part in header[:_LONGEST_HEADER].split(","):
        match = _TAG.fullmatch(part.strip())
        if match is None:
            raise HTTPException(400, f'{header[:40]!r} is no list of entity tags such as "7"')
        text = match["bare"] or ("" if match["weak"] else match["text"])
        if text.isascii() and text.isdecimal() and len(text) <= 18:
            found.append(int(text))
    return tuple(found)


def not_modified(number: int) -> Response:
    """What is answered to a client that has this revision already."""
    return Response(status_code=304, headers={"ETag": entity_tag(number)})
