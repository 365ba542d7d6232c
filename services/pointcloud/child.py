"""The process that reads what users send: it can open no file and no connection, and has little memory and time.

Its one open descriptor besides the standard ones is none: it talks over its standard input, a socket. A request is a
JSON line with `operation`, options and `sizes` of the blocks of bytes that follow; an answer has the same form.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from services.pointcloud import sampling
from services.pointcloud.formats.geometry import Refused
from services.pointcloud.formats.reading import parse
from services.pointcloud.neighbours import local_features, normalise

MEMORY = 1 << 30  # bytes above what the libraries take
CPU_SECONDS = 10.0  # of one request
LARGE = 4 << 20  # bytes of a request after which freed memory is handed back
Blocks = list[NDArray[Any]]


def read(asked: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Blocks]:
    """A file → points and what the encoder takes of them."""
    form, geometry = parse(data, drop=asked["non_finite"] == "drop", seed=asked["seed"])
    points, reduction = sampling.sample(geometry, asked["points"], seed=asked["seed"], how=asked["reduce"])
    low, high = points.min(axis=0), points.max(axis=0)
    if not np.isfinite(high - low).all() or np.abs(points).max() > 1e30:
        raise Refused("no-extent", "The coordinates are larger than 1e30.")
    if not (high - low).max() > max(1e-30, 1e-9 * float(np.abs(points).max())):
        raise Refused("no-extent", "All points are equal.")
    triangles = geometry.triangles_T3
    about = {
        "format": form,
        "points": geometry.total or len(geometry.vertices_V3),
        "triangles": 0 if triangles is None else len(triangles),
        "taken": len(points),
        "reduction": reduction,
        "notes": geometry.notes,
        "low": low.tolist(),
        "high": high.tolist(),
    }
    return _prepared(about, points)


def prepare(asked: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Blocks]:
    """Points, float32 (N, 3) → the same; for callers that have an array already."""
    points = np.frombuffer(data, np.float32).reshape(-1, 3).astype(np.float64)
    if not np.isfinite(points).all():
        raise Refused("not-finite", "The points are not all finite.")
    if len(points) < sampling.FEWEST:
        raise Refused("too-few", f"There are {len(points)} points; at least {sampling.FEWEST} are needed.")
    if not np.ptp(points, axis=0).max() > 0:
        raise Refused("no-extent", "All points are equal.")
    return _prepared({}, points)


def _prepared(about: dict[str, Any], points: NDArray[np.float64]) -> tuple[dict[str, Any], Blocks]:
    unit = normalise(points)
    features, neighbours = local_features(unit.points_N3)
    about |= {"centre": unit.centre_3.tolist(), "scale": unit.scale}
    return about, [features, neighbours.astype(np.int32)]


def distances(asked: dict[str, Any], data: bytes) -> tuple[dict[str, Any], Blocks]:
    """Two clouds, the first of `split` points → mean distances to the nearest point of the other, both ways."""
    points = np.frombuffer(data, np.float32).reshape(-1, 3)
    first, second = points[: asked["split"]], points[asked["split"] :]
    there = float(KDTree(second).query(first)[0].mean())
    back = float(KDTree(first).query(second)[0].mean())
    if not math.isfinite(there + back):
        raise Refused("not-finite", "The points are not all finite.")
    return {"there": there, "back": back}, []


OPERATIONS: dict[str, Callable[[dict[str, Any], bytes], tuple[dict[str, Any], Blocks]]] = {
    "read": read,
    "prepare": prepare,
    "distances": distances,
}


def confine() -> None:
    """Give up all that reading needs not: descriptors (so files and connections), processes, memory."""
    pages = int(open("/proc/self/statm").read().split()[0]) if os.path.exists("/proc/self/statm") else 0  # noqa: SIM115
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY),
        (resource.RLIMIT_NOFILE, 3),  # 0, 1 and 2 are open; no further one can be
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(what, (limit, limit))


def main() -> None:
    """Answer requests until the other end is closed."""
    link = socket.socket(fileno=0)
    warm = b"".join(b"%f %f %f\n" % (math.sin(i), math.cos(3 * i), i / 40) for i in range(40))
    OPERATIONS["read"]({"non_finite": "refuse", "seed": 0, "points": 32, "reduce": "voxel"}, warm)  # loads what is late
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    confine()
    link.sendall(b"ready\n")
    stream = link.makefile("rb", buffering=1 << 16)
    while line := stream.readline(1 << 16):
        asked = json.loads(line)
        data = stream.read(asked["size"])
        if len(data) < asked["size"]:
            return
        _limit_cpu()
        about: dict[str, Any]
        blocks: Blocks
        try:
            about, blocks = OPERATIONS[asked["operation"]](asked, data)
        except Refused as refused:
            about, blocks = {"refused": refused.kind, "detail": refused.detail}, []
        except MemoryError:
            about, blocks = {"refused": "too-large", "detail": "Reading the file needs more memory than is given."}, []
        except Exception:  # whatever a reader stumbles over in a hostile file
            about, blocks = {"refused": "damaged", "detail": "The file cannot be read."}, []
        large = len(data) > LARGE or "refused" in about
        del data
        about["blocks"] = [[block.dtype.str, list(block.shape)] for block in blocks]
        link.sendall(json.dumps(about).encode() + b"\n")
        for block in blocks:
            link.sendall(np.ascontiguousarray(block).data.cast("B"))
        del blocks
        if large:
            _return_memory()


def _limit_cpu() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + CPU_SECONDS)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


_LIBC = ctypes.CDLL(None)


def _return_memory() -> None:
    with suppress(AttributeError):  # glibc alone has it
        _LIBC.malloc_trim(0)


if __name__ == "__main__":
    main()
