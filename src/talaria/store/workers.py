"""Who works on this ledger: services say that they live, and when they stop."""

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from talaria.store.ledger import Ledger
from talaria.store.schema import workers

#: Not heard of for longer, a service is taken for dead.
SILENCE = timedelta(seconds=15)


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of ours on some host; `owner` names it and no other that comes after it under the same number."""

    host: str
    pid: int
    started: str
    """The kernel's start time of the process, so that a number used again is not mistaken."""

    @property
    def owner(self) -> str:
        """As written in leases."""
        return f"{self.host}/{self.pid}/{self.started}"

    @classmethod
    def own(cls) -> "Process":
        """This process."""
        return cls(host=os.uname().nodename[:40], pid=os.getpid(), started=_start_time(os.getpid()) or "0")


def is_dead(owner: str, *, host: str) -> bool:
    """Whether an owner is a process of this host that runs no more; of other hosts we cannot tell."""
    named, _, rest = owner.partition("/")
    pid, _, started = rest.partition("/")
    if named != host or not pid.isdigit():
        return False
    return _start_time(int(pid)) != started.partition("/")[0]


def is_here(owner: str, *, host: str) -> bool:
    """Whether an owner is a process of this host, of which `is_dead` can tell."""
    return owner.partition("/")[0] == host


def _start_time(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5)


class Workers:
    """The services that were heard of."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def seen(self, process: Process, service: str, *, started: datetime, now: datetime) -> None:
        """Say that a service lives; forget those of long ago."""
        key = f"{process.owner}/{service}"[:80]
        with self._ledger.writing("workers.seen", is_synced=False) as connection:
            changed = connection.execute(sa.update(workers).where(workers.c.id == key).values(seen=now)).rowcount
            if not changed:
                connection.execute(sa.delete(workers).where(workers.c.seen < now - timedelta(days=1)))
                connection.execute(
                    workers.insert().values(
                        id=key, service=service, host=process.host, pid=process.pid, started=started, seen=now
                    )
                )

    def gone(self, process: Process, service: str) -> None:
        """Say that a service stopped in good order."""
        with self._ledger.writing("workers.gone") as connection:
            connection.execute(sa.delete(workers).where(workers.c.id == f"{process.owner}/{service}"[:80]))
