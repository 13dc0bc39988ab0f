"""Disks that are small, read-only or gone: mounted for a test, and never left behind."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def run(*command: str) -> None:
    """A command that must do what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, f"{' '.join(command)}: {done.stderr}"


@dataclass(frozen=True)
class Disk:
    """A file system of its own on a folder."""

    folder: Path

    @property
    def free_bytes(self) -> int:
        """What can be written yet."""
        numbers = os.statvfs(self.folder)
        return numbers.f_bavail * numbers.f_frsize

    @contextlib.contextmanager
    def filled(self, *, left_bytes: int = 0) -> Iterator[None]:
        """No more free than that, until the end of it."""
        filler = self.folder / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, self.free_bytes - left_bytes))
        try:
            yield
        finally:
            filler.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Remounted so, until the end of it."""
        run("mount", "-o", "remount,ro", str(self.folder))
        try:
            yield
        finally:
            run("mount", "-o", "remount,rw", str(self.folder))

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """An empty folder stands in its place, as where it is not mounted."""
        run("mount", "-t", "tmpfs", "-o", "size=1m", "nothing", str(self.folder))
        try:
            yield
        finally:
            run("umount", "-l", str(self.folder))


@contextlib.contextmanager
def small_disk(folder: Path, *, size: str = "16m", files: int = 0) -> Iterator[Disk]:
    """
    A disk in memory of that size, of so many files at most.

    Mounting takes root; where tests run as somebody else they fail here, and say so.
    """
    assert os.geteuid() == 0, "small disks are mounted: run these tests as root (in a container, with CAP_SYS_ADMIN)"
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode=0755" + (f",nr_inodes={files}" if files else "")
    run("mount", "-t", "tmpfs", "-o", options, "small", str(folder))
    try:
        yield Disk(folder)
    finally:
        run("umount", "-l", str(folder))
