"""Builds the images, brings the Compose file up, walks the product's whole loop on it, and kills it piece by piece.

    python -m tests.images        (make images-test)

Runs the commands of docs/compose.md in a copy of this tree, with the Docker engine that answers or a private one; where
no image registry can be reached, on stand-ins of Debian's packages. Prints a table; exits with 1 if a row is red, and
with 2 if the machine lacks something.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import skimage.data
from docker.errors import ContainerError

from fourfold import ApiError, Client, ConnectionFailed
from gateway.routes import SERVICES
from shared.testing import free_port
from tests.deployment.documents import blocks
from tests.deployment.walked import record
from tests.engine import CACHE, Engine, Missing, engine
from tests.standins import standins

ROOT = Path(__file__).parents[1]
PROJECT = "fourfold-test"
AIM_MB = {"gateway": 200, **{f"service-{name}": 450 for name in SERVICES}}  # above the base, unpacked
# Two compilers: ziglang's clang (186 MB) compiles, llvmlite's LLVM (180 MB) reads what is sent and marks it.
MOST_MB = {**AIM_MB, "service-inlining": 680}
TRAINING = {"epochs": 6, "synthetic_width": 256, "synthetic_share": 0.1, "images_per_epoch": 48, "batch_size": 8}
VICTIMS = ("worker", "valkey", "reaper", "postgres", "gateway", "iqa")
INSIDE = """
import json, shutil, sys
from importlib.metadata import distributions
from importlib.util import find_spec

ours = [place for place in sys.path if place.startswith("/opt/fourfold/")]
print(json.dumps({
    "torch": find_spec("torch") is not None,
    "tools": [name for name in ("cc", "gcc", "make", "uv") if shutil.which(name)],
    "packages": sorted([item.name.lower(), item.version] for item in distributions(path=ours)),
    "sbom": open("/opt/fourfold/sbom.cdx.json").read(),
}))
"""
Rows = list[tuple[bool, str, str]]


class Stack:
    """The Compose project in a copy of the tree, and where its gateway answers."""

    def __init__(self, engine: Engine, tree: Path, variables: dict[str, str]) -> None:
        self.engine = engine
        self.tree = tree
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        self.variables = {
            **variables,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_ANSI": "never",
            "FOURFOLD_ADDRESS": address,
            "FOURFOLD_TAG": "test",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    @property
    def key(self) -> str:
        lines = (self.tree / ".env").read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith("FOURFOLD_FIRST_KEY="))

    def documented(self, heading: str, number: int = 0) -> str:
        """Run a block of commands of docs/compose.md; what they print."""
        script = blocks(self.tree / "docs/compose.md")[heading][number]
        script = script.replace("http://127.0.0.1:8080", self.url)
        return self.engine.run(["bash", "-euc", script], variables=self.variables, cwd=self.tree)

    def compose(self, *arguments: str, files: Sequence[str] = ("docker-compose.yml",)) -> str:
        chosen = [part for file in files for part in ("--file", file)]
        return self.engine.run(["docker", "compose", *chosen, *arguments], variables=self.variables, cwd=self.tree)

    def containers(self) -> dict[str, Any]:
        """Compose service → container."""
        # Compose marks its images too, and what runs of them by hand has their labels, but no number.
        labels = [f"com.docker.compose.project={PROJECT}", "com.docker.compose.container-number"]
        found = self.engine.client.containers.list(all=True, filters={"label": labels})
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

    def end_to_end(self, *chosen: str) -> str:
        """The end-to-end tests that ask a gateway alone, from this tree; their last line. Raises RuntimeError."""
        command = [sys.executable, "-m", "pytest", "-q", "-m", "anywhere", *chosen, "tests/e2e"]
        own = {"FOURFOLD_TEST_URL": self.url, "FOURFOLD_TEST_KEY": self.key}
        return self.engine.run(command, variables=own, cwd=ROOT).strip().splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the built layers for the next run")
    keep = parser.parse_args(arguments).keep
    CACHE.mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    try:
        with tempfile.TemporaryDirectory() as folder, engine(Path(folder)) as found:
            stack = Stack(found, copy_tree(Path(folder) / "tree"), standins(found))
            try:
                walk(stack, rows)
            except BaseException:
                print(stack.compose("logs", "--tail", "30"))
                raise
            finally:
                print(stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5"))
    except Missing as error:
        print(f"images-test: {error}", file=sys.stderr)
        return 2
    finally:
        for fine, what, how in rows:
            print(f"{'ok ' if fine else 'RED'}  {what:<58} {how}")
        if not keep:
            shutil.rmtree(CACHE, ignore_errors=True)
    if not all(row[0] for row in rows):
        return 1
    record()
    return 0


def copy_tree(to: Path) -> Path:
    """This tree as a fresh clone would have it, with what is not committed yet."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    shutil.copy(Path(skimage.data.__file__).parent / "rocket.jpg", to / "photo.jpg")
    return to


def walk(stack: Stack, rows: Rows) -> None:
    # What the first command would read from .env, which is not there yet.
    names = ("POSTGRES_PASSWORD", "BROKER_PASSWORD", "FOURFOLD_FIRST_KEY")
    (stack.tree / ".env").write_text("".join(f"{name}=x\n" for name in names))
    with timed(rows, "images built"):
        stack.compose("build")
    examine(stack, rows)
    with timed(rows, "docs: a stack from nothing, and a photo scored"):
        told = stack.documented("Docker Compose")
    rows.append(("iqa/1" in told, "docs: what that said", " ".join(told.split())[-60:]))
    hardening(stack, rows)
    with timed(rows, "end-to-end tests on the stack"):
        told = stack.end_to_end()
    rows.append((True, "they said", told))
    with Client(stack.url, stack.key) as client:
        killed(stack, client, rows)
        backup(stack, client, rows)
    with timed(rows, "taken down"):
        stack.compose("down", "--volumes", "--timeout", "5")
    object_store(stack, rows)
    graphics(stack, rows)


def killed(stack: Stack, client: Client, rows: Rows) -> None:
    """Every piece in turn, around one training."""
    photo = stack.tree / "photo.jpg"
    job = client.train("iqa", "samples", TRAINING)["id"]
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


def backup(stack: Stack, client: Client, rows: Rows) -> None:
    """Jobs and models are lost and come back."""
    photo = stack.tree / "photo.jpg"
    before = {job["id"]: job["state"] for job in client.jobs()}
    versions = client.model("iqa")["versions"]
    stack.documented("Back up and restore")
    emptied = "DELETE FROM job_points; DELETE FROM jobs"
    stack.compose("exec", "-T", "postgres", "psql", "-U", "fourfold", "-qc", emptied, "fourfold")
    stack.compose("exec", "-T", "gateway", "sh", "-c", "rm -r /state/models/iqa")
    lost = not client.jobs()
    with timed(rows, "docs: restored from the dump and the archive"):
        stack.documented("Back up and restore", 1)
        after = stack.until(lambda: {job["id"]: job["state"] for job in client.jobs()})
    rows.append((lost and after == before, "every job is back", f"{len(after)} jobs"))
    again = client.model("iqa")["versions"]
    stack.compose("restart", "iqa")
    stack.until(lambda: client.score(photo)["model"] == "iqa/1")
    rows.append((again == versions, "every version is back, and is loaded", f"{len(again)} versions of iqa"))


def object_store(stack: Stack, rows: Rows) -> None:
    """The same with S3 in the place of the volume."""
    with timed(rows, "docs: a stack with an object store"):
        stack.documented("Files in an object store")
    with timed(rows, "a training promoted, served and rolled back on it"):
        stack.end_to_end("-k", "from_photographs")
    left = stack.compose("exec", "-T", "gateway", "find", "/state", "-type", "f")
    rows.append((not left.strip(), "nothing is in the volume then", left.strip()[:60]))
    listing = "import s3fs; print(len(s3fs.S3FileSystem().find('fourfold/models/iqa')))"
    files = ("docker-compose.yml", "compose.s3.yml")
    count = int(stack.compose("exec", "-T", "gateway", "python", "-c", listing, files=files))
    rows.append((count > 5, "and the models are in the bucket", f"{count} objects of iqa"))


def graphics(stack: Stack, rows: Rows) -> None:
    """Compose reads compose.gpu.yml as it is meant."""
    files = ("docker-compose.yml", "compose.gpu.yml")
    read = json.loads(stack.compose("config", "--format", "json", files=files))["services"]["worker-gpu"]
    (device,) = read["deploy"]["resources"]["reservations"]["devices"]
    fine = device["capabilities"] == ["gpu"] and read["build"]["target"] == "worker-gpu"
    fine &= read["environment"]["FOURFOLD_QUEUES"] == '["train.gpu"]' and read["cap_drop"] == ["ALL"]
    rows.append((fine, "compose.gpu.yml is read as a worker with a GPU", json.dumps(device)[:60]))


def examine(stack: Stack, rows: Rows) -> None:
    """What is in the images: size, user, torch, tools, the list of packages."""
    client = stack.engine.client
    base = client.images.get(stack.variables.get("BASE", "python:3.11-slim-bookworm")).attrs["Size"]
    for name in (*AIM_MB, "worker"):
        image = client.images.get(f"fourfold-{name}:test")
        size = (image.attrs["Size"] - base) / 1e6
        most = MOST_MB.get(name)
        aim = f" (aim {AIM_MB[name]})" if most else ""
        rows.append((most is None or size <= most, f"{name}: size above the base", f"{size:.0f} MB{aim}"))
        rows.append((image.attrs["Config"]["User"] == "10001:10001", f"{name}: runs as", image.attrs["Config"]["User"]))
        try:
            inside = json.loads(client.containers.run(image, ["python", "-c", INSIDE], remove=True))
        except ContainerError as error:
            rows.append((False, f"{name}: looked into", str(error)[-200:]))
            continue
        rows.append((inside["torch"] == (name == "worker"), f"{name}: has torch", str(inside["torch"])))
        rows.append((not inside["tools"], f"{name}: has build tools", ", ".join(inside["tools"]) or "no"))
        sbom = json.loads(inside["sbom"])  # the tool that wrote it has validated it
        listed = sorted([item["name"].lower(), item["version"]] for item in sbom["components"])
        fine = listed == inside["packages"] and (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
        fine &= image.labels.get("fourfold.sbom") == "/opt/fourfold/sbom.cdx.json"
        rows.append(
            (fine, f"{name}: lists its packages (CycloneDX 1.6)", f"{len(listed)} of {len(inside['packages'])}")
        )


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
        raise
    rows.append((True, what, f"{time.monotonic() - start:.1f} s"))
    print(f"{what}: {rows[-1][2]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
