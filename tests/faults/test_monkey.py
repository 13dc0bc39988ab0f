"""PostgreSQL dies, hangs and is away under load, with each service a command of its own: nothing is lost or twice."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ledger_scu import Load
from real import Real
from stage import Pool

from serving import APART, Serving, until
from sink import Sink

pytestmark = pytest.mark.server

POSTGRESQL = Path("/usr/lib/postgresql")
AS_POSTGRES = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()

#: In CI, and under `make soak`.
SHORT_SECONDS, LONG_SECONDS = 60, 300
SHORT_PAUSE, LONG_PAUSE = 60, 600


@dataclass
class Cluster:
    """A PostgreSQL of our own that can be killed; durable, unlike that of other tests."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """Of its only database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def control(self, *arguments: str) -> None:
        """`pg_ctl`."""
        programs = max(POSTGRESQL.glob("*/bin"))
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        subprocess.run(
            [*AS_POSTGRES, programs / "pg_ctl", "-D", self.folder / "cluster", "-s", "-w", "-l", self.folder / "log",
             "-o", options, *arguments], check=True, cwd=self.folder, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self) -> None:
        """Returns when it answers."""
        self.control("start")

    def kill(self) -> None:
        """As a power cut: nothing is finished, nothing is said."""
        self.control("-m", "immediate", "stop")

    def pids(self) -> list[int]:
        """All its processes."""
        first = int((self.folder / "cluster" / "postmaster.pid").read_text().split()[0])
        said = subprocess.run(["ps", "-o", "pid=", "--ppid", str(first)], capture_output=True, text=True, check=False)
        return [first, *map(int, said.stdout.split())]

    def hang(self, *, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after that long."""
        stopped = self.pids()
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster with one empty database, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="talaria-monkey-", dir="/tmp"))
    if AS_POSTGRES:
        shutil.chown(folder, "postgres", "postgres")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    initdb = (max(POSTGRESQL.glob("*/bin")) / "initdb", "-D", folder / "cluster", "-U", "postgres", "-A", "trust", "-N")
    subprocess.run([*AS_POSTGRES, *initdb, "-E", "UTF8"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    found = Cluster(folder, port)
    found.start()
    yield found
    with contextlib.suppress(subprocess.CalledProcessError):
        found.kill()
    shutil.rmtree(folder)


@pytest.fixture
def apart(tmp_path: Path, cluster: Cluster, far_end: Sink, pool: Pool) -> Iterator[Real]:
    """A home on it, each service a command of its own, two routers and two dispatchers; under load."""
    found = Real(Serving(tmp_path, url=cluster.url, apart=APART), far_end, pool)
    found.prepare()
    found.serving.start()
    yield found
    found.serving.abandon()


@contextlib.contextmanager
def load(real: Real) -> Iterator[Load]:
    """Studies come all the time."""
    sender = Load(real.scu(), (real.pool.study(number) for number in range(1000, 9000)))
    sender.start()
    yield sender
    sender.stop()


def all_is_well(real: Real, sender: Load, *, case: str, duplicates: int) -> None:
    """Everything that was acknowledged arrives, every event is there, nothing has two rows."""
    assert sender.sent > 0
    real.settle(seconds=120)
    assert [] == [process.pid for process in real.serving.processes if process.poll() is not None]
    assert 0 == real.serving.stop()
    real.check().expect(duplicates=duplicates, case=case)


def killed_for(real: Real, cluster: Cluster, *, seconds: float, seed: int) -> None:
    """Kill the database every few seconds for so long."""
    chance, kills, deadline = random.Random(seed), 0, time.monotonic() + seconds
    with load(real) as sender:
        while time.monotonic() < deadline:
            time.sleep(chance.uniform(1, 6))
            cluster.kill()
            time.sleep(chance.uniform(0, 2))
            cluster.start()
            kills += 1
    all_is_well(real, sender, case=f"seed {seed}: {kills} kills of the database", duplicates=4 * kills)


def away_for(real: Real, cluster: Cluster, *, seconds: float) -> None:
    """The database is stopped for so long: every image is taken as before, and answered as soon."""
    with load(real) as sender:
        until(lambda: sender.studies > 2, seconds=60, what="the first studies")
        cluster.kill()
        before = sender.studies
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert real.scu().echo() <= 2.0
            time.sleep(1)
        assert sender.studies > before, "nothing was taken while the database was away"
        cluster.start()
    all_is_well(real, sender, case=f"database away for {seconds:.0f} s", duplicates=8)


def test_database_killed_every_few_seconds(apart: Real, cluster: Cluster) -> None:
    """
    For a minute: 0 lost, 0 events missing, 0 rows twice, and no service need be restarted (case 31).
    """
    killed_for(apart, cluster, seconds=SHORT_SECONDS, seed=20260105)


def test_database_away(apart: Real, cluster: Cluster) -> None:
    """
    For a minute: images are taken and answered all the while, and all goes on by itself (R13; cases 30, 79).
    """
    away_for(apart, cluster, seconds=SHORT_PAUSE)


def test_database_hangs(apart: Real, cluster: Cluster) -> None:
    """
    SIGSTOP for 20 s: no answer waits for the database (case 32).
    """
    with load(apart) as sender:
        until(lambda: sender.studies > 2, seconds=60, what="the first studies")
        before = sender.studies
        cluster.hang(seconds=20)
        assert sender.studies > before
        assert sender._scu.longest_seconds <= 2.0
    all_is_well(apart, sender, case="database hangs", duplicates=8)


def test_database_away_at_the_start(tmp_path: Path, cluster: Cluster, far_end: Sink, pool: Pool) -> None:
    """
    The receiver accepts, the files wait in `new/`, and all goes on when the database comes (case 30).
    """
    real = Real(Serving(tmp_path, url=cluster.url, apart=APART), far_end, pool)
    real.prepare()
    cluster.kill()
    try:
        real.serving.start()
        assert [] == real.send(studies=3)
        assert 6 == len(list((real.spool / "new").iterdir()))
        cluster.start()
        real.settle(seconds=60)
        assert 0 == real.serving.stop()
    finally:
        real.serving.abandon()
    real.check().expect(duplicates=0, case="database away at the start")


@pytest.mark.soak
def test_database_killed_for_long(apart: Real, cluster: Cluster) -> None:
    """
    The same for five minutes; `TALARIA_SOAK_SEED` repeats one that failed.
    """
    killed_for(apart, cluster, seconds=LONG_SECONDS, seed=int(os.environ.get("TALARIA_SOAK_SEED", str(time.time_ns()))))


@pytest.mark.soak
def test_database_away_for_long(apart: Real, cluster: Cluster) -> None:
    """
    Ten minutes.
    """
    away_for(apart, cluster, seconds=LONG_PAUSE)
