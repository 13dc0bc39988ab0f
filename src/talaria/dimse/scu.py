"""The sender: one association as requestor, C-STORE of files bit for bit, C-ECHO (PS3.4 annex B, PS3.8)."""

import hashlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import pydicom.uid

from talaria.dimse import command as dimse
from talaria.dimse import negotiation, pdu
from talaria.dimse.command import Command, Meaning
from talaria.dimse.negotiation import VERIFICATION, Agreement, Context, Rejection
from talaria.dimse.pdu import DATA_HEADER_BYTES, PDV_HEADER_BYTES, ProtocolError
from talaria.model.dicom import AETitle
from talaria.model.errors import Congested, NotAnInstance, Permanent, Transient
from talaria.model.part10 import META_LIMIT_BYTES, FileMeta, parse_meta

#: The transfer syntax that everybody must accept (PS3.5 section 10.1).
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"

#: A family and what `connect` takes in it.
_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who is called, and as whom."""

    host: str
    port: int
    called_ae: AETitle
    calling_ae: AETitle

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long a peer may keep us waiting."""

    connect: timedelta = timedelta(seconds=10)
    acse: timedelta = timedelta(seconds=30)
    """For the answer to an association request, and to a release."""
    dimse: timedelta = timedelta(seconds=60)
    """Without any progress: a byte taken, or the response."""


@dataclass(frozen=True, kw_only=True)
class StoreResult:
    """What the peer answered to one C-STORE."""

    status: int
    """PS3.4 table B.2-1."""
    comment: str
    """(0000,0902) as the peer wrote it; it may tell of a patient, so it is for the ledger, never for a log."""

    @property
    def meaning(self) -> Meaning:
        """What the status asks of us."""
        return dimse.meaning(self.status)

    def __str__(self) -> str:
        return dimse.status_text(self.status)


class NotAccepted(Permanent):
    """The peer accepted no presentation context for this SOP class in this transfer syntax."""


class AssociationLost(Transient):
    """The association broke in the middle: the peer aborted it, fell silent, spoke nonsense or hung up."""


class Damaged(Permanent):
    """The file is not, or no longer, the instance that it should be; nothing of it was stored at the peer."""


class Sender:
    """
    One association as requestor; a context manager that opens it, releases it, and aborts it on an error.

    All it raises once it is open: `AssociationLost` when it breaks (it is then of no more use), `Transient` when the
    disk fails, `NotAccepted` and `Damaged` for a single instance.

    Attributes:
        is_open: Whether anything more can be sent.
    """

    def __init__(
        self,
        peer: Peer,
        contexts: Sequence[Context],
        *,
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            peer: Whom to call.
            contexts: What to propose, at most `negotiation.MOST_CONTEXTS`; verification is added where it fits.
            timeouts: How long to wait.
            tls: A client's context, for a peer that speaks TLS.
        """
        self.is_open = False
        self._peer = peer
        self._contexts = _with_verification(contexts)
        self._timeouts = timeouts or Timeouts()
        self._tls = tls
        self._machine = pdu.Machine(phase=pdu.Phase.REQUESTING, max_length=_MAX_LENGTH)
        self._inbox = memoryview(bytearray(_INBOX_BYTES))
        self._said = self._events()
        self._socket: socket.socket | None = None
        self._agreement: Agreement | None = None
        self._ids: dict[Context, int] = {}
        self._train = _Train(_DEFAULT_TRAIN)
        self._message_id = 0
        self._is_aborted = False

    def __enter__(self) -> Self:
        """
        Open the association.

        Raises:
            Transient: The peer cannot be reached or is silent.
            Congested: It refuses for now.
            Permanent: It refuses; names the AE titles.
        """
        with ExitStack() as undo:
            undo.callback(self._close)
            self._connect()
            self._associate()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_open and error is None:
            self._release()
        elif self.is_open:
            self._say_abort()
        self._close()

    @property
    def agreement(self) -> Agreement:
        """
        What the peer accepted.

        Raises:
            Transient: The association is not open.
        """
        if self._agreement is None:
            raise Transient(f"{self._peer} has no open association")
        return self._agreement

    def accepts(self, context: Context) -> bool:
        """Whether the peer accepted *context*."""
        return context in self._ids

    def abort(self) -> None:
        """Break off whatever is under way, from any thread, without a word to the peer."""
        self._is_aborted = True
        sock = self._socket
        if sock:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # not connected, or no more

    def echo(self) -> None:
        """
        Ask the peer whether it is there (C-ECHO).

        Raises:
            NotAccepted: It does not offer verification.
            Permanent: It answered something else than success.
        """
        context_id = self._context_id(Context(VERIFICATION, IMPLICIT_LITTLE_ENDIAN))
        request = dimse.echo_request(message_id=self._next_message_id())
        with self._speaking():
            self._send(memoryview(pdu.command_pdus(context_id, request, max_length=self.agreement.max_length)))
            answer = self._response()
        if answer.status:
            raise Permanent(f"{self._peer} answered C-ECHO with {dimse.status_text(answer.status)}")

    def store(self, path: Path, *, context: Context, sop_instance_uid: str, sha256: str | None = None) -> StoreResult:
        """
        Send the data set of a Part 10 file, byte for byte as it stands there.

        Args:
            path: The file.
            context: SOP class, and the transfer syntax that the file is in.
            sop_instance_uid: For the command.
            sha256: Of the data set, in hex. Where it does not agree the peer never gets the last bytes.

        Raises:
            NotAccepted: The peer did not accept *context*; nothing was sent.
            Damaged: The file is gone, is cut off, or is not what was said of it. Where some of it had been sent, the
                association is aborted: see `is_open`.
        """
        context_id = self._context_id(context)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Damaged(f"instance {sop_instance_uid}: {path} is gone") from None
        except OSError as error:
            raise Transient(f"instance {sop_instance_uid}: {path} cannot be read: {error.strerror}") from error
        try:
            freight = _Freight(descriptor, path, context, sha256)
            return self._ship(freight, context_id, sop_instance_uid)
        finally:
            os.close(descriptor)

    def _ship(self, freight: "_Freight", context_id: int, sop_instance_uid: str) -> StoreResult:
        command = dimse.store_request(
            message_id=self._next_message_id(),
            sop_class_uid=freight.context.sop_class_uid,
            sop_instance_uid=sop_instance_uid,
        )
        head = pdu.command_pdus(context_id, command, max_length=self.agreement.max_length)
        while freight.left:
            try:
                load = self._train.load(freight, context_id, head)
            except (Damaged, Transient):
                if not head:  # the peer waits for bytes that we will not send
                    self._say_abort()
                raise
            with self._speaking():
                self._send(load)
            head = b""
        with self._speaking():
            answer = self._response()
        return StoreResult(status=answer.status, comment=answer.comment)

    # ---- association

    def _connect(self) -> None:
        wait = self._timeouts.connect.total_seconds()
        try:
            sock = self._reach(_addresses(self._peer), wait)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(self._timeouts.acse.total_seconds())
            if self._tls:
                sock = self._socket = self._tls.wrap_socket(sock, server_hostname=self._peer.host)
        except TimeoutError as error:
            raise Transient(f"{self._peer} did not answer within {wait:g} s; is it up, and is the way open?") from error
        except ssl.SSLCertVerificationError as error:
            raise Permanent(f"{self._peer} shows a certificate that is not trusted: {error.verify_message}") from error
        except OSError as error:
            raise Transient(f"{self._peer} cannot be reached: {error.strerror or type(error).__name__}") from error

    def _reach(self, addresses: Sequence[_Address], wait: float) -> socket.socket:
        """A connection to the first address that takes one."""
        for family, address in addresses[:-1]:
            try:
                return self._dial(family, address, wait)
            except OSError:
                if self._is_aborted:
                    raise
        return self._dial(*addresses[-1], wait)

    def _dial(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
        wait: float,
    ) -> socket.socket:
        sock = self._socket = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(wait)
        try:
            if self._is_aborted:
                raise ConnectionAbortedError("given up")
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    def _associate(self) -> None:
        peer = self._peer
        request = negotiation.request_pdu(
            called_ae=peer.called_ae, calling_ae=peer.calling_ae, contexts=self._contexts, max_length=_MAX_LENGTH
        )
        with self._speaking():
            self._send(memoryview(request))
            answer = next(self._said)
            if isinstance(answer, pdu.AssociateAccept):
                self._agreement = negotiation.read_accept(answer.body, self._contexts)
        if isinstance(answer, pdu.AssociateReject):
            raise _refusal(peer, Rejection(result=answer.result, source=answer.source, reason=answer.reason))
        self._ids = {context: number for number, context in self.agreement.contexts.items()}
        self._machine.open(self.agreement.contexts.keys())
        self._train = _Train(self.agreement.max_length)
        self._socket_open.settimeout(self._timeouts.dimse.total_seconds())
        self.is_open = True

    def _release(self) -> None:
        """End in good order; every answer is in, so that a peer that fails at this last word harms nothing."""
        self._machine.phase = pdu.Phase.RELEASING
        try:
            with self._speaking():
                self._socket_open.settimeout(self._timeouts.acse.total_seconds())
                self._send(memoryview(pdu.RELEASE_RQ))
                for event in self._said:
                    if isinstance(event, pdu.ReleaseReply):
                        break
                    if isinstance(event, pdu.ReleaseRequest):  # both asked at once (PS3.8 section 7.2.2)
                        self._send(memoryview(pdu.RELEASE_RP))
        except Transient:
            pass

    def _say_abort(self) -> None:
        self.is_open = False
        try:
            self._socket_open.settimeout(1.0)
            self._socket_open.sendall(pdu.abort())
        except OSError:
            pass  # the connection goes down next, which says the same

    def _close(self) -> None:
        self.is_open = False
        if self._socket:
            self._socket.close()

    # ---- bytes

    @property
    def _socket_open(self) -> socket.socket:
        if self._socket is None:
            raise Transient(f"{self._peer} is not connected")
        return self._socket

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Anything that goes wrong between us and the peer ends the association and may pass."""
        try:
            yield
        except (TimeoutError, ProtocolError, EOFError, OSError) as error:
            trouble = self._trouble(error)
            if isinstance(error, TimeoutError | ProtocolError):
                self._say_abort()
            self.is_open = False
            raise AssociationLost(f"{self._peer} {trouble}") from error
        except AssociationLost:
            self.is_open = False
            raise

    def _trouble(self, error: Exception) -> str:
        if self._is_aborted:
            return "was hung up on by us"
        if isinstance(error, TimeoutError):
            return f"was silent for {self._socket_open.gettimeout() or 0:g} s"
        if isinstance(error, ProtocolError):
            return f"broke the protocol: {error}"
        return "closed the connection" if isinstance(error, EOFError) else f"is lost: {error}"

    def _send(self, data: memoryview) -> None:
        """All of *data*; each step may take the whole time-out."""
        send = self._socket_open.send
        while data:
            data = data[send(data) :]

    def _events(self) -> Iterator[pdu.Event]:
        """What the peer says, as long as somebody listens."""
        while True:
            size = self._socket_open.recv_into(self._inbox)
            if not size:
                raise EOFError
            for event in self._machine.feed(self._inbox[:size]):
                if isinstance(event, pdu.Aborted):
                    who = "its user" if event.source == 0 else f"its provider, reason {event.reason}"
                    raise AssociationLost(f"{self._peer} aborted the association ({who})")
                yield event

    def _response(self) -> Command:
        """The response to the last request."""
        event = next(self._said)
        if isinstance(event, pdu.CommandSet):
            answer = dimse.parse(event.data)
            if answer.is_response and answer.responded_to == self._message_id and not answer.has_data_set:
                return answer
        if isinstance(event, pdu.ReleaseRequest):
            self._send(memoryview(pdu.RELEASE_RP))
            raise AssociationLost(f"{self._peer} ended the association before it answered")
        raise ProtocolError(f"{type(event).__name__} instead of a response", reason=pdu.Reason.UNEXPECTED_PDU)

    def _next_message_id(self) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id

    def _context_id(self, context: Context) -> int:
        if not self.is_open:
            raise Transient(f"{self._peer} has no open association")
        found = self._ids.get(context)
        if found is None:
            name, syntax = (
                pydicom.uid.UID(context.sop_class_uid).name,
                pydicom.uid.UID(context.transfer_syntax_uid).name,
            )
            raise NotAccepted(f"{self._peer} does not accept {name} in {syntax} (called AE {self._peer.called_ae!r})")
        return found


#: The maximum PDU length that we announce as requestor; we are sent responses only.
_MAX_LENGTH = 64 << 10
_INBOX_BYTES = 16 << 10


def _with_verification(contexts: Sequence[Context]) -> list[Context]:
    echo = Context(VERIFICATION, IMPLICIT_LITTLE_ENDIAN)
    found = list(dict.fromkeys(contexts))
    return found if echo in found or len(found) >= negotiation.MOST_CONTEXTS else [*found, echo]


def _addresses(peer: Peer) -> list[_Address]:
    """
    Where a host may be reached.

    Raises:
        Permanent: The name leads to link-local addresses only: nobody who wrote a name meant those.
    """
    found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
    kept: list[_Address] = [
        (entry[0], entry[4]) for entry in found if _is_literal(peer.host) or not _is_link_local(str(entry[4][0]))
    ]
    if not kept:
        raise Permanent(f"{peer}: the name resolves to a link-local address; write the address that is meant")
    return kept


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_link_local(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_link_local


def _refusal(peer: Peer, rejection: Rejection) -> Transient | Permanent:
    """An A-ASSOCIATE-RJ as an error."""
    if rejection.is_transient:
        return Congested(f"{peer} refused the association for now: {rejection}")
    return Permanent(
        f"{peer} refused the association: {rejection}, called AE {peer.called_ae!r}, calling AE {peer.calling_ae!r}; "
        "make the two agree with what the peer expects"
    )


# ---- from file to wire

#: A send buffer is about as long: one system call then sends most images whole.
_TRAIN_BYTES = 1 << 20
#: Longer PDUs than this bring nothing; also what a peer that takes any length gets.
_LONGEST_PDU_BYTES = 256 << 10
_DEFAULT_TRAIN = 16 << 10
#: In front of the first car: the command, in its own PDUs, at any length of PDU.
_ENGINE_BYTES = 4 << 10
_FIRST_BYTES = 2048
_MOST_CARS = 512  # a system call takes 1024 buffers


class _Freight:
    """The data set of an open file, on its way."""

    def __init__(self, descriptor: int, path: Path, context: Context, sha256: str | None) -> None:
        """
        Raises:
            Damaged: The file is no Part 10 file, holds no data set, or is in another transfer syntax.
        """
        self.context = context
        self._descriptor = descriptor
        self._path = path
        self._expected = sha256
        self._hash = hashlib.sha256() if sha256 else None
        try:
            meta = _meta(descriptor)
        except NotAnInstance as error:
            raise Damaged(f"{path}: {error}") from error
        if meta.transfer_syntax_uid != context.transfer_syntax_uid:
            raise Damaged(f"{path} is in transfer syntax {meta.transfer_syntax_uid}, not {context.transfer_syntax_uid}")
        self._at = meta.offset
        self.left = os.fstat(descriptor).st_size - meta.offset
        if self.left <= 0:
            raise Damaged(f"{path} holds no data set")

    def fill(self, slots: list[memoryview], size: int) -> None:
        """
        Read the next *size* bytes into *slots*, which hold just as much.

        Raises:
            Damaged: The file has become shorter, or these were the last bytes and the hash does not agree.
            Transient: The disk does not give them.
        """
        todo, got = slots, 0
        while got < size:
            try:
                count = os.preadv(self._descriptor, todo, self._at + got)
            except OSError as error:
                raise Transient(f"{self._path} cannot be read: {error.strerror}") from error
            if not count:
                raise Damaged(f"{self._path} became {size - got} bytes shorter while it was sent")
            got += count
            todo = _without(todo, count) if got < size else []
        self._at += size
        self.left -= size
        if self._hash:
            self._check(self._hash, slots)

    def _check(self, so_far: "hashlib._Hash", slots: list[memoryview]) -> None:
        for slot in slots:
            so_far.update(slot)
        if not self.left and so_far.hexdigest() != self._expected:
            raise Damaged(f"{self._path} is not what was received: its SHA-256 is {so_far.hexdigest()}")


def _meta(descriptor: int) -> FileMeta:
    """File meta information: nearly always within the first bytes."""
    head = os.pread(descriptor, _FIRST_BYTES, 0)
    try:
        meta = parse_meta(head)
    except NotAnInstance:
        meta = None
    if meta and meta.offset < len(head):  # it is seen to end
        return meta
    return parse_meta(os.pread(descriptor, META_LIMIT_BYTES, 0))


def _without(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of *buffers* when their first *count* bytes are taken away."""
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[number + 1 :]]
        count -= len(buffer)
    return []


class _Train:
    """
    A send buffer laid out as P-DATA-TF PDUs: each car is a 12-byte header and a slot that the file is read into.

    So an image is copied once, from the file to the place it is sent from, and its headers are written once for all.
    """

    def __init__(self, max_length: int) -> None:
        """
        Args:
            max_length: The longest PDU that the peer takes; 0 means any.
        """
        longest = min(max_length or _LONGEST_PDU_BYTES, _LONGEST_PDU_BYTES)
        self._slot_bytes = (longest - PDV_HEADER_BYTES) & ~1  # fragments are even but for the last (PS3.8 annex F.1)
        car = self._slot_bytes + DATA_HEADER_BYTES
        cars = max(1, min(_MOST_CARS, _TRAIN_BYTES // car))
        self._buffer = memoryview(bytearray(_ENGINE_BYTES + cars * car))
        self._heads = [_ENGINE_BYTES + number * car for number in range(cars)]
        self._slots = [self._buffer[at + DATA_HEADER_BYTES : at + car] for at in self._heads]
        self._context_id = 0  # that the headers bear
        self._odd: int | None = None  # the car whose header says otherwise: shorter, or the last

    def load(self, freight: _Freight, context_id: int, engine: bytes) -> memoryview:
        """
        Take as much freight as fits.

        Returns:
            What is to be sent next: *engine* and the PDUs; valid until the next load.

        Raises:
            Damaged, Transient: See `_Freight.fill`.
        """
        size = min(freight.left, len(self._slots) * self._slot_bytes)
        whole, rest = divmod(size, self._slot_bytes)
        slots = self._slots[:whole]
        if rest:
            slots.append(self._slots[whole][:rest])
        freight.fill(slots, size)
        self._label_normal(context_id)
        last = len(slots) - 1
        if rest or not freight.left:
            self._label(last, context_id, length=len(slots[last]), is_last=not freight.left)
            self._odd = last
        start, end = _ENGINE_BYTES - len(engine), self._heads[last] + DATA_HEADER_BYTES + len(slots[last])
        self._buffer[start:_ENGINE_BYTES] = engine
        return self._buffer[start:end]

    def _label_normal(self, context_id: int) -> None:
        """Headers of full cars that are not the last; nearly always they still are."""
        if context_id != self._context_id:
            for number in range(len(self._heads)):
                self._label(number, context_id, length=self._slot_bytes, is_last=False)
            self._context_id = context_id
        elif self._odd is not None:
            self._label(self._odd, context_id, length=self._slot_bytes, is_last=False)
        self._odd = None

    def _label(self, number: int, context_id: int, *, length: int, is_last: bool) -> None:
        at = self._heads[number]
        pdu.write_data_header(self._buffer, at, length=length, context_id=context_id, is_command=False, is_last=is_last)
