"""The source surface that the decoder folds: points on a grid or a sphere, and the triangles between them.

Shapes: G points of the surface, S its dimension (2 on the grid, 3 on the sphere), T triangles.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

SurfaceKind = Literal["grid", "sphere", "learned"]

HALF_WIDTH = 0.3  # of the grid, as in FoldingNet
RESOLUTION = 45


def grid(resolution: int = RESOLUTION, half_width: float = HALF_WIDTH) -> NDArray[np.float32]:
    """A square lattice (resolution², 2) on [−half_width, half_width]², row by row."""
    line = np.linspace(-half_width, half_width, resolution, dtype=np.float32)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def sphere(resolution: int = RESOLUTION, radius: float = HALF_WIDTH) -> NDArray[np.float32]:
    """resolution² points (G, 3) on a sphere, evenly spread: the Fibonacci lattice."""
    count = resolution**2
    place = np.arange(count) + 0.5
    height = 1 - 2 * place / count
    angle = np.pi * (1 + 5**0.5) * place
    ring = np.sqrt(1 - height**2)
    return (radius * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)).astype(np.float32)


def points(kind: SurfaceKind, resolution: int = RESOLUTION, half_width: float = HALF_WIDTH) -> NDArray[np.float32]:
    """The surface's points (resolution², S). A learned surface starts as the grid: these are its first values."""
    return sphere(resolution, half_width) if kind == "sphere" else grid(resolution, half_width)


def dimension(kind: SurfaceKind) -> int:
    return 3 if kind == "sphere" else 2


def triangles(kind: SurfaceKind, resolution: int = RESOLUTION) -> NDArray[np.int64]:
    """Triangles (T, 3), indices of the points of that kind and resolution.

    Grid and learned: two a cell, 2 (resolution − 1)², anticlockwise in the plane. Sphere: the hull, which for points
    on a sphere is their Delaunay triangulation, seen anticlockwise from outside.
    """
    if kind != "sphere":
        corner = np.arange(resolution**2).reshape(resolution, resolution)
        a, b, c, d = (corner[i, j].ravel() for i, j in _CORNERS)
        return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)]).astype(np.int64)
    from scipy.spatial import ConvexHull  # here, so that a service that folds grids loads no SciPy

    unit = sphere(resolution, 1.0).astype(np.float64)
    faces = np.asarray(ConvexHull(unit).simplices, np.int64)
    p, q, r = (unit[faces[:, i]] for i in range(3))
    inward = np.einsum("td,td->t", np.cross(q - p, r - p), p) < 0
    faces[inward] = faces[inward][:, ::-1]
    return faces


_FIRST, _LAST = slice(None, -1), slice(1, None)
_CORNERS = ((_FIRST, _FIRST), (_LAST, _FIRST), (_LAST, _LAST), (_FIRST, _LAST))
