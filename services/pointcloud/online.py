"""What a request costs: processor time by part, the search of 100,000 codewords, and the memory of a large file.

    python -m services.pointcloud.online [--bundle DIR] [--data SHAPES] [--codewords 100000] [--only parts large search]

Processor time, not the clock: it does not depend on what else the machine does. Shapes: S shapes, W numbers, P points.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.pointcloud import writers
from services.pointcloud.features import Cloud, Reader
from services.pointcloud.index import FILE, SEARCH_WIDTH, Index, write_index
from services.pointcloud.neighbours import local_features
from services.pointcloud.predict import PointcloudPredictor, load
from shared.bundles import Bundle
from shared.settings import ServiceSettings

ROUNDS = 30
Floats = NDArray[np.float32]


def torus(points: int, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    around, across = random.uniform(0, 2 * np.pi, (2, points))
    ring = 1 + 0.4 * np.cos(across)
    return np.stack([ring * np.cos(around), ring * np.sin(around), 0.4 * np.sin(across)], axis=1).astype(np.float32)


def cpu_ms(call: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median processor time of this process, milliseconds, after a warm-up."""
    call()
    times: list[float] = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return float(np.median(times) * 1000)


def child_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def of_parts(predictor: PointcloudPredictor) -> dict[str, float]:
    """CPU-ms of each part of a reconstruction of 2,048 points."""
    unit = torus(2048) / np.float32(1.5)
    features, neighbours = local_features(unit)
    cloud = Cloud(features, neighbours, np.zeros(3), 1.0)
    codeword = predictor.encode(cloud)
    decoded = predictor.decode(codeword)
    triangles = predictor.triangles(None)
    found = {
        "neighbours and covariances": cpu_ms(lambda: local_features(unit)),
        "encoder": cpu_ms(lambda: predictor.encode(cloud)),
        "decoder": cpu_ms(lambda: predictor.decode(codeword)),
        "GLB written": cpu_ms(lambda: writers.glb(decoded, triangles, {})),
    }
    with Reader(1) as reader:
        for name, data in {"binary PLY": writers.ply(unit, None), "XYZ text": _text(unit)}.items():
            found[f"{name}: sent, read, sampled, normalised, neighbours"] = _with_child(
                reader, lambda data=data: reader.read(data)
            )
        found["distance to the input (measure=true)"] = _with_child(reader, lambda: reader.distances(unit, decoded))
    return found


def _with_child(reader: Reader, call: Callable[[], Any], rounds: int = 100) -> float:
    """Mean CPU-ms of this process and the child together."""
    call()
    pid = reader.children[0].pid or 0
    begun = time.process_time() + child_seconds(pid)
    for _ in range(rounds):
        call()
    return (time.process_time() + child_seconds(pid) - begun) / rounds * 1000


def _text(points: Floats) -> bytes:
    stream = io.BytesIO()
    np.savetxt(stream, points, "%.6f")
    return stream.getvalue()


def of_search(codewords_SW: Floats, queries_QW: Floats, folder: Path) -> dict[str, float]:
    """CPU-ms a search of ten shapes, and the recall of the exact ten."""
    path = folder / FILE
    names = [f"{row}" for row in range(len(codewords_SW))]
    previews = np.zeros((len(names), 16, 3), np.float32)
    begun = time.process_time()
    write_index(path, codewords_SW=codewords_SW, previews_SP3=previews, names=names, labels=names, fingerprint=b"x" * 8)
    built = time.process_time() - begun
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = Index(path, "")
    squares_S = (codewords_SW**2).sum(1)
    times: list[float] = []
    right = 0
    for query in queries_QW:
        begun = time.process_time()
        found = index.search(query, 10)
        times.append(time.process_time() - begun)
        exact = np.argpartition(squares_S - 2 * codewords_SW @ query, 10)[:10]
        right += len({int(item.name) for item in found} & set(exact.tolist()))
    return {
        "built in s": built,
        "file in MB": path.stat().st_size / 1e6,
        "search in CPU-ms, median": float(np.median(times) * 1000),
        "search in CPU-ms, 99 %": float(np.quantile(times, 0.99) * 1000),
        "recall of the exact ten": right / 10 / len(queries_QW),
        "growth of the peak memory in MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def many_codewords(predictor: PointcloudPredictor, count: int, data: Path | None, seed: int = 0) -> Floats:
    """Codewords (S, W) of real shapes, each turned and stretched anew until there are `count`: encoding a hundred
    thousand takes an hour, so of a sample of them; the others lie between two of nearly the same shape."""
    from services.pointcloud.datasets import load_shapes

    random = np.random.default_rng(seed)
    clouds = [torus(512, number) * random.uniform(0.2, 1, 3).astype(np.float32) for number in range(200)]
    if data is not None:
        shapes = load_shapes(data)
        chosen = random.permutation(len(shapes))[:600]
        clouds = [shapes.cloud(int(row))[:512] for row in chosen]
    codes: list[Floats] = []
    for cloud in clouds:
        points = cloud / np.linalg.norm(cloud, axis=1).max()
        features, neighbours = local_features(points)
        codes.append(predictor.encode(Cloud(features, neighbours, np.zeros(3), 1.0)))
    real_SW = np.stack(codes)
    first, second = random.integers(0, len(real_SW), (2, count))
    share = random.uniform(0, 0.3, (count, 1)).astype(np.float32)
    mixed = real_SW[first] * (1 - share) + real_SW[second] * share
    return (mixed + random.normal(0, 0.02, mixed.shape) * real_SW.std(0)).astype(np.float32)


def of_large() -> dict[str, float]:
    """Seconds and memory of a file of a million points, in this process and in the child."""
    points = np.random.default_rng(0).normal(size=(1_000_000, 3)).astype(np.float32)
    found: dict[str, float] = {}
    for name, data in {"PLY": writers.ply(points, None), "XYZ": _text(points)}.items():
        with Reader(1) as reader:
            reader.prepare(torus(64))
            pid = reader.children[0].pid or 0
            before, ours, seconds = _peak(pid), _resident(), child_seconds(pid)
            reader.read(data)
            found[f"{name} of {len(data) / 1e6:.0f} MB: child's peak above its start, MB"] = (
                _peak(pid) - before
            ) / 1024
            found[f"{name}: this process's growth, MB"] = (_resident() - ours) / 1024
            found[f"{name}: CPU-s"] = child_seconds(pid) - seconds
    return found


def _peak(pid: int) -> int:
    return _status(f"/proc/{pid}/status", "VmHWM")


def _resident() -> int:
    return _status("/proc/self/status", "VmRSS")


def _status(path: str, what: str) -> int:
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(what))
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=Path(__file__).with_name("pretrained"))
    parser.add_argument("--data", type=Path, help="shapes whose codewords are searched; tori if unset")
    parser.add_argument("--codewords", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", default=["parts", "large", "search"], choices=["parts", "large", "search"])
    given = parser.parse_args()
    predictor = load(Bundle.open(given.bundle), ServiceSettings())
    if "search" in given.only:
        print(f"search among {given.codewords} codewords, search width {SEARCH_WIDTH}")
        everything = many_codewords(predictor, given.codewords + 100, given.data)
        with tempfile.TemporaryDirectory() as folder:
            _print(of_search(everything[:-100], everything[-100:], Path(folder)))
    if "large" in given.only:
        print("a file of a million points")
        _print(of_large())
    if "parts" not in given.only:
        return
    parts = of_parts(predictor)
    print("CPU-ms a cloud of 2,048 points")
    _print(parts)
    reading = next(value for name, value in parts.items() if name.startswith("binary PLY"))
    print(
        f"  {reading + parts['encoder'] + parts['decoder'] + parts['GLB written']:8.2f}  a reconstruction, PLY to GLB"
    )


def _print(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f"  {value:8.2f}  {name}")


if __name__ == "__main__":
    main()
