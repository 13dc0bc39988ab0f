"""The DICOM upper layer as a machine without sockets: bytes in, events out (PS3.8 section 9)."""

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType

from talaria.model.errors import TalariaError

#: A control PDU longer than this is refused at its header; 128 contexts with 30 syntaxes each stay far below.
CONTROL_LIMIT_BYTES = 1 << 20

#: A command set longer than this is refused; the longest that the standard describes is below 1 KB.
COMMAND_LIMIT_BYTES = 64 << 10

#: Smallest maximum PDU length of a peer that we can speak to: a PDV header and ten bytes.
LEAST_PDU_BYTES = 16

HEADER_BYTES = 6
PDV_HEADER_BYTES = 6


class Kind(IntEnum):
    """PDU types (PS3.8 section 9.3.1)."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class Reason(IntEnum):
    """Why a provider aborts (PS3.8 table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNISED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class ProtocolError(TalariaError):
    """
    The peer does not keep to the protocol; the association is aborted.

    Attributes:
        reason: What the A-ABORT says.
    """

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class Phase(Enum):
    """Where an association stands, as far as it decides which PDU may come."""

    LISTENING = "waits for a request"
    REQUESTING = "waits for the answer to our request"
    OPEN = "is open"
    RELEASING = "waits for the answer to our release"
    CLOSED = "is over"


#: PS3.8 table 9-10, the PDUs that are no error in each state; an A-ABORT may come at any time.
_EXPECTED: Mapping[Phase, frozenset[Kind]] = MappingProxyType(
    {
        Phase.LISTENING: frozenset({Kind.ASSOCIATE_RQ, Kind.ABORT}),
        Phase.REQUESTING: frozenset({Kind.ASSOCIATE_AC, Kind.ASSOCIATE_RJ, Kind.ABORT}),
        Phase.OPEN: frozenset({Kind.P_DATA_TF, Kind.RELEASE_RQ, Kind.ABORT}),
        Phase.RELEASING: frozenset({Kind.P_DATA_TF, Kind.RELEASE_RQ, Kind.RELEASE_RP, Kind.ABORT}),
        Phase.CLOSED: frozenset({Kind.ABORT}),
    }
)

#: Shortest and longest body of each control PDU (PS3.8 section 9.3).
_LENGTHS: Mapping[Kind, tuple[int, int]] = MappingProxyType(
    {
        Kind.ASSOCIATE_RQ: (68, CONTROL_LIMIT_BYTES),
        Kind.ASSOCIATE_AC: (68, CONTROL_LIMIT_BYTES),
        Kind.ASSOCIATE_RJ: (4, 4),
        Kind.RELEASE_RQ: (4, 4),
        Kind.RELEASE_RP: (4, 4),
        Kind.ABORT: (4, 4),
    }
)

_KINDS: Mapping[int, Kind] = MappingProxyType({int(kind): kind for kind in Kind})


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ arrived."""

    body: bytes
    """All after the 6-byte header."""


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """An A-ASSOCIATE-AC arrived."""

    body: bytes
    """All after the 6-byte header."""


@dataclass(frozen=True, slots=True)
class AssociateReject:
    """An A-ASSOCIATE-RJ arrived (PS3.8 table 9-21)."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class CommandSet:
    """A whole command set arrived."""

    context_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DataSet:
    """A piece of a data set arrived."""

    context_id: int
    fragments: Sequence[memoryview]
    """In order; they show the buffer that was fed and are valid until it is written again."""
    is_last: bool
    """Whether the data set ends here; a last piece may be empty."""


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """The peer wants to end the association in good order."""


@dataclass(frozen=True, slots=True)
class ReleaseReply:
    """The peer agrees to end the association."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The peer broke the association off."""

    source: int
    """0: its user, 2: its provider."""
    reason: int
    """PS3.8 table 9-26, of a provider."""


Event = (
    AssociateRequest
    | AssociateAccept
    | AssociateReject
    | CommandSet
    | DataSet
    | ReleaseRequest
    | ReleaseReply
    | Aborted
)


class _Stage(Enum):
    """How far the message under way has come, seen from its fragments."""

    BETWEEN = 0
    COMMAND = 1
    AFTER_COMMAND = 2
    DATA = 3


class Machine:
    """
    Reads one side of one association.

    Bytes may come in any portions: the events are the same, but that pieces of data sets are cut elsewhere. What is
    refused is refused at the header that shows it, before any of its body is read. Data sets are never copied.

    Attributes:
        phase: Set by the owner when it has sent something (accepted, asked for release), else followed by itself.
    """

    def __init__(self, *, phase: Phase, max_length: int) -> None:
        """
        Args:
            phase: `LISTENING` for an acceptor, `REQUESTING` for a requestor.
            max_length: The maximum PDU length that we announce, in bytes.
        """
        self.phase = phase
        self._max_length = max_length
        self._contexts: Collection[int] = frozenset()
        self._held = bytearray()  # of a header, or of a control PDU, that has not wholly arrived
        self._control: Kind | None = None
        self._control_length = 0
        self._pdu_left = 0  # of a P-DATA-TF, from the next PDV on
        self._pdv_left = 0
        self._context_id = 0
        self._is_command = False
        self._is_last = False
        self._stage = _Stage.BETWEEN
        self._command = bytearray()

    def open(self, contexts: Collection[int]) -> None:
        """The association is accepted; data may come on *contexts* only."""
        self._contexts = frozenset(contexts)
        self.phase = Phase.OPEN

    @property
    def context_id(self) -> int:
        """Presentation context of the last fragment."""
        return self._context_id

    @property
    def is_between_messages(self) -> bool:
        """Whether no PDU, command set or data set has begun and not ended."""
        return (
            self._stage in {_Stage.BETWEEN, _Stage.AFTER_COMMAND}
            and self._control is None
            and not (self._held or self._pdu_left or self._pdv_left)
        )

    def feed(self, data: memoryview | bytes) -> Iterator[Event]:
        """
        What *data* brings; to be read to its end before the next portion.

        Raises:
            ProtocolError: After the events that came before it.
        """
        view = memoryview(data)
        at, end = 0, len(view)
        fragments: list[memoryview] = []
        try:
            while at < end:
                event: Event | None
                if self._pdv_left:
                    size = min(self._pdv_left, end - at)
                    event = self._pdv_body(view[at : at + size], fragments)
                    at += size
                elif self._control is not None:
                    size = min(self._control_length - len(self._held), end - at)
                    event = self._control_body(view[at : at + size])
                    at += size
                else:
                    header, at = self._header(view, at)
                    event = self._headed(header, fragments) if header else None
                if event:
                    if fragments and not isinstance(event, DataSet):  # broken off in the middle of a data set
                        yield DataSet(self._context_id, fragments, is_last=False)
                    yield event
                    fragments = []
        except ProtocolError:
            if fragments:
                yield DataSet(self._context_id, fragments, is_last=False)
            self.phase = Phase.CLOSED
            raise
        if fragments:
            yield DataSet(self._context_id, fragments, is_last=False)

    def _header(self, view: memoryview, at: int) -> tuple[memoryview | bytes | None, int]:
        """The next six bytes and where they end; None while they have not all come. Both headers have six."""
        if not self._held and len(view) - at >= HEADER_BYTES:
            return view[at : at + HEADER_BYTES], at + HEADER_BYTES
        missing = HEADER_BYTES - len(self._held)
        self._held += view[at : at + missing]
        at = min(at + missing, len(view))
        if len(self._held) < HEADER_BYTES:
            return None, at
        header = bytes(self._held)
        self._held.clear()
        return header, at

    def _headed(self, header: memoryview | bytes, fragments: list[memoryview]) -> Event | None:
        if self._pdu_left:
            return self._begin_pdv(header, fragments)
        self._begin_pdu(header)
        return None

    def _begin_pdu(self, header: memoryview | bytes) -> None:
        number, length = _PDU_HEADER.unpack(header)
        kind = _KINDS.get(number)
        if kind is None:
            raise ProtocolError(f"PDU type 0x{number:02x} is unknown", reason=Reason.UNRECOGNISED_PDU)
        if kind not in _EXPECTED[self.phase]:
            raise ProtocolError(
                f"{kind.name} came while the association {self.phase.value}", reason=Reason.UNEXPECTED_PDU
            )
        least, most = _LENGTHS.get(kind) or (PDV_HEADER_BYTES, self._max_length)
        if not least <= length <= most:
            raise _invalid(f"{kind.name} of {length} bytes, allowed are {least} to {most}")
        if kind is Kind.P_DATA_TF:
            self._pdu_left = length
        else:
            self._control, self._control_length = kind, length

    def _begin_pdv(self, header: memoryview | bytes, fragments: list[memoryview]) -> Event | None:
        length, context_id, control = _PDV_HEADER.unpack(header)
        left = self._pdu_left - 4 - length
        if length < 2 or left < 0 or 0 < left < PDV_HEADER_BYTES:
            raise _invalid(f"PDV of {length} bytes where {self._pdu_left} are left of its PDU")
        if control > 3:
            raise _invalid(f"PDV control byte 0x{control:02x}")
        self._check_place(context_id, is_command=bool(control & 1))
        self._pdu_left = left
        self._context_id, self._is_command, self._is_last = context_id, bool(control & 1), bool(control & 2)
        self._pdv_left = length - 2
        if self._is_command and len(self._command) + self._pdv_left > COMMAND_LIMIT_BYTES:
            raise _invalid(f"command set of more than {COMMAND_LIMIT_BYTES} bytes")
        return None if self._pdv_left else self._end_pdv(fragments)

    def _check_place(self, context_id: int, *, is_command: bool) -> None:
        """That a fragment may stand here: known context, command before data, nothing interleaved."""
        if context_id not in self._contexts:
            raise _invalid(f"presentation context {context_id} is not accepted")
        stage = self._stage
        if (
            stage is not _Stage.BETWEEN
            and context_id != self._context_id
            and not (stage is _Stage.AFTER_COMMAND and is_command)
        ):
            raise _invalid(f"message on context {context_id} in the middle of one on {self._context_id}")
        if is_command and stage is _Stage.DATA:
            raise _invalid("command fragment in the middle of a data set")
        if not is_command and stage in {_Stage.BETWEEN, _Stage.COMMAND}:
            raise _invalid("data set fragment without a whole command set before it")
        self._stage = _Stage.COMMAND if is_command else _Stage.DATA

    def _pdv_body(self, piece: memoryview, fragments: list[memoryview]) -> Event | None:
        self._pdv_left -= len(piece)
        if self._is_command:
            self._command += piece
        else:
            fragments.append(piece)
        return None if self._pdv_left else self._end_pdv(fragments)

    def _end_pdv(self, fragments: list[memoryview]) -> Event | None:
        if not self._is_last:
            return None
        if not self._is_command:
            self._stage = _Stage.BETWEEN
            return DataSet(self._context_id, fragments, is_last=True)
        self._stage = _Stage.AFTER_COMMAND
        command = bytes(self._command)
        self._command.clear()
        return CommandSet(self._context_id, command)

    def _control_body(self, piece: memoryview) -> Event | None:
        self._held += piece
        if self._control is None or len(self._held) < self._control_length:
            return None
        kind, body = self._control, bytes(self._held)
        self._control = None
        self._held.clear()
        return self._control_event(kind, body)

    def _control_event(self, kind: Kind, body: bytes) -> Event:
        if kind is Kind.ASSOCIATE_AC:
            return AssociateAccept(body)
        if kind is Kind.RELEASE_RQ:
            if self.phase is Phase.OPEN:  # otherwise both sides asked at once, and the reply is still to come
                self.phase = Phase.CLOSED
            return ReleaseRequest()
        self.phase = Phase.CLOSED
        if kind is Kind.ASSOCIATE_RQ:
            return AssociateRequest(body)
        if kind is Kind.ASSOCIATE_RJ:
            return AssociateReject(body[1], body[2], body[3])
        return ReleaseReply() if kind is Kind.RELEASE_RP else Aborted(body[2], body[3])


_PDU_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")
_DATA_HEADER = struct.Struct(">BxIIBB")

#: PDU and PDV header of a P-DATA-TF that carries one PDV.
DATA_HEADER_BYTES = _DATA_HEADER.size

RELEASE_RQ = _PDU_HEADER.pack(Kind.RELEASE_RQ, 4) + bytes(4)
RELEASE_RP = _PDU_HEADER.pack(Kind.RELEASE_RP, 4) + bytes(4)


def _invalid(message: str) -> ProtocolError:
    return ProtocolError(message, reason=Reason.INVALID_PARAMETER)


def abort(reason: Reason | None = None) -> bytes:
    """An A-ABORT: of the provider with its reason, or of the user without one (PS3.8 section 9.3.8)."""
    source = 0 if reason is None else 2
    return _PDU_HEADER.pack(Kind.ABORT, 4) + bytes((0, 0, source, reason or 0))


def reject(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
    return _PDU_HEADER.pack(Kind.ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))


def write_data_header(
    buffer: memoryview, at: int, *, length: int, context_id: int, is_command: bool, is_last: bool
) -> None:
    """Write the `DATA_HEADER_BYTES` of a P-DATA-TF with one PDV of *length* bytes of content into *buffer*."""
    flags = is_command | is_last << 1
    _DATA_HEADER.pack_into(buffer, at, Kind.P_DATA_TF, length + PDV_HEADER_BYTES, length + 2, context_id, flags)


def command_pdus(context_id: int, command: bytes, *, max_length: int) -> bytes:
    """
    A command set as P-DATA-TF PDUs, ready to be sent.

    Args:
        context_id: Presentation context.
        command: The encoded command set, not empty.
        max_length: The peer's maximum PDU length; 0 means any (PS3.8 D.1).
    """
    size = (max_length or COMMAND_LIMIT_BYTES) - PDV_HEADER_BYTES
    parts: list[bytes] = []
    for at in range(0, len(command), size):
        piece = command[at : at + size]
        flags = 1 | (at + size >= len(command)) << 1
        parts.append(
            _DATA_HEADER.pack(Kind.P_DATA_TF, len(piece) + PDV_HEADER_BYTES, len(piece) + 2, context_id, flags) + piece
        )
    return b"".join(parts)
