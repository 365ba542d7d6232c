"""LAS and LAZ → points, chunk by chunk: of a large file only a seeded sample is ever in memory."""

from __future__ import annotations

import io
import struct
from typing import Any

import laspy
import numpy as np

from services.pointcloud.formats.geometry import MOST_VERTICES, Geometry, Refused, claim, damaged

CHUNK = 500_000
KEPT = 4_000_000


def read(data: bytes, seed: int = 0) -> Geometry:
    if len(data) < 227:
        raise damaged("A LAS header has at least 227 bytes; the file ends before.")
    minor = data[25]
    start, records, form, length = struct.unpack_from("<IIBH", data, 96)
    count = int.from_bytes(data[107:111], "little")
    if minor >= 4 and len(data) >= 255:
        count = int.from_bytes(data[247:255], "little")
    packed = bool(form & 0x80)
    if start > len(data) or length < 20:
        raise damaged("The LAS header points outside the file.")
    claim("variable records", records, 54, start - 227)
    if count > MOST_VERTICES:
        raise _refused_count(count, packed, length, len(data) - start)
    # The best that LAZ does on real scans is about 1 byte a point; a run of equal points goes below.
    claim("points", count, 1 if packed else length, (len(data) - start) * (1000 if packed else 1))
    if count == 0:
        return Geometry(np.zeros((0, 3)))
    if packed:
        _check_chunk_table(data, start)
    wanted = np.arange(count)
    if count > KEPT:
        wanted = np.sort(np.random.default_rng(seed).choice(count, KEPT, replace=False, shuffle=False))
    opened: Any = laspy.open  # its own types lack read_evlrs
    try:
        with opened(io.BytesIO(data), laz_backend=laspy.LazBackend.Lazrs, read_evlrs=False) as file:
            if file.header.point_count != count:
                raise damaged("The LAS header gives two numbers of points.")
            kept = _kept(file, wanted)
    except (Refused, MemoryError):
        raise
    except BaseException:  # the decompressor's panics are no Exceptions
        raise damaged("The LAS points end early or cannot be read.") from None
    if len(kept) != len(wanted):
        raise damaged(f"The LAS header claims {count} points; fewer are there.")
    return Geometry(kept, total=count)


def _check_chunk_table(data: bytes, start: int) -> None:
    """The decompressor ends its process over a table that it cannot allocate."""
    table = int.from_bytes(data[start : start + 8], "little", signed=True)
    table = int.from_bytes(data[-8:], "little", signed=True) if table == -1 else table
    if not start + 8 <= table <= len(data) - 8:
        raise damaged("The LAZ chunk table lies outside the file.")
    claim("chunks", int.from_bytes(data[table + 4 : table + 8], "little"), 1, len(data) - table)


def _kept(file: Any, wanted: np.ndarray) -> np.ndarray:
    parts: list[np.ndarray] = []
    at = 0
    for chunk in file.chunk_iterator(CHUNK):
        size = len(chunk)
        if size == 0:
            break
        rows = wanted[np.searchsorted(wanted, at) : np.searchsorted(wanted, at + size)] - at
        parts.append(np.stack([np.asarray(chunk[axis])[rows] for axis in ("x", "y", "z")], axis=1))
        at += size
    return np.concatenate(parts) if parts else np.zeros((0, 3))


def _refused_count(count: int, packed: bool, length: int, room: int) -> Refused:
    if not packed and count * length > room:
        return damaged(f"The header claims {count} points of {length} bytes; {room} bytes are there.")
    return Refused("too-large", f"The header claims {count} points; at most {MOST_VERTICES} are taken.")
