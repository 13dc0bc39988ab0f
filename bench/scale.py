"""
P13, cost as the work grows: the same acts on a ledger with a thousand stored series and on one with a million.

    python -m bench.scale [--quick] [--series N] [--jobs N] [--small N] [--tags BYTES] [--postgresql URL]

Both ledgers are filled in bulk, mostly with what is over long since and a queue of the same size in each. Each act is
done on one and the other in turns; told is the least time of each, and their ratio: 1.00 is flat.
"""

import argparse
import json
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from bench import measure
from talaria.model.dicom import UID, Instance, Origin, Tags
from talaria.model.job import Event, Kind
from talaria.model.plan import plan_series
from talaria.model.rulebook import Rulebook, Shelves, parse
from talaria.model.ulid import ulid
from talaria.store import schema
from talaria.store.arrivals import Arrival, Arrivals
from talaria.store.cases import Cases
from talaria.store.cleaning import Cleaning, Place
from talaria.store.compaction import Compaction
from talaria.store.jobs import Jobs
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing
from talaria.store.pruning import Pruning
from talaria.store.selection import Selection
from talaria.targets.folder import Folder

CT = "1.2.840.10008.5.1.4.1.1.2"
SPOOL = "01J00000000000000000000000"
RULES, TARGETS, SENDERS = 40, 12, 20
ROUNDS = 15
#: Jobs that are not over, the same in both ledgers: what differs is what is stored.
QUEUE = 500

#: Of the jobs that are over, how many failed, and how many were cancelled, the same in both, too; the rest is done.
FAILED = 100
DAY = timedelta(days=1)

Row = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a ledger has."""

    series: int
    jobs: int
    tag_bytes: int
    now: datetime

    @property
    def studies(self) -> int:
        """Three series to a study, as many have."""
        return max(1, self.series // 3)

    def moment(self, number: int, of: int) -> datetime:
        """When the *number*th of its kind came: evenly over the last four hundred days, the last an hour ago."""
        return self.now - timedelta(hours=1) - DAY * 400 * (1 - number / of)


# -- filling --


def fill(ledger: Ledger, size: Size) -> None:
    """Fill an empty ledger in bulk, without its indexes, and make them after."""
    indexes = [index for table in schema.metadata.sorted_tables for index in table.indexes]
    with ledger.engine.begin() as connection:
        for index in indexes:
            index.drop(connection)
    tables: list[tuple[sa.Table, Iterable[Row]]] = [
        (schema.studies, _studies(size)),
        (schema.series, _series(size)),
        (schema.instances, _instances(size)),
        (schema.cases, _cases(size)),
        (schema.case_series, ((n, n, 1) for n in range(1, size.series + 1))),
        (schema.jobs, _jobs(size)),
        (schema.job_series, ((n, _series_of(n, size), 1, 1) for n in range(1, size.jobs + 1))),
        (schema.deliveries, _deliveries(size)),
        (schema.outcomes, _outcomes(size)),
        (schema.events, _events(size)),
        (schema.runs, _runs(size)),
    ]
    write = _write_sqlite if ledger.engine.dialect.name == "sqlite" else _write_postgresql
    write(ledger, tables)
    with ledger.engine.begin() as connection:
        for index in indexes:
            index.create(connection)
    _count_rows(ledger)


def _count_rows(ledger: Ledger) -> None:
    if ledger.engine.dialect.name == "sqlite":
        Pruning(ledger).take_stock()
        Pruning(ledger).checkpoint()
        return
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


def _write_sqlite(ledger: Ledger, tables: Sequence[tuple[sa.Table, Iterable[Row]]]) -> None:
    connection = sqlite3.connect(str(ledger.engine.url.database), isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("BEGIN IMMEDIATE")
    for table, rows in tables:
        names = _columns(table)
        marks = ",".join("?" * len(names))
        connection.executemany(
            f"INSERT INTO {table.name} ({','.join(names)}) VALUES ({marks})",
            (tuple(_for_sqlite(value) for value in row) for row in rows),
        )
    connection.execute("COMMIT")
    connection.close()


def _for_sqlite(value: object) -> object:
    return f"{value:%Y-%m-%d %H:%M:%S.%f}" if isinstance(value, datetime) else value


def _write_postgresql(ledger: Ledger, tables: Sequence[tuple[sa.Table, Iterable[Row]]]) -> None:
    address = ledger.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("SET session_replication_role = replica")  # no look for each foreign key: they are right
        for table, rows in tables:
            names = ", ".join(_columns(table))
            with cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            if "id" in table.c and isinstance(table.c.id.type, sa.BigInteger):
                cursor.execute(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), "
                    f"(SELECT coalesce(max(id), 1) FROM {table.name}))"
                )


#: What the generators below write, by table; the other columns have their defaults.
_COLUMNS = {
    "studies": "id study_instance_uid patient_id patient_name accession_number study_date study_description "
    "first_received last_received",
    "series": "id study_id series_instance_uid modality series_description calling_ae called_ae address tags instances "
    "size_bytes first_received last_received portions asked settled due dropped",
    "instances": "id series_id sop_instance_uid sop_class_uid transfer_syntax_uid size_bytes sha256 spool association "
    "received portion flags dropped",
    "cases": "id study_id series_id rule revision state reason opened updated",
    "jobs": "id kind state study_id series_id case_id rule revision target priority supplement attempt reason created "
    "due updated since spool ready key",
    "deliveries": "id job_id target total sent size_bytes seconds compacted digest plain",
    "outcomes": "delivery_id instance_id standing status detail attempt times_sent time",
    "events": "time kind actor study_id series_id job_id detail",
    "runs": "job_id attempt step module code reason seconds log ended",
}


def _columns(table: sa.Table) -> list[str]:
    return _COLUMNS[table.name].split() if table.name in _COLUMNS else [column.name for column in table.c]


def _studies(size: Size) -> Iterator[Row]:
    for n in range(1, size.studies + 1):
        moment = size.moment(n, size.studies)
        yield (
            n, f"1.2.3.{n}", f"P{n % (size.studies // 2 + 1)}", f"NAME{n}", f"A{n}", f"{moment:%Y%m%d}",
            f"STUDY {n % 97}", moment, moment,
        )  # fmt: skip


def _study_of(series_id: int, size: Size) -> int:
    return min((series_id - 1) // 3 + 1, size.studies)


def _series_of(job_id: int, size: Size) -> int:
    return (job_id - 1) * size.series // size.jobs + 1


def _document(n: int, size: Size) -> str:
    names = {"Modality": "CT", "PatientID": f"P{n}", "SeriesDescription": f"S{n % 50}", "StudyDescription": "CHEST"}
    return json.dumps({**names, "ImageComments": "x" * max(0, size.tag_bytes - 100)}, separators=(",", ":"))


def _is_kept(n: int, of: int) -> bool:
    """The last few have files still: a disk holds days, a ledger holds years."""
    return n > of - min(of // 2, QUEUE)


def _series(size: Size) -> Iterator[Row]:
    for n in range(1, size.series + 1):
        study = _study_of(n, size)
        moment = size.moment(study, size.studies)
        kept = _is_kept(n, size.series)
        yield (
            n, study, f"1.2.3.{study}.{n}", "CT", f"S{n % 50}", f"AE{n % SENDERS}", "TALARIA", "10.0.0.1",
            _document(n, size), 1 if kept else 0, 512_000 if kept else 0, moment, moment, 1,
            f'["r{n % RULES}"]', kept, None, None if kept else moment + 3 * DAY,
        )  # fmt: skip


def _instances(size: Size) -> Iterator[Row]:
    for n in range(1, size.series + 1):
        study = _study_of(n, size)
        moment = size.moment(study, size.studies)
        yield (
            _id(n), n, f"1.2.3.{study}.{n}.1", CT, "1.2.840.10008.1.2.1", 512_000, n.to_bytes(32, "big"), SPOOL, "",
            moment, 1, "", None if _is_kept(n, size.series) else moment + 3 * DAY,
        )  # fmt: skip


def _id(number: int) -> str:
    return ulid(number, number.to_bytes(10, "big"))


def _cases(size: Size) -> Iterator[Row]:
    for n in range(1, size.series + 1):
        study = _study_of(n, size)
        moment = size.moment(study, size.studies)
        state = "closed" if _is_kept(n, size.series) else "cleaned"
        yield n, study, n, f"r{n % RULES}", 1, state, "", moment, moment


def _state(n: int, size: Size) -> str:
    if n > size.jobs - QUEUE:
        return "deferred" if n % 5 == 0 else "pending"
    place = n % max(1, (size.jobs - QUEUE) // FAILED)
    return {1: "failed", 2: "cancelled"}.get(place, "done")


def _kind(n: int) -> str:
    return "process" if n % 10 == 0 else "dispatch"


def _jobs(size: Size) -> Iterator[Row]:
    for n in range(1, size.jobs + 1):
        of = _series_of(n, size)
        moment, state, kind = size.moment(n, size.jobs), _state(n, size), _kind(n)
        due = size.now + timedelta(minutes=5) if state == "deferred" else moment
        yield (
            n, kind, state, _study_of(of, size), of, of, f"r{n % RULES}", 1,
            f"t{n % TARGETS}" if kind == "dispatch" else None, 1, 0, int(state != "pending"),
            "refused" if state in {"failed", "deferred"} else "", moment, due, moment, moment, SPOOL,
            state == "pending", f"{kind}:{n:064d}",
        )  # fmt: skip


def _deliveries(size: Size) -> Iterator[Row]:
    plain = '{"standing":"sent","status":0,"attempt":1,"count":1,"time":"2026-01-01T00:00:00+00:00"}'
    for n in range(1, size.jobs + 1):
        if _kind(n) != "dispatch":
            continue
        is_done = _state(n, size) == "done"
        is_compacted = is_done and n % 50 != 0
        yield (
            _id(n), n, f"t{n % TARGETS}", 1, int(is_done), 512_000, 0.1,
            size.now if is_done else None, bytes(32) if is_compacted else None, plain if is_compacted else None,
        )  # fmt: skip


def _outcomes(size: Size) -> Iterator[Row]:
    """Of one in fifty that the far end had a word on."""
    for n in range(50, size.jobs + 1, 50):
        if _kind(n) == "dispatch" and _state(n, size) == "done":
            yield _id(n), _id(_series_of(n, size)), "warned", 0xB000, "coerced", 1, 1, size.moment(n, size.jobs)


def _events(size: Size) -> Iterator[Row]:
    for n in range(1, size.jobs + 1):
        of = _series_of(n, size)
        moment, study = size.moment(n, size.jobs), _study_of(of, size)
        yield moment, "series.asked", "", study, of, None, '{"revision":1,"fired":["r1"],"settled":true}'
        yield moment, "job.made", "", study, of, n, '{"job_kind":"dispatch","rule":"r1"}'
        if n <= size.jobs - QUEUE:
            yield moment, "job.claim", "host/1/1", study, of, n, '{"state":"active","attempt":1}'
            yield moment, "job.finish", "host/1/1", study, of, n, '{"state":"done","attempt":1}'


def _runs(size: Size) -> Iterator[Row]:
    for n in range(10, size.jobs + 1, 10):
        yield n, 1, 1, "lung", 0, "", 10.0, "log" if n > size.jobs - 1000 else "", size.moment(n, size.jobs)


# -- the acts --


class Acts:
    """What services and pages do to one ledger."""

    def __init__(self, ledger: Ledger, size: Size) -> None:
        self.ledger, self.size, self.clock = ledger, size, size.now
        self.arrivals, self.cases, self.jobs = Arrivals(ledger), Cases(ledger), Jobs(ledger)
        self.cleaning, self.listing, self.compaction = Cleaning(ledger), Listing(ledger), Compaction(ledger)
        self.book = _book()
        self.middle = size.jobs // 2
        self.moment = size.moment(size.jobs - 100, size.jobs)
        self._batch = 0

    def all(self) -> dict[str, Callable[[], object]]:
        """By what they are called in the table; each call does one."""
        listing, cleaning = self.listing, self.cleaning
        deep = listing.studies(limit=50).next
        for _ in range(5):
            deep = listing.studies(limit=50, after=deep).next
        middle = str(self.middle)
        some_study = f"1.2.3.{self.size.studies // 2}"
        place = Place(moment=self.size.moment(self.size.studies - 5, self.size.studies), series_id=0)
        return {
            "receive: a batch of 50, 5 series": self.receive,
            "receive: the same 50 again": self.receive_again,
            "router: due series, plan, apply": self.route,
            "router: next due": self.cases.next_due,
            "claim and end of a job": self.claim_and_end,
            "next due job": lambda: self.jobs.next_due(Kind.DISPATCH),
            "expire": lambda: self.jobs.expire(now=self.clock, is_dead=lambda _: False),
            "cleaner: a page of candidates": lambda: cleaning.candidates(spool=SPOOL, before=self.clock),
            "cleaner: a later page": lambda: cleaning.candidates(spool=SPOOL, before=self.clock, after=place),
            "cleaner: condemned": lambda: cleaning.condemned(spool=SPOOL),
            "compaction: a step": lambda: self.compaction.step(after=0, now=self.clock, aged=400 * DAY),
            "studies": listing.studies,
            "studies: a deep page": lambda: listing.studies(after=deep),
            "studies: failed": lambda: listing.studies(state="failed", limit=1),
            "studies: pending": lambda: listing.studies(state="pending"),
            "studies: done": lambda: listing.studies(state="done"),
            "studies: receiving": lambda: listing.studies(state="receiving"),
            "studies: by accession number": lambda: listing.studies(find=f"A{self.size.studies // 2}"),
            "a study's life": lambda: listing.study(some_study),
            "an instance's history": lambda: listing.instance(self.some_instance()),
            "jobs": listing.jobs,
            "jobs: a deep page": lambda: listing.jobs(after=middle),
            "jobs: done, deep": lambda: listing.jobs(state="done", after=middle),
            "jobs: of a rule": lambda: listing.jobs(rule="r7"),
            "jobs: of a rule that has none": lambda: listing.jobs(rule="none"),
            "jobs: pending, of a target": lambda: listing.jobs(state="pending", target="t7"),
            "jobs: since a moment": lambda: listing.jobs(selection=Selection(since=self.moment)),
            "jobs: of a study": lambda: listing.jobs(selection=Selection(study_uid=some_study)),
            "deliveries": listing.deliveries,
            "deliveries: a deep page": lambda: listing.deliveries(after=middle),
            "deliveries: to a target": lambda: listing.deliveries(target="t7"),
            "deliveries: pending": lambda: listing.deliveries(state="pending"),
            "events after": lambda: listing.events(after=self.middle),
            "the queue": listing.queue,
            "services, for health": lambda: listing.workers(since=self.clock - DAY),
            "received, for metrics": listing.instances_received,
            "pruning: tags, logs": self.prune,
        }

    def some_instance(self) -> str:
        """One of the middle."""
        n = self.size.series // 2
        return f"1.2.3.{_study_of(n, self.size)}.{n}.1"

    def receive(self) -> None:
        """New series of a new study."""
        self._batch += 1
        self.arrivals.record(_batch(f"1.9.{self._batch}", self.clock), now=self.clock, quiet=timedelta(0))

    def receive_again(self) -> None:
        """What came before."""
        self.arrivals.record(_batch(f"1.9.{self._batch}", self.clock), now=self.clock, quiet=timedelta(0))

    def route(self) -> None:
        """The series due longest."""
        series_id = self.cases.due_series(self.clock)
        assert series_id is not None
        view = self.cases.series_view(series_id)
        plan = plan_series(view, active=self.book, revisions=lambda _: self.book, now=self.clock)
        self.cases.apply_series(view, plan, revision=1, now=self.clock)

    def claim_and_end(self) -> None:
        """The next job of the queue."""
        claim = self.jobs.claim(Kind.DISPATCH, owner="h/1/1", spools=[SPOOL], now=self.clock, off_peak=True)
        assert claim is not None
        self.jobs.end(claim, Event.FINISH, now=self.clock)

    def prune(self) -> None:
        """A piece of each that has something to do in neither."""
        Pruning(self.ledger).reduce_tags(before=self.clock - 500 * DAY)
        Pruning(self.ledger).drop_logs(now=self.clock - 100 * DAY, before=self.clock - 500 * DAY)


def _book() -> Rulebook:
    text = "targets: {out: {kind: folder, path: /nonexistent}}\nrules: {all: {when: 'True', send: [out]}}\n"
    return parse(text, shelves=Shelves(targets={"folder": Folder}), number=1)


def _batch(study: str, now: datetime) -> list[Arrival]:
    return [
        Arrival(
            instance=Instance(
                id=ulid(int(now.timestamp() * 1000), secrets.token_bytes(10)), sop_instance_uid=UID(f"{study}.{s}.{i}"),
                sop_class_uid=UID(CT), series_instance_uid=UID(f"{study}.{s}"), study_instance_uid=UID(study),
                transfer_syntax_uid=UID("1.2.840.10008.1.2.1"), size_bytes=512_000, sha256=f"{s * 100 + i:064x}",
                spool=SPOOL, received=now,
            ),
            origin=Origin(calling_ae="AE1", called_ae="TALARIA", address="10.0.0.1"), association="",
            tags=Tags({"Modality": "CT", "PatientID": "P", "SeriesDescription": f"S{s}"}),
        )
        for s in range(1, 6) for i in range(10)
    ]  # fmt: skip


# -- measuring --


def compare(small: Acts, large: Acts) -> None:
    """Do each act on one and the other in turns, and print a line for each."""
    print(f"{'milliseconds, the least of ' + str(ROUNDS):40} {small.size.series:>10,} {large.size.series:>10,}   ratio")
    ones, others = small.all(), large.all()
    for name in ones:
        times: dict[str, list[float]] = {"small": [], "large": []}
        for _ in range(ROUNDS):
            for which, act in (("small", ones[name]), ("large", others[name])):
                began = time.perf_counter()
                act()
                times[which].append((time.perf_counter() - began) * 1000)
        one, other = min(times["small"]), min(times["large"])
        print(f"{name:40} {one:10.2f} {other:10.2f} {other / one:7.2f}", flush=True)


def on(small_url: str, large_url: str, options: argparse.Namespace) -> None:
    """Fill both, compare, and say what a row takes."""
    now = datetime.now(UTC)
    acts = []
    for url, series, jobs in ((small_url, options.small, options.small), (large_url, options.series, options.jobs)):
        ledger = Ledger.open(url)
        ledger.migrate(now=now)
        began = time.perf_counter()
        size = Size(series=series, jobs=jobs, tag_bytes=options.tags, now=now)
        fill(ledger, size)
        print(f"filled with {series:,} series, {jobs:,} jobs in {time.perf_counter() - began:.0f} s", flush=True)
        acts.append(Acts(ledger, size))
    compare(*acts)
    for act in acts:
        act.ledger.close()


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--tags", type=int, default=800)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument(
        "--postgresql", default="", help="a server's address; two databases are made there, and dropped"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    options = parser.parse_args()
    if options.quick:
        options.series, options.jobs = options.series // 10, options.jobs // 10
    folder = Path(tempfile.mkdtemp(prefix="talaria-scale-", dir=options.folder))
    try:
        if options.postgresql:
            _on_postgresql(options)
        else:
            print(f"SQLite in {options.folder} ({measure.load()})")
            on(f"sqlite:///{folder}/small.db", f"sqlite:///{folder}/large.db", options)
            print(f"the large ledger: {(folder / 'large.db').stat().st_size / 1e6:,.0f} MB")
    finally:
        shutil.rmtree(folder)


def _on_postgresql(options: argparse.Namespace) -> None:
    print(f"PostgreSQL ({measure.load()})")
    names = [f"talaria_scale_{secrets.token_hex(4)}" for _ in range(2)]
    with psycopg.connect(f"{options.postgresql}/postgres", autocommit=True) as server:
        for name in names:
            server.execute(f'CREATE DATABASE "{name}"')
        try:
            on(f"{options.postgresql}/{names[0]}", f"{options.postgresql}/{names[1]}", options)
        finally:
            for name in names:
                server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


if __name__ == "__main__":
    main()
