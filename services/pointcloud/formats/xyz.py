"""XYZ, PTS and CSV text: rows of at least three numbers, of which the first three are the coordinates."""

from __future__ import annotations

import re

import numpy as np

from services.pointcloud.formats.geometry import Geometry, damaged, numbers

_NUMBER = rb"[+-]?(?:\d+\.?\d*|\.\d+|nan|inf(?:inity)?)(?:[eE][+-]?\d+)?"
_ROW = re.compile(rb"\s*" + _NUMBER + rb"(?:[ \t]*[,;\t ][ \t]*" + _NUMBER + rb")*\s*", re.IGNORECASE)
_WORDS = re.compile(rb"[A-Za-z_\"]")
_COMMENT = re.compile(rb"(?:#|//)[^\n]*")


def looks_like(data: bytes) -> bool:
    """Whether the first rows are numbers, after comments and at most one line of names or one of a count."""
    rows = [row for row in (_COMMENT.sub(b"", row).strip() for row in data[:4096].splitlines()) if row]
    if len(data) > 4096:
        rows = rows[:-1]  # cut in the middle
    if rows and _WORDS.match(rows[0]) and not _ROW.fullmatch(rows[0]):
        rows = rows[1:]
    return bool(rows) and all(_ROW.fullmatch(row) for row in rows[:8])


def read(data: bytes) -> Geometry:
    rows = [row for row in _COMMENT.sub(b"", data).splitlines() if row.strip()]
    if rows and _WORDS.match(rows[0].strip()) and not _ROW.fullmatch(rows[0]):
        rows = rows[1:]
    notes: list[str] = []
    if rows and len(rows[0].split()) == 1 and rows[0].strip().isdigit():
        claimed, rows = int(rows[0]), rows[1:]
        if claimed != len(rows):
            raise damaged(f"The first line claims {claimed} points; {len(rows)} follow.")
    if not rows:
        return Geometry(np.zeros((0, 3)))
    values = numbers(b"\n".join(rows).replace(b",", b" ").replace(b";", b" "), "rows")
    columns = len(rows[0].replace(b",", b" ").replace(b";", b" ").split())
    if columns < 3 or len(values) != columns * len(rows):
        raise damaged(f"The rows do not all have the {columns} numbers of the first, or fewer than three.")
    if columns > 3:
        notes.append(f"of {columns} columns the first three were taken")
    return Geometry(values.reshape(-1, columns)[:, :3], notes=notes)
