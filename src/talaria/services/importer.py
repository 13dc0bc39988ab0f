"""The importer: takes instances from files, folders and archives into the spool, as if each had been sent."""

import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import IO, Self

from talaria.dimse.acceptor import Association, Sink, StoreRequest
from talaria.model.errors import ConfigError, LedgerAway, Mismatch, NoRoom, NotAnInstance
from talaria.model.part10 import META_LIMIT_BYTES, data_set_uid, parse_meta

#: The media storage directory class (PS3.10 section 8.6): a DICOMDIR lists instances and is none.
_DIRECTORY = "1.2.840.10008.1.3.10"
_CHUNK_BYTES = 1 << 20
#: The ledger is written to after so many instances.
_PORTION = 200
#: So many reasons are kept in words.
_MOST_REASONS = 20
#: An extended header of a tar archive is text about one member; a longer one is an attack on the memory.
_TAR_HEADER_BYTES = 1 << 20
_TAR_HEADERS = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"g", b"X"})
_GZIP = b"\x1f\x8b"
_TAR_NAMES = (".tar", ".tar.gz", ".tgz")
#: What damaged archives make their readers raise; ValueError where a number or a text is none.
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError,
    struct.error,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold; beyond it the rest of it is refused."""

    instance_bytes: int = 8 << 30
    """One member."""
    members: int = 200_000
    ratio: int = 200
    """All members together may be so many times the archive's own size..."""
    always_bytes: int = 1 << 30
    """... and so much in any case."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What begins like an instance."""

    name: str
    """For people: a path, or a path and the number of a member; what an archive calls its members is not used."""
    head: bytes
    """Its first bytes, up to `META_LIMIT_BYTES`."""
    rest: Iterator[bytes]
    """What follows, read as it is asked for; raises NotAnInstance where it cannot be read on."""


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """What is not taken."""

    name: str
    reason: str
    is_refused: bool = False
    """Whether it should have been an instance: then something is wrong; else it is none, and all is well."""


@dataclass(kw_only=True)
class ImportTally:
    """What became of an import so far."""

    taken: int = 0
    """Safe in the spool."""
    findings: Counter[str] = field(default_factory=Counter)
    """What the ledger made of them: new, repeat, conflict."""
    skipped: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    """Of the first that were refused."""
    size_bytes: int = 0
    stopped: str = ""
    """Why it ended before its end; empty: it did not."""

    @property
    def waiting(self) -> int:
        """Safe, and not written down yet: the ledger is away."""
        return self.taken - self.findings.total()

    def pass_over(self, item: PassedOver) -> None:
        """Count what was not taken."""
        if not item.is_refused:
            self.skipped += 1
            return
        self.refused += 1
        if len(self.reasons) < _MOST_REASONS:
            self.reasons.append(f"{item.name}: {item.reason}")


class Importer:
    """
    Takes instances the way the receiver does: each is synced before the next is begun.

    Killed in the middle, what was taken is there once; the same import again takes the rest and counts the others as
    repeats.
    """

    def __init__(
        self,
        *,
        sink: Sink,
        record: Callable[[], Mapping[str, int]],
        association: Association,
        limits: ArchiveLimits,
        progress: Callable[[ImportTally], None] = lambda _: None,
    ) -> None:
        """
        Args:
            sink: Where the receiver puts instances.
            record: Writes down what the sink took since; counts what it found; raises LedgerAway.
            association: As which they come.
            limits: Of archives.
            progress: Told after every instance.
        """
        self._sink, self._record, self._association = sink, record, association
        self._limits, self._progress = limits, progress
        self._is_away = False

    def take(self, paths: Iterable[Path]) -> ImportTally:
        """
        Take all instances of *paths*.

        Raises:
            ConfigError: One of *paths* itself does not exist or cannot be read; what came before it was taken.
        """
        tally = ImportTally()
        try:
            for item in find(paths, limits=self._limits):
                self._take_one(item, tally)
                if tally.taken % _PORTION == 0:
                    self._write_down(tally)
                self._progress(tally)
        except NoRoom as error:
            tally.stopped = str(error)
        finally:
            self._write_down(tally)
        return tally

    def _take_one(self, item: Candidate | PassedOver, tally: ImportTally) -> None:
        if isinstance(item, PassedOver):
            tally.pass_over(item)
            return
        try:
            size = self._store(item)
        except (NotAnInstance, Mismatch) as error:
            tally.pass_over(PassedOver(name=item.name, reason=str(error), is_refused=True))
        else:
            tally.taken += 1
            tally.size_bytes += size

    def _store(self, item: Candidate) -> int:
        """One instance into the spool, synced; its size."""
        meta = parse_meta(item.head)
        request = StoreRequest(
            association=self._association,
            message_id=0,
            sop_class_uid=data_set_uid(meta.sop_class_uid, name="Media Storage SOP Class UID (0002,0002)"),
            sop_instance_uid=data_set_uid(meta.sop_instance_uid, name="Media Storage SOP Instance UID (0002,0003)"),
            transfer_syntax_uid=data_set_uid(meta.transfer_syntax_uid, name="Transfer Syntax UID (0002,0010)"),
        )
        incoming = self._sink.open(request)
        size = len(item.head) - meta.offset
        is_safe = False
        try:
            incoming.write([memoryview(item.head)[meta.offset :]])
            for chunk in item.rest:
                size += len(chunk)
                if size > self._limits.instance_bytes:
                    raise NotAnInstance(f"is longer than {self._limits.instance_bytes >> 20} MB, the limit")
                incoming.write([memoryview(chunk)])
            incoming.commit()
            is_safe = True
        finally:
            if not is_safe:
                incoming.discard()
        return size

    def _write_down(self, tally: ImportTally) -> None:
        """Rows for what is safe; with the ledger away the receiver does it later."""
        if self._is_away:
            return
        try:
            tally.findings.update(self._record())
        except LedgerAway:
            self._is_away = True


# -- what there is --


def find(paths: Iterable[Path], *, limits: ArchiveLimits) -> Iterator[Candidate | PassedOver]:
    """
    What lies in files, folders and archives, in the order of names.

    An archive in an archive is not opened; links to folders are not followed.

    Raises:
        ConfigError: One of *paths* itself does not exist or cannot be read.
    """
    for path in paths:
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        for file in _files(path) if is_folder else [path]:
            if isinstance(file, PassedOver):
                yield file
            else:
                yield from _look(file, limits=limits)


def _files(folder: Path) -> Iterator[Path | PassedOver]:
    """The files of a folder, and the folders that cannot be read."""
    closed: list[OSError] = []
    for where, folders, names in os.walk(folder, onerror=closed.append):
        folders.sort()
        for name in sorted(names):
            yield Path(where, name)
    for error in closed:
        yield PassedOver(name=str(error.filename), reason=error.strerror or type(error).__name__, is_refused=True)


def _look(path: Path, *, limits: ArchiveLimits) -> Iterator[Candidate | PassedOver]:
    try:
        with _regular(path) as file:
            head = file.read(META_LIMIT_BYTES)
            if _is_zip(head):
                yield from _in_zip(path, file, limits=limits)
            elif _is_tar(head):
                file.seek(0)
                yield from _in_tar(path, file, limits=limits)
            else:
                yield _candidate(str(path), head, file)
    except NotAnInstance as error:
        yield PassedOver(name=str(path), reason=str(error))
    except OSError as error:
        yield PassedOver(name=str(path), reason=error.strerror or type(error).__name__, is_refused=True)


@contextmanager
def _regular(path: Path) -> Iterator[BufferedReader]:
    """A file for reading; a pipe or device is never waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotAnInstance("not a regular file")
        yield file


def _candidate(name: str, head: bytes, file: IO[bytes], budget: "_Budget | None" = None) -> Candidate | PassedOver:
    """An instance by its first bytes, or why it is none."""
    try:
        meta = parse_meta(head)
    except NotAnInstance as error:
        return PassedOver(name=name, reason=str(error), is_refused=head[128:132] == b"DICM")
    if meta.sop_class_uid == _DIRECTORY:
        return PassedOver(name=name, reason="a DICOMDIR, not an instance")
    return Candidate(name=name, head=head, rest=_chunks(file, budget))


def _chunks(file: IO[bytes] | gzip.GzipFile, budget: "_Budget | None") -> Iterator[bytes]:
    while True:
        try:
            chunk = file.read(_CHUNK_BYTES)
        except OSError as error:
            raise NotAnInstance(f"cannot be read to its end: {error.strerror or error}") from error
        except _DAMAGED as error:
            raise NotAnInstance(f"is damaged in its archive: {error}") from error
        if not chunk:
            return
        if budget is not None:
            budget.spend(len(chunk))
        yield chunk


# -- archives --


def _is_zip(head: bytes) -> bool:
    return head[:4] in {b"PK\x03\x04", b"PK\x05\x06"} and head[128:132] != b"DICM"


def _is_tar(head: bytes) -> bool:
    return head[128:132] != b"DICM" and (head[:2] == _GZIP or head[257:262] == b"ustar")


@dataclass(kw_only=True)
class _Budget:
    """How much more an archive may unpack to."""

    left: int
    name: str

    @classmethod
    def of(cls, path: Path, size_bytes: int, limits: ArchiveLimits) -> Self:
        """For an archive of a size."""
        return cls(left=max(limits.always_bytes, limits.ratio * size_bytes), name=str(path))

    def spend(self, size_bytes: int) -> None:
        """
        Count what was unpacked.

        Raises:
            NotAnInstance: It is too much for an archive of images.
        """
        self.left -= size_bytes
        if self.left < 0:
            raise NotAnInstance("the archive unpacks to far more than its size; unpack it yourself if you trust it")


def _in_zip(path: Path, file: IO[bytes], *, limits: ArchiveLimits) -> Iterator[Candidate | PassedOver]:
    budget = _Budget.of(path, os.fstat(file.fileno()).st_size, limits)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            for number, member in enumerate(members[: limits.members], start=1):
                if not member.is_dir():
                    yield _zipped(archive, member, f"{path}, member {number}", budget)
                if budget.left < 0:
                    return
    except (*_DAMAGED, OSError) as error:
        yield PassedOver(name=str(path), reason=f"cannot be read as a zip archive: {error}", is_refused=True)
        return
    if len(members) > limits.members:
        yield _too_many(path, limits)


def _zipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, budget: _Budget) -> Candidate | PassedOver:
    if member.flag_bits & 1:
        return PassedOver(name=name, reason="is encrypted; unpack it first", is_refused=True)
    try:
        return _member(name, archive.open(member), budget)
    except (*_DAMAGED, OSError, RuntimeError) as error:  # RuntimeError: what zipfile raises for a wrong password
        return PassedOver(name=name, reason=f"is damaged in its archive: {error}", is_refused=True)


def _in_tar(path: Path, file: BufferedReader, *, limits: ArchiveLimits) -> Iterator[Candidate | PassedOver]:
    budget = _Budget.of(path, os.fstat(file.fileno()).st_size, limits)
    number = 0
    try:
        whole = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file
        with tarfile.open(fileobj=whole, mode="r|", tarinfo=_BoundedHeader) as archive:
            for member in archive:
                number += 1
                archive.members = []  # type: ignore[attr-defined]  # it keeps what it has passed: a list of any length
                if number > limits.members:
                    yield _too_many(path, limits)
                    return
                name = f"{path}, member {number}"
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    continue
                budget.spend(member.size)
                yield _member(name, stream, None)
            for _ in _chunks(whole, budget):
                pass  # tarfile looks no further than the last member: an archive that was cut off tells it here
    except NotAnInstance as error:
        yield PassedOver(name=f"{path}, from member {number}", reason=str(error), is_refused=True)
    except (*_DAMAGED, OSError) as error:
        is_refused = number > 0 or path.name.lower().endswith(_TAR_NAMES)  # a .gz of something else is no archive
        where = f"{path}, after member {number}" if number else str(path)
        yield PassedOver(name=where, reason=f"cannot be read as a tar archive: {error}", is_refused=is_refused)


def _member(name: str, stream: IO[bytes], budget: _Budget | None) -> Candidate | PassedOver:
    head = stream.read(META_LIMIT_BYTES)
    if budget is not None:
        budget.left -= len(head)
    if _is_zip(head) or _is_tar(head):
        return PassedOver(name=name, reason="is an archive in an archive; unpack it first", is_refused=True)
    return _candidate(name, head, stream, budget)


def _too_many(path: Path, limits: ArchiveLimits) -> PassedOver:
    reason = f"holds more than {limits.members} members; the rest was left; unpack it first"
    return PassedOver(name=str(path), reason=reason, is_refused=True)


class _BoundedHeader(tarfile.TarInfo):
    """A member of a tar archive whose extended headers are not read into memory whatever their size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As its parent; raises ReadError for one that is too long."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _TAR_HEADERS and header.size > _TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {header.size >> 20} MB")
        return header
