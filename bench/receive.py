"""
P1: receive CT instances, durable and indexed, beside raw TCP to files and DCMTK's storescp; P2: the memory it takes.

    python -m bench.receive [--quick]

The senders are the same for all: processes that replay one ready-made message under ever new UIDs and wait for each
answer. Raw TCP to files syncs nothing and answers with one byte: more than that, no receiver can have.
"""

import contextlib
import multiprocessing
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench import images, measure
from talaria.dimse import negotiation
from talaria.dimse.negotiation import Context

ROUNDS, IMAGES = 5, 400
QUICK_ROUNDS, QUICK_IMAGES = 2, 150
LARGE_BYTES = 300 << 20
_CONTEXTS = (Context(images.SOP_CLASS, images.TRANSFER_SYNTAX),)
_SUCCESS = b"\0\0\0\x09\2\0\0\0\0\0"  # (0000,0900), 2 bytes, 0000


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """One that is measured."""

    name: str
    pid: int
    port: int
    folder: Path
    """Where its files end up; emptied after each run."""
    is_dicom: bool = True
    is_settled: Callable[[], bool] = lambda: True
    """Whether it has done all that it does for what it was sent."""


@dataclass(kw_only=True)
class Figures:
    """Of one receiver at one number of senders; one entry per round."""

    rates: list[float] = field(default_factory=list)
    """Images acknowledged per second."""
    settled_rates: list[float] = field(default_factory=list)
    """Images per second until everything was written down too."""
    processor: list[float] = field(default_factory=list)
    """CPU-seconds per 1000 images."""
    lasting: list[float] = field(default_factory=list)
    """The same of the threads that outlive an association: ours alone, and nearly all of it the indexer."""


# -- senders --


def _connect(receiver: Receiver, *, pixel_bytes: int = images.PIXEL_BYTES) -> tuple[socket.socket, bytearray]:
    """A connection that is ready for instances, and the message to send."""
    sock = socket.create_connection(("127.0.0.1", receiver.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not receiver.is_dicom:
        message = images.message(context_id=1, max_length=128 << 10, pixel_bytes=pixel_bytes)
        sock.sendall(struct.pack(">Q", len(message)))
        return sock, message
    sock.sendall(
        negotiation.request_pdu(called_ae="TALARIA", calling_ae="BENCH", contexts=_CONTEXTS, max_length=16 << 10)
    )
    agreement = negotiation.read_accept(_pdu(sock), _CONTEXTS)
    (context_id,) = agreement.contexts
    return sock, images.message(context_id=context_id, max_length=agreement.max_length, pixel_bytes=pixel_bytes)


def _pdu(sock: socket.socket) -> bytes:
    """The body of the next PDU."""
    length = struct.unpack_from(">I", sock.recv(6, socket.MSG_WAITALL), 2)[0]
    return sock.recv(length, socket.MSG_WAITALL)


def _send(receiver: Receiver, run: int, series: int, count: int, start: Barrier, result: Connection) -> None:
    """Send a series when all are ready; tells when it began and ended."""
    sock, message = _connect(receiver)
    start.wait()
    began = time.monotonic()
    for one in images.renamed(message, run=run, series=series, count=count):
        sock.sendall(one)
        _confirm(sock, receiver)
    result.send((began, time.monotonic()))
    if receiver.is_dicom:
        sock.sendall(b"\5\0\0\0\0\4\0\0\0\0")  # A-RELEASE-RQ
        _pdu(sock)
    sock.close()


def _confirm(sock: socket.socket, receiver: Receiver) -> None:
    answer = _pdu(sock) if receiver.is_dicom else sock.recv(1)
    if receiver.is_dicom and _SUCCESS not in answer:
        raise ConnectionError(f"{receiver.name} did not answer with success")


# -- runs --


def measured(receiver: Receiver, figures: Figures, *, run: int, senders: int, count: int) -> None:
    """One run, written into *figures*."""
    processor, lasting = measure.processor_seconds(receiver.pid), measure.lasting_threads_seconds(receiver.pid)
    spans = _sent(receiver, run=run, senders=senders, each=count // senders)
    began, ended = min(span[0] for span in spans), max(span[1] for span in spans)
    measure.until(receiver.is_settled, seconds=120, what=f"{receiver.name} to settle")
    settled = time.monotonic()
    sent = count // senders * senders
    figures.rates.append(sent / (ended - began))
    figures.settled_rates.append(sent / (settled - began))
    figures.processor.append((measure.processor_seconds(receiver.pid) - processor) / sent * 1000)
    figures.lasting.append((measure.lasting_threads_seconds(receiver.pid) - lasting) / sent * 1000)
    _empty(receiver.folder)


def _sent(receiver: Receiver, *, run: int, senders: int, each: int) -> list[tuple[float, float]]:
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(senders)
    pipes = [fork.Pipe() for _ in range(senders)]
    processes = [
        fork.Process(target=_send, args=(receiver, run, number, each, start, there))
        for number, (_, there) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.exitcode:
            raise RuntimeError(f"a sender to {receiver.name} failed")
    return [here.recv() for here, _ in pipes]


def _empty(folder: Path) -> None:
    """Give the blocks back, not the inodes: ext4 avoids for 5 s what was deleted, at half a millisecond a file."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.truncate(path, 0)
    os.sync()  # what one has left to be written is not to slow down the next


# -- receivers --


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running(*command: str, port: int, folder: Path, **environment: str) -> Iterator[int]:
    """A server in a process of its own, up when its port answers; its process ID."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "TCP_NODELAY": "1", **environment}, stdout=log, stderr=log
        )
    try:
        measure.until(lambda: process.poll() is not None or answers(port), seconds=30, what=command[0])
        if process.poll() is not None:
            raise RuntimeError((folder / "log").read_text())
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    """Whether somebody listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def raw(folder: Path, *, how: str = "files", name: str = "raw TCP to file, unsynced") -> Iterator[Receiver]:
    """Raw TCP into files."""
    port, files = free_port(), folder / "files"
    files.mkdir()
    with running(sys.executable, "-m", "bench.sink", how, str(port), str(files), port=port, folder=folder) as pid:
        yield Receiver(name=name, pid=pid, port=port, folder=files, is_dicom=False)


def raw_synced(folder: Path) -> contextlib.AbstractContextManager[Receiver]:
    """The same, durable."""
    return raw(folder, how="synced", name="raw TCP to file, synced")


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[Receiver]:
    """DCMTK's receiver at its best."""
    port, files = free_port(), folder / "files"
    files.mkdir()
    command = ("storescp", "--fork", "+B", "+xa", "-pdu", "131072", "-od", str(files), str(port))
    with running(*command, port=port, folder=folder) as pid:
        yield Receiver(name="storescp --fork +B, unsynced", pid=pid, port=port, folder=files)


@contextlib.contextmanager
def talaria(folder: Path, *, processes: int = 1) -> Iterator[Receiver]:
    """A home of its own with `talaria serve receiver`."""
    port, home = free_port(), folder / "home"
    environment = {
        "TALARIA_HOME": str(home), "TALARIA_DICOM_HOST": "127.0.0.1", "TALARIA_DICOM_PORT": str(port),
        "TALARIA_RECEIVER_PROCESSES": str(processes),
    }  # fmt: skip
    command = (sys.executable, "-m", "talaria")
    subprocess.run((*command, "init"), env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
    with running(*command, "serve", "receiver", port=port, folder=folder, **environment) as pid:
        spool = home / "spool"
        name = "talaria, synced and indexed" + (f", {processes} processes" if processes > 1 else "")
        yield Receiver(
            name=name, pid=pid, port=port, folder=spool / "store", is_settled=lambda: not os.listdir(spool / "new")
        )


# -- tables --


def memory(receiver: Receiver) -> str:
    """A line on what one large object takes."""
    measure.forget_peaks(receiver.pid)
    before = measure.peak_bytes(receiver.pid)
    sock, message = _connect(receiver, pixel_bytes=LARGE_BYTES)
    with sock:
        for one in images.renamed(message, run=999_999, series=1, count=1):
            sock.sendall(one)
            _confirm(sock, receiver)
        peak = measure.peak_bytes(receiver.pid)
    _empty(receiver.folder)
    return f"{receiver.name:32} {peak / 1e6:8.0f} MB resident at most, {(peak - before) / 1e6:6.1f} MB more than before"


def table(senders: int, results: dict[str, Figures]) -> str:
    """One line per receiver; medians."""
    limit, durable = (measure.middle(one.rates) for one in list(results.values())[:2])
    lines = [
        f"{senders} sender{'s' * (senders > 1)}, images of {len(images.template()) / 1000:.0f} KB ({measure.load()})",
        f"{'':36} {'images/s':>8} {'(range)':>11} {'of raw':>7} {'of synced':>9} {'incl. rows':>10} "
        f"{'CPU-s/1000':>10} {'indexer':>8}",
    ]
    for name, one in results.items():
        rate = measure.middle(one.rates)
        indexer = f"{measure.middle(one.lasting):8.2f}" if name.startswith("talaria") else ""
        lines.append(
            f"{name:36} {rate:8.0f} {measure.spread(one.rates):>11} {rate / limit:7.2f} {rate / durable:9.2f} "
            f"{measure.middle(one.settled_rates):10.0f} {measure.middle(one.processor):10.2f} {indexer}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print both tables and the memory."""
    quick = "--quick" in sys.argv
    rounds, count = (QUICK_ROUNDS, QUICK_IMAGES) if quick else (ROUNDS, IMAGES)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="talaria-bench-")))
        receivers = []
        for number, start in enumerate((raw, raw_synced, storescp, talaria)):
            (root / str(number)).mkdir()
            receivers.append(stack.enter_context(start(root / str(number))))
        print(f"receiving, medians of {rounds} rounds taken in turn, {count} images each")
        run = 0
        for senders in (1, 4):
            results = {receiver.name: Figures() for receiver in receivers}
            for _ in range(rounds):
                for receiver in receivers:
                    run += 1
                    measured(receiver, results[receiver.name], run=run, senders=senders, count=count)
            print(table(senders, results), flush=True)
        print(f"one object of {LARGE_BYTES >> 20} MB")
        for receiver in receivers:
            print(memory(receiver))
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
