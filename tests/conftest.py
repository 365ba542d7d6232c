"""What every suite may use: the house's database on SQLite, and on PostgreSQL where it is installed."""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from shared.database import connect, upgrade
from shared.testing import free_port


def find_postgres():
    """The folder of PostgreSQL's programs, or None."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory):
    """A PostgreSQL server of this session, which ends with it."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    data = folder / "data"
    options: dict[str, Any] = {}
    if os.getuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            user = pwd.getpwnam("nobody")
        data.mkdir()
        os.chown(data, user.pw_uid, user.pw_gid)
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
                parent.chmod(0o755)
        options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    environment = {**os.environ, "HOME": str(data), "LC_ALL": "C"}
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "fourfold", "--auth", "trust", "-E", "UTF8"],
        check=True,
        capture_output=True,
        env=environment,
        cwd="/",
        **options,
    )
    port = free_port()
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", data, "-c", "fsync=off"],
        env=environment,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )
    try:
        for _ in range(100):
            ready = subprocess.run([programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True)
            if ready.returncode == 0:
                break
            time.sleep(0.1)
        yield f"postgresql+psycopg://fourfold@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


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
    plain = postgres_url.replace("+psycopg", "")
    with psycopg.connect(f"{plain}/postgres", autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    engine = _house(f"{postgres_url}/{name}")
    yield engine
    engine.dispose()
