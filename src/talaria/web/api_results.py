"""The JSON and CSV of `/api/v1/results`: what modules found."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import Header, Query, Request, Response

from talaria.store.listing import Page
from talaria.store.results import ResultLine, Results
from talaria.web.api import Answer, Limit, Listed, Name, Number, OfStudy
from talaria.web.bodies import JSON_TYPE
from talaria.web.media import preferred

CSV_TYPE = "text/csv"

Form = Annotated[
    Literal["json", "csv"] | None, Query(alias="format", description="In place of `Accept`, for browsers.")
]
Accept = Annotated[str, Header(description=f"`{JSON_TYPE}` or `{CSV_TYPE}`.")]

#: What a cell may begin with that programs for tables take for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)


class Result(Answer):
    """What one step of a chain wrote into `result.json`."""

    id: int
    """Its number; later results have higher ones."""
    study_uid: str
    """Study Instance UID."""
    series_uid: str | None
    """Series Instance UID; null where the job was about a study."""
    job_id: int
    """The process job."""
    module: str
    """By its name in the rulebook."""
    version: str
    """The image, or our own version for a built-in module."""
    step: int
    """Of its chain, counted from 1."""
    value: Any
    """Whole, as the module wrote it."""
    created: datetime
    """When the job ended."""
    superseded: bool
    """Whether it was found again since: by the same job, or by a later one of its case."""


#: The columns of the CSV, in their order.
COLUMNS = tuple(Result.model_fields)

FORMS: Mapping[int | str, dict[str, Any]] = {
    200: {
        "description": "Results.",
        "content": {CSV_TYPE: {"schema": {"type": "string"}}},
        "headers": {"Link": {"description": "Of CSV: the next page.", "schema": {"type": "string"}}},
    }
}


class ResultsApi:
    """The endpoint about results."""

    def __init__(self, *, results: Results) -> None:
        self._results = results

    def list_results(
        self,
        request: Request,
        module: Name = None,
        study: OfStudy = None,
        limit: Limit = 50,
        after: Number = None,
        form: Form = None,
        accept: Accept = JSON_TYPE,
    ) -> Listed[Result]:
        """
        Results of jobs that ended well, the oldest first; a page ends early where values are long.

        As CSV each is a line, its value as JSON in one cell; cells that a program for tables would take for a formula
        begin with an apostrophe, and the header field `Link` leads to the next page.
        """
        page = self._results.page(module=module, study_uid=study, limit=limit, after=int(after or 0))
        wanted = form or ("csv" if preferred(accept, (JSON_TYPE, CSV_TYPE)) == CSV_TYPE else "json")
        if wanted == "csv":
            return _as_csv(request, page)  # type: ignore[return-value]  # FastAPI passes an answer on as it is
        return Listed[Result](items=[Result.model_validate(line) for line in page.items], next=page.next)


def _as_csv(request: Request, page: Page[ResultLine]) -> Response:
    text = io.StringIO()
    writer = csv.writer(text)  # RFC 4180: CRLF, quotes doubled
    writer.writerow(COLUMNS)
    writer.writerows(_cells(line) for line in page.items)
    headers = {"Content-Disposition": 'attachment; filename="results.csv"', "Vary": "Accept"}
    if page.next is not None:
        query = {**dict(request.query_params), "after": page.next}
        headers["Link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return Response(
        text.getvalue().encode(), media_type=f"{CSV_TYPE}; charset=utf-8; header=present", headers=headers
    )  # fmt: skip


def _cells(line: ResultLine) -> Sequence[str]:
    value = json.dumps(line.value, ensure_ascii=False, separators=(",", ":"))
    return [safe_cell(value if name == "value" else _cell(getattr(line, name))) for name in COLUMNS]


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def safe_cell(text: str) -> str:
    """
    A cell that no program for tables takes for a formula; numbers stay what they are.

    >>> safe_cell("=cmd()"), safe_cell("-3.5"), safe_cell("-3+2"), safe_cell("plain")
    ("'=cmd()", '-3.5', "'-3+2", 'plain')
    """
    if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text
