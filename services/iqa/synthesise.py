"""Makes a training set from pristine photographs: distortions at five strengths, labelled by a full-reference proxy.

    python -m services.iqa.synthesise --photos DIR [DIR …] --out DIR

writes `images/*.png` and `scores.csv` (file, source, kind, strength, score, split and the four metrics). The score is
the mean rank of four full-reference metrics over the whole set, mapped to 0–100 (100 is best, the pristine images).
It is a proxy: nobody has looked at these pictures, and it is never to be called an opinion score.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from services.iqa.distortions import DISTORTIONS, STRENGTHS, distort
from services.iqa.full_reference import METRICS

LONG_SIDE, SHORT_SIDE = 512, 384
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLITS = ("train", "validation", "test")


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


def source_of(path: Path) -> str:
    """The name of a photograph's content, fit for a file name."""
    name = path.parts[-4] if path.parent.name == "images" and path.parent.parent.name == "contents" else path.stem
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def find_photographs(folders: list[Path]) -> list[Path]:
    """Photographs below `folders`, one a content: the largest where a theme holds several sizes of one picture."""
    chosen: dict[str, Path] = {}
    for folder in folders:
        # `<theme>/contents/images/<width>x<height>.jpg` is the desktop themes' layout.
        for path in sorted([*folder.glob("*"), *folder.glob("*/contents/images/*")]):
            if path.suffix.lower() not in PHOTO_SUFFIXES or path.is_symlink():
                continue
            content = source_of(path)
            if content not in chosen or path.stat().st_size > chosen[content].stat().st_size:
                chosen[content] = path
    return [chosen[content] for content in sorted(chosen)]


def is_photographic(image_HW3: np.ndarray) -> bool:
    """Whether a picture has the texture of a photograph; gradients and line art make full-reference labels moot."""
    grey = image_HW3.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    down, right = np.gradient(grey)
    slope = np.hypot(down, right)
    return bool(np.median(slope) > 0.4 and (slope > 8).mean() > 0.02)


def pristine_views(path: Path, views: int) -> list[np.ndarray]:
    """Up to `views` pictures of LONG_SIDE × SHORT_SIDE from one photograph, each at least halved from its pixels.

    The first is the whole photograph, cropped to the aspect; the next are quarters of it, where it has the pixels.
    """
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.height > picture.width:
        picture = picture.rotate(90, expand=True)
    width = min(picture.width, picture.height * LONG_SIDE // SHORT_SIDE)
    height = width * SHORT_SIDE // LONG_SIDE
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    boxes = [(left, top, left + width, top + height)]
    for column, row in ((0, 0), (1, 1), (1, 0), (0, 1)):
        x, y = left + column * width // 2, top + row * height // 2
        boxes.append((x, y, x + width // 2, y + height // 2))
    usable = [box for box in boxes if box[2] - box[0] >= 2 * LONG_SIDE]
    return [
        np.asarray(picture.resize((LONG_SIDE, SHORT_SIDE), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
        for box in usable[:views]
    ]


def split_sources(sources: list[str]) -> dict[str, str]:
    """Source → train, validation or test (62 : 18 : 20), in the order of a hash, so that no photograph is in two."""
    ordered = sorted(set(sources), key=lambda source: hashlib.sha256(source.encode()).digest())
    shares = [(position + 0.5) / len(ordered) for position in range(len(ordered))]
    return {
        source: SPLITS[2] if share < 0.20 else SPLITS[1] if share < 0.38 else SPLITS[0]
        for source, share in zip(ordered, shares, strict=True)
    }


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
    photographs: list[Path], out: Path, *, views: int = 5, share: float = 0.5, seed: int = 0, processes: int = 1
) -> list[Row]:
    """Write the set made from `photographs` to `out` and return its rows; raises ValueError when none is usable.

    Of each training view a random `share` of the kinds and strengths is made: at the same number of images, many
    contents teach more than all distortions of a few. Held-out photographs give one view each, with all of them.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    pictures = {
        source_of(path): [view for view in pristine_views(path, views) if is_photographic(view)] for path in photographs
    }
    pictures = {source: found for source, found in pictures.items() if found}
    splits = split_sources(list(pictures))
    pairs = [(kind, strength) for kind in DISTORTIONS for strength in STRENGTHS]
    jobs: list[_Job] = []
    for source, found in pictures.items():
        training = splits[source] == "train"
        for view, pristine in enumerate(found if training else found[:1]):
            # Every view has its own noise: one realisation for all could be learnt by heart.
            own = zlib.crc32(f"{seed}/{source}/{view}".encode())
            chosen = np.random.default_rng(own).random(len(pairs)) < share if training else np.full(len(pairs), True)
            made = [pair for pair, wanted in zip(pairs, chosen, strict=True) if wanted]
            jobs.append(_Job(pristine, source, view, splits[source], made, own, out))
    if not jobs:
        raise ValueError("none of the pictures is a photograph of at least 1024 pixels in width")
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            made = list(pool.map(_distorted_rows, jobs))
    else:
        made = [_distorted_rows(job) for job in jobs]
    rows = consensus([row for rows in made for row in rows])
    with (out / "scores.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of pristine photographs")
    parser.add_argument("--exclude", nargs="*", default=[], help="contents to leave out, such as rendered pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=5, help="pictures taken from one training photograph, at most")
    parser.add_argument("--share", type=float, default=0.5, help="part of all distortions made from a training picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    photographs = [path for path in find_photographs(given.photos) if source_of(path) not in given.exclude]
    options = {"views": given.views, "share": given.share, "seed": given.seed, "processes": given.processes}
    rows = synthesise(photographs, given.out, **options)
    for split in SPLITS:
        chosen = [row for row in rows if row.split == split]
        print(f"{split}: {len({row.source for row in chosen})} photographs, {len(chosen)} images")


if __name__ == "__main__":
    main()
