"""
P4: send CT instances over one association, beside dcmsend and storescu, to an SCP that throws them away.

    python -m bench.send [--quick]

The rate is the receiver's, from the first instance that it had whole to the last. Processor time is of the whole
process of DCMTK's tools, and of the delivery alone for ours: a dispatcher is not started anew for each.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

from bench import images, measure
from bench.receive import Figures, answers, free_port
from talaria.model.extensions import Delivery, Standing
from talaria.targets.dicom import Dicom
from talaria.testing import delivery_of

ROUNDS, IMAGES = 7, 600
QUICK_ROUNDS, QUICK_IMAGES = 3, 200


class Sink:
    """The receiver, in a process of its own."""

    def __init__(self, port: int, process: "subprocess.Popen[str]") -> None:
        self.port, self._process = port, process

    def rate(self) -> float:
        """Instances per second of the last association that brought any."""
        assert self._process.stdout is not None
        count, seconds = self._process.stdout.readline().split()
        return int(count) / float(seconds)


@contextlib.contextmanager
def sink() -> Iterator[Sink]:
    """Start it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.sink", "discard", str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        measure.until(lambda: answers(port), seconds=30, what="the sink")
        yield Sink(port, process)
    finally:
        process.terminate()
        process.wait()


def deliver(delivery: Delivery, port: int) -> float:
    """Ours, in a child; its processor time in seconds."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = _processor(RUSAGE_SELF)
        target = Dicom(host="127.0.0.1", port=port, called_ae="TALARIA")
        sent = sum(outcome.standing is Standing.SENT for outcome in target.deliver(delivery))
        assert sent == len(delivery.parcels)
        os.write(there, str(_processor(RUSAGE_SELF) - before).encode())
        os._exit(0)
    os.close(there)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(here) as told:
        if status:
            raise RuntimeError("our delivery failed")
        return float(told.read())


def by_tool(*command: str) -> float:
    """DCMTK's, without Nagle's delay; its processor time in seconds."""
    before = _processor(RUSAGE_CHILDREN)
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "TCP_NODELAY": "1"}
    )
    return _processor(RUSAGE_CHILDREN) - before


def _processor(who: int) -> float:
    usage = getrusage(who)
    return usage.ru_utime + usage.ru_stime


def senders(folder: Path, count: int, port: int) -> dict[str, Callable[[], float]]:
    """Each by its name; dcmsend, by which the others are measured, first."""
    paths = images.write_files(folder, count)
    checked = delivery_of(paths)
    unchecked = dataclasses.replace(
        checked, parcels=tuple(dataclasses.replace(parcel, sha256="") for parcel in checked.parcels)
    )
    called = ("-aec", "TALARIA", "-pdu", "131072", "127.0.0.1", str(port), "+sd", str(folder))
    return {
        "dcmsend": lambda: by_tool("dcmsend", *called),
        "storescu": lambda: by_tool("storescu", "-R", *called),
        "talaria, hash checked": lambda: deliver(checked, port),
        "talaria, hash not checked": lambda: deliver(unchecked, port),
    }


def table(results: dict[str, Figures]) -> str:
    """One line per sender; medians."""
    limit = measure.middle(results["dcmsend"].rates)
    lines = [
        f"one association, images of {len(images.template()) / 1000:.0f} KB ({measure.load()})",
        f"{'':36} {'images/s':>8} {'(range)':>11} {'of dcmsend':>10} {'CPU-s/1000':>10}",
    ]
    for name, one in results.items():
        rate = measure.middle(one.rates)
        lines.append(
            f"{name:36} {rate:8.0f} {measure.spread(one.rates):>11} {rate / limit:10.2f} "
            f"{measure.middle(one.processor):10.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    quick = "--quick" in sys.argv
    rounds, count = (QUICK_ROUNDS, QUICK_IMAGES) if quick else (ROUNDS, IMAGES)
    folder = Path(tempfile.mkdtemp(prefix="talaria-bench-"))
    try:
        with sink() as far_end:
            contenders = senders(folder, count, far_end.port)
            results = {name: Figures() for name in contenders}
            print(f"sending, medians of {rounds} rounds taken in turn, {count} images each")
            for _ in range(rounds):
                for name, send in contenders.items():
                    results[name].processor.append(send() / count * 1000)
                    results[name].rates.append(far_end.rate())
            print(table(results), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
