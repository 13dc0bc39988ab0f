"""Compaction: what became of the instances of a delivery, kept as a count and a digest once all went well."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import Refused
from talaria.model.extensions import Standing
from talaria.model.job import State
from talaria.store.ledger import AnyRow, Ledger
from talaria.store.schema import deliveries, instances, job_series, jobs, outcomes

#: A delivery is left alone for so long after its end: people look at what was sent just now.
REST = timedelta(hours=1)
#: Standing of a row that says: in the portions of the job, but never its business. Only beside compacted outcomes.
NEVER = "never"
#: Deliveries looked at in one go.
_MOST_DELIVERIES = 200
#: Rows removed, and rows made again, by one statement.
_MOST_ROWS = 2000

#: What may be plain: the far end has it, and said nothing worth keeping.
_MAY_BE_PLAIN = frozenset({Standing.SENT, Standing.VERIFIED})


@dataclass(frozen=True, kw_only=True)
class Plain:
    """What the compacted outcomes of a delivery have in common."""

    standing: str
    status: int | None
    attempt: int
    count: int
    time: datetime
    """When the last of them was found out."""

    def to_json(self) -> str:
        """As kept in the ledger."""
        return json.dumps({**vars(self), "time": self.time.astimezone(UTC).isoformat()}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Plain":
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "time": datetime.fromisoformat(values["time"])})


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What is to be done with one delivery, found out before the pen is taken."""

    delivery_id: str
    job_id: int
    state: str
    updated: datetime
    plain: Plain | None
    digest: bytes
    never: tuple[str, ...]


class Compaction:
    """Turns outcomes into counts, some at a time; killed anywhere it goes on where it was."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def step(self, *, after: int, now: datetime, aged: timedelta) -> tuple[int, int | None]:
        """
        Look at the next deliveries that were not compacted yet.

        Args:
            after: Number of the job that the call before ended with; 0 to begin.
            now: Of jobs that are done for `REST`.
            aged: Those that failed or were cancelled are compacted when they ended longer ago than this.

        Returns:
            How many deliveries were compacted, and where to go on; None at the end.
        """
        with self._ledger.reading() as connection:
            rows = connection.execute(_next_whole(after)).all()
            found = [_find(connection, row) for row in rows if row.digest is None and _has_ended(row, now, aged)]
        for some in _in_batches(found):
            self._compact(some, now=now)
        halfway = [row for row in rows if row.digest is not None]
        big = [finding for finding in found if _size(finding) > _MOST_ROWS]
        for delivery_id in [*(row.id for row in halfway), *(finding.delivery_id for finding in big)]:
            self._finish(delivery_id, now=now)
        return len(found) + len(halfway), rows[-1].job_id if len(rows) == _MOST_DELIVERIES else None

    def _compact(self, findings: Sequence[_Finding], *, now: datetime) -> None:
        """Those of one transaction; what a person began again meanwhile is left alone."""
        with self._ledger.writing("compaction.compact") as connection:
            for finding in findings:
                if _is_as_found(connection, finding):
                    _write_digest(connection, finding, now=now)

    def _finish(self, delivery_id: str, *, now: datetime) -> None:
        """Remove the rows that a digest stands for, some at a time; each time the job is as it was, or nothing is."""
        is_done = False
        while not is_done:
            with self._ledger.writing("compaction.finish") as connection:
                row = connection.execute(
                    sa.select(deliveries)
                    .where(
                        deliveries.c.id == delivery_id, deliveries.c.digest.is_not(None),
                        deliveries.c.compacted.is_(None),
                    )
                    .with_for_update()
                ).first()  # fmt: skip
                is_done = row is None or _remove_plain(connection, row) < _MOST_ROWS
                if row is not None and is_done:
                    _mark(connection, delivery_id, compacted=now)

    def is_intact(self, job_id: int) -> bool:
        """
        Whether the ledger still says what the digest of a job's delivery was made of.

        Raises:
            Refused: The job has no delivery, or its outcomes were not compacted.
        """
        with self._ledger.reading() as connection:
            row = connection.execute(sa.select(deliveries).where(deliveries.c.job_id == job_id)).first()
            if row is None or row.digest is None or row.compacted is None:
                raise Refused(f"job {job_id}: there are no compacted outcomes of it")
            plain, hashes = Plain.from_json(row.plain), compacted_of(connection, row)
        return plain.count == len(hashes) and bytes(row.digest) == digest_of(plain, hashes)


def digest_of(plain: Plain, hashes: Mapping[str, bytes]) -> bytes:
    """SHA-256 over a line for each instance, by ULID: `ULID SHA256 STANDING STATUS ATTEMPT`, each ended by LF."""
    status = "-" if plain.status is None else plain.status
    digest = hashlib.sha256()
    for instance_id in sorted(hashes):
        line = f"{instance_id} {hashes[instance_id].hex()} {plain.standing} {status} {plain.attempt}\n"
        digest.update(line.encode())
    return digest.digest()


def compacted_of(connection: Connection, delivery: AnyRow) -> dict[str, bytes]:
    """The instances whose outcomes a delivery's digest stands for, with the SHA-256 of their content."""
    rows = connection.execute(_business_of(delivery.job_id).where(~_has_row(delivery.id)))
    return {row.id: row.sha256 for row in rows}


def stood_for(delivery: Any, instance: Any) -> sa.ColumnElement[bool]:
    """Whether the digest of a delivery stands for an instance of its job's portions (two tables of a statement)."""
    has_row = (
        sa.select(outcomes.c.instance_id)
        .where(outcomes.c.delivery_id == delivery.c.id, outcomes.c.instance_id == instance.c.id)
        .exists()
    )
    return sa.and_(delivery.c.digest.is_not(None), ~has_row)


def expand(connection: Connection, job_id: int) -> None:
    """
    Make the rows of compacted outcomes again, in the transaction that begins a job anew.

    Nothing where there are none. All of them stand as they stood; only the second of each is that of the last.
    """
    row = connection.execute(sa.select(deliveries).where(deliveries.c.job_id == job_id).with_for_update()).first()
    if row is None:
        return
    if row.digest is None:
        _mark(connection, row.id, compacted=None)
        return
    plain = Plain.from_json(row.plain)
    ids = sorted(compacted_of(connection, row))
    for start in range(0, len(ids), _MOST_ROWS):
        connection.execute(
            outcomes.insert(),
            [
                {
                    "delivery_id": row.id, "instance_id": instance_id, "standing": plain.standing,
                    "status": plain.status, "detail": "", "attempt": plain.attempt, "times_sent": 1,
                    "time": plain.time,
                }
                for instance_id in ids[start : start + _MOST_ROWS]
            ],
        )  # fmt: skip
    connection.execute(sa.delete(outcomes).where(outcomes.c.delivery_id == row.id, outcomes.c.standing == NEVER))
    _mark(connection, row.id, compacted=None, digest=None, plain=None)


# -- finding --


def _next_whole(after: int) -> sa.Select[Any]:
    return (
        sa.select(deliveries.c.id, deliveries.c.job_id, deliveries.c.digest, jobs.c.state, jobs.c.updated)
        .join(jobs, jobs.c.id == deliveries.c.job_id)
        .where(deliveries.c.compacted.is_(None), deliveries.c.job_id > after)
        .order_by(deliveries.c.job_id)
        .limit(_MOST_DELIVERIES)
    )


def _has_ended(row: AnyRow, now: datetime, aged: timedelta) -> bool:
    if row.state == State.DONE:
        return bool(row.updated <= now - REST)
    return row.state in {State.FAILED, State.CANCELLED} and bool(row.updated <= now - aged)


def _find(connection: Connection, row: AnyRow) -> _Finding:
    """What a delivery's outcomes have in common; nothing where compacting them would save no row."""
    found = connection.execute(
        sa.select(outcomes).where(outcomes.c.delivery_id == row.id).order_by(outcomes.c.instance_id)
    ).all()
    business = {own.id: own.sha256 for own in connection.execute(_business_of(row.job_id))}
    kinds = Counter((o.standing, o.status, o.attempt) for o in found if _is_plain(o))
    none = _Finding(
        delivery_id=row.id, job_id=row.job_id, state=row.state, updated=row.updated, plain=None, digest=b"", never=()
    )
    if not kinds:
        return none
    kind, count = kinds.most_common(1)[0]
    own = [o for o in found if _is_plain(o) and (o.standing, o.status, o.attempt) == kind]
    never = tuple(sorted(business.keys() - {o.instance_id for o in found}))
    if len(never) >= count or any(o.instance_id not in business for o in own):
        return none
    plain = Plain(standing=kind[0], status=kind[1], attempt=kind[2], count=count, time=max(o.time for o in own))
    return _Finding(
        delivery_id=row.id, job_id=row.job_id, state=row.state, updated=row.updated, plain=plain,
        digest=digest_of(plain, {o.instance_id: business[o.instance_id] for o in own}), never=never,
    )  # fmt: skip


def _is_plain(row: AnyRow) -> bool:
    return row.standing in _MAY_BE_PLAIN and not row.status and row.times_sent == 1 and not row.detail


def _business_of(job_id: int) -> sa.Select[Any]:
    """The instances of a job's portions, but those that retention had taken before it was made: a dated fact."""
    return (
        sa.select(instances.c.id, instances.c.sha256)
        .select_from(
            job_series.join(jobs, jobs.c.id == job_series.c.job_id).join(
                instances,
                sa.and_(
                    instances.c.series_id == job_series.c.series_id,
                    instances.c.portion.between(job_series.c.first, job_series.c.last),
                ),
            )
        )
        .where(
            job_series.c.job_id == job_id,
            sa.or_(instances.c.dropped.is_(None), instances.c.dropped >= jobs.c.created),
        )
    )


def _has_row(delivery_id: str) -> sa.ColumnElement[bool]:
    return (
        sa.select(outcomes.c.instance_id)
        .where(outcomes.c.delivery_id == delivery_id, outcomes.c.instance_id == instances.c.id)
        .exists()
    )


def _size(finding: _Finding) -> int:
    return 0 if finding.plain is None else finding.plain.count


def _in_batches(findings: Sequence[_Finding]) -> list[list[_Finding]]:
    """In their order, so that one transaction has some `_MOST_ROWS` rows to remove."""
    batches: list[list[_Finding]] = []
    room = 0
    for finding in findings:
        if (finding.plain is not None and room < _size(finding)) or not batches:
            batches.append([])
            room = _MOST_ROWS
        batches[-1].append(finding)
        room -= _size(finding)
    return batches


# -- writing --


def _is_as_found(connection: Connection, finding: _Finding) -> bool:
    row = connection.execute(
        sa.select(jobs.c.state, jobs.c.updated).where(jobs.c.id == finding.job_id).with_for_update()
    ).one()
    return (row.state, row.updated) == (finding.state, finding.updated)


def _write_digest(connection: Connection, finding: _Finding, *, now: datetime) -> None:
    """A small delivery is done with in one go; a large one gets its digest, and its rows go after."""
    if finding.plain is None:
        _mark(connection, finding.delivery_id, compacted=now)
        return
    is_big = _size(finding) > _MOST_ROWS
    _mark(
        connection, finding.delivery_id, compacted=None if is_big else now, digest=finding.digest,
        plain=finding.plain.to_json(),
    )  # fmt: skip
    if finding.never:
        connection.execute(
            outcomes.insert(),
            [
                {
                    "delivery_id": finding.delivery_id, "instance_id": instance_id, "standing": NEVER, "status": None,
                    "detail": "", "attempt": 0, "times_sent": 0, "time": now,
                }
                for instance_id in finding.never
            ],
        )  # fmt: skip
    if not is_big:
        row = connection.execute(sa.select(deliveries).where(deliveries.c.id == finding.delivery_id)).one()
        _remove_plain(connection, row)


def _remove_plain(connection: Connection, delivery: AnyRow) -> int:
    """Remove rows that the digest stands for, `_MOST_ROWS` at most; how many."""
    plain = Plain.from_json(delivery.plain)
    some = (
        sa.select(outcomes.c.instance_id)
        .where(
            outcomes.c.delivery_id == delivery.id,
            outcomes.c.standing == plain.standing,
            outcomes.c.status.is_not_distinct_from(plain.status),
            outcomes.c.attempt == plain.attempt,
            outcomes.c.times_sent == 1,
            outcomes.c.detail == "",
        )
        .order_by(outcomes.c.instance_id)
        .limit(_MOST_ROWS)
    )
    ids = list(connection.execute(some).scalars())
    own = sa.and_(outcomes.c.delivery_id == delivery.id, outcomes.c.instance_id.in_(ids))
    return connection.execute(sa.delete(outcomes).where(own)).rowcount if ids else 0


def _mark(connection: Connection, delivery_id: str, **values: Any) -> None:
    connection.execute(sa.update(deliveries).where(deliveries.c.id == delivery_id).values(**values))
