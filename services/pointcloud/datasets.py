"""Shapes on disk → clouds with classes, families and splits.

    folders   <class>/…/<shape>.<any format of features.py>; ModelNet's <class>/train|test/<shape>.off and ShapeNet's
              <class>/<model>/models/<file>.obj are of this kind; files beside the folders have no class
    arrays    *.npz with `points` (S, N, 3) and optional `category`, `family`, `name`, `split` (S,), or *.npy (S, N, 3)
    list      splits.csv with the columns file and split (train, validation, test), where the data set has its own

Shapes: S shapes, N points. A family is what series of shapes have in common: a name with its digits masked.
"""

from __future__ import annotations

import csv
import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.pointcloud.features import Reader
from services.pointcloud.neighbours import normalise
from shared.datasets import Finding, Report
from shared.problems import FourfoldError, InputError

SUFFIXES = {".ply", ".pcd", ".xyz", ".pts", ".off", ".obj", ".stl", ".glb", ".las", ".laz", ".npy"}
SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "test": 2, "testing": 2}
SPLIT_TABLE = "splits.csv"
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.15
LEAST_SHAPES = 4
MOST_FINDINGS = 100
MOST_BYTES = 8 << 30  # what the arrays of one file may unpack to


class BadShapes(InputError):
    """A data set that cannot be read; names the file."""

    code = "pointcloud-bad-dataset"
    title = "The data set is not valid"
    advice = "Mend the file that the report names."


@dataclass(frozen=True)
class Shape:
    """One shape: `points_N3` in the unit ball; `split` is 0, 1, 2 of SPLITS, or −1 where the data set says nothing."""

    name: str
    label: str | None
    points_N3: NDArray[np.float32]
    family: str = ""
    split: int = -1


@dataclass(frozen=True)
class Shapes:
    """All shapes of a data set. `label_S` counts in `labels`, −1 without a class."""

    points: Sequence[NDArray[np.floating]]
    names: list[str]
    labels: tuple[str, ...]
    label_S: NDArray[np.int64]
    families: list[str]
    split_S: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.points)

    def cloud(self, index: int) -> NDArray[np.float32]:
        return np.asarray(self.points[index], np.float32)


Reject = Callable[[BadShapes], None]


def load_shapes(data: Path, *, points: int = 2048, seed: int = 0, exclude: bool = False) -> Shapes:
    """Every shape below the folder `data`, or of one file of arrays. Meshes are sampled by area, with the seed.

    Raises BadShapes at the first file that cannot be read, or with `exclude` leaves such files out.
    """
    found = list(iter_shapes(data, points=points, seed=seed, exclude=exclude))
    if len(found) < LEAST_SHAPES:
        raise BadShapes(f"There are {len(found)} shapes; it takes {LEAST_SHAPES}.", file=".")
    return _gathered(found)


def iter_shapes(
    data: Path, *, points: int = 2048, seed: int = 0, exclude: bool = False, reject: Reject | None = None
) -> Iterator[Shape]:
    """The shapes in the order of their paths. `reject` is told of every file that is left out."""

    def refuse(error: BadShapes) -> None:
        if reject is not None:
            reject(error)
        elif not exclude:
            raise error

    stated = _stated_splits(data, refuse)
    for path in _array_files(data):
        try:
            yield from _from_arrays(path)
        except BadShapes as error:
            refuse(error)
    files = [path for path in _shape_files(data) if path not in _array_files(data)]
    if not files:
        return
    with Reader() as reader:
        for path in files:
            relative = path.relative_to(data)
            try:
                cloud = reader.read(path.read_bytes(), points=points, seed=seed)
            except FourfoldError as error:
                refuse(BadShapes(f"{relative.as_posix()}: {error.detail}", file=relative.as_posix()))
                continue
            label, split = _place(relative)
            split = stated.get(relative.as_posix(), split)
            yield Shape(relative.as_posix(), label, cloud.unit_N3, _family(relative), split)


def validate(folder: Path) -> Report:
    """What is wrong with a data set, by file, and what there is; every file is parsed once, in a limited process."""
    findings: list[Finding] = []

    def note(error: BadShapes) -> None:
        findings.append(Finding(file=error.extra.get("file", "."), line=error.extra.get("line"), problem=error.detail))

    labels: dict[str, int] = defaultdict(int)
    families: set[tuple[str | None, str]] = set()
    splits = [0, 0, 0]
    count = 0
    for shape in iter_shapes(folder, points=64, reject=note):
        count += 1
        families.add((shape.label, shape.family))
        if shape.label is not None:
            labels[shape.label] += 1
        if shape.split >= 0:
            splits[shape.split] += 1
    counts = {"shapes": count, "classes": len(labels), "families": len(families), "bad": len(findings)}
    counts |= {name: number for name, number in zip(SPLITS, splits, strict=True) if number}
    if count < LEAST_SHAPES:
        findings.insert(0, Finding(file=".", problem=f"there are {count} readable shapes; it takes {LEAST_SHAPES}"))
        return Report(state="invalid", findings=findings[:MOST_FINDINGS], counts=counts)
    return Report(state="flawed" if findings else "valid", findings=findings[:MOST_FINDINGS], counts=counts)


def with_splits(shapes: Shapes, seed: int = 0, by: Literal["auto", "family", "shape"] = "auto") -> NDArray[np.int64]:
    """Split (S,) of each shape: 0 train, 1 validation, 2 test.

    As the data set states, with a part of its training shapes for validation where it states none. Else each class is
    split for itself: its families in the order of a hash with the seed fill the test split up to a fifth, then
    validation up to 15 %; its largest family is always trained on. A class of one family is trained on alone, one of
    two has no validation shapes.
    """
    split_S = shapes.split_S.copy()
    if (split_S == 2).any():
        split_S[split_S < 0] = 0
        if not (split_S == 1).any():
            train = np.flatnonzero(split_S == 0)
            keys = [_hash(seed, shapes.names[index]) for index in train]
            split_S[train[np.argsort(keys)[: max(1, round(VALIDATION_SHARE * len(train)))]]] = 1
        return split_S
    whole = by == "family" or (by == "auto" and _enough_families(shapes))
    groups = [f"{label}/{family}" for label, family in zip(shapes.label_S, shapes.families, strict=True)]
    keys = groups if whole else [f"{index}/{name}" for index, name in enumerate(shapes.names)]
    split_S[:] = 0
    for label in np.unique(shapes.label_S):
        members: dict[str, list[int]] = defaultdict(list)
        for index in np.flatnonzero(shapes.label_S == label):
            members[keys[index]].append(int(index))
        largest = max(members, key=lambda key: (len(members[key]), key))
        order = sorted(members.keys() - {largest}, key=lambda key: _hash(seed, key))
        total = sum(len(part) for part in members.values())
        taken = {2: 0, 1: 0}
        for key in order:
            part = 2 if taken[2] < TEST_SHARE * total else 1 if taken[1] < VALIDATION_SHARE * total else 0
            split_S[members[key]] = part
            if part:
                taken[part] += len(members[key])
    for part in (1, 2):
        if not (split_S == part).any():
            raise BadShapes(f"The split leaves no shape for {SPLITS[part]}: there are too few families.", file=".")
    return split_S


def known_labels(shapes: Shapes, least: int) -> Shapes:
    """The same shapes, where classes with fewer than `least` have lost their label."""
    counts = np.bincount(shapes.label_S[shapes.label_S >= 0], minlength=len(shapes.labels))
    kept = [number for number in range(len(shapes.labels)) if counts[number] >= least]
    renumbered = np.full(len(shapes.labels) + 1, -1)
    renumbered[kept] = np.arange(len(kept))
    return Shapes(
        shapes.points,
        shapes.names,
        tuple(shapes.labels[number] for number in kept),
        renumbered[shapes.label_S],
        shapes.families,
        shapes.split_S,
    )


def capped(shapes: Shapes, chosen: NDArray[np.int64], cap: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`chosen` in random order, at most `cap` of each family, drawn anew each time: a long series counts as a few."""
    taken: dict[str, int] = defaultdict(int)
    order: list[int] = []
    for index in random.permutation(chosen):
        family = f"{shapes.label_S[index]}/{shapes.families[index]}"
        taken[family] += 1
        if taken[family] <= cap:
            order.append(int(index))
    return np.array(order, np.int64)


# -- reading


def _gathered(found: list[Shape]) -> Shapes:
    labels = tuple(sorted({shape.label for shape in found if shape.label is not None}))
    number = {label: index for index, label in enumerate(labels)}
    return Shapes(
        [shape.points_N3 for shape in found],
        [shape.name for shape in found],
        labels,
        np.array([number.get(shape.label or "", -1) for shape in found], np.int64),
        [shape.family for shape in found],
        np.array([shape.split for shape in found], np.int64),
    )


def _array_files(data: Path) -> list[Path]:
    if data.is_file():
        return [data]
    found = [path for path in data.iterdir() if path.suffix == ".npz" and not path.is_symlink()]
    found += [path for path in data.glob("*.npy") if not path.is_symlink() and _dimensions(path) == 3]
    return sorted(found)


def _dimensions(path: Path) -> int:
    """Of an .npy file by its header; 0 where there is none."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).ndim
    except (ValueError, OSError):
        return 0


def _shape_files(data: Path) -> list[Path]:
    if data.is_file():
        return []
    paths = (path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_symlink())
    return sorted(path for path in paths if path.is_file())


def _place(relative: Path) -> tuple[str | None, int]:
    """(class, split) that a shape's place in the folder tells."""
    folders = relative.parts[:-1]
    split = next((SPLIT_WORDS[part.lower()] for part in folders if part.lower() in SPLIT_WORDS), -1)
    named = [part for part in folders if part.lower() not in SPLIT_WORDS]
    return (named[0] if named else None), split


def _family(relative: Path) -> str:
    # ShapeNet names the folder, not the file: model_normalized.obj is the name of all.
    folders = [part for part in relative.parts[1:-1] if part.lower() not in SPLIT_WORDS and part != "models"]
    return "/".join([*folders, masked(relative.stem)])


def masked(name: str) -> str:
    """A name with its runs of digits masked."""
    return re.sub(r"\d+", "#", name)


def _stated_splits(data: Path, refuse: Reject) -> dict[str, int]:
    """path → split of splits.csv."""
    table = data / SPLIT_TABLE
    if data.is_file() or not table.is_file():
        return {}
    found: dict[str, int] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                file, word = row.get("file"), str(row.get("split") or "").lower()
                if not file or word not in SPLIT_WORDS:
                    raise ValueError(f"line {reader.line_num}: columns file and split (train, validation, test)")
                found[file] = SPLIT_WORDS[word]
    except (ValueError, csv.Error) as error:
        refuse(BadShapes(f"{SPLIT_TABLE} is not a list of files and splits: {error}.", file=SPLIT_TABLE))
    return found


def _from_arrays(path: Path) -> Iterator[Shape]:
    arrays = _arrays(path)
    if "points" not in arrays:
        raise BadShapes(f"{path.name} has no array of the name points.", file=path.name)
    points_SN3 = arrays["points"]
    if points_SN3.ndim != 3 or points_SN3.shape[2] != 3 or 0 in points_SN3.shape:
        raise BadShapes(f"{path.name}: points has the shape {list(points_SN3.shape)}, not (S, N, 3).", file=path.name)
    columns: dict[str, list[str] | None] = {}
    for name in ("category", "family", "name", "split"):
        column = arrays.get(name)
        if column is not None and column.shape != (len(points_SN3),):
            raise BadShapes(f"{path.name}: {name} has not one value a shape.", file=path.name)
        columns[name] = None if column is None else [str(value) for value in column]
    categories, families, names, splits = (columns[name] for name in ("category", "family", "name", "split"))
    for index, points_N3 in enumerate(points_SN3):
        if not np.isfinite(points_N3).all():
            raise BadShapes(f"{path.name}: shape {index} has a coordinate that is not finite.", file=path.name)
        name = names[index] if names else f"{path.stem}/{index}"
        split = SPLIT_WORDS.get(splits[index].lower(), -1) if splits else -1
        family = families[index] if families else masked(name.rpartition("#")[2])
        # The files hold half precision; it is enough for a unit ball, and halves the memory.
        unit_N3 = normalise(points_N3).points_N3.astype(np.float16)
        yield Shape(name, categories[index] if categories else None, unit_N3, family, split)  # pyright: ignore[reportArgumentType]


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        if path.suffix == ".npy":
            return {"points": np.load(path, mmap_mode="r", allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > MOST_BYTES:
            raise BadShapes(f"{path.name} unpacks to {size:,} bytes; at most {MOST_BYTES:,} are read.", file=path.name)
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in ("points", "category", "family", "name", "split") if name in opened}
    except BadShapes:
        raise
    except Exception as error:  # whatever a hostile or damaged file raises
        raise BadShapes(f"{path.name} is not a file of plain arrays; nothing in it was run.", file=path.name) from error


def _enough_families(shapes: Shapes) -> bool:
    """Whether half of the classes, or the whole set without classes, have three families: else numbers are names."""
    found: dict[int, set[str]] = defaultdict(set)
    for label, family in zip(shapes.label_S, shapes.families, strict=True):
        found[int(label)].add(family)
    return float(np.mean([len(families) >= 3 for families in found.values()])) >= 0.5


def _hash(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()
