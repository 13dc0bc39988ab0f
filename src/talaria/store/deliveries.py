"""What is delivered where: per instance and target, so that only what is missing is ever sent again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.dicom import Origin, Tags
from talaria.model.errors import Permanent, Refused
from talaria.model.extensions import Delivery, Outcome, Parcel, Standing
from talaria.store.jobs import Claim, dropped_of, instances_of, is_current
from talaria.store.ledger import AnyRow, Ledger, storable
from talaria.store.schema import deliveries, instances, outcomes, series

_THERE = [standing for standing in Standing if standing.is_there]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How a delivery stands."""

    total: int
    there: int
    failed: int
    reason: str
    """Why the first of the failed was refused."""

    def after(self, found: Iterable[Outcome]) -> "Tally":
        """How it stands once instances that counted for neither have these outcomes."""
        failed = [outcome for outcome in found if outcome.standing is Standing.FAILED]
        return replace(
            self,
            there=self.there + sum(outcome.standing.is_there for outcome in found),
            failed=self.failed + len(failed),
            reason=self.reason or (failed[0].detail if failed else ""),
        )


class Prepared(NamedTuple):
    """An attempt that is about to begin."""

    delivery: Delivery
    lost: tuple[Outcome, ...]
    """Of instances whose file is gone: they are no parcels."""
    before: Tally
    """How it stands without those two."""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """What became of some instances of a delivery, found out at one time."""

    delivery_id: str
    job_id: int
    attempt: int
    found: tuple[Outcome, ...]
    time: datetime
    seconds: float
    """Spent on them."""
    size_bytes: int
    """Of those that are there now."""


class Deliveries:
    """The record of every delivery."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def prepare(self, claim: Claim, *, locate: Callable[[str], Path]) -> Prepared:
        """
        What is still to be delivered for a claimed dispatch job, what cannot be since its file is gone, and the rest.

        Args:
            claim: The job.
            locate: Where the spool has an instance, by its ULID; raises FileNotFoundError.

        Raises:
            Permanent: Retention removed what was not delivered.
        """
        with self._ledger.writing("deliveries.prepare") as connection:
            record = connection.execute(sa.select(deliveries).where(deliveries.c.job_id == claim.job.id)).one()
            rows = instances_of(connection, claim.job.id)
            dropped = dropped_of(connection, claim.job)
            known = connection.execute(
                sa.select(outcomes.c.instance_id, outcomes.c.standing, outcomes.c.detail).where(
                    outcomes.c.delivery_id == record.id, outcomes.c.standing != Standing.PENDING
                )
            ).all()
            standings: dict[str, str] = {row.instance_id: row.standing for row in known}
            if any(standings.get(instance_id) not in _THERE for instance_id in dropped):
                raise Permanent("its files were removed by retention; send the study again")
            total = len(rows) + len(dropped)
            first = min(extent.series_id for extent in claim.extents)
            source = connection.execute(sa.select(series).where(series.c.id == first)).one()
            if record.total != total:
                connection.execute(sa.update(deliveries).where(deliveries.c.id == record.id).values(total=total))
        waiting = [row for row in rows if row.id not in standings]
        parcels, lost = _locate(waiting, locate)
        delivery = Delivery(
            id=record.id,
            job_id=claim.job.id,
            attempt=claim.job.attempt,
            study_instance_uid=claim.job.study_instance_uid,
            rule=claim.job.rule,
            origin=Origin(calling_ae=source.calling_ae, called_ae=source.called_ae, address=source.address),
            tags=Tags.from_json(source.tags),
            parcels=parcels,
            total=total,
        )
        own = {*dropped, *(row.id for row in rows)}
        return Prepared(delivery, lost, _tally(total, [row for row in known if row.instance_id in own]))

    def record(
        self, delivery: Delivery, found: Sequence[Outcome], *, now: datetime, seconds: float, size_bytes: int
    ) -> None:
        """Write down what became of some instances; the later word on one of them stands."""
        self.write(
            Noted(
                delivery_id=delivery.id, job_id=delivery.job_id, attempt=delivery.attempt, found=tuple(found),
                time=now, seconds=seconds, size_bytes=size_bytes,
            )
        )  # fmt: skip

    def write(self, noted: Noted, *, is_replay: bool = False) -> None:
        """
        `record`, of what was noted before.

        Args:
            noted: What became of some instances.
            is_replay: It may have been written already, and later words, too: those stand. Then twice is as once.

        Raises:
            Refused: The ledger knows no such delivery.
        """
        if not noted.found:
            return
        with self._ledger.writing("deliveries.record") as connection:
            last = {outcome.instance_id: outcome for outcome in noted.found}
            earlier = _earlier(connection, noted.delivery_id, list(last))
            if is_replay:
                _refuse_unknown(connection, noted)
                last = {key: outcome for key, outcome in last.items() if not _is_known(earlier.get(key), noted)}
                if not last or _is_compacted(connection, noted):
                    return
            connection.execute(
                sa.delete(outcomes).where(
                    outcomes.c.delivery_id == noted.delivery_id, outcomes.c.instance_id.in_(list(last))
                )
            )
            times = {key: row.times_sent for key, row in earlier.items()}
            connection.execute(
                outcomes.insert(),
                [_outcome_row(noted, o, times=times.get(o.instance_id, 0) + 1) for o in last.values()],
            )
            counted = _counts(noted.delivery_id, noted.job_id)
            there = sa.select(sa.func.count()).where(counted, outcomes.c.standing.in_(_THERE)).scalar_subquery()
            connection.execute(
                sa.update(deliveries)
                .where(deliveries.c.id == noted.delivery_id)
                .values(
                    sent=there, seconds=deliveries.c.seconds + noted.seconds,
                    size_bytes=deliveries.c.size_bytes + noted.size_bytes,
                )
            )  # fmt: skip

    def tally(self, delivery: Delivery) -> Tally:
        """How a delivery stands now."""
        with self._ledger.reading() as connection:
            counts: dict[str, int] = dict(
                connection.execute(
                    sa.select(outcomes.c.standing, sa.func.count())
                    .where(_counts(delivery.id, delivery.job_id))
                    .group_by(outcomes.c.standing)
                ).all()
            )
            reason = connection.execute(
                sa.select(outcomes.c.detail)
                .where(_counts(delivery.id, delivery.job_id), outcomes.c.standing == Standing.FAILED)
                .limit(1)
            ).scalar()
        return Tally(
            total=delivery.total,
            there=sum(counts.get(standing, 0) for standing in _THERE),
            failed=counts.get(Standing.FAILED, 0),
            reason=reason or "",
        )


def _tally(total: int, known: Sequence[AnyRow]) -> Tally:
    failed = [row for row in known if row.standing == Standing.FAILED]
    return Tally(
        total=total,
        there=sum(row.standing in _THERE for row in known),
        failed=len(failed),
        reason=failed[0].detail if failed else "",
    )


def _earlier(connection: Connection, delivery_id: str, instance_ids: Sequence[str]) -> dict[str, AnyRow]:
    """What was written of these instances before."""
    rows = connection.execute(
        sa.select(outcomes.c.instance_id, outcomes.c.times_sent, outcomes.c.attempt, outcomes.c.time).where(
            outcomes.c.delivery_id == delivery_id, outcomes.c.instance_id.in_(instance_ids)
        )
    )
    return {row.instance_id: row for row in rows}


def _is_known(row: AnyRow | None, noted: Noted) -> bool:
    """Whether the ledger has this word on an instance, or a later one."""
    return row is not None and (row.attempt, row.time) >= (noted.attempt, noted.time)


def _refuse_unknown(connection: Connection, noted: Noted) -> None:
    own = sa.select(deliveries.c.id).where(deliveries.c.id == noted.delivery_id, deliveries.c.job_id == noted.job_id)
    if connection.execute(own).first() is None:
        raise Refused(f"there is no delivery {noted.delivery_id} of job {noted.job_id}; is this its ledger?")


def _is_compacted(connection: Connection, noted: Noted) -> bool:
    """Whether all went well since, long ago: its outcomes are a count and a digest."""
    own = sa.select(deliveries.c.id).where(deliveries.c.id == noted.delivery_id, deliveries.c.digest.is_not(None))
    return connection.execute(own).first() is not None


def _counts(delivery_id: str, job_id: int) -> sa.ColumnElement[bool]:
    """Whether an outcome counts: of its own instances, those that no newer version has replaced since."""
    current = sa.select(instances.c.id).where(instances.c.id == outcomes.c.instance_id, is_current(job_id)).exists()
    return sa.and_(outcomes.c.delivery_id == delivery_id, current)


def _locate(rows: Sequence[AnyRow], locate: Callable[[str], Path]) -> tuple[tuple[Parcel, ...], tuple[Outcome, ...]]:
    parcels, lost = [], []
    for row in rows:
        try:
            parcels.append(_parcel(row, locate(row.id)))
        except FileNotFoundError as error:
            lost.append(Outcome(instance_id=row.id, standing=Standing.FAILED, detail=str(error)))
    return tuple(parcels), tuple(lost)


def _parcel(row: AnyRow, path: Path) -> Parcel:
    return Parcel(
        instance_id=row.id,
        path=path,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        size_bytes=row.size_bytes,
        sha256=row.sha256.hex(),
    )


def _outcome_row(noted: Noted, outcome: Outcome, *, times: int) -> dict[str, Any]:
    return {
        "delivery_id": noted.delivery_id,
        "instance_id": outcome.instance_id,
        "standing": outcome.standing,
        "status": outcome.status,
        "detail": storable(outcome.detail)[:1000],
        "attempt": noted.attempt,
        "times_sent": times,
        "time": noted.time,
    }
