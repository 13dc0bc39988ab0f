"""What the kernel is asked for before an instance is acknowledged."""

import re
import subprocess
from pathlib import Path

import pytest

from serving import Serving, until
from talaria.testing import synthetic_ct

pytestmark = pytest.mark.server

CALLS = "openat,open,fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,write,writev,pwrite64"


def test_file_and_directory_are_synced_before_the_answer(tmp_path: Path, serving: Serving) -> None:
    """
    For each instance one thread syncs the file, renames it into new/, syncs that directory, and only then sends.
    """
    serving.start("receiver")
    (pid,) = until(lambda: serving.pids("receiver"), seconds=20, what="the receiver's word")
    trace = tmp_path / "trace"
    tracer = subprocess.Popen(
        ["strace", "-ff", "-y", "-e", f"trace={CALLS}", "-o", str(trace), "-p", str(pid)],
        stderr=subprocess.DEVNULL,
    )
    until(lambda: list(tmp_path.glob("trace.*")), seconds=20, what="strace")
    status = Path(f"/proc/{pid}/status")
    until(lambda: f"TracerPid:\t{tracer.pid}" in status.read_text(), seconds=20, what="strace to attach")
    tally = serving.send(*synthetic_ct(tmp_path / "ct", seed=5, slices=5, side=64).paths)
    tracer.terminate()
    tracer.wait(20)
    serving.stop()

    assert 5 == tally["stored"]
    assert ["file synced", "renamed into new/", "new/ synced", "answered"] * 5 == told(
        [file.read_text() for file in tmp_path.glob("trace.*")]
    )


def told(traces: list[str]) -> list[str]:
    """What the one thread that received did, in order; its other calls are of no matter here."""
    by_thread = [[word for line in trace.splitlines() if (word := meaning(line))] for trace in traces]
    receiving = [words for words in by_thread if "renamed into new/" in words]
    assert 1 == len(receiving)
    words = receiving[0]
    return words[words.index("file synced") : len(words) - words[::-1].index("answered")][: 4 * 5]


def meaning(call: str) -> str | None:
    """One call in words; None for what is not looked at."""
    patterns = {
        "file synced": r"f(data)?sync\(\d+<[^>]*/spool/tmp/[0-9A-Z]{26}[^>]*>\) += 0",
        "renamed into new/": r'rename(at2?)?\(.*/spool/tmp/[^"]*".*/spool/new/[0-9A-Z]{26}\.dcm".*\) += 0',
        "new/ synced": r"f(data)?sync\(\d+<[^>]*/spool/new>\) += 0",
        "answered": r"send(to|msg)\(\d+<(socket|TCP)",
    }
    return next((word for word, pattern in patterns.items() if re.match(pattern, call)), None)
