"""One database: its schema, its transactions, and what is said when it is away."""

import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from rows import Rows, series_of
from talaria.model.errors import ConfigError, LedgerAway
from talaria.store import schema
from talaria.store.ledger import Ledger, Subject, insert_ignoring, storable, write_event
from talaria.testing import MovedClock


def test_steps_make_the_tables_of_the_schema(ledger: Ledger) -> None:
    """
    What the steps of the migrations make, from nothing, is what the schema says, to the index.
    """
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": False})

        assert [] == compare_metadata(context, schema.metadata)


def test_own_schema_is_accepted(ledger: Ledger) -> None:
    """
    A ledger with this code's schema is opened, and migrating it again changes nothing, its identity least of all.
    """
    before = ledger.identity()
    ledger.migrate(now=MovedClock().now())
    ledger.verify_schema()

    assert before == ledger.identity()


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("9999", "schema 9999 was made by a newer Talaria than this one"),
        ("0000", "schema 0000 is older than this Talaria's"),
    ],
)
def test_other_schema_is_refused(ledger: Ledger, version: str, said: str) -> None:
    """
    A ledger of a newer or older Talaria is refused, with what to do.
    """
    with ledger.writing("test") as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": version})

    with pytest.raises(ConfigError, match=said):
        ledger.verify_schema()


def test_empty_database_is_refused(tmp_path: Path) -> None:
    """
    A database without tables is refused, and `talaria init` named.
    """
    with pytest.raises(ConfigError, match="has no tables yet; run `talaria init`"):
        Ledger.open(f"sqlite:///{tmp_path}/new.db").verify_schema()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://x/y:z", "postgresql://h:port/n"])
def test_unusable_address_is_refused(url: str) -> None:
    """
    An address that is none is a mistake in the configuration.
    """
    with pytest.raises(ConfigError, match="database_url"):
        Ledger.open(url)


def test_password_is_not_shown() -> None:
    """
    The ledger's name does not tell its password.
    """
    assert "secret" not in Ledger.open("postgresql://eve:secret@db/talaria").name


def test_unreachable_server_is_away() -> None:
    """
    A server that does not answer is away, and named without its password.
    """
    with pytest.raises(LedgerAway, match="db_of_none") as told:
        Ledger.open("postgresql://eve:secret@127.0.0.1:1/db_of_none").identity()

    assert "secret" not in str(told.value)


def test_folder_in_place_of_the_file_is_away(tmp_path: Path) -> None:
    """
    A file that cannot be opened is away.
    """
    with pytest.raises(LedgerAway):
        Ledger.open(f"sqlite:///{tmp_path}").identity()


def test_damaged_file_is_away(sqlite_template: Path, tmp_path: Path) -> None:
    """
    A damaged file is away for who wants to write: nothing that waits for it is set aside.
    """
    damaged = bytearray(sqlite_template.read_bytes())
    damaged[:4096] = b"\xff" * 4096
    (tmp_path / "ledger.db").write_bytes(damaged)
    rows = Rows(Ledger.open(f"sqlite:///{tmp_path}/ledger.db"), MovedClock())

    with pytest.raises(LedgerAway, match="file is not a database"):
        rows.receive(*series_of())


def test_full_disk_is_away(ledger: Ledger, ledger_url: str) -> None:
    """
    A database without room is away, and goes on where it was when there is room again.
    """
    if not ledger_url.startswith("sqlite"):
        return
    rows = Rows(ledger, MovedClock())
    with ledger.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
        raw.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(LedgerAway, match="full"):
        rows.receive(*series_of(2000))
    with ledger.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.execute("PRAGMA max_page_count=1000000")

    assert 3 == len(rows.receive(*series_of(study="999")))


def test_read_only_database_is_away(ledger: Ledger, ledger_url: str) -> None:
    """
    A database that takes no changes for now is away: nothing that waits for it is set aside.
    """
    address = sa.engine.make_url(ledger_url)
    if address.get_backend_name() == "sqlite":
        read_only = f"sqlite:///file:{address.database}?mode=ro&uri=true"
    else:
        read_only = f"{ledger_url}?options=-c%20default_transaction_read_only%3Don"
    rows = Rows(Ledger.open(read_only), MovedClock())

    with pytest.raises(LedgerAway, match=r"read-?only"):
        rows.receive(*series_of())
    assert () == Rows(ledger, MovedClock()).listing.studies().items


def test_wrong_statement_is_a_bug_on_postgresql(ledger: Ledger, ledger_url: str) -> None:
    """
    What is wrong with the statement is not taken for the database's being away, where the two can be told apart.
    """
    with pytest.raises((sa.exc.ProgrammingError, LedgerAway)) as raised, ledger.writing("test") as connection:
        connection.execute(sa.text("SELECT 1 FROM nothing"))

    assert ledger_url.startswith("sqlite") == isinstance(raised.value, LedgerAway)


def test_writing_is_whole_or_nothing(ledger: Ledger) -> None:
    """
    Where one statement of a transaction breaks none has happened.
    """
    with pytest.raises(TypeError), ledger.writing("test") as connection:  # noqa: PT012 - what is written first is the point
        write_event(connection, "one", now=MovedClock().now(), subject=Subject())
        write_event(connection, "two", now=MovedClock().now(), subject=Subject(), what=object())

    with ledger.reading() as connection:
        assert [] == connection.execute(sa.select(schema.events)).all()


def test_reading_sees_one_state(ledger: Ledger) -> None:
    """
    A reader sees the same for as long as it reads, whatever is committed meanwhile.
    """
    count = sa.select(sa.func.count()).select_from(schema.events)
    with ledger.reading() as connection:
        before = connection.execute(count).scalar_one()
        with ledger.writing("test") as other:
            write_event(other, "one", now=MovedClock().now(), subject=Subject())

        assert before == connection.execute(count).scalar_one()
    with ledger.reading() as connection:
        assert before + 1 == connection.execute(count).scalar_one()


def test_readers_do_not_wait_for_writers(ledger: Ledger) -> None:
    """
    Pages are served while somebody writes.
    """
    seen: list[int] = []

    def read() -> None:
        with ledger.reading() as connection:
            seen.append(len(connection.execute(sa.select(schema.events)).all()))

    with ledger.writing("test") as connection:
        write_event(connection, "one", now=MovedClock().now(), subject=Subject())
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(10)

    assert [0] == seen


def test_moments_come_back_as_they_went(ledger: Ledger) -> None:
    """
    A moment of any zone is kept to the microsecond, comes back in UTC, and is compared as a moment.
    """
    tokyo = timezone(timedelta(hours=9))
    moments = [datetime(2026, 3, 29, 9, 30, 0, 123456, tokyo), datetime(2026, 3, 29, 1, 0, tzinfo=UTC)]
    with ledger.writing("test") as connection:
        for moment in moments:
            write_event(connection, "one", now=moment, subject=Subject())
    with ledger.reading() as connection:
        found = list(connection.execute(sa.select(schema.events.c.time).order_by(schema.events.c.time)).scalars())
        early = connection.execute(sa.select(schema.events.c.id).where(schema.events.c.time < moments[1])).all()

    assert sorted(moments) == found
    assert [timedelta(0)] * 2 == [moment.utcoffset() for moment in found]
    assert [(1,)] == [tuple(row) for row in early]


def test_insert_ignoring_leaves_what_is_there(ledger: Ledger) -> None:
    """
    Rows whose key is taken stay as they were; the others are inserted.
    """
    with ledger.writing("test") as connection:
        insert_ignoring(connection, schema.facts, [{"name": "a", "value": "1"}])
        insert_ignoring(connection, schema.facts, [{"name": "a", "value": "2"}, {"name": "b", "value": "3"}])
        insert_ignoring(connection, schema.facts, [])
        found = dict(connection.execute(sa.select(schema.facts.c.name, schema.facts.c.value)).all())

    assert ("1", "3") == (found["a"], found["b"])


def test_text_from_outside_is_made_storable(ledger: Ledger) -> None:
    """
    Every text is storable once it was made so, in every database, and only what cannot be kept is changed.
    """
    hostile = "a\0b\ud800c\U0001f600合成\r\n"
    with ledger.writing("test") as connection:
        connection.execute(schema.facts.insert().values(name="h", value=storable(hostile)))
        found = connection.execute(sa.select(schema.facts.c.value).where(schema.facts.c.name == "h")).scalar_one()

    assert "ab?c\U0001f600合成\r\n" == found


def test_watch_tells_of_other_connections(ledger: Ledger, ledger_url: str) -> None:
    """
    On SQLite the watched number changes with a commit of another connection; elsewhere there is none.
    """
    with ledger.watch() as version:
        before = version()
        with ledger.writing("test") as connection:
            write_event(connection, "one", now=MovedClock().now(), subject=Subject())

        assert (before is None, version() != before) == ((False, True) if "sqlite" in ledger_url else (True, False))


def test_commit_is_synced(ledger: Ledger, ledger_url: str) -> None:
    """
    On SQLite a commit is in the log, and the log synced, before it returns: FULL, and WAL.
    """
    if not ledger_url.startswith("sqlite"):
        return
    with ledger.reading() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

    assert ["wal", 2] == found
