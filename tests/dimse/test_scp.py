"""The listener against peers that speak by hand: what is stored, what is refused, and what hostile bytes get."""

import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from talaria.dimse import command, negotiation, pdu
from talaria.dimse.acceptor import shown
from talaria.dimse.negotiation import VERIFICATION, Context, Rejection
from talaria.dimse.pdu import Reason
from talaria.dimse.scp import Ending, Limits, Listener
from talaria.model.errors import ConfigError, Mismatch, NoRoom, NotAnInstance
from wire import BUGS, CT, EXPLICIT, MemorySink, Wire, data_pdus, echo_rq, store_rq, wait_until

Listen = Callable[..., Listener]

QUICK = Limits(
    artim=timedelta(milliseconds=200),
    idle=timedelta(milliseconds=300),
    stall=timedelta(milliseconds=200),
    linger=timedelta(milliseconds=500),
)
BOTH = (Context(CT, EXPLICIT), Context(VERIFICATION, "1.2.840.10008.1.2"))


def store(wire: Wire, data: bytes = b"d" * 5000, **command_keys: object) -> command.Command:
    wire.say(store_rq(**command_keys) + data_pdus(data))
    return wire.response()


def test_instance_is_stored_byte_for_byte(sink: MemorySink, listen: Listen) -> None:
    """The sink gets the bytes, who sent them to whom, and what they are."""
    data = os.urandom(1_000_000)
    with Wire(listen().port) as wire:
        assert 2 == wire.associate(calling="CT 1")[0]
        answer = store(wire, data, uid="1.2.3.4", message_id=9)
        wire.say(pdu.RELEASE_RQ)
        assert pdu.RELEASE_RP == wire.hear()
    wait_until(lambda: sink.endings)

    request = sink.stored[0].request
    assert (0, 9, "1.2.3.4", 0x8001) == (answer.status, answer.responded_to, answer.sop_instance_uid, answer.field)
    assert data == sink.stored[0].data
    assert ("1.2.3.4", CT, EXPLICIT, 9) == (
        request.sop_instance_uid,
        request.sop_class_uid,
        request.transfer_syntax_uid,
        request.message_id,
    )
    origin = request.association.origin
    assert ("CT 1", "TALARIA", "127.0.0.1") == (origin.calling_ae, origin.called_ae, origin.address)
    assert "TALARIA_0_1" == request.association.implementation_version
    assert [Ending.RELEASED] == sink.endings


def test_echo_and_store_share_an_association(sink: MemorySink, listen: Listen) -> None:
    """C-ECHO is answered before, between and after instances."""
    with Wire(listen().port, contexts=BOTH) as wire:
        wire.associate()
        for number in range(3):
            wire.say(echo_rq(3))
            answer = wire.response()
            assert (0x8030, 7, 0) == (answer.field, answer.responded_to, answer.status)
            assert 0 == store(wire, uid=f"1.{number}").status

    assert ["1.0", "1.1", "1.2"] == [item.request.sop_instance_uid for item in sink.stored]


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (NoRoom("the spool is full"), 0xA700, "the spool is full"),
        (NotAnInstance("no Study Instance UID"), 0xC000, "no Study Instance UID"),
        (Mismatch("another\\instance"), 0xA900, "another/instance"),
        (RuntimeError("asked for"), 0x0110, "processing failure"),
    ],
)
@pytest.mark.parametrize("where", ["at_open", "at_write", "at_commit"])
def test_what_the_sink_says_is_answered_and_the_association_goes_on(
    sink: MemorySink, listen: Listen, error: Exception, status: int, comment: str, where: str
) -> None:
    """The rest of the data set is thrown away, the next instance is stored; a bug in the sink is answered 0110."""
    setattr(sink, where, error)
    with Wire(listen().port) as wire:
        wire.associate()
        refused = store(wire, b"d" * 200_000)
        setattr(sink, where, None)
        taken = store(wire, b"next")

    assert (status, comment, 0) == (refused.status, refused.comment, taken.status)
    assert [b"next"] == [item.data for item in sink.stored]
    assert (0 if where == "at_open" else 1) == sink.discarded
    assert isinstance(error, RuntimeError) == bool(BUGS)


@pytest.mark.parametrize(
    "uid", ["", "1" * 65, "../../x", "1.2\0.3", ".", "..", "error", "1.2.é", "1.", "../../evil/1.2"]
)
def test_bad_instance_uid_is_refused(sink: MemorySink, listen: Listen, uid: str) -> None:
    """C000, whatever it looks like; nothing reaches the sink."""
    element = uid.encode("latin-1") + b"\0" * (len(uid) % 2)
    request = bytearray(command.store_request(message_id=1, sop_class_uid=CT, sop_instance_uid="1.2"))
    request[-12:] = b"\0\0\0\x10" + len(element).to_bytes(4, "little") + element
    with Wire(listen().port) as wire:
        wire.associate()
        wire.say(pdu.command_pdus(1, bytes(request), max_length=0) + data_pdus(b"d" * 100))
        assert 0xC000 == wire.response().status
        assert 0 == store(wire).status

    assert 1 == len(sink.stored)


def test_command_that_does_not_fit_is_refused(sink: MemorySink, listen: Listen) -> None:
    """Another SOP class than the context's, C-STORE of verification, C-STORE without data, foreign operations."""
    with Wire(listen().port, contexts=BOTH) as wire:
        wire.associate()
        assert 0x0122 == store(wire, sop_class="1.2.840.10008.5.1.4.1.1.4").status
        wire.say(store_rq(context_id=3, sop_class=VERIFICATION) + data_pdus(b"d", context_id=3))
        assert 0x0122 == wire.response().status
        no_data = command.store_request(message_id=1, sop_class_uid=CT, sop_instance_uid="1.2")
        no_data = no_data.replace(b"\0\0\0\x08\2\0\0\0\1\0", b"\0\0\0\x08\2\0\0\0\1\1")
        wire.say(pdu.command_pdus(1, no_data, max_length=0))
        assert 0xC000 == wire.response().status
        for operation in (0x20, 0x21, 0x10, 0x100, 0x110, 0x120, 0x130, 0x140, 0x150):
            request = command.store_request(message_id=1, sop_class_uid=CT, sop_instance_uid="1.2")
            request = request.replace(b"\0\0\0\1\2\0\0\0\1\0", b"\0\0\0\1\2\0\0\0" + operation.to_bytes(2, "little"))
            wire.say(pdu.command_pdus(1, request, max_length=0) + data_pdus(b"query"))
            answer = wire.response()
            assert (answer.status, answer.field) == (0x0211, operation | 0x8000)
        assert 0 == store(wire).status

    assert 1 == len(sink.stored)


def test_cancel_is_ignored(sink: MemorySink, listen: Listen) -> None:
    """There is nothing to cancel, and a C-CANCEL has no response."""
    cancel = command.echo_request(message_id=1).replace(b"\x30\0", b"\xff\x0f")
    with Wire(listen().port) as wire:
        wire.associate()
        wire.say(pdu.command_pdus(1, cancel, max_length=0))
        assert 0 == store(wire).status


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (data_pdus(b"d"), Reason.INVALID_PARAMETER),  # without a command
        (store_rq() + store_rq(), Reason.NOT_SPECIFIED),  # without a data set
        (echo_rq() + data_pdus(b"d"), Reason.NOT_SPECIFIED),  # that was not announced
        (store_rq() + data_pdus(b"d" * 5000)[:-1012] + b"GET / HTTP", Reason.UNRECOGNISED_PDU),
        (store_rq() + pdu.RELEASE_RQ, Reason.UNEXPECTED_PDU),
        (data_pdus(b"nonsense", command_set=True), Reason.NOT_SPECIFIED),
        (b"\x08\0\0\0\0\4", Reason.UNRECOGNISED_PDU),
        (b"\1\0\0\0\1\0", Reason.UNEXPECTED_PDU),
        (b"\4\0\xff\xff\xff\xff", Reason.INVALID_PARAMETER),
    ],
)
def test_broken_protocol_is_aborted(sink: MemorySink, listen: Listen, data: bytes, reason: Reason) -> None:
    """An A-ABORT of the provider with the reason; nothing is stored."""
    with Wire(listen().port) as wire:
        wire.associate()
        wire.say(data)
        assert wire.hear_end().endswith(pdu.abort(reason))
    wait_until(lambda: sink.endings)

    assert ([Ending.ABORTED], []) == (sink.endings, sink.stored)


def test_instance_broken_off_is_discarded(sink: MemorySink, listen: Listen) -> None:
    """By an abort, or by a connection that breaks, in the middle of a data set."""
    listener = listen()
    for number, last_word in enumerate((pdu.abort(), b"")):
        with Wire(listener.port) as wire:
            wire.associate()
            wire.say(store_rq() + data_pdus(b"d" * 5000)[:-1006] + last_word)
        wait_until(lambda done=number + 1: len(sink.endings) == done)

    assert ([Ending.ABORTED, Ending.LOST], 2, []) == (sink.endings, sink.discarded, sink.stored)


def test_too_long_an_instance_is_aborted(sink: MemorySink, listen: Listen) -> None:
    """An instance beyond the limit is not worth the room it would take."""
    with Wire(listen(Limits(instance_bytes=10_000)).port) as wire:
        wire.associate()
        assert 0 == store(wire, b"d" * 10_000).status
        wire.say(store_rq() + data_pdus(b"d" * 10_001))
        assert pdu.abort(Reason.NOT_SPECIFIED) == wire.hear_end()

    assert 1 == len(sink.stored)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: talaria\r\n\r\n",
        b"\x16\3\1\2\0\1\0\1\xfc\3\3" + bytes(500),
        bytes(range(200, 256)) * 100,
        b"\1\0\xff\xff\xff\xff" + bytes(1000),
        b"\1\0\0\0\0\0",
        b"\4\0\0\0\0\x08\0\0\0\4\1\3ab",
        pdu.RELEASE_RQ,
        b"\1\0\0\0\1\0" + bytes(256),
    ],
)
def test_what_is_no_association_request_is_closed(sink: MemorySink, listen: Listen, data: bytes) -> None:
    """HTTP, a TLS hello, chance, a header that claims 4 GiB, data before association: abort, close, serve the next."""
    listener = listen()
    with Wire(listener.port) as wire:
        wire.say(data)
        answer = wire.hear_end()
    with Wire(listener.port) as wire:
        wire.associate()
        assert 0 == store(wire).status

    assert b"\7\0\0\0\0\4\0\0\2" == answer[:9]


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_leave_the_listener_well(sink: MemorySink, listen: Listen, data: bytes, associated: bool) -> None:
    """No bug, and the next peer is served."""
    listener = listen(QUICK)
    with Wire(listener.port) as wire:
        if associated:
            wire.associate()
        wire.say(data)
        wire.socket.shutdown(socket.SHUT_WR)
        wire.hear_end()
    with Wire(listener.port) as wire:
        wire.associate()
        assert 0 == store(wire).status
    listener.stop(timedelta(0))

    assert [] == BUGS


def test_silent_peer_is_closed(listen: Listen) -> None:
    """Without a complete request within the ARTIM time the connection is closed, however slowly it drips."""
    listener = listen(QUICK)
    with Wire(listener.port) as silent, Wire(listener.port) as dripping:
        silent.say(b"\1\0\0")
        assert b"" == silent.hear_end()
        with pytest.raises(OSError):  # noqa: PT012 - which byte is one too many is up to the system
            while dripping.socket.recv(1) == b"":
                dripping.say(b"\1")


def test_stalled_and_idle_peers_are_aborted(sink: MemorySink, listen: Listen) -> None:
    """In the middle of a message sooner than between two."""
    listener = listen(QUICK)
    with Wire(listener.port) as wire:
        wire.associate()
        wire.say(store_rq() + data_pdus(b"d" * 5000)[:-1006])
        assert pdu.abort(Reason.NOT_SPECIFIED) == wire.hear_end()
    with Wire(listener.port) as wire:
        wire.associate()
        assert 0 == store(wire).status
        assert pdu.abort(Reason.NOT_SPECIFIED) == wire.hear_end()
    wait_until(lambda: len(sink.endings) == 2)

    assert ([Ending.LOST, Ending.LOST], 1) == (sink.endings, sink.discarded)


def test_peer_that_sends_a_byte_now_and_then_is_aborted(sink: MemorySink, listen: Listen) -> None:
    """Progress that would take a year is none."""
    data = iter(store_rq() + data_pdus(b"d" * 5000))
    with Wire(listen(QUICK).port) as wire:
        wire.associate()
        wire.socket.settimeout(0.05)
        while True:
            wire.say(bytes((next(data),)))
            try:
                answer = wire.socket.recv(100)
                break
            except TimeoutError:
                pass

    assert pdu.abort(Reason.NOT_SPECIFIED) == answer


def test_gate_decides_who_associates(sink: MemorySink, listen: Listen) -> None:
    """What it says is what the peer hears, and it is asked of titles that can be."""
    listener = listen(
        gate=lambda origin: Rejection(result=1, source=1, reason=3) if origin.calling_ae == "BAD" else None
    )
    for calling, answer in (("BAD", pdu.reject(1, 1, 3)), ("GOOD", b"\2")):
        with Wire(listener.port) as wire:
            assert answer == wire.associate(calling=calling)[: len(answer)]


def test_associations_are_limited(listen: Listen) -> None:
    """Per address and in all; a seat is free again when its association ends."""
    listener = listen(Limits(associations=3, associations_per_address=2))
    with Wire(listener.port) as first, Wire(listener.port) as second, Wire(listener.port) as third:
        assert [2, 2] == [first.associate()[0], second.associate()[0]]
        assert pdu.reject(2, 3, 2) == third.associate()
        assert 2 == listener.associations
        first.say(pdu.RELEASE_RQ)
        assert pdu.RELEASE_RP == first.hear()
    wait_until(lambda: listener.associations == 0)
    with Wire(listener.port) as wire:
        assert 2 == wire.associate()[0]


def test_half_open_connections_are_bounded(sink: MemorySink, listen: Listen) -> None:
    """Beyond the bound the oldest goes; one who means it is still served at once."""
    listener = listen(Limits(arriving=20, arriving_per_address=10))
    wires = [Wire(listener.port) for _ in range(30)]
    for wire in wires:
        wire.say(b"\1\0\0")
    began = time.monotonic()
    with Wire(listener.port) as wire:
        wire.associate()
        assert 0 == store(wire).status

    assert 0.5 > time.monotonic() - began
    assert b"" == wires[0].hear_end()
    for wire in wires:
        wire.socket.close()


def test_two_hundred_half_open_peers_block_nobody(sink: MemorySink, listen: Listen) -> None:
    """C-ECHO is answered while each of them holds three bytes of a header."""
    listener = listen(Limits(arriving=256, arriving_per_address=256))
    wires = [Wire(listener.port) for _ in range(200)]
    for wire in wires:
        wire.say(b"\1\0\0")
    began = time.monotonic()
    with Wire(listener.port, contexts=BOTH) as wire:
        wire.associate()
        wire.say(echo_rq(3))
        assert 0 == wire.response().status

    assert 0.5 > time.monotonic() - began
    for wire in wires:
        wire.socket.close()


def test_stop_lets_the_running_end_and_refuses_the_new(sink: MemorySink, listen: Listen) -> None:
    """Within the grace an association can store and release; new ones hear of congestion."""
    listener = listen()
    with Wire(listener.port) as running, Wire(listener.port) as late:
        running.associate()
        stopping = threading.Thread(target=listener.stop, args=(timedelta(seconds=10),))
        stopping.start()
        wait_until(lambda: listener._is_draining)
        assert pdu.reject(2, 3, 1) == late.associate()
        assert 0 == store(running).status
        running.say(pdu.RELEASE_RQ)
        assert pdu.RELEASE_RP == running.hear()
        stopping.join(5)

    assert not stopping.is_alive()
    assert [Ending.RELEASED] == sink.endings


def test_stop_breaks_off_what_outlasts_the_grace(sink: MemorySink, listen: Listen) -> None:
    """In the middle of an instance: discarded, aborted, gone."""
    listener = listen()
    with Wire(listener.port) as wire:
        wire.associate()
        wire.say(store_rq() + data_pdus(b"d" * 5000)[:-1006])
        listener.stop(timedelta(milliseconds=50))
        assert pdu.abort() == wire.hear_end()
    with pytest.raises(ConnectionError):
        Wire(listener.port)

    assert ([Ending.ABORTED], 1) == (sink.endings, sink.discarded)


def test_two_listeners_share_a_port_only_if_both_want_to(listen: Listen, sink: MemorySink) -> None:
    """Several processes may serve one port; by mistake nobody does."""
    shared = listen(share_port=True)
    other = Listener(host="127.0.0.1", port=shared.port, sink=sink, guard=lambda work: None, share_port=True)
    other.start()
    other.stop(timedelta(0))
    alone = Listener(host="127.0.0.1", port=shared.port, sink=sink, guard=lambda work: None)
    with pytest.raises(ConfigError, match="choose another dicom_port"):
        alone.start()


def test_small_pdus_are_kept_to(listen: Listen) -> None:
    """A peer that takes little gets its answer in small pieces."""
    with Wire(listen(Limits(max_length=64 << 10)).port) as wire:
        wire.say(negotiation.request_pdu(called_ae="TALARIA", calling_ae="W", contexts=wire.contexts, max_length=64))
        wire.hear()
        wire.say(store_rq() + data_pdus(b"d"))
        pieces, last = b"", 0
        while not last & 2:
            piece = wire.hear()
            assert 64 >= len(piece) - 6
            pieces, last = pieces + piece[12:], piece[11]

    assert 0 == command.parse(pieces).status


def test_log_is_escaped_and_spares_the_disk(
    listen: Listen, sink: MemorySink, logged: list[MutableMapping[str, object]]
) -> None:
    """Titles are shown so that no terminal obeys them; one line a minute for an address that talks nonsense."""
    listener = listen(gate=lambda origin: None)
    with Wire(listener.port) as wire:
        wire.associate(calling="$(id)")
        wire.say(pdu.RELEASE_RQ)
        wire.hear()
    wait_until(lambda: sink.endings)
    for _ in range(5):
        with Wire(listener.port) as wire:
            wire.say(b"GET / HTTP/1.1\r\n\r\n")
            wire.hear_end()

    wait_until(lambda: [line for line in logged if line["event"] == "connection refused"])
    assert ["association accepted", "association ended", "connection refused"] == [line["event"] for line in logged]
    assert "\\x1b[31m\\n\\u263a" == shown("\x1b[31m\n\u263a")
