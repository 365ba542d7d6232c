"""Files and arrays → what the encoder takes, read in confined children; and every problem that a file can have.

Shapes: N points, K neighbours.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.pointcloud.confinement import Child, ChildLost
from shared.problems import (
    DeadlineExceeded,
    FourfoldError,
    InputError,
    Overloaded,
    PayloadTooLarge,
    Unprocessable,
    UnsupportedMedia,
)

POINTS = 2048  # what the networks are trained with
MOST_POINTS = 16_384
SECONDS = 20.0  # of one file, waiting for nothing; the child's processor time is limited besides
MOST_WAITING = 64
# What files of shapes are called; used to find them in a folder, never to choose how one is read.
SUFFIXES = frozenset(
    [".ply", ".pcd", ".xyz", ".pts", ".asc", ".txt", ".csv", ".off", ".obj", ".stl", ".glb", ".las", ".laz", ".npy"]
)
T = TypeVar("T")


class EmptyCloud(InputError):
    code = "pointcloud-empty"
    title = "The file holds nothing"
    advice = "Look at what your client sends as the body."


class UnknownFormat(UnsupportedMedia):
    code = "pointcloud-unknown-format"
    title = "The bytes are of no format that is read here"
    advice = "Send PLY, PCD, XYZ, OFF, OBJ, STL, GLB, LAS, LAZ or NPY."


class DamagedFile(InputError):
    code = "pointcloud-damaged-file"
    title = "The file is truncated, damaged or contradicts itself"
    advice = "Export the file again."


class CloudTooLarge(PayloadTooLarge):
    code = "pointcloud-too-large"
    title = "The file unfolds to more than is taken"
    advice = "Thin the cloud or the mesh before sending it."


class NotFinite(Unprocessable):
    code = "pointcloud-not-finite"
    title = "Points are not finite"
    advice = "Mend the points, or send `non_finite=drop`."


class BadIndex(Unprocessable):
    code = "pointcloud-bad-index"
    title = "A triangle names a vertex that does not exist"
    advice = "Export the mesh again."


class TooFewPoints(Unprocessable):
    code = "pointcloud-too-few-points"
    title = "There are too few points"
    advice = "Send at least 16 points that are apart."


class NoExtent(Unprocessable):
    code = "pointcloud-no-extent"
    title = "The points have no extent"
    advice = "Send points that are not all in one place."


class TooSlow(Unprocessable):
    code = "pointcloud-too-slow"
    title = "Reading the file takes too long"
    advice = "Send a smaller file, or a binary form."


PROBLEMS: dict[str, type[FourfoldError]] = {
    "empty": EmptyCloud,
    "unknown": UnknownFormat,
    "damaged": DamagedFile,
    "too-large": CloudTooLarge,
    "not-finite": NotFinite,
    "bad-index": BadIndex,
    "too-few": TooFewPoints,
    "no-extent": NoExtent,
    "too-slow": TooSlow,
}


@dataclass(frozen=True)
class Cloud:
    """A file's points as the encoder takes them. Undone by points · scale + centre, in the file's own units."""

    features_N12: NDArray[np.float32]  # x, y, z in the unit ball, then the local covariance
    neighbours_NK: NDArray[np.int64]
    centre_3: NDArray[np.float64]
    scale: float
    format: str = "array"
    points: int = 0  # in the file
    triangles: int = 0
    reduction: str = "none"  # none, area, sample or voxel
    seed: int = 0
    notes: list[str] = field(default_factory=list[str])
    low_3: tuple[float, ...] = ()
    high_3: tuple[float, ...] = ()

    @property
    def unit_N3(self) -> NDArray[np.float32]:
        """The points, normalised."""
        return self.features_N12[:, :3]

    @property
    def points_N3(self) -> NDArray[np.float64]:
        """The points in the file's units."""
        return self.unit_N3 * self.scale + self.centre_3


class Reader:
    """A few confined children. Every method may be called from any thread; use it with `with`, or close it."""

    def __init__(self, children: int | None = None) -> None:
        """`children` processes at most, each started when it is first needed; one a core, up to four, if unset."""
        self.children = [Child() for _ in range(children or min(4, os.cpu_count() or 1))]
        self._free: queue.LifoQueue[Child] = queue.LifoQueue()
        for child in reversed(self.children):
            self._free.put(child)
        self._threads = ThreadPoolExecutor(len(self.children), thread_name_prefix="reader")
        self._lock = threading.Lock()
        self._waiting = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for child in self.children:
            child.close()

    # -- operations

    def read(
        self,
        data: bytes | bytearray | memoryview,
        *,
        points: int = POINTS,
        seed: int = 0,
        reduce: Literal["sample", "voxel"] = "sample",
        non_finite: Literal["refuse", "drop"] = "refuse",
        seconds: float = SECONDS,
    ) -> Cloud:
        """The cloud of a file's bytes; a mesh, or a cloud with more than `points`, is sampled with the seed.

        Raises one of PROBLEMS.
        """
        options = {"points": points, "seed": seed, "reduce": reduce, "non_finite": non_finite}
        about, arrays = self._ask("read", data, seconds, **options)
        return Cloud(
            features_N12=arrays[0],
            neighbours_NK=arrays[1].astype(np.int64),
            centre_3=np.array(about["centre"]),
            scale=about["scale"],
            format=about["format"],
            points=about["points"],
            triangles=about["triangles"],
            reduction=about["reduction"],
            seed=seed,
            notes=about["notes"],
            low_3=tuple(about["low"]),
            high_3=tuple(about["high"]),
        )

    def prepare(self, points_N3: NDArray[Any], *, seconds: float = SECONDS) -> Cloud:
        """The cloud of an array of points, all of them; raises one of PROBLEMS."""
        data = np.ascontiguousarray(points_N3, np.float32).tobytes()
        about, arrays = self._ask("prepare", data, seconds)
        centre = np.array(about["centre"])
        return Cloud(arrays[0], arrays[1].astype(np.int64), centre, about["scale"], points=len(points_N3))

    def distances(
        self, first_N3: NDArray[Any], second_M3: NDArray[Any], *, seconds: float = SECONDS
    ) -> tuple[float, float]:
        """Mean distance of each cloud's points to the nearest point of the other, unsquared: there and back."""
        data = np.concatenate([first_N3, second_M3]).astype(np.float32).tobytes()
        about, _ = self._ask("distances", data, seconds, split=len(first_N3))
        return about["there"], about["back"]

    def submit(self, call: Callable[[float], T], deadline: float | None = None) -> Future[T]:
        """`call(seconds)` in a thread of the reader, `seconds` being what is left until `deadline` (monotonic clock).

        Raises Overloaded at once where too many wait; the future raises DeadlineExceeded.
        """
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise Overloaded("Too many files wait to be read.", retry_after=1)
            self._waiting += 1

        def run() -> T:
            left = SECONDS if deadline is None else min(SECONDS, deadline - time.monotonic())
            if left <= 0:
                raise DeadlineExceeded()
            return call(left)

        def leave(_: Future[T]) -> None:
            with self._lock:
                self._waiting -= 1

        future = self._threads.submit(run)
        future.add_done_callback(leave)
        return future

    def _ask(
        self, operation: str, data: bytes | bytearray | memoryview, seconds: float, **options: Any
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        child = self._free.get()
        try:
            about, arrays = child.ask(operation, data, seconds, **options)
        except ChildLost as lost:
            if lost.slow:
                raise TooSlow(f"Reading the file took more than {seconds:.0f} s, or all its processor time.") from None
            raise DamagedFile("The process that read the file did not survive it.") from None
        finally:
            self._free.put(child)
        if "refused" in about:
            raise PROBLEMS.get(about["refused"], DamagedFile)(about["detail"])
        return about, arrays


_shared: list[Reader] = []
_lock = threading.Lock()


def shared_reader() -> Reader:
    """The process's own reader, made when it is first asked for."""
    with _lock:
        if not _shared:
            _shared.append(Reader())
            atexit.register(_close_shared)
        return _shared[0]


def _close_shared() -> None:
    with suppress(IndexError):
        _shared.pop().close()
