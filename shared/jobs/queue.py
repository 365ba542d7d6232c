"""Tells workers of jobs: Celery on Redis or Valkey. A task holds only the job's id; the store decides who runs it."""

from __future__ import annotations

import re
from typing import Any, Protocol

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.jobs.model import Job
from shared.settings import Settings

QUEUES = ("train.cpu", "train.gpu", "batch")
TASK = "fourfold.run"
_TASK_ID = re.compile(rb"[0-9a-f]{22}\.\d+")


class Queue(Protocol):
    def publish(self, job: Job) -> None:
        """Hand the job to whichever worker listens to its queue; raises ConnectionError."""
        ...

    def waiting(self) -> set[str]:
        """Task ids that wait in the broker for a worker; raises ConnectionError.

        Those with a worker do not count: it claims the job at once, or it is dead and holds the task for ever.
        """
        ...


def task_id(job: Job) -> str:
    """Names one publication: a job that was requeued since is another task."""
    return f"{job.id}.{job.attempt}"


def celery_app(settings: Settings) -> Celery:
    """The Celery application on the settings' broker; raises ValueError without one."""
    if not settings.redis_url:
        raise ValueError("FOURFOLD_REDIS_URL must name a Redis or Valkey server")
    # Celery has its own word for a socket's URL.
    app = Celery("fourfold", broker=re.sub(r"^unix://", "redis+socket://", settings.redis_url))
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_default_queue=QUEUES[0],
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=1,
        # True would end the running job as REVOKED when the broker restarts, never to run again.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # A task that runs longer would be delivered a second time; the claim would refuse it, but why ask.
            "visibility_timeout": int(settings.job_time_limit_seconds) + 3600,
            "unacked_restore_interval": 1,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
        },
    )
    return app


class CeleryQueue:
    """A Queue on Celery's broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(self, job: Job) -> None:
        try:
            self._app.send_task(TASK, args=[job.id], task_id=task_id(job), queue=job.queue, retry=False)
        except OperationalError as error:
            raise ConnectionError(str(error)) from error

    def waiting(self) -> set[str]:
        try:
            with self._app.connection_for_read() as connection:
                client: Any = connection.default_channel.client
                messages: list[bytes] = [raw for name in QUEUES for raw in client.lrange(name, 0, -1)]
        except (OperationalError, OSError, RedisError) as error:
            raise ConnectionError(str(error)) from error
        return {found.decode() for message in messages for found in _TASK_ID.findall(message)}


class MemoryQueue:
    """A Queue in a list, for tests."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def publish(self, job: Job) -> None:
        self.jobs.append(job)

    def waiting(self) -> set[str]:
        return {task_id(job) for job in self.jobs}
