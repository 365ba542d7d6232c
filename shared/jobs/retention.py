"""Deletes what nobody needs any more: files of jobs that ended long ago, uploads that became no data set, and the
scratch folders and half-written uploads of processes that were killed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from shared.datasets import Datasets
from shared.jobs.files import JobFiles
from shared.jobs.store import JobStore
from shared.problems import NotFound

DAY_SECONDS = 86_400.0
_SCRATCH = "fourfold-job-"
_YOUNG_SECONDS = 60.0  # a folder that is just being made has no lock yet


def tidy(store: JobStore, files: JobFiles, datasets: Datasets, days: float, now: float | None = None) -> int:
    """Forget the files of jobs that ended `days` ago, and collect the data sets' files; how many went."""
    now = time.time() if now is None else now
    gone = 0
    for job_id in files.job_ids():
        with suppress(NotFound):
            ended = store.get(job_id).finished_at
            if ended is not None and now - ended > days * DAY_SECONDS:
                files.forget(job_id)
                gone += 1
    return gone + datasets.collect(now)


def sweep_spool(folder: Path) -> None:
    """Delete the uploads in `folder` that nobody has written to for a day."""
    for path in folder.glob("*") if folder.is_dir() else ():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder of this process. What killed processes left of theirs is deleted."""
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError, Timeout):
            if time.time() - left.stat().st_mtime > _YOUNG_SECONDS:
                with FileLock(f"{left}/.lock", blocking=False):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH) as name, FileLock(f"{name}/.lock"):
        yield Path(name)
