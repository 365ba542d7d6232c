"""STL, binary and ASCII → triangles."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from services.pointcloud.formats.geometry import Geometry, claim, damaged, numbers

_HEADER: Final = 84
_RECORD: Final = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_VERTEX: Final = re.compile(rb"\bvertex\s+(\S+\s+\S+\s+\S+)", re.IGNORECASE)


def binary_size(data: bytes) -> int:
    """The size that a binary file with this header has; 0 for fewer bytes than a header."""
    return _HEADER + int.from_bytes(data[80:84], "little") * _RECORD.itemsize if len(data) >= _HEADER else 0


def is_ascii(data: bytes) -> bool:
    """Binary files, too, may begin with "solid"; only text goes on with a facet or the end."""
    return data[:5].lower() == b"solid" and re.search(rb"\b(facet|endsolid)\b", data[:4096].lower()) is not None


def looks_binary(data: bytes) -> bool:
    """Whether the length fits the header's count, or the 80 bytes before the count are text of an exporter."""
    if len(data) < _HEADER:
        return False
    exact = binary_size(data) == len(data)
    header = data[:80].rstrip(b"\0 ")
    printable = all(31 < letter < 127 or letter in b"\t\r\n\0" for letter in header)
    return exact or (printable and b"\n" not in header and 0 in data[:_HEADER])


def read(data: bytes) -> Geometry:
    if is_ascii(data) and binary_size(data) != len(data):
        return _read_ascii(data)
    if len(data) < _HEADER:
        raise damaged("A binary STL has at least 84 bytes.")
    count = int.from_bytes(data[80:84], "little")
    claim("triangles", count, _RECORD.itemsize, len(data) - _HEADER)
    corners = np.frombuffer(data, _RECORD, count, _HEADER)["corners"].reshape(-1, 3)
    extra = len(data) - binary_size(data)
    notes = [f"{extra} bytes after the last triangle"] if extra else []
    return Geometry(corners, np.arange(len(corners)).reshape(-1, 3), notes=notes)


def _read_ascii(data: bytes) -> Geometry:
    if b"endsolid" not in data[-4096:].lower():
        raise damaged("The STL text ends before its endsolid.")
    found = _VERTEX.findall(data)
    if len(found) % 3 or len(found) != 3 * len(re.findall(rb"\bendfacet\b", data, re.IGNORECASE)):
        raise damaged(f"The STL text has {len(found)} vertices, which do not make up its facets.")
    corners = numbers(b"\n".join(found), "coordinates").reshape(-1, 3)
    return Geometry(corners, np.arange(len(corners)).reshape(-1, 3))
