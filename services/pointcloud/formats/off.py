"""OFF (also COFF, NOFF and the form in ModelNet whose counts are glued to the first word) → a mesh."""

from __future__ import annotations

import re

import numpy as np

from services.pointcloud.formats.geometry import Geometry, claim, damaged, fan, lines_of, numbers, whole

_FIRST = re.compile(rb"\s*(?:ST)?C?N?OFF(?=[\s\d#]|$)", re.IGNORECASE)


def begins(head: bytes) -> bool:
    """Whether the first line that says something is that of an OFF file."""
    lines = lines_of(head[:1024])
    return bool(lines) and _FIRST.match(lines[0]) is not None


def read(data: bytes) -> Geometry:
    lines = lines_of(data)
    found = _FIRST.match(lines[0]) if lines else None
    if found is None:
        raise damaged("An OFF file begins with OFF.")
    rest = lines[0][found.end() :].strip()
    if rest.upper() == b"BINARY":
        raise damaged("Binary OFF is not read.")
    lines = [rest, *lines[1:]] if rest else lines[1:]
    counts = lines[0].split() if lines else []
    if len(counts) < 2:
        raise damaged("The OFF file lacks the line of its counts.")
    vertices, faces = whole(counts[0], "number of vertices"), whole(counts[1], "number of faces")
    room = len(data)
    claim("vertices", vertices, 6, room)
    claim("faces", faces, 2, room - 6 * vertices)
    if len(lines) < 1 + vertices + faces:
        raise damaged(f"The OFF file claims {vertices} vertices and {faces} faces and has {len(lines) - 1} lines.")
    rows = numbers(b"\n".join(lines[1 : 1 + vertices]), "coordinates")
    if vertices == 0 or len(rows) % vertices or len(rows) < 3 * vertices:
        raise damaged("The OFF file's vertex lines have unequal numbers of values, or fewer than three.")
    return Geometry(rows.reshape(vertices, -1)[:, :3], _faces(lines[1 + vertices : 1 + vertices + faces]))


def _faces(lines: list[bytes]) -> np.ndarray | None:
    if not lines:
        return None
    sizes = np.array([whole(line.split(None, 1)[0], "corners of a face") for line in lines], np.int64)
    corners: list[bytes] = []
    for line, size in zip(lines, sizes.tolist(), strict=True):
        words = line.split(None, size + 1)[1 : size + 1]
        if len(words) < size:
            raise damaged("A face of the OFF file names fewer corners than it claims.")
        corners += words
    try:
        return fan(sizes, np.array(corners, np.int64))
    except (ValueError, OverflowError):
        raise damaged("The OFF file's faces are not all whole numbers.") from None
