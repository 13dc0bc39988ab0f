"""
The spool: files lie still, under names of our own.

    tmp/<ulid>.<process>       arriving; swept at start
    new/<ulid>.dcm             safe: synced, its directory synced; not yet in the ledger
    store/<xx>/<ulid>.dcm      in the ledger; never changed, never scanned
    work/<name>/               the folders of jobs, hard links into store/

`<xx>` are the last two characters of the ULID: they are chance, so the folders fill evenly.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Self

from talaria.failpoint import failpoint
from talaria.model.dicom import Origin
from talaria.model.errors import ConfigError, NoRoom, NotAnInstance
from talaria.model.part10 import META_LIMIT_BYTES, FileMeta, build_meta, parse_meta
from talaria.model.ulid import ulid

#: Kept in memory of each arriving instance, for the header scanner.
HEAD_BYTES = 64 * 1024

_CHUNK_BYTES = 1 << 20

#: Errors of the disk that pass when somebody makes room or mends it: the sender is told to come back (A700).
_NO_ROOM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFBIG}
)

Clock = Callable[[], datetime]


#: Where the chance of a ULID begins so, it names the result of a module; no other file gets such a name.
_RESULT = b"\xff\xff\xff"
_RESULT_LETTERS = slice(10, 14)


def new_ulid(now: datetime, *, of_result: bool = False) -> str:
    """A ULID of the moment *now*; one for the result of a module can be told from all others."""
    chance = os.urandom(10)
    while chance.startswith(_RESULT[:2]):
        chance = os.urandom(10)
    return ulid(int(now.timestamp() * 1000), _RESULT + chance[3:] if of_result else chance)


def is_of_result(instance_id: str) -> bool:
    """Whether a ULID was made for the result of a module; those of schema 0001 were not marked."""
    return instance_id[_RESULT_LETTERS] == "ZZZZ"


#: The folder itself is not there: a disk that was unmounted, a share that went away.
_AWAY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EACCES})


@contextlib.contextmanager
def disk_errors(what: str, *, is_ours: bool = False) -> Iterator[None]:
    """
    Turn errors of a full, broken or absent disk into `NoRoom`.

    Args:
        what: What is being done, in words.
        is_ours: Whether every name in it is our own, so that one which is missing means that the disk is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM or (is_ours and error.errno in _AWAY):
            raise NoRoom(f"the spool cannot {what}: {os.strerror(error.errno or 0)}") from error
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Spool:
    """
    A spool on one file system.

    Attributes:
        name: By which the ledger's rows call it; made with it and written in its marker file.
    """

    MARKER = ".talaria-spool"

    def __init__(self, root: Path, *, name: str, clock: Clock, reserve_bytes: int = 0) -> None:
        self.root = root
        self.name = name
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._tmp, self._new, self._store, self.work = (root / part for part in ("tmp", "new", "store", "work"))
        self._new_directory = os.open(self._new, os.O_RDONLY | os.O_DIRECTORY)
        self._own = f"{os.getpid()}-{_born(os.getpid())}"

    @classmethod
    def create(cls, root: Path, *, clock: Clock) -> Self:
        """
        Make a spool, or open the one that is there.

        Raises:
            ConfigError: The folder cannot be made or written to.
        """
        try:
            root.mkdir(mode=0o750, parents=True, exist_ok=True)
            for part in ("tmp", "new", "store", "work"):
                (root / part).mkdir(mode=0o750, parents=True, exist_ok=True)
            for number in range(1024):
                (root / "store" / ulid(0, number.to_bytes(10, "big"))[-2:]).mkdir(mode=0o750, exist_ok=True)
            marker = root / cls.MARKER
            if not marker.exists():
                _write_synced(marker.with_suffix(".new"), new_ulid(clock()) + "\n")
                sync_directory(root / "store")
                failpoint("spool.create.ready")
                os.rename(marker.with_suffix(".new"), marker)
                failpoint("spool.create.named")
                sync_directory(root)
        except OSError as error:
            raise ConfigError(
                f"spool {root}: cannot be made: {error.strerror}; check the path and its rights"
            ) from error
        return cls.open(root, clock=clock)

    @classmethod
    def open(cls, root: Path, *, clock: Clock, reserve_bytes: int = 0) -> Self:
        """
        Open a spool that exists.

        Args:
            root: Its folder.
            clock: For the names of files.
            reserve_bytes: Nothing is received while less than this is free.

        Raises:
            ConfigError: There is none; never made silently, since an unmounted disk looks just like this.
        """
        try:
            name = (root / cls.MARKER).read_text().strip()
            if not name:
                raise ConfigError(f"spool {root}: its marker file {cls.MARKER} is empty; write its name there again")
            return cls(root, name=name, clock=clock, reserve_bytes=reserve_bytes)
        except OSError as error:
            raise ConfigError(
                f"spool {root}: no {cls.MARKER} in it ({error.strerror}); "
                "is its disk mounted? for a new spool run `talaria init`"
            ) from error

    def sweep(self) -> int:
        """Remove what was still arriving when a receiver died; nothing of it was ever acknowledged. How many."""
        swept = 0
        for path in self._tmp.iterdir():
            if not _runs(path.name.partition(".")[2]):
                path.unlink(missing_ok=True)
                failpoint("spool.sweep.removed")
                swept += 1
        return swept

    def check(self) -> None:
        """
        Whether the disk is still there.

        Raises:
            NoRoom: The marker is gone: unmounted, or replaced by an empty folder.
        """
        if not os.path.exists(f"{self.root}/{self.MARKER}"):
            raise NoRoom(f"spool {self.root}: its marker file is gone; is the disk mounted?")

    def capacity(self) -> tuple[int, int]:
        """Size of its file system, and what is free there for us, in bytes."""
        numbers = os.statvfs(self.root)
        return numbers.f_blocks * numbers.f_frsize, numbers.f_bavail * numbers.f_frsize

    # -- arriving --

    def receive(self, meta: FileMeta) -> "Arriving":
        """
        Begin a file.

        Raises:
            NoRoom: Not even its first bytes can be written, or the reserve has begun.
        """
        with disk_errors("begin a file", is_ours=True):
            free = self.capacity()[1]
        if free < self._reserve_bytes:
            raise NoRoom(f"the spool's disk has {free >> 20} MB free, and {self._reserve_bytes >> 20} MB are kept back")
        return Arriving(self, meta, name=new_ulid(self._clock()))

    def arriving(self) -> int:
        """How many instances are on their way in, of processes that live."""
        return sum(_runs(name.partition(".")[2]) for name in os.listdir(self._tmp))

    def waiting(self) -> list[str]:
        """ULIDs in `new/`, oldest first."""
        return sorted(name[:-4] for name in os.listdir(self._new) if name.endswith(".dcm"))

    def age_in_new(self, instance_id: str, *, now: datetime) -> timedelta:
        """How long ago a file in `new/` was last written to; nothing for one that has left it."""
        try:
            written = os.stat(self._new / f"{instance_id}.dcm").st_mtime
        except FileNotFoundError:
            return timedelta(0)
        return abs(now - datetime.fromtimestamp(written, UTC))

    def shelve(self, instance_id: str) -> None:
        """Move from `new/` to `store/`, once its row is committed; doing it again does nothing."""
        failpoint("spool.shelve.asked")
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{self._new}/{instance_id}.dcm", f"{self._store}/{instance_id[-2:]}/{instance_id}.dcm")
        failpoint("spool.shelve.moved")

    def forget(self, instance_id: str) -> None:
        """Remove from `new/` what the ledger found to be an identical copy of what it has."""
        failpoint("spool.forget.asked")
        (self._new / f"{instance_id}.dcm").unlink(missing_ok=True)
        failpoint("spool.forget.gone")

    def set_aside(self, instance_id: str) -> Path:
        """Move what lies in `new/` and cannot be read as an instance out of the way; never deleted."""
        folder = self.root / "odd"
        folder.mkdir(mode=0o750, exist_ok=True)
        os.rename(self._new / f"{instance_id}.dcm", folder / f"{instance_id}.dcm")
        failpoint("spool.aside.moved")
        return folder / f"{instance_id}.dcm"

    # -- lying still --

    def _shelf(self, instance_id: str) -> Path:
        return self._store / instance_id[-2:] / f"{instance_id}.dcm"

    def path(self, instance_id: str) -> Path:
        """
        Where an instance lies now.

        Raises:
            FileNotFoundError: Neither in `store/` nor in `new/`.
        """
        shelf = self._shelf(instance_id)
        if shelf.exists():
            return shelf
        fresh = self._new / f"{instance_id}.dcm"
        if fresh.exists():
            return fresh
        if shelf.exists():  # shelved between the two looks
            return shelf
        raise FileNotFoundError(errno.ENOENT, f"instance {instance_id} is not in spool {self.name}", str(shelf))

    def shelves(self) -> Iterator[list[str]]:
        """The ULIDs of all that lies in `store/`, a folder at a time; for upkeep: work never looks there."""
        for folder in sorted(os.listdir(self._store)):
            yield [name[:-4] for name in os.listdir(self._store / folder) if name.endswith(".dcm")]

    def retire(self, instance_id: str) -> Path:
        """Move out of `store/` what nobody can use; never deleted."""
        folder = self.root / "odd"
        folder.mkdir(mode=0o750, exist_ok=True)
        os.rename(self._shelf(instance_id), folder / f"{instance_id}.dcm")
        failpoint("spool.retire.moved")
        return folder / f"{instance_id}.dcm"

    def has_lost(self, instance_id: str, spool: str) -> bool:
        """Whether an instance of this spool is not there; of another spool nobody can tell here."""
        if spool != self.name:
            return False
        try:
            self.path(instance_id)
        except FileNotFoundError:
            return True
        return False

    def adopt(self, source: Path, instance_id: str) -> tuple[int, str]:
        """
        Copy a module's output into `store/`, synced, under a name given beforehand.

        The ledger's row is committed after this; until then the file belongs to nobody, and `drop` removes it.

        Returns:
            Size and SHA-256 of the data set.

        Raises:
            NotAnInstance: Not a regular file, or not a Part 10 file.
            NoRoom: The disk is full.
        """
        with disk_errors("take a result"), open_regular(source) as file:
            meta = parse_meta(file.read(META_LIMIT_BYTES))
            file.seek(0)
            temporary = self._tmp / f"{instance_id}.{self._own}"
            digest = hashlib.sha256()
            size = -meta.offset
            with contextlib.ExitStack() as undo, open(temporary, "xb", opener=_private) as copy:
                undo.callback(temporary.unlink, missing_ok=True)
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk[max(0, -size) :])
                    size += len(chunk)
                    copy.write(chunk)
                    failpoint("spool.adopt.part")
                copy.flush()
                os.fsync(copy.fileno())
                failpoint("spool.adopt.synced")
                os.rename(temporary, self._shelf(instance_id))
                failpoint("spool.adopt.named")
            sync_directory(self._shelf(instance_id).parent)
        return size, digest.hexdigest()

    def drop(self, instance_id: str) -> None:
        """Remove an instance for good; the cleaner's, and the undoing of an `adopt` that came to nothing."""
        failpoint("spool.drop.asked")
        self._shelf(instance_id).unlink(missing_ok=True)
        (self._new / f"{instance_id}.dcm").unlink(missing_ok=True)
        failpoint("spool.drop.gone")

    # -- job folders --

    def folder(self, name: str) -> Path:
        """A fresh folder in `work/`; what an earlier attempt left there is removed."""
        path = self.work / name
        self.remove_folder(name)
        with disk_errors("make a job's folder", is_ours=True):
            path.mkdir(mode=0o750)  # never its parents: a disk that is not mounted looks just like that
            failpoint("spool.folder.made")
        return path

    def folders(self) -> list[str]:
        """Names of all folders in `work/`."""
        return sorted(os.listdir(self.work))

    def remove_folder(self, name: str) -> None:
        """Remove a job's folder and all in it."""
        if (self.work / name).exists():
            shutil.rmtree(self.work / name)

    def link(self, instance_id: str, destination: Path) -> None:
        """Make an instance visible to a job: a hard link, a copy where links cannot reach."""
        with disk_errors("link an instance into a job"):
            source = self.path(instance_id)
            try:
                os.link(source, destination)
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
                    raise
                shutil.copyfile(source, destination)
                destination.chmod(0o444)
            failpoint("spool.link.made")


class Arriving:
    """
    A file on its way into the spool.

    Written by one thread; ends by `commit` or `discard`, whichever comes first.
    """

    def __init__(self, spool: Spool, meta: FileMeta, *, name: str) -> None:
        self.instance_id = name
        self.size_bytes = 0
        self.head = bytearray()
        self._spool = spool
        self._path = f"{spool._tmp}/{name}.{spool._own}"  # noqa: SLF001 - two halves of one thing
        self._digest = hashlib.sha256()
        frame = build_meta(meta)
        self._offset = len(frame)
        with disk_errors("begin a file", is_ours=True):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            try:
                self._write([memoryview(frame)], len(frame))
                failpoint("spool.arriving.begun")
            except OSError:
                self.discard()
                raise

    def write(self, fragments: Sequence[memoryview]) -> None:
        """
        Append to the data set.

        Raises:
            NoRoom: The disk is full or broken; the file is to be discarded.
        """
        length = 0
        for fragment in fragments:
            length += len(fragment)
            self._digest.update(fragment)
            if len(self.head) < HEAD_BYTES:
                self.head += fragment[: HEAD_BYTES - len(self.head)]
        with disk_errors("write an instance"):
            self._write(fragments, length)
            failpoint("spool.arriving.part")
        self.size_bytes += length

    def _write(self, fragments: Sequence[memoryview], length: int) -> None:
        written = os.writev(self._descriptor, fragments[:1024])
        if written == length:
            return
        rest = memoryview(b"".join(fragments))[written:]  # a short write is rare: a signal, or a disk nearly full
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the data set written so far."""
        return os.pread(self._descriptor, length, self._offset + offset)

    @property
    def sha256(self) -> str:
        """Of the data set so far, in hex."""
        return self._digest.hexdigest()

    def commit(self) -> None:
        """
        Make it safe: file synced, renamed into `new/`, directory synced. Returns only then.

        Raises:
            NoRoom: It could not be made safe; nothing of it is left.
        """
        with disk_errors("sync an instance", is_ours=True):
            failpoint("spool.arriving.whole")
            os.fsync(self._descriptor)
            failpoint("spool.arriving.synced")
            self._spool.check()
            new = f"{self._spool._new}/{self.instance_id}.dcm"  # noqa: SLF001 - two halves of one thing
            os.rename(self._path, new)
            self._path = new
            failpoint("spool.arriving.named")
            os.fsync(self._spool._new_directory)  # noqa: SLF001 - two halves of one thing
            failpoint("spool.arriving.safe")
        self._close()

    def discard(self) -> None:
        """Remove what there is of it."""
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
            failpoint("spool.arriving.discarded")

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_regular(path: Path) -> BinaryIO:
    """
    Open a file for reading that nobody can swap for a link, a device or a pipe.

    Raises:
        NotAnInstance: It is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise NotAnInstance(f"{path.name!r} is a link or a pipe, not a file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAnInstance(f"{path.name!r} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o444)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _runs(process: str) -> bool:
    """Whether a process, `<pid>-<start time>`, still runs; in a container the next one often has the same number."""
    pid, _, born = process.partition("-")
    return pid.isdigit() and born != "" and _born(int(pid)) == born


def _born(pid: int) -> str:
    """The kernel's start time of a process, field 22 of proc(5); empty where there is none of that number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def origin_of(meta: FileMeta) -> Origin:
    """Who sent a file to whom, as its own meta header tells."""
    return Origin(calling_ae=meta.source_ae, called_ae=meta.receiving_ae, address=meta.source_address)


def file_digest(path: Path, *, offset: int) -> str:
    """SHA-256, in hex, of a file from *offset* on."""
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.file_digest(file, "sha256").hexdigest()
