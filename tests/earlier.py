"""A home as an earlier version of Talaria left it: in the middle of its work, on either database."""

import sqlite3
import zipfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection

from talaria.store.backup import Backup, load, write_backup
from talaria.store.ledger import Ledger
from talaria.store.migrations.steps import upgrade
from talaria.store.restoring import replace

FIXTURES = Path(__file__).parent / "fixtures"
#: When it was left.
LEFT = datetime(2026, 1, 5, 8, 0, 44, tzinfo=UTC)


def put_0001(url: str, folder: Path) -> None:
    """
    A ledger of schema 0001 at *url*, in place of what is there, and its spool in `folder/home`.

    Its targets deliver to `folder/share` and `folder/other`.
    """
    text = (FIXTURES / "schema-0001.sql").read_text().replace("/FOLDER", str(folder))
    with zipfile.ZipFile(FIXTURES / "schema-0001.zip") as archive:
        archive.extractall(folder / "home")
    for part in ("tmp", "work"):
        (folder / "home" / "spool" / part).mkdir()
    for name in ("share", "other"):
        (folder / name).mkdir()
    with closing(sqlite3.connect(folder / "earlier.db")) as database:
        database.executescript(text)
    earlier = Ledger.open(f"sqlite:///{folder}/earlier.db")
    write_backup(earlier, folder / "earlier.backup", now=LEFT)
    earlier.close()
    ledger = Ledger.open(url)

    def fill(connection: Connection) -> None:
        with Backup.open(folder / "earlier.backup") as backup:
            upgrade(connection, to="0001")
            load(connection, backup)

    replace(ledger, fill, now=LEFT)
    ledger.close()
