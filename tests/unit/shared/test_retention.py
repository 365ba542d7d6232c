"""What is deleted, and what is not."""

import os
import tempfile
import time
from dataclasses import replace

from filelock import FileLock

from shared.datasets import Datasets
from shared.jobs.files import JobFiles
from shared.jobs.model import Job, JobState, new_job_id
from shared.jobs.retention import DAY_SECONDS, scratch_folder, sweep_spool, tidy
from shared.jobs.store import SqlJobStore
from shared.settings import Settings


def aged(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_files_go_when_their_job_ended_long_ago(tmp_path, engine):
    settings = Settings(home=tmp_path)
    store, files = SqlJobStore(engine), JobFiles(settings.jobs_location)
    (tmp_path / "log").write_text("hello")
    kept = []
    for age in (None, 5, 95):
        job = store.submit(Job(new_job_id(), "train", "toy", "train.cpu", {}, time.time()))[0]
        if age is not None:
            ended = replace(job, state=JobState.SUCCEEDED, finished_at=time.time() - age * DAY_SECONDS)
            store.change(job.id, lambda _, ended=ended: ended)
        files.keep_log(job.id, 1, tmp_path / "log")
        kept.append(job.id)
    assert tidy(store, files, Datasets(engine, settings), 90) == 1
    assert [files.log(job_id) for job_id in kept] == [b"hello", b"hello", b""]
    assert store.get(kept[2]).state is JobState.SUCCEEDED, "the job itself stays"


def test_uploads_that_broke_off_go_after_a_day(tmp_path):
    for name, age in (("old", 2 * DAY_SECONDS), ("young", 60)):
        (tmp_path / name).write_text("")
        aged(tmp_path / name, age)
    sweep_spool(tmp_path)
    sweep_spool(tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["young"]


def test_the_scratch_of_the_dead_goes_and_that_of_the_living_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, living, young = (tmp_path / f"fourfold-job-{name}" for name in ("dead", "living", "young"))
    for folder in (dead, living, young):
        folder.mkdir()
        (folder / "data").write_text("x")
    with FileLock(living / ".lock"):
        for folder in (dead, living):
            aged(folder, 3600)
        with scratch_folder() as own:
            assert {path.name for path in tmp_path.iterdir()} == {living.name, young.name, own.name}
    assert not own.exists()
