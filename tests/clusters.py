"""PostgreSQL clusters of our own, in temporary folders, on the loopback."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

POSTGRESQL = Path("/usr/lib/postgresql")
AS_POSTGRES = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()


@dataclass(frozen=True)
class Cluster:
    """One that runs."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        """Of its server, without a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}"

    def control(self, *command: str) -> None:
        """`pg_ctl`, waiting for what it does."""
        pg_ctl = programs() / "pg_ctl"
        subprocess.run(
            [*AS_POSTGRES, pg_ctl, "-D", self.folder / "cluster", "-s", "-w", *command], check=True, cwd=self.folder
        )

    def start(self, *settings: str) -> None:
        """Start its server, with settings `NAME=VALUE`."""
        own = (f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "fsync=off")
        options = " ".join(f"-c {setting}" for setting in (*own, *settings))
        self.control("-l", str(self.folder / "log"), "-o", options, "start")

    @contextmanager
    def hung(self) -> Iterator[None]:
        """All its processes stopped, as on a host that hangs: the kernel goes on to take what it is sent."""
        postmaster = int((self.folder / "cluster" / "postmaster.pid").read_text().split()[0])
        stopped = [postmaster, *_children(postmaster)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> Sequence[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def programs() -> Path:
    """Where PostgreSQL's programs are."""
    return max(POSTGRESQL.glob("*/bin"), default=POSTGRESQL)


@contextmanager
def cluster(*settings: str) -> Iterator[Cluster]:
    """A cluster with these settings, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="talaria-postgresql-", dir="/tmp"))
    if AS_POSTGRES:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = Cluster(folder, free.getsockname()[1])
    initdb = (programs() / "initdb", "-D", folder / "cluster", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
    subprocess.run([*AS_POSTGRES, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    made.start(*settings)
    try:
        yield made
    finally:
        made.control("-m", "immediate", "stop")
        shutil.rmtree(folder)
