"""Jobs are counted for /metrics, in either database; and none is told while the database is away."""

import time
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine

from gateway.control.metrics import jobs_text
from shared.jobs.model import Job, JobState, new_job_id
from shared.jobs.store import SqlJobStore


@pytest.fixture(params=["engine", "postgres"])
def database(request):
    return request.getfixturevalue(request.param)


def told(engine):
    families = text_string_to_metric_families(jobs_text(engine).decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_jobs_are_counted_by_state(database):
    assert told(database) == {("fourfold_jobs_oldest_queued_seconds",): 0}
    store = SqlJobStore(database)
    waiting = Job(new_job_id(), "train", "toy", "train.cpu", {}, time.time() - 90, created_by="me")
    store.submit(waiting)
    store.submit(replace(waiting, id=new_job_id(), created_at=time.time(), kind="validate"))
    store.submit(replace(waiting, id=new_job_id(), state=JobState.FAILED))
    found = told(database)
    assert found["fourfold_jobs", "toy", "train", "queued"] == 1
    assert found["fourfold_jobs", "toy", "validate", "queued"] == 1
    assert found["fourfold_jobs", "toy", "train", "failed"] == 1
    assert 90 <= found["fourfold_jobs_oldest_queued_seconds",] < 100


def test_a_database_that_is_away_spoils_nothing(tmp_path):
    assert jobs_text(create_engine(f"sqlite:///{tmp_path / 'nowhere' / 'house.db'}")) == b""
