"""One job in this process: success, resumption, each kind of failure and each reason to stop."""

import threading
import time
import tracemalloc
from dataclasses import replace

import pytest
from sqlalchemy.exc import DataError, OperationalError

from shared.datasets import Datasets, FileOf
from shared.jobs import runner
from shared.jobs import store as jobs
from shared.jobs.events import MemoryEvents
from shared.jobs.files import JobFiles
from shared.jobs.model import Job, JobState, new_job_id
from shared.jobs.runner import Workplace, run_job
from shared.jobs.store import SqlJobStore
from shared.repository import ModelRepository
from shared.settings import Settings
from shared.testing import toy_bundle


@pytest.fixture
def place(tmp_path, engine):
    return place_in(tmp_path, engine)


def place_in(tmp_path, engine, **urls):
    settings = Settings(home=tmp_path, lease_seconds=0.8, **urls)
    return Workplace(
        settings=settings,
        store=SqlJobStore(engine),
        events=MemoryEvents(),
        files=JobFiles(settings.jobs_location),
        datasets=Datasets(engine, settings),
        models=ModelRepository(settings.models_location),
        abandon=lambda: None,
        recipes="tests.recipes",
    )


def submitted(place, kind="train", dataset=None, time_limit=60.0, **config):
    job = Job(new_job_id(), kind, "toy", "train.cpu", config, time.time(), dataset=dataset, time_limit=time_limit)
    return place.store.submit(job)[0]


def ran(place, **config):
    job = submitted(place, **config)
    run_job(place, job.id)
    return place.store.get(job.id)


def in_background(place, job):
    thread = threading.Thread(target=run_job, args=(place, job.id))
    thread.start()
    end = time.monotonic() + 120  # several processes that import torch, on a busy machine
    while place.store.get(job.id).step < 1:
        assert time.monotonic() < end, place.store.get(job.id)
        time.sleep(0.01)
    return thread


def weights(place, version):
    return place.models.manifest("toy", version).files["model.onnx"].sha256


async def test_a_job_that_succeeds(place):
    job = ran(place)
    assert job.state is JobState.SUCCEEDED
    assert job.result == {"model": "toy", "version": 1}
    assert (job.step, job.total, job.attempt) == (3, 3, 1)
    assert [point.metrics["loss"] for point in place.store.points(job.id)] == [1, 1 / 2, 1 / 3]
    assert [event.data["step"] for event in await place.events.read(job.id)] == [1, 2, 3]
    assert place.models.manifest("toy", 1).job == job.id
    assert b"epoch 3 done" in place.files.log(job.id)


@pytest.mark.parametrize("database", ["engine", "postgres"])
def test_a_figure_that_is_no_number_costs_the_point_and_not_the_job(database, request, tmp_path):
    place = place_in(tmp_path, request.getfixturevalue(database))
    job = ran(place, odd="nan")
    assert job.state is JobState.SUCCEEDED, place.files.log(job.id)
    assert job.metrics == {"loss": 1 / 3}
    assert [point.metrics for point in place.store.points(job.id)] == [{"loss": 1}, {"loss": 1 / 2}, {"loss": 1 / 3}]
    assert b"odd=nan" in place.files.log(job.id)


def test_only_a_database_that_is_away_is_waited_for():
    tries = []

    def call(error):
        tries.append(1)
        if len(tries) < 2:
            raise error("", {}, Exception())
        return "done"

    assert runner.persist(lambda: call(OperationalError)) == "done"
    tries.clear()
    with pytest.raises(DataError):
        runner.persist(lambda: call(DataError))


def test_a_second_delivery_does_nothing(place):
    job = ran(place)
    run_job(place, job.id)
    assert place.models.versions("toy") == [1]
    assert place.store.get(job.id) == job


def test_an_attempt_after_publication_does_not_publish_again(place):
    job = ran(place)
    lost = replace(job, state=JobState.QUEUED, result=None, finished_at=None)
    place.store.change(job.id, lambda _: lost)
    run_job(place, job.id)
    assert place.store.get(job.id).result == {"model": "toy", "version": 1}
    assert place.models.versions("toy") == [1]


def test_a_resumed_job_ends_with_the_same_weights(place):
    whole = ran(place, epochs=4)
    job = submitted(place, epochs=4, seconds=0.3)
    stopping = threading.Event()
    thread = in_background(replace(place, shutting_down=stopping.is_set), job)
    stopping.set()
    thread.join()
    waiting = place.store.get(job.id)
    assert (waiting.state, waiting.published_at) == (JobState.QUEUED, None)
    run_job(place, job.id)
    assert place.store.get(job.id).attempt == 2
    assert weights(place, 2) == weights(place, whole.result["version"])
    assert b"resuming" in place.files.log(job.id)


def test_a_job_on_remote_stores_resumes_and_ends_with_the_same_weights(tmp_path, engine, bucket):
    place = place_in(tmp_path, engine, **{f"{what}_url": f"{bucket}/{what}" for what in ("models", "datasets", "jobs")})
    dataset = validated(place, tmp_path).digest
    whole = ran(place, epochs=4, dataset=dataset)
    job = submitted(place, epochs=4, seconds=0.3, dataset=dataset)
    stopping = threading.Event()
    thread = in_background(replace(place, shutting_down=stopping.is_set), job)
    stopping.set()
    thread.join()
    assert place.store.get(job.id).state is JobState.QUEUED
    run_job(place, job.id)
    assert place.store.get(job.id).result == {"model": "toy", "version": 2}
    assert weights(place, 2) == weights(place, 1)
    log = place.files.log(job.id)
    assert b"resuming" in log
    assert place.files.log(job.id, 10, 20) == log[10:30]
    assert not place.files.fetch_checkpoint(job.id, tmp_path / "kept.safetensors")
    assert not (tmp_path / "models").exists()
    place.files.forget(job.id)
    assert place.files.job_ids() == [whole.id]


def test_a_cancelled_job_stops_and_publishes_nothing(place):
    job = submitted(place, epochs=100, seconds=0.3)
    thread = in_background(place, job)
    jobs.cancel(place.store, job.id)
    thread.join(5)
    assert place.store.get(job.id).state is JobState.CANCELLED
    assert place.models.versions("toy") == []
    assert not place.files.fetch_checkpoint(job.id, place.settings.home / "kept.safetensors")


def test_a_job_longer_than_its_time_limit_fails(place):
    job = submitted(place, epochs=100, seconds=0.1, time_limit=0.5)
    run_job(place, job.id)
    ended = place.store.get(job.id)
    assert ended.state is JobState.FAILED
    assert "time limit" in ended.problem["title"]


def test_a_recipe_that_does_not_listen_is_ended(place, monkeypatch):
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.2)
    left = threading.Event()
    job = submitted(place, epochs=3, seconds=0.8, fail="deaf")
    thread = in_background(replace(place, abandon=left.set), job)
    jobs.cancel(place.store, job.id)
    assert left.wait(3)
    assert place.store.get(job.id).state is JobState.CANCELLED
    thread.join()
    assert place.models.versions("toy") == []


def test_a_job_taken_over_by_another_worker_is_left_alone(place):
    job = submitted(place, epochs=100, seconds=0.1)
    thread = in_background(place, job)
    [requeued] = jobs.recover(place.store, time.time() + 3600)  # as when a clock jumps
    assert requeued.state is JobState.QUEUED
    jobs.claim(place.store, job.id, "another", 60)
    thread.join(5)
    now = place.store.get(job.id)
    assert (now.state, now.worker, now.attempt) == (JobState.RUNNING, "another", 2)
    assert place.models.versions("toy") == []


@pytest.mark.parametrize(
    ("how", "title", "detail"),
    [
        ("memory", "Out of memory", "smaller batch"),
        ("disk", "The disk is full", "Nothing was published"),
        ("diverged", "The input is well formed", "not finite at step 2"),
        ("bug", "The job failed", "KeyError"),
        ("gpu", "There is no GPU", "Set device to"),
    ],
)
def test_a_failure_is_told_in_a_sentence(place, how, title, detail):
    job = ran(place, fail=how)
    assert job.state is JobState.FAILED
    assert job.problem["title"].startswith(title)
    assert detail in job.problem["detail"]
    assert "secret" not in str(job.problem)
    assert b"Traceback" in place.files.log(job.id)
    # The last good checkpoint is kept.
    assert place.files.fetch_checkpoint(job.id, place.settings.home / "kept.safetensors")


def test_a_wrong_configuration_in_the_row_is_a_failure(place):
    job = ran(place, epoch=3)
    assert "did you mean 'epochs'" in job.problem["detail"]


def test_several_processes_share_a_training(place):
    alone, shared = ran(place), ran(place, processes=2)
    assert shared.state is JobState.SUCCEEDED, place.files.log(shared.id)
    assert [point.metrics["loss"] for point in place.store.points(shared.id)] == [1, 1 / 2, 1 / 3]
    assert weights(place, shared.result["version"]) == weights(place, alone.result["version"])
    assert b"epoch 3 done" in place.files.log(shared.id)


@pytest.mark.parametrize(
    ("how", "title"), [("diverged", "The input is well formed but cannot be processed"), ("kill", "A process was lost")]
)
def test_a_process_that_fails_ends_the_others(place, how, title):
    job = ran(place, processes=2, fail=how)
    assert (job.state, job.problem["title"]) == (JobState.FAILED, title), place.files.log(job.id).decode()
    assert place.files.fetch_checkpoint(job.id, place.settings.home / "kept.safetensors")


def test_a_shared_training_stops_and_resumes(place):
    whole = ran(place, epochs=4)
    job = submitted(place, epochs=4, seconds=0.5, processes=2)
    stopping = threading.Event()
    thread = in_background(replace(place, shutting_down=stopping.is_set), job)
    stopping.set()
    thread.join()
    assert place.store.get(job.id).state is JobState.QUEUED
    run_job(place, job.id)
    assert [point.step for point in place.store.points(job.id)] == [1, 2, 3, 4]
    assert weights(place, 2) == weights(place, whole.result["version"])


def test_a_comparison_is_kept_for_the_gate(place, tmp_path):
    dataset = validated(place, tmp_path)
    for _ in range(3):
        place.models.publish(toy_bundle(tmp_path / "toy"))
    place.models.set_alias("toy", "champion", 2)
    job = submitted(place, kind="compare", dataset=dataset.digest, version=3, champion=2)
    run_job(place, job.id)
    assert place.store.get(job.id).result["comparison"]["difference"]["value"] == 0.2
    assert place.models.comparison("toy", 3, 2).difference.low == 0.1
    assert place.models.comparison("toy", 3, 1) is None


def test_the_log_is_read_in_pieces_over_all_attempts(place, tmp_path):
    for attempt, text in ((1, b"abc"), (2, b""), (3, b"defgh")):
        (tmp_path / "log").write_bytes(text)
        place.files.keep_log("j", attempt, tmp_path / "log")
    whole = b"abcdefgh"
    for start in range(10):
        for limit in range(10):
            assert place.files.log("j", start, limit) == whole[start : start + limit]
    (tmp_path / "log").write_bytes(bytes(300 << 20))
    place.files.keep_log("large", 1, tmp_path / "log")
    tracemalloc.start()
    assert len(place.files.log("large", 299 << 20)) == 1 << 20
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_succeeded_job_keeps_no_checkpoint(place):
    assert not place.files.fetch_checkpoint(ran(place).id, place.settings.home / "kept.safetensors")


def validated(place, tmp_path):
    draft = tmp_path / "draft"
    draft.write_bytes(b"good")
    sha256 = "770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c"
    place.datasets.put_file(draft, sha256)
    return place.datasets.add("toy", "mine", [FileOf(path="a", sha256=sha256, size=4)], "me")[0]


def test_validation_is_kept_with_the_data_set(place, tmp_path):
    dataset = validated(place, tmp_path)
    job = submitted(place, kind="validate", dataset=dataset.digest)
    run_job(place, job.id)
    assert place.store.get(job.id).result["state"] == "valid"
    assert place.datasets.get(dataset.digest).state == "valid"


def test_a_training_is_mirrored_to_mlflow(place, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    url = f"file://{tmp_path / 'runs'}"
    mirrored = replace(place, settings=place.settings.model_copy(update={"mlflow_url": url}))
    job = ran(mirrored, seed=5)
    client = mlflow.MlflowClient(tracking_uri=url)
    experiment = client.get_experiment_by_name("fourfold/toy")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["fourfold.job"] == job.id
    assert run.data.params["seed"] == "5"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 1 / 2, 1 / 3]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "bundle")] == [
        "bundle/manifest.json",
        "bundle/model.onnx",
    ]


def test_a_mirror_that_fails_fails_no_job(place):
    away = replace(place, settings=place.settings.model_copy(update={"mlflow_url": "odd://nowhere"}))
    assert ran(away).state is JobState.SUCCEEDED
