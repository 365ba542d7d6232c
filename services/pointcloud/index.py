"""An index of codewords: made by a job, kept as its file, loaded and searched by the service.

The file is a safetensors file: `graph` is a Faiss HNSW index over float16 codewords, serialised; `previews` are int8
points (S, P, 3) of the unit ball times 127; `names` is JSON. Shapes: S shapes, W numbers of a codeword, P points.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shared.database import connect
from shared.datasets import Datasets
from shared.jobs.files import JobFiles
from shared.jobs.model import Job, JobState
from shared.jobs.store import JobStore, SqlJobStore
from shared.problems import Conflict, InternalError, NotFound
from shared.settings import Settings

KIND = "index"  # of the job
FILE = "index.safetensors"
LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 100, 128  # of HNSW; see the card for the recall
MOST_CACHED = 1 << 30  # bytes of the indexes in memory; the newest stays whatever its size
MOST_HITS = 100
Floats = NDArray[np.float32]


class NoIndex(NotFound):
    code = "pointcloud-no-index"
    title = "There is no such index of shapes"
    advice = "Make one: `fourfold pointcloud index DATASET`."


class ForeignIndex(Conflict):
    code = "pointcloud-foreign-index"
    title = "The index was made with another model"
    advice = "Make the index again with the version served now."


class IndexDamaged(InternalError):
    code = "pointcloud-index-damaged"
    title = "The index's file is damaged"
    advice = "Make the index again."


@dataclass(frozen=True)
class Found:
    """One shape of the index: the Euclidean distance between the codewords, and its preview in the unit ball."""

    name: str
    label: str | None
    distance: float
    preview_P3: Floats


def _faiss() -> Any:
    """Loaded by the first index, not with the service: it takes 45 MB. One thread a search, so that each has a core."""
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


def write_index(
    path: Path,
    *,
    codewords_SW: Floats,
    previews_SP3: Floats,
    names: Sequence[str],
    labels: Sequence[str | None],
    fingerprint: bytes,
) -> None:
    """Build the index and write its file."""
    faiss = _faiss()
    graph = faiss.IndexHNSWSQ(codewords_SW.shape[1], faiss.ScalarQuantizer.QT_fp16, LINKS)
    graph.hnsw.efConstruction = BUILD_WIDTH
    graph.train(codewords_SW)
    graph.add(codewords_SW)
    listing = orjson.dumps({"names": list(names), "labels": list(labels)})
    tensors = {
        "graph": faiss.serialize_index(graph),
        "previews": np.rint(previews_SP3 * 127).astype(np.int8),
        "names": np.frombuffer(listing, np.uint8),
    }
    save_file(tensors, path, {"form": "1", "fingerprint": fingerprint.hex(), "shapes": str(len(names))})


class Index:
    """A loaded index; searches may run in several threads."""

    def __init__(self, path: Path, job: str, fingerprint: bytes | None = None) -> None:
        """Raises IndexDamaged."""
        faiss = _faiss()
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata()
                listing = orjson.loads(file.get_tensor("names").tobytes())
                self._graph: Any = faiss.deserialize_index(file.get_tensor("graph"))
                self._previews: NDArray[np.int8] = file.get_tensor("previews")
            self.fingerprint = bytes.fromhex(about["fingerprint"])
            self._names: list[str] = listing["names"]
            self._labels: list[str | None] = listing["labels"]
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise IndexDamaged("The index's file cannot be read.") from error
        self.job = job
        self.bytes = path.stat().st_size
        self._options = faiss.SearchParametersHNSW(efSearch=SEARCH_WIDTH)

    def __len__(self) -> int:
        return len(self._names)

    def search(self, codeword_W: Floats, count: int) -> list[Found]:
        """The `count` nearest shapes, nearest first."""
        squared, rows = self._graph.search(codeword_W[None], min(count, len(self)), params=self._options)
        return [
            Found(self._names[row], self._labels[row], float(max(0.0, far)) ** 0.5, self._preview(row))
            for far, row in zip(squared[0].tolist(), rows[0].tolist(), strict=True)
            if row >= 0
        ]

    def _preview(self, row: int) -> Floats:
        return self._previews[row].astype(np.float32) / 127


def preview_distances(query_P3: Floats, previews: Sequence[Floats]) -> list[float]:
    """Chamfer distance, the sum of the two mean distances, from a cloud to each of others, all in the unit ball."""
    found: list[float] = []
    for preview_P3 in previews:
        squared = (query_P3**2).sum(1)[:, None] + (preview_P3**2).sum(1) - 2 * query_P3 @ preview_P3.T
        near = np.sqrt(np.maximum(squared.min(1), 0)).mean() + np.sqrt(np.maximum(squared.min(0), 0)).mean()
        found.append(float(near))
    return found


class Indexes:
    """The indexes that jobs made, the last used of them in memory. Safe for several threads."""

    def __init__(self, store: JobStore, files: JobFiles, resolve: Callable[[str], str]) -> None:
        """`resolve`: name or digest of a data set → digest; raises NotFound."""
        self._store, self._files, self._resolve = store, files, resolve
        self._loaded: OrderedDict[str, Index] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> Indexes:
        engine = connect(settings.database_location)
        datasets = Datasets(engine, settings)
        return cls(SqlJobStore(engine), JobFiles(settings.jobs_location), lambda name: datasets.resolve(name).digest)

    def get(self, reference: str | None) -> Index:
        """The index of a job's id, the newest of a data set's name or digest, or the newest of all; raises NoIndex."""
        with self._lock:
            if reference is not None and reference in self._loaded:
                self._loaded.move_to_end(reference)
                return self._loaded[reference]
        job = self._job(reference)
        with self._lock:
            if job.id not in self._loaded:
                self._loaded[job.id] = self._load(job)
            self._loaded.move_to_end(job.id)
            while len(self._loaded) > 1 and sum(index.bytes for index in self._loaded.values()) > MOST_CACHED:
                self._loaded.popitem(last=False)
            return self._loaded[job.id]

    def _job(self, reference: str | None) -> Job:
        if reference is not None:
            try:
                job = self._store.get(reference)
                if job.domain == "pointcloud" and job.kind == KIND and job.state is JobState.SUCCEEDED:
                    return job
                raise NoIndex(f"The job {job.id} has made no index; it is a job of the kind {job.kind}, {job.state}.")
            except NoIndex:
                raise
            except NotFound:
                pass
        try:
            dataset = None if reference is None else self._resolve(reference)
        except NotFound:
            raise NoIndex("There is no job and no data set of that name with an index.") from None
        found = next((job for job in self._made() if dataset in (None, job.dataset)), None)
        if found is None:
            raise NoIndex("No index was made yet: POST /v1/pointcloud/index makes one of a data set's shapes.")
        return found

    def _made(self) -> Iterator[Job]:
        before = None
        while page := self._store.page(before=before, state=JobState.SUCCEEDED, domain="pointcloud"):
            yield from (job for job in page if job.kind == KIND)
            before = page[-1].id

    def _load(self, job: Job) -> Index:
        result = job.result or {}
        digest = hashlib.sha256()
        with tempfile.TemporaryDirectory(prefix="fourfold-index-") as folder:
            path = Path(folder) / FILE
            with path.open("wb") as stream:
                for chunk in self._files.result(job.id, FILE):
                    digest.update(chunk)
                    stream.write(chunk)
            if digest.hexdigest() != result.get("sha256"):
                raise IndexDamaged("The index's file does not match the SHA-256 that its job recorded.")
            return Index(path, job.id)
