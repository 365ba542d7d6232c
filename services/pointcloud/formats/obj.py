"""Wavefront OBJ → a mesh or points. Only `v`, `f`, `l` and `p` lines are looked at: materials are never followed."""

from __future__ import annotations

import re

import numpy as np

from services.pointcloud.formats.geometry import Geometry, Refused, damaged, fan, numbers

_VERTEX = re.compile(rb"^[ \t]*v[ \t]+(\S+[ \t]+\S+[ \t]+\S+)", re.MULTILINE)
_EITHER = re.compile(rb"^[ \t]*(v|f)[ \t]+([^\r\n]*)", re.MULTILINE)
_AFTER_SLASH = re.compile(rb"/\S*")
_FIRST_WORDS = frozenset(b"v vt vn vp f l p o g s mtllib usemtl usemap deg bmat step cstype curv surf mg lod".split())
_COMMENT = re.compile(rb"#[^\r\n]*")


def looks_like(data: bytes) -> bool:
    """Whether the first lines begin with words of the format, a vertex among them."""
    lines = [line for line in (_COMMENT.sub(b"", line).split() for line in data[:65_536].splitlines()) if line]
    return any(line[0] == b"v" for line in lines) and all(line[0] in _FIRST_WORDS for line in lines[:20])


def read(data: bytes) -> Geometry:
    data = _COMMENT.sub(b"", data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" "))
    found = _VERTEX.findall(data)
    if not found or len(found) != len(re.findall(rb"^[ \t]*v[ \t]", data, re.MULTILINE)):
        raise damaged("The OBJ file has no vertex, or one with fewer than three coordinates.")
    vertices = numbers(b"\n".join(found), "coordinates").reshape(-1, 3)
    return Geometry(vertices, _faces(data, len(vertices)))


def _faces(data: bytes, vertices: int) -> np.ndarray | None:
    sizes: list[int] = []
    corners: list[bytes] = []
    before: list[int] = []  # vertices that precede the face: what negative indices count from
    seen = 0
    for kind, rest in _EITHER.findall(data):
        if kind == b"v":
            seen += 1
            continue
        words = _AFTER_SLASH.sub(b"", rest).split()
        if len(words) < 3:
            raise damaged("A face of the OBJ file has fewer than three corners.")
        sizes.append(len(words))
        before.append(seen)
        corners += words
    if not sizes:
        return None
    try:
        index = np.array(corners, np.int64)
    except (ValueError, OverflowError):
        raise damaged("The OBJ file's faces are not all whole numbers.") from None
    count = np.array(sizes, np.int64)
    if (index == 0).any() or (index < -vertices).any():
        raise Refused("bad-index", f"A face names a vertex that is not among the {vertices}; the first is number 1.")
    absolute = np.where(index < 0, index + np.repeat(np.array(before), count), index - 1)
    return fan(count, absolute)
