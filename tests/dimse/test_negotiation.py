"""A-ASSOCIATE: what is accepted, and what hostile bytes get."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import sop_class

from talaria.dimse import negotiation
from talaria.dimse.negotiation import VERIFICATION, Context, Rejection, read_accept, read_request
from talaria.dimse.pdu import ProtocolError
from wire import CT, EXPLICIT

JPEG = "1.2.840.10008.1.2.4.70"


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def context(number: int, abstract: bytes = CT.encode(), *syntaxes: bytes) -> bytes:
    parts = [item(0x40, syntax) for syntax in syntaxes or (EXPLICIT.encode(),)]
    return item(0x20, bytes((number, 0, 0, 0)) + item(0x30, abstract) + b"".join(parts))


APPLICATION = item(0x10, b"1.2.840.10008.3.1.1.1")
LENGTH = item(0x51, (16384).to_bytes(4, "big"))
USER = item(0x50, LENGTH + item(0x52, b"1.2.3") + item(0x55, b"PEER_1"))


def body(*items: bytes, version: int = 1, called: bytes = b"TALARIA", calling: bytes = b"CT1") -> bytes:
    head = struct.pack(">H2x16s16s32x", version, called.ljust(16), calling.ljust(16))
    return head + b"".join(items or (APPLICATION, context(1), USER))


def test_request_is_read_in_full() -> None:
    """Titles, contexts, length and implementation are there."""
    found = read_request(body(APPLICATION, context(1, CT.encode(), JPEG.encode(), EXPLICIT.encode()), USER))

    assert (
        found.called_ae,
        found.calling_ae,
        found.max_length,
        found.implementation_class_uid,
        found.implementation_version,
    ) == ("TALARIA", "CT1", 16384, "1.2.3", "PEER_1")
    assert (JPEG, EXPLICIT) == found.proposals[0].transfer_syntaxes
    assert negotiation.objection(found) is None


def test_first_transfer_syntax_is_accepted_and_the_rest_is_not_storage() -> None:
    """Each context gets what its peer likes best; queries and media directories get result 3, no syntax result 4."""
    find = b"1.2.840.10008.5.1.4.1.2.2.1"
    nothing = item(0x20, bytes((9, 0, 0, 0)) + item(0x30, CT.encode()))
    request = read_request(
        body(
            APPLICATION,
            context(1, CT.encode(), JPEG.encode(), EXPLICIT.encode()),
            context(3, find),
            context(5, b"1.2.840.10008.1.3.10"),
            context(7, VERIFICATION.encode()),
            nothing,
            USER,
        )
    )

    agreement, answer = negotiation.accept(request, max_length=65536)

    assert {1: Context(CT, JPEG), 7: Context(VERIFICATION, EXPLICIT)} == dict(agreement.contexts)
    assert [0, 3, 3, 0, 4] == [value[2] for kind, value in negotiation._items(answer[74:]) if kind == 0x21]


def test_answer_reads_back_at_the_requestor() -> None:
    """What the acceptor writes is what the requestor reads."""
    contexts = [
        Context(CT, EXPLICIT),
        Context("1.2.840.10008.5.1.4.31", EXPLICIT),
        Context("1.3.12.2.1107.5.9.1", JPEG),
    ]
    request = negotiation.request_pdu(called_ae="A", calling_ae="B", contexts=contexts, max_length=1000)

    _, answer = negotiation.accept(read_request(request[6:]), max_length=65536)
    found = read_accept(answer[6:], contexts)

    assert {1: contexts[0], 5: contexts[2]} == dict(found.contexts)
    assert 65536 == found.max_length
    assert "TALARIA_0_1" == found.implementation_version


def test_only_storage_is_taken_as_storage() -> None:
    """Every storage class that pynetdicom lists, retired and private ones; no other service."""
    storage = set(sop_class._STORAGE_CLASSES.values())
    others = set(sop_class._QR_CLASSES.values()) | set(sop_class._PROCEDURE_STEP_CLASSES.values())
    others |= set(sop_class._PRINT_MANAGEMENT_CLASSES.values()) | set(sop_class._BASIC_WORKLIST_CLASSES.values())
    others |= set(sop_class._STORAGE_COMMITMENT_CLASSES.values()) | set(sop_class._MEDIA_STORAGE_CLASSES.values())
    others |= set(sop_class._UNIFIED_PROCEDURE_STEP_CLASSES.values())

    assert [] == [uid for uid in storage if not negotiation.is_stored(uid)]
    assert [] == [uid for uid in others if negotiation.is_stored(uid)]
    assert negotiation.is_stored("1.2.840.10008.5.1.4.1.1.9999")  # of a standard to come
    assert negotiation.is_stored("1.2.840.113619.4.30")
    assert not negotiation.is_stored("1.2.840.10008.1.2.1")


def test_what_is_not_negotiated_is_passed_over() -> None:
    """User identity with a token, extended negotiation, asynchronous operations, unknown items."""
    odd = item(0x58, b"\5\1" + struct.pack(">H", 60000) + bytes(60000)) + item(0x53, b"\0\1\0\1") + item(0x99, b"x")
    user = item(0x50, LENGTH + odd + item(0x52, b"not a uid") + item(0x55, b"\xff" * 16))

    found = read_request(body(APPLICATION, context(1), user, item(0x77, b"")))

    assert (found.implementation_class_uid, found.implementation_version, found.max_length) == ("", "", 16384)


def test_role_selection_gets_the_role_of_a_sender_only() -> None:
    """Who offers to be both is SCU; who offers to be SCP only gets neither."""

    def role(uid: str, scu: int, scp: int) -> bytes:
        return item(0x54, struct.pack(">H", len(uid)) + uid.encode() + bytes((scu, scp)))

    user = item(0x50, LENGTH + role(CT, 1, 1) + role("1.2.840.10008.5.1.4.1.1.4", 0, 1))
    _, answer = negotiation.accept(read_request(body(APPLICATION, context(1), user)), max_length=65536)

    items = [value for kind, value in negotiation._items(answer[74:]) if kind == 0x50]
    roles = [value[-2:] for kind, value in negotiation._items(items[0]) if kind == 0x54]

    assert [b"\1\0", b"\0\0"] == roles


@pytest.mark.parametrize(
    "items",
    [
        (APPLICATION, USER),  # no contexts
        (APPLICATION, *(context(1) for _ in range(129)), USER),
        (APPLICATION, *(context(1) for _ in range(10_000)), USER),
        (APPLICATION, context(2), USER),
        (APPLICATION, context(0), USER),
        (APPLICATION, context(1), context(1), USER),
        (APPLICATION, context(1, b""), USER),
        (APPLICATION, context(1, b"../../x"), USER),
        (APPLICATION, context(1, b"1" * 65), USER),
        (APPLICATION, context(1, CT.encode(), b"\xff\xfe"), USER),
        (APPLICATION, item(0x20, b""), USER),
        (APPLICATION, item(0x20, b"\1\0\0\0"), USER),
        (APPLICATION, context(1), USER, b"\x50\0"),
        (APPLICATION, context(1), USER, b"\x50\0\xff\xffabc"),
        (APPLICATION, context(1), USER, USER),
        (APPLICATION, context(1), item(0x50, item(0x51, b""))),
        (APPLICATION, context(1), item(0x50, item(0x51, b"\0\0\0\1"))),
        (APPLICATION, context(1), item(0x50, b"\x52\0\0\x09abc")),
        (APPLICATION, context(1), item(0x50, LENGTH + item(0x54, b"\0\5\1"))),
        (APPLICATION, context(1), item(0x50, LENGTH + item(0x54, b"\xff\xff1.2\1\1"))),
        (APPLICATION, context(1), item(0x50, LENGTH + item(0x54, b"\0\x031.2\1\1") * 1000)),
    ],
)
def test_hostile_request_is_the_declared_error(items: tuple[bytes, ...]) -> None:
    """Counts, ids, lengths and UIDs that cannot be are refused."""
    with pytest.raises(ProtocolError):
        read_request(body(*items))


@given(st.binary(max_size=300))
def test_any_items_are_a_request_or_the_declared_error(data: bytes) -> None:
    """Nothing but ProtocolError is ever raised, by either reader."""
    for read in (read_request, lambda found: read_accept(found, [Context(CT, EXPLICIT)])):
        try:
            read(body(data))
        except ProtocolError:
            pass


@given(st.integers(0, len(body()) - 1), st.integers(0, 255))
def test_any_changed_byte_is_a_request_or_the_declared_error(at: int, value: int) -> None:
    """A good request with one byte changed raises nothing but ProtocolError."""
    data = bytearray(body())
    data[at] = value
    try:
        request = read_request(bytes(data)[: max(68, len(data))])
    except ProtocolError:
        return
    if not negotiation.objection(request):
        negotiation.accept(request, max_length=65536)


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        ({"called": b""}, negotiation.CALLED_AE_UNKNOWN),
        ({"calling": b""}, negotiation.CALLING_AE_UNKNOWN),
        ({"calling": b"\xff" * 16}, negotiation.CALLING_AE_UNKNOWN),
        ({"calling": b"A\\B"}, negotiation.CALLING_AE_UNKNOWN),
        ({"called": b"\n"}, negotiation.CALLED_AE_UNKNOWN),
        ({"version": 2}, Rejection(result=1, source=2, reason=2)),
    ],
)
def test_impossible_title_or_version_is_rejected(titles: dict[str, object], expected: Rejection) -> None:
    """By the reasons of PS3.8 table 9-21."""
    assert expected == negotiation.objection(read_request(body(**titles)))


def test_odd_titles_that_are_allowed_are_taken() -> None:
    """A shell's metacharacters are printable ASCII, and some devices pad with NUL."""
    found = read_request(body(called=b"$(id)\0\0", calling=b"'; rm -rf", version=0xFFFF))

    assert (found.called_ae, found.calling_ae, negotiation.objection(found)) == ("$(id)", "'; rm -rf", None)


def test_other_application_is_rejected() -> None:
    """Without DICOM's application context nothing is agreed on."""
    assert Rejection(result=1, source=1, reason=2) == negotiation.objection(read_request(body(context(1), USER)))


def test_accepting_what_was_not_proposed_is_the_declared_error() -> None:
    """A peer may not choose a transfer syntax that it was not offered."""
    request = negotiation.request_pdu(called_ae="A", calling_ae="B", contexts=[Context(CT, EXPLICIT)], max_length=1000)
    _, answer = negotiation.accept(read_request(request[6:]), max_length=65536)

    with pytest.raises(ProtocolError, match="accepted otherwise than proposed"):
        read_accept(answer[6:], [Context(CT, JPEG)])
