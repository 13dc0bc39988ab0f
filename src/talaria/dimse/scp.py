"""The listener: takes connections, each on a thread of its own, within limits, and stops in good order."""

import errno
import socket
import ssl
import threading
import time
from datetime import timedelta

import structlog

from talaria.dimse.acceptor import (
    Association,
    Complaints,
    Conversation,
    Ending,
    Gate,
    Guard,
    Incoming,
    Limits,
    Seats,
    Service,
    Sink,
    StoreRequest,
)
from talaria.dimse.negotiation import Rejection
from talaria.model.dicom import Origin
from talaria.model.errors import ConfigError

__all__ = [
    "Association",
    "Ending",
    "Gate",
    "Guard",
    "Incoming",
    "Limits",
    "Listener",
    "Rejection",
    "Seats",
    "Sink",
    "StoreRequest",
    "admit_all",
]

log = structlog.get_logger(__name__)

#: What `accept` meets when this process or the machine has no room for another connection.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_BACKLOG = 256


def admit_all(origin: Origin) -> Rejection | None:  # noqa: ARG001  (a gate is asked about an origin)
    """The gate that lets everybody pass."""
    return None


class Listener:
    """
    An SCP of storage and verification on one port.

    It accepts any storage SOP class in any transfer syntax and hands each instance to the sink as it comes, on the
    association's own thread.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        sink: Sink,
        guard: Guard,
        gate: Gate = admit_all,
        limits: Limits | None = None,
        seats: Seats | None = None,
        tls: ssl.SSLContext | None = None,
        share_port: bool = False,
    ) -> None:
        """
        Args:
            host: Address to listen at; `""` or `"::"` for all.
            port: 0 lets the system choose.
            sink: Where instances go.
            guard: Runs what may have bugs: an association, or a call into the sink.
            gate: Asked of each association that is otherwise in order.
            limits: What is put up with.
            seats: Shared by listeners whose associations count together; else made from *limits*.
            tls: A server's context, for a port that speaks TLS only.
            share_port: Whether other processes may listen at the same port (SO_REUSEPORT).
        """
        self._host = host
        self._port = port
        self._tls = tls
        self._share_port = share_port
        self._limits = limits or Limits()
        self._is_draining = False
        self._is_closed = False
        self._service = Service(
            sink=sink,
            gate=gate,
            guard=guard,
            limits=self._limits,
            seats=seats or Seats(most=self._limits.associations, per_address=self._limits.associations_per_address),
            complaints=Complaints(),
            is_draining=lambda: self._is_draining,
        )
        self._conversations: dict[Conversation, None] = {}  # oldest first
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="dicom-listener", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return int(self._socket.getsockname()[1]) if self._socket and not self._is_closed else self._port

    @property
    def is_alive(self) -> bool:
        """Whether connections are still taken."""
        return self._thread.is_alive()

    @property
    def associations(self) -> int:
        """Accepted and not yet ended."""
        with self._changed:
            return sum(conversation.is_accepted for conversation in self._conversations)

    def start(self) -> None:
        """
        Begin to listen; returns when connections are taken.

        Raises:
            ConfigError: The port cannot be had.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._socket = socket.create_server(
                (self._host, self._port),
                family=family,
                backlog=_BACKLOG,
                reuse_port=self._share_port,
                dualstack_ipv6=self._host == "::",
            )
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen for DICOM at {self._host or '*'}:{self._port}: {error}; "
                "choose another dicom_port, or stop what holds this one"
            ) from error
        self._port = self.port
        self._thread.start()

    def stop(self, grace: timedelta = timedelta(seconds=10)) -> None:
        """
        Refuse new associations, let the running ones end within *grace*, then break off what is left.

        Returns when nothing runs any more; to be called once.
        """
        self._is_draining = True
        deadline = time.monotonic() + grace.total_seconds()
        with self._changed:
            while any(conversation.is_accepted for conversation in self._conversations):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.1))  # an association ends before its thread does
        self._close()
        with self._changed:
            for conversation in self._conversations:
                conversation.cut()
            patience = self._limits.stall.total_seconds()
            self._changed.wait_for(lambda: not self._conversations, timeout=patience)

    def _close(self) -> None:
        self._is_closed = True
        if self._socket:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
            except OSError:
                pass  # already down
            self._thread.join()
            self._socket.close()

    def _run(self) -> None:
        while not self._is_closed:
            bug = self._service.guard(self._accept)
            if bug:
                time.sleep(0.1)  # a bug that comes back at once must not burn the processor

    def _accept(self) -> None:
        while self._socket and not self._is_closed:
            try:
                sock, peer = self._socket.accept()
            except OSError as error:
                if not self._is_closed and error.errno in _EXHAUSTED:
                    self._relieve(error)
                continue
            self._welcome(sock, peer[0].removeprefix("::ffff:"))

    def _relieve(self, error: OSError) -> None:
        """No room for another connection: close the oldest that has not yet said who it is, and breathe."""
        if self._service.complaints.may_speak(""):
            log.error("out of connections", reason=error.strerror)
        with self._changed:
            oldest = next((c for c in self._conversations if not (c.is_accepted or c.is_cut)), None)
            if oldest:
                oldest.cut()
            self._changed.wait(0.1)

    def _welcome(self, sock: socket.socket, address: str) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError:
            sock.close()  # gone before it was greeted
            return
        conversation = Conversation(sock, address, self._service)
        with self._changed:
            self._make_room(address)
            self._conversations[conversation] = None
        thread = threading.Thread(target=self._hold, args=(conversation,), name=f"dicom-{address}", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # no more threads
            if self._service.complaints.may_speak(address):
                log.error("out of threads", address=address)
            self._forget(conversation)
            sock.close()

    def _make_room(self, address: str) -> None:
        """Keep those that have not yet said who they are within bounds."""
        arriving = [c for c in self._conversations if not (c.is_accepted or c.is_cut)]
        own = [c for c in arriving if c.address == address]
        if len(own) >= self._limits.arriving_per_address:
            own[0].cut()
        elif len(arriving) >= self._limits.arriving:
            arriving[0].cut()

    def _hold(self, conversation: Conversation) -> None:
        try:
            self._service.guard(conversation.run)
        finally:
            self._forget(conversation)

    def _forget(self, conversation: Conversation) -> None:
        with self._changed:
            self._conversations.pop(conversation, None)
            self._changed.notify_all()
