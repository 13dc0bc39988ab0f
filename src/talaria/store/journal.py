"""
The journal: what ended while the ledger was away, safe on this machine until the ledger has it.

    <home>/journal/<ulid>.journal   of one process, locked while that lives; a line for each entry
    <home>/journal/<ulid>.odd       could not be understood or not be written down; kept for people to look at
    <home>/journal/lock             held by who replays what the dead left

A line is `<length of the rest> <16 hex digits of its SHA-256> <JSON>`. The entries name patients as the ledger does.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from talaria.failpoint import failpoint
from talaria.model.errors import NoRoom
from talaria.model.job import Event
from talaria.store.deliveries import Deliveries, Noted
from talaria.store.jobs import Jobs
from talaria.store.ledger import Ledger
from talaria.store.results import Made, Results, RunRecord, follow_ups
from talaria.store.spool import new_ulid, sync_directory

Clock = Callable[[], datetime]

_MODE = 0o640


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended."""

    job_id: int
    owner: str
    attempt: int
    event: Event
    reason: str
    due: datetime | None
    time: datetime
    made: Made | None = None
    """Of a process job that is finished."""


Entry = Noted | RunRecord | Ended

_KINDS = MappingProxyType({"outcomes": Noted, "run": RunRecord, "end": Ended})
_NAMES = MappingProxyType({kind: name for name, kind in _KINDS.items()})


class Replay:
    """Writes entries into the ledger; the same entry twice is as once."""

    def __init__(self, ledger: Ledger) -> None:
        self._deliveries, self._results, self._jobs = Deliveries(ledger), Results(ledger), Jobs(ledger)

    def first(self, entry: Noted | RunRecord) -> None:
        """Write down what happened just now."""
        if isinstance(entry, Noted):
            self._deliveries.write(entry)
        else:
            self._results.record_run(entry)

    def again(self, entry: Entry) -> None:
        """
        Write down what may have been written already.

        Raises:
            Overtaken: The job whose end it is has ended already, or somebody else has it; its state stays.
            Refused: The ledger does not know what it is about.
        """
        if isinstance(entry, Noted):
            self._deliveries.write(entry, is_replay=True)
        elif isinstance(entry, RunRecord):
            self._results.record_run(entry)
        else:
            self._end(entry)

    def _end(self, entry: Ended) -> None:
        claim = self._jobs.in_hand(entry.job_id, owner=entry.owner, attempt=entry.attempt)
        made = entry.made
        self._jobs.end(
            claim, entry.event, now=entry.time, reason=entry.reason, due=entry.due,
            follow_ups=None if made is None else lambda connection: follow_ups(connection, claim, made),
        )  # fmt: skip


class Journal:
    """
    What waits of this process; used by any number of threads.

    Its file comes with the first entry, is emptied when nothing waits any more, and is gone after `close`.
    """

    def __init__(self, folder: Path, *, clock: Clock) -> None:
        """
        Args:
            folder: Of all journals of a home; made when it is first needed.
            clock: For the name of the file.
        """
        self._folder, self._clock = folder, clock
        self._waiting: list[Entry] = []
        self._unwritten: list[Entry] = []
        self._path: Path | None = None
        self._descriptor = -1
        self._length = 0
        self._lock = threading.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def entries(self) -> tuple[Entry, ...]:
        """What waits, in the order in which it happened."""
        with self._lock:
            return tuple(self._waiting)

    def append(self, entry: Entry) -> None:
        """
        Keep an entry; returns when it is synced.

        Raises:
            NoRoom: It could not be; it waits in memory, and is written with the next one if that can be.
        """
        with self._lock:
            self._waiting.append(entry)
            self._unwritten.append(entry)
            try:
                self._write()
            except OSError as error:
                raise NoRoom(f"journal {self._folder}: cannot be written: {error.strerror}") from error

    def drop(self, entry: Entry) -> None:
        """The ledger has an entry; one that is not there any more is no matter."""
        with self._lock:
            self._waiting = [one for one in self._waiting if one is not entry]
            self._unwritten = [one for one in self._unwritten if one is not entry]
            if not self._waiting and self._length:
                with contextlib.suppress(OSError):  # then it is replayed again, which changes nothing
                    os.ftruncate(self._descriptor, 0)
                    self._length = 0
                    failpoint("journal.file.emptied")

    def set_aside(self, entry: Entry) -> Path:
        """Take an entry out that cannot be written down, into a file of its own."""
        name = self._folder / f"{new_ulid(self._clock())}.odd"
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_line(entry))
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._folder)
        failpoint("journal.entry.aside")
        self.drop(entry)
        return name

    def close(self) -> None:
        """End it: the file goes if nothing waits, and else is there for whoever comes next."""
        with self._lock:
            if self._path is None:
                return
            if not self._waiting:
                with contextlib.suppress(OSError):
                    self._path.unlink()
                failpoint("journal.file.closed")
            os.close(self._descriptor)
            self._path, self._descriptor, self._length = None, -1, 0

    def _write(self) -> None:
        if self._path is None:
            self._create()
        data = b"".join(map(_line, self._unwritten))
        at = self._length
        while at < self._length + len(data):
            at += os.pwrite(self._descriptor, data[at - self._length :], at)
        failpoint("journal.entry.written")
        os.fsync(self._descriptor)
        failpoint("journal.entry.synced")
        self._length, self._unwritten = at, []

    def _create(self) -> None:
        """The lock first, the name after: nobody ever sees it without."""
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o750, exist_ok=True)
            sync_directory(self._folder.parent)
        path = self._folder / f"{new_ulid(self._clock())}.journal"
        hidden = path.with_suffix(".new")
        descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(hidden, path)
            failpoint("journal.file.named")
            sync_directory(self._folder)
        except OSError:
            os.close(descriptor)
            hidden.unlink(missing_ok=True)
            raise
        self._path, self._descriptor, self._length = path, descriptor, 0

    # -- of the dead --

    @contextlib.contextmanager
    def left(self) -> Iterator["Sequence[Leftover] | None"]:
        """
        The journals of processes that run no more, the oldest first, for as long as it is entered.

        None where another process is at them; then nobody can tell what they will come to.

        Raises:
            OSError: The folder cannot be read.
        """
        if not self._folder.is_dir():
            yield ()
            return
        with contextlib.ExitStack() as stack:
            gate = _opened(self._folder / "lock", os.O_RDWR | os.O_CREAT, stack)
            if gate is None or not _is_locked(gate):
                yield None
                return
            yield self._leftovers(stack)

    def _leftovers(self, stack: contextlib.ExitStack) -> "list[Leftover]":
        found = []
        for path in sorted(self._folder.glob("*.journal")):
            descriptor = _opened(path, os.O_RDWR, stack)
            if descriptor is not None and _is_locked(descriptor) and os.fstat(descriptor).st_nlink:
                found.append(Leftover(path, _read_all(descriptor)))
        return found


class Leftover:
    """The journal of a process that runs no more."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.entries, self.damage = _understood(data)

    def remove(self) -> None:
        """The ledger has all of it."""
        self.path.unlink()
        failpoint("journal.file.removed")
        sync_directory(self.path.parent)

    def set_aside(self) -> Path:
        """Keep it for people to look at; nobody replays it any more. Where it is now."""
        path = self.path.with_suffix(".odd")
        os.rename(self.path, path)
        failpoint("journal.file.aside")
        sync_directory(path.parent)
        return path


def _opened(path: Path, flags: int, stack: contextlib.ExitStack) -> int | None:
    """Open a file until the stack ends; None where it is gone."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, _MODE)
    except FileNotFoundError:
        return None
    stack.callback(os.close, descriptor)
    return descriptor


def _is_locked(descriptor: int) -> bool:
    """Whether the lock is ours now; it goes when the file is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


# -- lines --


@cache
def _form(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[name])


def _line(entry: Entry) -> bytes:
    name = _NAMES[type(entry)]
    told = {"kind": name, "entry": _form(name).dump_python(entry)}
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat)
    body = text.encode("utf-8", "replace")  # half of a character no database takes either
    return b"%d %s %s\n" % (len(body), _digest(body), body)


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _body(line: bytes) -> bytes | None:
    """What a line says; None where it is not whole."""
    length, _, rest = line.partition(b" ")
    digest, _, body = rest.partition(b" ")
    return body if length == b"%d" % len(body) and digest == _digest(body) else None


def _understood(data: bytes) -> tuple[tuple[Entry, ...], str]:
    """
    The entries of a journal, and what is wrong with it, in words.

    A last line that is not whole was being written when its process died: it promised nothing and is left out. After
    any other line that is not understood ends count no more, for what went before them is not known; outcomes do.
    """
    entries: list[Entry] = []
    damage = ""
    lines = [line for line in data.split(b"\n") if line]
    for number, line in enumerate(lines, start=1):
        body = _body(line)
        if body is None and number == len(lines):
            break
        entry = None if body is None else _entry(body)
        if entry is None:
            damage = damage or f"line {number} cannot be understood"
        elif not (damage and isinstance(entry, Ended)):
            entries.append(entry)
    return tuple(entries), damage


def _entry(body: bytes) -> Entry | None:
    """None where it is of a kind or shape that this version does not know."""
    try:
        told = json.loads(body)
        entry: Entry = _form(told["kind"]).validate_python(told["entry"])
    except (KeyError, TypeError, ValueError, ValidationError):
        return None
    return entry
