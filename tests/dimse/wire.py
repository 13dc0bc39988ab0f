"""An in-memory sink, a peer that says whatever bytes it is told to, and files to send."""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.data import get_testdata_files

from talaria.dimse import command, negotiation, pdu
from talaria.dimse.files import Found, find_instances
from talaria.dimse.negotiation import Context
from talaria.dimse.scp import Association, Ending, StoreRequest
from talaria.model.errors import NotAnInstance
from talaria.model.part10 import FileMeta, build_meta, parse_meta

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


@dataclass
class Stored:
    """What the sink was given."""

    request: StoreRequest
    data: bytes


@dataclass
class MemorySink:
    """Keeps what it is given; fails where it is told to."""

    stored: list[Stored] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    discarded: int = 0
    at_open: Exception | None = None
    at_write: Exception | None = None
    at_commit: Exception | None = None

    def open(self, request: StoreRequest) -> "MemoryIncoming":
        if self.at_open:
            raise self.at_open
        return MemoryIncoming(self, request)

    def ended(self, association: Association, how: Ending) -> None:
        self.endings.append(how)


@dataclass
class MemoryIncoming:
    sink: MemorySink
    request: StoreRequest
    parts: list[bytes] = field(default_factory=list)

    def write(self, fragments: Sequence[memoryview]) -> None:
        if self.sink.at_write:
            raise self.sink.at_write
        self.parts.extend(map(bytes, fragments))

    def commit(self) -> None:
        if self.sink.at_commit:
            raise self.sink.at_commit
        self.sink.stored.append(Stored(self.request, b"".join(self.parts)))

    def discard(self) -> None:
        self.sink.discarded += 1


def guard(work: Callable[[], None]) -> BaseException | None:
    """What services/loop.py does for the program."""
    try:
        work()
    except Exception as bug:  # noqa: BLE001 - stands in for the one of the program
        BUGS.append(bug)
        return bug
    return None


BUGS: list[BaseException] = []


class Wire:
    """A peer that speaks by hand."""

    def __init__(self, port: int, *, contexts: Sequence[Context] = (Context(CT, EXPLICIT),)) -> None:
        self.contexts = contexts
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> bytes:
        """The next PDU, header and all; empty when the connection is closed."""
        header = self._exactly(6)
        return header + self._exactly(int.from_bytes(header[2:], "big")) if header else b""

    def hear_end(self) -> bytes:
        """Everything up to the end of the connection."""
        parts = []
        try:
            while part := self.socket.recv(65536):
                parts.append(part)
        except ConnectionError:
            pass
        return b"".join(parts)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionError:
                return b""
            if not part:
                return b""
            data += part
        return data

    def associate(self, *, called: str = "TALARIA", calling: str = "WIRE") -> bytes:
        """Ask for an association; the answer."""
        request = negotiation.request_pdu(
            called_ae=called, calling_ae=calling, contexts=self.contexts, max_length=16384
        )
        self.say(request)
        return self.hear()

    def response(self) -> command.Command:
        answer = self.hear()
        assert 4 == answer[0], answer
        return command.parse(answer[12:])


def data_pdus(data: bytes, *, context_id: int = 1, size: int = 1000, command_set: bool = False) -> bytes:
    """P-DATA-TF PDUs of one PDV each."""
    parts = []
    for at in range(0, max(1, len(data)), size):
        piece = data[at : at + size]
        flags = int(command_set) | (2 if at + size >= len(data) else 0)
        head = (len(piece) + 2).to_bytes(4, "big") + bytes((context_id, flags))
        parts.append(b"\4\0" + (len(piece) + 6).to_bytes(4, "big") + head + piece)
    return b"".join(parts)


def store_rq(
    *, message_id: int = 1, uid: str = "1.2.3", sop_class: str = CT, context_id: int = 1, max_length: int = 0
) -> bytes:
    request = command.store_request(message_id=message_id, sop_class_uid=sop_class, sop_instance_uid=uid)
    return pdu.command_pdus(context_id, request, max_length=max_length)


def echo_rq(context_id: int = 1) -> bytes:
    return pdu.command_pdus(context_id, command.echo_request(message_id=7), max_length=0)


def wait_until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Poll; fails where *condition* stays false."""
    deadline = time.monotonic() + seconds
    event = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        event.wait(0.01)


def data_set_of(path: Path) -> bytes:
    """All after the file meta information."""
    content = path.read_bytes()
    return content[parse_meta(content[: 64 << 10]).offset :]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_instance(folder: Path, number: int, *, size: int = 5000, syntax: str = EXPLICIT, sop_class: str = CT) -> Path:
    """A Part 10 file; its data set is chance, which is all the same to a sender."""
    path = folder / f"{number:05d}.dcm"
    meta = FileMeta(offset=0, sop_class_uid=sop_class, sop_instance_uid=f"1.2.3.{number}", transfer_syntax_uid=syntax)
    path.write_bytes(build_meta(meta) + os.urandom(size))
    return path


def real_instances() -> list[Found]:
    """Scanner files where there are some, and those that pydicom ships; each SOP Instance UID once."""
    folder = os.environ.get("TALARIA_TEST_DATA")
    paths = [Path(folder)] if folder else []
    shipped = [Path(name) for name in get_testdata_files() if Path(name).suffix in {".dcm", ""}]
    found = [item for item in find_instances([*paths, *shipped]) if isinstance(item, Found) and _has_data(item)]
    return list({item.meta.sop_instance_uid: item for item in found}.values())


def _has_data(item: Found) -> bool:
    try:
        return bool(data_set_of(item.path))
    except NotAnInstance:
        return False
