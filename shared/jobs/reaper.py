"""Sees that no accepted job is forgotten: publishes what is QUEUED, takes jobs from workers that are gone; and tidies.

    python -m shared.jobs.reaper

Any number may run at once; each step is safe to repeat. A job is accepted by its row alone, so a broker that is down
or loses everything delays jobs and loses none.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import structlog

from shared.database import connect, upgrade
from shared.datasets import Datasets
from shared.jobs.files import JobFiles
from shared.jobs.queue import CeleryQueue, Queue, celery_app, task_id
from shared.jobs.retention import tidy
from shared.jobs.store import JobStore, SqlJobStore, published, recover
from shared.settings import Settings, load_settings
from shared.telemetry import configure_logging

PUBLISH_SECONDS = 0.2
RECOVER_SECONDS = 1.0
TIDY_SECONDS = 3600.0
FORGOTTEN_SECONDS = 5.0  # a QUEUED job published longer ago that waits in no queue is published again
log = structlog.get_logger(__name__)


def publish_new(store: JobStore, queue: Queue) -> int:
    """Tell the broker of the QUEUED jobs it was never told of; raises ConnectionError."""
    return _publish(store, queue, store.unpublished(0))


def publish_forgotten(store: JobStore, queue: Queue, now: float) -> int:
    """Tell the broker again of the QUEUED jobs that no longer wait in it; raises ConnectionError."""
    jobs = store.unpublished(now - FORGOTTEN_SECONDS)
    if not jobs:
        return 0
    waiting = queue.waiting()
    return _publish(store, queue, [job_id for job_id in jobs if task_id(store.get(job_id)) not in waiting])


def _publish(store: JobStore, queue: Queue, job_ids: list[str]) -> int:
    for job_id in job_ids:
        # In this order: a crash in between publishes twice, which the claim makes harmless.
        queue.publish(store.get(job_id))
        published(store, job_id)
    return len(job_ids)


class Reaper:
    """The loop over one store and one queue."""

    def __init__(self, store: JobStore, queue: Queue, tidy: Callable[[], int] = lambda: 0) -> None:
        self._store = store
        self._queue = queue
        self._tidy = tidy
        self._due = {"recover": 0.0, "forgotten": 0.0, "tidy": time.monotonic() + TIDY_SECONDS}
        self._troubled = ""

    def step(self) -> None:
        """Do what is due; a database or broker that is away is told of once and tried again at the next step."""
        try:
            if self._is_due("recover", RECOVER_SECONDS):
                for job in recover(self._store):
                    log.warning("a worker was lost", job=job.id, state=job.state, attempt=job.attempt)
            publish_new(self._store, self._queue)
            if self._is_due("forgotten", FORGOTTEN_SECONDS) and (
                again := publish_forgotten(self._store, self._queue, time.time())
            ):
                log.warning("the broker had forgotten jobs", jobs=again)
            if self._is_due("tidy", TIDY_SECONDS) and (gone := self._tidy()):
                log.info("deleted what nobody needs", files=gone)
            self._troubled = ""
        except Exception as error:
            trouble = type(error).__name__
            if trouble != self._troubled:
                log.error("jobs cannot be looked after now", error=f"{trouble}: {str(error)[:200]}")
            self._troubled = trouble

    def _is_due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + seconds
        return True


def main() -> None:
    settings = load_settings(Settings)
    configure_logging(settings, "reaper")
    upgrade(settings.database_location)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    engine = connect(settings.database_location)
    store, files, datasets = SqlJobStore(engine), JobFiles(settings.jobs_location), Datasets(engine, settings)
    queue = CeleryQueue(celery_app(settings))
    reaper = Reaper(store, queue, lambda: tidy(store, files, datasets, settings.job_files_days))
    (settings.home / "run").mkdir(parents=True, exist_ok=True)
    while not ended.is_set():
        reaper.step()
        (settings.home / "run" / "reaper.ready").touch()
        ended.wait(PUBLISH_SECONDS)


if __name__ == "__main__":
    main()
