"""A-ASSOCIATE through pynetdicom's PDU classes: what is proposed, accepted and refused (PS3.8 section 9.3)."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import pydicom.uid
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_items import (
    AbstractSyntaxSubItem,
    ApplicationContextItem,
    ImplementationClassUIDSubItem,
    ImplementationVersionNameSubItem,
    MaximumLengthSubItem,
    PresentationContextItemAC,
    PresentationContextItemRQ,
    SCP_SCU_RoleSelectionSubItem,
    TransferSyntaxSubItem,
    UserInformationItem,
)

from talaria.dimse.pdu import LEAST_PDU_BYTES, ProtocolError, Reason
from talaria.model.dicom import UID, AETitle
from talaria.model.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

VERIFICATION = "1.2.840.10008.1.1"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"

#: Ids are the odd numbers of one byte (PS3.8 table 9-13).
MOST_CONTEXTS = 128

#: Items of one kind of list that are still read; the longest lists that mean something are far below.
_MOST_ITEMS = 512

#: Assumed of a peer that does not say what it can take (PS3.8 D.1 makes saying so mandatory).
_DEFAULT_MAX_LENGTH = 16_384


class Context(NamedTuple):
    """What one presentation context carries."""

    sop_class_uid: str
    """Its abstract syntax."""
    transfer_syntax_uid: str


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Why an association is refused, as an A-ASSOCIATE-RJ says it (PS3.8 table 9-21)."""

    result: int
    """1: permanent, 2: transient."""
    source: int
    """1: service user, 2: ACSE, 3: presentation."""
    reason: int

    @property
    def is_transient(self) -> bool:
        """Whether the peer says that it may pass."""
        return self.result == 2

    def __str__(self) -> str:
        words = _REJECTIONS.get((self.source, self.reason), "no reason given")
        return f"{words} ({self.result}/{self.source}/{self.reason})"


#: PS3.8 table 9-21, by source and reason.
_REJECTIONS: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (1, 2): "application context not supported",
        (1, 3): "calling AE title not recognised",
        (1, 7): "called AE title not recognised",
        (2, 2): "protocol version not supported",
        (3, 1): "temporary congestion",
        (3, 2): "local limit exceeded",
    }
)

CALLING_AE_UNKNOWN = Rejection(result=1, source=1, reason=3)
CALLED_AE_UNKNOWN = Rejection(result=1, source=1, reason=7)
CONGESTION = Rejection(result=2, source=3, reason=1)
LIMIT_EXCEEDED = Rejection(result=2, source=3, reason=2)
_OTHER_APPLICATION = Rejection(result=1, source=1, reason=2)
_OTHER_VERSION = Rejection(result=1, source=2, reason=2)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A presentation context as proposed."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Role:
    """The roles that a requestor proposes to play for a SOP class (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, kw_only=True)
class Request:
    """An association as requested."""

    version: int
    application_context: str
    called_ae: str
    """As text without padding, whatever it is."""
    calling_ae: str
    proposals: tuple[Proposal, ...]
    roles: tuple[Role, ...]
    max_length: int
    """The longest PDU the peer takes; 0 means any."""
    implementation_class_uid: str
    implementation_version: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """An association as accepted."""

    contexts: Mapping[int, Context]
    """What was accepted, by context id."""
    max_length: int
    """The longest PDU the peer takes; 0 means any."""
    implementation_class_uid: str
    implementation_version: str


# ---- what we accept


def is_stored(abstract_syntax: str) -> bool:
    """
    Whether a SOP class is taken as one of storage.

    Every class is, private ones and those of a later standard included, but those that PS3.6 names as something else,
    and the media storage directory, which is no instance of a study.

    >>> is_stored("1.2.840.10008.5.1.4.1.1.2"), is_stored("1.3.12.2.1107.5.9.1"), is_stored("1.2.840.10008.1.3.10")
    (True, True, False)
    """
    uid = pydicom.uid.UID(abstract_syntax)
    if not abstract_syntax.startswith("1.2.840.10008."):
        return True
    if not uid.type or uid.name in {"", abstract_syntax}:
        return abstract_syntax.startswith(_STORAGE_ROOT)
    return uid.type == "SOP Class" and "Storage" in uid.name and not uid.name.startswith(_NOT_STORED)


_STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
_NOT_STORED = ("Media Storage Directory", "Storage Commitment", "Storage Management")


def objection(request: Request) -> Rejection | None:
    """Why *request* cannot be accepted whoever it comes from; None where it can."""
    if not request.version & 1:
        return _OTHER_VERSION
    if request.application_context != APPLICATION_CONTEXT:
        return _OTHER_APPLICATION
    if not _is_ae_title(request.called_ae):
        return CALLED_AE_UNKNOWN
    return None if _is_ae_title(request.calling_ae) else CALLING_AE_UNKNOWN


def _is_ae_title(text: str) -> bool:
    try:
        AETitle(text)
    except ValueError:
        return False
    return True


def accept(request: Request, *, max_length: int) -> tuple[Agreement, bytes]:
    """
    Accept every context of storage or verification with its first transfer syntax.

    Args:
        request: Without `objection`.
        max_length: The maximum PDU length that we announce, in bytes.

    Returns:
        What was agreed on, and the A-ASSOCIATE-AC to send.
    """
    results = [(proposal, _judge(proposal)) for proposal in request.proposals]
    agreement = Agreement(
        contexts={
            proposal.id: Context(proposal.abstract_syntax, proposal.transfer_syntaxes[0])
            for proposal, result in results
            if result == _ACCEPTED
        },
        max_length=request.max_length,
        implementation_class_uid=request.implementation_class_uid,
        implementation_version=request.implementation_version,
    )
    answer = A_ASSOCIATE_AC()
    answer.reserved_aet, answer.reserved_aec = request.called_ae, request.calling_ae
    user = _user_information(max_length)
    user.user_data.extend(_role_item(role) for role in request.roles if is_stored(role.sop_class_uid))
    contexts = [_result_item(proposal, result) for proposal, result in results]
    answer.variable_items = [ApplicationContextItem(), *contexts, user]
    return agreement, answer.encode()


#: Results of a presentation context (PS3.8 table 9-18).
_ACCEPTED, _ABSTRACT_SYNTAX_REFUSED, _TRANSFER_SYNTAX_REFUSED = 0, 3, 4


def _judge(proposal: Proposal) -> int:
    if proposal.abstract_syntax != VERIFICATION and not is_stored(proposal.abstract_syntax):
        return _ABSTRACT_SYNTAX_REFUSED
    return _ACCEPTED if proposal.transfer_syntaxes else _TRANSFER_SYNTAX_REFUSED


def _result_item(proposal: Proposal, result: int) -> PresentationContextItemAC:
    item = PresentationContextItemAC()
    item.presentation_context_id, item.result_reason = proposal.id, result
    syntax = proposal.transfer_syntaxes[0] if proposal.transfer_syntaxes else pydicom.uid.ImplicitVRLittleEndian
    item.transfer_syntax_sub_item = [_transfer_syntax_item(syntax)]
    return item


def _role_item(role: Role) -> SCP_SCU_RoleSelectionSubItem:
    """We only receive: the peer may be SCU if it wants, and never SCP."""
    item = SCP_SCU_RoleSelectionSubItem()
    item.sop_class_uid, item.scu_role, item.scp_role = role.sop_class_uid, int(role.scu), 0
    return item


def _user_information(max_length: int) -> UserInformationItem:
    item = UserInformationItem()
    length, uid, name = MaximumLengthSubItem(), ImplementationClassUIDSubItem(), ImplementationVersionNameSubItem()
    length.maximum_length_received = max_length
    uid.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    name.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    item.user_data = [length, uid, name]
    return item


# ---- what we ask for


def request_pdu(*, called_ae: str, calling_ae: str, contexts: Sequence[Context], max_length: int) -> bytes:
    """
    An A-ASSOCIATE-RQ that proposes each of *contexts* by itself, with ids 1, 3, 5 and so on.

    Raises:
        ValueError: None, or more than `MOST_CONTEXTS`.
    """
    if not 0 < len(contexts) <= MOST_CONTEXTS:
        raise ValueError(f"{len(contexts)} presentation contexts, possible are 1 to {MOST_CONTEXTS}")
    request = A_ASSOCIATE_RQ()
    request.called_ae_title, request.calling_ae_title = called_ae, calling_ae
    items = [_proposal_item(2 * number + 1, context) for number, context in enumerate(contexts)]
    request.variable_items = [ApplicationContextItem(), *items, _user_information(max_length)]
    return request.encode()


def _proposal_item(context_id: int, context: Context) -> PresentationContextItemRQ:
    item, abstract = PresentationContextItemRQ(), AbstractSyntaxSubItem()
    item.presentation_context_id = context_id
    abstract.abstract_syntax_name = context.sop_class_uid
    item.abstract_transfer_syntax_sub_items = [abstract, _transfer_syntax_item(context.transfer_syntax_uid)]
    return item


def _transfer_syntax_item(uid: str) -> TransferSyntaxSubItem:
    item = TransferSyntaxSubItem()
    item.transfer_syntax_name = uid
    return item


T = TypeVar("T")


def by_association(items: Iterable[T], context: Callable[[T], Context]) -> list[list[T]]:
    """
    Part *items* so that each part needs at most `MOST_CONTEXTS` contexts; order is kept within a part.

    >>> [len(part) for part in by_association(range(300), lambda n: Context("1.2", f"1.{n % 130}"))]
    [296, 4]
    """
    parts: list[list[T]] = []
    places: dict[Context, int] = {}
    for item in items:
        place = places.setdefault(context(item), len(places) // MOST_CONTEXTS)
        if place == len(parts):
            parts.append([])
        parts[place].append(item)
    return parts


# ---- what peers send


def read_request(body: bytes) -> Request:
    """
    Read an A-ASSOCIATE-RQ.

    Sizes and counts are checked first; what we do not negotiate (user identity, extended negotiation, asynchronous
    operations, items that no standard knows) is passed over.

    Args:
        body: All after the 6-byte header, at least 68 bytes.

    Raises:
        ProtocolError: It cannot be understood.
    """
    pdu = _decoded(A_ASSOCIATE_RQ, body, context_kind=0x20)
    user = pdu.user_information
    proposals = tuple(_proposal(item) for item in pdu.presentation_context)
    if not 0 < len(proposals) <= MOST_CONTEXTS or len({proposal.id for proposal in proposals}) < len(proposals):
        raise _invalid(f"{len(proposals)} presentation contexts, or an id used twice")
    return Request(
        version=struct.unpack_from(">H", body)[0],
        application_context=str(pdu.application_context_name or ""),
        called_ae=_ae_text(body[4:20]),
        calling_ae=_ae_text(body[20:36]),
        proposals=proposals,
        roles=_roles(user),
        max_length=_max_length(user),
        implementation_class_uid=str((user and user.implementation_class_uid) or ""),
        implementation_version=str((user and user.implementation_version_name) or ""),
    )


def read_accept(body: bytes, proposed: Sequence[Context]) -> Agreement:
    """
    Read the A-ASSOCIATE-AC that answers `request_pdu` for *proposed*.

    Args:
        body: All after the 6-byte header, at least 68 bytes.
        proposed: In the order of the request.

    Raises:
        ProtocolError: It cannot be understood, or accepts what was not proposed.
    """
    pdu = _decoded(A_ASSOCIATE_AC, body, context_kind=0x21)
    user = pdu.user_information
    ids = {2 * number + 1: context for number, context in enumerate(proposed)}
    accepted: dict[int, Context] = {}
    for item in pdu.presentation_context:
        if item.result != _ACCEPTED:
            continue
        context = ids.get(item.context_id or 0)
        if context is None or item.transfer_syntax != context.transfer_syntax_uid:
            raise _invalid(f"presentation context {item.context_id} was accepted otherwise than proposed")
        accepted[item.context_id or 0] = context
    return Agreement(
        contexts=accepted,
        max_length=_max_length(user),
        implementation_class_uid=str((user and user.implementation_class_uid) or ""),
        implementation_version=str((user and user.implementation_version_name) or ""),
    )


def _proposal(item: PresentationContextItemRQ) -> Proposal:
    context_id = item.context_id or 0
    if context_id % 2 == 0:
        raise _invalid(f"presentation context id {context_id} is not odd")
    if not item.abstract_syntax:
        raise _invalid(f"presentation context {context_id} has no abstract syntax")
    syntaxes = tuple(str(syntax) for syntax in item.transfer_syntax)
    return Proposal(id=context_id, abstract_syntax=str(item.abstract_syntax), transfer_syntaxes=syntaxes)


def _roles(user: UserInformationItem | None) -> tuple[Role, ...]:
    found = user.role_selection if user else {}
    return tuple(Role(sop_class_uid=str(uid), scu=item.scu == 1, scp=item.scp == 1) for uid, item in found.items())


def _max_length(user: UserInformationItem | None) -> int:
    length = user.maximum_length if user else None
    if length is None:
        return _DEFAULT_MAX_LENGTH
    if 0 < length < LEAST_PDU_BYTES:
        raise _invalid(f"maximum PDU length of {length} bytes holds no message")
    return length


def _ae_text(field: bytes) -> str:
    """Padded with blanks by the standard, with NUL by some devices."""
    return field.decode("latin-1").strip(" \0")


# ---- bounds first: only what is known, whole and small reaches pynetdicom

#: Sub-items of user information that are read (PS3.8 D.1, PS3.7 D.3.3).
_USER_ITEMS = frozenset({0x51, 0x52, 0x54, 0x55})

#: What pynetdicom's decoders raise at bytes that do not fit.
_DECODE_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, struct.error)

P = TypeVar("P", A_ASSOCIATE_RQ, A_ASSOCIATE_AC)


def _decoded(pdu_class: type[P], body: bytes, *, context_kind: int) -> P:
    items: list[bytes] = []
    seen: set[int] = set()
    for kind, value in _items(body[68:]):
        if kind in seen:
            raise _invalid(f"item 0x{kind:02x} stands twice")
        if kind in {0x10, 0x50}:
            seen.add(kind)
            items.append(_item(kind, _uid(value) if kind == 0x10 else _user_items(value)))
        elif kind == context_kind:
            items.append(_item(kind, _context_item(value, is_result=kind == 0x21)))
    neutral = struct.pack(">H2x16s16s32x", 1, b"CALLED".ljust(16), b"CALLING".ljust(16))
    pdu = pdu_class()
    try:
        pdu.decode(bytes(6) + neutral + b"".join(items))
    except _DECODE_ERRORS as error:
        raise _invalid(f"A-ASSOCIATE cannot be read ({type(error).__name__})") from error
    return pdu


def _items(data: bytes) -> list[tuple[int, bytes]]:
    """Items and sub-items: one byte of kind, one reserved, two of length, the value (PS3.8 section 9.3.1)."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        if len(data) - at < 4:
            raise _invalid("an item ends within its header")
        stop = at + 4 + struct.unpack_from(">H", data, at + 2)[0]
        if stop > len(data):
            raise _invalid(f"item 0x{data[at]:02x} runs {stop - len(data)} bytes past its frame")
        if len(found) == _MOST_ITEMS:
            raise _invalid(f"more than {_MOST_ITEMS} items")
        found.append((data[at], data[at + 4 : stop]))
        at = stop
    return found


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _context_item(value: bytes, *, is_result: bool) -> bytes:
    """A presentation context; what a refused one says of transfer syntaxes has no meaning (PS3.8 table 9-18)."""
    if len(value) < 4:
        raise _invalid("presentation context item without its head")
    if is_result and value[2] != _ACCEPTED:
        return value[:4]
    parts = [_item(kind, _uid(text)) for kind, text in _items(value[4:]) if kind in {0x30, 0x40}]
    return value[:4] + b"".join(parts)


def _user_items(value: bytes) -> bytes:
    return b"".join(
        _item(kind, content) for kind, content in _items(value) if kind in _USER_ITEMS and _fits(kind, content)
    )


def _fits(kind: int, content: bytes) -> bool:
    """Whether a sub-item is worth reading: a broken name or UID of the implementation is passed over."""
    if kind == 0x51 and len(content) != 4:
        raise _invalid(f"maximum length item of {len(content)} bytes")
    if kind == 0x54:
        if len(content) < 4 or struct.unpack_from(">H", content)[0] != len(content) - 4 or max(content[-2:]) > 1:
            raise _invalid("role selection item is malformed")
        _uid(content[2:-2])
    if kind == 0x55:
        return 0 < len(content) <= 16 and content.isascii() and content.decode("ascii").isprintable()
    return kind != 0x52 or _is_uid(content)


def _is_uid(value: bytes) -> bool:
    try:
        _uid(value)
    except ProtocolError:
        return False
    return True


def _uid(value: bytes) -> bytes:
    try:
        return UID(value.decode("latin-1")).encode("ascii")
    except ValueError:
        raise _invalid(f"an item of {len(value)} bytes is no UID") from None


def _invalid(message: str) -> ProtocolError:
    return ProtocolError(message, reason=Reason.INVALID_PARAMETER)
