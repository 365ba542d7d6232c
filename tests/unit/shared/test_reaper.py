"""No accepted job is forgotten: what is published when, and what an absent broker or database does."""

import time

import pytest

from shared.jobs import store as jobs
from shared.jobs.memory import MemoryJobStore
from shared.jobs.model import Job, new_job_id
from shared.jobs.queue import MemoryQueue, celery_app, task_id
from shared.jobs.reaper import Reaper, publish_forgotten, publish_new
from shared.settings import Settings


@pytest.fixture
def store():
    return MemoryJobStore()


def submitted(store):
    return store.submit(Job(new_job_id(), "train", "toy", "train.cpu", {}, time.time()))[0]


class Absent(MemoryQueue):
    """A broker that is away."""

    def publish(self, job):
        raise ConnectionError("no broker")

    def waiting(self):
        raise ConnectionError("no broker")


def test_a_new_job_is_published_once(store):
    queue = MemoryQueue()
    job = submitted(store)
    assert publish_new(store, queue) == 1
    assert publish_new(store, queue) == 0
    assert [item.id for item in queue.jobs] == [job.id]


def test_only_what_the_broker_forgot_is_published_again(store):
    queue = MemoryQueue()
    job = submitted(store)
    publish_new(store, queue)
    assert publish_forgotten(store, queue, time.time() + 60) == 0
    queue.jobs.clear()
    assert publish_forgotten(store, queue, time.time()) == 0  # perhaps on its way
    assert publish_forgotten(store, queue, time.time() + 60) == 1
    assert [item.id for item in queue.jobs] == [job.id]


def test_a_requeued_job_is_another_task(store):
    queue = MemoryQueue()
    job = submitted(store)
    publish_new(store, queue)
    jobs.claim(store, job.id, "w", 1)
    jobs.recover(store, time.time() + 2)
    publish_new(store, queue)
    assert [task_id(item) for item in queue.jobs] == [f"{job.id}.0", f"{job.id}.1"]


def test_an_absent_broker_delays_and_loses_nothing(store, caplog):
    job = submitted(store)
    away = Reaper(store, Absent())
    away.step()
    away.step()
    assert store.get(job.id).published_at is None
    queue = MemoryQueue()
    Reaper(store, queue).step()
    assert [item.id for item in queue.jobs] == [job.id]


def test_celery_has_the_settings_that_lose_no_job():
    app = celery_app(Settings(redis_url="unix:///run/x.sock", job_time_limit_seconds=7200))
    conf = app.conf
    assert conf.broker_url == "redis+socket:///run/x.sock"
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_max_tasks_per_child == 1
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.broker_transport_options["visibility_timeout"] > 7200
    assert conf.broker_transport_options["unacked_restore_interval"] == 1
    assert conf.accept_content == ["json"]
    with pytest.raises(ValueError, match="REDIS_URL"):
        celery_app(Settings(redis_url=None))
