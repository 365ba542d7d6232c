"""Makes a training set from pristine photographs: distortions at five strengths, labelled by a full-reference proxy.

    python -m services.iqa.synthesise --photos DIR-OR-LIST --root DIR --out DIR

`--photos` is a folder of photographs, or a list such as `photographs.csv` here (package, path, scene) whose paths lie
below `--root`, where the packages are unpacked. Photographs of one scene are never divided between the splits; without
a scene, each is its own. Written are `images/*.png` and `scores.csv` (file, source, kind, strength, score, split and
the four metrics). The score is the mean rank of four full-reference metrics over the whole set, mapped to 0–100 (100 is
best, the pristine images). It is a proxy: nobody has looked at these pictures, and it is never to be called an opinion
score.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from services.iqa.datasets import SPLITS, find_photographs, source_of, split_sources
from services.iqa.distortions import DISTORTIONS, STRENGTHS, distort
from services.iqa.full_reference import METRICS

# Every view has one size, since the metrics work on a scale that they choose by the size.
WIDTH = 512  # the height is ¾ of it


@dataclass(frozen=True)
class Row:
    """One image of the set; the metrics are as their papers define them."""

    file: str
    source: str
    kind: str
    strength: int
    split: str
    mdsi: float
    vsi: float
    haarpsi: float
    ms_gmsdc: float
    score: float = 0.0


def read_list(table: Path, root: Path) -> dict[Path, str]:
    """The photographs that `table` names, below `root` → their scenes.

    Raises ValueError naming the line and what to unpack.
    """
    found: dict[Path, str] = {}
    with table.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := {"package", "path"} - set(reader.fieldnames or ()):
            raise ValueError(f"{table.name} lacks the column {sorted(missing)[0]!r}")
        for row in reader:
            path = root / row["path"]
            if not path.is_file():
                where = f"{table.name} line {reader.line_num}"
                raise ValueError(f"{where}: the root has no {row['path']!r}; unpack the package {row['package']} there")
            found[path] = row.get("scene") or source_of(path)
    return found


def is_photographic(image_HW3: np.ndarray) -> bool:
    """Whether a picture has the texture of a photograph; gradients and line art make full-reference labels moot."""
    grey = image_HW3.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    down, right = np.gradient(grey)
    slope = np.hypot(down, right)
    return bool(np.median(slope) > 0.4 and (slope > 8).mean() > 0.02)


def least_width(target: int) -> int:
    """Pixels of a photograph that become `target`: it is reduced to ¾ at least, which hides its compression."""
    return -(-target * 4 // 3)


def pristine_views(path: Path, views: int, random: np.random.Generator, target: int = WIDTH) -> list[np.ndarray]:
    """Up to `views` pictures from one photograph, uint8 (¾ target, target, 3), each reduced to ¾ of its pixels at
    least.

    The first is the whole photograph, cropped to 4 : 3 and laid on its side if it is upright; the next are boxes of
    random size and place, no more of them than would fit beside each other at the smallest size.
    """
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.height > picture.width:
        picture = picture.rotate(90, expand=True)
    width = min(picture.width, picture.height * 4 // 3)
    least = least_width(target)
    if width < least:
        return []
    height = width * 3 // 4
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    boxes = [(left, top, left + width, top + height)]
    for _ in range(1, min(views, (width // least) ** 2)):
        wide = int(least * (width / least) ** random.random())
        high = wide * 3 // 4
        x, y = int(random.integers(picture.width - wide + 1)), int(random.integers(picture.height - high + 1))
        boxes.append((x, y, x + wide, y + high))
    return [
        np.asarray(picture.resize((target, target * 3 // 4), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
        for box in boxes
    ]


@dataclass(frozen=True)
class _Job:
    """One pristine view and the (kind, strength) pairs to make from it."""

    pristine: np.ndarray
    source: str
    view: int
    split: str
    pairs: list[tuple[str, int]]
    seed: int
    folder: Path


def _distorted_rows(job: _Job) -> list[Row]:
    torch.set_num_threads(1)
    reference = torch.from_numpy(job.pristine.astype(np.float32)).permute(2, 0, 1)[None]
    rows: list[Row] = []
    for kind, strength in [("none", 0), *job.pairs]:
        image = job.pristine if kind == "none" else distort(job.pristine, kind, strength, job.seed)
        file = f"images/{job.source}-{job.view}-{kind}-{strength}.png"
        Image.fromarray(image).save(job.folder / file, compress_level=1)
        distorted = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            values = {name: float(metric(reference, distorted)) for name, (metric, _) in METRICS.items()}
        rows.append(Row(file, job.source, kind, strength, job.split, **values))
    return rows


def consensus(rows: list[Row]) -> list[Row]:
    """`rows` with `score` set: the mean rank over the metrics, 0–100, pristine images exactly 100."""
    distorted = [row for row in rows if row.kind != "none"]
    ranks = [rankdata([sign * getattr(row, name) for row in distorted]) for name, (_, sign) in METRICS.items()]
    # Ranks run from 1 to n: (rank − ½)/n keeps distorted images strictly inside 0–100.
    scores = 100 * (np.mean(ranks, axis=0) - 0.5) / max(1, len(distorted))
    by_file = {row.file: float(score) for row, score in zip(distorted, scores, strict=True)}
    return [replace(row, score=round(by_file.get(row.file, 100.0), 4)) for row in rows]


def synthesise(
    photographs: Mapping[Path, str],
    out: Path,
    *,
    views: int = 12,
    share: float = 0.25,
    seed: int = 0,
    processes: int = 1,
    width: int = WIDTH,
    watch: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Write the set made from `photographs` (path → scene) to `out` and return its rows.

    Of each training view a random `share` of the kinds and strengths is made: at the same number of images, many
    contents teach more than all distortions of a few. Held-out photographs give one view each, with all of them.
    `watch` is called before each picture and may raise. Raises ValueError when no photograph is usable, or two have
    one name.
    """
    named = {source_of(path): path for path in photographs}
    if len(named) < len(photographs):
        raise ValueError("two photographs have the same name; their views would overwrite each other")
    (out / "images").mkdir(parents=True, exist_ok=True)
    splits = split_sources({source: photographs[path] for source, path in named.items()})
    pairs = [(kind, strength) for kind in DISTORTIONS for strength in STRENGTHS]
    jobs: list[_Job] = []
    for source, path in named.items():
        training = splits[source] == "train"
        boxes = np.random.default_rng(zlib.crc32(f"{seed}/{source}".encode()))
        for view, pristine in enumerate(pristine_views(path, views if training else 1, boxes, width)):
            if not is_photographic(pristine):
                continue
            # Every view has its own noise: one realisation for all could be learnt by heart.
            own = zlib.crc32(f"{seed}/{source}/{view}".encode())
            chosen = np.random.default_rng(own).random(len(pairs)) < share if training else np.full(len(pairs), True)
            wanted = [pair for pair, is_wanted in zip(pairs, chosen, strict=True) if is_wanted]
            jobs.append(_Job(pristine, source, view, splits[source], wanted, own, out))
    if not jobs:
        raise ValueError(f"none of the pictures is a photograph of at least {least_width(width)} pixels in width")
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            made = list(pool.map(_distorted_rows, jobs))
    else:
        made: list[list[Row]] = []
        for job in jobs:
            watch()
            made.append(_distorted_rows(job))
    rows = consensus([row for rows in made for row in rows])
    with (out / "scores.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs, or a list of them")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where a list's packages are unpacked")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=12, help="pictures taken from one training photograph, at most")
    parser.add_argument(
        "--share", type=float, default=0.25, help="part of all distortions made from a training picture"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    folder: Path = given.photos
    photographs = find_photographs(folder) if folder.is_dir() else read_list(folder, given.root)
    options = {"views": given.views, "share": given.share, "seed": given.seed, "processes": given.processes}
    rows = synthesise(photographs, given.out, **options)
    for split in SPLITS:
        chosen = [row for row in rows if row.split == split]
        print(f"{split}: {len({row.source for row in chosen})} photographs, {len(chosen)} images")


if __name__ == "__main__":
    main()
