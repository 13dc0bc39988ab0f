"""What is delivered where: per instance and target, so that only what is missing is ever sent again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from talaria.model.dicom import Origin, Tags
from talaria.model.errors import Permanent
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


class Deliveries:
    """The record of every delivery."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def prepare(self, claim: Claim, *, locate: Callable[[str], Path]) -> tuple[Delivery, tuple[Outcome, ...]]:
        """
        What is still to be delivered for a claimed dispatch job, and what cannot be: its file is gone.

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
            standings: dict[str, str] = dict(
                connection.execute(
                    sa.select(outcomes.c.instance_id, outcomes.c.standing).where(
                        outcomes.c.delivery_id == record.id, outcomes.c.standing != Standing.PENDING
                    )
                ).all()
            )
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
        return delivery, lost

    def record(
        self, delivery: Delivery, found: Sequence[Outcome], *, now: datetime, seconds: float, size_bytes: int
    ) -> None:
        """Write down what became of some instances; the later word on one of them stands."""
        if not found:
            return
        with self._ledger.writing("deliveries.record") as connection:
            last = {outcome.instance_id: outcome for outcome in found}
            earlier = dict(
                connection.execute(
                    sa.select(outcomes.c.instance_id, outcomes.c.times_sent).where(
                        outcomes.c.delivery_id == delivery.id, outcomes.c.instance_id.in_(list(last))
                    )
                ).all()
            )
            connection.execute(
                sa.delete(outcomes).where(
                    outcomes.c.delivery_id == delivery.id, outcomes.c.instance_id.in_(list(earlier))
                )
            )
            connection.execute(
                outcomes.insert(),
                [_outcome_row(delivery, o, times=earlier.get(o.instance_id, 0) + 1, now=now) for o in last.values()],
            )
            there = (
                sa.select(sa.func.count()).where(_counts(delivery), outcomes.c.standing.in_(_THERE)).scalar_subquery()
            )
            connection.execute(
                sa.update(deliveries)
                .where(deliveries.c.id == delivery.id)
                .values(
                    sent=there, seconds=deliveries.c.seconds + seconds, size_bytes=deliveries.c.size_bytes + size_bytes
                )
            )

    def tally(self, delivery: Delivery) -> Tally:
        """How a delivery stands now."""
        with self._ledger.reading() as connection:
            counts: dict[str, int] = dict(
                connection.execute(
                    sa.select(outcomes.c.standing, sa.func.count())
                    .where(_counts(delivery))
                    .group_by(outcomes.c.standing)
                ).all()
            )
            reason = connection.execute(
                sa.select(outcomes.c.detail).where(_counts(delivery), outcomes.c.standing == Standing.FAILED).limit(1)
            ).scalar()
        return Tally(
            total=delivery.total,
            there=sum(counts.get(standing, 0) for standing in _THERE),
            failed=counts.get(Standing.FAILED, 0),
            reason=reason or "",
        )


def _counts(delivery: Delivery) -> sa.ColumnElement[bool]:
    """Whether an outcome counts: of its own instances, those that no newer version has replaced since."""
    current = (
        sa.select(instances.c.id).where(instances.c.id == outcomes.c.instance_id, is_current(delivery.job_id)).exists()
    )
    return sa.and_(outcomes.c.delivery_id == delivery.id, current)


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


def _outcome_row(delivery: Delivery, outcome: Outcome, *, times: int, now: datetime) -> dict[str, Any]:
    return {
        "delivery_id": delivery.id,
        "instance_id": outcome.instance_id,
        "standing": outcome.standing,
        "status": outcome.status,
        "detail": storable(outcome.detail)[:1000],
        "attempt": delivery.attempt,
        "times_sent": times,
        "time": now,
    }
