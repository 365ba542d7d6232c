"""The worker's process: a Celery worker whose children run one job each.

    python -m shared.jobs.worker

torch is imported in the children only; one that were used before the fork would deadlock them. On SIGTERM the running
job is told, goes back to the queue with its checkpoint, and the worker ends.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.signals import worker_ready, worker_shutting_down
from filelock import FileLock, Timeout
from pydantic import Field

from shared.database import connect, upgrade
from shared.datasets import Datasets
from shared.jobs.events import event_log
from shared.jobs.files import JobFiles
from shared.jobs.lifeline import end_with_parent
from shared.jobs.queue import TASK, celery_app
from shared.jobs.runner import Workplace, run_job
from shared.jobs.store import SqlJobStore
from shared.repository import ModelRepository
from shared.settings import Settings, load_settings
from shared.telemetry import configure_logging


class WorkerSettings(Settings):
    """What a worker can be told."""

    worker_name: str = Field(default="worker", pattern=r"^[a-z0-9-]{1,40}$")
    queues: tuple[str, ...] = Field(default=("train.cpu", "batch"), description="JSON list of queues to work for.")
    concurrency: int = Field(default=1, ge=1, le=64, description="Jobs at once; for train.gpu, one for each GPU.")
    recipes: str = Field(default="services", description="Package with a folder of recipes for each domain.")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by CUDA_VISIBLE_DEVICES or else all; found without torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


def hold_gpus(gpus: list[str], folder: Path, count: int) -> list[FileLock]:
    """Take up to `count` GPUs that nobody has, for this process alone, and hide the others before torch is imported."""
    held: dict[str, FileLock] = {}
    for name in gpus:
        if len(held) == count:
            break
        lock = FileLock(folder / f"gpu-{name.replace('/', '_')}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        held[name] = lock
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
    return list(held.values())


def main() -> None:
    settings = load_settings(WorkerSettings)
    configure_logging(settings, settings.worker_name)
    upgrade(settings.database_location)
    run = settings.home / "run"
    run.mkdir(parents=True, exist_ok=True)
    gpus = visible_gpus()
    shutting_down = mmap.mmap(-1, 1)  # one byte that the parent and its children share
    app = celery_app(settings)

    def on_shutdown(**_: Any) -> None:
        shutting_down[0] = 1

    def on_ready(**_: Any) -> None:
        (run / f"{settings.worker_name}.ready").touch()

    worker_shutting_down.connect(on_shutdown)
    worker_ready.connect(on_ready)

    def run_task(job_id: str) -> None:
        # Everything with a connection is made here, in the child, which is not to outlive the worker.
        end_with_parent()
        with suppress(OSError):  # Linux only: where memory ends, the kernel ends a training, and not the broker
            Path("/proc/self/oom_score_adj").write_text("500")
        engine = connect(settings.database_location)
        store = SqlJobStore(engine)
        wanted = store.get(job_id).config.get("processes", 1)
        held = hold_gpus(gpus if "train.gpu" in settings.queues else [], run, wanted)
        place = Workplace(
            settings=settings,
            store=store,
            events=event_log(settings.redis_url),
            files=JobFiles(settings.jobs_location),
            datasets=Datasets(engine, settings),
            models=ModelRepository(settings.models_location),
            shutting_down=lambda: shutting_down[0] == 1,
            recipes=settings.recipes,
        )
        try:
            run_job(place, job_id)
        finally:
            engine.dispose()
            for lock in held:
                lock.release()

    app.task(name=TASK)(run_task)
    argv = ["worker", "--pool", "prefork", "--concurrency", str(settings.concurrency), "--loglevel", "WARNING"]
    argv += ["--queues", ",".join(settings.queues), "--hostname", f"{settings.worker_name}@%h"]
    argv += ["--without-gossip", "--without-mingle"]
    app.worker_main(argv)


if __name__ == "__main__":
    main()
