"""Delivery into a folder of this machine or of a mounted share."""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from talaria.failpoint import failpoint
from talaria.model.errors import NoRoom, NotAnInstance, Permanent, TalariaError, Transient
from talaria.model.extensions import Delivery, Finding, Findings, Outcome, Parcel, Standing, Target
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.targets.layout import (
    COMPLETE,
    Part,
    checked_layout,
    extra_path,
    file_name,
    folders,
    is_left_out,
    part_of,
    tag_names,
)

_CHUNK_BYTES = 1 << 20
_BATCH_FILES, _BATCH_BYTES = 32, 64 << 20  # what is synced, and told, at once
_LEAST_ROOM_BYTES = 1 << 30
_PARTIAL = re.compile(r"\.talaria-[0-9a-f]{16}\.part")
_DELIVERY = re.compile(r"[0-9A-Za-z]{1,64}", re.ASCII)

#: What an error of the far end means. Refused permission passes like a share that is away: shares come back from a
#: restart with stale credentials, and a person who mends the rights should not have to look for failed jobs as well.
_ERRORS: dict[int, tuple[type[TalariaError], str]] = {
    errno.ENOSPC: (NoRoom, "no room left; make room or enlarge it"),
    errno.EDQUOT: (NoRoom, "its quota is used up; make room or raise it"),
    errno.EROFS: (Transient, "is read-only; mount it for writing"),
    errno.ENOENT: (Transient, "is missing or went away meanwhile; is the share mounted?"),
    errno.EACCES: (Transient, "no permission to write; grant it to the user that runs this service"),
    errno.EPERM: (Transient, "writing is not permitted; check its owner, mode and attributes"),
    errno.ENOTDIR: (Permanent, "a file or link stands where a folder of the delivery belongs; remove it"),
    errno.ELOOP: (Permanent, "a link stands where a folder of the delivery belongs; remove it"),
    errno.EISDIR: (Permanent, "a folder stands where a file of the delivery belongs; remove it"),
    errno.ENAMETOOLONG: (Permanent, "a name is too long for its file system; shorten the layout"),
    errno.EFBIG: (Permanent, "a file is larger than its file system takes"),
}


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"path: {str(path)!r} is not absolute; write it from the root on")
    return path


class Folder(Target):
    """
    A folder on this machine or a mounted share.

    Each delivery gets a folder of its own, `<path>/<layout>/<delivery id>`, with one file
    `<SeriesInstanceUID>#<SOPInstanceUID>.dcm` for each instance, byte for byte as in the spool, and `.complete` last.
    A file has its name only once it is whole and synced. No link below *path* is followed.
    """

    kind: ClassVar[str] = "folder"

    path: Annotated[Path, AfterValidator(_absolute)]
    """Where deliveries go; absolute, and there already: it is never made, since it may be a share not mounted."""
    layout: Annotated[str, AfterValidator(checked_layout)] = ""
    """Folders between *path* and the delivery, made of tags: `{PatientID}/{StudyInstanceUID}`."""
    include: tuple[Part, ...] = (Part.DICOM, Part.RESULTS)
    """What is delivered: `dicom`, `results` of a module, `task` (task.json), `tags`."""
    exclude: tuple[str, ...] = ()
    """Globs; a file whose name fits one is left out."""
    mounted: bool = False
    """Refuse to write unless *path* lies on a mount other than the root file system."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Those of the layout."""
        return tag_names(self.layout)

    def deliver(self, delivery: Delivery) -> Iterator[Outcome]:
        """
        Copy what is not there yet; `.complete` appears when every instance of the delivery stands in its folder.

        An outcome is yielded once file and folder are synced, the last ones once `.complete` stands: an attempt that
        is killed before has something left to do for the next. An instance whose stored bytes are not those that
        arrived fails alone.

        Raises:
            NoRoom: The disk or the quota is full.
            Transient: The folder is away, read-only or not ours to write, or the spool is away.
            Permanent: A name in the way; a name that cannot be made; instances delivered earlier are gone.
        """
        with self._reported(), self._place(delivery) as place:
            place.sweep()
            names: dict[str, str] = {}
            held: list[Outcome] = []
            refused = False
            for batch in _batches(delivery.parcels):
                yield from held
                held = [self._put(place, parcel, names) for parcel in batch]
                place.sync()
                refused = refused or not all(outcome.standing.is_there for outcome in held)
            try:
                if not refused:
                    self._finish(place, delivery)
            except Permanent:
                yield from held
                raise
            yield from held

    def _finish(self, place: "_Place", delivery: Delivery) -> None:
        self._put_extras(place, delivery)
        self._check_whole(place, delivery)
        place.seal()

    def check(self) -> Findings:
        """Whether *path* is there, can be written (a probe is made and removed) and has room."""
        with self._reported(), self._base() as place:
            place.probe()
            free = os.fstatvfs(place.fd)
            room = free.f_bavail * free.f_frsize
            roomy = room >= _LEAST_ROOM_BYTES and (free.f_files == 0 or free.f_favail > 0)
            return (
                Finding(ok=True, text=f"{self.path} is there and can be written"),
                Finding(ok=roomy, text=f"{room / 1e9:.1f} GB free" + ("" if roomy else ", which is too little")),
            )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Tell an error of the far end in words; without its own text, which may have a patient's name in a path."""
        try:
            yield
        except OSError as error:
            kind, words = _ERRORS.get(error.errno or 0, (Transient, (os.strerror(error.errno or 0)).lower()))
            raise kind(f"folder '{self.path}': {words}") from None

    @contextmanager
    def _base(self) -> Iterator["_Place"]:
        if self.mounted and not any(os.path.ismount(p) for p in (self.path, *self.path.parents) if p != Path("/")):
            raise Transient(f"folder '{self.path}': is not on a mounted share; mount it")
        with _Place(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as place:
            yield place

    @contextmanager
    def _place(self, delivery: Delivery) -> Iterator["_Place"]:
        """The folder of the delivery, made where it is not there."""
        if not _DELIVERY.fullmatch(delivery.id):
            raise Permanent(f"folder '{self.path}': {delivery.id!r} is no delivery id")
        sender = {
            "SenderAET": delivery.origin.calling_ae,
            "ReceiverAET": delivery.origin.called_ae,
            "SenderAddress": delivery.origin.address,
        }
        with ExitStack() as stack:
            place = stack.enter_context(self._base())
            for name in (*folders(self.layout, delivery.tags.with_values({**sender})), delivery.id):
                place = stack.enter_context(place.folder(name))
            yield place

    def _put(self, place: "_Place", parcel: Parcel, names: dict[str, str]) -> Outcome:
        """Copy one instance; *names* are those of this attempt so far, with the hash of their data set."""
        name = file_name(parcel)
        if Part.DICOM not in self.include or is_left_out(name, self.exclude):
            return Outcome(instance_id=parcel.instance_id, standing=Standing.SENT, detail="left out by the settings")
        if names.setdefault(name, parcel.sha256) != parcel.sha256:
            return _failed(parcel, "another instance of this delivery has the same UIDs and other content")
        try:
            with _stored(parcel) as source:
                if not place.holds(name, parcel, source):
                    place.put(name, _checked_bytes(source, parcel))
        except _DamagedError as error:
            return _failed(parcel, str(error))
        return Outcome(instance_id=parcel.instance_id, standing=Standing.SENT)

    def _put_extras(self, place: "_Place", delivery: Delivery) -> None:
        for name in sorted(delivery.extras):
            if part_of(name) in self.include and not is_left_out(name, self.exclude):
                *above, last = extra_path(name)
                with ExitStack() as stack:
                    inner = place
                    for folder in above:
                        inner = stack.enter_context(inner.folder(folder))
                    self._put_extra(inner, last, delivery.extras[name])

    def _put_extra(self, place: "_Place", name: str, path: Path) -> None:
        try:
            with _opened(path) as source:
                if not place.holds_bytes(name, source):
                    place.put(name, _bytes(source))
        except _DamagedError as error:
            raise Permanent(f"folder '{self.path}': a result cannot be delivered: {error}") from None
        place.sync()

    def _check_whole(self, place: "_Place", delivery: Delivery) -> None:
        """Earlier attempts are believed by the ledger; the folder must agree before it is called complete."""
        # A glob may leave out instances only if it can match the end of `.dcm`.
        if Part.DICOM not in self.include or any(pattern[-1:] in "*?]m" for pattern in self.exclude):
            return
        found = place.count()
        if found < delivery.total:
            raise Permanent(
                f"folder '{self.path}': {found} of {delivery.total} instances stand in delivery {delivery.id}: "
                "the others were refused or taken away before it was complete; restart the delivery"
            )


class _DamagedError(Exception):
    """What stands in the spool is not what arrived; says how, without a name."""


def _failed(parcel: Parcel, why: str) -> Outcome:
    return Outcome(instance_id=parcel.instance_id, standing=Standing.FAILED, detail=why)


def _batches(parcels: tuple[Parcel, ...]) -> Iterator[list[Parcel]]:
    """The parcels in order, as many together as are worth one sync of the folder."""
    batch: list[Parcel] = []
    size = 0
    for parcel in parcels:
        batch.append(parcel)
        size += parcel.size_bytes
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A regular file of ours, open for reading; links are not followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.parent.is_dir():
            raise _DamagedError("its stored file is missing") from None
        raise Transient("the spool is missing; is its disk mounted?") from None
    except OSError as error:
        raise _DamagedError(f"its stored file cannot be opened: {os.strerror(error.errno or 0).lower()}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _DamagedError("its stored file is not a regular file")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _stored(parcel: Parcel) -> Iterator["_Stored"]:
    """The instance in the spool, its frame read."""
    with _opened(parcel.path) as fd:
        try:
            head = os.pread(fd, META_LIMIT_BYTES, 0)
            offset = parse_meta(head).offset
        except OSError as error:
            raise _DamagedError(f"its stored file cannot be read: {os.strerror(error.errno or 0).lower()}") from None
        except NotAnInstance as error:
            raise _DamagedError(f"its stored file is damaged: {error}") from None
        yield _Stored(fd, offset)


class _Stored:
    """An open instance of the spool: its descriptor, and where its data set begins."""

    def __init__(self, fd: int, offset: int) -> None:
        self.fd = fd
        self.offset = offset


def _bytes(fd: int) -> Iterator[bytes]:
    """All bytes of one of our files, from the start."""
    at = 0
    while True:
        try:
            chunk = os.pread(fd, _CHUNK_BYTES, at)
        except OSError as error:
            raise _DamagedError(f"its stored file cannot be read: {os.strerror(error.errno or 0).lower()}") from None
        if not chunk:
            return
        yield chunk
        at += len(chunk)


def _checked_bytes(source: _Stored, parcel: Parcel) -> Iterator[bytes]:
    """All bytes of an instance; `_DamagedError` after the last where the data set is not the one that arrived."""
    digest = hashlib.sha256()
    skip = source.offset
    for chunk in _bytes(source.fd):
        digest.update(memoryview(chunk)[skip:])
        skip = max(0, skip - len(chunk))
        yield chunk
    if digest.hexdigest() != parcel.sha256:
        raise _DamagedError("its stored file is damaged: the data set is not the one that arrived; it was not sent")


class _Place:
    """An open folder, reached name by name so that no link below the target's path is followed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> "_Place":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def folder(self, name: str) -> "_Place":
        """The folder *name* in it, made and synced where it is not there."""
        try:
            os.mkdir(name, dir_fd=self.fd)
            self.sync()
        except FileExistsError:
            pass  # ours from an earlier delivery, or something else: opening tells
        return _Place(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd))

    def holds(self, name: str, parcel: Parcel, source: _Stored) -> bool:
        """Whether the instance stands there: a file of the same size, whose data set has the hash of the parcel's."""
        with self._existing(name) as fd:
            if fd is None or os.fstat(fd).st_size != os.fstat(source.fd).st_size:
                return False
            digest = hashlib.sha256()
            at = source.offset
            while chunk := os.pread(fd, _CHUNK_BYTES, at):
                digest.update(chunk)
                at += len(chunk)
            return digest.hexdigest() == parcel.sha256

    def holds_bytes(self, name: str, source: int) -> bool:
        """Whether a file of the same bytes stands there."""
        with self._existing(name) as fd:
            if fd is None or os.fstat(fd).st_size != os.fstat(source).st_size:
                return False
            at = 0
            for chunk in _bytes(source):
                if os.pread(fd, len(chunk), at) != chunk:
                    return False
                at += len(chunk)
            return True

    @contextmanager
    def _existing(self, name: str) -> Iterator[int | None]:
        """The regular file of that name, open; None where there is none, or something else that `put` replaces."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:  # none, a link, a socket
                raise
            yield None
            return
        try:
            yield fd if stat.S_ISREG(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def put(self, name: str, content: Iterator[bytes]) -> None:
        """Write a file that has its name only when it is whole and synced; what had that name is replaced."""
        self._unseal()
        partial = f".talaria-{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(partial, flags, 0o666, dir_fd=self.fd), "wb", buffering=0) as file:
                for chunk in content:
                    _write_all(file.fileno(), chunk)
                failpoint("folder.file.written")
                os.fsync(file.fileno())
            failpoint("folder.file.synced")
            os.rename(partial, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            failpoint("folder.file.named")
        finally:
            with suppress(OSError):  # gone by the rename, unless something failed
                os.unlink(partial, dir_fd=self.fd)

    def _unseal(self) -> None:
        """What is written into is not complete."""
        try:
            os.unlink(COMPLETE, dir_fd=self.fd)
        except FileNotFoundError:
            return
        self.sync()

    def seal(self) -> None:
        """Write `.complete`, after everything before it is safe."""
        self.sync()
        failpoint("folder.complete.ready")
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(COMPLETE, flags, 0o666, dir_fd=self.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self.sync()
        failpoint("folder.complete.made")

    def sync(self) -> None:
        """Make the names in it safe."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems cannot sync a folder
                raise

    def sweep(self) -> None:
        """Remove what a killed attempt left under a temporary name."""
        for name in os.listdir(self.fd):
            if _PARTIAL.fullmatch(name):
                os.unlink(name, dir_fd=self.fd)

    def count(self) -> int:
        """How many instances stand in it."""
        with os.scandir(self.fd) as entries:
            return sum("#" in e.name and e.name.endswith(".dcm") and e.is_file(follow_symlinks=False) for e in entries)

    def probe(self) -> None:
        """Write a small file and remove it."""
        name = f".talaria-{secrets.token_hex(8)}.part"
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            _write_all(fd, bytes(4096))
            os.fsync(fd)
        finally:
            os.close(fd)
            os.unlink(name, dir_fd=self.fd)


def _write_all(fd: int, content: bytes) -> None:
    """Write all of it; a short write is followed by the rest, or by the error that cut it."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]
