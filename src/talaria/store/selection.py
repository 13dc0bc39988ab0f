"""Which jobs are meant: by their ids, or by what fits."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from talaria.store.schema import job_series, jobs, series, studies

#: Ids are asked for in lists of at most so many: databases bound how many values one statement takes.
MOST_IDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Jobs that fit every field that is given."""

    ids: tuple[int, ...] = ()
    study_uid: str | None = None
    series_uid: str | None = None
    """One of the series that the job is about."""
    state: str | None = None
    rule: str | None = None
    target: str | None = None
    kind: str | None = None
    calling_ae: str | None = None
    """Who sent one of the series that the job is about."""
    since: datetime | None = None
    """Made then or later."""
    until: datetime | None = None
    """Made before."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given: then every job fits."""
        return all(getattr(self, field.name) in (None, ()) for field in fields(self))

    def given(self) -> dict[str, Any]:
        """What is given, as JSON can say it; a long list of ids by its length."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value in (None, ()):
                continue
            if field.name == "ids" and len(value) > 20:
                found["ids"] = f"{len(value)} jobs"
            else:
                found[field.name] = value.isoformat() if isinstance(value, datetime) else value
        return found

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """What a row of `jobs` has to fulfil; ids are left to the caller."""
        columns = {"state": jobs.c.state, "rule": jobs.c.rule, "target": jobs.c.target, "kind": jobs.c.kind}
        found = [column == getattr(self, name) for name, column in columns.items() if getattr(self, name) is not None]
        if self.study_uid is not None:
            one = studies.alias()
            own = sa.select(one.c.id).where(one.c.study_instance_uid == self.study_uid).scalar_subquery()
            found.append(jobs.c.study_id == own)
        if self.series_uid is not None:
            found.append(_about(series.c.series_instance_uid, self.series_uid))
        if self.calling_ae is not None:
            found.append(_about(series.c.calling_ae, self.calling_ae))
        if self.since is not None:
            found.append(jobs.c.created >= self.since)
        if self.until is not None:
            found.append(jobs.c.created < self.until)
        return found


def _about(column: sa.Column[str], value: str) -> sa.ColumnElement[bool]:
    """Whether a job is about a series whose *column* has that value; whatever else the statement joins."""
    own, one = job_series.alias(), series.alias()
    return (
        sa.select(own.c.job_id)
        .join(one, one.c.id == own.c.series_id)
        .where(own.c.job_id == jobs.c.id, one.c[column.name] == value)
        .correlate(jobs)
        .exists()
    )
