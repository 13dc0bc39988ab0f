"""Rows for tests of the store: arrivals that no file stands behind, and the router's work on them by hand."""

import hashlib
import itertools
from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

from talaria.model.dicom import UID, Instance, Origin, Tags
from talaria.model.errors import Overtaken
from talaria.model.extensions import Module, Target
from talaria.model.job import Kind
from talaria.model.plan import plan_series, plan_study
from talaria.model.rulebook import Rulebook, Shelves, parse
from talaria.model.ulid import ulid
from talaria.store.arrivals import Arrival, Arrivals, Finding
from talaria.store.cases import Cases
from talaria.store.cleaning import Cleaning
from talaria.store.deliveries import Deliveries
from talaria.store.jobs import Claim, Jobs
from talaria.store.ledger import Ledger
from talaria.store.listing import Listing
from talaria.testing import MovedClock

QUIET = timedelta(seconds=60)
SPOOL = "SPOOL"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
ORIGIN = Origin(calling_ae="CT1", called_ae="TALARIA", address="10.0.0.1")
_NUMBERS = itertools.count(1)


class Nowhere(Target):
    """A target that nothing is delivered to."""

    kind: ClassVar[str] = "nowhere"


class Nothing(Module):
    """A module that is not run."""

    kind: ClassVar[str] = "nothing"


SHELVES = Shelves(targets={"nowhere": Nowhere}, modules={"nothing": Nothing})
HEAD = """\
settings: {series_quiet: 60s, study_quiet: 10m}
targets: {x: {kind: nowhere}, y: {kind: nowhere}, z: {kind: nowhere}}
modules: {nothing: {builtin: nothing}}
rules:
"""
TO_X = "to-x: {when: 'True', send: [x]}"


def make_ledger(url: str) -> None:
    """A ledger with all tables and nothing in them."""
    ledger = Ledger.open(url)
    ledger.migrate(now=MovedClock().now())
    ledger.close()


def book_of(*rules: str, number: int = 1) -> Rulebook:
    """A rulebook of rules, a line each."""
    return parse(HEAD + "".join(f"  {rule}\n" for rule in rules), shelves=SHELVES, number=number)


def arrival(
    sop: str = "1",
    *,
    content: str = "a",
    series: str = "1",
    study: str = "1",
    instance_id: str = "",
    spool: str = SPOOL,
    size_bytes: int = 100,
    modality: str = "CT",
) -> Arrival:
    """An instance of series `1.2.<study>.<series>`, with a ULID of its own where none is given."""
    series_uid = f"1.2.{study}.{series}"
    return Arrival(
        instance=Instance(
            id=instance_id or ulid(next(_NUMBERS), bytes(10)),
            sop_instance_uid=UID(f"{series_uid}.{sop}"),
            sop_class_uid=UID(CT),
            series_instance_uid=UID(series_uid),
            study_instance_uid=UID(f"1.2.{study}"),
            transfer_syntax_uid=UID(EXPLICIT),
            size_bytes=size_bytes,
            sha256=hashlib.sha256(content.encode()).hexdigest(),
            spool=spool,
            received=MovedClock().now(),
        ),
        origin=ORIGIN,
        association="",
        tags=Tags({"Modality": modality, "PatientID": "P1", "SeriesDescription": f"S{series}", "PatientName": None}),
    )


def series_of(count: int = 3, *, series: str = "1", study: str = "1") -> list[Arrival]:
    """All instances of a series."""
    return [arrival(str(number), series=series, study=study) for number in range(1, count + 1)]


class Rows:
    """A ledger and what writes to it, stepped by hand."""

    def __init__(self, ledger: Ledger, clock: MovedClock, *rules: str) -> None:
        self.ledger, self.clock, self.book = ledger, clock, book_of(*(rules or (TO_X,)))
        self.arrivals, self.cases, self.jobs = Arrivals(ledger), Cases(ledger), Jobs(ledger)
        self.deliveries, self.cleaning, self.listing = Deliveries(ledger), Cleaning(ledger), Listing(ledger)

    def receive(self, *batch: Arrival) -> dict[str, Finding]:
        """Write a batch down."""
        return self.arrivals.record(batch, now=self.clock.now(), quiet=QUIET)

    def settle(self, *, after: timedelta = QUIET) -> list[int]:
        """Let time pass, and route all that is due then; the jobs made."""
        self.clock.move(after)
        made: list[int] = []
        for _ in range(100):
            now = self.clock.now()
            if (series_id := self.cases.due_series(now)) is not None:
                made += self.route(series_id)
            elif (case_id := self.cases.due_study(now)) is not None:
                view = self.cases.study_view(case_id)
                made += self.cases.apply_study(view, plan_study(view, revisions=lambda _: self.book, now=now), now=now)
            else:
                return made
        raise Overtaken("it never comes to rest")

    def route(self, series_id: int) -> list[int]:
        """Route one series now; the jobs made."""
        now, view = self.clock.now(), self.cases.series_view(series_id)
        plan = plan_series(view, active=self.book, revisions=lambda _: self.book, now=now)
        return self.cases.apply_series(view, plan, revision=self.book.number, now=now)

    def jobs_of(self, count: int = 1, *, images: int = 3) -> list[int]:
        """Dispatch jobs, each of a series and study of its own."""
        made = []
        for _ in range(count):
            self.receive(*series_of(images, study=str(next(_NUMBERS))))
            made += self.settle()
        return made

    def claim(self, kind: Kind = Kind.DISPATCH, *, owner: str = "here/1/1", full: Sequence[str] = ()) -> Claim:
        """Claim the next job; there must be one."""
        claim = self.jobs.claim(
            kind, owner=owner, spools=[SPOOL], now=self.clock.now(), off_peak=True, full=full
        )  # fmt: skip
        assert claim is not None
        return claim
