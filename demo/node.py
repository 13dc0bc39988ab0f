"""A second DICOM node for the demonstration: stores what it is sent in a folder, a file for each instance."""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from talaria.dimse.scp import Association, Ending, Listener, StoreRequest
from talaria.model.part10 import FileMeta, build_meta


class FolderSink:
    """Puts each instance into one folder, under its SOP Instance UID."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, request: StoreRequest) -> "FolderFile":
        """Begin a file."""
        meta = FileMeta(
            offset=0,
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
        )
        return FolderFile(self._folder / f"{request.sop_instance_uid}.dcm", build_meta(meta))

    def ended(self, association: Association, how: Ending) -> None:
        """Nothing to do."""


class FolderFile:
    """One instance on its way into the folder; there under its name once it is whole."""

    def __init__(self, path: Path, head: bytes) -> None:
        self._path, self._part = path, path.with_suffix(".part")
        self._file = self._part.open("wb")
        self._file.write(head)

    def write(self, fragments: Sequence[memoryview]) -> None:
        """Append."""
        self._file.writelines(fragments)

    def commit(self) -> None:
        """Whole."""
        self._file.close()
        self._part.rename(self._path)

    def discard(self) -> None:
        """Not wanted."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def guard(work: Callable[[], None]) -> None:
    """Let a bug be seen."""
    work()


def main(folder: Path, port: int) -> None:
    """Run until killed."""
    folder.mkdir(parents=True, exist_ok=True)
    listener = Listener(host="127.0.0.1", port=port, sink=FolderSink(folder), guard=guard)
    listener.start()
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
