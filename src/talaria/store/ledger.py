"""The ledger: one database, its transactions, its identity, and the event log that every change writes to."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Row, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from talaria.failpoint import failpoint
from talaria.model.errors import ConfigError, LedgerAway
from talaria.store import schema
from talaria.store.spool import new_ulid

#: A row of whatever columns a statement asks for.
AnyRow = Row[*tuple[Any, ...]]

#: Seconds that a writer waits for another on SQLite before it is told that the ledger is busy.
_BUSY_SECONDS = 30


#: What makes a transaction of PostgreSQL see one state of things; one of SQLite always does.
_ONE_STATE = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


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

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(writer=True)
        self._reader = engine if engine.dialect.name == "sqlite" else engine.execution_options(**_ONE_STATE)

    # -- opening --

    @classmethod
    def open(cls, url: str) -> "Ledger":
        """
        Open the ledger at *url*; nothing is read yet.

        Raises:
            ConfigError: The URL is not understood, or its driver is not installed.
        """
        return cls(_engine(url))

    def migrate(self, *, now: datetime) -> None:
        """Bring the schema up to this code's, from nothing or from an older one; gives a new ledger its identity."""
        from talaria.store.migrations.steps import upgrade  # Alembic takes 0.4 s to import, and few commands need it

        with self._answering():
            with self.engine.connect() as connection:
                upgrade(connection)
            with self.writing("ledger.found") as connection:
                insert_ignoring(connection, schema.facts, [{"name": "identity", "value": new_ulid(now)}])

    def verify_schema(self) -> None:
        """
        Whether the schema is this code's.

        Raises:
            ConfigError: It is older, newer, or not there at all; says what to do.
        """
        with self._answering(), self.engine.connect() as connection:
            has_one = sa.inspect(connection).has_table("alembic_version")
            versions = sa.table("alembic_version", sa.column("version_num", sa.String))
            found = connection.execute(sa.select(versions.c.version_num)).scalar() if has_one else None
        if found == schema.REVISION:
            return
        if found is None:
            raise ConfigError(f"ledger {self.name}: has no tables yet; run `talaria init`")
        if found > schema.REVISION:
            raise ConfigError(
                f"ledger {self.name}: schema {found} was made by a newer Talaria than this one, which knows "
                f"{schema.REVISION}; install that version again, or restore the backup made before the upgrade"
            )
        raise ConfigError(
            f"ledger {self.name}: schema {found} is older than this Talaria's {schema.REVISION}; run `talaria init`"
        )

    @property
    def name(self) -> str:
        """The database's address without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    def identity(self) -> str:
        """Which ledger this is: a ULID, given when it was made."""
        with self.reading() as connection:
            fact = sa.select(schema.facts.c.value).where(schema.facts.c.name == "identity")
            return str(connection.execute(fact).scalar_one())

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    # -- transactions --

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of things and changes nothing."""
        with self._answering(), self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Connection]:
        """
        A transaction that is whole or nothing; on SQLite it has the pen from its beginning.

        Its *name*, `ROOM.ACT`, is that of two fail points: `NAME.written` and `NAME.committed`.
        """
        with self._answering(), self._writer.begin() as connection:
            yield connection
            failpoint(f"{name}.written")
        failpoint(f"{name}.committed")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.TimeoutError as error:
            raise LedgerAway(f"ledger {self.name}: all its connections are taken: {error}") from error
        except sa.exc.DatabaseError as error:
            if not _is_away(error):
                raise
            reason = str(error.orig).partition("\n")[0]
            raise LedgerAway(f"ledger {self.name}: cannot be used now: {reason}") from error
        except sa.exc.InterfaceError as error:
            raise LedgerAway(f"ledger {self.name}: cannot be reached: {error.orig}") from error

    @contextlib.contextmanager
    def watch(self) -> Iterator[Callable[[], int | None]]:
        """A cheap question: a number that changes when any other connection committed; None where none can tell."""
        if self.engine.dialect.name != "sqlite":
            yield lambda: None
            return
        with self._answering(), self.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            cursor = raw.cursor()

            def version() -> int:
                try:
                    cursor.execute("PRAGMA data_version")
                    return int((cursor.fetchone() or (0,))[0])
                except sqlite3.Error as error:
                    raise LedgerAway(f"ledger {self.name}: cannot be watched: {error}") from error

            yield version


def _is_away(error: sa.exc.DatabaseError) -> bool:
    """Whether the database is to blame and not the statement: down, full, read-only (InternalError), or damaged."""
    return isinstance(error, sa.exc.OperationalError | sa.exc.InternalError) or type(error) is sa.exc.DatabaseError


def _engine(url: str) -> Engine:
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
        return sa.create_engine(address, pool_size=4, max_overflow=60, pool_pre_ping=True, hide_parameters=True)
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
    writes = connection.get_execution_options().get("writer", False)
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


def insert_one(connection: Connection, table: Table, **values: Any) -> int:
    """Insert a row; its key."""
    key = connection.execute(table.insert().values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


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
        schema.events.insert().values(
            time=now,
            kind=kind,
            actor=actor,
            study_id=subject.study_id or None,
            series_id=subject.series_id or None,
            instance_id=subject.instance_id or None,
            case_id=subject.case_id or None,
            job_id=subject.job_id or None,
            detail=json.dumps(detail, ensure_ascii=False, separators=(",", ":")),
        )
    )
