"""The JSON and YAML of `/api/v1` about the rulebook: as it runs, as it was, changed; and its targets tried out."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from talaria.model.document import DocumentError, decoded
from talaria.model.errors import ConfigError, Overtaken, Permanent, Refused, Transient
from talaria.model.rulebook import Rulebook
from talaria.store.revisions import Revision, Rulebooks, difference
from talaria.web.api import MOST, Answer, Limit, Listed, Number, Text, missing
from talaria.web.api_jobs import Asked, TargetName
from talaria.web.auth import actor_of
from talaria.web.bodies import JSON_TYPE, BodyRefused, media_type, read_json
from talaria.web.media import entity_tag, not_modified, preferred, revisions_in
from talaria.web.problems import PROBLEM_CONTENT, FieldProblem, problem

YAML_TYPE = "application/yaml"

#: What is sent as YAML (RFC 9512, and what it was called before).
_YAML_TYPES = frozenset({YAML_TYPE, "text/yaml", "text/x-yaml", "application/x-yaml", "text/vnd.yaml"})

_MOST_NOTE = 500

RevisionNumber = Annotated[int, Path(description="The revision's number.", ge=1, le=MOST)]
Accept = Annotated[str, Header(description="`application/yaml`, as it was written, or `application/json`.")]
IfMatch = Annotated[
    str | None, Header(description='The revision you began with, as its `ETag`: `"7"`; `*` for whatever runs.')
]
IfNoneMatch = Annotated[str | None, Header(description="The `ETag` of the revision you have.")]
Note = Annotated[Text, Query(description="Why, for the history.", max_length=_MOST_NOTE)]
Before = Annotated[int, Query(alias="from", description="The revision that is compared.", ge=1, le=MOST)]
After = Annotated[int, Query(alias="to", description="The one that it is compared with.", ge=1, le=MOST)]


async def _raw(request: Request) -> bytes:
    return await request.body()


Raw = Annotated[bytes, Depends(_raw)]


# -- what is asked --


class RollBack(Asked):
    """To which revision."""

    revision: Annotated[int, Field(strict=True, ge=1, le=MOST)]
    """Its text runs again, as a new revision."""


# -- what is answered --


class RevisionFacts(Answer):
    """A revision of the rulebook."""

    number: int
    """The highest runs."""
    author: str
    """Who saved it."""
    created: datetime
    """When."""
    note: str
    """Why, in their words."""
    warnings: list[str]
    """What was found and stood in nobody's way."""


class RevisionText(RevisionFacts):
    """A revision with its text."""

    text: str
    """YAML as it was written, its secrets masked."""


class Saved(Answer):
    """What came of saving a rulebook."""

    revision: int
    """Its number; it runs from now on."""
    warnings: list[str]
    """What was found and stands in nobody's way."""


class Difference(Answer):
    """How two revisions differ."""

    before: int
    """The one that is compared."""
    after: int
    """The one that it is compared with."""
    diff: str
    """Unified, by lines; empty where they are the same. Secrets are masked."""


class FindingOf(Answer):
    """One thing that a check found."""

    ok: bool
    """Whether it is as it should be."""
    text: str
    """In words."""


class Checked(Answer):
    """How a target stands."""

    target: str
    """By its name."""
    ok: bool
    """Whether all is as it should be."""
    findings: list[FindingOf]
    """One by one; the last says why where it could not be reached."""


#: The forms of a rulebook, for the OpenAPI document.
_FORMS: Mapping[str, Any] = {
    YAML_TYPE: {"schema": {"type": "string"}},
    JSON_TYPE: {"schema": {"type": "object"}},
}
SHOWN: Mapping[int | str, dict[str, Any]] = {
    200: {
        "description": "The rulebook.",
        "content": dict(_FORMS),
        "headers": {"ETag": {"description": "The revision.", "schema": {"type": "string"}}},
    },
    304: {"description": "You have it already."},
}
SAVED: Mapping[int | str, dict[str, Any]] = {
    200: {
        "model": Saved,
        "description": "It runs.",
        "headers": {"ETag": {"description": "The new revision.", "schema": {"type": "string"}}},
    }
}
PRECONDITIONS: Mapping[int | str, dict[str, Any]] = {
    status: {"description": words, "content": PROBLEM_CONTENT}
    for status, words in (
        (412, "Somebody saved another revision since; it says who."),
        (415, "The body is neither YAML nor JSON."),
        (428, "`If-Match` is missing."),
    )
}
TAKEN: Mapping[str, Any] = {"requestBody": {"required": True, "content": dict(_FORMS)}}


# -- answering --


class RulebookApi:
    """The endpoints about the rulebook."""

    def __init__(self, *, rulebooks: Rulebooks, clock: Callable[[], datetime]) -> None:
        self._rulebooks, self._revisions, self._clock = rulebooks, rulebooks.revisions, clock

    def show_rulebook(self, accept: Accept = YAML_TYPE, if_none_match: IfNoneMatch = None) -> Response:
        """The rulebook that runs, as it was written or as JSON; secrets are masked."""
        number = self._revisions.latest()
        if number == 0:
            raise HTTPException(404, "there is no rulebook yet; save the first with `If-Match: *`")
        known = () if if_none_match is None else revisions_in(if_none_match)
        if known is None or number in known:
            return not_modified(number)
        return self._shown(self._revisions.get(number), accept)

    def save_rulebook(
        self,
        request: Request,
        body: Raw,
        if_match: IfMatch = None,
        note: Note = "",
    ) -> Response:
        """
        Make a rulebook run, as a new revision.

        It is checked whole: 422 tells everything that is wrong with it, each with path and line, and what runs stays.
        `If-Match` says which revision you began with: 428 without it, 412 where somebody saved another since.
        """
        text = _as_text(body, request.headers.get("content-type", ""))
        began = self._began(if_match)
        try:
            if began is not None:
                self._revisions.refuse_overtaken(began)
            self._rulebooks.refuse_masks(text)
            book = self._rulebooks.check(text)
            number = self._revisions.save(
                text, author=actor_of(request), now=self._clock(), note=note, expected=began,
                warnings=[str(warning) for warning in book.warnings],
            )  # fmt: skip
        except Overtaken as error:
            return self._too_late(str(error))
        except ConfigError as error:
            return _invalid(error)
        return _saved(number, book)

    def list_revisions(self, limit: Limit = 50, after: Number = None) -> Listed[RevisionFacts]:
        """Revisions, the newest first."""
        page = self._revisions.list(limit=limit, after=None if after is None else int(after))
        return Listed[RevisionFacts](
            items=[RevisionFacts.model_validate(line) for line in page.items], next=page.next
        )  # fmt: skip

    def show_revision(self, number: RevisionNumber) -> RevisionText:
        """One revision with its text."""
        found = self._revisions.get(number)
        return RevisionText.model_validate({**vars(found), "text": self._rulebooks.masked(found.text)})

    def diff_revisions(self, before: Before, after: After) -> Difference:
        """How the text of one revision differs from that of another."""
        old, new = (replace(found, text=self._rulebooks.masked(found.text)) for found in (
            self._revisions.get(before), self._revisions.get(after)
        ))  # fmt: skip
        return Difference(before=before, after=after, diff=difference(old, new))

    def roll_back(self, request: Request, asked: RollBack, if_match: IfMatch = None) -> Response:
        """
        Make the text of an earlier revision run again, as a new revision, checked anew.

        With `If-Match`, 412 where somebody saved another since.
        """
        expected = None if if_match is None else self._began(if_match)
        self._refuse_unknown(asked.revision)
        try:
            number, book = self._revisions.roll_back(
                asked.revision, check=self._rulebooks.check, author=actor_of(request), now=self._clock(),
                expected=expected,
            )  # fmt: skip
        except Overtaken as error:
            return self._too_late(str(error))
        except ConfigError as error:
            return _invalid(error)
        return _saved(number, book)

    def check_target(self, target: TargetName) -> Checked:
        """Reach a target of the rulebook that runs, without leaving anything there, and tell what it accepts."""
        book = self._rulebooks.follow(self._clock())
        entry = book.targets.get(target)
        if entry is None:
            known = ", ".join(book.targets) or "none yet"
            raise HTTPException(
                404, f"target '{target}' is not in revision {book.number} of the rulebook; there are: {known}"
            )
        try:
            findings = [FindingOf(ok=found.ok, text=found.text) for found in entry.plug.check()]
        except (Transient, Permanent) as error:
            findings = [FindingOf(ok=False, text=str(error))]
        return Checked(target=target, ok=all(found.ok for found in findings), findings=findings)

    # -- what they share --

    def _shown(self, revision: Revision, accept: str) -> Response:
        headers = {"ETag": entity_tag(revision.number), "Vary": "Accept"}
        if preferred(accept, (YAML_TYPE, JSON_TYPE)) == YAML_TYPE:
            text = self._rulebooks.masked(revision.text)
            return Response(text.encode(), media_type=f"{YAML_TYPE}; charset=utf-8", headers=headers)
        return JSONResponse(self._rulebooks.plain(revision.text), headers=headers)

    def _began(self, if_match: str | None) -> int | None:
        """
        The revision that a change began with; None: whatever runs.

        Raises:
            HTTPException: 428 where nothing is said.
        """
        if if_match is None:
            raise HTTPException(
                428, 'say which revision you began with: send its ETag as If-Match, such as `If-Match: "7"`'
            )
        named = revisions_in(if_match)
        if named is None:
            return None
        latest = self._revisions.latest()
        return latest if latest in named else max(named, default=-1)

    def _too_late(self, detail: str) -> Response:
        return problem(412, detail, headers={"ETag": entity_tag(self._revisions.latest())})

    def _refuse_unknown(self, number: int) -> None:
        try:
            self._revisions.get(number)
        except Refused as error:
            raise missing(error) from error


def _as_text(body: bytes, content_type: str) -> str:
    """
    A rulebook as it was sent.

    Raises:
        HTTPException: 415: it is neither YAML nor JSON.
        BodyRefused: It is no text, or not strictly JSON.
    """
    kind = media_type(content_type)
    if kind == JSON_TYPE:
        return json.dumps(read_json(body), ensure_ascii=False, indent=2) + "\n"
    if kind not in _YAML_TYPES:
        said = f"is said to be {kind}" if kind else "does not say what it is"
        raise HTTPException(415, f"the body {said}; send `Content-Type: {YAML_TYPE}` or `{JSON_TYPE}`")
    try:
        return decoded(body)
    except DocumentError as error:
        raise BodyRefused(_field_problems(error)) from error


def _field_problems(error: DocumentError) -> list[FieldProblem]:
    return [
        FieldProblem(
            field=found.path or "body", message=f"{found.message}\n{found.caret}".strip(),
            line=found.position.line if found.position else None,
            column=found.position.column if found.position else None,
        )
        for found in error.problems
    ]  # fmt: skip


def _invalid(error: ConfigError) -> Response:
    errors = _field_problems(error) if isinstance(error, DocumentError) else None
    return problem(422, str(error), errors=errors)


def _saved(number: int, book: Rulebook) -> Response:
    answer = Saved(revision=number, warnings=[str(warning) for warning in book.warnings])
    return JSONResponse(answer.model_dump(), headers={"ETag": entity_tag(number)})
