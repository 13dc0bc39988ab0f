"""Who else is here: locks on a home, between its services and its upkeep, and a marker at the DICOM port."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from talaria.model.errors import ConfigError

#: Held shared by all services of a home on this machine, and alone by whoever replaces or migrates its ledger.
_UPKEEP_LOCK = "upkeep.lock"
#: Every address of a machine is one of these, too.
_ALL_ADDRESSES = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not bound to
#: Names of abstract sockets, as proc(5) lists them, begin so.
_MARK = "talaria-dicom"


@contextlib.contextmanager
def serving(home: Path) -> Iterator[None]:
    """
    Keep upkeep away from a home; children of this process keep it away for as long as they live.

    Raises:
        ConfigError: It is at work.
    """
    with _locked(home, fcntl.LOCK_SH) as got:
        if not got:
            raise ConfigError(
                f"home {home}: a `talaria db` command works on its ledger now; start again when that has ended"
            )
        yield


@contextlib.contextmanager
def upkeep(home: Path) -> Iterator[None]:
    """
    Keep services, and other upkeep, away from a home.

    Raises:
        ConfigError: There are some on this machine.
    """
    with _locked(home, fcntl.LOCK_EX) as got:
        if not got:
            raise ConfigError(
                f"home {home}: services run on it, or another `talaria db` command does; stop them, and do it again"
            )
        yield


@contextlib.contextmanager
def _locked(home: Path, how: int) -> Iterator[bool]:
    try:
        descriptor = os.open(home / _UPKEEP_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except FileNotFoundError as error:
        raise ConfigError(
            f"home {home}: is not set up; is its disk mounted? for a new home run `talaria init`"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def at_port(host: str, port: int, *, owner: str) -> Iterator[None]:
    """
    Mark a DICOM port as that of *owner*, and see that it is marked as nobody else's.

    Receivers share their port (SO_REUSEPORT), so the system lets another home of the same user listen there, too, and
    gives it half of the associations. The mark is an abstract socket: it is gone with the process and its children,
    and is seen by whoever could share the port, since both belong to a network namespace.

    Raises:
        ConfigError: Another owner listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marker:
        marker.bind(f"\0{_MARK}/{host}/{port}/{owner}/{os.getpid()}")
        for other_host, other_port, other_owner, pid in _marks():
            same = other_host == host or not _ALL_ADDRESSES.isdisjoint({other_host, host})
            if other_port == str(port) and same and other_owner != owner:
                raise ConfigError(
                    f"dicom_port {port}: another program or another home listens there: process {pid} on "
                    f"{other_host}, with spool {other_owner}; stop it, or set another dicom_port"
                )
        yield


def _marks() -> Iterator[tuple[str, str, str, str]]:
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        name = line.partition("@")[2]
        parts = name.split("/")
        if parts[0] == _MARK and len(parts) == 5:
            yield parts[1], parts[2], parts[3], parts[4]
