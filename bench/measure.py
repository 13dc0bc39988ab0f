"""What every benchmark here measures with: processor time of process trees, resident memory, the machine's name."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """A process and all its descendants, ended ones that nobody has waited for too."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for process in found:
        found += parents.get(process, [])
    return found


def _stat(pid: int) -> list[str]:
    """Fields 3 and on of proc(5)'s stat; none for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def processor_seconds(pid: int) -> float:
    """Processor time of a process tree so far, user and system; in steps of 10 ms."""
    return sum(sum(map(int, fields[11:15])) for process in tree(pid) if (fields := _stat(process))) * _TICK_SECONDS


def lasting_threads_seconds(pid: int) -> float:
    """Processor time of the threads that live now in a process tree, to the nanosecond (schedstat)."""
    return sum(int(file.read_text().split()[0]) for file in _thread_files(tree(pid))) / 1e9


def _thread_files(processes: Sequence[int]) -> Iterator[Path]:
    for process in processes:
        yield from Path(f"/proc/{process}/task").glob("*/schedstat")


def forget_peaks(pid: int) -> None:
    """Let `peak_bytes` begin anew."""
    for process in tree(pid):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most resident memory that any one process of the tree had."""
    return max(_status(process, "VmHWM") for process in tree(pid))


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), 0)


def until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    """Wait until *condition* holds; an error when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Least and most."""
    return f"{min(values):.0f}-{max(values):.0f}"


def load() -> str:
    """Load average of the last minute: what else ran."""
    return f"load {os.getloadavg()[0]:.1f}"


def machine() -> str:
    """What was measured on, and when."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {model}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )
