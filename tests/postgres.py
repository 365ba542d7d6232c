"""A PostgreSQL server of one's own, where PostgreSQL is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.testing import free_port


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return next((path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


@contextmanager
def postgres_server() -> Iterator[str | None]:
    """The URL of a server that ends with the `with`, without a database's name; None where it is not installed."""
    programs = _programs()
    if programs is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="fourfold-postgres-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data"
        data.mkdir()
        options: dict[str, Any] = {"cwd": "/", "env": {**os.environ, "HOME": folder, "LC_ALL": "C"}}
        if os.getuid() == 0:  # the server refuses to run as root
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            Path(folder).chmod(0o755)
            os.chown(data, user.pw_uid, user.pw_gid)
            options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        made = [programs / "initdb", "-D", data, "-U", "fourfold", "--auth", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, **options)
        port = free_port()
        command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", data]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen([*command, "-c", "fsync=off"], **quiet, **options)
        try:
            asked = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(asked, **quiet, **options).returncode != 0:
                if server.poll() is not None:
                    raise RuntimeError("PostgreSQL did not start")
                time.sleep(0.05)
            yield f"postgresql+psycopg://fourfold@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # ends its connections too
            server.wait(30)
