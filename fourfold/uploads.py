"""What is sent of a data set: the files below a folder with their digests, and the parts of a large one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def part_digests(place: Path, size: int) -> list[str]:
    """SHA-256 of each part of `size` bytes of a file."""
    with place.open("rb") as stream:
        return [hashlib.sha256(part).hexdigest() for part in iter(lambda: stream.read(size), b"")]


def files_below(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """(place, listing entry) of every file below `folder`; hidden files and links are left out."""
    found: list[tuple[Path, dict[str, Any]]] = []
    for place in sorted(folder.rglob("*")):
        path = place.relative_to(folder)
        if place.is_symlink() or not place.is_file() or any(part.startswith(".") for part in path.parts):
            continue
        with place.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        found.append((place, {"path": path.as_posix(), "sha256": sha256, "size": place.stat().st_size}))
    return found
