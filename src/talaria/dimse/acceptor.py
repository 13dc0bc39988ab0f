"""One association from the accepting side: negotiation, C-ECHO, and C-STORE straight into a sink (PS3.7, PS3.8)."""

import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from threading import Lock
from typing import Protocol

import structlog

from talaria.dimse import command as dimse
from talaria.dimse import negotiation, pdu
from talaria.dimse.command import Command, Field, Status
from talaria.dimse.negotiation import Agreement, Rejection
from talaria.dimse.pdu import ProtocolError, Reason
from talaria.failpoint import failpoint
from talaria.model.dicom import UID, Origin
from talaria.model.errors import Mismatch, NoRoom, NotAnInstance
from talaria.model.ulid import ulid

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Association:
    """An association that was accepted."""

    id: str
    """ULID, unique."""
    origin: Origin
    implementation_class_uid: str
    """The peer's, or empty."""
    implementation_version: str
    """The peer's, or empty."""


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """What a C-STORE request says of the data set that follows it."""

    association: Association
    message_id: int
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID


class Ending(StrEnum):
    """How an association ended."""

    RELEASED = "released"
    ABORTED = "aborted"
    """One side broke it off: the peer, or we because of what the peer sent or because we stop."""
    LOST = "lost"
    """The connection broke or the peer fell silent."""


class Incoming(Protocol):
    """
    One instance on its way in; used by one thread.

    Each may raise `NoRoom`, `NotAnInstance` or `Mismatch`, which the sender is told as A700, C000 and A900.
    """

    def write(self, fragments: Sequence[memoryview], /) -> None:
        """Take the next bytes of the data set; the views are valid during the call only."""

    def commit(self) -> None:
        """Return when the whole data set is synced and safe: success is answered next, on the same thread."""

    def discard(self) -> None:
        """Forget it: after anything above has failed, or when the association ends in its middle."""


class Sink(Protocol):
    """Where instances go; used by many threads."""

    def open(self, request: StoreRequest, /) -> Incoming:
        """
        Begin an instance.

        Raises:
            NoRoom, NotAnInstance, Mismatch: The sender is told so once it has sent the data set.
        """

    def ended(self, association: Association, how: Ending, /) -> None:
        """No more instances come over this association; called once for each that was accepted."""


#: Runs something that may have bugs; the bug it caught, or None.
Guard = Callable[[Callable[[], None]], BaseException | None]

#: Who may associate with whom; None lets it pass.
Gate = Callable[[Origin], Rejection | None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a listener puts up with."""

    max_length: int = 256 << 10
    """The maximum PDU length that is announced, in bytes (PS3.8 D.1); from 128 KB on all are alike."""
    instance_bytes: int = 8 << 30
    """A longer data set aborts the association."""
    associations: int = 64
    """Accepted at a time."""
    associations_per_address: int = 16
    arriving: int = 256
    """Connections without a complete A-ASSOCIATE-RQ; beyond, the oldest is closed."""
    arriving_per_address: int = 64
    """The same, from one address."""
    artim: timedelta = timedelta(seconds=10)
    """For a complete A-ASSOCIATE-RQ, TLS handshake included (PS3.8 section 9.1.4)."""
    idle: timedelta = timedelta(minutes=10)
    """Between two messages."""
    stall: timedelta = timedelta(seconds=60)
    """Within a message: in so long a wait for the peer, `least_bytes` must come."""
    least_bytes: int = 16 << 10
    """See `stall`."""
    linger: timedelta = timedelta(seconds=2)
    """For the peer to close the connection after its last answer."""


class Seats:
    """How many associations are accepted at a time, in all and per address."""

    def __init__(self, *, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._taken: dict[str, int] = {}
        self._lock = Lock()

    def take(self, address: str) -> bool:
        """Take a seat for a peer; False where there is none."""
        with self._lock:
            own = self._taken.get(address, 0)
            if own >= self._per_address or sum(self._taken.values()) >= self._most:
                return False
            self._taken[address] = own + 1
            return True

    def leave(self, address: str) -> None:
        """Give a seat back."""
        with self._lock:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]


class Complaints:
    """Lets one log line per minute and address through, so that a scanner cannot fill the disk."""

    _MOST_ADDRESSES = 10_000
    _GAP_SECONDS = 60.0

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._lock = Lock()

    def may_speak(self, address: str) -> bool:
        """Whether this address was not complained of within the last minute; notes that it is now."""
        now = time.monotonic()
        with self._lock:
            if now - self._last.get(address, -self._GAP_SECONDS) < self._GAP_SECONDS:
                return False
            if len(self._last) >= self._MOST_ADDRESSES:
                self._last.clear()
            self._last[address] = now
            return True


@dataclass(frozen=True, kw_only=True)
class Service:
    """What all associations of a listener share."""

    sink: Sink
    gate: Gate
    guard: Guard
    limits: Limits
    seats: Seats
    complaints: Complaints
    is_draining: Callable[[], bool]
    """Whether new associations are refused because we are about to stop."""


#: What a sink raises on purpose, and what the sender is told.
_REFUSALS: tuple[tuple[type[Exception], Status], ...] = (
    (NoRoom, Status.OUT_OF_RESOURCES),
    (NotAnInstance, Status.CANNOT_UNDERSTAND),
    (Mismatch, Status.MISMATCH),
)

#: One `recv_into` may bring as much: from 256 KB on all are alike, 64 KB takes a fifth more processor time.
_RECEIVE_BYTES = 512 << 10

#: Before the association is accepted.
_FIRST_BYTES = 16 << 10


def shown(text: str) -> str:
    r"""
    What a peer calls itself, fit for a log line.

    >>> shown("CT1\n\xff")
    'CT1\\n\\xff'
    """
    return text.encode("unicode_escape").decode("ascii")


class Conversation:
    """
    One connection, from its first byte to its last; lives on a thread of its own.

    Attributes:
        address: The peer's.
        is_accepted: Whether the association stands.
        is_cut: Whether `cut` was called.
    """

    def __init__(self, sock: socket.socket, address: str, service: Service) -> None:
        self.address = address
        self.is_accepted = False
        self.is_cut = False
        self._socket = sock
        self._service = service
        self._limits = service.limits
        self._machine = pdu.Machine(phase=pdu.Phase.LISTENING, max_length=self._limits.max_length)
        self._buffer = memoryview(bytearray(_FIRST_BYTES))
        self._began = time.monotonic()
        self._waited = 0.0  # seconds of this message that the peer let us wait
        self._waited_bytes = 0
        self._timeout: float | None = None
        self._is_over = False
        self._ending = Ending.LOST
        self._association: Association | None = None
        self._agreement: Agreement | None = None
        self._request: Command | None = None  # whose data set is on its way
        self._incoming: Incoming | None = None
        self._size_bytes = 0  # of the data set on its way
        self._status = int(Status.SUCCESS)
        self._comment = ""
        self._stored = self._refused = self._bytes = 0

    def cut(self) -> None:
        """Break it off, from another thread: it ends as soon as it next looks at the peer."""
        self.is_cut = True
        try:
            self._socket.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # it is gone already, which is what was wanted

    def run(self) -> None:
        """Talk until one side ends it; raises nothing but bugs."""
        try:
            self._talk()
        except ProtocolError as error:
            self._break_off(Ending.ABORTED, str(error), farewell=pdu.abort(error.reason))
        except TimeoutError:
            farewell = pdu.abort(Reason.NOT_SPECIFIED) if self.is_accepted else b""
            self._break_off(Ending.LOST, "the peer was silent for too long", farewell=farewell)
        except EOFError:
            if self.is_cut:
                self._break_off(Ending.ABORTED, "cut off here", farewell=pdu.abort() if self.is_accepted else b"")
            else:
                self._break_off(Ending.LOST, "closed by the peer")
        except OSError as error:
            self._break_off(Ending.LOST, error.strerror or type(error).__name__)
        finally:
            self._end()

    # ---- bytes

    def _talk(self) -> None:
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(self._limits.artim.total_seconds())
            self._socket.do_handshake()
        while not self._is_over:
            for event in self._machine.feed(self._receive()):
                self._handle(event)

    def _receive(self) -> memoryview:
        """
        The next bytes.

        Raises:
            EOFError: The peer has closed the connection, or we were cut off.
            TimeoutError: Too little came for too long.
        """
        buffer, before = self._buffer, time.monotonic()
        self._set_timeout(before)
        size = self._socket.recv_into(buffer)
        if self.is_cut or not size:
            raise EOFError
        self._watch_pace(time.monotonic() - before, size)
        return buffer[:size]

    def _set_timeout(self, now: float) -> None:
        if not self.is_accepted:
            wanted = max(0.001, self._began + self._limits.artim.total_seconds() - now)
        elif self._is_resting:
            wanted = self._limits.idle.total_seconds()
            self._waited, self._waited_bytes = 0.0, 0
        else:
            wanted = self._limits.stall.total_seconds()
        if wanted != self._timeout:
            self._socket.settimeout(wanted)
            self._timeout = wanted

    @property
    def _is_resting(self) -> bool:
        return self._request is None and self._machine.is_between_messages

    def _watch_pace(self, seconds: float, size: int) -> None:
        """A peer that sends a byte now and then is a peer that stalls."""
        if not self.is_accepted or self._is_resting:
            return
        self._waited += seconds
        self._waited_bytes += size
        if self._waited > self._limits.stall.total_seconds():
            if self._waited_bytes < self._limits.least_bytes:
                raise TimeoutError
            self._waited, self._waited_bytes = 0.0, 0

    # ---- events

    def _handle(self, event: pdu.Event) -> None:
        if isinstance(event, pdu.DataSet):
            self._take_data(event)
        elif isinstance(event, pdu.CommandSet):
            self._take_command(event)
        elif isinstance(event, pdu.AssociateRequest):
            self._negotiate(event.body)
        elif isinstance(event, pdu.ReleaseRequest):
            self._release()
        elif isinstance(event, pdu.Aborted):
            self._is_over, self._ending = True, Ending.ABORTED

    def _negotiate(self, body: bytes) -> None:
        request = negotiation.read_request(body)
        origin = Origin(calling_ae=request.calling_ae, called_ae=request.called_ae, address=self.address)
        rejection = self._rejection(request, origin)
        if rejection:
            self._is_over = True
            self._socket.sendall(pdu.reject(rejection.result, rejection.source, rejection.reason))
            self._complain("association rejected", reason=str(rejection), **_titles(origin))
            return
        self._agreement, answer = negotiation.accept(request, max_length=self._limits.max_length)
        self._association = Association(
            id=ulid(time.time_ns() // 1_000_000, os.urandom(10)),
            origin=origin,
            implementation_class_uid=request.implementation_class_uid,
            implementation_version=request.implementation_version,
        )
        self.is_accepted = True
        self._machine.open(self._agreement.contexts.keys())
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        log.info(
            "association accepted",
            association=self._association.id,
            address=self.address,
            peer=shown(request.implementation_version),
            contexts=len(self._agreement.contexts),
            refused_contexts=len(request.proposals) - len(self._agreement.contexts),
            **_titles(origin),
        )
        self._socket.sendall(answer)

    def _rejection(self, request: negotiation.Request, origin: Origin) -> Rejection | None:
        """Why the association is refused; None where it is not, and then a seat is taken."""
        service = self._service
        found = negotiation.objection(request)
        if not found and service.is_draining():
            found = negotiation.CONGESTION
        found = found or service.gate(origin)
        if not found and not service.seats.take(self.address):
            found = negotiation.LIMIT_EXCEEDED
        return found

    def _release(self) -> None:
        if self._request:
            raise ProtocolError("release asked for in the middle of a message", reason=Reason.UNEXPECTED_PDU)
        self._is_over, self._ending = True, Ending.RELEASED
        self._socket.sendall(pdu.RELEASE_RP)

    def _take_command(self, event: pdu.CommandSet) -> None:
        if self._request:
            raise ProtocolError("command set where a data set was announced", reason=Reason.NOT_SPECIFIED)
        request = dimse.parse(event.data)
        if request.is_response:
            raise ProtocolError(f"response 0x{request.field:04x} to nothing", reason=Reason.NOT_SPECIFIED)
        if request.field == Field.C_CANCEL_RQ:
            return
        self._status, self._comment, self._size_bytes = int(Status.SUCCESS), "", 0
        if request.field == Field.C_STORE_RQ:
            self._begin_instance(request, event.context_id)
        elif request.field != Field.C_ECHO_RQ:
            self._refuse(Status.UNRECOGNISED_OPERATION, "only C-ECHO and C-STORE are served")
        if request.has_data_set:
            self._request = request
        else:
            self._answer(request)

    def _begin_instance(self, request: Command, context_id: int) -> None:
        """Open the sink, or note why not."""
        if self._agreement is None or self._association is None:
            raise ProtocolError("C-STORE without an association", reason=Reason.UNEXPECTED_PDU)
        context = self._agreement.contexts[context_id]
        if not request.has_data_set:
            return self._refuse(Status.CANNOT_UNDERSTAND, "C-STORE without a data set")
        try:
            sop_instance_uid = UID(request.sop_instance_uid)
        except ValueError:
            return self._refuse(Status.CANNOT_UNDERSTAND, "Affected SOP Instance UID is missing or no UID")
        if request.sop_class_uid != context.sop_class_uid or context.sop_class_uid == negotiation.VERIFICATION:
            return self._refuse(Status.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context")
        wanted = StoreRequest(
            association=self._association,
            message_id=request.message_id,
            sop_class_uid=UID(context.sop_class_uid),
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=UID(context.transfer_syntax_uid),
        )

        def begin() -> None:
            self._incoming = self._service.sink.open(wanted)

        return self._try(begin)

    def _take_data(self, event: pdu.DataSet) -> None:
        request = self._request
        if request is None:
            raise ProtocolError("data set that no command announced", reason=Reason.NOT_SPECIFIED)
        self._size_bytes += sum(map(len, event.fragments))
        if self._size_bytes > self._limits.instance_bytes:
            raise ProtocolError(
                f"data set of more than {self._limits.instance_bytes} bytes", reason=Reason.NOT_SPECIFIED
            )
        incoming = self._incoming
        if incoming and event.fragments:
            self._try(lambda: incoming.write(event.fragments))
        if event.is_last:
            if self._incoming:
                self._try(self._incoming.commit)
            self._request = self._incoming = None
            self._answer(request)

    def _try(self, work: Callable[[], None]) -> None:
        """Let the sink do something; where it fails, the instance is discarded and the status says why."""

        def careful() -> None:
            try:
                work()
            except (NoRoom, NotAnInstance, Mismatch) as error:
                status = next(status for kind, status in _REFUSALS if isinstance(error, kind))
                self._refuse(status, str(error))

        if self._service.guard(careful):
            self._refuse(Status.PROCESSING_FAILURE, "processing failure")
        if self._status != Status.SUCCESS:
            self._discard()

    def _refuse(self, status: Status, comment: str) -> None:
        self._status, self._comment = int(status), comment.replace("\\", "/")

    def _discard(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming:
            self._service.guard(incoming.discard)

    def _answer(self, request: Command) -> None:
        if self._agreement is None:
            return
        answer = dimse.response(request, self._status, comment=self._comment)
        # the context is the request's: nothing else can have come in between
        failpoint("acceptor.answer.ready")
        self._socket.sendall(pdu.command_pdus(self._machine.context_id, answer, max_length=self._agreement.max_length))
        failpoint("acceptor.answer.sent")
        if request.field == Field.C_STORE_RQ:
            self._count()

    def _count(self) -> None:
        if self._status == Status.SUCCESS:
            self._stored += 1
            self._bytes += self._size_bytes
            return
        self._refused += 1
        log.warning(
            "instance refused",
            association=self._association.id if self._association else "",
            status=f"{self._status:04X}",
            reason=shown(self._comment),
        )

    # ---- the end

    def _break_off(self, ending: Ending, reason: str, *, farewell: bytes = b"") -> None:
        self._ending = ending
        if self.is_accepted:
            log.warning("association broken off", association=self._association and self._association.id, reason=reason)
        else:
            self._complain("connection refused", reason=reason)
        if farewell:
            self._is_over = True
            try:
                self._socket.sendall(farewell)
            except OSError:
                pass  # the peer does not care to know

    def _complain(self, event: str, **keys: object) -> None:
        if self._service.complaints.may_speak(self.address):
            log.warning(event, address=self.address, **keys)

    def _end(self) -> None:
        self._discard()
        association = self._association
        if association:
            self.is_accepted = False
            self._service.seats.leave(self.address)
            self._service.guard(lambda: self._service.sink.ended(association, self._ending))
            log.info(
                "association ended",
                association=association.id,
                how=self._ending.value,
                stored=self._stored,
                refused=self._refused,
                bytes=self._bytes,
                seconds=round(time.monotonic() - self._began, 3),
                **_titles(association.origin),
            )
        self._hang_up()

    def _hang_up(self) -> None:
        """
        Close the connection, the peer first if it will (PS3.8 table 9-10, state 13).

        Closing while bytes are unread would reset the connection and take our last answer with it.
        """
        deadline = time.monotonic() + self._limits.linger.total_seconds()
        try:
            if self._is_over:
                self._socket.shutdown(socket.SHUT_WR)
                while (left := deadline - time.monotonic()) > 0 and not self.is_cut:
                    self._socket.settimeout(left)
                    if not self._socket.recv_into(self._buffer):
                        break
        except OSError:
            pass  # closed, reset or silent: all the same now
        finally:
            self._socket.close()


def _titles(origin: Origin) -> dict[str, str]:
    return {"calling_ae": shown(origin.calling_ae), "called_ae": shown(origin.called_ae)}
