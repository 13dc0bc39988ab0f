"""
Receivers that do next to nothing, each in a process of its own.

    python -m bench.sink files PORT FOLDER     raw TCP into files, unsynced: what the machine can take at most
    python -m bench.sink synced PORT FOLDER    the same with file and directory synced: what can be had durably
    python -m bench.sink discard PORT          a storage SCP that throws away what it is sent
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from talaria.dimse.scp import Association, Ending, Listener, StoreRequest

_BUFFER_BYTES = 512 << 10


def to_files(port: int, folder: Path, *, synced: bool) -> None:
    """Take connections, each in a child; an image is so many bytes as the first eight say, and is answered by one."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY) if synced else None
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, peer = server.accept()
            _reap()
            if os.fork() == 0:
                _write_all(connection, folder / str(peer[1]), directory)
                os._exit(0)
            connection.close()


def _reap() -> None:
    """Take note of children that have ended, so that their processor time is ours."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _write_all(connection: socket.socket, prefix: Path, directory: int | None) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    size = struct.unpack(">Q", connection.recv(8, socket.MSG_WAITALL) or bytes(8))[0]
    buffer, number = memoryview(bytearray(_BUFFER_BYTES)), 0
    got = connection.recv_into(buffer) if size else 0
    while got:
        file = os.open(f"{prefix}-{number}", os.O_WRONLY | os.O_CREAT, 0o600)
        left = size
        while left and got:
            os.write(file, buffer[:got])
            left -= got
            got = connection.recv_into(buffer, min(left, _BUFFER_BYTES)) if left else 0
        if directory is not None:
            os.fsync(file)
            os.rename(f"{prefix}-{number}", f"{prefix}-{number}.dcm")
            os.fsync(directory)
        os.close(file)
        connection.sendall(b"\1")
        number += 1
        got = connection.recv_into(buffer)


class Nothing:
    """A sink for one association at a time that keeps nothing, and says how many it was sent in how many seconds."""

    def __init__(self) -> None:
        self._moments: list[float] = []

    def open(self, request: StoreRequest) -> "Nothing":
        """Take any instance."""
        return self

    def write(self, fragments: Sequence[memoryview]) -> None:
        """Throw it away."""

    def commit(self) -> None:
        """Look at the clock."""
        self._moments.append(time.monotonic())

    def discard(self) -> None:
        """Forget it."""

    def ended(self, association: Association, how: Ending) -> None:
        """Say from the first instance to the last."""
        moments, self._moments = self._moments, []
        if moments:
            print(len(moments) - 1, moments[-1] - moments[0], flush=True)


def discard(port: int) -> None:
    """Serve until killed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    Listener(host="127.0.0.1", port=port, sink=Nothing(), guard=_unguarded).start()
    while True:
        time.sleep(3600)


def _unguarded(work: Callable[[], object]) -> BaseException | None:
    work()
    return None


if __name__ == "__main__":
    if sys.argv[1] == "discard":
        discard(int(sys.argv[2]))
    else:
        to_files(int(sys.argv[2]), Path(sys.argv[3]), synced=sys.argv[1] == "synced")
