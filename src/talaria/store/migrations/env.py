"""Run by Alembic: applies the steps over the connection it is handed, in one transaction."""

from typing import Any

import sqlalchemy as sa
from alembic import context

from talaria.failpoint import failpoint
from talaria.store.schema import metadata

connection = context.config.attributes["connection"].execution_options(writer=True)

#: Two that take the steps at once: the second waits for the first, and finds them taken.
_LOCK = 0x7A1A21A


def _passed(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:  # noqa: ARG001 - Alembic names them
    failpoint("migration.step.taken")


context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
    on_version_apply=_passed,
)
with context.begin_transaction():
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    context.run_migrations()
    failpoint("migration.steps.taken")
