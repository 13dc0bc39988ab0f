"""What modules made: their runs, and their DICOM outputs as derived series of the study they came from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.dicom import Instance, Origin, Tags
from talaria.model.errors import Permanent
from talaria.model.job import Extent, State
from talaria.store.arrivals import series_row, study_row
from talaria.store.jobs import Claim, cancel_deliveries, dropped_of, instances_of
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_ignoring, storable, write_event
from talaria.store.schema import instances, job_series, jobs, runs, series, studies

#: No database takes a list of any length.
_MOST_AT_ONCE = 5000


@dataclass(frozen=True, kw_only=True)
class Output:
    """One DICOM file that a module wrote, safe in `store/` but not yet in the ledger."""

    instance: Instance
    tags: Tags
    flags: tuple[str, ...] = ()


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


class Results:
    """Runs and their outputs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def record_run(self, run: RunRecord) -> None:
        """Write down how a step went; again for the same step and attempt, the later word stands."""
        same = (runs.c.job_id == run.job_id, runs.c.attempt == run.attempt, runs.c.step == run.step)
        with self._ledger.writing("results.run") as connection:
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
    connection.execute(sa.update(series).where(series.c.origin_job.in_(again)).values(superseded=True))
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
    connection.execute(sa.update(series).where(series.c.origin_job == claim.job.id).values(superseded=True))
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
    row = connection.execute(sa.select(series.c.id, series.c.portions).where(own).with_for_update()).one()
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
