"""Corpora on disk → modules by program and split: a folder of .bc, .ll or .c files.

A program is a folder at the root, or a file there. `splits.csv` (columns file, program, split) may say more; else
programs are split by the digest of their names, so that no program is in two splits. C source is compiled with the
headers that lie in its program's folder, and with nothing else.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.inlining.engine import Level, Module, inspect_module
from services.inlining.sandbox import Limits
from services.inlining.source import to_bitcode
from shared.datasets import Finding, Report
from shared.problems import FourfoldError, InputError

TABLE = "splits.csv"
SUFFIXES = (".bc", ".ll", ".c")
SPLITS = ("train", "validation", "test")
LEAST_PROGRAMS = 3
MOST_FINDINGS = 100
LIMITS = Limits()


class BadCorpus(InputError):
    """A corpus that cannot be read; names the file, and the line of the table."""

    code = "inlining-bad-corpus"
    title = "The corpus is not valid"
    advice = "Mend the file and line that the report names."


@dataclass(frozen=True)
class Unit:
    """One module of a program; `name` is its path below the folder."""

    name: str
    program: str
    split: str
    path: Path

    def read(self, level: Level = "z") -> bytes:
        """Its bitcode or IR, C source compiled for the level; raises BadCorpus."""
        try:
            return module_bytes(self.path, self.path.parents[self.name.count("/")], level=level)
        except (FourfoldError, OSError) as error:
            raise BadCorpus(f"{self.name}: {_words(error)}", file=self.name) from None


def modules(folder: Path) -> list[Path]:
    """Every module's file, in the order of their names."""
    found = (path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def module_bytes(path: Path, folder: Path, flags: Sequence[str] = (), level: Level = "z") -> bytes:
    """Bitcode or IR of a module's file; C source is compiled to it. Raises a problem that says why it cannot be."""
    if path.suffix != ".c":
        return path.read_bytes()
    inner = path.relative_to(folder)
    root = folder / inner.parts[0] if len(inner.parts) > 1 else folder
    headers = {
        header.relative_to(root).as_posix(): header.read_text("utf-8", "replace")
        for header in root.rglob("*.h")
        if header.is_file() and not header.is_symlink()
    }
    source, name = path.read_text("utf-8", "replace"), path.relative_to(root).as_posix()
    return to_bitcode(source, name=name, files=headers, flags=flags, level=level)


def load(folder: Path, needed: Sequence[str] = SPLITS) -> list[Unit]:
    """The corpus' modules. Raises BadCorpus naming the line of the table, or when a split that is needed is empty."""
    units: list[Unit] = []
    for row in _rows(folder):
        if isinstance(row, BadCorpus):
            raise row
        units.append(row)
    missing = [split for split in needed if not any(unit.split == split for unit in units)]
    if missing:
        raise BadCorpus(
            f"No module is in the split {missing[0]!r}; a training takes {LEAST_PROGRAMS} programs at least, each a "
            "folder or a file at the root.",
            file=TABLE if (folder / TABLE).is_file() else ".",
        )
    return units


def readable(units: list[Unit]) -> list[Unit]:
    """Those that parse; raises BadCorpus if a split has none left."""
    kept = [unit for unit in units if flaw(unit.path, unit.path.parents[unit.name.count("/")]) is None]
    for split in SPLITS:
        if not any(unit.split == split for unit in kept):
            raise BadCorpus(f"No readable module is in the split {split!r}.", file=".")
    return kept


def validate(folder: Path) -> Report:
    """What is wrong, by file and line, and what there is; every module is parsed once, in the sandbox.

    A single module is a valid data set too: it can be tuned, though nothing can be learned from it.
    """
    findings: list[Finding] = []
    good: list[Unit] = []
    for row in _rows(folder):
        if isinstance(row, BadCorpus):
            findings.append(Finding(file=TABLE, line=row.extra.get("line"), problem=row.detail))
        elif (problem := flaw(row.path, folder)) is not None:
            findings.append(Finding(file=row.name, problem=problem))
        else:
            good.append(row)
    counts = {"programs": len({unit.program for unit in good}), "modules": len(good), "bad": len(findings)}
    counts |= {split: sum(unit.split == split for unit in good) for split in SPLITS}
    if not good:
        findings.insert(0, Finding(file=".", problem=f"no module ({', '.join(SUFFIXES)}) can be read"))
    state = "invalid" if not good else "flawed" if findings else "valid"
    return Report(state=state, findings=findings[:MOST_FINDINGS], counts=counts)


def flaw(path: Path, folder: Path) -> str | None:
    """Why a module's file cannot be used, or None."""
    try:
        parsed: Module = inspect_module(module_bytes(path, folder), limits=LIMITS)
    except (FourfoldError, OSError) as error:
        return _words(error)
    return None if parsed.calls else "it calls nothing"


def split_programs(programs: set[str]) -> dict[str, str]:
    """Program → train, validation or test (60 : 15 : 25, at least one of each), in the order of a hash of its name."""
    ordered = sorted(programs, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = len(ordered)
    test = max(1, round(count * 0.25))
    validation = max(1, round(count * 0.15))
    return {
        name: "test" if place < test else "validation" if place < test + validation else "train"
        for place, name in enumerate(ordered)
    }


def _rows(folder: Path) -> Iterator[Unit | BadCorpus]:
    if (folder / TABLE).is_file():
        yield from _table(folder)
        return
    found = {path: path.relative_to(folder) for path in modules(folder)}
    names = {path: inner.parts[0] if len(inner.parts) > 1 else inner.stem for path, inner in found.items()}
    splits = split_programs(set(names.values()))
    for path, inner in found.items():
        yield Unit(inner.as_posix(), names[path], splits[names[path]], path)


def _table(folder: Path) -> Iterator[Unit | BadCorpus]:
    """Each row of the table, or what is wrong with it."""
    home: dict[str, str] = {}
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lacking = {"file", "program", "split"} - set(reader.fieldnames or ())
            if lacking:
                yield BadCorpus(f"{TABLE} lacks the column {sorted(lacking)[0]!r}.", file=TABLE, line=1)
                return
            for row in reader:
                line = reader.line_num
                name, program, split = (row[key] or "" for key in ("file", "program", "split"))
                path = (folder / name).resolve()
                if split not in SPLITS:
                    why = f"the split {split[:40]!r} is none of {', '.join(SPLITS)}."
                elif not path.is_relative_to(folder.resolve()) or path.suffix not in SUFFIXES or not path.is_file():
                    why = f"there is no module {name[:200]!r}."
                elif home.setdefault(program, split) != split:
                    why = f"the program {program[:100]!r} is in two splits."
                else:
                    yield Unit(path.relative_to(folder.resolve()).as_posix(), program, split, path)
                    continue
                yield BadCorpus(f"{TABLE} line {line}: {why}", file=TABLE, line=line)
    except (UnicodeDecodeError, csv.Error) as error:
        yield BadCorpus(f"{TABLE} is not a table in UTF-8: {error}.", file=TABLE, line=1)


def _words(error: Exception) -> str:
    return error.detail if isinstance(error, FourfoldError) else "it cannot be read"
