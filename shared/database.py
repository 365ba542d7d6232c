"""The house's one relational database: SQLite in write-ahead mode when embedded, PostgreSQL when deployed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import URL, Engine, MetaData, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase

_MIGRATION_LOCK = 0x464F5552  # any number that all processes agree on


class Base(DeclarativeBase):
    """Every table's base; its names are fixed so that migrations can refer to them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
        }
    )


def connect(url: str) -> Engine:
    """An engine for `url`; a SQLite database gets write-ahead logging and waits for locks."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # an accepted write survives a power cut
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def upgrade(url: str) -> None:
    """Bring the schema to the newest revision. Several processes may call it at once."""
    # Imported here: a service never migrates, and would start half a second later.
    from alembic import command
    from alembic.config import Config

    parsed = make_url(url)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["url"] = url
    with _alone(parsed):
        command.upgrade(config, "head")


@contextmanager
def _alone(url: URL) -> Iterator[None]:
    """Hold the right to migrate the database at `url`."""
    if url.get_backend_name() == "sqlite":
        if not url.database:
            yield  # in memory: nobody else sees it
            return
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{url.database}.migrate"):
            yield
        return
    # Without a pool the connection ends with the `with`, and the lock with the connection.
    with create_engine(url, poolclass=NullPool).connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        yield


if __name__ == "__main__":
    # A deployment's one-shot, so that a failing migration is seen before anything serves.
    from shared.settings import Settings, load_settings

    upgrade(load_settings(Settings).database_location)
