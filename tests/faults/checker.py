"""What must hold whatever was killed or full: nothing acknowledged is lost, every job has one history, and is once."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from ledger_scu import Books, data_digest, read_books

from sink import Copy
from talaria.model.errors import NotAnInstance
from talaria.model.job import TRANSITIONS, Event, State
from talaria.model.part10 import META_LIMIT_BYTES, parse_meta
from talaria.store.ledger import AnyRow, Ledger
from talaria.store.schema import events, instances, job_series, jobs

Content = tuple[str, str]
"""SOP Instance UID and SHA-256 of the data set, in hex."""


@dataclass
class Counts:
    """What a case comes to; printed, so that a soak's log tells what was tried."""

    attempted: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    """UIDs that were acknowledged and are nowhere, or, where all is over, not at every far end."""
    duplicated: int = 0
    """Copies at the far ends beyond the first of each delivery."""
    recovered: int = 0
    """Jobs whose worker died, and that were done after all."""
    unexpected: list[str] = field(default_factory=list)
    """Whatever else is not as it should be, in words."""

    def __str__(self) -> str:
        return (
            f"attempted {self.attempted}, acknowledged {self.acknowledged}, lost {len(self.lost)}, "
            f"duplicated {self.duplicated}, recovered {self.recovered}, unexpected {len(self.unexpected)}"
        )

    def expect(self, *, duplicates: int, case: str) -> None:
        """
        Nothing lost, nothing strange, no more duplicates than that; prints the counters.

        Raises:
            AssertionError: Otherwise; says what.
        """
        print(f"{case}: {self}")
        assert [] == self.lost, f"{case}: lost"
        assert [] == self.unexpected, f"{case}: unexpected"
        assert self.duplicated <= duplicates, f"{case}: {self.duplicated} duplicates, allowed are {duplicates}"


@dataclass
class Checker:
    """
    Looks at a home, its ledger, and the far ends.

    Attributes:
        home: Its folder, with the spool in it.
        url: Of its ledger.
        books: The senders' ledger.
        folders: Paths of folder targets.
        journals: What DICOM sinks were given, as `Sink.copies` tells.
    """

    home: Path
    url: str
    books: Path
    folders: Sequence[Path] = ()
    journals: Sequence[Sequence[Copy]] = ()
    spool: Path | None = None

    def check(self, *, is_over: bool = True) -> Counts:
        """
        Look at everything.

        Args:
            is_over: Whether all work is done; then what was acknowledged must be at every far end.
        """
        books = read_books(self.books) if self.books.exists() else Books(0, frozenset(), frozenset())
        counts = Counts(attempted=books.attempted, acknowledged=len(books.acknowledged))
        self._look_at_files(books, counts, is_over=is_over)
        ledger = Ledger.open(self.url)
        try:
            self._look_at_jobs(ledger, counts, is_over=is_over)
        finally:
            ledger.close()
        return counts

    # -- bytes --

    def _look_at_files(self, books: Books, counts: Counts, *, is_over: bool) -> None:
        ends = [Counter(_in_folder(path)) for path in self.folders]
        for copies in self.journals:
            titles = sorted({copy.calling_ae for copy in copies})
            ends += [Counter((c.uid, c.sha256) for c in copies if c.calling_ae == t and _is_kept(c)) for t in titles]
        here = set(self._in_spool())
        for content in sorted(books.acknowledged):
            if is_over:
                missing = [number for number, end in enumerate(ends) if content not in end]
                counts.lost += [f"{content[0]} at far end {number}" for number in missing]
            if content not in here and not any(content in end for end in ends):
                counts.lost.append(f"{content[0]} anywhere")
        for end in ends:
            counts.duplicated += sum(end.values()) - len(end)
            strange = [uid for uid, sha256 in end if (uid, sha256) not in books.offered]
            counts.unexpected += [f"{uid} is damaged at a far end" for uid in strange]

    def _in_spool(self) -> Iterator[Content]:
        spool = self.spool or self.home / "spool"
        for path in [*(spool / "new").glob("*.dcm"), *(spool / "store").rglob("*.dcm")]:
            found = _content(path)
            if found:
                yield found

    # -- rows --

    def _look_at_jobs(self, ledger: Ledger, counts: Counts, *, is_over: bool) -> None:
        with ledger.reading() as connection:
            rows = connection.execute(sa.select(jobs).order_by(jobs.c.id)).all()
            told = connection.execute(sa.select(events).where(events.c.job_id.is_not(None)).order_by(events.c.id)).all()
            extents = connection.execute(sa.select(job_series)).all()
            twice = connection.execute(
                sa.select(instances.c.sop_instance_uid, instances.c.series_id, instances.c.sha256)
                .group_by(instances.c.sop_instance_uid, instances.c.series_id, instances.c.sha256)
                .having(sa.func.count() > 1)
            ).all()
        counts.unexpected += [f"instance {row.sop_instance_uid} has two rows" for row in twice]
        histories = defaultdict(list)
        for event in told:
            histories[event.job_id].append(event)
        for row in rows:
            counts.unexpected += [f"job {row.id}: {what}" for what in incoherent(row, histories[row.id])]
            kinds = [event.kind for event in histories[row.id]]
            counts.recovered += row.state == State.DONE and f"job.{Event.EXPIRE}" in kinds
            if is_over and row.state != State.DONE:
                counts.unexpected.append(f"job {row.id} ({row.kind}) is {row.state}: {row.reason}")
        counts.unexpected += list(_asked_twice(rows, extents))


def _asked_twice(rows: Iterable[AnyRow], extents: Iterable[AnyRow]) -> Iterator[str]:
    """
    Portions of a series that two jobs of the same kind, case, target and origin have.

    A module that works on a supplement is given the whole of the case once more, unless its rule says otherwise.
    """
    of = {
        row.id: (row.kind, row.case_id, row.rule, row.target, row.parent, row.kind == "process" and row.supplement)
        for row in rows
        if row.state != State.CANCELLED
    }
    seen: set[tuple[object, ...]] = set()
    for extent in extents:
        for portion in range(extent.first, extent.last + 1):
            key = (*of.get(extent.job_id, (extent.job_id,)), extent.series_id, portion)
            if key in seen:
                yield f"job {extent.job_id} was asked twice: {key}"
            seen.add(key)


def incoherent(row: AnyRow, history: Sequence[AnyRow]) -> Iterator[str]:
    """In words, what is wrong with a job's history: each event follows the one before by the table, none is missing."""
    history = [event for event in history if event.kind.startswith("job.")]
    if not history or history[0].kind != "job.made":
        yield "does not begin with job.made"
    if sum(event.kind == "job.made" for event in history) > 1:
        yield "was made twice"
    state = State.PENDING
    claims = 0
    for event in history[1:]:
        what = Event(event.kind.removeprefix("job."))
        follows = TRANSITIONS.get((state, what))
        if follows is None:
            yield f"event {event.id}: {what} while {state}"
            return
        claims += {Event.CLAIM: 1, Event.YIELD: -1}.get(what, 0)
        state = follows
        said = json.loads(event.detail).get("state")
        if said != state:
            yield f"event {event.id}: {what} says {said}, not {state}"
    if state != row.state:
        yield f"its events end {state}, its row says {row.state}"
    if claims != row.attempt:
        yield f"its events count {claims} attempts, its row {row.attempt}"


def _is_kept(copy: Copy) -> bool:
    return copy.status in {"0000", "B000"}


def _in_folder(folder: Path) -> Iterator[Content]:
    for path in sorted(folder.rglob("*.dcm")):
        found = _content(path)
        yield found or (path.name, "cannot be read")


def _content(path: Path) -> Content | None:
    """What a file holds; None for what is no instance, or went away meanwhile."""
    try:
        with path.open("rb") as file:
            meta = parse_meta(file.read(META_LIMIT_BYTES))
        return meta.sop_instance_uid, data_digest(path)
    except (NotAnInstance, FileNotFoundError):
        return None
