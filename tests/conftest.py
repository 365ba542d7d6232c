"""What every suite may use: the house's database on SQLite, on PostgreSQL where it is installed; and a local S3."""

import logging
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


@pytest.fixture(scope="session")
def s3_server():
    """A local server that speaks S3, and is where s3fs looks."""
    from moto.server import ThreadedMotoServer  # a second to import, and few suites need it

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield
    server.stop()


@pytest.fixture
def bucket(s3_server):
    """The URL of an empty bucket of this test."""
    import s3fs

    url = f"s3://b{uuid4().hex}"
    s3fs.S3FileSystem().mkdir(url)
    return url
