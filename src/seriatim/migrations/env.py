"""Runs the migrations on the connection that Store.migrate hands over."""

from alembic import context

from seriatim.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
