"""
A ledger put in place of another: from a backup, or anew for a spool that is left; the one before is set aside.

Whole or not at all: on PostgreSQL in one transaction, in which the present tables move to a schema with the date in
its name; on SQLite in a file beside, which then takes the place of the present one in one step.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.failpoint import failpoint
from talaria.model.errors import ConfigError, LedgerAway
from talaria.model.job import Event, Kind, State
from talaria.model.plan import CaseState
from talaria.store import schema
from talaria.store.backup import Backup, Progress, load, stamp
from talaria.store.jobs import act_on
from talaria.store.ledger import Ledger, Subject, insert_ignoring, write_event
from talaria.store.reconciling import note_comparing
from talaria.store.schema import case_series, cases, facts, instances, jobs, series, studies, workers
from talaria.store.spool import sync_directory
from talaria.store.workers import SILENCE, is_dead

#: Begins the reason of whatever waits for a person because of one of these; `release_restored` finds it by that.
RESTORED, ARRIVED, FOUND = "restored from the backup of ", "arrived after the backup of ", "found in the spool when "
_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was put in place."""

    studies: int
    deliveries_held: int
    """Dispatch jobs that were not over: they wait for a person."""
    series_held: int
    """Series that were on their way to the rules: they wait for a person."""
    set_aside: str
    """Where the ledger before it is now; empty where there was none."""


def in_words(moment: datetime) -> str:
    """A moment as reasons and messages name it."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


# -- what must not be so --


def refuse_running(ledger: Ledger, *, now: datetime, host: str) -> None:
    """
    See that no service works on the ledger, on whatever host.

    Raises:
        ConfigError: One was heard of lately; names it.
    """
    statement = sa.select(workers).where(workers.c.seen > now - SILENCE)
    with contextlib.suppress(_NoSuchTable), _may_lack_tables(), ledger.reading() as connection:
        alive = [row for row in connection.execute(statement) if not is_dead(row.id, host=host)]
        if alive:
            named = ", ".join(sorted({f"{row.service} on {row.host} (process {row.pid})" for row in alive}))
            raise ConfigError(
                f"ledger {ledger.name}: services work on it: {named}; stop them, wait "
                f"{SILENCE.total_seconds():.0f} s if they died on another host, and do it again"
            )


class _NoSuchTable(Exception):
    """There is no ledger yet."""


@contextlib.contextmanager
def _may_lack_tables() -> Iterator[None]:
    try:
        yield
    except sa.exc.ProgrammingError as error:
        raise _NoSuchTable from error
    except LedgerAway as error:
        if "no such table" not in str(error):
            raise
        raise _NoSuchTable from error


def count_studies(ledger: Ledger) -> int:
    """How many studies it has; 0 where it has no tables."""
    if ledger.step() is None:
        return 0
    with ledger.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(studies)).scalar_one()


def file_of(ledger: Ledger) -> Path | None:
    """The file of a ledger of SQLite; None of any other."""
    address = ledger.engine.url
    return Path(address.database or "") if address.get_backend_name() == "sqlite" else None


# -- putting in place --


def restore(
    ledger: Ledger, backup: Backup, *, spool: str, now: datetime, actor: str,
    progress: Progress = lambda _table, _rows: None,
) -> Restored:  # fmt: skip
    """
    Put a backup in place of what the ledger is now.

    What was not over when the backup was made may have happened since: deliveries are held, and series that no rule
    was asked about. The spools have to be compared afterwards; until then no service runs.

    Raises:
        ConfigError: The backup is damaged; nothing was changed.
        LedgerAway: The database cannot take it; nothing was changed.
    """
    found: list[Restored] = []

    def fill(connection: Connection) -> None:
        found.append(_fill(connection, backup, spool=spool, now=now, actor=actor, progress=progress))

    aside = replace(ledger, fill, now=now)
    return Restored(
        studies=found[0].studies, deliveries_held=found[0].deliveries_held, series_held=found[0].series_held,
        set_aside=aside,
    )  # fmt: skip


def make_anew(
    ledger: Ledger, *, identity: str, spool: str, rulebook: tuple[int, str] | None, now: datetime, actor: str
) -> str:
    """
    Put an empty ledger of the same identity in place of what the ledger is now.

    Args:
        ledger: Of which the file is damaged, or that is gone.
        identity: That of the home.
        spool: To be compared with it afterwards; until then no service runs.
        rulebook: The number and text of the revision that ran, if it is known.
        now: Written as the time of change.
        actor: Who does it.

    Returns:
        Where the ledger before it is now; empty where there was none.
    """
    from talaria.store.migrations.steps import upgrade  # as in Ledger.migrate

    def fill(connection: Connection) -> None:
        upgrade(connection)
        insert_ignoring(connection, facts, [{"name": "identity", "value": identity}])
        if rulebook is not None:
            number, text = rulebook
            connection.execute(
                schema.revisions.insert().values(
                    number=number, text=text, author=actor, created=now, note="found in the home by `db rebuild`",
                    warnings="[]",
                )
            )  # fmt: skip
        note_comparing(connection, [spool], reason=f"{FOUND}the ledger was made anew on {in_words(now)}")
        write_event(connection, "ledger.rebuilt", now=now, subject=Subject(), actor=actor)

    return replace(ledger, fill, now=now)


def replace(ledger: Ledger, fill: Callable[[Connection], None], *, now: datetime) -> str:
    """
    Let *fill* make tables in one transaction, and put them in place of what the ledger is now.

    Returns:
        Where the ledger before it is now; empty where there was none.
    """
    path = file_of(ledger)
    if path is not None:
        return _replace_file(ledger, path, fill, now=now)
    aside = f"talaria_{stamp(now)}"
    with ledger.writing("restore.replace") as connection:
        moved = _move_tables(connection, aside)
        fill(connection)
    return f"schema {aside} of the same database" if moved else ""


def _move_tables(connection: Connection, aside: str) -> bool:
    """Move all tables and views of ours to a new schema of PostgreSQL; whether there were any."""
    ours = [*schema.metadata.tables, "alembic_version"]
    rows = connection.execute(
        sa.text(
            "SELECT c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = current_schema() AND (c.relkind = 'r' AND c.relname = ANY(:ours) "
            "OR c.relkind = 'v' AND c.relname LIKE 'v\\_%') ORDER BY c.relname"
        ),
        {"ours": ours},
    ).all()
    if not rows:
        return False
    quote = connection.dialect.identifier_preparer.quote
    connection.exec_driver_sql(f"CREATE SCHEMA {quote(aside)}")
    for name, kind in rows:
        what = "TABLE" if kind == "r" else "VIEW"
        connection.exec_driver_sql(f"ALTER {what} {quote(name)} SET SCHEMA {quote(aside)}")
    return True


def _replace_file(ledger: Ledger, path: Path, fill: Callable[[Connection], None], *, now: datetime) -> str:
    fresh = path.with_name(f"{path.name}.new")
    _remove(fresh)  # of one that was interrupted
    beside = Ledger.open(ledger.engine.url.set(database=str(fresh)).render_as_string(hide_password=False))
    try:
        with beside.writing("restore.fill") as connection:
            fill(connection)
    except BaseException:
        beside.close()
        _remove(fresh)
        raise
    beside.close()
    _fold_in(fresh)
    ledger.close()
    with contextlib.suppress(sqlite3.DatabaseError):  # of a damaged file nothing can be folded in
        _fold_in(path)
    return _swap(fresh, path, now=now)


def _swap(fresh: Path, path: Path, *, now: datetime) -> str:
    """One step for whoever opens it: at no moment there is no file, and no log of another is beside it."""
    aside = path.with_name(f"{path.name}.{stamp(now)}")
    is_there = path.exists() and path.stat().st_size > 0
    if is_there:
        os.link(path, aside)
        failpoint("restore.file.linked")
    for ending in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    os.rename(fresh, path)
    failpoint("restore.file.swapped")
    sync_directory(path.parent)
    return str(aside) if is_there else ""


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{ending}").unlink(missing_ok=True)


def _fold_in(path: Path) -> None:
    """
    Bring all that stands in the log of a SQLite file into the file itself, synced, and leave no log.

    Raises:
        ConfigError: Another program has it open.
    """
    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise ConfigError(f"ledger {path}: another program has it open; close that, and do it again")


# -- a backup's rows --


def _fill(
    connection: Connection, backup: Backup, *, spool: str, now: datetime, actor: str, progress: Progress
) -> Restored:
    from talaria.store.migrations.steps import upgrade  # as in Ledger.migrate

    made = in_words(backup.manifest.made)
    upgrade(connection, to=backup.manifest.step)
    load(connection, backup, progress=progress)
    upgrade(connection)
    connection.execute(sa.delete(workers))
    held = _hold_deliveries(
        connection, f"{RESTORED}{made}: may have been delivered since; release it to send what is missing",
        now=now, actor=actor,
    )  # fmt: skip
    waiting = _hold_series(
        connection, f"{RESTORED}{made}: may have been routed since; release it to have the rules asked", now=now
    )
    spools = {*connection.execute(sa.select(instances.c.spool).distinct()).scalars(), spool}
    note_comparing(connection, sorted(spools), reason=f"{ARRIVED}{made}; release it to have the rules asked")
    write_event(
        connection, "ledger.restored", now=now, subject=Subject(), actor=actor, made=backup.manifest.made.isoformat(),
        step=backup.manifest.step, deliveries_held=held, series_held=waiting,
    )  # fmt: skip
    count = connection.execute(sa.select(sa.func.count()).select_from(studies)).scalar_one()
    return Restored(studies=count, deliveries_held=held, series_held=waiting, set_aside="")


_NOT_OVER = (State.PENDING, State.DEFERRED, State.ACTIVE)


def _hold_deliveries(connection: Connection, reason: str, *, now: datetime, actor: str) -> int:
    return _act_on_all(
        connection, [jobs.c.kind == Kind.DISPATCH, jobs.c.state.in_(_NOT_OVER)], Event.HOLD, now=now, actor=actor,
        reason=reason,
    )  # fmt: skip


def _act_on_all(
    connection: Connection, conditions: list[sa.ColumnElement[bool]], event: Event, *, now: datetime, actor: str,
    reason: str = "",
) -> int:  # fmt: skip
    count, last = 0, 0
    page = sa.select(jobs).where(*conditions).order_by(jobs.c.id).limit(_AT_ONCE).with_for_update()
    while rows := connection.execute(page.where(jobs.c.id > last)).all():
        for row in rows:
            act_on(connection, row, event, actor=actor, now=now, reason=reason)
        count, last = count + len(rows), rows[-1].id
    return count


def _hold_series(connection: Connection, reason: str, *, now: datetime) -> int:
    """Received series that no case was closed over whole: not yet asked about, grown since, or being collected."""
    fresh = sa.select(instances.c.id).where(instances.c.series_id == series.c.id, instances.c.portion.is_(None))
    collected = (
        sa.select(case_series.c.case_id)
        .join(cases, cases.c.id == case_series.c.case_id)
        .where(
            case_series.c.series_id == series.c.id, cases.c.state == CaseState.COLLECTING,
            case_series.c.covered < series.c.portions,
        )
    )  # fmt: skip
    waits = sa.or_(sa.not_(series.c.settled), series.c.due.is_not(None), fresh.exists(), collected.exists())
    rows = connection.execute(
        sa.select(series.c.id, series.c.study_id).where(
            series.c.origin_job == 0, series.c.dropped.is_(None), series.c.held == "", waits
        )
    ).all()
    for row in rows:
        connection.execute(
            sa.update(series)
            .where(series.c.id == row.id)
            .values(held=reason, due=now, version=series.c.version + 1)
        )  # fmt: skip
        subject = Subject(study_id=row.study_id, series_id=row.id)
        write_event(connection, "series.held", now=now, subject=subject, reason=reason)
    return len(rows)


# -- letting go on --


def release_deliveries(ledger: Ledger, *, now: datetime, actor: str) -> int:
    """Let every delivery go on that a restoration held; what its target has already is not sent again."""
    with ledger.writing("restore.release") as connection:
        conditions = [jobs.c.state == State.HELD, jobs.c.reason.like(f"{RESTORED}%")]
        return _act_on_all(connection, conditions, Event.RELEASE, now=now, actor=actor)


def studies_held(ledger: Ledger, *, after: str = "", limit: int = _AT_ONCE) -> list[str]:
    """Study Instance UIDs of which a restoration or rebuild holds series, in their order, a page at a time."""
    reasons = sa.or_(*(series.c.held.like(f"{reason}%") for reason in (RESTORED, ARRIVED, FOUND)))
    with ledger.reading() as connection:
        return list(
            connection.execute(
                sa.select(studies.c.study_instance_uid)
                .where(
                    studies.c.study_instance_uid > after,
                    sa.select(series.c.id).where(series.c.study_id == studies.c.id, reasons).exists(),
                )
                .order_by(studies.c.study_instance_uid)
                .limit(limit)
            ).scalars()
        )
