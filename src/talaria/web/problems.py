"""Problem documents (RFC 9457): how the API says that something went wrong, and its OpenAPI document."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.routing import BaseRoute

PROBLEM_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """What is wrong with one part of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    field: str
    """Which part: `query.limit`."""
    message: str
    """What is wrong with it."""
    line: int | None = None
    """Of a rulebook that was sent, counted from 1."""
    column: int | None = None
    """Of that line, counted from 1."""


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    """What the status says is all there is to the kind of problem."""
    title: str
    """The status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong this time, and what to do."""
    errors: list[FieldProblem] | None = None
    """One for each part of the request that is wrong."""


def problem(
    status: int,
    detail: str,
    *,
    errors: Sequence[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem document as an answer."""
    document = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, errors=None if errors is None else list(errors)
    )
    return JSONResponse(
        document.model_dump(exclude_none=True),
        status_code=status,
        media_type=PROBLEM_TYPE,
        headers=dict(headers or {}),
    )


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """What pydantic found wrong with a request, without what was sent: it can be a secret."""
    return [
        FieldProblem(field=".".join(map(str, error["loc"])), message=str(error["msg"]).removeprefix("Value error, "))
        for error in errors
    ]


PROBLEM_CONTENT: Mapping[str, Any] = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}

#: What every route of the API may answer besides its own, for the OpenAPI document.
PROBLEMS: Mapping[int | str, dict[str, Any]] = {
    status: {"description": words, "content": PROBLEM_CONTENT}
    for status, words in (
        (401, "No valid token or session came with the request."),
        (403, "The caller may not do this."),
        (404, "There is no such thing."),
        (409, "The state of things does not allow it."),
        (413, "The body is too long."),
        (415, "The body is not of a kind that is taken."),
        (422, "Something in the request is wrong; `errors` says what."),
        (503, "The ledger cannot be reached; try again."),
    )
}


def document(routes: Sequence[BaseRoute], *, version: str) -> dict[str, Any]:
    """The OpenAPI document of the routes that are in it."""
    found = get_openapi(
        title="Talaria",
        version=version,
        summary="What a DICOM orchestrator received, what it does with it, and where it went.",
        routes=routes,
    )
    components = found.setdefault("components", {})
    for schema in (Problem, FieldProblem):
        own = schema.model_json_schema(ref_template="#/components/schemas/{model}")
        own.pop("$defs", None)
        components.setdefault("schemas", {})[schema.__name__] = own
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "`talaria token create` makes one."},
        "session": {"type": "apiKey", "in": "cookie", "name": "talaria_session", "description": "Of a browser."},
    }
    found["security"] = [{"token": []}, {"session": []}]
    return found
