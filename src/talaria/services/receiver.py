"""The receiver: takes instances over DICOM, makes them safe before it answers, and writes them down after."""

import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address

import structlog

from talaria.dimse.negotiation import CONGESTION
from talaria.dimse.scp import Association, Ending, Limits, Listener, Rejection, StoreRequest
from talaria.failpoint import failpoint
from talaria.model.dicom import UID, Instance, Origin
from talaria.model.errors import ConfigError, LedgerAway, Mismatch, NotAnInstance
from talaria.model.header import Header, TagList, scan
from talaria.model.part10 import META_LIMIT_BYTES, FileMeta, parse_meta
from talaria.model.rulebook import Rulebook, Sender, Unknown
from talaria.services.loop import Clock, guarded, told, wall_clock
from talaria.store.arrivals import Arrival, Arrivals, Finding
from talaria.store.operations import Pause
from talaria.store.revisions import Rulebooks
from talaria.store.spool import HEAD_BYTES, Arriving, Spool, file_digest, origin_of

log = structlog.get_logger()

#: Beyond this many, instances wait in `new/` alone and are found there again.
_MOST_IN_MEMORY = 20_000
_MOST_IN_A_BATCH = 500
#: A file in `new/` that is older and in nobody's hands was left by a receiver that died.
_STRAY = timedelta(seconds=5)
_STRAYS_EVERY = timedelta(seconds=30)
_PAUSE = timedelta(seconds=1)
#: Between two batches: a commit for each image would cost four times the processor time, and hold up the senders.
_BREATH = timedelta(milliseconds=100)

_CALLING_AE_UNKNOWN = Rejection(result=1, source=1, reason=3)  # PS3.8 table 9-21
_CALLED_AE_UNKNOWN = Rejection(result=1, source=1, reason=7)


class Receiver:
    """
    One receiver process: the listener, and the indexer thread that writes rows.

    It needs no ledger to go on accepting: what arrives meanwhile lies in `new/` and is written down later. While a
    person drains the home, as far as was last known, no association begins; those that run go on to their end.
    """

    name = "receiver"

    def __init__(
        self,
        *,
        host: str,
        port: int,
        spool: Spool,
        arrivals: Arrivals,
        rulebooks: Rulebooks,
        limits: Limits | None = None,
        clock: Clock = wall_clock,
        paused: Callable[[], Sequence[Pause]] = tuple,
        fits: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            host, port: Where it listens.
            spool: Where instances go.
            arrivals: Where they are written down.
            rulebooks: Who may call, and what is recorded.
            limits: What is put up with.
            clock: For times.
            paused: What a person has stopped for a while; asked about once a second.
            fits: Whether the ledger was seen to be the home's; nothing is written to it before.
        """
        self._rulebooks = rulebooks
        self._is_drained = False
        self._paused = paused
        self.indexer = Indexer(
            spool=spool, arrivals=arrivals, rulebooks=rulebooks, clock=clock, look=self._look, fits=fits
        )  # fmt: skip
        sink = SpoolSink(spool=spool, indexer=self.indexer, clock=clock)
        self._listener = Listener(
            host=host, port=port, sink=sink, guard=_guard, gate=self._gate, limits=limits, share_port=True
        )

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return self._listener.port

    @property
    def is_alive(self) -> bool:
        """Whether associations are taken and what came is written down."""
        return self._listener.is_alive and self.indexer.is_alive

    def start(self) -> None:
        """Begin; returns when associations are accepted."""
        self.indexer.start()
        self._listener.start()
        log.info("listening", service=self.name, port=self.port)

    def stop(self) -> None:
        """Let associations end, and write down what came; returns when both are done."""
        self._listener.stop()
        self.indexer.stop()

    def _gate(self, origin: Origin) -> Rejection | None:
        return CONGESTION if self._is_drained else admission(self._rulebooks.running(), origin)

    def _look(self) -> None:
        """
        Whether a person drains the home.

        Raises:
            LedgerAway: What was known last stands.
        """
        was_drained, self._is_drained = self._is_drained, any(pause.kind == "drain" for pause in self._paused())
        if was_drained is not self._is_drained:
            log.warning("drained: new associations are refused" if self._is_drained else "no longer drained")


def admission(book: Rulebook, origin: Origin) -> Rejection | None:
    """Whether the running rulebook lets an association pass; without `senders` everybody may call."""
    listener = next((entry for title, entry in book.listeners.items() if title == origin.called_ae), None)
    if listener is None and (book.listeners or origin.called_ae != "TALARIA"):
        return _CALLED_AE_UNKNOWN
    if listener is None or listener.unknown is Unknown.ACCEPT:
        return None
    return None if any(_fits(sender, origin) for sender in book.senders.values()) else _CALLING_AE_UNKNOWN


def _fits(sender: Sender, origin: Origin) -> bool:
    if sender.certificate:
        return False  # only a TLS port can tell
    if sender.ae and sender.ae != origin.calling_ae:
        return False
    return not sender.address or ip_address(origin.address.partition("%")[0]) in sender.address


def shortest_quiet(book: Rulebook) -> timedelta:
    """The soonest that any rule wants to be asked after the last image of a series."""
    spans = [book.quiet_of(rule) for rule in book.rules if not rule.disabled]
    return min([*spans, book.settings.series_quiet])


def _guard(work: Callable[[], object]) -> Exception | None:
    bug = guarded(work)
    if bug is not None:
        log.error("reception failed", bug=told(bug), exc_info=bug)
    return bug


class SpoolSink:
    """
    Where the listener puts instances: a file in the spool each.

    Attributes:
        forced: The rule that is to take them, whatever the others say; stands in each file, too.
    """

    def __init__(self, *, spool: Spool, indexer: "Indexer", clock: Clock, forced: str = "") -> None:
        self._spool, self._indexer, self._clock = spool, indexer, clock
        self.forced = forced

    def open(self, request: StoreRequest) -> "SpoolIncoming":
        """Begin a file, with who sends it to whom in its meta header."""
        origin = request.association.origin
        meta = FileMeta(
            offset=0,
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            source_ae=origin.calling_ae,
            sending_ae=origin.calling_ae,
            receiving_ae=origin.called_ae,
            source_address=origin.address,
            forced=self.forced,
        )
        return SpoolIncoming(
            self._spool.receive(meta), request, spool=self._spool, indexer=self._indexer, clock=self._clock,
            forced=self.forced,
        )  # fmt: skip

    def ended(self, association: Association, how: Ending) -> None:
        """Nothing to do: a series is complete by its quiet time."""


class SpoolIncoming:
    """One instance on its way into the spool."""

    def __init__(
        self, arriving: Arriving, request: StoreRequest, *, spool: Spool, indexer: "Indexer", clock: Clock,
        forced: str = "",
    ) -> None:  # fmt: skip
        self._forced = forced
        self._arriving, self._request, self._spool = arriving, request, spool
        self._indexer, self._clock = indexer, clock
        self.write = arriving.write
        self.discard = arriving.discard

    def commit(self) -> None:
        """
        Read the header, make the file safe, hand it to the indexer.

        Raises:
            NotAnInstance: It cannot be told which instance of which series this is, or it was cut off.
            Mismatch: It is another instance than its command says.
            NoRoom: It could not be made safe.
        """
        file = self._arriving
        header = scan(
            bytes(file.head),
            transfer_syntax_uid=self._request.transfer_syntax_uid,
            wanted=self._indexer.wanted,
            read_on=file.read,
            size_bytes=file.size_bytes,
            sop_class_uid=self._request.sop_class_uid,
        )
        _compare(header, self._request)
        file.commit()
        association = self._request.association
        arrival = _arrival(
            header,
            origin=association.origin,
            association=association.id,
            instance_id=file.instance_id,
            transfer_syntax_uid=self._request.transfer_syntax_uid,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            spool=self._spool.name,
            received=self._clock(),
            forced=self._forced,
        )
        self._indexer.take(arrival)


def _compare(header: Header, request: StoreRequest) -> None:
    if header.sop_instance_uid != request.sop_instance_uid:
        raise Mismatch("the data set's SOP Instance UID is not the command's")
    if header.sop_class_uid != request.sop_class_uid:
        raise Mismatch("the data set's SOP Class UID is not the command's")


def _arrival(
    header: Header, *, origin: Origin, association: str, instance_id: str, transfer_syntax_uid: str, size_bytes: int,
    sha256: str, spool: str, received: datetime, forced: str = "",
) -> Arrival:  # fmt: skip
    return Arrival(
        instance=Instance(
            id=instance_id,
            sop_instance_uid=header.sop_instance_uid,
            sop_class_uid=header.sop_class_uid,
            series_instance_uid=header.series_instance_uid,
            study_instance_uid=header.study_instance_uid,
            transfer_syntax_uid=UID(transfer_syntax_uid),
            size_bytes=size_bytes,
            sha256=sha256,
            spool=spool,
            received=received,
        ),
        origin=origin,
        association=association,
        tags=header.tags.with_values(
            {"SenderAET": origin.calling_ae, "ReceiverAET": origin.called_ae, "SenderAddress": origin.address}
        ),
        flags=header.flags,
        forced=forced,
    )


class Indexer:
    """
    Writes rows for what lies in `new/`, in batches, and shelves the files.

    Nobody waits for it. What it cannot write now it writes later; what was left by a receiver that died is found
    in `new/` at start and every 30 s.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        arrivals: Arrivals,
        rulebooks: Rulebooks,
        clock: Clock = wall_clock,
        look: Callable[[], None] = lambda: None,
        fits: Callable[[], bool] = lambda: True,
    ) -> None:
        self._spool, self._arrivals, self._rulebooks, self._clock = spool, arrivals, rulebooks, clock
        self._look, self._fits = look, fits
        self._looked: datetime | None = None
        self._queue: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._in_hand: set[str] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted: tuple[int, TagList] | None = None
        self._strays_due: datetime | None = None
        self._batch: list[Arrival] = []

    @property
    def wanted(self) -> TagList:
        """The tags to record, as the running rulebook asks."""
        book = self._rulebooks.running()
        if self._wanted is None or self._wanted[0] != book.number:
            self._wanted = (book.number, TagList.of(book.recorded_names))
        return self._wanted[1]

    def take(self, arrival: Arrival) -> None:
        """Queue an instance that is safe in `new/`; when too many wait, it is found there again later."""
        if self._queue.qsize() < _MOST_IN_MEMORY:
            self._in_hand.add(arrival.instance.id)
            self._queue.put(arrival)

    def start(self) -> None:
        """Begin on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="indexer")
        self._thread.start()

    def stop(self) -> None:
        """Write down what is queued, unless the ledger is away; returns when done."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether it still works."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._queue.empty() and not self._batch):
            if not self._try(self._turn) and self._stopping.wait(_PAUSE.total_seconds()):
                return  # they lie in new/ and are found at the next start

    def _turn(self) -> None:
        """
        Look for strays when it is time, then write down what is queued.

        Raises:
            LedgerAway: It was never there, so nobody knows yet which it is.
        """
        if not self._fits():
            raise LedgerAway("the ledger was not seen yet to be this home's")
        now = self._clock()
        if self._looked is None or abs(now - self._looked) >= _PAUSE:
            self._looked = now
            self._try(self._look)
        if self._strays_due is None or not self._strays_due - _STRAYS_EVERY <= now < self._strays_due:
            self._strays_due = now + _STRAYS_EVERY
            self._try(self.refresh)
            self._try(self.adopt_strays)
        self._batch = self._batch or self.gather()
        if self._batch and not self._write_down(self._batch):
            self._stopping.wait(_PAUSE.total_seconds())
            if self._stopping.is_set():
                self._batch = []
            return
        if self._batch:
            self._stopping.wait(_BREATH.total_seconds())
        self._batch = []

    def _write_down(self, batch: Sequence[Arrival]) -> bool:
        """Record a batch; one that a bug stops goes in one by one, and what cannot is set aside. False: later."""
        bug = guarded(lambda: self.record(batch))
        if bug is None or isinstance(bug, LedgerAway):
            return self._said(bug)
        self._said(bug)
        for arrival in batch:
            bug = guarded(lambda: self.record([arrival]))  # noqa: B023 - called at once
            if isinstance(bug, LedgerAway):
                return self._said(bug)
            if bug is not None:
                self._put_aside(arrival.instance.id, told(bug))
        return True

    def _put_aside(self, instance_id: str, reason: str) -> None:
        self._in_hand.discard(instance_id)
        try:
            aside = self._spool.set_aside(instance_id)
        except OSError as error:
            log.error("cannot be written down", instance=instance_id, reason=reason, left_where_it_is=error.strerror)
            return
        log.error("set aside: it cannot be written down", instance=instance_id, folder=str(aside.parent), reason=reason)

    def _try(self, work: Callable[[], object]) -> bool:
        return self._said(guarded(work))

    def _said(self, bug: Exception | None) -> bool:
        """Log what went wrong; whether nothing did."""
        if isinstance(bug, LedgerAway | ConfigError):
            log.warning("indexer waits", reason=str(bug), waiting=self._queue.qsize())
        elif bug is not None:
            log.error("indexer failed", bug=told(bug), exc_info=bug)
        return bug is None

    def refresh(self) -> None:
        """Look whether another rulebook runs."""
        self._rulebooks.refresh()

    def gather(self, *, wait: bool = True) -> list[Arrival]:
        """What is queued, without waiting for company; for the first one a second at most, if at all."""
        try:
            batch = [self._queue.get(block=wait, timeout=_PAUSE.total_seconds())]
        except queue.Empty:
            return []
        while len(batch) < _MOST_IN_A_BATCH and not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    def catch_up(self) -> Counter[str]:
        """Write down all that is queued; what was found, counted."""
        found: Counter[str] = Counter()
        while batch := self.gather(wait=False):
            found.update(str(finding) for finding in self.record(batch).values())
        return found

    def record(self, batch: Sequence[Arrival]) -> dict[str, Finding]:
        """Rows first, then the files' last move; what each was found to be."""
        quiet = shortest_quiet(self._rulebooks.running())
        findings = self._arrivals.record(batch, now=self._clock(), quiet=quiet, is_lost=self._spool.has_lost)
        for instance_id, finding in findings.items():
            self._move(instance_id, finding)
        return findings

    def _move(self, instance_id: str, finding: Finding) -> None:
        """A file's last move. One that fails is made when strays are looked for; until then the file is in `new/`."""
        if finding is Finding.CONFLICT:
            log.warning("same SOP Instance UID, other content: both kept", instance=instance_id)
        try:
            if finding is Finding.REPEAT:
                self._spool.forget(instance_id)
            else:
                self._spool.shelve(instance_id)
        except OSError as error:
            log.warning("a file cannot leave new/ yet", instance=instance_id, reason=error.strerror)
        self._in_hand.discard(instance_id)

    def adopt_strays(self) -> int:
        """Write down what lies in `new/` in nobody's hands; how many."""
        batch: list[Arrival] = []
        adopted = 0
        for instance_id in self._spool.waiting():
            if self._stopping.is_set():
                break
            if instance_id in self._in_hand:
                continue
            if self._spool.age_in_new(instance_id, now=self._clock()) < _STRAY:
                self._strays_due = self._clock() + _STRAY  # another receiver's, or left by one that died just now
                continue
            found: list[Arrival | None] = []
            failpoint("receiver.stray.found")
            bug = guarded(lambda: found.append(self._examine(instance_id)))  # noqa: B023 - called at once
            if bug is not None:  # one file that cannot be read must not hide those behind it
                log.error("a stray cannot be read; it stays in new/", instance=instance_id, bug=told(bug))
            batch += [arrival for arrival in found if arrival is not None]
            if len(batch) >= _MOST_IN_A_BATCH:
                adopted += len(batch) if self._write_down(batch) else 0
                batch = []
        if batch:
            adopted += len(batch) if self._write_down(batch) else 0
        if adopted:
            log.info("adopted strays", instances=adopted)
        return adopted

    def _examine(self, instance_id: str) -> Arrival | None:
        """Read again what a receiver that died knew of a file."""
        try:
            path = self._spool.path(instance_id)
            with path.open("rb") as file:
                meta = parse_meta(file.read(META_LIMIT_BYTES))
                size = os.fstat(file.fileno()).st_size - meta.offset
                header = scan(
                    os.pread(file.fileno(), HEAD_BYTES, meta.offset),
                    transfer_syntax_uid=meta.transfer_syntax_uid,
                    wanted=self.wanted,
                    read_on=lambda offset, length: os.pread(file.fileno(), length, meta.offset + offset),
                    size_bytes=size,
                    sop_class_uid=meta.sop_class_uid,
                )
        except FileNotFoundError:
            return None  # another receiver of this home was faster
        except NotAnInstance as error:
            self._put_aside(instance_id, str(error))
            return None
        return _arrival(
            header,
            origin=origin_of(meta),
            association="",
            instance_id=instance_id,
            transfer_syntax_uid=meta.transfer_syntax_uid,
            size_bytes=size,
            sha256=file_digest(path, offset=meta.offset),
            spool=self._spool.name,
            received=self._clock(),
            forced=meta.forced,
        )
