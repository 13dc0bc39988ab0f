"""A DICOM node that does as it is told, and writes down every copy it is given; a program, and how a test runs it."""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from talaria.dimse import command, negotiation, pdu

_MOST_BYTES = 256 << 10


class Copy(NamedTuple):
    """A copy of an instance, as it was answered for."""

    time: float
    calling_ae: str
    called_ae: str
    uid: str
    sha256: str
    status: str


class Script:
    """
    What is answered to one C-STORE after the other; success when it is over.

    Steps with commas between: a status in hex (`A700`), `hang` (no answer, ever), `abort`; `*N` after one repeats it.
    """

    def __init__(self) -> None:
        self._steps: deque[str] = deque()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Forget what was left, and follow this."""
        steps: list[str] = []
        for entry in filter(None, text.strip().split(",")):
            step, _, count = entry.partition("*")
            steps += [step] * int(count or 1)
        with self._lock:
            self._steps = deque(steps)

    def next(self) -> str:
        """The next step."""
        with self._lock:
            return self._steps.popleft() if self._steps else "0000"


class Conversation:
    """One association."""

    def __init__(self, sock: socket.socket, *, journal: int, script: Script) -> None:
        self._socket, self._journal, self._script = sock, journal, script
        self._machine = pdu.Machine(phase=pdu.Phase.LISTENING, max_length=_MOST_BYTES)
        self._length = 0
        self._titles = ("", "")
        self._request: command.Command | None = None
        self._digest = hashlib.sha256()

    def run(self) -> None:
        """Until either side ends it."""
        with self._socket, contextlib.suppress(OSError, EOFError, pdu.ProtocolError):
            while True:
                data = self._socket.recv(_MOST_BYTES)
                if not data:
                    return
                for event in self._machine.feed(data):
                    self._handle(event)

    def _handle(self, event: pdu.Event) -> None:
        if isinstance(event, pdu.AssociateRequest):
            request = negotiation.read_request(event.body)
            agreement, answer = negotiation.accept(request, max_length=_MOST_BYTES)
            self._titles, self._length = (request.calling_ae, request.called_ae), agreement.max_length
            self._machine.open(agreement.contexts.keys())
            self._socket.sendall(answer)
        elif isinstance(event, pdu.CommandSet):
            self._begin(command.parse(event.data))
        elif isinstance(event, pdu.DataSet):
            for fragment in event.fragments:
                self._digest.update(fragment)
            if event.is_last:
                self._end()
        elif isinstance(event, pdu.ReleaseRequest):
            self._socket.sendall(pdu.RELEASE_RP)
            raise EOFError
        else:
            raise EOFError

    def _begin(self, request: command.Command) -> None:
        if request.has_data_set:
            self._request, self._digest = request, hashlib.sha256()
        else:
            self._answer(request, 0)

    def _end(self) -> None:
        request = self._request
        assert request is not None
        step = self._script.next()
        line = " ".join((f"{time.time():.3f}", *self._titles, request.sop_instance_uid, self._digest.hexdigest(), step))
        os.write(self._journal, f"{line}\n".encode())
        if step == "hang":
            threading.Event().wait()
        if step == "abort":
            self._socket.sendall(pdu.abort())
            raise EOFError
        self._answer(request, int(step, 16))

    def _answer(self, request: command.Command, status: int) -> None:
        answer = command.response(request, status)
        self._socket.sendall(pdu.command_pdus(self._machine.context_id, answer, max_length=self._length))


def serve(port: int, journal: Path) -> None:
    """Listen, and follow the scripts that come by standard input, a line each; its end ends all."""
    script = Script()
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    print(listener.getsockname()[1], flush=True)

    def listen() -> None:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conversation = Conversation(sock, journal=descriptor, script=script)
            threading.Thread(target=conversation.run, daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    for line in sys.stdin:
        script.say(line)
        print("well", flush=True)


@dataclass
class Sink:
    """A sink that runs."""

    port: int
    journal: Path
    process: subprocess.Popen[str]

    def say(self, script: str) -> None:
        """What it is to answer from now on; returns when it knows."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{script}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def copies(self) -> list[Copy]:
        """Every copy it was given so far."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [Copy(float(moment), *rest) for moment, *rest in (line.split() for line in lines)]


@contextlib.contextmanager
def sink(folder: Path, *, port: int = 0) -> Iterator[Sink]:
    """Run a sink; its journal is in *folder*."""
    journal = folder / "sink.journal"
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), str(journal)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield Sink(int(process.stdout.readline()), journal, process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
