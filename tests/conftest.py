"""What every suite may use: the house's database on SQLite, and on PostgreSQL where it is installed."""

from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from shared.database import connect, upgrade
from tests.postgres import postgres_server


@pytest.fixture(scope="session")
def postgres_url():
    """A PostgreSQL server of this session."""
    with postgres_server() as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed")
        yield url


def _house(url):
    upgrade(url)
    upgrade(url)  # a second start changes nothing
    return connect(url)


@pytest.fixture
def engine(tmp_path):
    """A database of the house with its newest schema."""
    engine = _house(f"sqlite:///{tmp_path / 'house.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(postgres_url):
    """The same on PostgreSQL: a database of this test."""
    name = f"t{uuid4().hex}"
    with psycopg.connect(postgres_url.replace("+psycopg", "") + "/postgres", autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    engine = _house(f"{postgres_url}/{name}")
    yield engine
    engine.dispose()
