"""The ledger: one database, its transactions, its identity, and the event log that every change writes to."""

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from talaria.failpoint import failpoint
from talaria.model.errors import ConfigError, LedgerAway, WrongSchema
from talaria.store import schema
from talaria.store.spool import new_ulid

#: A row of whatever columns a statement asks for.
AnyRow = Row[*tuple[Any, ...]]

#: Seconds that a writer waits for another on SQLite before it is told that the ledger is busy.
_BUSY_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """
    How long a database server may take before it counts as away, and how many connections a process has to it.

    A dozen processes, each with one connection more to listen, fit the hundred that PostgreSQL has by default.
    """

    connect: timedelta = timedelta(seconds=5)
    """To be connected, or to answer whether a connection still works; whole seconds."""
    statement: timedelta = timedelta(seconds=20)
    """The server ends a statement that takes longer; 0: never."""
    lock: timedelta = timedelta(seconds=10)
    """The server ends a statement that waits longer for a row."""
    idle: timedelta = timedelta(seconds=60)
    """The server ends a transaction that stands still for longer: its process is stopped, or gone without a word."""
    answer: timedelta = timedelta(seconds=30)
    """A connection on which nothing comes for longer is given up: the server hangs, or the network swallows all."""
    turn: timedelta = timedelta(seconds=5)
    """To be handed a connection that another thread gives back."""
    connections: int = 6


#: For upkeep, where a statement may take as long as it takes.
UNHURRIED = Bounds(statement=timedelta(0), lock=timedelta(minutes=1), idle=timedelta(0), answer=timedelta(days=1))


#: What makes a transaction of PostgreSQL see one state of things; one of SQLite always does.
_ONE_STATE = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
#: What saves PostgreSQL the beginning and the end of a transaction.
_NO_TRANSACTION = {"isolation_level": "AUTOCOMMIT"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an event is about; 0 and empty mean nothing."""

    study_id: int = 0
    series_id: int = 0
    instance_id: str = ""
    case_id: int = 0
    job_id: int = 0


class Ledger:
    """
    One database, opened.

    Used by any number of threads. Every method that touches it raises `LedgerAway` when it cannot be reached.
    """

    def __init__(self, engine: Engine, bounds: Bounds | None = None) -> None:
        self.engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._glancer = engine.execution_options(**({"plain": True} if self._is_sqlite else _NO_TRANSACTION))
        bounds = bounds or Bounds()
        self._turns: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._is_sqlite:
            self._pen: contextlib.AbstractContextManager[None] = _Turns(
                1, timedelta(seconds=_BUSY_SECONDS), f"ledger {self.name}: is busy: others write all the time"
            )
        else:
            why = f"ledger {self.name}: all its connections are taken; is a server or a query slow?"
            self._pen = self._turns = _Turns(bounds.connections, bounds.turn, why)
        self._writer = engine.execution_options(writer=True)
        self._hasty = engine.execution_options(writer=True, hasty=True)
        self._reader = engine if engine.dialect.name == "sqlite" else engine.execution_options(**_ONE_STATE)

    # -- opening --

    @classmethod
    def open(cls, url: str, *, bounds: Bounds | None = None) -> "Ledger":
        """
        Open the ledger at *url*; nothing is read yet.

        Args:
            url: As SQLAlchemy has it; `postgresql:` means psycopg 3.
            bounds: Of a server; the usual ones if none are given.

        Raises:
            ConfigError: The URL is not understood, or its driver is not installed.
        """
        return cls(_engine(url, bounds or Bounds()), bounds)

    def migrate(self, *, now: datetime) -> None:
        """
        Bring the schema up to this code's, from nothing or from an older one, whole or not at all.

        A new ledger gets its identity with it. Of two that do it at once the second finds it done.
        """
        from talaria.store.migrations.steps import upgrade  # Alembic takes 0.4 s to import, and few commands need it

        with self.unhurried() as unhurried, unhurried.writing("ledger.migrate") as connection:
            upgrade(connection)
            insert_ignoring(connection, schema.facts, [{"name": "identity", "value": new_ulid(now)}])

    def step(self) -> str | None:
        """The last step of the schema that this ledger has taken; None where it has no tables yet."""
        with self._answering(), self.engine.connect() as connection:
            has_one = sa.inspect(connection).has_table("alembic_version")
            versions = sa.table("alembic_version", sa.column("version_num", sa.String))
            return connection.execute(sa.select(versions.c.version_num)).scalar() if has_one else None

    def known_step(self) -> str:
        """
        The same, where it is this code's or an older one.

        Raises:
            ConfigError: It is newer, or there are no tables; says what to do.
        """
        found = self.step()
        if found is None:
            raise ConfigError(f"ledger {self.name}: has no tables yet; run `talaria init`")
        if found > schema.REVISION:
            raise WrongSchema(
                f"ledger {self.name}: schema {found} was made by a newer Talaria than this one, which knows "
                f"{schema.REVISION}; install that version again, or restore the backup made before the upgrade"
            )
        return found

    def verify_schema(self) -> None:
        """
        Whether the schema is this code's.

        Raises:
            ConfigError: It is older, newer, or not there at all; says what to do.
        """
        found = self.known_step()
        if found != schema.REVISION:
            raise WrongSchema(
                f"ledger {self.name}: schema {found} is older than this Talaria's {schema.REVISION}; "
                "stop the services and run `talaria db migrate`"
            )

    @contextlib.contextmanager
    def unhurried(self) -> Iterator["Ledger"]:
        """The same one for upkeep, where a statement may take as long as it takes."""
        if self._is_sqlite:
            yield self
            return
        with contextlib.closing(Ledger(_engine(self.engine.url, UNHURRIED))) as ledger:
            yield ledger

    @property
    def name(self) -> str:
        """The database's address without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @property
    def has_server(self) -> bool:
        """Whether a server keeps it, for any number of hosts; not so SQLite."""
        return not self._is_sqlite

    def identity(self) -> str:
        """Which ledger this is: a ULID, given when it was made."""
        with self.reading() as connection:
            fact = sa.select(schema.facts.c.value).where(schema.facts.c.name == "identity")
            return str(connection.execute(fact).scalar_one())

    def is_damaged(self) -> bool:
        """Whether SQLite cannot read its own file, or finds it at odds with itself; all of it is looked at."""
        if not self._is_sqlite:
            return False
        try:
            with self.engine.connect() as connection:
                return bool(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok")
        except sa.exc.DatabaseError as error:
            return _is_damaged(error)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    # -- transactions --

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of things and changes nothing."""
        with self._answering(), self._turns, self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def glancing(self) -> Iterator[Connection]:
        """For one statement that changes nothing: the cheapest way to look."""
        with self._answering(), self._turns, self._glancer.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, name: str, *, is_synced: bool = True) -> Iterator[Connection]:
        """
        A transaction that is whole or nothing; on SQLite it has the pen from its beginning.

        Args:
            name: `ROOM.ACT`: that of two fail points, `NAME.written` and `NAME.committed`.
            is_synced: Whether it outlasts a power cut from its end on. One that need not is several times as fast;
                it does outlast the death of every process, and a power cut as soon as a later one is synced.
        """
        writer = self._writer if is_synced else self._hasty
        with self._answering(), self._pen, writer.connect() as connection:
            with connection.begin():
                connection.info.pop(_NEWS, None)  # of one that was rolled back
                if not (is_synced or self._is_sqlite):
                    connection.execute(_HASTILY)
                yield connection
                failpoint(f"{name}.written")
            self._tell(connection)
        failpoint(f"{name}.committed")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.TimeoutError as error:
            raise LedgerAway(f"ledger {self.name}: all its connections are taken: {error}") from error
        except sa.exc.InvalidatePoolError as error:
            raise LedgerAway(f"ledger {self.name}: its connections broke, and new ones cannot be had") from error
        except sa.exc.DatabaseError as error:
            if not _is_away(error):
                raise
            reason = str(error.orig).strip().partition("\n")[0]
            if _is_damaged(error):
                raise LedgerAway(f"ledger {self.name}: its file is damaged ({reason}); {_WHEN_DAMAGED}") from error
            raise LedgerAway(f"ledger {self.name}: cannot be used now: {reason}{_advice(reason)}") from error
        except sa.exc.InterfaceError as error:
            raise LedgerAway(f"ledger {self.name}: cannot be reached: {error.orig}") from error

    # -- news --

    @staticmethod
    def announce(connection: Connection, topic: str) -> None:
        """
        Say that there is work for others, when this transaction of `writing` is committed.

        Once per transaction, however often it is called. On SQLite there is nothing to say: every commit is seen.

        Args:
            connection: Of the transaction.
            topic: What there is to do: a job's kind, or `series`, `rulebook`, `pauses`.
        """
        connection.info.setdefault(_NEWS, set()).add(topic)

    def _tell(self, connection: Connection) -> None:
        topics = connection.info.pop(_NEWS, None)
        if topics and not self._is_sqlite:
            from talaria.store import postgresql  # needs psycopg, which is optional

            postgresql.tell(connection.connection.dbapi_connection, topics)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Callable[[timedelta], bool]]:
        """
        Listen: what is handed out waits for up to a length of time, and says whether there are news.

        On SQLite any commit of another connection is news, on PostgreSQL what was announced. For one thread, which
        has a connection to itself for as long as it listens; nothing that happens after it began is missed.
        """
        with self._answering(), self.engine.connect() as connection:
            if self._is_sqlite:
                yield _Versions(connection.connection.dbapi_connection, name=self.name)
                return
            from talaria.store import postgresql  # needs psycopg, which is optional

            connection.detach()  # the pool is for those who come and go
            yield postgresql.Ear(connection.connection.dbapi_connection, name=self.name)

    def server_time(self) -> datetime | None:
        """What the database server's clock says; None where there is no server."""
        if self._is_sqlite:
            return None
        with self.glancing() as connection:
            now = connection.execute(_SERVER_TIME).scalar_one()
        assert isinstance(now, datetime)
        return now


_SERVER_TIME = sa.select(sa.func.clock_timestamp())
#: For one transaction.
_HASTILY = sa.text("SET LOCAL synchronous_commit = off")
#: Where a connection keeps what its transaction announces.
_NEWS = "talaria.news"
#: How long the version of a SQLite database goes unread while somebody listens.
_LISTEN_SECONDS = 0.05


class _Versions:
    """Whether another connection has committed to a SQLite database."""

    def __init__(self, connection: object, *, name: str) -> None:
        assert isinstance(connection, sqlite3.Connection)
        self._cursor, self._name = connection.cursor(), name
        self._seen = self._version()

    def __call__(self, length: timedelta) -> bool:
        """Wait up to so long; whether there are news."""
        end = time.monotonic() + length.total_seconds()
        while (found := self._version()) == self._seen:
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _LISTEN_SECONDS))
        self._seen = found
        return True

    def _version(self) -> int:
        try:
            self._cursor.execute("PRAGMA data_version")
            return int((self._cursor.fetchone() or (0,))[0])
        except sqlite3.Error as error:
            raise LedgerAway(f"ledger {self._name}: cannot be watched: {error}") from error


class _Turns:
    """
    Lets so many threads of this process through at a time, in the order in which they came.

    SQLite has one pen, and those that find it taken sleep and try again (`sqliteDefaultBusyCallback` in its main.c):
    here one is woken the moment another is done. A pool of connections hands one that came back to whoever asks
    first, and that is mostly who gave it back: others may wait for ever.
    """

    def __init__(self, places: int, patience: timedelta, why: str) -> None:
        self._free, self._patience, self._why = places, patience, why
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            place = threading.Lock()
            place.acquire()
            self._waiting.append(place)
        if place.acquire(timeout=self._patience.total_seconds()):
            return
        with self._lock:
            if place not in self._waiting:  # it was handed over in this very moment
                return
            self._waiting.remove(place)
        raise LedgerAway(self._why)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


def _is_away(error: sa.exc.DatabaseError) -> bool:
    """Whether the database is to blame and not the statement: down, full, read-only (InternalError), or damaged."""
    return isinstance(error, sa.exc.OperationalError | sa.exc.InternalError) or type(error) is sa.exc.DatabaseError


#: What a person does about a damaged file; whatever arrives meanwhile waits in the spool.
_WHEN_DAMAGED = (
    "stop the services, then `talaria db restore FILE --replace` with the last backup, or `talaria db rebuild` "
    "without one"
)


def _is_damaged(error: sa.exc.DatabaseError) -> bool:
    """Whether SQLite cannot read its own file: SQLITE_CORRUPT or SQLITE_NOTADB."""
    code = getattr(error.orig, "sqlite_errorcode", 0) or 0
    return code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


#: What a person can do about it; the words are those of the server, whatever language it speaks else.
_ADVICE = (
    ("password authentication failed", "check user and password in database_url"),
    ("too many clients", "raise its max_connections, or run fewer processes"),
    ("remaining connection slots", "raise its max_connections, or run fewer processes"),
    ("too many connections for", "raise the connection limit of the role or the database, or run fewer processes"),
    ("read-only transaction", "it takes no changes now: is it a standby, or set to read-only?"),
    ("readonly database", "it takes no changes now: check the rights on its file and folder"),
)


def _advice(reason: str) -> str:
    return next((f"; {advice}" for words, advice in _ADVICE if words in reason), "")


def _engine(url: str | sa.engine.URL, bounds: Bounds) -> Engine:
    try:
        address = sa.engine.make_url(url)
        if address.drivername == "postgresql":
            address = address.set(drivername="postgresql+psycopg")
        if address.get_backend_name() == "sqlite":
            if not (address.database or "").startswith("file:"):
                _make_private(Path(address.database or ""))
            engine = sa.create_engine(
                address,
                connect_args={"timeout": _BUSY_SECONDS},
                pool_size=4,
                max_overflow=60,
                pool_timeout=_BUSY_SECONDS,
                hide_parameters=True,  # they name patients, and errors are logged
            )
            event.listen(engine, "connect", _tune_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        from talaria.store import postgresql  # needs psycopg, which is optional

        return postgresql.create_engine(address, bounds)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ConfigError("database_url: not understood; say sqlite:///PATH or postgresql://USER@HOST/NAME") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"database_url: needs the package {error.name}; install talaria-dicom[postgres]") from error


def _make_private(path: Path) -> None:
    """A new ledger is for its owner and group alone, since it names patients; SQLite's own files beside it follow."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))


def _tune_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    """WAL, and a sync for every commit: a row stands for an acknowledged image."""
    connection.isolation_level = None  # sqlite3's own: we say BEGIN ourselves
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-32000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("plain", False):
        return
    writes, hasty = options.get("writer", False), options.get("hasty", False)
    if writes and hasty != connection.info.get("hasty", False):
        connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if hasty else 'FULL'}")
        connection.info["hasty"] = hasty
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def storable(text: str) -> str:
    """A text from outside as every database takes it: without NUL, and without half of a character."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def insert_ignoring(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; those whose unique key is taken stay as they are."""
    if not rows:
        return
    statement = (
        sqlite.insert(table).on_conflict_do_nothing()
        if connection.dialect.name == "sqlite"
        else postgresql.insert(table).on_conflict_do_nothing()
    )
    connection.execute(statement, list(rows))


def insert_unless_there(connection: Connection, table: Table, **values: Any) -> int | None:
    """
    Insert a row; its key, or None where its unique key is taken.

    Where another transaction is about to commit such a row, its end is waited for: after None the row can be read.
    """
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    (key,) = table.primary_key.columns
    statement = insert(table).values(**values).on_conflict_do_nothing().returning(key)
    found = connection.execute(statement).scalar()
    return None if found is None else int(found)


def insert_one(connection: Connection, table: Table, **values: Any) -> int:
    """Insert a row; its key."""
    key = connection.execute(table.insert().values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


#: Made once, and without asking for the new key: it is the most frequent statement of all.
_NEW_EVENT = schema.events.insert().inline()


def write_event(  # the one door to the event log
    connection: Connection,
    kind: str,
    *,
    now: datetime,
    subject: Subject,
    actor: str = "",
    **detail: Any,
) -> None:
    """Add to the event log, in the transaction of what happened. *detail* holds no patient data and no secret."""
    connection.execute(
        _NEW_EVENT,
        {
            "time": now,
            "kind": kind,
            "actor": actor,
            "study_id": subject.study_id or None,
            "series_id": subject.series_id or None,
            "instance_id": subject.instance_id or None,
            "case_id": subject.case_id or None,
            "job_id": subject.job_id or None,
            "detail": json.dumps(detail, ensure_ascii=False, separators=(",", ":")),
        },
    )
