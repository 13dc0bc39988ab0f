"""Takes the schema's steps with Alembic, and knows the tables that each step left."""

import threading
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table

#: Where a ledger says which step was its last.
VERSION_TABLE = "alembic_version"
#: Alembic keeps what it does in names of a module, which threads share.
_ONE_AT_A_TIME = threading.Lock()


def configuration() -> Config:
    """Where the steps are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(connection: Connection, *, to: str = "head") -> None:
    """
    Take every step that this ledger has not taken yet, in one transaction: the caller's, where one has begun.

    Args:
        connection: Of the ledger.
        to: The last step to take.
    """
    config = configuration()
    config.attributes["connection"] = connection
    with _ONE_AT_A_TIME:
        command.upgrade(config, to)


@cache
def known() -> tuple[str, ...]:
    """All steps, the first one first."""
    found = ScriptDirectory.from_config(configuration()).walk_revisions()
    return tuple(sorted(script.revision for script in found))


@cache
def tables_at(step: str) -> tuple[Table, ...]:
    """
    The tables that a ledger has after *step*, each after those that it refers to.

    Found by taking the steps in a database in memory, so that no list of it need be kept; types are SQLite's.
    """
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        upgrade(connection, to=step)
        metadata = MetaData()
        metadata.reflect(connection)
    engine.dispose()
    return tuple(table for table in metadata.sorted_tables if table.name != VERSION_TABLE)
