"""Pruning: what the ledger may forget, some at a time; and the upkeep that keeps its files in bounds."""

import json
import os
from collections.abc import Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from talaria.model.recorded import LASTING_NAMES
from talaria.store.ledger import Ledger, Subject, write_event
from talaria.store.schema import credentials, runs, series

#: The log of a step that went well is kept for so long; of one that did not, as long as tags are.
LOG_KEPT = timedelta(days=30)
#: What has expired is kept for so long, so that a person is told why it does not work.
CREDENTIALS_KEPT = timedelta(days=30)

_MOST_SERIES = 500
_MOST_RUNS = 200

#: As its index says it.
_IS_WHOLE = sa.text("series.dropped IS NOT NULL AND NOT series.reduced")
_HAS_LOG = sa.text("runs.log <> ''")

#: A checkpoint waits for readers, and writers wait for it: for so many milliseconds and no longer.
_CHECKPOINT_MILLISECONDS = 1000


class Pruning:
    """Each act takes a few rows in one short transaction, and is found undone or done after a kill."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_sqlite = ledger.engine.dialect.name == "sqlite"

    def reduce_tags(self, *, before: datetime) -> int:
        """
        Keep the lasting tags alone of series without files that last grew before a moment.

        Returns:
            How many were reduced; 0 when there are no more.
        """
        wanted = (
            sa.select(series.c.id, series.c.version, series.c.tags)
            .where(_IS_WHOLE, series.c.last_received < before)
            .order_by(series.c.last_received, series.c.id)
            .limit(_MOST_SERIES)
        )
        with self._ledger.reading() as connection:
            rows = connection.execute(wanted).all()
        if not rows:
            return 0
        changes = [{"number": row.id, "seen": row.version, "left": lasting(row.tags)} for row in rows]
        with self._ledger.writing("pruning.tags") as connection:
            connection.execute(  # one that is received again meanwhile has another version
                sa.update(series)
                .where(series.c.id == sa.bindparam("number"), series.c.version == sa.bindparam("seen"))
                .values(tags=sa.bindparam("left"), reduced=True),
                changes,
            )
        return len(rows)

    def drop_logs(self, *, now: datetime, before: datetime) -> int:
        """
        Empty the logs of steps: of those that went well after `LOG_KEPT`, of the others that ended *before* a moment.

        Returns:
            How many were emptied; 0 when there are no more.
        """
        is_old = sa.or_(runs.c.ended < before, runs.c.code == 0)
        with self._ledger.writing("pruning.logs") as connection:
            rows = connection.execute(
                sa.select(runs.c.job_id, runs.c.attempt, runs.c.step)
                .where(_HAS_LOG, runs.c.ended < max(before, now - LOG_KEPT), is_old)
                .order_by(runs.c.ended)
                .limit(_MOST_RUNS)
            ).all()
            keys = sa.tuple_(runs.c.job_id, runs.c.attempt, runs.c.step).in_([tuple(row) for row in rows])
            if rows:
                connection.execute(sa.update(runs).where(keys).values(log=""))
        return len(rows)

    def forget_credentials(self, *, now: datetime) -> int:
        """Forget what expired longer ago than `CREDENTIALS_KEPT`; how many."""
        with self._ledger.writing("pruning.credentials") as connection:
            over = sa.and_(credentials.c.expires.is_not(None), credentials.c.expires < now - CREDENTIALS_KEPT)
            return connection.execute(sa.delete(credentials).where(over)).rowcount

    def tell(self, pruned: Mapping[str, int], *, now: datetime) -> None:
        """Write down what was forgotten."""
        with self._ledger.writing("pruning.tell") as connection:
            write_event(connection, "ledger.pruned", now=now, subject=Subject(), forgotten=dict(pruned))

    # -- upkeep --

    def take_stock(self) -> None:
        """Let the database count its rows, so that it goes on choosing the right indexes; bounded on SQLite."""
        if not self._is_sqlite:  # autovacuum does
            return
        with self._ledger.writing("pruning.stock") as connection:
            connection.exec_driver_sql("PRAGMA analysis_limit=1000")
            connection.exec_driver_sql("ANALYZE")

    def log_bytes(self) -> int:
        """Size of SQLite's write-ahead log; 0 on a server."""
        path = self._ledger.engine.url.database
        if not self._is_sqlite or path is None:
            return 0
        try:
            return os.stat(f"{path}-wal").st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self) -> bool:
        """
        Bring SQLite's write-ahead log into the database and begin it anew; whether that could be done.

        Commits do the former by themselves. The latter needs a moment in which nobody reads from the log, and where
        readers follow each other closely there is none: then it grows. So we ask for one, for a second.
        """
        if not self._is_sqlite:
            return True
        with self._ledger.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            cursor = raw.cursor()
            (patience,) = cursor.execute("PRAGMA busy_timeout").fetchone()
            try:
                cursor.execute(f"PRAGMA busy_timeout={_CHECKPOINT_MILLISECONDS}")
                return not cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                cursor.execute(f"PRAGMA busy_timeout={patience}")


def lasting(document: str) -> str:
    """A tag document with its lasting tags alone."""
    values = json.loads(document)
    left = {name: values[name] for name in LASTING_NAMES if name in values}
    return json.dumps(left, ensure_ascii=False, separators=(",", ":"))
