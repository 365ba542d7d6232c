"""Jobs are counted for /metrics, in either database; and none is told while the database is away."""

import time
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine

from gateway.app import create_app
from gateway.control.metrics import jobs_text
from gateway.settings import GatewaySettings
from shared.jobs.model import Job, JobState, new_job_id
from shared.jobs.store import SqlJobStore
from shared.testing import running


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


async def test_the_gateway_tells_of_itself_of_jobs_and_of_services(tmp_path):
    async with running(create_app(GatewaySettings(home=tmp_path / "home"))) as client:
        text = (await client.get("/metrics")).text
        assert "fourfold_requests_in_flight" in text
        assert "fourfold_jobs_oldest_queued_seconds 0.0" in text
        unknown = await client.get("/metrics/nothing")
        assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:fourfold:problem:not-found")
        away = await client.get("/metrics/iqa")
        assert (away.status_code, away.json()["type"]) == (503, "urn:fourfold:problem:upstream-unavailable")


async def test_metrics_can_be_kept_for_administrators(tmp_path):
    async with running(create_app(GatewaySettings(home=tmp_path / "home", protect_metrics=True))) as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics/iqa")).status_code == 401
