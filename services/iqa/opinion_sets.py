"""The public opinion-score sets in their official layouts → the same records as our own folders.

Scores become 0–100, higher is better, by a linear map of the set's own scale (`OpinionSet.scale`); rank and linear
correlations do not depend on it. `Record.source` is the reference photograph where a set has one, else the image: what
a split must keep together. Every loader raises BadDataset that names the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.iqa.datasets import BadDataset, Record


@dataclass(frozen=True)
class OpinionSet:
    """One public set: its title and paper, the score that means worst and the one that means best, and its loader."""

    title: str
    scale: tuple[float, float]
    load: Callable[[Path, Scale], list[Record]]


class Scale:
    """A set's own score → 0–100, higher is better; a score off the scale by rounding is clipped."""

    def __init__(self, worst: float, best: float) -> None:
        self.worst, self.best = worst, best

    def __call__(self, value: Any, table: str, line: int) -> float:
        try:
            share = (float(value) - self.worst) / (self.best - self.worst)
        except (TypeError, ValueError):
            share = math.nan
        if not -0.05 <= share <= 1.05:  # also refuses NaN
            why = f"{value!r} is not a score between {self.worst:g} and {self.best:g}."
            raise BadDataset(f"{table} line {line}: {why}", file=table, line=line)
        return 100 * min(1.0, max(0.0, share))


class _Files:
    """The files below a folder by lower-case name: the sets' tables and files disagree about case."""

    def __init__(self, folder: Path, *, nested: bool = False) -> None:
        if not folder.is_dir():
            raise BadDataset(f"The set has no folder {folder.name!r}.", file=folder.name)
        found = folder.rglob("*") if nested else folder.iterdir()
        self._paths = {path.name.lower(): path for path in found if path.is_file()}

    def __call__(self, name: str, table: str, line: int) -> Path:
        path = self._paths.get(name.lower())
        if path is None:
            raise BadDataset(f"{table} line {line}: there is no file {name!r}.", file=table, line=line)
        return path


def load_opinion_set(name: str, folder: Path) -> list[Record]:
    """The records of the public set `name` (a key of OPINION_SETS) unpacked in `folder`; raises BadDataset."""
    if name not in OPINION_SETS:
        raise BadDataset(f"There is no set {name!r}; the sets are {', '.join(OPINION_SETS)}.")
    chosen = OPINION_SETS[name]
    records = chosen.load(folder, Scale(*chosen.scale))
    if not records:
        raise BadDataset(f"The {chosen.title} set in this folder lists no image.")
    return records


def _kadid10k(folder: Path, scale: Scale) -> list[Record]:
    """`dmos.csv` (dist_img, ref_img, dmos, var; 1 worst to 5 best in spite of the name) and `images/`."""
    files, records = _Files(folder / "images"), []
    for line, row in _csv_rows(folder / "dmos.csv", ("dist_img", "ref_img", "dmos")):
        path, reference = files(row["dist_img"], "dmos.csv", line), files(row["ref_img"], "dmos.csv", line)
        # I01_03_05.png: reference 1, distortion 3, level 5.
        parts = path.stem.split("_")
        kind, strength = (parts[1], int(parts[2])) if len(parts) == 3 and parts[2].isdigit() else ("", 0)
        score = scale(row["dmos"], "dmos.csv", line)
        records.append(Record(path, score, reference.stem, kind, strength, reference=reference))
    return records


def _tid2013(folder: Path, scale: Scale) -> list[Record]:
    """`mos_with_names.txt` (score and name a line), `distorted_images/` and `reference_images/`."""
    table = "mos_with_names.txt"
    distorted, references = _Files(folder / "distorted_images"), _Files(folder / "reference_images")
    records: list[Record] = []
    for line, text in enumerate(_text(folder / table).splitlines(), start=1):
        if not text.strip():
            continue
        words = text.split()
        parts = Path(words[-1]).stem.split("_")
        if len(words) != 2 or len(parts) != 3 or not parts[2].isdigit():
            raise BadDataset(f"{table} line {line}: not `score I01_01_1.bmp`.", file=table, line=line)
        reference = references(f"{parts[0]}.bmp", table, line)
        score, path = scale(words[0], table, line), distorted(words[1], table, line)
        records.append(Record(path, score, parts[0].upper(), parts[1], int(parts[2]), reference=reference))
    return records


def _koniq10k(folder: Path, scale: Scale) -> list[Record]:
    """`koniq10k_scores_and_distributions.csv` (image_name, …, MOS) and `1024x768/` or `512x384/`.

    The optional `koniq10k_distributions_sets.csv` (image_name, …, set) brings the official split.
    """
    table = "koniq10k_scores_and_distributions.csv"
    sized = next((folder / name for name in ("1024x768", "512x384") if (folder / name).is_dir()), folder / "1024x768")
    files, splits = _Files(sized), dict[str, str]()
    official = folder / "koniq10k_distributions_sets.csv"
    if official.is_file():
        names = {"training": "train"}
        rows = _csv_rows(official, ("image_name", "set"))
        splits = {row["image_name"]: names.get(row["set"], row["set"]) for _, row in rows}
    return [
        Record(
            files(row["image_name"], table, line),
            scale(row["MOS"], table, line),
            row["image_name"],
            split=splits.get(row["image_name"], ""),
        )
        for line, row in _csv_rows(folder / table, ("image_name", "MOS"))
    ]


# Folder and number of images of LIVE release 2, in the order of its score vector.
_LIVE_PARTS = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))


def _live(folder: Path, scale: Scale) -> list[Record]:
    """`dmos_realigned.mat` (dmos_new, orgs), `refnames_all.mat`, `refimgs/` and a folder a distortion of `imgN.bmp`."""
    table = "dmos_realigned.mat"
    scores, originals = (_vector(folder / table, name) for name in ("dmos_new", "orgs"))
    names = _vector(folder / "refnames_all.mat", "refnames_all")
    places = [(kind, number) for kind, count in _LIVE_PARTS for number in range(1, count + 1)]
    if not len(scores) == len(originals) == len(names) == len(places):
        raise BadDataset(f"{table} and refnames_all.mat must have {len(places)} entries each.", file=table)
    references = _Files(folder / "refimgs")
    images = {kind: _Files(folder / kind) for kind, _ in _LIVE_PARTS}
    records: list[Record] = []
    for entry, ((kind, number), score, original, name) in enumerate(
        zip(places, scores, originals, names, strict=True), start=1
    ):
        if original:  # the references appear again among the distorted images
            continue
        reference = references(_string(name), "refnames_all.mat", entry)
        path = images[kind](f"img{number}.bmp", table, entry)
        records.append(Record(path, scale(score, table, entry), reference.stem, kind, reference=reference))
    return records


# What `csiq.DMOS.xlsx` calls a distortion → how the image files call it.
_CSIQ_KINDS = {
    "noise": "AWGN",
    "blur": "BLUR",
    "contrast": "contrast",
    "fnoise": "fnoise",
    "jpeg": "JPEG",
    "jpeg2000": "jpeg2000",
}


def _csiq(folder: Path, scale: Scale) -> list[Record]:
    """`csiq.DMOS.xlsx`, sheet all_by_image (image, dst_type, dst_lev, dmos), `src_imgs/` and `dst_imgs/<kind>/`."""
    table = "csiq.DMOS.xlsx"
    references, distorted = _Files(folder / "src_imgs"), _Files(folder / "dst_imgs", nested=True)
    records: list[Record] = []
    columns = ("image", "dst_type", "dst_lev", "dmos")
    for line, (image, kind, level, dmos) in _sheet_rows(folder / table, columns, sheet="all_by_image"):
        name = _CSIQ_KINDS.get(str(kind).replace(" ", "").lower())
        if name is None:
            raise BadDataset(f"{table} line {line}: {kind!r} is not a distortion of this set.", file=table, line=line)
        reference = references(f"{image}.png", table, line)
        path = distorted(f"{image}.{name}.{level}.png", table, line)
        score = scale(dmos, table, line)
        records.append(Record(path, score, str(image), name.lower(), int(level), reference=reference))
    return records


def _live_challenge(folder: Path, scale: Scale) -> list[Record]:
    """`Data/AllImages_release.mat`, `Data/AllMOS_release.mat` and `Images/` (the raters' practice images included)."""
    table = "AllMOS_release.mat"
    scores = _vector(folder / "Data" / table, "AllMOS_release")
    names = _vector(folder / "Data" / "AllImages_release.mat", "AllImages_release")
    if len(scores) != len(names):
        raise BadDataset(f"{table} has {len(scores)} scores for {len(names)} images.", file=table)
    files = _Files(folder / "Images", nested=True)
    return [
        Record(files(_string(name), "AllImages_release.mat", entry), scale(score, table, entry), _string(name))
        for entry, (score, name) in enumerate(zip(scores, names, strict=True), start=1)
    ]


def _spaq(folder: Path, scale: Scale) -> list[Record]:
    """`Annotations/MOS and Image attribute scores.xlsx` (Image name, MOS, …) and `TestImage/`."""
    table = "MOS and Image attribute scores.xlsx"
    files = _Files(folder / "TestImage")
    return [
        Record(files(str(name), table, line), scale(mos, table, line), str(name))
        for line, (name, mos) in _sheet_rows(folder / "Annotations" / table, ("Image name", "MOS"))
    ]


# Each scale is (worst, best). LIVE's realigned DMOS reaches 111.8 and CSIQ's is 0–1; for both, more is worse.
OPINION_SETS: dict[str, OpinionSet] = {
    "kadid10k": OpinionSet("KADID-10k (Lin and others, QoMEX 2019)", (1, 5), _kadid10k),
    "tid2013": OpinionSet("TID2013 (Ponomarenko and others, 2015)", (0, 9), _tid2013),
    "koniq10k": OpinionSet("KonIQ-10k (Hosu and others, TIP 2020)", (1, 5), _koniq10k),
    "live": OpinionSet("LIVE release 2 (Sheikh and others, TIP 2006)", (112, 0), _live),
    "csiq": OpinionSet("CSIQ (Larson and Chandler, JEI 2010)", (1, 0), _csiq),
    "live-challenge": OpinionSet("LIVE In the Wild (Ghadiyaram and Bovik, TIP 2016)", (0, 100), _live_challenge),
    "spaq": OpinionSet("SPAQ (Fang and others, CVPR 2020)", (0, 100), _spaq),
}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadDataset(f"The set has no {path.name}.", file=path.name) from None
    except UnicodeDecodeError:
        raise BadDataset(f"{path.name} is not text.", file=path.name) from None


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_text(path).splitlines())
    for column in columns:
        if column not in (reader.fieldnames or ()):
            raise BadDataset(f"{path.name} line 1: there is no column {column!r}.", file=path.name, line=1)
    for row in reader:
        if any(row[column] is None for column in columns):
            line = reader.line_num
            raise BadDataset(f"{path.name} line {line}: the line is too short.", file=path.name, line=line)
        yield reader.line_num, row


def _vector(path: Path, name: str) -> list[Any]:
    """The variable `name` of a MATLAB file, as a flat list."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise BadDataset(f"The set has no {path.name}.", file=path.name)
    try:
        return np.ravel(loadmat(path)[name]).tolist()
    except KeyError:
        raise BadDataset(f"{path.name} has no variable {name!r}.", file=path.name) from None
    except (ValueError, NotImplementedError, MatReadError):
        raise BadDataset(f"{path.name} is not a MATLAB file.", file=path.name) from None


def _string(cell: Any) -> str:
    """The text of one cell of a MATLAB cell array, which may be wrapped in arrays."""
    return str(np.ravel(cell)[0])


def _sheet_rows(path: Path, columns: Sequence[str], *, sheet: str | None = None) -> Iterator[tuple[int, list[Any]]]:
    """`columns` of a worksheet below the first row that names them all; a row whose first is empty is skipped."""
    # Only two sets come as worksheets, so the rest must work without this package.
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except FileNotFoundError:
        raise BadDataset(f"The set has no {path.name}.", file=path.name) from None
    except (zipfile.BadZipFile, InvalidFileException, KeyError):
        raise BadDataset(f"{path.name} is not a workbook.", file=path.name) from None
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise BadDataset(f"{path.name} has no sheet {sheet!r}.", file=path.name)
        rows = (book[sheet] if sheet else book.worksheets[0]).iter_rows(values_only=True)
        positions: list[int] | None = None
        for line, row in enumerate(rows, start=1):
            if positions is None:
                if set(columns) <= set(row):
                    positions = [row.index(column) for column in columns]
            elif (values := [row[position] for position in positions])[0] is not None:
                yield line, values
        if positions is None:
            raise BadDataset(f"{path.name} has no row naming {', '.join(columns)}.", file=path.name)
    finally:
        book.close()
