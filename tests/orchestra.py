"""A whole orchestrator in one thread, with a clock the test moves: what the stories are told on."""

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from talaria import registry
from talaria.dimse.acceptor import Association, StoreRequest
from talaria.model.dicom import UID, Origin
from talaria.model.errors import ConfigError
from talaria.model.extensions import Executor, Target
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.model.rulebook import Shelves, parse
from talaria.services.bookkeeper import Bookkeeper, Housekeeping
from talaria.services.cleaner import Cleaner
from talaria.services.dispatcher import Dispatcher
from talaria.services.loop import Books, Heart, Worker
from talaria.services.processor import Processor
from talaria.services.receiver import Indexer, SpoolSink
from talaria.services.router import Router
from talaria.store.arrivals import Arrivals
from talaria.store.cases import Cases
from talaria.store.cleaning import Cleaning
from talaria.store.deliveries import Deliveries
from talaria.store.jobs import Jobs
from talaria.store.journal import Journal
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing
from talaria.store.notes import Notes
from talaria.store.results import Results
from talaria.store.revisions import Revisions, Rulebooks
from talaria.store.spool import Spool, new_ulid
from talaria.testing import MovedClock


class Orchestra:
    """Every service but the listener, stepped by hand on one home."""

    def __init__(
        self,
        home: Path,
        *,
        url: str = "",
        targets: Mapping[str, type[Target]] | None = None,
        executors: Mapping[str, type[Executor]] | None = None,
        clock: MovedClock | None = None,
    ) -> None:
        self.clock = clock or MovedClock()
        self._began = self.clock.now()
        found = registry.discover()
        self.shelves = Shelves(
            targets={**found.targets, **(targets or {})}, modules=found.modules,
            executors={**found.executors, **(executors or {})},
        )  # fmt: skip
        self.home = home
        self.ledger = Ledger.open(url or f"sqlite:///{home}/ledger.db")
        self.ledger.migrate(now=self.clock.now())
        self.spool = Spool.create(home / "spool", clock=self.clock.now)
        self.revisions = Revisions(self.ledger)
        self.rulebooks = Rulebooks(self.revisions, shelves=self.shelves, cache=home / "running.yaml")
        self.listing, self.jobs = Listing(self.ledger), Jobs(self.ledger)
        self._build()

    def _build(self) -> None:
        now = self.clock.now
        self.books = Books(self.ledger, Journal(self.home / "journal", clock=now))
        heart = self.heart = Heart(self.jobs, books=self.books, host="here", owner="here/1/1", clock=now)
        executors: dict[str, Executor] = {kind: plug() for kind, plug in self.shelves.executors.items()}
        self.indexer = Indexer(spool=self.spool, arrivals=Arrivals(self.ledger), rulebooks=self.rulebooks, clock=now)
        self.router = Router(cases=Cases(self.ledger), rulebooks=self.rulebooks)
        self.processor = Processor(
            jobs=self.jobs, results=Results(self.ledger), rulebooks=self.rulebooks, spool=self.spool,
            executors=executors, heart=heart, owner="here/1/1", clock=now,
        )  # fmt: skip
        self.dispatcher = Dispatcher(
            jobs=self.jobs, deliveries=Deliveries(self.ledger), rulebooks=self.rulebooks, spool=self.spool,
            heart=heart, owner="here/1/1", clock=now,
        )  # fmt: skip
        self.cleaner = Cleaner(
            cleaning=Cleaning(self.ledger), rulebooks=self.rulebooks, spool=self.spool, watermark=1.0,
            uptime=lambda: self.clock.now() - self._began,
        )  # fmt: skip
        notes = Notes(self.ledger)
        house = Housekeeping(
            self.ledger, notes=notes, rulebooks=self.rulebooks, uptime=lambda: self.clock.now() - self._began
        )
        self.bookkeeper = Bookkeeper(listing=self.listing, notes=notes, house=house)
        self.workers: list[Worker] = [self.router, self.processor, self.dispatcher, self.bookkeeper]

    def apply(self, text: str) -> int:
        """Make a rulebook run."""
        parse(text, shelves=self.shelves)
        number = self.revisions.save(text, author="test", now=self.clock.now())
        self.clock.move(timedelta(seconds=2))  # the services look for a new one every second
        self.rulebooks.follow(self.clock.now())
        return number

    def receive(self, paths: Iterable[Path], *, calling_ae: str = "CT1", called_ae: str = "TALARIA") -> None:
        """Take files in through the receiver's sink, as if each had come by C-STORE, and write them down."""
        for path in paths:
            self.store(path, calling_ae=calling_ae, called_ae=called_ae)
        self.index()

    def store(self, path: Path, *, calling_ae: str = "CT1", called_ae: str = "TALARIA") -> None:
        """Make one file safe in `new/`, and no more."""
        data = path.read_bytes()
        meta = parse_meta(data[:META_LIMIT_BYTES])
        association = Association(
            id=new_ulid(self.clock.now()),
            origin=Origin(calling_ae=calling_ae, called_ae=called_ae, address="127.0.0.1"),
            implementation_class_uid="1.2",
            implementation_version="",
        )
        request = StoreRequest(
            association=association, message_id=1, sop_class_uid=UID(meta.sop_class_uid),
            sop_instance_uid=UID(meta.sop_instance_uid), transfer_syntax_uid=UID(meta.transfer_syntax_uid),
        )  # fmt: skip
        sink = SpoolSink(spool=self.spool, indexer=self.indexer, clock=self.clock.now)
        incoming = sink.open(request)
        incoming.write([memoryview(data)[meta.offset :]])
        incoming.commit()

    def index(self) -> None:
        """Write down what waits."""
        while batch := self.indexer.gather(wait=False):
            self.indexer.record(batch)

    def step(self) -> None:
        """Step every worker until none has more to do now."""
        while any([worker.step(self.clock.now()) for worker in self.workers]):  # noqa: C419 - each has its turn
            pass

    def wait(self, length: timedelta, *, step: timedelta = timedelta(seconds=5)) -> None:
        """Let time pass, and the services work in it."""
        self.step()
        passed = timedelta(0)
        while passed < length:
            self.clock.move(min(step, length - passed))
            passed += step
            self.step()


def files_of(folder: Path) -> dict[str, bytes]:
    """Data sets delivered below a folder, by the SOP Instance UID in their names."""
    found = {}
    for path in sorted(folder.rglob("*.dcm")):
        data = path.read_bytes()
        found[path.stem.partition("#")[2]] = data[parse_meta(data[:META_LIMIT_BYTES]).offset :]
    return found


def data_sets(paths: Iterable[Path]) -> dict[str, bytes]:
    """Data sets of source files, by SOP Instance UID."""
    found = {}
    for path in paths:
        data = path.read_bytes()
        meta = parse_meta(data[:META_LIMIT_BYTES])
        found[meta.sop_instance_uid] = data[meta.offset :]
    return found


def scanner_files() -> list[Path]:
    """The real scanner files, where `TALARIA_TEST_DATA` names them; else none."""
    root = os.environ.get("TALARIA_TEST_DATA")
    if not root:
        return []
    if not Path(root).is_dir():
        raise ConfigError(f"TALARIA_TEST_DATA: {root} is no folder")
    return [path for path in sorted(Path(root).rglob("*")) if path.is_file()]
