"""One database: its schema, its transactions, and what is said when it is away."""

import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from clusters import cluster
from rows import Rows, make_ledger, series_of
from talaria.model.errors import ConfigError, LedgerAway
from talaria.store import schema
from talaria.store.ledger import Bounds, Ledger, Subject, insert_ignoring, storable, write_event
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


MOMENT = timedelta(seconds=5)


def announce(ledger: Ledger, *topics: str) -> None:
    """A transaction with news."""
    with ledger.writing("test") as connection:
        write_event(connection, "one", now=MovedClock().now(), subject=Subject())
        for topic in topics:
            Ledger.announce(connection, topic)


def test_news_are_heard(ledger: Ledger, ledger_url: str) -> None:
    """
    Who listens hears of what was announced since it began, once, however much that was, and of nothing else.
    """
    with ledger.watch() as has_news:
        assert not has_news(timedelta(0))
        announce(ledger, "dispatch", "dispatch", "process")

        assert has_news(MOMENT)
        assert not has_news(timedelta(milliseconds=100))


def test_listener_waits_for_news(ledger: Ledger) -> None:
    """
    Who listens is woken by news within moments, long before it would have stopped listening.
    """
    heard: list[float] = []
    ready = threading.Event()

    def listen() -> None:
        with ledger.watch() as has_news:
            ready.set()
            assert has_news(4 * MOMENT)
            heard.append(time.monotonic())

    listener = threading.Thread(target=listen)
    listener.start()
    assert ready.wait(10)
    announced = time.monotonic()
    announce(ledger, "dispatch")
    listener.join(30)

    assert heard[0] - announced < 1


def test_commit_without_news_wakes_nobody_on_postgresql(ledger: Ledger, ledger_url: str) -> None:
    """
    On SQLite every commit of another connection is news; on PostgreSQL what was announced, and not rolled back.
    """
    with ledger.watch() as has_news:
        announce(ledger)
        with pytest.raises(KeyError), ledger.writing("test") as connection:  # noqa: PT012 - announced, then broken
            Ledger.announce(connection, "dispatch")
            raise KeyError
        announce(ledger)

        assert has_news(timedelta(milliseconds=200)) is not ledger.has_server


def test_listener_takes_no_connection_from_the_others(ledger: Ledger) -> None:
    """
    A connection that listens is one besides those that everybody shares.
    """
    with ledger.watch():
        assert 0 == ledger.engine.pool.checkedout() or not ledger.has_server  # type: ignore[attr-defined]  # a queue


def test_listener_whose_connection_is_killed_says_so(ledger: Ledger) -> None:
    """
    On PostgreSQL a connection that listens may be ended by its administrator; then it is away.
    """
    if not ledger.has_server:
        return
    with ledger.watch() as has_news:
        end_other_connections(ledger)
        with pytest.raises(LedgerAway, match="cannot be listened to"):
            has_news(MOMENT)


def end_other_connections(ledger: Ledger) -> None:
    """As an administrator does."""
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_writing_in_haste_is_synced_by_the_next_that_is_not(ledger: Ledger) -> None:
    """
    A transaction that need not outlast a power cut does not wait for the disk; the next on its connection does again.
    """
    setting = "PRAGMA synchronous" if not ledger.has_server else "SHOW synchronous_commit"
    found = []
    for is_synced in (True, False, True):
        with ledger.writing("test", is_synced=is_synced) as connection:
            found.append(connection.exec_driver_sql(setting).scalar())

    assert found == ([2, 1, 2] if not ledger.has_server else ["on", "off", "on"])


def test_threads_of_a_process_write_in_turn(ledger: Ledger) -> None:
    """
    Eight threads that write all the time wait for each other, and none for long.
    """
    waits: list[float] = []

    def work() -> None:
        for _ in range(20):
            began = time.monotonic()
            announce(ledger)
            waits.append(time.monotonic() - began)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert 160 == len(waits)
    assert max(waits) < MOMENT.total_seconds()


# -- a server that is away --

SHORT = Bounds(
    connect=timedelta(seconds=1), statement=timedelta(seconds=1), lock=timedelta(milliseconds=300),
    idle=timedelta(milliseconds=500), answer=timedelta(seconds=1), turn=timedelta(milliseconds=500), connections=3,
)  # fmt: skip


@pytest.fixture
def server(request: pytest.FixtureRequest) -> str:
    """A ledger on PostgreSQL; its address."""
    address, name = request.getfixturevalue("postgresql"), f"t{secrets.token_hex(8)}"
    engine = sa.create_engine(address.replace("postgresql:", "postgresql+psycopg:", 1) + "/postgres")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE template')
    engine.dispose()
    return f"{address}/{name}"


def reason_of(act: Callable[[], object]) -> tuple[str, float]:
    """Why the ledger is away, and after how many seconds that was said."""
    began = time.monotonic()
    with pytest.raises(LedgerAway) as raised:
        act()
    return str(raised.value), time.monotonic() - began


@pytest.mark.server
def test_server_that_hangs_is_away(tmp_path: Path) -> None:
    """
    A server all of whose processes are stopped holds no thread for longer than the bounds, whatever it was doing, and
    nobody has to be started again when it goes on.
    """
    with cluster() as server:
        make_ledger(f"{server.address}/postgres")
        ledger = Ledger.open(f"{server.address}/postgres", bounds=SHORT)
        ledger.identity()
        said: list[tuple[str, float]] = []
        with server.hung():
            threads = [
                threading.Thread(target=lambda: said.append(reason_of(ledger.identity)), daemon=True) for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert 8 == len(said)
            said.append(reason_of(ledger.identity))
        assert ledger.identity()
        ledger.close()

    assert max(seconds for _, seconds in said) < 6
    whys = " ".join(why for why, _ in said)
    assert "did not answer within 1 s" in whys or "connection timeout expired" in whys or "new ones cannot" in whys


@pytest.mark.server
def test_server_that_hangs_in_the_midst_of_a_transaction_is_away(tmp_path: Path) -> None:
    """
    A transaction that was under way is given up with its connection, and none of it has happened.
    """
    with cluster() as server:
        make_ledger(f"{server.address}/postgres")
        ledger = Ledger.open(f"{server.address}/postgres", bounds=SHORT)

        def write() -> None:
            with ledger.writing("test") as connection, server.hung():
                write_event(connection, "one", now=MovedClock().now(), subject=Subject())

        why, seconds = reason_of(write)
        with ledger.reading() as connection:
            assert [] == connection.execute(sa.select(schema.events)).all()
        ledger.close()

    assert why.endswith("cannot be used now: the server did not answer within 1 s")
    assert seconds < 4


@pytest.mark.server
def test_server_that_was_started_again_is_there_at_once(tmp_path: Path) -> None:
    """
    Connections that rested while the server was down are not handed out: whoever comes next gets new ones.
    """
    with cluster() as server:
        make_ledger(f"{server.address}/postgres")
        ledger = Ledger.open(f"{server.address}/postgres", bounds=SHORT)
        ledger.identity()
        server.control("-m", "immediate", "stop")
        assert reason_of(ledger.identity)[1] < 3
        server.start()

        assert ledger.identity()
        ledger.close()


@pytest.mark.server
def test_full_server_is_away() -> None:
    """
    A server that has no connection left says so, and what to do.
    """
    with cluster("max_connections=6", "superuser_reserved_connections=3") as server:
        make_ledger(f"{server.address}/postgres")
        holders = [
            sa.create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{server.port}/postgres") for _ in range(6)
        ]
        held = [holder.connect() for holder in holders]
        why, _ = reason_of(Ledger.open(f"{server.address}/postgres").identity)
        for connection in held:
            connection.invalidate()

    assert "too many clients" in why
    assert why.endswith("; raise its max_connections, or run fewer processes")


@pytest.mark.server
def test_wrong_password_is_away() -> None:
    """
    A password that was changed is told, without any, and what to do.
    """
    with cluster() as server:
        make_ledger(f"{server.address}/postgres")
        (server.folder / "cluster" / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        server.control("reload")
        url = f"{server.address}/postgres".replace("postgres@", "postgres:geheim@")
        why, _ = reason_of(Ledger.open(url).identity)

    assert why.endswith("; check user and password in database_url")
    assert "geheim" not in why


@pytest.mark.server
def test_lock_that_another_holds_is_not_waited_for_in_vain(server: str) -> None:
    """
    A row that a stopped process holds is waited for up to a bound; then its transaction is ended by the server.
    """
    one, other = Ledger.open(server, bounds=SHORT), Ledger.open(server, bounds=SHORT)
    row = sa.select(schema.facts).where(schema.facts.c.name == "identity").with_for_update()

    def wait() -> None:
        with other.writing("test") as connection:
            connection.execute(row)

    def hold() -> None:
        with one.writing("test") as connection:
            connection.execute(row)
            assert "lock timeout" in reason_of(wait)[0]
            threading.Event().wait(0.6)  # longer than a transaction may stand still
            wait()
            connection.execute(row)

    assert "cannot be used now" in reason_of(hold)[0]
    one.close(), other.close()


@pytest.mark.server
def test_statement_that_takes_too_long_is_ended(server: str) -> None:
    """
    The server ends what takes longer than it may; upkeep may take longer.
    """
    ledger = Ledger.open(server, bounds=SHORT)
    slow = sa.text("SELECT pg_sleep(1.5)")

    def ask() -> None:
        with ledger.reading() as connection:
            connection.execute(slow)

    assert "statement timeout" in reason_of(ask)[0]
    with ledger.unhurried() as unhurried, unhurried.reading() as connection:
        connection.execute(slow)
    ledger.close()


@pytest.mark.server
def test_connections_of_a_process_are_few(server: str) -> None:
    """
    However many threads ask, a process has so many connections and no more; who gets none in time is told.
    """
    ledger = Ledger.open(server, bounds=SHORT)
    with ledger.reading(), ledger.reading(), ledger.reading():
        assert "all its connections are taken" in reason_of(ledger.identity)[0]
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(ledger.identity() for _ in range(100))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert 800 == len(found)  # none waited in vain while others asked again and again
    ledger.close()


def test_commit_is_synced(ledger: Ledger, ledger_url: str) -> None:
    """
    On SQLite a commit is in the log, and the log synced, before it returns: FULL, and WAL.
    """
    if not ledger_url.startswith("sqlite"):
        return
    with ledger.reading() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

    assert ["wal", 2] == found
