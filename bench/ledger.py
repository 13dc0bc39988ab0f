"""
The ledger as a queue: jobs through claim and end by the second, and how long a job waits that is due.

    python -m bench.ledger [--quick]

On SQLite, and on a PostgreSQL cluster of its own with `fsync=on`, in a temporary folder on the disk (not in memory).
As in life, who makes jobs and who takes them are processes of their own: a worker process runs a `Loop` of 8 lanes
whose step is `Jobs.claim` and `Jobs.end` with nothing in between. Beside it stands what one sync takes on that disk.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles

import sqlalchemy as sa

from bench import measure
from talaria.model.job import Event, Extent, Kind
from talaria.services.loop import Loop
from talaria.store.clock import DatabaseClock
from talaria.store.jobs import Jobs, NewJob, make_job
from talaria.store.ledger import Ledger, insert_one
from talaria.store.schema import cases, events, jobs, series, studies

LANES = 8
TARGETS = 4
SPOOL = "BENCH"
#: Jobs by the second while latency is measured.
RATE = 20.0
_POSTGRESQL = Path("/usr/lib/postgresql")
_AS_POSTGRES = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()


# -- the two databases --


@contextmanager
def postgresql() -> Iterator[str]:
    """A cluster with the settings that PostgreSQL comes with; its address."""
    programs = max(_POSTGRESQL.glob("*/bin"), default=_POSTGRESQL)
    folder = Path(tempfile.mkdtemp(prefix="talaria-bench-", dir="/var/tmp"))
    if _AS_POSTGRES:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = (*_AS_POSTGRES, programs / "pg_ctl", "-D", folder / "cluster", "-s", "-w")
    initdb = (programs / "initdb", "-D", folder / "cluster", "-U", "postgres", "-A", "trust", "-E", "UTF8")
    subprocess.run([*_AS_POSTGRES, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], check=True, cwd=folder)
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=folder)
        shutil.rmtree(folder)


@contextmanager
def sqlite() -> Iterator[str]:
    """A file on the disk; its address."""
    with tempfile.TemporaryDirectory(prefix="talaria-bench-", dir="/var/tmp") as folder:
        yield f"sqlite:///{folder}/ledger.db"


DATABASES = {"SQLite": sqlite, "PostgreSQL": postgresql}


# -- who makes jobs, and who takes them --


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The study, series and case that all jobs are about."""

    study_id: int
    series_id: int
    case_id: int


def make_subject(ledger: Ledger, now: datetime) -> Subject:
    """One study of one series."""
    with ledger.writing("bench.subject") as connection:
        study_id = insert_one(
            connection, studies, study_instance_uid="1.2", patient_id="", patient_name="", accession_number="",
            study_date="", study_description="", first_received=now, last_received=now,
        )  # fmt: skip
        series_id = insert_one(
            connection, series, study_id=study_id, series_instance_uid="1.2.3", modality="CT", series_description="",
            calling_ae="", called_ae="", address="", tags="{}", instances=1, size_bytes=1, first_received=now,
            last_received=now,
        )  # fmt: skip
        case_id = insert_one(
            connection, cases, study_id=study_id, series_id=series_id, rule="r", revision=1, state="closed",
            reason="", opened=now, updated=now,
        )  # fmt: skip
    return Subject(study_id=study_id, series_id=series_id, case_id=case_id)


def make(ledger: Ledger, subject: Subject, numbers: Sequence[int], *, now: datetime) -> None:
    """Jobs, in one transaction."""
    with ledger.writing("bench.make") as connection:
        for number in numbers:
            new = NewJob(
                kind=Kind.DISPATCH, rule="r", revision=1, target=f"t{number % TARGETS}",
                extents=(Extent(series_id=subject.series_id, first=number, last=number),),
            )  # fmt: skip
            make_job(
                connection, new, study_id=subject.study_id, series_id=subject.series_id, case_id=subject.case_id,
                spool=SPOOL, now=now,
            )  # fmt: skip


class Taker:
    """A worker whose work is nothing but the ledger's."""

    name = "taker"
    lanes = LANES

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self.jobs, self._owner, self._clock = Jobs(ledger), owner, DatabaseClock(ledger)

    def step(self, now: datetime) -> bool:
        """Claim a job, and finish it."""
        claim = self.jobs.claim(
            Kind.DISPATCH, owner=self._owner, spools=[SPOOL], now=now, clock=self._clock, off_peak=True
        )  # fmt: skip
        if claim is None:
            return False
        self.jobs.end(claim, Event.FINISH, now=self._clock())
        return True

    def idle(self, now: datetime) -> timedelta:
        """Until the next job is due."""
        due = self.jobs.next_due(Kind.DISPATCH)
        return timedelta(seconds=1) if due is None or due <= now else due - now


def take(url: str) -> None:
    """Run a taker until standard input ends."""
    ledger = Ledger.open(url)
    taker = Taker(ledger, owner=f"bench/{os.getpid()}")
    loop = Loop(taker, ledger=ledger, clock=DatabaseClock(ledger))
    taker.jobs.tell(loop.wake)
    sys.stdin.readline()
    began = time.process_time()
    loop.start()
    sys.stdin.read()
    loop.stop()
    print(time.process_time() - began)


@contextmanager
def takers(url: str, count: int) -> Iterator[list[float]]:
    """So many processes that take; afterwards, the processor seconds that they used."""
    command = [sys.executable, "-m", "bench.ledger", "--take", url]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    used: list[float] = []
    threading.Event().wait(1.5)  # until all have imported what they need
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    try:
        yield used
    finally:
        used += [float(process.communicate()[0]) for process in running]


# -- what is measured --


def throughput(ledger: Ledger, url: str, subject: Subject, *, count: int, processes: int) -> tuple[float, float]:
    """Jobs by the second through claim and end, and processor milliseconds of the takers for each."""
    for first in range(0, count, 500):
        make(ledger, subject, range(first, min(first + 500, count)), now=datetime.now(UTC))
    with takers(url, processes) as used:
        measure.until(lambda: _ended(ledger) >= count, seconds=120, what="all jobs done")
    with ledger.reading() as connection:
        claimed = sa.select(sa.func.min(events.c.time)).where(events.c.kind == "job.claim")
        finished = sa.select(sa.func.max(events.c.time)).where(events.c.kind == "job.finish")
        began, ended = connection.execute(claimed).scalar_one(), connection.execute(finished).scalar_one()
    return count / (ended - began).total_seconds(), 1000 * sum(used) / count


def _ended(ledger: Ledger) -> int:
    with ledger.glancing() as connection:
        return int(connection.execute(sa.select(sa.func.count()).where(jobs.c.state == "done")).scalar_one())


def latencies(ledger: Ledger, url: str, subject: Subject, *, seconds: float, after: int) -> list[float]:
    """Milliseconds from when a job is made, due, to its claim, at `RATE`."""
    clock = DatabaseClock(ledger)
    with takers(url, 1):
        threading.Event().wait(1)
        began = time.monotonic()
        for number in range(int(seconds * RATE)):
            threading.Event().wait(max(0.0, began + number / RATE - time.monotonic()))
            make(ledger, subject, [1_000_000 + number], now=clock())
        threading.Event().wait(3)
    with ledger.reading() as connection:
        claim = sa.select(events.c.job_id, sa.func.min(events.c.time).label("time")).where(
            events.c.kind == "job.claim"
        ).group_by(events.c.job_id).subquery()  # fmt: skip
        rows = connection.execute(
            sa.select(jobs.c.created, claim.c.time).join(claim, claim.c.job_id == jobs.c.id).where(jobs.c.id > after)
        ).all()
    assert len(rows) == int(seconds * RATE), f"{len(rows)} of {int(seconds * RATE)} were claimed"
    return [1000 * (row.time - row.created).total_seconds() for row in rows]


def sync_milliseconds(folder: str = "/var/tmp") -> float:
    """The median of what one sync takes on the disk."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        found = []
        for _ in range(101):
            file.write(bytes(8192))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            found.append(time.perf_counter() - began)
    return 1000 * measure.middle(found)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=sorted(DATABASES))
    parser.add_argument("--take", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.take:
        take(given.take)
        return
    count, seconds = (1000, 5.0) if given.quick else (4000, 30.0)
    print(
        f"{LANES} lanes in one process, {TARGETS} targets; a sync takes {sync_milliseconds():.2f} ms; {measure.load()}"
    )
    print(f"{'':12}{'jobs/s':>8}{'CPU/job':>9}{'p50':>8}{'p95':>8}{'most':>8}   from due to claimed, {RATE:.0f} jobs/s")
    for name, database in DATABASES.items():
        if given.only not in (None, name):
            continue
        with database() as url:
            ledger = Ledger.open(url)
            ledger.migrate(now=datetime.now(UTC))
            subject = make_subject(ledger, datetime.now(UTC))
            rate, cost = throughput(ledger, url, subject, count=count, processes=1)
            found = sorted(latencies(ledger, url, subject, seconds=seconds, after=count))
            p50, p95 = measure.middle(found), quantiles(found, n=20)[18]
            print(f"{name:12}{rate:8.0f}{cost:6.2f} ms{p50:5.0f} ms{p95:5.0f} ms{found[-1]:5.0f} ms", flush=True)
            ledger.close()


if __name__ == "__main__":
    main()
