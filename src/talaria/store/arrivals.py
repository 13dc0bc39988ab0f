"""Writing down what arrived: instances, their series and study; repeats counted, conflicts kept and told."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.dicom import Instance, Origin, Tags
from talaria.store.ledger import Ledger, Subject, insert_ignoring, write_event
from talaria.store.schema import instances, received, series, studies

#: What is due later the router finds by itself: it looks at least every two seconds.
_SOON = timedelta(seconds=2)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An instance that is safe in `new/`, with what its header says."""

    instance: Instance
    origin: Origin
    association: str
    """ULID of the association it came by; empty where it came by none."""
    tags: Tags
    flags: tuple[str, ...] = ()
    """Oddities of its header."""
    forced: str = ""
    """The rule that takes its series whatever the others say; empty: they are asked."""


class Finding(StrEnum):
    """What the ledger made of an arrival."""

    NEW = "new"
    KNOWN = "known"
    """Its row was there already: a receiver died between commit and shelving."""
    REPEAT = "repeat"
    """An identical copy of an instance that is there: counted, and this file is not needed."""
    CONFLICT = "conflict"
    """Another content under a SOP Instance UID that is there: both are kept, this one is used from now on."""


@dataclass(frozen=True, kw_only=True)
class _Twin:
    """An instance of the ledger with the same SOP Instance UID."""

    id: str
    series_id: int
    sha256: bytes
    spool: str


class Arrivals:
    """Rows for instances that arrived over the network or from a folder."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def record(
        self,
        batch: Sequence[Arrival],
        *,
        now: datetime,
        quiet: timedelta,
        is_lost: Callable[[str, str], bool] = lambda _instance, _spool: False,
        held: str = "",
    ) -> dict[str, Finding]:
        """
        Write a batch down in one transaction; recording it again changes nothing.

        Args:
            batch: In the order of arrival.
            now: Quiet time counts from here, not from when the bytes came: what waited for the ledger is not late.
            quiet: The router looks at a series that is new to it after this long.
            is_lost: Whether the file of an instance (its ULID, its spool's name) is gone though it should be there:
                then an identical copy takes its place.
            held: Why no rule is asked about the series that grew until a person decides; empty: rules are asked.

        Returns:
            What each instance was found to be, by its ULID.
        """
        with self._ledger.writing("arrivals.record") as connection:
            study_ids = _ensure_studies(connection, batch, now=now)
            series_ids = _ensure_series(connection, batch, study_ids, now=now)
            recorder = _Recorder(connection, batch, study_ids, series_ids, now=now, is_lost=is_lost)
            for arrival in batch:
                recorder.take(arrival)
            recorder.finish(due=now + quiet)
            if held:
                recorder.hold(held)
        return recorder.findings


class _Recorder:
    """One batch on its way into the ledger."""

    def __init__(
        self,
        connection: Connection,
        batch: Sequence[Arrival],
        study_ids: dict[str, int],
        series_ids: dict[tuple[int, str], int],
        *,
        now: datetime,
        is_lost: Callable[[str, str], bool],
    ) -> None:
        self._connection, self._now, self._is_lost = connection, now, is_lost
        self._study_ids, self._series_ids = study_ids, series_ids
        self._known = _known(connection, [arrival.instance.id for arrival in batch])
        self._twins = _twins(connection, {arrival.instance.sop_instance_uid for arrival in batch})
        self._rows: list[dict[str, Any]] = []
        self._grown: dict[int, tuple[int, int]] = {}  # series: instances, bytes
        self._forced: dict[int, str] = {}  # series: rule
        self._repeated: Counter[str] = Counter()  # of instances that were there before the batch
        self._repeats: dict[Subject, Counter[str]] = {}  # series: repeats by association
        self._received: dict[str, tuple[int, int, int]] = {}  # calling AE: instances, bytes, repeats
        self.findings: dict[str, Finding] = {}

    def take(self, arrival: Arrival) -> None:
        """Find out what one arrival is, and prepare its row."""
        instance = arrival.instance
        if instance.id in self._known or instance.id in self.findings:
            self.findings[instance.id] = Finding.KNOWN
            return
        study_id = self._study_ids[instance.study_instance_uid]
        series_id = self._series_ids[study_id, instance.series_instance_uid]
        subject = Subject(study_id=study_id, series_id=series_id, instance_id=instance.id)
        twins = self._twins.setdefault(instance.sop_instance_uid, [])
        digest = bytes.fromhex(instance.sha256)
        same = next((t for t in twins if t.sha256 == digest and t.series_id == series_id), None)
        if same is not None and not self._is_lost(same.id, same.spool):
            self._repeat(arrival, same, subject)
            return
        self._count(arrival.origin.calling_ae, 1, instance.size_bytes, 0)
        self.findings[instance.id] = Finding.CONFLICT if twins and same is None else Finding.NEW
        if twins:
            self._replace(arrival, twins, subject, "instance.conflict" if same is None else "instance.restored")
        row = _instance_row(arrival, series_id, digest)
        row["superseded_by"] = self._overtaken_by(arrival, twins, series_id)
        twins.append(_Twin(id=instance.id, series_id=series_id, sha256=digest, spool=instance.spool))
        self._rows.append(row)
        if arrival.forced:
            self._forced[series_id] = arrival.forced
        count, size = self._grown.get(series_id, (0, 0))
        self._grown[series_id] = (count + (row["superseded_by"] is None), size + instance.size_bytes)

    @staticmethod
    def _overtaken_by(arrival: Arrival, twins: Sequence["_Twin"], series_id: int) -> str | None:
        """
        The instance that came after *arrival* though it was written down before it, if there is one.

        That happens to strays alone: they lie in `new/` for a while, and bear no association.
        """
        later = [twin.id for twin in twins if twin.series_id == series_id and twin.id > arrival.instance.id]
        return max(later, default=None) if not arrival.association else None

    def _repeat(self, arrival: Arrival, same: _Twin, subject: Subject) -> None:
        self.findings[arrival.instance.id] = Finding.REPEAT
        self._count(arrival.origin.calling_ae, 0, 0, 1)
        row = next((row for row in self._rows if row["id"] == same.id), None)
        if row is not None:
            row["repeats"] += 1
            row["repeated"] = self._now
        else:
            self._repeated[same.id] += 1
        self._repeats.setdefault(_about_series(subject), Counter())[arrival.association] += 1

    def _count(self, calling_ae: str, instances: int, size_bytes: int, repeats: int) -> None:
        so_far = self._received.get(calling_ae, (0, 0, 0))
        self._received[calling_ae] = (so_far[0] + instances, so_far[1] + size_bytes, so_far[2] + repeats)

    def _replace(self, arrival: Arrival, twins: list[_Twin], subject: Subject, kind: str) -> None:
        """Both stay; in the same series the older one is not used any more."""
        late = self._overtaken_by(arrival, twins, subject.series_id) is not None
        older = [] if late else [twin for twin in twins if twin.series_id == subject.series_id]
        for twin in older:
            row = next((row for row in self._rows if row["id"] == twin.id), None)
            if row is not None:
                row["superseded_by"] = row["superseded_by"] or arrival.instance.id
        replaced = self._connection.execute(
            sa.update(instances)
            .where(instances.c.id.in_([twin.id for twin in older]), instances.c.superseded_by.is_(None))
            .values(superseded_by=arrival.instance.id)
        ).rowcount + sum(1 for row in self._rows if row["superseded_by"] == arrival.instance.id)
        if replaced:
            count, size = self._grown.get(subject.series_id, (0, 0))
            self._grown[subject.series_id] = (count - replaced, size)
        write_event(
            self._connection, kind, now=self._now, subject=subject,
            sop_instance_uid=arrival.instance.sop_instance_uid, others=[twin.id for twin in twins],
            association=arrival.association,
        )  # fmt: skip

    def finish(self, *, due: datetime) -> None:
        """Write the rows, and wake the router for the series that grew."""
        if self._rows:
            self._connection.execute(instances.insert(), self._rows)
        self._write_repeats()
        for series_id, (count, size) in self._grown.items():
            self._connection.execute(
                sa.update(series)
                .where(series.c.id == series_id)
                .values(
                    instances=series.c.instances + count,
                    size_bytes=series.c.size_bytes + size,
                    last_received=self._now,
                    due=sa.case((series.c.due < due, series.c.due), else_=sa.literal(due, series.c.due.type)),
                    dropped=None,
                    version=series.c.version + 1,
                    **({"forced": self._forced[series_id]} if series_id in self._forced else {}),
                )
            )
        grown = sa.select(series.c.study_id).where(series.c.id.in_(list(self._grown)))
        self._connection.execute(sa.update(studies).where(studies.c.id.in_(grown)).values(last_received=self._now))
        if self._grown and due <= self._now + _SOON:
            Ledger.announce(self._connection, "series")
        for calling_ae in sorted(self._received):  # last, and in one order: all receivers write these rows
            _add_to_received(self._connection, calling_ae, *self._received[calling_ae])

    def hold(self, reason: str) -> None:
        """Leave the series that grew to a person; one that waits for one already keeps its first reason."""
        for series_id in self._grown:
            changed = self._connection.execute(
                sa.update(series).where(series.c.id == series_id, series.c.held == "").values(held=reason)
            ).rowcount
            if changed:
                study_id = self._connection.execute(
                    sa.select(series.c.study_id).where(series.c.id == series_id)
                ).scalar_one()
                write_event(
                    self._connection, "series.held", now=self._now,
                    subject=Subject(study_id=study_id, series_id=series_id), reason=reason,
                )  # fmt: skip

    def _write_repeats(self) -> None:
        """A count for each instance, and one event for each series: a study sent again is told once for a batch."""
        if self._repeated:
            self._connection.execute(
                sa.update(instances)
                .where(instances.c.id == sa.bindparam("repeat_of"))
                .values(repeats=instances.c.repeats + sa.bindparam("times"), repeated=self._now),
                [{"repeat_of": key, "times": times} for key, times in sorted(self._repeated.items())],
            )
        for subject, associations in self._repeats.items():
            write_event(
                self._connection, "instance.repeat", now=self._now, subject=subject,
                count=associations.total(), associations=sorted(filter(None, associations)),
            )  # fmt: skip


def _about_series(subject: Subject) -> Subject:
    return Subject(study_id=subject.study_id, series_id=subject.series_id)


def _add_to_received(connection: Connection, calling_ae: str, count: int, size_bytes: int, repeats: int) -> None:
    insert_ignoring(
        connection, received, [{"calling_ae": calling_ae, "instances": 0, "size_bytes": 0, "repeats": 0}]
    )  # fmt: skip
    connection.execute(
        sa.update(received)
        .where(received.c.calling_ae == calling_ae)
        .values(
            instances=received.c.instances + count,
            size_bytes=received.c.size_bytes + size_bytes,
            repeats=received.c.repeats + repeats,
        )
    )


def _instance_row(arrival: Arrival, series_id: int, digest: bytes) -> dict[str, Any]:
    instance = arrival.instance
    return {
        "id": instance.id,
        "series_id": series_id,
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "size_bytes": instance.size_bytes,
        "sha256": digest,
        "spool": instance.spool,
        "association": arrival.association,
        "received": instance.received,
        "superseded_by": None,
        "repeats": 0,
        "repeated": None,
        "flags": " ".join(arrival.flags),
    }


def _known(connection: Connection, ids: Sequence[str]) -> set[str]:
    return set(connection.execute(sa.select(instances.c.id).where(instances.c.id.in_(ids))).scalars())


def _twins(connection: Connection, uids: Iterable[str]) -> dict[str, list[_Twin]]:
    """Received instances, still on disk, of these SOP Instance UIDs; results of modules do not count."""
    found: dict[str, list[_Twin]] = {}
    rows = connection.execute(
        sa.select(
            instances.c.sop_instance_uid, instances.c.id, instances.c.series_id, instances.c.sha256, instances.c.spool
        )
        .join(series)
        .where(
            instances.c.sop_instance_uid.in_(list(uids)),
            instances.c.dropped.is_(None),
            series.c.origin_job == 0,
        )
    )
    for row in rows:
        twin = _Twin(id=row.id, series_id=row.series_id, sha256=row.sha256, spool=row.spool)
        found.setdefault(row.sop_instance_uid, []).append(twin)
    return found


def _ensure_studies(connection: Connection, batch: Sequence[Arrival], *, now: datetime) -> dict[str, int]:
    firsts: dict[str, Arrival] = {}
    for arrival in batch:
        firsts.setdefault(arrival.instance.study_instance_uid, arrival)
    insert_ignoring(connection, studies, [study_row(uid, firsts[uid].tags, now) for uid in sorted(firsts)])
    rows = connection.execute(
        sa.select(studies.c.study_instance_uid, studies.c.id)
        .where(studies.c.study_instance_uid.in_(list(firsts)))
        .order_by(studies.c.id)
        .with_for_update(key_share=True)  # in one order, so that two receivers never wait for each other
    )
    return {row.study_instance_uid: row.id for row in rows}


def study_row(uid: str, tags: Tags, now: datetime) -> dict[str, Any]:
    """A row for a study that is new to the ledger."""
    return {
        "study_instance_uid": uid,
        "patient_id": tags.get("PatientID", ""),
        "patient_name": tags.get("PatientName", ""),
        "accession_number": tags.get("AccessionNumber", ""),
        "study_date": tags.get("StudyDate", ""),
        "study_description": tags.get("StudyDescription", ""),
        "first_received": now,
        "last_received": now,
    }


def _ensure_series(
    connection: Connection, batch: Sequence[Arrival], study_ids: dict[str, int], *, now: datetime
) -> dict[tuple[int, str], int]:
    firsts: dict[tuple[int, str], Arrival] = {}
    for arrival in batch:
        key = (study_ids[arrival.instance.study_instance_uid], arrival.instance.series_instance_uid)
        firsts.setdefault(key, arrival)
    insert_ignoring(
        connection,
        series,
        [series_row(*key, firsts[key].tags, firsts[key].origin, now=now) for key in sorted(firsts)],
    )
    rows = connection.execute(
        sa.select(series.c.study_id, series.c.series_instance_uid, series.c.id, series.c.reduced)
        .where(
            series.c.study_id.in_(list(study_ids.values())),
            series.c.series_instance_uid.in_([uid for _, uid in firsts]),
            series.c.origin_job == 0,
        )
        .order_by(series.c.id)
        .with_for_update(key_share=True)
    ).all()
    for row in rows:
        first = firsts.get((row.study_id, row.series_instance_uid))
        if row.reduced and first is not None:  # rules are asked of all its tags
            tags = first.tags.to_json()
            connection.execute(sa.update(series).where(series.c.id == row.id).values(tags=tags, reduced=False))
    return {(row.study_id, row.series_instance_uid): row.id for row in rows}


def series_row(
    study_id: int, uid: str, tags: Tags, origin: Origin, *, now: datetime, origin_job: int = 0
) -> dict[str, Any]:
    """A row for a series that is new to the ledger; it counts nothing yet."""
    return {
        "study_id": study_id,
        "series_instance_uid": uid,
        "origin_job": origin_job,
        "modality": tags.get("Modality", ""),
        "series_description": tags.get("SeriesDescription", ""),
        "calling_ae": origin.calling_ae,
        "called_ae": origin.called_ae,
        "address": origin.address,
        "tags": tags.to_json(),
        "instances": 0,
        "size_bytes": 0,
        "first_received": now,
        "last_received": now,
    }
