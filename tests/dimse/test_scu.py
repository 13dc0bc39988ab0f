"""The sender against our own listener and against peers that misbehave."""

import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from talaria.dimse import negotiation, pdu
from talaria.dimse.command import Meaning
from talaria.dimse.negotiation import Context, Rejection, by_association
from talaria.dimse.scp import Ending, Limits, Listener
from talaria.dimse.scu import Damaged, NotAccepted, Peer, Sender, Timeouts
from talaria.model.dicom import AETitle
from talaria.model.errors import Congested, NoRoom, Permanent, Transient
from wire import CT, EXPLICIT, MemorySink, data_set_of, digest, real_instances, wait_until, write_instance

Listen = Callable[..., Listener]
HERE = Context(CT, EXPLICIT)
QUICK = Timeouts(
    connect=timedelta(milliseconds=300), acse=timedelta(milliseconds=300), dimse=timedelta(milliseconds=300)
)


def peer(port: int) -> Peer:
    return Peer(host="127.0.0.1", port=port, called_ae=AETitle("TALARIA"), calling_ae=AETitle("SENDER"))


@contextmanager
def puppet(*acts: Callable[[socket.socket], object]) -> Iterator[int]:
    """A peer that accepts one connection and does one act after each PDU or message it gets; its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def play() -> None:
        sock, _ = server.accept()
        with sock:
            for act in acts:
                sock.recv(1 << 20)
                act(sock)
            while sock.recv(1 << 20):
                pass

    thread = threading.Thread(target=_quietly, args=(play,), daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.close()
    thread.join(10)


def _quietly(play: Callable[[], None]) -> None:
    try:
        play()
    except OSError:
        pass


def accept_it(sock: socket.socket) -> None:
    request = negotiation.request_pdu(called_ae="A", calling_ae="B", contexts=[HERE], max_length=16384)
    _, answer = negotiation.accept(negotiation.read_request(request[6:]), max_length=16384)
    sock.sendall(answer)


@pytest.mark.parametrize("max_length", [16, 17, 100, 16_384, 65_536, 131_072, 1 << 20, 0])
@pytest.mark.parametrize("size", [1, 11, 99, 65_530, 262_138, 300_001])
def test_data_set_arrives_byte_for_byte(
    sink: MemorySink, listen: Listen, tmp_path: Path, max_length: int, size: int
) -> None:
    """Whatever the size of the instance, odd ones included, and of the PDUs that the peer takes."""
    if max_length and size // max_length > 5000:
        size = 5000 * max_length + 1
    path = write_instance(tmp_path, 1, size=size)
    with _announcing(listen, max_length) as port, Sender(peer(port), [HERE]) as sender:
        for _ in range(2):
            result = sender.store(path, context=HERE, sop_instance_uid="1.2.3.1", sha256=digest(data_set_of(path)))
            assert (0, Meaning.STORED) == (result.status, result.meaning)

    assert [data_set_of(path)] * 2 == [item.data for item in sink.stored]
    wait_until(lambda: sink.endings)
    assert [Ending.RELEASED] == sink.endings


@contextmanager
def _announcing(listen: Listen, max_length: int) -> Iterator[int]:
    """A listener that announces *max_length*; 0 means any, which a listener of ours never says by itself."""
    said = max_length or 1 << 20
    listener = listen(Limits(max_length=said))
    real = negotiation.accept

    def accept(request: negotiation.Request, *, max_length: int) -> tuple[negotiation.Agreement, bytes]:
        agreement, answer = real(request, max_length=max_length)
        return agreement, answer.replace(b"\x51\0\0\4" + said.to_bytes(4, "big"), b"\x51\0\0\4\0\0\0\0")

    negotiation.accept = real if max_length else accept
    try:
        yield listener.port
    finally:
        negotiation.accept = real


def test_real_data_sets_arrive_byte_for_byte(sink: MemorySink, listen: Listen) -> None:
    """Scanner files and pydicom's own, in every transfer syntax they are in."""
    found = real_instances()
    for part in by_association(found, lambda item: item.context):
        with Sender(peer(listen().port), list({item.context: None for item in part})) as sender:
            for item in part:
                result = sender.store(item.path, context=item.context, sop_instance_uid=item.meta.sop_instance_uid)
                assert 0 == result.status, item.path

    assert len(found) == len(sink.stored) > 20
    sent = {item.meta.sop_instance_uid: digest(data_set_of(item.path)) for item in found}
    assert sent == {item.request.sop_instance_uid: digest(item.data) for item in sink.stored}


def test_large_file_is_never_whole_in_memory(sink: MemorySink, listen: Listen, tmp_path: Path) -> None:
    """A sparse 300 MB file is sent through a buffer of about 1 MB; the sink here counts only."""
    import tracemalloc

    path = write_instance(tmp_path, 1)
    os.truncate(path, 300_000_000)
    sink.at_write = NoRoom("count only")
    with Sender(peer(listen().port), [HERE]) as sender:
        tracemalloc.start()
        result = sender.store(path, context=HERE, sop_instance_uid="1.2.3.1")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert (0xA700, Meaning.LATER, "count only") == (result.status, result.meaning, result.comment)
    assert 5_000_000 > most


def test_echo(listen: Listen) -> None:
    """Answered, and an association without anything else is possible."""
    with Sender(peer(listen().port), []) as sender:
        sender.echo()

        assert "TALARIA_0_1" == sender.agreement.implementation_version


def test_context_that_is_not_accepted_names_what_it_is(listen: Listen, tmp_path: Path) -> None:
    """SOP class and transfer syntax in words; the association goes on."""
    find = Context("1.2.840.10008.5.1.4.31", EXPLICIT)
    listener = listen()
    with Sender(peer(listener.port), [find, HERE]) as sender:
        with pytest.raises(NotAccepted) as raised:
            sender.store(tmp_path / "x", context=find, sop_instance_uid="1.2")
        sender.echo()

    assert (
        f"127.0.0.1:{listener.port} does not accept Modality Worklist Information Model - FIND in "
        "Explicit VR Little Endian (called AE 'TALARIA')"
    ) == str(raised.value)


def test_damaged_file_is_not_stored(sink: MemorySink, listen: Listen, tmp_path: Path) -> None:
    """A byte that changed in the spool, found while it is sent: the peer never gets the end of it."""
    small, large, good = (write_instance(tmp_path, n, size=s) for n, s in ((1, 5000), (2, 5_000_000), (3, 5000)))
    with Sender(peer(listen().port), [HERE]) as sender:
        with pytest.raises(Damaged, match="is not what was received"):
            sender.store(small, context=HERE, sop_instance_uid="1.2.3.1", sha256="0" * 64)
        assert sender.is_open
        assert 0 == sender.store(good, context=HERE, sop_instance_uid="1.2.3.3").status
        with pytest.raises(Damaged):
            sender.store(large, context=HERE, sop_instance_uid="1.2.3.2", sha256="0" * 64)
        assert not sender.is_open
    wait_until(lambda: sink.endings)

    assert (["1.2.3.3"], [Ending.ABORTED], 1) == (
        [item.request.sop_instance_uid for item in sink.stored],
        sink.endings,
        sink.discarded,
    )


def test_unusable_file_is_told_apart(listen: Listen, tmp_path: Path) -> None:
    """Gone, not DICOM, in another transfer syntax, without a data set: all leave the association as it is."""
    (tmp_path / "text").write_text("hello")
    other = write_instance(tmp_path, 2, syntax="1.2.840.10008.1.2")
    empty = write_instance(tmp_path, 3, size=0)
    with Sender(peer(listen().port), [HERE]) as sender:
        for path in (tmp_path / "gone", tmp_path / "text", other, empty):
            with pytest.raises(Damaged):
                sender.store(path, context=HERE, sop_instance_uid="1.2")
        sender.echo()


def test_refused_connection_is_transient() -> None:
    """Nobody listens there now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Transient, match=r"127.0.0.1:\d+ cannot be reached: Connection refused"):
        Sender(peer(port), [HERE]).__enter__()


@pytest.mark.parametrize(
    ("rejection", "kind", "words"),
    [
        (Rejection(result=2, source=3, reason=1), Congested, "temporary congestion (2/3/1)"),
        (Rejection(result=2, source=3, reason=2), Congested, "local limit exceeded (2/3/2)"),
        (
            Rejection(result=1, source=1, reason=7),
            Permanent,
            "not recognised (1/1/7), called AE 'TALARIA'",
        ),
        (Rejection(result=1, source=1, reason=3), Permanent, "calling AE 'SENDER'"),
    ],
)
def test_rejection_is_told_apart(listen: Listen, rejection: Rejection, kind: type[Exception], words: str) -> None:
    """Transient ones ask for patience, permanent ones for a person, and they name the AE titles."""
    with pytest.raises(kind) as raised:
        Sender(peer(listen(gate=lambda origin: rejection).port), [HERE]).__enter__()

    assert words in str(raised.value)


def test_silent_peer_is_transient(tmp_path: Path) -> None:
    """At the association, and at the response; each within its time-out."""
    began = time.monotonic()
    with puppet(lambda sock: None) as port, pytest.raises(Transient, match=r"was silent for 0\.3 s"):
        Sender(peer(port), [HERE], timeouts=QUICK).__enter__()
    with (
        puppet(accept_it, lambda sock: None) as port,
        pytest.raises(Transient, match=r"was silent for 0\.3 s"),
        Sender(peer(port), [HERE], timeouts=QUICK) as sender,
    ):
        sender.store(write_instance(tmp_path, 1), context=HERE, sop_instance_uid="1.2.3.1")

    assert 3 > time.monotonic() - began


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda sock: sock.sendall(pdu.abort()), "aborted the association (its user)"),
        (lambda sock: sock.sendall(pdu.abort(pdu.Reason.UNEXPECTED_PDU)), "its provider, reason 2"),
        (lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "broke the protocol: PDU type 0x48"),
        (lambda sock: sock.sendall(pdu.RELEASE_RQ), "ended the association before it answered"),
        (lambda sock: sock.shutdown(socket.SHUT_WR), "closed the connection"),
    ],
)
def test_peer_that_breaks_off_is_transient(tmp_path: Path, act: Callable[[socket.socket], object], words: str) -> None:
    """Each says what happened, and the association is of no more use."""
    path = write_instance(tmp_path, 1)
    with puppet(accept_it, act) as port, Sender(peer(port), [HERE], timeouts=QUICK) as sender:
        with pytest.raises(Transient) as raised:
            sender.store(path, context=HERE, sop_instance_uid="1.2.3.1")
        assert not sender.is_open
        with pytest.raises(Transient, match="has no open association"):
            sender.store(path, context=HERE, sop_instance_uid="1.2.3.1")

    assert words in str(raised.value)


def test_error_inside_aborts(sink: MemorySink, listen: Listen) -> None:
    """Who leaves the association by an exception leaves it by an abort."""
    with pytest.raises(ZeroDivisionError), Sender(peer(listen().port), [HERE]):
        raise ZeroDivisionError
    wait_until(lambda: sink.endings)

    assert [Ending.ABORTED] == sink.endings


def test_abort_from_another_thread_ends_the_wait(tmp_path: Path) -> None:
    """A sender that waits for a response is gone at once when it is told to stop."""
    began = time.monotonic()
    path = write_instance(tmp_path, 1)
    with puppet(accept_it, lambda sock: sender.abort()) as port:
        sender = Sender(peer(port), [HERE])
        with sender, pytest.raises(Transient, match="hung up on by us"):
            sender.store(path, context=HERE, sop_instance_uid="1.2.3.1")

    assert 2 > time.monotonic() - began


def test_abort_ends_a_connection_attempt() -> None:
    """Even one that nobody answers: the backlog of the far end is full."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(server.getsockname())
        fillers.append(filler)
    sender = Sender(peer(server.getsockname()[1]), [HERE])
    began = time.monotonic()
    timer = threading.Timer(0.2, sender.abort)
    timer.start()
    with pytest.raises(Transient):
        sender.__enter__()

    assert 5 > time.monotonic() - began
    for sock in (server, *fillers):
        sock.close()


def test_more_contexts_than_fit_are_split() -> None:
    """128 to an association, each item in one part, order kept."""
    items = [Context("1.2", f"1.{number % 300}") for number in range(600)]

    parts = by_association(items, lambda item: item)

    assert [256, 256, 88] == [len(part) for part in parts]
    assert [128, 128, 44] == [len(set(part)) for part in parts]


def test_tls_both_ways(sink: MemorySink, listen: Listen, tmp_path: Path) -> None:
    """Over TLS the bytes are the same; a certificate that is not trusted is permanent, plain bytes are closed."""
    certificate = _certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    client = ssl.create_default_context(cafile=str(certificate))
    listener = listen(tls=server)
    path = write_instance(tmp_path, 1, size=3_000_001)
    with Sender(peer(listener.port), [HERE], tls=client) as sender:
        assert 0 == sender.store(path, context=HERE, sop_instance_uid="1.2.3.1").status
    with pytest.raises(Permanent, match="certificate that is not trusted"):
        Sender(peer(listener.port), [HERE], tls=ssl.create_default_context()).__enter__()
    with pytest.raises(Transient):
        Sender(peer(listener.port), [HERE], timeouts=QUICK).__enter__()

    assert [data_set_of(path)] == [item.data for item in sink.stored]


def _certificate(folder: Path) -> Path:
    """A key and a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "both.pem"
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    return path
