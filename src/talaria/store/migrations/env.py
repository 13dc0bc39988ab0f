"""Run by Alembic: applies the steps over the connection it is handed, in one transaction."""

from alembic import context

from talaria.store.schema import metadata

connection = context.config.attributes["connection"].execution_options(writer=True)
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
