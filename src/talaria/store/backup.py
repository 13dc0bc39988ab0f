"""
A backup: every row of a ledger in one portable file, read from one state of it while others go on writing.

The file is a ZIP archive: `tables/<name>.jsonl` has a row to a line, a JSON list of its columns; moments are text in
UTC, bytes are hex, truths are 0 and 1. `manifest.json`, written last, says which ledger it is of, its schema, and for
each table its columns, how many rows there are, and the SHA-256 of their lines. It is the same from either database,
and can be put into either.
"""

import contextlib
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from pydantic import AwareDatetime, BaseModel, ConfigDict
from sqlalchemy import Connection, Table

import talaria
from talaria.failpoint import failpoint
from talaria.model.errors import ConfigError, LedgerAway, NoRoom
from talaria.store import schema
from talaria.store.ledger import Ledger
from talaria.store.spool import sync_directory

#: How the file is laid out; raised when an older Talaria could not read it any more.
FORMAT = 1
#: What is not in it, in words.
NOT_IN_IT = ("the images: files of the spool", "the secret key file", "talaria.toml")

_MANIFEST = "manifest.json"
_ROWS_AT_ONCE = 2000
_LONGEST_LINE_BYTES = 256 << 20
_QUICK = 1  # of zlib's levels: rows shrink to a fifth, and the disk is not waited for

#: Told the name of a table, and how many of its rows are through.
Progress = Callable[[str, int], None]


class TableOf(BaseModel):
    """What the manifest says of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...]
    rows: int
    sha256: str


class Manifest(BaseModel):
    """What a backup says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    talaria: str
    """The version that wrote it."""
    identity: str
    """Of the ledger."""
    step: str
    """The last step of the schema that the ledger had taken."""
    made: AwareDatetime
    database: str
    """sqlite or postgresql."""
    not_in_it: tuple[str, ...]
    sequences: dict[str, int]
    """The last number that was given out, by table: none is given twice."""
    tables: dict[str, TableOf]

    @property
    def rows(self) -> int:
        """Of all tables together."""
        return sum(table.rows for table in self.tables.values())


def write_backup(
    ledger: Ledger, path: Path, *, now: datetime, progress: Progress = lambda _table, _rows: None
) -> Manifest:
    """
    Back a ledger up into a new file; work may be in flight.

    Memory does not grow with the ledger. The file appears whole and synced, or not at all.

    Args:
        ledger: Of any schema that this code knows; a large one of a server is to be opened `UNHURRIED`.
        path: Where to; a file that is there is never replaced.
        now: Written as the time it was made.
        progress: Told now and then.

    Raises:
        ConfigError: The file is there already, or the schema is not known here.
        NoRoom: It cannot be written.
        LedgerAway: The ledger cannot be read.
    """
    step = ledger.known_step()
    if path.exists():
        raise ConfigError(f"{path}: is there already; a backup replaces nothing: name another file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.ExitStack() as undo:
            undo.callback(temporary.unlink, missing_ok=True)
            with open(temporary, "xb", opener=_private) as file:
                manifest = _write(ledger, file, step=step, now=now, progress=progress)
                file.flush()
                os.fsync(file.fileno())
            failpoint("backup.file.synced")
            os.link(temporary, path)  # unlike a rename it replaces nothing
            failpoint("backup.file.named")
            sync_directory(path.parent)
    except OSError as error:
        raise NoRoom(f"backup {path}: cannot be written: {error.strerror}; nothing of it is left") from error
    return manifest


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)


def _write(
    ledger: Ledger, file: io.BufferedWriter, *, step: str, now: datetime, progress: Progress
) -> Manifest:  # fmt: skip
    from talaria.store.migrations.steps import tables_at  # as in Ledger.migrate

    tables = tables_at(step)
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_QUICK) as archive,
        ledger.reading() as connection,
    ):
        identity = connection.execute(
            sa.select(schema.facts.c.value).where(schema.facts.c.name == "identity")
        ).scalar_one()
        sequences = last_numbers(connection, tables)
        found = {table.name: _write_table(connection, archive, table, progress) for table in tables}
        manifest = Manifest(
            format=FORMAT, talaria=talaria.__version__, identity=identity, step=step, made=now,
            database=connection.dialect.name, not_in_it=NOT_IN_IT, sequences=sequences, tables=found,
        )  # fmt: skip
        archive.writestr(_MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _write_table(connection: Connection, archive: zipfile.ZipFile, table: Table, progress: Progress) -> TableOf:
    digest, count = hashlib.sha256(), 0
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    with archive.open(f"tables/{table.name}.jsonl", "w", force_zip64=True) as member:
        for rows in _rows(connection, table):
            lines = "".join([encode(list(row)) + "\n" for row in rows]).encode()
            digest.update(lines)
            member.write(lines)
            count += len(rows)
            progress(table.name, count)
            failpoint("backup.rows.written")
    return TableOf(columns=tuple(table.columns.keys()), rows=count, sha256=digest.hexdigest())


def _rows(connection: Connection, table: Table) -> Iterator[Sequence[Sequence[Any]]]:
    """All rows, as JSON can say them, some at a time."""
    quote = connection.dialect.identifier_preparer.quote
    columns = ", ".join(_as_plain(connection, column) for column in table.columns)
    result = connection.execution_options(stream_results=True, max_row_buffer=_ROWS_AT_ONCE).exec_driver_sql(
        f"SELECT {columns} FROM {quote(table.name)}"  # noqa: S608 - names of the schema's own steps
    )
    while rows := result.fetchmany(_ROWS_AT_ONCE):
        yield rows


def _as_plain(connection: Connection, column: "sa.Column[Any]") -> str:
    """How a column is asked for, so that every driver answers with text, a number or nothing."""
    name = connection.dialect.identifier_preparer.quote(column.name)
    if connection.dialect.name == "sqlite":
        return f"CASE WHEN {name} IS NULL THEN NULL ELSE lower(hex({name})) END" if _is_bytes(column) else name
    if _is_bytes(column):
        return f"encode({name}, 'hex')"
    if isinstance(column.type, sa.DateTime):
        return f"to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
    return f"{name}::int" if isinstance(column.type, sa.Boolean) else name


def _is_bytes(column: "sa.Column[Any]") -> bool:
    return isinstance(column.type, sa.LargeBinary)


# -- reading one --

#: What reading an archive raises whose bytes were changed; which of them depends on the byte.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, KeyError, ValueError, RuntimeError, EOFError, OverflowError, OSError
)  # fmt: skip


class Backup:
    """A backup that was opened; to be used in a `with`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._archive = archive

    @classmethod
    def open(cls, path: Path) -> Self:
        """
        Open one, and read what it says of itself.

        Raises:
            ConfigError: It is none, or is not whole, or is of a newer Talaria.
        """
        try:
            archive = zipfile.ZipFile(path)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from error
        except _UNREADABLE as error:
            raise ConfigError(f"{path}: is no backup, or was cut off; take another one") from error
        with contextlib.ExitStack() as undo:
            undo.callback(archive.close)
            manifest = _manifest(path, archive)
            undo.pop_all()
        return cls(path, archive, manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def rows(self, name: str) -> Iterator[list[Any]]:
        """
        The rows of a table.

        Raises:
            ConfigError: They are not those that were written; found by the end of them at the latest.
        """
        told, digest, count = self.manifest.tables[name], hashlib.sha256(), 0
        try:
            with self._archive.open(f"tables/{name}.jsonl") as member, io.BufferedReader(member, 1 << 20) as lines:  # type: ignore[type-var] # it is a raw stream in all but its type
                while line := lines.readline(_LONGEST_LINE_BYTES):
                    digest.update(line)
                    count += 1
                    yield self._row(name, line, len(told.columns))
        except _UNREADABLE as error:
            raise self._damaged(name) from error
        if count != told.rows or digest.hexdigest() != told.sha256:
            raise self._damaged(name)

    def _row(self, name: str, line: bytes, width: int) -> list[Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise self._damaged(name) from error
        if not isinstance(row, list) or len(row) != width:
            raise self._damaged(name)
        return row

    def _damaged(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self.path}: is damaged: the rows of table '{name}' are not those that were written; take another backup"
        )


def _manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    from talaria.store.migrations.steps import known, tables_at  # as in Ledger.migrate

    try:
        text = archive.read(_MANIFEST)
        number = json.loads(text)["format"]
        if isinstance(number, int) and number > FORMAT:
            raise ConfigError(f"{path}: was written by a newer Talaria than this one; install that version to read it")
        manifest = Manifest.model_validate_json(text)
    except (TypeError, *_UNREADABLE) as error:
        raise ConfigError(f"{path}: is no backup of a ledger: its manifest cannot be read") from error
    if manifest.step not in known():
        raise ConfigError(
            f"{path}: is of schema {manifest.step}, and this Talaria knows {schema.REVISION} at most; "
            "install the version that wrote it, or a newer one"
        )
    columns = {table.name: tuple(table.columns.keys()) for table in tables_at(manifest.step)}
    if {name: table.columns for name, table in manifest.tables.items()} != columns:
        raise ConfigError(f"{path}: its tables are not those of schema {manifest.step}; take another backup")
    return manifest


# -- putting one in --


def load(connection: Connection, backup: Backup, *, progress: Progress = lambda _table, _rows: None) -> None:
    """
    Put every row of a backup into tables that are empty and of its schema, in the caller's transaction.

    Raises:
        ConfigError: The backup is damaged.
        LedgerAway: The database cannot take it now.
    """
    from talaria.store.migrations.steps import tables_at  # as in Ledger.migrate

    tables = tables_at(backup.manifest.step)
    put = _put_into_sqlite if connection.dialect.name == "sqlite" else _put_into_postgresql
    dbapi = connection.dialect.loaded_dbapi
    for table in tables:
        try:
            put(connection, table, backup.rows(table.name), progress)
        except (dbapi.OperationalError, dbapi.InternalError) as error:
            raise LedgerAway(f"the database cannot take table '{table.name}': {_first_line(error)}") from error
        except (dbapi.DatabaseError, sa.exc.IntegrityError, sa.exc.DataError) as error:
            raise ConfigError(
                f"{backup.path}: table '{table.name}' does not fit the database: {_first_line(error)}"
            ) from None
        failpoint("restore.table.loaded")
    set_last_numbers(connection, tables, backup.manifest.sequences)


def _first_line(error: BaseException) -> str:
    """Without the values that a driver names on further lines: they may be a patient's."""
    original = getattr(error, "orig", None) or error
    return str(original).partition("\n")[0]


def _put_into_sqlite(connection: Connection, table: Table, rows: Iterator[list[Any]], progress: Progress) -> None:
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(name) for name in table.columns.keys())  # noqa: SIM118 - of a collection that iterates columns
    statement = f"INSERT INTO {quote(table.name)} ({names}) VALUES ({', '.join('?' * len(table.columns))})"  # noqa: S608 - see _rows
    in_hex = [number for number, column in enumerate(table.columns) if _is_bytes(column)]
    count = 0
    for some in _some(rows):
        connection.exec_driver_sql(statement, [tuple(_with_bytes(row, in_hex)) for row in some])
        count += len(some)
        progress(table.name, count)


def _put_into_postgresql(connection: Connection, table: Table, rows: Iterator[list[Any]], progress: Progress) -> None:
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(name) for name in table.columns.keys())  # noqa: SIM118 - of a collection that iterates columns
    in_hex = [number for number, column in enumerate(table.columns) if _is_bytes(column)]
    connection.exec_driver_sql("SET LOCAL timezone = 'UTC'")
    count = 0
    with contextlib.closing(connection.connection.cursor()) as cursor:
        copying: Any = cursor  # psycopg's own, which SQLAlchemy's protocol of cursors does not know
        with copying.copy(f"COPY {quote(table.name)} ({names}) FROM STDIN") as copy:
            for some in _some(rows):
                for row in some:
                    copy.write_row(_with_bytes(row, in_hex))
                count += len(some)
                progress(table.name, count)


def _some(rows: Iterator[list[Any]]) -> Iterator[list[list[Any]]]:
    some: list[list[Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == _ROWS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _with_bytes(row: list[Any], in_hex: Sequence[int]) -> list[Any]:
    for number in in_hex:
        if row[number] is not None:
            row[number] = bytes.fromhex(row[number])
    return row


# -- numbers that count up --


def _counted(tables: Sequence[Table]) -> list[str]:
    """Tables whose rows the database numbers."""
    return [t.name for t in tables if "id" in t.columns and isinstance(t.columns["id"].type, sa.Integer)]


def last_numbers(connection: Connection, tables: Sequence[Table]) -> dict[str, int]:
    """The last number that the database gave out, by table; those of which it keeps none are left out."""
    names = _counted(tables)
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")
        return {row.name: row.seq for row in rows if row.name in names}
    found = {}
    for name in names:
        last = connection.execute(
            sa.text("SELECT pg_sequence_last_value(pg_get_serial_sequence(:name, 'id')::regclass)"), {"name": name}
        ).scalar()
        if last is not None:
            found[name] = int(last)
    return found


def set_last_numbers(connection: Connection, tables: Sequence[Table], numbers: dict[str, int]) -> None:
    """Let the database count on from where it was, and from no number that a row has."""
    for name in _counted(tables):
        number = max(numbers.get(name, 0), _highest(connection, name))
        if not number:
            continue
        if connection.dialect.name != "sqlite":
            connection.execute(
                sa.text("SELECT setval(pg_get_serial_sequence(:name, 'id')::regclass, :number)"),
                {"name": name, "number": number},
            )
        elif name in numbers:
            connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": name})
            connection.execute(
                sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)"),
                {"name": name, "number": number},
            )


def _highest(connection: Connection, name: str) -> int:
    quoted = connection.dialect.identifier_preparer.quote(name)
    return int(connection.exec_driver_sql(f"SELECT coalesce(max(id), 0) FROM {quoted}").scalar_one())  # noqa: S608 - see _rows


def stamp(moment: datetime) -> str:
    """A moment as part of a name: of a file, of a schema of PostgreSQL."""
    return moment.astimezone(UTC).strftime("%Y%m%d_%H%M%S")
