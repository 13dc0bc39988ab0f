"""A sender that keeps books: what it counts as acknowledged is on its own disk before it counts it."""

import hashlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from talaria.dimse.command import Meaning
from talaria.dimse.files import Found, find_instances
from talaria.dimse.negotiation import Context
from talaria.dimse.scu import Peer, Sender, Timeouts
from talaria.model.dicom import AETitle
from talaria.model.errors import TalariaError
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta

#: What stands in place of a status until there is one.
NO_ANSWER = "----"


@dataclass(frozen=True)
class Freight:
    """A file to send, and as which instance; another than its own is to be refused."""

    found: Found
    claimed_uid: str = ""

    @property
    def sop_instance_uid(self) -> str:
        """As the command says."""
        return self.claimed_uid or self.found.meta.sop_instance_uid

    @cached_property
    def sha256(self) -> str:
        """Of its data set, in hex."""
        return data_digest(self.found.path)


def data_digest(path: Path) -> str:
    """SHA-256 of a file's data set, in hex."""
    data = path.read_bytes()
    return hashlib.sha256(data[parse_meta(data[:META_LIMIT_BYTES]).offset :]).hexdigest()


def freight_of(paths: Iterable[Path]) -> list[Freight]:
    """Files, ready to be sent."""
    return [Freight(item) for item in find_instances(paths) if isinstance(item, Found)]


class LedgerSCU:
    """
    Sends to one port, and writes a line `uid sha256 status time` for each attempt and, synced, for each answer.

    Attributes:
        refusals: Statuses other than success, as they came.
        longest_seconds: That an answer took.
    """

    def __init__(self, port: int, ledger: Path, *, calling_ae: str = "CT1", timeouts: Timeouts | None = None) -> None:
        self.port, self.ledger, self._calling_ae, self._timeouts = port, ledger, calling_ae, timeouts
        self.refusals: list[int] = []
        self.longest_seconds = 0.0

    def send(self, freights: Sequence[Freight], *, stop: threading.Event | None = None) -> list[Freight]:
        """Send over one association until the end of it or of the files; what was not acknowledged, in order."""
        waiting = list(freights)
        refused: list[Freight] = []
        descriptor = os.open(self.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with self._sender(waiting) as sender:
                while waiting and not (stop and stop.is_set()):
                    if not self._send_one(sender, waiting[0], descriptor):
                        refused.append(waiting[0])
                    del waiting[0]
        except TalariaError:
            pass  # it was killed, or refuses: that is what is tried here
        finally:
            os.close(descriptor)
        return refused + waiting

    def _sender(self, freights: Sequence[Freight]) -> Sender:
        peer = Peer(
            host="127.0.0.1", port=self.port, called_ae=AETitle("TALARIA"), calling_ae=AETitle(self._calling_ae)
        )
        contexts: list[Context] = list(dict.fromkeys(freight.found.context for freight in freights))
        return Sender(peer, contexts, timeouts=self._timeouts)

    def _send_one(self, sender: Sender, freight: Freight, descriptor: int) -> bool:
        """One instance; whether it was acknowledged."""
        _write(descriptor, freight, NO_ANSWER)
        began = time.monotonic()
        result = sender.store(
            freight.found.path, context=freight.found.context, sop_instance_uid=freight.sop_instance_uid
        )
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
        _write(descriptor, freight, f"{result.status:04X}")
        os.fdatasync(descriptor)
        if result.meaning in {Meaning.STORED, Meaning.WARNED}:
            return True
        self.refusals.append(result.status)
        return False

    def echo(self) -> float:
        """C-ECHO; the seconds it took, the association included."""
        began = time.monotonic()
        with self._sender([]) as sender:
            sender.echo()
        return time.monotonic() - began


def _write(descriptor: int, freight: Freight, status: str) -> None:
    os.write(descriptor, f"{freight.sop_instance_uid} {freight.sha256} {status} {time.time():.3f}\n".encode())


@dataclass(frozen=True)
class Books:
    """What a sender's ledger says."""

    attempted: int
    acknowledged: frozenset[tuple[str, str]]
    """SOP Instance UID and SHA-256."""
    offered: frozenset[tuple[str, str]]
    """All that was ever begun; what stands at a far end and is none of these is damaged."""


def read_books(ledger: Path) -> Books:
    """Read a ledger; a last line that was cut off counts for nothing."""
    lines = [line.split() for line in ledger.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return Books(
        attempted=sum(status == NO_ANSWER for _, _, status, _ in lines),
        acknowledged=frozenset((uid, digest) for uid, digest, status, _ in lines if status in {"0000", "B000"}),
        offered=frozenset((uid, digest) for uid, digest, _, _ in lines),
    )


class Load(threading.Thread):
    """
    A sender that never tires: what is not acknowledged is sent again, over a new association, until it is.

    Between two studies it rests a second: modules take half of one, and what waits at the end must be done in time.

    Attributes:
        sent: What was acknowledged.
    """

    def __init__(self, scu: LedgerSCU, studies: Iterable[Sequence[Path]]) -> None:
        super().__init__(name="load", daemon=True)
        self._scu, self._studies = scu, studies
        self.sent = 0
        self.studies = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        """Study after study, until told to stop."""
        for paths in self._studies:
            waiting = freight_of(paths)
            while waiting:
                left = self._scu.send(waiting)
                self.sent += len(waiting) - len(left)
                waiting = left
                if waiting and self._stopping.wait(0.2):
                    return
            self.studies += 1
            if self._stopping.wait(1.0):
                return

    def stop(self) -> None:
        """Finish the study in hand, or give it up where nobody takes it."""
        self._stopping.set()
        self.join(60)
