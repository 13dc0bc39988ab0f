"""What modules made: their runs, what they found, and their DICOM outputs as derived series of the study."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.dicom import Instance, Origin, Tags
from talaria.model.errors import Permanent
from talaria.model.job import Extent, Kind, State
from talaria.model.result import StepResult
from talaria.store.arrivals import series_row, study_row
from talaria.store.cases import not_sent
from talaria.store.jobs import Claim, NewJob, cancel_deliveries, dropped_of, instances_of
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_ignoring, storable, write_event
from talaria.store.listing import PAGE, Page
from talaria.store.schema import MADE, instances, job_series, jobs, results, runs, series, studies

#: No database takes a list of any length.
_MOST_AT_ONCE = 5000

#: Of all values of one page of results together; the first one comes whatever its length.
PAGE_CHARACTERS = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Output:
    """One DICOM file that a module wrote, safe in `store/` but not yet in the ledger."""

    instance: Instance
    tags: Tags
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a process job made, and where it goes: all that its end needs."""

    rule: str
    send: tuple[str, ...]
    """Targets of the results."""
    keep_inputs: bool
    """Whether they get the originals, too."""
    origin: Origin
    """Who sent the first input to whom."""
    outputs: tuple[Output, ...]
    found: tuple[StepResult, ...]
    """What the steps said besides their images."""
    time: datetime
    """When it was all there."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How one step of one attempt went."""

    job_id: int
    attempt: int
    step: int
    module: str
    code: int
    reason: str
    seconds: float
    log: str
    ended: datetime


@dataclass(frozen=True, kw_only=True)
class ResultLine:
    """What one step of a chain wrote into `result.json`."""

    id: int
    study_uid: str
    series_uid: str | None
    """None where the job was about a study."""
    job_id: int
    module: str
    version: str
    """The image, or our own version for a built-in module."""
    step: int
    value: Any
    """As JSON says it, whole."""
    created: datetime
    superseded: bool
    """Whether the job, or a later one of its case, found it again since."""


class Results:
    """Runs and their outputs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def record_run(self, run: RunRecord) -> None:
        """Write down how a step went; again for the same step and attempt, the later word stands, told once."""
        same = (runs.c.job_id == run.job_id, runs.c.attempt == run.attempt, runs.c.step == run.step)
        with self._ledger.writing("results.run") as connection:
            row = connection.execute(sa.select(runs.c.ended, runs.c.code).where(*same)).first()
            if row is not None and (row.ended, row.code) == (run.ended, run.code):
                return  # it came from the journal, which says things twice
            connection.execute(sa.delete(runs).where(*same))
            connection.execute(
                runs.insert().values(
                    job_id=run.job_id, attempt=run.attempt, step=run.step, module=run.module, code=run.code,
                    reason=storable(run.reason), seconds=run.seconds, log=storable(run.log), ended=run.ended,
                )
            )  # fmt: skip
            write_event(
                connection, "module.ran", now=run.ended, subject=Subject(job_id=run.job_id), module=run.module,
                step=run.step, attempt=run.attempt, code=run.code, reason=run.reason, seconds=round(run.seconds, 3),
            )  # fmt: skip

    def known(self, instance_ids: Sequence[str]) -> set[str]:
        """Which of these the ledger has: the others belong to nobody."""
        found: set[str] = set()
        with self._ledger.reading() as connection:
            for start in range(0, len(instance_ids), _MOST_AT_ONCE):
                some = instance_ids[start : start + _MOST_AT_ONCE]
                found.update(connection.execute(sa.select(instances.c.id).where(instances.c.id.in_(some))).scalars())
        return found

    def inputs(self, claim: Claim) -> Sequence[AnyRow]:
        """
        The instances a job is about, as `instances_of` gives them.

        Raises:
            Permanent: Retention removed some of them.
        """
        with self._ledger.reading() as connection:
            if dropped_of(connection, claim.job):
                raise Permanent("its files were removed by retention; send the study again")
            return instances_of(connection, claim.job.id)

    def page(
        self, *, module: str | None = None, study_uid: str | None = None, limit: int = 50, after: int = 0
    ) -> Page[ResultLine]:
        """
        Results, the oldest first.

        Args:
            module: Of this one alone.
            study_uid: Of this one alone.
            limit: Lines wanted, at most `PAGE`; where values are long, fewer come, at least one.
            after: The number of the last one of the page before.
        """
        conditions = [results.c.id > after]
        if module is not None:
            conditions.append(results.c.module == module)
        if study_uid is not None:
            own = sa.select(studies.c.id).where(studies.c.study_instance_uid == study_uid).scalar_subquery()
            conditions.append(results.c.study_id == own)
        most = max(1, min(limit, PAGE))
        with self._ledger.reading() as connection:
            sizes = connection.execute(
                sa.select(results.c.id, sa.func.length(results.c.value))
                .where(*conditions)
                .order_by(results.c.id)
                .limit(most + 1)
            ).all()
            shown = _fitting([(row[0], row[1]) for row in sizes[:most]])
            lines = _result_lines(connection, shown)
        return Page(items=lines, next=str(shown[-1]) if len(sizes) > len(shown) else None)

    def origin(self, claim: Claim) -> Origin:
        """Who sent the first input of a job to whom."""
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(series).where(series.c.id == claim.extents[0].series_id)).one()
        return Origin(calling_ae=row.calling_ae, called_ae=row.called_ae, address=row.address)

    def tags(self, claim: Claim) -> Tags:
        """The recorded tags of the first series of a job."""
        with self._ledger.reading() as connection:
            text = connection.execute(
                sa.select(series.c.tags).where(series.c.id == claim.extents[0].series_id)
            ).scalar_one()
        return Tags.from_json(text)


def _fitting(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The first ids whose values are together no longer than a page may be; one at least, where there is any."""
    shown: list[int] = []
    left = PAGE_CHARACTERS
    for result_id, length in sizes:
        left -= length
        if shown and left < 0:
            break
        shown.append(result_id)
    return shown


def _result_lines(connection: Connection, ids: Sequence[int]) -> tuple[ResultLine, ...]:
    rows = connection.execute(
        sa.select(results, studies.c.study_instance_uid, series.c.series_instance_uid)
        .join(studies, studies.c.id == results.c.study_id)
        .outerjoin(series, series.c.id == results.c.series_id)
        .where(results.c.id.in_(ids))
        .order_by(results.c.id)
    )
    return tuple(
        ResultLine(
            id=row.id, study_uid=row.study_instance_uid, series_uid=row.series_instance_uid, job_id=row.job_id,
            module=row.module, version=row.version, step=row.step, value=json.loads(row.value), created=row.created,
            superseded=row.superseded,
        )
        for row in rows
    )  # fmt: skip


def follow_ups(connection: Connection, claim: Claim, made: Made) -> list[NewJob]:
    """
    Write down what a process job made, in the transaction that ends it.

    Returns:
        A delivery of the results to each target; of the originals too where they are kept.
    """
    extents = adopt(connection, claim, made.outputs, origin=made.origin, now=made.time)
    record_found(connection, claim, made.found, now=made.time)
    template = NewJob(
        kind=Kind.DISPATCH, rule=made.rule, revision=claim.job.revision, extents=extents,
        priority=claim.job.priority, supplement=claim.job.supplement, parent=claim.job.id,
    )  # fmt: skip
    wanted = [replace(template, target=target) for target in made.send if extents]
    if made.keep_inputs:
        missing = {target: not_sent(connection, claim.job, target, claim.extents) for target in made.send}
        wanted += [replace(template, target=t, extents=what, parent=None) for t, what in missing.items() if what]
    return wanted


def record_found(connection: Connection, claim: Claim, found: Sequence[StepResult], *, now: datetime) -> None:
    """
    Write down what the steps of a job found, in the transaction that ends it, after `adopt`.

    What the case found before of the same images is marked superseded. What could not be read is told by an event.
    """
    again = _made_again(connection, claim)
    connection.execute(sa.update(results).where(results.c.job_id.in_(again)).values(superseded=True))
    job = claim.job
    row = connection.execute(sa.select(jobs.c.study_id, jobs.c.series_id).where(jobs.c.id == job.id)).one()
    about = {"study_id": row.study_id, "series_id": row.series_id}
    is_late = _is_made_later(connection, claim)
    written = [
        {
            "job_id": job.id, "attempt": job.attempt, "step": each.step, **about, "module": each.module,
            "version": each.version, "value": each.value, "created": now, "superseded": is_late,
        }
        for each in found if each.value
    ]  # fmt: skip
    if written:
        connection.execute(results.insert(), written)
    for each in found:
        if each.trouble:
            write_event(
                connection, "result.odd" if each.value else "result.unreadable", now=now,
                subject=Subject(**about, case_id=job.case_id, job_id=job.id), module=each.module, step=each.step,
                reason=each.trouble,
            )  # fmt: skip


def adopt(
    connection: Connection, claim: Claim, outputs: Sequence[Output], *, origin: Origin, now: datetime
) -> tuple[Extent, ...]:
    """
    Write a job's outputs down as derived series, in the transaction that ends the job.

    What the case made before of the same images is marked superseded, and what of it waits to be delivered is
    cancelled. Where a later job of the case ended first, these outputs are superseded themselves.

    Returns:
        What a dispatch job of the results is about; nothing where they are superseded.
    """
    again = _made_again(connection, claim)
    connection.execute(sa.update(series).where(sa.text(MADE), series.c.origin_job.in_(again)).values(superseded=True))
    cancel_deliveries(connection, again, reason=f"made again by job {claim.job.id}", now=now)
    by_series: dict[tuple[str, str], list[Output]] = {}
    for output in outputs:
        key = (output.instance.study_instance_uid, output.instance.series_instance_uid)
        by_series.setdefault(key, []).append(output)
    made = tuple(
        _adopt_series(connection, claim, study_uid, series_uid, members, origin=origin, now=now)
        for (study_uid, series_uid), members in by_series.items()
    )
    if not _is_made_later(connection, claim):
        return made
    own = (sa.text(MADE), series.c.origin_job == claim.job.id)
    connection.execute(sa.update(series).where(*own).values(superseded=True))
    return ()


def _made_again(connection: Connection, claim: Claim) -> list[int]:
    """The jobs of the case all of whose images this one was about too, itself among them."""
    rows = connection.execute(
        sa.select(job_series)
        .join(jobs, jobs.c.id == job_series.c.job_id)
        .where(jobs.c.case_id == claim.job.case_id, jobs.c.kind == claim.job.kind)
    ).all()
    spans = {extent.series_id: range(extent.first, extent.last + 1) for extent in claim.extents}
    others = {row.job_id for row in rows if not {row.first, row.last} <= set(spans.get(row.series_id, ()))}
    return sorted({row.job_id for row in rows} - others)


def _is_made_later(connection: Connection, claim: Claim) -> bool:
    """Whether a later closing of the case ended already, and was about all images that this job is about."""
    rows = connection.execute(
        sa.select(job_series)
        .join(jobs, jobs.c.id == job_series.c.job_id)
        .where(
            jobs.c.case_id == claim.job.case_id,
            jobs.c.kind == claim.job.kind,
            jobs.c.state == State.DONE,
            jobs.c.supplement > claim.job.supplement,
        )
    ).all()
    later: dict[int, list[AnyRow]] = {}
    for row in rows:
        later.setdefault(row.job_id, []).append(row)
    return any(all(_has(found, extent) for extent in claim.extents) for found in later.values())


def _has(rows: Sequence[AnyRow], extent: Extent) -> bool:
    return any(
        row.series_id == extent.series_id and row.first <= extent.first <= extent.last <= row.last for row in rows
    )


def _adopt_series(
    connection: Connection,
    claim: Claim,
    study_uid: str,
    series_uid: str,
    members: Sequence[Output],
    *,
    origin: Origin,
    now: datetime,
) -> Extent:
    tags = members[0].tags
    insert_ignoring(connection, studies, [study_row(study_uid, tags, now)])
    study_id = connection.execute(sa.select(studies.c.id).where(studies.c.study_instance_uid == study_uid)).scalar_one()
    job_id = claim.job.id
    insert_ignoring(connection, series, [series_row(study_id, series_uid, tags, origin, now=now, origin_job=job_id)])
    own = sa.and_(
        series.c.study_id == study_id, series.c.series_instance_uid == series_uid, series.c.origin_job == job_id
    )
    row = connection.execute(sa.select(series.c.id, series.c.portions).where(own).with_for_update(key_share=True)).one()
    connection.execute(
        sa.update(instances)
        .where(instances.c.series_id == row.id, instances.c.superseded_by.is_(None))
        .values(superseded_by=members[0].instance.id)  # of the same job run again from the start
    )
    connection.execute(
        instances.insert(),
        [
            {
                "id": m.instance.id, "series_id": row.id, "sop_instance_uid": m.instance.sop_instance_uid,
                "sop_class_uid": m.instance.sop_class_uid, "transfer_syntax_uid": m.instance.transfer_syntax_uid,
                "size_bytes": m.instance.size_bytes, "sha256": bytes.fromhex(m.instance.sha256),
                "spool": m.instance.spool, "association": "", "received": now, "portion": row.portions + 1,
                "flags": " ".join(m.flags),
            }
            for m in members
        ],
    )  # fmt: skip
    connection.execute(
        sa.update(series)
        .where(series.c.id == row.id)
        .values(
            instances=len(members),
            size_bytes=sum(m.instance.size_bytes for m in members),
            portions=row.portions + 1,
            settled=True,
            superseded=False,
            last_received=now,
        )
    )
    write_event(
        connection, "series.derived", now=now,
        subject=Subject(study_id=study_id, series_id=row.id, case_id=claim.job.case_id, job_id=job_id),
        instances=len(members), supplement=claim.job.supplement,
    )  # fmt: skip
    return Extent(series_id=row.id, first=row.portions + 1, last=row.portions + 1)
