"""The drill: what `fourfold up` starts, with everything around running jobs killed at random moments.

    python -m tests.drill --rounds 28

Real processes, a real Valkey, PostgreSQL where it is installed; only the recipe is a quick one. Prints a table and
ends with 1 if a row is red.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from PIL import Image
from rich.console import Console
from rich.table import Table

from fourfold import ApiError, Client
from fourfold.errors import ConnectionFailed
from shared.database import connect
from shared.jobs.queue import CeleryQueue, celery_app
from shared.jobs.store import SqlJobStore
from shared.repository import ModelRepository
from shared.settings import Settings
from tests.postgres import postgres_server
from tests.running import Deployed, Up

EPOCHS = 4
PATIENCE = 120.0  # seconds for all jobs of a round
CONFIG = {"epochs": EPOCHS, "batch_size": 64}


@dataclass
class Row:
    """What one drill did to the jobs and requests around it."""

    name: str
    rounds: int = 0
    jobs: int = 0
    attempts: int = 0
    seconds: float = 0.0
    lost: int = 0
    twice: int = 0
    other_weights: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def red(self) -> bool:
        return bool(self.lost or self.twice or self.other_weights or self.notes)


class Drill:
    def __init__(self, folder: Path, database_url: str | None, seed: int) -> None:
        self.random = random.Random(seed)
        self.models_folder = folder / "models"
        self.models_folder.mkdir()
        self.small_disk = _mount(self.models_folder)
        environment = {
            "FOURFOLD_RECIPES": "tests.recipes",
            "FOURFOLD_LEASE_SECONDS": "2",
            "FOURFOLD_QUEUES": '["train.cpu", "batch"]',  # both workers race for everything
            "FOURFOLD_MODELS_URL": str(self.models_folder),
            "FOURFOLD_LOG_LEVEL": "warning",
        }
        if database_url is not None:
            environment["FOURFOLD_DATABASE_URL"] = database_url
        self.database_url = database_url
        self.up = Up(folder / "home", **environment)
        self.client = Client(self.up.url, self.up.key)
        self.settings = Settings(
            home=self.up.home, redis_url=f"unix://{self.up.home / 'run' / 'valkey.sock'}", database_url=database_url
        )
        self.engine = connect(self.settings.database_location)
        self.store = SqlJobStore(self.engine)
        self.models = ModelRepository(str(self.models_folder))
        self.number = 0
        self.published: set[int] = {1}
        self.weights: str | None = None
        data = folder / "photos"
        data.mkdir()
        (data / "one.txt").write_text("one")
        self.dataset = self.client.add_dataset(data, "iqa", "drill")["digest"]
        _until(lambda: self.client.dataset(self.dataset)["state"] == "valid", 30, "the data set was not validated")
        self.traffic = Traffic(self.up)

    def close(self) -> None:
        self.traffic.stop()
        self.client.close()
        self.up.stop()
        self.engine.dispose()
        if self.small_disk:
            subprocess.run(["umount", str(self.models_folder)], check=False)

    # -- pieces

    def submit(self, **config: Any) -> str:
        """A job's id; a submission whose answer was lost is repeated with its key, and makes one job."""
        self.number += 1
        key = f"drill-{self.number}"
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                return self.client.train("iqa", self.dataset, {**CONFIG, **config}, idempotency_key=key)["id"]
            except (ApiError, ConnectionFailed) as error:
                if time.monotonic() > ends or (isinstance(error, ApiError) and error.status < 500):
                    raise
                time.sleep(0.1)

    def ended(self, job_id: str) -> bool:
        return _job(self.store, job_id).finished_at is not None

    def processes(self, *words: str) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.Process(self.up.process.pid).children():
            with suppress(psutil.Error):
                if all(any(word in part for part in process.cmdline()) for word in words):
                    found.append(process)
        return found

    def kill(self, target: str) -> None:
        match target:
            case "pool child":
                victims = [child for worker in self.processes("shared.jobs.worker") for child in worker.children()]
            case "worker":
                victims = self.processes("shared.jobs.worker")
            case "broker":
                victims = self.processes("valkey")
            case "service":
                victims = self.processes("services.iqa")
            case "gateway":
                victims = self.processes("gateway.app")
            case "reaper":
                victims = self.processes("shared.jobs.reaper")
            case "database connections":
                with psycopg.connect((self.database_url or "").replace("+psycopg", "")) as admin:
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
                return
            case _:
                raise ValueError(target)
        for victim in victims:
            with suppress(psutil.Error):
                victim.kill()

    # -- rounds

    def kill_round(self, target: str, row: Row) -> None:
        started = time.monotonic()
        job_ids = [self.submit() for _ in range(2)]
        _until(lambda: any(_job(self.store, job_id).attempt for job_id in job_ids), PATIENCE, "no job started")
        time.sleep(self.random.uniform(0, EPOCHS * 0.3 + 0.5))
        self.kill(target)
        job_ids.append(self.submit())  # one more while it is down
        with suppress(TimeoutError):
            _until(lambda: all(self.ended(job_id) for job_id in job_ids), PATIENCE, "")
        for job_id in job_ids:
            self.check(job_id, row)
        row.rounds += 1
        row.seconds += time.monotonic() - started

    def check(self, job_id: str, row: Row) -> None:
        """Count what is wrong with a job that should have succeeded."""
        job = _job(self.store, job_id)
        row.jobs += 1
        row.attempts += job.attempt
        if job.state != "succeeded" or job.result is None:
            row.lost += 1
            row.notes.append(f"{job_id} is {job.state}: {job.problem}")
            return
        made = [v for v in self.models.versions("iqa") if self.models.manifest("iqa", v).job == job_id]
        row.twice += made != [job.result["version"]]
        self.published |= set(made)
        weights = self.models.manifest("iqa", made[0]).files["model.onnx"].sha256
        self.weights = self.weights or weights
        row.other_weights += weights != self.weights

    def duplicate_delivery(self, row: Row) -> None:
        job_id = self.submit()
        queue = CeleryQueue(celery_app(self.settings))
        for _ in range(5):
            queue.publish(_job(self.store, job_id))
        _until(lambda: self.ended(job_id), PATIENCE, "the job did not end")
        queue.publish(_job(self.store, job_id))
        time.sleep(1)
        self.check(job_id, row)
        if row.attempts != 1:
            row.notes.append(f"{row.attempts} attempts")

    def cancel_everywhere(self, row: Row) -> None:
        """Waiting (both workers are busy), running, and ended."""
        busy = [self.submit(epochs=40) for _ in range(2)]
        waiting = self.submit()
        _until(lambda: all(_job(self.store, job_id).step for job_id in busy), PATIENCE, "the jobs did not start")
        for job_id in (waiting, *busy):
            self.client.cancel_job(job_id)
        _until(lambda: all(self.ended(job_id) for job_id in (waiting, *busy)), PATIENCE, "they did not stop")
        states = [_job(self.store, job_id).state for job_id in (waiting, *busy)]
        if set(states) != {"cancelled"}:
            row.notes.append(f"states {states}")
        finished = self.submit()
        _until(lambda: self.ended(finished), PATIENCE, "the job did not end")
        try:
            self.client.cancel_job(finished)
            row.notes.append("an ended job was cancelled")
        except ApiError as error:
            if error.status != 409:
                row.notes.append(str(error))
        self.check(finished, row)

    def full_disk(self, row: Row) -> None:
        filler = self.models_folder / "filler"
        free = shutil.disk_usage(self.models_folder).free
        filler.write_bytes(b"x" * max(0, free - 100_000))
        job_id = self.submit(batch_size=512)  # a bundle of 2 MB
        _until(lambda: self.ended(job_id), PATIENCE, "the job did not end")
        filler.unlink()
        job = _job(self.store, job_id)
        row.jobs += 1
        if job.problem is None or "disk is full" not in job.problem["title"]:
            row.notes.append(f"{job.state} with {job.problem}")
        if set(self.models.versions("iqa")) - self.published:
            row.notes.append("something was published")
        again = self.submit()
        _until(lambda: self.ended(again), PATIENCE, "the job did not end")
        self.check(again, row)

    def flipped_bit(self, row: Row) -> None:
        job_id = self.submit()
        _until(lambda: self.ended(job_id), PATIENCE, "the job did not end")
        self.check(job_id, row)
        version = (_job(self.store, job_id).result or {})["version"]
        graph = self.models_folder / "iqa" / str(version) / "model.onnx"
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
        self.client.set_alias("iqa", "champion", version, force=True, reason="drill")
        time.sleep(2)
        rows = self.client.request("POST", "/v2/repository/index")
        reasons = [row["reason"] for row in rows if row["name"] == "iqa" and row.get("reason")]
        if not any("SHA-256" in reason for reason in reasons):
            row.notes.append(f"the reason is not told: {rows}")
        self.client.set_alias("iqa", "champion", 1, reason="drill")


class Traffic:
    """Scores an image all the time; every answer must come from the one whole model."""

    def __init__(self, up: Up | Deployed, pause: float = 0.02) -> None:
        self.answers = 0
        self.refusals = 0
        self.wrong: list[str] = []
        self._up = up
        self._pause = pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        buffer = io.BytesIO()
        Image.effect_noise((160, 120), 60).convert("RGB").save(buffer, "PNG")
        with Client(self._up.url, self._up.key, timeout=10) as client:
            while not self._ended.wait(self._pause):
                try:
                    answer = client.score(buffer.getvalue())
                    self.answers += 1
                    if answer["model"] != "iqa/1" or not 0 <= answer["score"] <= 100:
                        self.wrong.append(str(answer)[:200])
                except ApiError as error:
                    self.refusals += 1
                    if error.status != 503:
                        self.wrong.append(str(error))
                except ConnectionFailed:
                    self.refusals += 1

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def _job(store: SqlJobStore, job_id: str) -> Any:
    for _ in range(50):
        try:
            return store.get(job_id)
        except Exception:  # the drill's own connection was killed too
            time.sleep(0.1)
    return store.get(job_id)


def _until(condition: Callable[[], bool], seconds: float, told: str) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(told)
        time.sleep(0.05)


def _mount(folder: Path) -> bool:
    """Give `folder` a disk of its own that can be filled; False where this user may not."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    return os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def drill(rounds: int, seed: int, database_url: str | None) -> tuple[list[Row], Traffic]:
    """Run `rounds` kills in turn over the targets, then each other drill once."""
    targets = ["pool child", "worker", "broker", "service", "gateway", "reaper"]
    if database_url is not None:
        targets.append("database connections")
    rows = {target: Row(f"kill -9: {target}") for target in targets}
    with tempfile.TemporaryDirectory() as folder:
        running = Drill(Path(folder), database_url, seed)
        try:
            for number in range(rounds):
                target = targets[number % len(targets)]
                running.kill_round(target, rows[target])
            others: dict[str, Callable[[Row], None]] = {
                "task delivered six times": running.duplicate_delivery,
                "cancelled waiting, running, ended": running.cancel_everywhere,
                "bundle with a flipped bit": running.flipped_bit,
            }
            if running.small_disk:
                others["disk full while publishing"] = running.full_disk
            for name, run in others.items():
                row = rows[name] = Row(name, rounds=1)
                started = time.monotonic()
                try:
                    run(row)
                except (TimeoutError, ApiError, ConnectionFailed) as error:
                    row.notes.append(str(error))
                row.seconds = time.monotonic() - started
        finally:
            running.close()
    return [row for row in rows.values() if row.rounds], running.traffic


def show(rows: list[Row], traffic: Traffic) -> bool:
    """Print the table; whether nothing is red."""
    table = Table("drill", "rounds", "jobs", "attempts", "lost", "published twice", "other weights", "s a round", "")
    for row in rows:
        counts = (row.rounds, row.jobs, row.attempts, row.lost, row.twice, row.other_weights)
        verdict = "RED " + "; ".join(row.notes)[:300] if row.red else "ok"
        table.add_row(row.name, *(str(count) for count in counts), f"{row.seconds / row.rounds:.1f}", verdict)
    Console(width=160).print(table)
    print(
        f"{traffic.answers} images scored meanwhile by the whole model, {traffic.refusals} told to come back, "
        f"{len(traffic.wrong)} wrong {traffic.wrong[:2]}"
    )
    return not any(row.red for row in rows) and not traffic.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=28, help="kills, in turn over the targets")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with postgres_server() as url:
        print(f"database: {'PostgreSQL' if url else 'SQLite (PostgreSQL is not installed)'}", flush=True)
        rows, traffic = drill(given.rounds, given.seed, url and f"{url}/postgres")
    sys.exit(0 if show(rows, traffic) else 1)


if __name__ == "__main__":
    main()
