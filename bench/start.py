"""
From a series' completion to its jobs' start: every service in a process of its own, on SQLite and on PostgreSQL.

    python -m bench.start

Series of one image arrive five a second; each is complete when it has been quiet for a second. Printed is how long
after that moment the router had made its jobs, and how long after it a worker had claimed them: what the services
themselves add to the quiet time.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from bench import measure
from talaria.dimse.files import Found, find_instances
from talaria.dimse.scu import Peer, Sender
from talaria.model.dicom import AETitle
from talaria.store.ledger import Ledger
from talaria.store.schema import events, jobs, series
from talaria.testing import synthetic_ct

SERIES, A_SECOND = 100, 5
QUIET = timedelta(seconds=1)
_TALARIA = (sys.executable, "-m", "talaria")
_PROGRAMS = Path("/usr/lib/postgresql")
_AS_POSTGRES = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()


def rulebook(root: Path) -> str:
    """Each series goes through a module, and its original to a folder."""
    return f"""
settings: {{series_quiet: {QUIET.total_seconds():.0f}s}}
targets: {{share: {{kind: folder, path: {root}/out}}}}
modules: {{same: {{builtin: pass}}}}
rules:
  route: {{when: "True", action: route, send: [share]}}
  process: {{when: "True", action: process, process: [same]}}
"""


@contextlib.contextmanager
def postgresql(root: Path) -> Iterator[str]:
    """A cluster of our own that syncs as in life; the address of its database."""
    folder = root / "postgresql"
    folder.mkdir()
    if _AS_POSTGRES:
        root.chmod(0o755)
        shutil.chown(folder, "postgres", "postgres")
    programs, port = max(_PROGRAMS.glob("*/bin")), _free_port()
    cluster = (*_AS_POSTGRES, programs / "pg_ctl", "-D", folder / "cluster", "-s", "-w")
    initdb = (programs / "initdb", "-D", folder / "cluster", "-U", "postgres", "-A", "trust", "-E", "UTF8")
    subprocess.run([*_AS_POSTGRES, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    subprocess.run([*cluster, "-l", folder / "log", "-o", options, "start"], check=True, cwd=folder)
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*cluster, "-m", "immediate", "stop"], check=True, cwd=folder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def serving(root: Path, url: str) -> Iterator[int]:
    """A home on that ledger, served whole; its DICOM port."""
    home, port = root / "home", _free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("TALARIA_")},
        "TALARIA_HOME": str(home), "TALARIA_DATABASE_URL": url, "TALARIA_DICOM_HOST": "127.0.0.1",
        "TALARIA_DICOM_PORT": str(port), "TALARIA_WEB_PORT": str(_free_port()),
    }  # fmt: skip
    for command, text in (("init",), None), (("apply", "-"), rulebook(root)):
        subprocess.run([*_TALARIA, *command], env=environment, input=text, text=True, check=True, capture_output=True)
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            [*_TALARIA, "serve"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        measure.until(lambda: _answers(port), seconds=30, what="reception")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def send(port: int, files: Sequence[Path]) -> None:
    """One series after the other, as many a second as said above."""
    found = [item for item in find_instances(files) if isinstance(item, Found)]
    peer = Peer(host="127.0.0.1", port=port, called_ae=AETitle("TALARIA"), calling_ae=AETitle("BENCH"))
    began = time.monotonic()
    for number, item in enumerate(found):
        time.sleep(max(0.0, began + number / A_SECOND - time.monotonic()))
        with Sender(peer, [item.context]) as sender:
            sender.store(item.path, context=item.context, sop_instance_uid=item.meta.sop_instance_uid)


def delays(ledger: Ledger, kind: str) -> tuple[list[float], list[float]]:
    """Milliseconds from completion to the job being made, and to its being claimed."""
    made: list[float] = []
    claimed: list[float] = []
    with ledger.reading() as connection:
        rows = connection.execute(
            sa.select(series.c.last_received, events.c.kind, events.c.time)
            .join(jobs, jobs.c.series_id == series.c.id)
            .join(events, events.c.job_id == jobs.c.id)
            .where(jobs.c.kind == kind, events.c.kind.in_(["job.made", "job.claim"]))
        )
        for row in rows:
            (made if row.kind == "job.made" else claimed).append(
                (row.time - row.last_received - QUIET).total_seconds() * 1000
            )
    return made, claimed


def _count(ledger: Ledger) -> int:
    with ledger.reading() as connection:
        over = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == "done")
        return int(connection.execute(over).scalar_one())


def one(root: Path, url: str, name: str) -> None:
    """Measure on one database, and print."""
    files = [synthetic_ct(root / f"in-{n}", seed=n, slices=1, side=64).paths[0] for n in range(SERIES)]
    with serving(root, url) as port:
        ledger = Ledger.open(url)
        send(port, files)
        measure.until(lambda: _count(ledger) == 2 * SERIES, seconds=120, what="the jobs")
        for kind in ("dispatch", "process"):
            for what, values in zip(("made", "claimed"), delays(ledger, kind), strict=True):
                values.sort()
                p95 = values[int(len(values) * 0.95)]
                print(f"{name:12}{kind:10}{what:9}{measure.middle(values):8.0f}{p95:8.0f}{values[-1]:8.0f}  ms")
        ledger.close()


def main() -> None:
    """See above."""
    print(f"{'':31}{'median':>8}{'p95':>8}{'most':>8}      ({SERIES} series, {A_SECOND}/s; {measure.load()})")
    with tempfile.TemporaryDirectory(prefix="talaria-bench-") as folder:
        root = Path(folder) / "sqlite"
        (root / "home").mkdir(parents=True)
        (root / "out").mkdir()
        one(root, f"sqlite:///{root}/home/ledger.db", "SQLite")
        root = Path(folder) / "cluster"
        (root / "out").mkdir(parents=True)
        Path(folder).chmod(0o755)
        with postgresql(root) as url:
            one(root, url, "PostgreSQL")


if __name__ == "__main__":
    main()
