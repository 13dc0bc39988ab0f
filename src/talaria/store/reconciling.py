"""
The spool and the ledger compared, after a backup was put in or a ledger was made anew: the files win.

A file that the ledger does not know is written down, and its series waits for a person: it may have been delivered
by the ledger that is gone. A row whose file is gone says so. Until that is done a note in the ledger keeps every
service from it, so that nothing of it is routed unseen; done again, it goes on where it was.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.failpoint import failpoint
from talaria.model.errors import ConfigError, NotAnInstance
from talaria.model.header import TagList
from talaria.model.plan import CaseState
from talaria.store.arrivals import Arrival, Arrivals, Finding
from talaria.store.examining import examine
from talaria.store.ledger import Ledger, Subject, insert_ignoring, write_event
from talaria.store.schema import cases, facts, instances, series
from talaria.store.spool import Spool, is_of_result

_AT_ONCE = 500
_FILES_AT_ONCE = 100
#: Begins the name of the note that a spool has still to be compared.
_NOTE = "compare spool "

#: Told what is being done, and how much of it is through.
Progress = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was found, in files and rows."""

    files: int = 0
    """In `store/`."""
    taken_in: int = 0
    """Files that the ledger did not know: written down."""
    series_held: int = 0
    """Series that these belong to, or that were on their way: they wait for a person."""
    results: int = 0
    """Results of modules that the ledger did not know: moved to `odd/`."""
    repeats: int = 0
    """Copies of what the ledger knows: moved to `odd/`."""
    unreadable: int = 0
    """Files that are no instances: moved to `odd/`."""
    lost: int = 0
    """Rows whose file is gone."""
    elsewhere: int = 0
    """Rows of files in other spools, which cannot be looked at from here."""


# -- the note --


def note_comparing(connection: Connection, spools: Sequence[str], *, reason: str) -> None:
    """Say, in the caller's transaction, that these spools have to be compared before any service may run."""
    names = [f"{_NOTE}{name}" for name in spools]
    connection.execute(sa.delete(facts).where(facts.c.name.in_(names)))
    insert_ignoring(connection, facts, [{"name": name, "value": reason} for name in names])


def comparing(ledger: Ledger, spool: str) -> str | None:
    """Why a spool has still to be compared; None if it has not."""
    with ledger.reading() as connection:
        return connection.execute(sa.select(facts.c.value).where(facts.c.name == f"{_NOTE}{spool}")).scalar()


def refuse_uncompared(ledger: Ledger, spool: str) -> None:
    """
    See that nothing is left of a restoration that was interrupted.

    Raises:
        ConfigError: The spool was not yet compared with the ledger; says what to do.
    """
    if comparing(ledger, spool) is not None:
        raise ConfigError(
            f"ledger {ledger.name}: was restored or made anew, and the spool was not compared with it yet; "
            "run `talaria db compare`"
        )


# -- comparing --


class Comparison:
    """One comparison of a spool with its ledger."""

    def __init__(
        self, ledger: Ledger, spool: Spool, *, wanted: TagList, quiet: timedelta, reason: str, now: datetime,
        progress: Progress = lambda _what, _count: None,
    ) -> None:  # fmt: skip
        """
        Args:
            ledger, spool: What is compared.
            wanted: Tags to record of files that are taken in.
            quiet: The router looks at their series after this long.
            reason: Why these wait for a person.
            now: Written as the time of each change.
            progress: Told now and then.
        """
        self._ledger, self._spool, self._arrivals = ledger, spool, Arrivals(ledger)
        self._wanted, self._quiet, self._reason, self._now = wanted, quiet, reason, now
        self._progress = progress

    def run(self) -> Compared:
        """Do all of it; memory grows neither with the files nor with the rows."""
        lost = self._mark_lost()
        with closing(sqlite3.connect("")) as unknown:  # a file of SQLite's own, gone when it is closed
            unknown.execute("CREATE TABLE found (id TEXT PRIMARY KEY) WITHOUT ROWID")
            files = self._collect(unknown)
            counts = self._take_in(unknown)
        with self._ledger.writing("compare.done") as connection:
            connection.execute(sa.delete(facts).where(facts.c.name == f"{_NOTE}{self._spool.name}"))
            write_event(
                connection, "spool.compared", now=self._now, subject=Subject(), lost=lost, files=files, found=counts
            )  # fmt: skip
        return Compared(
            files=files, lost=lost, series_held=self._count_held(), elsewhere=self._count_elsewhere(), **counts
        )

    def _collect(self, unknown: sqlite3.Connection) -> int:
        """All files of `store/` that no row knows; how many there are in all."""
        files = 0
        for names in self._spool.shelves():
            for some in _some(names, _AT_ONCE):
                with self._ledger.reading() as connection:
                    known = set(connection.execute(sa.select(instances.c.id).where(instances.c.id.in_(some))).scalars())
                unknown.executemany("INSERT INTO found VALUES (?)", [(name,) for name in some if name not in known])
            files += len(names)
            self._progress("files looked at", files)
        return files

    def _take_in(self, unknown: sqlite3.Connection) -> dict[str, int]:
        """Write down what is unknown, in the order in which it came."""
        counts = {"taken_in": 0, "results": 0, "repeats": 0, "unreadable": 0}
        batch: list[Arrival] = []
        for (name,) in unknown.execute("SELECT id FROM found ORDER BY id"):
            if is_of_result(name):
                self._spool.retire(name)
                counts["results"] += 1
                continue
            try:
                batch.append(self._examine(name))
            except NotAnInstance:
                self._spool.retire(name)
                counts["unreadable"] += 1
            if len(batch) == _FILES_AT_ONCE:
                self._record(batch, counts)
                batch = []
        if batch:
            self._record(batch, counts)
        return counts

    def _examine(self, name: str) -> Arrival:
        path = self._spool.path(name)
        received = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return examine(path, instance_id=name, spool=self._spool.name, wanted=self._wanted, received=received)

    def _record(self, batch: list[Arrival], counts: dict[str, int]) -> None:
        findings = self._arrivals.record(
            batch, now=self._now, quiet=self._quiet, is_lost=self._spool.has_lost, held=self._reason
        )
        failpoint("compare.batch.recorded")
        for name, finding in findings.items():
            if finding is Finding.REPEAT:
                self._spool.retire(name)
            counts["repeats" if finding is Finding.REPEAT else "taken_in"] += 1
        self._progress("files taken in", counts["taken_in"])

    def _mark_lost(self) -> int:
        """Rows whose file is gone say so; how many."""
        lost, last, looked = 0, "", 0
        page = (
            sa.select(instances.c.id, instances.c.series_id)
            .where(instances.c.dropped.is_(None), instances.c.spool == self._spool.name)
            .order_by(instances.c.id)
            .limit(_AT_ONCE)
        )
        while True:
            with self._ledger.reading() as connection:
                rows = connection.execute(page.where(instances.c.id > last)).all()
            if not rows:
                return lost
            gone = [(row.id, row.series_id) for row in rows if self._spool.has_lost(row.id, self._spool.name)]
            if gone:
                self._drop(gone)
            lost, last, looked = lost + len(gone), rows[-1].id, looked + len(rows)
            self._progress("rows looked at", looked)

    def _drop(self, gone: Sequence[tuple[str, int]]) -> None:
        with self._ledger.writing("compare.lost") as connection:
            connection.execute(
                sa.update(instances).where(instances.c.id.in_([name for name, _ in gone])).values(dropped=self._now)
            )
            for series_id, entries in itertools.groupby(sorted(gone, key=_series_of), key=_series_of):
                _count_anew(connection, series_id, lost=len(list(entries)), now=self._now)

    def _count_held(self) -> int:
        with self._ledger.reading() as connection:
            return connection.execute(sa.select(sa.func.count()).where(series.c.held != "")).scalar_one()

    def _count_elsewhere(self) -> int:
        with self._ledger.reading() as connection:
            return connection.execute(
                sa.select(sa.func.count()).where(
                    instances.c.dropped.is_(None), instances.c.spool != self._spool.name
                )
            ).scalar_one()  # fmt: skip


def _series_of(entry: tuple[str, int]) -> int:
    return entry[1]


def _count_anew(connection: Connection, series_id: int, *, lost: int, now: datetime) -> None:
    """A series after some of its files went: what is left, or that it is gone and new again should it be sent again."""
    left = connection.execute(
        sa.select(
            sa.func.count().filter(instances.c.superseded_by.is_(None)).label("current"),
            sa.func.coalesce(sa.func.sum(instances.c.size_bytes), 0).label("size_bytes"),
            sa.func.count().label("files"),
        ).where(instances.c.series_id == series_id, instances.c.dropped.is_(None))
    ).one()
    values = {"instances": left.current, "size_bytes": left.size_bytes, "version": series.c.version + 1}
    if not left.files:
        values |= {"dropped": now, "due": None, "asked": "[]", "settled": False, "held": ""}
        connection.execute(
            sa.update(cases)
            .where(cases.c.series_id == series_id)
            .values(state=CaseState.CLEANED, updated=now, due=None, version=cases.c.version + 1)
        )
    connection.execute(sa.update(series).where(series.c.id == series_id).values(**values))
    study_id = connection.execute(sa.select(series.c.study_id).where(series.c.id == series_id)).scalar_one()
    write_event(
        connection, "series.lost", now=now, subject=Subject(study_id=study_id, series_id=series_id), instances=lost,
        left=left.files,
    )  # fmt: skip


def _some(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
