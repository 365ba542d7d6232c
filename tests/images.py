"""Builds the images, brings the Compose file up, walks the product's whole loop on it, and kills it piece by piece.

    python -m tests.images        (make images-test)

Uses the Docker engine that answers, or a private one; where no image registry can be reached, stand-ins of Debian's
packages. Prints a table; exits with 1 if a row is red, with 2 if the machine lacks something.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import skimage.data

from fourfold import ApiError, Client, ConnectionFailed
from tests.engine import CACHE, Engine, Missing, engine
from tests.standins import standins

ROOT = Path(__file__).parents[1]
PROJECT = "fourfold-test"
SIZES_MB = {"gateway": 200, "service": 450}  # above the base, unpacked
TRAINING = {"epochs": 6, "synthetic_width": 256, "synthetic_share": 0.1, "images_per_epoch": 48, "batch_size": 8}
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
VICTIMS = ("worker", "valkey", "reaper", "postgres", "gateway", "iqa")
PASSWORD = "PGPASSWORD=$POSTGRES_PASSWORD"
Rows = list[tuple[bool, str, str]]


class Stack:
    """The Compose project, and a client of its gateway."""

    def __init__(self, engine: Engine, variables: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.key = f"ff_{secrets.token_urlsafe(32)}"
        self.engine = engine
        self.variables = {
            **variables,
            "POSTGRES_PASSWORD": secrets.token_hex(16),
            "BROKER_PASSWORD": secrets.token_hex(16),
            "FOURFOLD_FIRST_KEY": self.key,
            "FOURFOLD_ADDRESS": f"127.0.0.1:{port}",
            "FOURFOLD_TAG": "test",
        }
        self.url = f"http://127.0.0.1:{port}"

    def compose(self, *arguments: str) -> str:
        files = ("compose", "--ansi", "never", "--project-name", PROJECT, "--file", str(ROOT / "docker-compose.yml"))
        return self.engine.docker(*files, *arguments, variables=self.variables)

    def containers(self) -> dict[str, Any]:
        """Compose service → container."""
        found = self.engine.client.containers.list(all=True, filters={"label": f"com.docker.compose.project={PROJECT}"})
        return {one.labels["com.docker.compose.service"]: one for one in found}

    def until(self, what: Callable[[], Any], seconds: float = 120.0) -> Any:
        """The first true answer of `what`, which may fail meanwhile."""
        end = time.monotonic() + seconds
        while True:
            try:
                if answer := what():
                    return answer
            except (ApiError, ConnectionFailed, requests.RequestException):
                pass
            if time.monotonic() > end:
                raise TimeoutError(f"nothing after {seconds:.0f} s")
            time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the built layers for the next run")
    keep = parser.parse_args().keep
    CACHE.mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    try:
        with tempfile.TemporaryDirectory() as folder, engine(Path(folder)) as found:
            stack = Stack(found, standins(found))
            try:
                walk(stack, Path(folder), rows)
            except BaseException:
                print(stack.compose("logs", "--tail", "30"))
                raise
            finally:
                print(stack.compose("down", "--volumes", "--timeout", "5"))
    except Missing as error:
        print(f"images-test: {error}", file=sys.stderr)
        return 2
    finally:
        if not keep:
            shutil.rmtree(CACHE, ignore_errors=True)
    for fine, what, how in rows:
        print(f"{'ok ' if fine else 'RED'}  {what:<58} {how}")
    return 0 if all(row[0] for row in rows) else 1


def walk(stack: Stack, folder: Path, rows: Rows) -> None:
    with timed(rows, "images built"):
        stack.compose("build")
    examine(stack, rows)
    with timed(rows, "everything up and healthy"):
        stack.compose("up", "--detach", "--wait", "--wait-timeout", "300")
    hardening(stack, rows)
    photo = Path(skimage.data.__file__).parent / "coffee.png"
    photos = folder / "photos"
    photos.mkdir()
    for name in PHOTOS:
        shutil.copy(Path(skimage.data.__file__).parent / name, photos)
    with Client(stack.url, stack.key) as client:
        rows.append((client.score(photo)["model"] == "iqa/1", "a photo is scored", "iqa/1"))
        with timed(rows, "data set added and validated"):
            client.add_dataset(photos, "iqa", "photos")
            stack.until(lambda: client.dataset("photos")["state"] in ("valid", "flawed"))
        job = client.train("iqa", "photos", TRAINING | {"epochs": 1})["id"]
        with timed(rows, "training watched to its end by its events"):
            last = list(client.job_events(job))[-1]
        rows.append((client.job(job)["state"] == "succeeded", "it succeeded", json.dumps(last)[:60]))
        version = client.job(job)["result"]["version"]
        client.set_alias("iqa", "champion", version, force=True, reason="images-test")
        with timed(rows, "promotion is served"):
            stack.until(lambda: client.score(photo)["model"] == f"iqa/{version}", 20)
        client.rollback("iqa")
        stack.until(lambda: client.score(photo)["model"] == "iqa/1", 20)
        rows.append((True, "rolled back", "iqa/1"))
        job = client.train("iqa", "photos", TRAINING)["id"]
        for victim in VICTIMS:
            stack.until(lambda: client.job(job)["state"] in ("running", "succeeded"))
            stack.containers()[victim].kill("SIGKILL")
            # Docker takes a kill by hand for a wish and does not restart what it ends.
            time.sleep(2)
            stack.compose("start", victim)
            with timed(rows, f"{victim} killed and back"):
                stack.until(lambda: client.score(photo)["model"] == "iqa/1")
        done = stack.until(lambda: (found := client.job(job))["state"] not in ("queued", "running") and found, 600)
        how = f"{done['state']}, attempt {done['attempt']}"
        rows.append((done["state"] == "succeeded", "the job that ran meanwhile", how))
        backup(stack, client, rows)


def backup(stack: Stack, client: Client, rows: Rows) -> None:
    """The database is lost and comes back from its dump, by the commands of docs/kubernetes.md."""
    before = {job["id"]: job["state"] for job in client.jobs()}
    database = ("exec", "--no-TTY", "postgres", "sh", "-c")
    stack.compose(*database, f"{PASSWORD} pg_dump -U fourfold -h 127.0.0.1 -Fc fourfold > /tmp/fourfold.dump")
    stack.compose(
        *database, f"{PASSWORD} psql -U fourfold -h 127.0.0.1 fourfold -qc 'DELETE FROM job_points; DELETE FROM jobs'"
    )
    lost = not client.jobs()
    restore = f"{PASSWORD} pg_restore -U fourfold -h 127.0.0.1 -d fourfold --clean --if-exists /tmp/fourfold.dump"
    stack.compose(*database, restore)
    after = stack.until(lambda: {job["id"]: job["state"] for job in client.jobs()})
    rows.append((lost and after == before, "the database came back from its dump", f"{len(after)} jobs"))


def examine(stack: Stack, rows: Rows) -> None:
    """What is in the images: size, user, torch."""
    client = stack.engine.client
    base = client.images.get(stack.variables.get("BASE", "python:3.11-slim-bookworm")).attrs["Size"]
    for name in ("gateway", "service", "worker"):
        image = client.images.get(f"fourfold-{name}:test")
        size = (image.attrs["Size"] - base) / 1e6
        most = SIZES_MB.get(name)
        aim = f" (aim {most})" if most else ""
        rows.append((most is None or size <= most, f"{name}: size above the base", f"{size:.0f} MB{aim}"))
        rows.append((image.attrs["Config"]["User"] == "10001:10001", f"{name}: runs as", image.attrs["Config"]["User"]))
        command = ["python", "-c", "import importlib.util as u; print(u.find_spec('torch') is not None)"]
        torch = client.containers.run(image, command, remove=True).decode().strip()
        rows.append((torch == str(name == "worker"), f"{name}: has torch", torch))


def hardening(stack: Stack, rows: Rows) -> None:
    found = stack.containers()
    published = {name for name, one in found.items() if any((one.attrs["HostConfig"]["PortBindings"] or {}).values())}
    rows.append((published == {"gateway"}, "only the gateway publishes a port", ", ".join(sorted(published))))
    for key, value in (("ReadonlyRootfs", True), ("CapDrop", ["ALL"]), ("SecurityOpt", ["no-new-privileges:true"])):
        odd = [name for name, one in found.items() if one.attrs["HostConfig"][key] != value]
        rows.append((not odd, f"{key} everywhere", ", ".join(odd)))


@contextmanager
def timed(rows: Rows, what: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    except Exception:
        rows.append((False, what, f"{time.monotonic() - start:.1f} s"))
        for row in rows:
            print(row)
        raise
    rows.append((True, what, f"{time.monotonic() - start:.1f} s"))
    print(f"{what}: {rows[-1][2]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
