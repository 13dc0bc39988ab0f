"""Cost that does not grow: what services and pages do reads no more of a ledger that holds more."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from bench.scale import Acts, Size, fill

from talaria.store import schema
from talaria.store.ledger import Ledger

NOW = datetime(2026, 1, 5, 8, tzinfo=UTC)

#: Tables that hold what is over, too; a scan of one of them costs more every day.
GROWING = {
    "studies", "series", "instances", "cases", "case_series", "jobs", "job_series", "deliveries", "outcomes", "events",
    "runs", "results",
}  # fmt: skip

#: Indexes over some rows only, which do not grow with what is over.
PARTIAL = {
    str(index.name)
    for table in schema.metadata.sorted_tables
    for index in table.indexes
    if index.dialect_options["sqlite"]["where"] is not None
} - {"ix_events_instance", "ix_series_made", "ix_deliveries_whole"}

#: Lists that are read along an index from one end, and no further than a page.
READ_FROM_AN_END = {
    "ix_studies_last_received_id": "LIMIT",
}

#: SQLite's machine counts its steps by so many.
STEPS = 100


class Counted:
    """A filled SQLite ledger, what is asked of it, and how many steps its machine makes."""

    def __init__(self, path: Path, size: int) -> None:
        self.steps = 0
        self.statements: dict[str, tuple[object, ...]] = {}
        self.ledger = Ledger.open(f"sqlite:///{path}")
        self.size = Size(series=size, jobs=size, tag_bytes=300, now=NOW)
        fill(self.ledger, self.size)
        sa.event.listen(self.ledger.engine, "checkout", self._count)
        sa.event.listen(self.ledger.engine, "before_cursor_execute", self._note)
        self.acts = Acts(self.ledger, self.size).all()
        self._raw = sqlite3.connect(path)

    def _count(self, connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(self._step, STEPS)

    def _step(self) -> int:
        self.steps += 1
        return 0

    def _note(self, _c: object, _k: object, statement: str, values: object, _x: object, is_many: bool) -> None:
        first = values[0] if is_many and isinstance(values, list) else values
        if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")):
            self.statements.setdefault(statement, tuple(first) if isinstance(first, tuple | list) else ())

    def cost(self, act: Callable[[], object]) -> int:
        """How many steps it takes, in hundreds; the least of some times, since a new connection reads the schema."""
        found = []
        for _ in range(4):
            self.steps = 0
            act()
            found.append(self.steps)
        return min(found)

    def plan(self, statement: str) -> list[str]:
        """How SQLite goes about it."""
        found = self._raw.execute(f"EXPLAIN QUERY PLAN {statement}", self.statements[statement])
        return [row[3] for row in found]

    def close(self) -> None:
        self._raw.close()
        self.ledger.close()


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[tuple[Counted, Counted]]:
    """One with two thousand series and jobs, and one with eight thousand."""
    folder = tmp_path_factory.mktemp("cost")
    made = []
    for size in (2000, 8000):
        shutil.copy(sqlite_template, folder / f"{size}.db")
        made.append(Counted(folder / f"{size}.db", size))
    yield made[0], made[1]
    for one in made:
        one.close()


def scans(plan: list[str]) -> list[str]:
    """Steps of a plan that read a growing table from one end to the other."""
    found = []
    for step in plan:
        words = step.split()
        if words[0] != "SCAN" or words[1] not in GROWING:
            continue
        index = words[-1] if "INDEX" in words else ""
        if index not in PARTIAL:
            found.append(step)
    return found


def test_no_statement_scans_what_grows(ledgers: tuple[Counted, Counted]) -> None:
    """
    Every statement of the hot paths finds its rows by an index; a list is read from its end, no further than a page.
    """
    large = ledgers[1]
    for act in large.acts.values():
        act()
    wrong = {
        statement: bad
        for statement in large.statements
        if (bad := scans(large.plan(statement))) and not _is_page(statement, bad)
    }

    assert {} == wrong
    assert len(large.statements) > 60


def _is_page(statement: str, bad: list[str]) -> bool:
    return all(any(name in step and word in statement for name, word in READ_FROM_AN_END.items()) for step in bad)


def test_cost_is_flat(ledgers: tuple[Counted, Counted]) -> None:
    """
    With four times as much stored SQLite makes at most a fifth more steps for each act, and some for deeper trees.
    """
    small, large = ledgers
    costs = {name: (small.cost(small.acts[name]), large.cost(large.acts[name])) for name in small.acts}
    grown = {name: (one, other) for name, (one, other) in costs.items() if other > one * 1.2 + 20}

    assert {} == grown


def test_scan_would_be_found(ledgers: tuple[Counted, Counted]) -> None:
    """
    The tests above see a scan where there is one.
    """
    small, large = ledgers
    statement = "SELECT count(*) FROM series WHERE calling_ae = ?"
    large.statements[statement] = ("AE1",)

    def count(counted: Counted) -> Callable[[], object]:
        def act() -> object:
            with counted.ledger.reading() as connection:
                return connection.execute(sa.text("SELECT count(*) FROM series WHERE calling_ae = 'AE1'")).scalar()

        return act

    assert ["SCAN series"] == scans(large.plan(statement))
    assert large.cost(count(large)) > 2 * small.cost(count(small))
    del large.statements[statement]


def test_pages_of_the_queue_do_not_read_what_is_over(ledgers: tuple[Counted, Counted]) -> None:
    """
    What waits is counted by an index of what waits.
    """
    large = ledgers[1]
    large.acts["the queue"]()
    queue = next(statement for statement in large.statements if "GROUP BY jobs.kind" in statement)

    assert ["SCAN jobs USING COVERING INDEX ix_jobs_open"] == large.plan(queue)


def test_ages_are_of_no_matter(ledgers: tuple[Counted, Counted]) -> None:
    """
    What was made in the middle of a long time is found without reading what came after.
    """
    small, large = ledgers
    middle = NOW - timedelta(days=200)

    def ask(counted: Counted) -> Callable[[], object]:
        from talaria.store.listing import Listing
        from talaria.store.selection import Selection

        listing = Listing(counted.ledger)
        return lambda: listing.jobs(selection=Selection(since=middle, until=middle + timedelta(days=1)))

    found = large.cost(ask(large))

    assert found <= small.cost(ask(small)) * 1.2 + 100
