"""Data sets, jobs and models over HTTP, in one process with a database of its own."""

import asyncio
import hashlib
import io
import time
import zipfile
from dataclasses import replace
from errno import ENOSPC

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from gateway.app import create_app
from gateway.settings import GatewaySettings
from shared.bundles import Comparison, Metric
from shared.datasets import Report
from shared.jobs import store as jobs
from shared.jobs.model import Job, JobState, Point, new_job_id
from shared.testing import running, toy_bundle


@pytest.fixture
async def app(tmp_path):
    return create_app(GatewaySettings(home=tmp_path / "home"))


@pytest.fixture
async def client(app, tmp_path):
    async with running(app) as client:
        client.headers["Authorization"] = f"Bearer {(tmp_path / 'home' / 'key').read_text().strip()}"
        yield client


def submitted(app, **values):
    return app.state.jobs.submit(Job(new_job_id(), "train", "iqa", "train.cpu", {}, time.time(), **values))[0]


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# -- data sets


async def test_an_archive_becomes_a_data_set_that_is_validated(app, client):
    made = await client.post("/v1/datasets?kind=iqa&name=mine", content=zipped(a="1", b="2"))
    assert made.status_code == 201
    digest = made.json()["digest"]
    assert made.headers["Location"] == f"/v1/datasets/{digest}"
    [job] = app.state.jobs.page()
    assert (job.kind, job.domain, job.queue, job.dataset) == ("validate", "iqa", "batch", digest)
    again = await client.post("/v1/datasets?kind=iqa&name=other", content=zipped(a="1", b="2"))
    assert (again.status_code, again.json()["digest"]) == (200, digest)
    assert len(app.state.jobs.page()) == 1
    assert (await client.get("/v1/datasets/mine")).status_code == 404
    assert (await client.get("/v1/datasets/other")).json()["files"] == 2
    assert [item["digest"] for item in (await client.get("/v1/datasets")).json()["datasets"]] == [digest]
    assert not list((app.state.settings.home / "spool").iterdir())


async def test_a_data_set_file_by_file(client):
    data = b"content"
    sha256 = hashlib.sha256(data).hexdigest()
    listing = {"kind": "iqa", "name": "mine", "files": [{"path": "a", "sha256": sha256, "size": len(data)}]}
    missing = await client.post("/v1/datasets/listings", json=listing)
    assert (missing.status_code, missing.json()["missing"]) == (409, [sha256])
    wrong = await client.put(f"/v1/datasets/files/{sha256}", content=b"other")
    assert wrong.status_code == 422
    assert (await client.put(f"/v1/datasets/files/{sha256}", content=data)).status_code == 204
    assert (await client.post("/v1/datasets/listings", json=listing)).status_code == 201


@pytest.mark.parametrize(
    ("query", "body", "status", "code"),
    [
        ("kind=cats&name=x", zipped(a="1"), 422, "unprocessable"),
        ("kind=iqa&name=../x", zipped(a="1"), 422, "unprocessable"),
        ("kind=iqa&name=x", b"hello", 422, "bad-archive"),
        ("kind=iqa&name=x", b"", 422, "bad-archive"),
        ("kind=iqa&name=x", zipped(), 422, "unprocessable"),
        ("kind=iqa&name=x", zipped(**{"../a": "1"}), 422, "bad-archive"),
    ],
)
async def test_uploads_that_are_refused(client, query, body, status, code):
    answer = await client.post(f"/v1/datasets?{query}", content=body)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:fourfold:problem:{code}")


async def test_too_large_an_upload_is_broken_off(tmp_path):
    app = create_app(GatewaySettings(home=tmp_path / "home", max_dataset_bytes=2000))
    async with running(app) as client:
        client.headers["Authorization"] = f"Bearer {(tmp_path / 'home' / 'key').read_text().strip()}"
        answer = await client.post("/v1/datasets?kind=iqa&name=x", content=b"x" * 3000)
        assert answer.status_code == 413
        assert not list((tmp_path / "home" / "spool").iterdir())


async def test_a_validation_that_ended_without_a_report_is_told_and_can_be_repeated(app, client):
    body = zipped(a="1")
    digest = (await client.post("/v1/datasets?kind=iqa&name=mine", content=body)).json()["digest"]
    assert (await client.get("/v1/datasets/mine")).json()["state"] == "validating"
    jobs.cancel(app.state.jobs, app.state.jobs.page()[0].id)
    told = (await client.get("/v1/datasets/mine")).json()
    assert told["state"] == "invalid"
    assert "Add it again" in told["report"]["findings"][0]["problem"]
    assert (await client.post("/v1/datasets?kind=iqa&name=mine", content=body)).json()["digest"] == digest
    assert [job.state for job in app.state.jobs.page()] == ["queued", "cancelled"]


async def test_a_body_of_no_upload_has_a_limit_and_is_not_read_without_a_key(tmp_path):
    app = create_app(GatewaySettings(home=tmp_path / "home", max_body_bytes=2000))
    read = []

    async def body():
        for _ in range(10):
            read.append(1)
            yield b" " * 1000

    async with running(app) as client:
        refused = await client.post("/v1/datasets/listings", content=body(), headers={"X-API-Key": "ff_wrong"})
        assert (refused.status_code, read) == (401, [])
        client.headers["Authorization"] = f"Bearer {(tmp_path / 'home' / 'key').read_text().strip()}"
        answer = await client.post("/v1/datasets/listings", content=body())
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:fourfold:problem:payload-too-large")
        assert (
            (await client.post("/v1/datasets?kind=iqa&name=x", content=body())).json()["type"].endswith("bad-archive")
        )


async def test_a_data_set_in_use_stays(app, client):
    digest = (await client.post("/v1/datasets?kind=iqa&name=mine", content=zipped(a="1"))).json()["digest"]
    assert (await client.delete(f"/v1/datasets/{digest}")).json()["type"].endswith("dataset-busy")
    jobs.cancel(app.state.jobs, app.state.jobs.page()[0].id)
    assert (await client.delete(f"/v1/datasets/{digest}")).status_code == 204
    assert (await client.get(f"/v1/datasets/{digest}")).status_code == 404


async def test_a_full_disk_and_a_database_that_is_away_are_told_as_such(app, client, monkeypatch):
    def full(*_):
        raise OSError(ENOSPC, "No space left on device", "/secret/path")

    def away(*_, **__):
        raise OperationalError("SELECT secret", {}, Exception("gone"))

    monkeypatch.setattr(app.state.datasets, "add_archive", full)
    answer = await client.post("/v1/datasets?kind=iqa&name=mine", content=zipped(a="1"))
    assert (answer.status_code, answer.json()["type"]) == (507, "urn:fourfold:problem:disk-full")
    assert not list((app.state.settings.home / "spool").iterdir())
    monkeypatch.setattr(app.state.jobs, "page", away)
    refused = await client.get("/v1/jobs")
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:fourfold:problem:database-unavailable")
    assert refused.headers["Retry-After"] == "1"
    assert "secret" not in answer.text + refused.text


# -- jobs


async def test_jobs_are_listed_in_pages(app, client):
    ids = [submitted(app).id for _ in range(5)]
    page = (await client.get("/v1/jobs?limit=3")).json()
    rest = (await client.get(f"/v1/jobs?limit=3&cursor={page['next_cursor']}")).json()
    assert sorted(job["id"] for job in page["jobs"] + rest["jobs"]) == sorted(ids)
    assert rest["next_cursor"] is None
    assert (await client.get("/v1/jobs?state=running")).json()["jobs"] == []
    assert (await client.get("/v1/jobs?state=odd")).status_code == 422


async def test_a_job_with_its_curves_and_log(app, client, tmp_path):
    job = submitted(app)
    app.state.jobs.add_point(job.id, Point(1, 5.0, {"loss": 0.5}))
    (tmp_path / "log").write_text("hello\n")
    app.state.job_files.keep_log(job.id, 1, tmp_path / "log")
    assert (await client.get(f"/v1/jobs/{job.id}")).json()["state"] == "queued"
    assert (await client.get(f"/v1/jobs/{job.id}/points")).json()["points"][0]["metrics"] == {"loss": 0.5}
    assert (await client.get(f"/v1/jobs/{job.id}/logs?start=2")).text == "llo\n"
    for path in ("", "/points", "/logs", "/events", "/files"):
        assert (await client.get(f"/v1/jobs/none{path}")).status_code == 404


async def test_what_a_job_has_left_so_far(app, client, tmp_path):
    job = submitted(app)
    assert (await client.get(f"/v1/jobs/{job.id}/files")).json() == {"files": []}
    kept = app.state.job_files
    for name in ("log", "scores.csv"):
        (tmp_path / name).write_text("text")
    kept.keep_log(job.id, 1, tmp_path / "log")
    kept.keep_checkpoint(job.id, 2, tmp_path / "log")
    kept.keep_result(job.id, tmp_path / "scores.csv")
    (tmp_path / "home" / "jobs" / job.id / "results" / f"other.csv.{'a' * 32}").write_text("a draft")
    found = [tuple(item.values()) for item in (await client.get(f"/v1/jobs/{job.id}/files")).json()["files"]]
    assert found == [
        ("checkpoint", "checkpoint.2.safetensors", 2, 4),
        ("log", "log.1.txt", 1, 4),
        ("result", "scores.csv", None, 4),
    ]


async def test_cancelling_twice_and_too_late(app, client):
    job = submitted(app)
    for _ in range(2):
        assert (await client.post(f"/v1/jobs/{job.id}/cancel")).json()["state"] == "cancelled"
    done = submitted(app)
    app.state.jobs.change(done.id, lambda job: replace(job, state=JobState.SUCCEEDED, finished_at=1.0))
    late = await client.post(f"/v1/jobs/{done.id}/cancel")
    assert (late.status_code, late.json()["type"]) == (409, "urn:fourfold:problem:illegal-transition")


async def test_events_go_on_after_the_last_one_seen(app, client):
    job = submitted(app)
    for step in (1, 2, 3):
        app.state.events.add(job.id, "progress", {"step": step})
    jobs.cancel(app.state.jobs, job.id)

    async def seen(**headers):
        text = (await asyncio.wait_for(client.get(f"/v1/jobs/{job.id}/events", headers=headers), 10)).text
        return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]

    whole = await seen()
    assert [line for line in whole if line.startswith('{"step"')] == [f'{{"step":{step}}}' for step in (1, 2, 3)]
    assert '"state":"cancelled"' in whole[-1]
    assert (await seen(**{"Last-Event-ID": "2-0"}))[0] == '{"step":3}'
    assert (await client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": "x"})).status_code == 422


# -- models


async def test_promotion_rollback_and_history(app, client, tmp_path):
    for factor in (1.0, 2.0):
        app.state.models.publish(toy_bundle(tmp_path / f"bundle{factor}", factor=factor))

    async def put(alias, **body):
        return await client.put(f"/v1/models/toy/aliases/{alias}", json=body)

    assert (await put("champion", version=1)).status_code == 200
    refused = await put("champion", version=2)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:fourfold:problem:not-comparable")
    assert (await put("champion", version=2, force=True)).status_code == 422
    assert (await put("champion", version=None)).status_code == 422
    assert (await put("champion", version=9)).status_code == 404
    assert (await put("champion", version=2, expected_generation=7, force=True, reason="x")).status_code == 409
    forced = (await put("champion", version=2, force=True, reason="a trial")).json()
    assert forced["reason"] == "forced: a trial"
    assert forced["changed_by"]
    assert (await put("canary", version=1, weight=0.1)).json()["aliases"]["canary"] == {"version": 1, "weight": 0.1}
    assert (await put("canary", version=None)).json()["aliases"].keys() == {"champion"}
    assert (await put("champion", version=1)).status_code == 200
    model = (await client.get("/v1/models/toy")).json()
    assert [table["aliases"]["champion"]["version"] for table in model["history"]] == [1, 2, 2, 2, 1]
    assert [item["name"] for item in (await client.get("/v1/models")).json()["models"]] == ["toy"]
    assert (await client.get("/v1/models/toy/versions/2")).json()["version"] == 2
    assert (await client.get("/v1/models/none")).status_code == 404


async def test_a_champion_that_changes_while_the_gate_looks_is_a_conflict(app, client, tmp_path, monkeypatch):
    repository = app.state.models
    for factor in (1.0, 2.0):
        repository.publish(toy_bundle(tmp_path / f"bundle{factor}", factor=factor))
    repository.set_alias("toy", "champion", 1)
    slow = lambda models, name, version: models.set_alias(name, "canary", 2)  # noqa: E731 - somebody else, meanwhile
    monkeypatch.setattr("gateway.control.models.check_promotion", slow)
    answer = await client.put("/v1/models/toy/aliases/champion", json={"version": 2})
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:fourfold:problem:alias-conflict")
    assert repository.aliases("toy").champion == 1


async def test_a_comparison_is_a_job(app, client, tmp_path):
    digest = (await client.post("/v1/datasets?kind=iqa&name=mine", content=zipped(a="1"))).json()["digest"]
    for number, known in enumerate((None, digest, "f" * 64)):
        app.state.models.publish(toy_bundle(tmp_path / f"bundle{number}", dataset_digest=known))
    app.state.models.set_alias("toy", "champion", 1)

    async def compare(version):
        return await client.post(f"/v1/models/toy/versions/{version}/comparisons")

    accepted = await compare(2)
    assert accepted.status_code == 202
    job = app.state.jobs.get(accepted.json()["id"])
    assert (job.kind, job.domain, job.dataset, job.config) == ("compare", "toy", digest, {"version": 2, "champion": 1})
    assert "no other champion" in (await compare(1)).json()["detail"]
    assert "not here" in (await compare(3)).json()["detail"]
    assert (await compare(9)).status_code == 404


async def test_the_comparisons_of_a_version(app, client, tmp_path):
    def beside(champion):
        return Comparison(champion=champion, metric="srcc", difference=Metric(value=0.1))

    app.state.models.publish(toy_bundle(tmp_path / "one"))
    app.state.models.publish(toy_bundle(tmp_path / "two", comparison=beside(1)))
    for champion in (11, 3):
        app.state.models.keep_comparison("toy", 2, beside(champion))
    app.state.models.keep_comparison("toy", 22, beside(4))
    found = (await client.get("/v1/models/toy/versions/2/comparisons")).json()["comparisons"]
    assert [item["champion"] for item in found] == [1, 3, 11]
    assert (await client.get("/v1/models/toy/versions/1/comparisons")).json() == {"comparisons": []}
    assert (await client.get("/v1/models/toy/versions/9/comparisons")).status_code == 404


async def test_a_key_knows_itself(client):
    made = (await client.post("/v1/keys", json={"name": "reader", "scopes": ["predict"]})).json()
    found = await client.get("/v1/keys/self", headers={"Authorization": f"Bearer {made['secret']}"})
    assert found.json() == {"id": made["id"], "name": "reader", "scopes": ["predict"]}
    assert (await client.get("/v1/keys/self", headers={"Authorization": "Bearer ff_wrong"})).status_code == 401


async def test_scopes(app, client):
    made = (await client.post("/v1/keys", json={"name": "reader", "scopes": ["predict"]})).json()
    reader = {"Authorization": f"Bearer {made['secret']}"}
    for method, path in (("GET", "/v1/jobs"), ("GET", "/v1/datasets"), ("PUT", "/v1/models/toy/aliases/champion")):
        answer: httpx.Response = await client.request(method, path, headers=reader, json={"version": 1})
        assert answer.status_code == 403
    assert (await client.get("/v1/models", headers=reader)).status_code == 200


async def test_a_judged_data_set_is_not_validated_again(app, client):
    body = zipped(a="1")
    digest = (await client.post("/v1/datasets?kind=iqa&name=mine", content=body)).json()["digest"]
    app.state.datasets.judge(digest, Report(state="valid", findings=[], counts={}))
    jobs.cancel(app.state.jobs, app.state.jobs.page()[0].id)
    assert (await client.post("/v1/datasets?kind=iqa&name=mine", content=body)).json()["state"] == "valid"
    assert len(app.state.jobs.page()) == 1
