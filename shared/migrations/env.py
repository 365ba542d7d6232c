"""Alembic's entry: runs the migrations on the engine of the house."""

from __future__ import annotations

from alembic import context

from shared.database import Base, connect

engine = connect(context.config.attributes["url"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
