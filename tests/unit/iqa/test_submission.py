"""POST /v1/iqa/training-jobs: what is accepted, what is not, and that one key makes one job."""

import hashlib
import time

import pytest

from services.iqa.api import DOMAIN
from shared.database import connect, upgrade
from shared.datasets import Datasets, FileOf, Finding, Report
from shared.jobs.model import Job, new_job_id
from shared.jobs.store import SqlJobStore
from shared.service import create_service
from shared.settings import ServiceSettings
from shared.testing import running


@pytest.fixture
def settings(tmp_path):
    settings = ServiceSettings(home=tmp_path)
    upgrade(settings.database_location)
    return settings


@pytest.fixture
def datasets(settings):
    return Datasets(connect(settings.database_location), settings)


@pytest.fixture
async def client(settings):
    async with running(create_service(DOMAIN, settings)) as client:
        yield client


def made(datasets, tmp_path, state="valid", kind="iqa", name="photos", findings=()):
    data = name.encode()
    draft = tmp_path / "draft"
    draft.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    datasets.put_file(draft, sha256)
    dataset, _ = datasets.add(kind, name, [FileOf(path="a", sha256=sha256, size=len(data))], "me")
    if state == "validating":
        job = Job(new_job_id(), "validate", kind, "batch", {}, time.time(), dataset=dataset.digest)
        SqlJobStore(datasets._engine).submit(job)
    else:
        datasets.judge(
            dataset.digest, Report.model_validate({"state": state, "findings": list(findings), "counts": {}})
        )
    return dataset


async def test_a_job_is_accepted_and_committed(client, datasets, settings, tmp_path):
    dataset = made(datasets, tmp_path)
    asked = {"dataset": "photos", "config": {"epochs": 2, "device": "cuda"}}
    answer = await client.post("/v1/iqa/training-jobs", json=asked, headers={"Fourfold-Principal": "key-1"})
    assert answer.status_code == 202
    job = SqlJobStore(connect(settings.database_location)).get(answer.json()["id"])
    assert answer.headers["Location"] == answer.json()["links"]["self"] == f"/v1/jobs/{job.id}"
    assert (job.state, job.dataset, job.created_by, job.queue) == ("queued", dataset.digest, "key-1", "train.gpu")
    assert job.config["epochs"] == 2
    assert job.config["batch_size"] == 24


async def test_one_key_makes_one_job(client, datasets, tmp_path):
    made(datasets, tmp_path)
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/v1/iqa/training-jobs", json={"dataset": "photos"}, headers=headers)
    again = await client.post("/v1/iqa/training-jobs", json={"dataset": "photos"}, headers=headers)
    assert again.json() == first.json()
    other = {"dataset": "photos", "config": {"epochs": 2}}
    conflict = await client.post("/v1/iqa/training-jobs", json=other, headers=headers)
    assert (conflict.status_code, conflict.json()["type"]) == (409, "urn:fourfold:problem:idempotency-conflict")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"epochs": 1, "backbone": "vgg"}, "backbone"),
        ({"learning_rate": "fast"}, "valid number"),
        ({"xyzzy": 1}, "there is no such setting"),
    ],
)
async def test_configurations_that_are_refused(client, datasets, tmp_path, config, told):
    made(datasets, tmp_path)
    answer = await client.post("/v1/iqa/training-jobs", json={"dataset": "photos", "config": config})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:fourfold:problem:config-invalid")
    assert told in answer.json()["detail"]


@pytest.mark.parametrize(
    ("state", "kind", "status", "code"),
    [
        ("validating", "iqa", 409, "dataset-not-ready"),
        ("invalid", "iqa", 422, "dataset-unusable"),
        ("flawed", "iqa", 422, "dataset-unusable"),
        ("valid", "toy", 422, "dataset-unusable"),
    ],
)
async def test_data_sets_that_are_refused(client, datasets, tmp_path, state, kind, status, code):
    findings = [Finding(file="x.png", line=None, problem="it is cut off")] if state in ("invalid", "flawed") else []
    made(datasets, tmp_path, state, kind, findings=findings)
    answer = await client.post("/v1/iqa/training-jobs", json={"dataset": "photos"})
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:fourfold:problem:{code}")
    if findings:
        assert "x.png: it is cut off" in answer.json()["detail"]


async def test_bad_files_may_be_excluded(client, datasets, tmp_path):
    made(datasets, tmp_path, "flawed", findings=[Finding(file="x.png", line=None, problem="it is cut off")])
    asked = {"dataset": "photos", "config": {"bad_files": "exclude"}}
    assert (await client.post("/v1/iqa/training-jobs", json=asked)).status_code == 202


async def test_an_unknown_data_set_or_member_is_refused(client):
    assert (await client.post("/v1/iqa/training-jobs", json={"dataset": "none"})).status_code == 404
    assert (await client.post("/v1/iqa/training-jobs", json={"data": "photos"})).status_code == 422
