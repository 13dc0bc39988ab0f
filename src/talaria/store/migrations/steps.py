"""Takes the schema's steps with Alembic, up to the last."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def configuration() -> Config:
    """Where the steps are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def upgrade(connection: Connection) -> None:
    """Take every step that this ledger has not taken yet, in one transaction."""
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
