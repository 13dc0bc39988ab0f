"""A way between two that a test can part, and heal again."""

import contextlib
import socket
import threading
from collections.abc import Iterator

_MOST_BYTES = 64 << 10


class Way:
    """
    Leads from a port of its own to another one.

    While it is parted nothing passes in either direction and nobody is told: no connection ends, and whoever connects
    hears nothing. What was sent meanwhile arrives when it is healed, as TCP would send it again.

    Attributes:
        port: Where it begins.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._is_open = threading.Event()
        self._is_open.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._listen, name="way", daemon=True).start()

    def part(self) -> None:
        """Let nothing pass."""
        self._is_open.clear()

    def heal(self) -> None:
        """Let everything pass again."""
        self._is_open.set()

    def close(self) -> None:
        """Take nobody any more."""
        self.heal()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), name="way-join", daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._is_open.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._to_port))
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._pass, args=(one, other), name="way-pass", daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(_MOST_BYTES):
                self._is_open.wait()
                other.sendall(data)
        self._is_open.wait()  # nor does the end of a connection pass
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def way(to_port: int) -> Iterator[Way]:
    """A way to a port on the loopback."""
    made = Way(to_port)
    try:
        yield made
    finally:
        made.close()
