"""A file's geometry → the points that are looked at: meshes by area, large clouds thinned, both with a stated seed.

Shapes: V vertices, T triangles, N points.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.pointcloud.formats.geometry import Geometry, Refused

FEWEST = 16  # points, below which there is no neighbourhood to speak of
Reduction = Literal["none", "area", "sample", "voxel"]
_BLOCK = 500_000  # triangles whose areas are computed at once
_FINEST = 1024  # cells along an axis


def sample(
    geometry: Geometry, count: int, *, seed: int = 0, how: Literal["sample", "voxel"] = "sample"
) -> tuple[NDArray[np.float64], Reduction]:
    """Points (N, 3) in the file's units, and how they were come by; raises Refused for too few points.

    A mesh gives `count` points of its surface; a cloud of more than `count` points is thinned to that: uniformly
    without replacement, or to the means of the points in equal cells, of which `count` are kept.
    """
    random = np.random.default_rng(seed)
    if geometry.triangles_T3 is not None and len(geometry.triangles_T3):
        points = by_area(geometry.vertices_V3, geometry.triangles_T3, count, random)
        if points is not None:
            return points, "area"
    vertices = geometry.vertices_V3
    if len(vertices) < FEWEST:
        raise Refused("too-few", f"There are {len(vertices)} points; at least {FEWEST} are needed.")
    if len(vertices) <= count:
        return vertices.astype(np.float64), "none"
    if how == "voxel":
        vertices = _cell_means(vertices.astype(np.float64), count)
    chosen = np.sort(random.choice(len(vertices), min(count, len(vertices)), replace=False, shuffle=False))
    return vertices[chosen].astype(np.float64), how


def by_area(
    vertices_V3: NDArray[Any], triangles_T3: NDArray[np.int64], count: int, random: np.random.Generator
) -> NDArray[np.float64] | None:
    """`count` points spread evenly over the triangles' area (Osada et al., 2002); None where there is no area."""
    # Scaled before it is squared: coordinates near the largest float keep a finite area.
    size = float(np.abs(vertices_V3).max()) or 1.0
    areas = np.empty(len(triangles_T3))
    for start in range(0, len(triangles_T3), _BLOCK):
        a, b, c = _corners(vertices_V3, triangles_T3[start : start + _BLOCK], size)
        areas[start : start + _BLOCK] = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    ends = np.cumsum(areas)
    if not ends[-1] > 0:
        return None
    chosen = np.searchsorted(ends, random.random(count) * ends[-1], side="right")
    a, b, c = _corners(vertices_V3, triangles_T3[np.minimum(chosen, len(areas) - 1)], size)
    root, along = np.sqrt(random.random((count, 1))), random.random((count, 1))
    return (a * (1 - root) + root * (b * (1 - along) + c * along)) * size


def _corners(vertices_V3: NDArray[Any], triangles_T3: NDArray[np.int64], size: float) -> list[NDArray[np.float64]]:
    return [vertices_V3[triangles_T3[:, corner]].astype(np.float64) / size for corner in range(3)]


def _cell_means(points_N3: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Means of the points in each cell of the coarsest grid with at least `count` occupied cells."""
    low = points_N3.min(axis=0)
    extent = float((points_N3.max(axis=0) - low).max()) or 1.0
    cells, per_axis = np.zeros(len(points_N3), np.int64), 8
    while per_axis <= _FINEST:
        place = np.minimum((points_N3 - low) / extent * per_axis, per_axis - 1).astype(np.int64)
        cells = (place[:, 0] * per_axis + place[:, 1]) * per_axis + place[:, 2]
        if len(np.unique(cells)) >= count:
            break
        per_axis *= 2
    _, number, sizes = np.unique(cells, return_inverse=True, return_counts=True)
    sums = [np.bincount(number, points_N3[:, axis]) for axis in range(3)]
    return np.stack(sums, axis=1) / sizes[:, None]
