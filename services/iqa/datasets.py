"""Image sets on disk → records: a folder with a CSV of scores, as `synthesise` writes it, or pristine photographs."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.iqa.features import decode
from shared.datasets import Finding, Report
from shared.problems import FourfoldError, InputError

TABLE = "scores.csv"
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLITS = ("train", "validation", "test")
LEAST_SOURCES = 4  # photographs: with fewer, one of the splits is empty
MOST_FINDINGS = 100
SAME_NAME = "another photograph has the same name; the pictures made of them would overwrite each other"


class BadDataset(InputError):
    """A data set that cannot be read; names the file and the line."""

    code = "iqa-bad-dataset"
    title = "The data set is not valid"
    advice = "Mend the file and line that the report names."


@dataclass(frozen=True)
class Record:
    """One image: `score` is 0–100, higher is better; `source` is what sets are split by."""

    path: Path
    score: float
    source: str
    kind: str = ""
    strength: int = 0
    split: str = ""
    reference: Path | None = None


def load_folder(folder: Path) -> list[Record]:
    """The records of `folder/scores.csv`: columns file and score, optional source, kind, strength and split.

    Raises BadDataset naming the line of a missing column, a bad number, a score outside 0–100, or a missing file.
    """
    records: list[Record] = []
    for record in _rows(folder):
        if isinstance(record, BadDataset):
            raise record
        records.append(record)
    if not records:
        raise BadDataset("scores.csv lists no image.", file=TABLE)
    return records


def readable_records(folder: Path) -> list[Record]:
    """As `load_folder`, without the rows and images that cannot be read; raises BadDataset if none is left."""
    rows = [row for row in _rows(folder) if isinstance(row, Record)]
    records = [record for record in rows if _flaw(record.path) is None]
    if not records:
        raise BadDataset("No image of scores.csv can be read.", file=TABLE)
    return records


def find_photographs(folder: Path) -> dict[Path, str]:
    """The photographs that lie in `folder` or below, by path → a scene each."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and not path.is_symlink())
    return {path: source_of(path) for path in sorted(paths)}


def source_of(path: Path) -> str:
    """The name of a photograph's content, fit for a file name."""
    # `<theme>/contents/images/<width>x<height>.jpg` is the desktop themes' layout.
    name = path.parts[-4] if path.parent.name == "images" and path.parent.parent.name == "contents" else path.stem
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def split_sources(scenes: Mapping[str, str]) -> dict[str, str]:
    """Source → train, validation or test (62 : 18 : 20), in the order of a hash of its scene: no scene is in two."""
    ordered = sorted(set(scenes.values()), key=lambda scene: hashlib.sha256(scene.encode()).digest())
    shares = {scene: (position + 0.5) / len(ordered) for position, scene in enumerate(ordered)}
    return {
        source: SPLITS[2] if shares[scene] < 0.20 else SPLITS[1] if shares[scene] < 0.38 else SPLITS[0]
        for source, scene in scenes.items()
    }


def with_splits(records: list[Record]) -> list[Record]:
    """`records` as they are if they name their splits; else split by source, so that no photograph is in two."""
    if any(record.split for record in records):
        return records
    splits = split_sources({record.source: record.source for record in records})
    return [replace(record, split=splits[record.source]) for record in records]


def validate(folder: Path) -> Report:
    """What is wrong with a data set, by file and line, and what there is; every image is decoded once."""
    if not (folder / TABLE).is_file():
        return _validate_photographs(folder)
    findings: list[Finding] = []
    good: list[Record] = []
    for row in _rows(folder):
        if isinstance(row, BadDataset):
            findings.append(Finding(file=TABLE, line=row.extra.get("line"), problem=row.detail))
            if row.extra.get("line") == 1:
                return _report(findings, {}, usable=False)
        elif (flaw := _flaw(row.path)) is not None:
            findings.append(Finding(file=str(row.path.relative_to(folder.resolve())), problem=flaw))
        else:
            good.append(row)
    good = with_splits(good)
    counts = {"images": len(good), "sources": len({record.source for record in good}), "bad": len(findings)}
    counts |= {split: sum(record.split == split for record in good) for split in SPLITS}
    missing = [split for split in SPLITS if not counts[split]]
    if missing:
        findings.insert(0, Finding(file=TABLE, problem=f"no readable image is in the split {missing[0]!r}"))
    return _report(findings, counts, usable=not missing)


def _validate_photographs(folder: Path) -> Report:
    flaws: dict[Path, str | None] = {}
    seen: set[str] = set()
    for path in find_photographs(folder):
        flaws[path] = SAME_NAME if source_of(path) in seen else _flaw(path)
        seen.add(source_of(path))
    findings = [
        Finding(file=path.relative_to(folder).as_posix(), problem=flaw)
        for path, flaw in flaws.items()
        if flaw is not None
    ]
    counts = {"photographs": len(flaws) - len(findings), "bad": len(findings)}
    enough = counts["photographs"] >= LEAST_SOURCES
    if not enough:
        problem = f"there is neither a {TABLE} nor {LEAST_SOURCES} readable photographs"
        findings.insert(0, Finding(file=".", problem=problem))
    return _report(findings, counts, usable=enough)


def _report(findings: list[Finding], counts: dict[str, int], *, usable: bool) -> Report:
    state = "invalid" if not usable else "flawed" if findings else "valid"
    return Report(state=state, findings=findings[:MOST_FINDINGS], counts=counts)


def _flaw(path: Path) -> str | None:
    """Why an image cannot be used, or None."""
    try:
        decode(path.read_bytes(), fast=False)
    except FourfoldError as error:
        return error.detail
    return None


def _rows(folder: Path) -> Iterator[Record | BadDataset]:
    """Each row of the table, or what is wrong with it."""
    table = folder / TABLE
    if not table.is_file():
        yield BadDataset("The folder has no scores.csv.", file=TABLE)
        return
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"file", "score"} - set(reader.fieldnames or ())
            if missing:
                yield BadDataset(f"scores.csv lacks the column {sorted(missing)[0]!r}.", file=TABLE, line=1)
                return
            for row in reader:
                try:
                    yield _record(folder, row, reader.line_num)
                except BadDataset as error:
                    yield error
    except (UnicodeDecodeError, csv.Error) as error:
        yield BadDataset(f"scores.csv is not a table in UTF-8: {error}.", file=TABLE, line=1)


def _record(folder: Path, row: dict[str, Any], line: int) -> Record:
    def refuse(why: str) -> BadDataset:
        return BadDataset(f"scores.csv line {line}: {why}", file=TABLE, line=line)

    if row["file"] is None or row["score"] is None:
        raise refuse("it has too few columns.")
    try:
        score, strength = float(row["score"]), int(row.get("strength") or 0)
    except ValueError as error:
        raise refuse(f"{error}.") from None
    if not 0 <= score <= 100:
        raise refuse(f"the score {score:g} is not in 0–100.")
    path = (folder / row["file"]).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise refuse(f"the file {row['file']!r} lies outside the folder.")
    if not path.is_file():
        raise refuse(f"there is no file {row['file']!r}.")
    source = row.get("source") or path.stem
    return Record(path, score, source, row.get("kind") or "", strength, row.get("split") or "")
