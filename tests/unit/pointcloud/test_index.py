"""Indexes of codewords: what is found, what is kept in memory, and which are refused."""

import time
from dataclasses import replace

import numpy as np
import pytest

from services.pointcloud import index
from services.pointcloud.index import FILE, Index, IndexDamaged, Indexes, NoIndex, preview_distances, write_index
from shared.bundles import file_digest
from shared.jobs.files import JobFiles
from shared.jobs.memory import MemoryJobStore
from shared.jobs.model import Job, JobState, new_job_id
from shared.problems import NotFound

RANDOM = np.random.default_rng(0)
CODEWORDS = RANDOM.normal(size=(3000, 32)).astype(np.float32)
PREVIEWS = RANDOM.uniform(-1, 1, (3000, 16, 3)).astype(np.float32)


def written(folder, count=3000, fingerprint=b"12345678"):
    path = folder / FILE
    names = [f"shape {n}" for n in range(count)]
    labels = [None if n % 2 else "even" for n in range(count)]
    write_index(path, codewords_SW=CODEWORDS[:count], previews_SP3=PREVIEWS[:count], names=names, labels=labels,
                fingerprint=fingerprint)  # fmt: skip
    return path


def test_the_nearest_are_found(tmp_path):
    found = Index(written(tmp_path), "job")
    assert (len(found), found.fingerprint) == (3000, b"12345678")
    hits = recall = 0
    for row in range(0, 3000, 100):
        query = CODEWORDS[row] + RANDOM.normal(0, 0.1, 32).astype(np.float32)
        far = np.linalg.norm(CODEWORDS - query, axis=1)
        nearest = found.search(query, 10)
        hits += nearest[0].name == f"shape {row}"
        recall += len({item.name for item in nearest} & {f"shape {n}" for n in np.argsort(far)[:10]})
        assert nearest[0].distance == pytest.approx(far[row], abs=0.02)
        assert nearest[0].label == ("even" if row % 2 == 0 else None)
        np.testing.assert_allclose(nearest[0].preview_P3, PREVIEWS[row], atol=0.005)
    assert hits == 30
    assert recall >= 290  # of 300


def test_fewer_shapes_than_are_asked_for(tmp_path):
    assert len(Index(written(tmp_path, count=3), "job").search(CODEWORDS[0], 10)) == 3


def test_preview_distances_are_chamfer_distances():
    first, second = PREVIEWS[0], PREVIEWS[1][:9]
    far = np.linalg.norm(first[:, None] - second, axis=-1)
    assert preview_distances(first, [second])[0] == pytest.approx(far.min(0).mean() + far.min(1).mean(), abs=1e-4)
    assert preview_distances(first, [first])[0] == pytest.approx(0, abs=1e-3)


class Shelf:
    """Jobs that made indexes, in memory."""

    def __init__(self, folder):
        self.folder, self.store, self.files = folder, MemoryJobStore(), JobFiles(str(folder / "jobs"))
        self.indexes = Indexes(self.store, self.files, self.resolve)

    def resolve(self, name):
        if name != "parts":
            raise NotFound(name)
        return "a" * 64

    def add(self, path=None, **changes):
        path = path or written(self.folder, count=50)
        job = Job(id=new_job_id(), kind="index", domain="pointcloud", queue="batch", config={}, created_at=time.time(),
                  dataset="b" * 64, created_by="", time_limit=60, state=JobState.SUCCEEDED,
                  result={"sha256": file_digest(path)})  # fmt: skip
        job = replace(job, **changes)
        self.store.submit(job)
        self.files.keep_result(job.id, path)
        return job.id


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def test_which_index_is_meant(shelf):
    with pytest.raises(NoIndex, match="No index"):
        shelf.indexes.get(None)
    of_parts = shelf.add(dataset="a" * 64)
    newest = shelf.add()
    shelf.add(kind="train")
    shelf.add(domain="bots")
    failed = shelf.add(state=JobState.FAILED)
    assert shelf.indexes.get(None).job == newest
    assert shelf.indexes.get("parts").job == of_parts
    assert shelf.indexes.get(of_parts).job == of_parts
    for wrong in (failed, "cables"):
        with pytest.raises(NoIndex):
            shelf.indexes.get(wrong)


def test_few_indexes_stay_in_memory(shelf, monkeypatch):
    jobs = [shelf.add() for _ in range(3)]
    first = shelf.indexes.get(jobs[0])
    monkeypatch.setattr(index, "MOST_CACHED", 2 * first.bytes)
    assert shelf.indexes.get(jobs[0]) is first
    for job in jobs[1:]:
        shelf.indexes.get(job)
    assert shelf.indexes.get(jobs[0]) is not first


def test_damaged_files_are_refused(shelf, tmp_path):
    job = shelf.add(result={"sha256": "0" * 64})
    with pytest.raises(IndexDamaged, match="SHA-256"):
        shelf.indexes.get(job)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(IndexDamaged, match="read"):
        Index(path, "job")
