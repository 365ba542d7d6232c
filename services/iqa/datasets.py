"""Labelled image sets on disk → records; here the folder with a CSV of scores that `synthesise` writes."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from shared.problems import InputError


class BadDataset(InputError):
    """A data set that cannot be read; names the file and the line."""

    code = "iqa-bad-dataset"
    title = "The data set is not valid"


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
    table = folder / "scores.csv"
    if not table.is_file():
        raise BadDataset("The folder has no scores.csv.", file="scores.csv")
    records: list[Record] = []
    with table.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = {"file", "score"} - set(reader.fieldnames or ())
        if missing:
            raise BadDataset(f"scores.csv lacks the column {sorted(missing)[0]!r}.", file="scores.csv", line=1)
        for row in reader:
            records.append(_record(folder, row, reader.line_num))
    if not records:
        raise BadDataset("scores.csv lists no image.", file="scores.csv")
    return records


def _record(folder: Path, row: dict[str, str], line: int) -> Record:
    def refuse(why: str) -> BadDataset:
        return BadDataset(f"scores.csv line {line}: {why}", file="scores.csv", line=line)

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
