"""Finding DICOM instances among files."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from talaria.dimse.negotiation import Context
from talaria.model.errors import ConfigError, NotAnInstance
from talaria.model.part10 import META_LIMIT_BYTES, FileMeta, data_set_uid, parse_meta

#: The media storage directory class (PS3.10 section 8.6): a DICOMDIR lists instances and is none.
_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that holds an instance."""

    path: Path
    meta: FileMeta

    @property
    def context(self) -> Context:
        """What its presentation context must carry."""
        return Context(self.meta.sop_class_uid, self.meta.transfer_syntax_uid)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that was passed over."""

    path: Path
    reason: str


def find_instances(paths: Iterable[Path]) -> Iterator[Found | Skipped]:
    """
    Look at every regular file of *paths*, folders searched to their depth in the order of names.

    Links to folders are not followed. Files are looked at as they are asked for, and only at their first bytes.

    Raises:
        ConfigError: One of *paths* itself does not exist or cannot be read.
    """
    for path in paths:
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        if is_folder:
            yield from map(look, _files(path))
        else:
            yield look(path)


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(where, name)


def look(path: Path) -> Found | Skipped:
    """Whether *path* is an instance that can be sent."""
    try:
        meta = parse_meta(_head(path))
        data_set_uid(meta.sop_class_uid, name="Media Storage SOP Class UID (0002,0002)")
        data_set_uid(meta.sop_instance_uid, name="Media Storage SOP Instance UID (0002,0003)")
        data_set_uid(meta.transfer_syntax_uid, name="Transfer Syntax UID (0002,0010)")
    except NotAnInstance as error:
        return Skipped(path=path, reason=str(error))
    except OSError as error:
        return Skipped(path=path, reason=error.strerror or type(error).__name__)
    if meta.sop_class_uid == _DIRECTORY:
        return Skipped(path=path, reason="a DICOMDIR, not an instance")
    return Found(path=path, meta=meta)


def _head(path: Path) -> bytes:
    """The first bytes; a pipe or device is never opened for reading."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotAnInstance("not a regular file")
        return os.read(descriptor, META_LIMIT_BYTES)
    finally:
        os.close(descriptor)
