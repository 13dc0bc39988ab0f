"""The history of one SOP instance: what came under its UID, what was decided, where it went, what was made of it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.job import Kind
from talaria.store.compaction import NEVER, Plain, stood_for
from talaria.store.ledger import AnyRow
from talaria.store.schema import (
    MADE,
    case_series,
    cases,
    deliveries,
    events,
    instances,
    job_series,
    jobs,
    outcomes,
    results,
    runs,
    series,
    studies,
)

#: Events of one kind of subject that are told of one version, the newest.
_MOST_EVENTS = 500
#: Of one version: more than this nobody reads.
_MOST_JOBS = 1000


def instance_history(connection: Connection, sop_instance_uid: str) -> tuple[Mapping[str, Any], ...]:
    """
    Every version of an instance, in the order in which they came; empty when it was never received.

    `life` tells it as one dated list, the oldest first; the other keys tell the same by what it is about. It is the
    same before and after the outcomes were compacted, but for the second at which each instance was sent, and before
    and after the files were cleaned.
    """
    rows = connection.execute(
        sa.select(
            instances, series.c.series_instance_uid, series.c.origin_job, series.c.calling_ae, series.c.called_ae,
            series.c.address, series.c.study_id, studies.c.study_instance_uid,
        )
        .join(series, series.c.id == instances.c.series_id)
        .join(studies, studies.c.id == series.c.study_id)
        .where(instances.c.sop_instance_uid == sop_instance_uid)
        .order_by(instances.c.id)
    ).all()  # fmt: skip
    versions = {row.id: row for row in rows}
    return tuple(_version(connection, row, versions) for row in rows)


def _version(connection: Connection, row: AnyRow, versions: Mapping[str, AnyRow]) -> Mapping[str, Any]:
    sent = _sendings(connection, row)
    of_jobs = _jobs_of(connection, row, versions, {one["job_id"] for one in sent})
    happened = _events_of(connection, row, [job["id"] for job in of_jobs])
    made = [job["id"] for job in of_jobs if job["kind"] == Kind.PROCESS]
    told = {
        "id": row.id,
        "study_uid": row.study_instance_uid,
        "series_uid": row.series_instance_uid,
        "sop_instance_uid": row.sop_instance_uid,
        "sop_class_uid": row.sop_class_uid,
        "transfer_syntax_uid": row.transfer_syntax_uid,
        "size_bytes": row.size_bytes,
        "sha256": row.sha256.hex(),
        "received": row.received,
        "calling_ae": row.calling_ae,
        "called_ae": row.called_ae,
        "address": row.address,
        "association": row.association,
        "made_by_job": row.origin_job or None,
        "superseded_by": row.superseded_by,
        "repeats": row.repeats,
        "repeated": row.repeated,
        "flags": row.flags.split(),
        "portion": row.portion,
        "dropped": row.dropped,
        "cases": _cases_of(connection, row),
        "jobs": of_jobs,
        "deliveries": sent,
        "runs": _runs_of(connection, made),
        "results": _results_of(connection, made),
        "derived": _derived_of(connection, made),
        "events": [
            {"time": e.time, "kind": e.kind, "detail": json.loads(e.detail)}
            for e in happened
            if e.instance_id == row.id
        ],
    }
    return {**told, "life": _life(told, happened)}


# -- what was decided --


def _cases_of(connection: Connection, row: AnyRow) -> list[dict[str, Any]]:
    """The cases that have its portion, and those of its series alone that took it or left it."""
    covering = sa.select(case_series.c.case_id).where(
        case_series.c.series_id == row.series_id, case_series.c.covered >= _portion(row)
    )
    either = sa.or_(cases.c.id.in_(covering), cases.c.series_id == row.series_id)
    found = connection.execute(
        sa.select(cases).where(cases.c.study_id == row.study_id, either).order_by(cases.c.id)
    )  # fmt: skip
    return [
        {
            "id": case.id, "rule": case.rule, "revision": case.revision, "is_study": case.series_id == 0,
            "state": case.state, "reason": case.reason, "supplement": case.supplement, "opened": case.opened,
            "updated": case.updated,
        }
        for case in found
    ]  # fmt: skip


def _portion(row: AnyRow) -> sa.ColumnElement[int]:
    """Its portion; NULL, which is in no span, while it is not closed."""
    return sa.literal(row.portion, instances.c.portion.type)


def _of_portion(row: AnyRow) -> sa.ColumnElement[bool]:
    return sa.and_(
        job_series.c.series_id == row.series_id,
        job_series.c.first <= _portion(row),
        job_series.c.last >= _portion(row),
    )


def _jobs_of(
    connection: Connection, row: AnyRow, versions: Mapping[str, AnyRow], has_outcome: set[int]
) -> list[dict[str, Any]]:
    """The jobs whose business it was: those that were made while it was there and nothing had taken its place."""
    successor = versions.get(row.superseded_by)
    found = connection.execute(
        sa.select(jobs)
        .join(job_series, job_series.c.job_id == jobs.c.id)
        .where(_of_portion(row))
        .order_by(jobs.c.id)
        .limit(_MOST_JOBS)
    )
    return [
        {
            "id": job.id, "kind": job.kind, "state": job.state, "rule": job.rule, "revision": job.revision,
            "target": job.target, "parent": job.parent, "supplement": job.supplement, "attempt": job.attempt,
            "reason": job.reason, "created": job.created, "updated": job.updated,
        }
        for job in found
        if job.id in has_outcome or _was_there(row, successor, job.created)
    ]  # fmt: skip


def _was_there(row: AnyRow, successor: AnyRow | None, moment: datetime) -> bool:
    is_gone = row.dropped is not None and row.dropped < moment
    return not is_gone and (successor is None or successor.received > moment)


# -- where it went --


def _sendings(connection: Connection, row: AnyRow) -> list[dict[str, Any]]:
    """What became of it at each target, whether its outcome is a row or stands in a digest."""
    rows = connection.execute(
        sa.select(outcomes, deliveries.c.target, deliveries.c.job_id)
        .join(deliveries, deliveries.c.id == outcomes.c.delivery_id)
        .where(outcomes.c.instance_id == row.id, outcomes.c.standing != NEVER)
    )
    found = [
        {
            "target": o.target, "job_id": o.job_id, "delivery_id": o.delivery_id, "standing": o.standing,
            "status": o.status, "detail": o.detail, "attempt": o.attempt, "times_sent": o.times_sent, "time": o.time,
        }
        for o in rows
    ]  # fmt: skip
    found += [
        {
            "target": d.target, "job_id": d.job_id, "delivery_id": d.id, "standing": plain.standing,
            "status": plain.status, "detail": "", "attempt": plain.attempt, "times_sent": 1, "time": plain.time,
        }
        for d in connection.execute(_compacted(row))
        for plain in [Plain.from_json(d.plain)]
    ]  # fmt: skip
    return sorted(found, key=lambda sent: (sent["time"], sent["job_id"]))


def _compacted(row: AnyRow) -> sa.Select[Any]:
    """The deliveries whose digest stands for it; what was dropped before a job was made was never its business."""
    was_there = sa.true() if row.dropped is None else jobs.c.created <= row.dropped
    return (
        sa.select(deliveries.c.id, deliveries.c.job_id, deliveries.c.target, deliveries.c.plain)
        .select_from(job_series)
        .join(jobs, jobs.c.id == job_series.c.job_id)
        .join(deliveries, deliveries.c.job_id == jobs.c.id)
        .join(instances, instances.c.id == row.id)
        .where(_of_portion(row), was_there, stood_for(deliveries, instances))
    )


# -- what was made of it --


def _runs_of(connection: Connection, job_ids: Sequence[int]) -> list[dict[str, Any]]:
    found = connection.execute(
        sa.select(runs).where(runs.c.job_id.in_(job_ids)).order_by(runs.c.job_id, runs.c.attempt, runs.c.step)
    )
    return [
        {
            "job_id": run.job_id, "attempt": run.attempt, "step": run.step, "module": run.module, "code": run.code,
            "reason": run.reason, "seconds": run.seconds, "ended": run.ended,
        }
        for run in found
    ]  # fmt: skip


def _results_of(connection: Connection, job_ids: Sequence[int]) -> list[dict[str, Any]]:
    found = connection.execute(sa.select(results).where(results.c.job_id.in_(job_ids)).order_by(results.c.id))
    return [
        {
            "id": result.id, "job_id": result.job_id, "attempt": result.attempt, "step": result.step,
            "module": result.module, "version": result.version, "created": result.created,
        }
        for result in found
    ]  # fmt: skip


def _derived_of(connection: Connection, job_ids: Sequence[int]) -> list[dict[str, Any]]:
    found = connection.execute(
        sa.select(
            series.c.series_instance_uid, series.c.origin_job, series.c.instances, series.c.superseded,
            series.c.first_received, series.c.dropped,
        )
        .where(sa.text(MADE), series.c.origin_job.in_(job_ids))
        .order_by(series.c.id)
    )  # fmt: skip
    return [
        {
            "series_uid": made.series_instance_uid, "job_id": made.origin_job, "instances": made.instances,
            "superseded": made.superseded, "made": made.first_received, "dropped": made.dropped,
        }
        for made in found
    ]  # fmt: skip


# -- its life --


def _events_of(connection: Connection, row: AnyRow, job_ids: Sequence[int]) -> list[AnyRow]:
    """Events about it, about its series and its cases, and about its jobs; each once, the oldest first."""
    of_series = sa.and_(  # coalesce, so that no index of the many that are NULL is taken
        events.c.study_id == row.study_id,
        sa.func.coalesce(events.c.job_id, 0) == 0,
        sa.func.coalesce(events.c.instance_id, "") == "",
        sa.or_(events.c.series_id == row.series_id, events.c.series_id.is_(None)),
    )
    ways = (events.c.instance_id == row.id, of_series, events.c.job_id.in_(job_ids))
    found = {
        event.id: event
        for way in ways
        for event in connection.execute(
            sa.select(events).where(way).order_by(events.c.id.desc()).limit(_MOST_EVENTS)
        )
    }  # fmt: skip
    return [found[number] for number in sorted(found)]


def _life(told: Mapping[str, Any], happened: Iterable[AnyRow]) -> list[dict[str, Any]]:
    """Everything that has a date, in one list, the oldest first."""
    came = {name: told[name] for name in ("calling_ae", "called_ae", "association", "size_bytes", "flags")}
    first = "instance.made" if told["made_by_job"] else "instance.received"
    dated = [_dated(told["received"], first, came, job_id=told["made_by_job"])]
    if told["repeated"] is not None:
        dated.append(_dated(told["repeated"], "instance.repeated", {"times": told["repeats"]}))
    for sent in told["deliveries"]:
        facts = {name: sent[name] for name in ("target", "standing", "status", "detail", "attempt", "times_sent")}
        dated.append(_dated(sent["time"], "instance.sent", facts, job_id=sent["job_id"]))
    for event in happened:
        if event.kind != "instance.repeat":  # told above, as a count
            detail = json.loads(event.detail)
            dated.append(_dated(event.time, event.kind, detail, job_id=event.job_id, actor=event.actor))
    if told["dropped"] is not None:
        dated.append(_dated(told["dropped"], "instance.removed", {}))
    return sorted(dated, key=lambda part: part["time"])


def _dated(
    time: datetime, kind: str, detail: Mapping[str, Any], *, job_id: int | None = None, actor: str = ""
) -> dict[str, Any]:
    return {"time": time, "kind": kind, "job_id": job_id, "actor": actor, "detail": detail}
