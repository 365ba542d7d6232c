"""Which GPUs a job may use: those that the worker was given, and no GPU for two jobs."""

import os

import pytest
from filelock import FileLock

from shared.jobs.worker import hold_gpus, visible_gpus


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # restored afterwards, whatever a test makes of it


@pytest.mark.parametrize(
    ("given", "found"), [("0,2", ["0", "2"]), (" 1 ", ["1"]), ("", []), ("-1", []), ("GPU-8f/1", ["GPU-8f/1"])]
)
def test_cuda_visible_devices_is_respected(monkeypatch, given, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == found


def test_each_job_has_gpus_of_its_own(tmp_path):
    first = hold_gpus(["0", "1", "2"], tmp_path, 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    second = hold_gpus(["0", "1", "2"], tmp_path, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
    assert hold_gpus(["0", "1", "2"], tmp_path, 1) == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "no job sees a GPU that it does not hold"
    for lock in first:
        lock.release()
    assert len(hold_gpus(["0", "1", "2"], tmp_path, 1)) == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert len(second) == 2


def test_a_gpu_is_free_again_when_its_process_is_dead(tmp_path):
    if os.fork() == 0:
        FileLock(tmp_path / "gpu-0.lock").acquire()
        os._exit(0)
    os.wait()
    assert len(hold_gpus(["0"], tmp_path, 1)) == 1
