"""Points → what the encoder takes: normalised points, their nearest neighbours, local covariances.

Shapes: N points, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

NEIGHBOURS = 16


@dataclass(frozen=True)
class Normalised:
    """Points moved and scaled into the unit ball; undone by points · scale + centre."""

    points_N3: NDArray[np.float32]  # centroid 0, largest norm 1
    centre_3: NDArray[np.float64]  # caller's units
    scale: float  # caller's units, above 0


def normalise(points_N3: NDArray[np.floating]) -> Normalised:
    """The centroid to 0 and the largest norm to 1. Points that are all equal become zeros, with scale 1."""
    points = np.asarray(points_N3, np.float64)
    # Halved before they are added up: coordinates near the largest float stay finite.
    size = float(np.abs(points).max(initial=0.0)) or 1.0
    unit = points / size
    centre = unit.mean(axis=0)
    unit = unit - centre
    radius = float(np.sqrt(np.einsum("nd,nd->n", unit, unit).max(initial=0.0)))
    if radius < 1e-12:  # rounding of the mean is all that is left
        return Normalised(np.zeros_like(unit, np.float32), centre * size, 1.0)
    return Normalised((unit / radius).astype(np.float32), centre * size, radius * size)


def nearest(points_N3: NDArray[np.floating], k: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Indices (N, K) of each point's k nearest other points, nearest first.

    A point is left out of its own list by its index, not by its distance, so duplicates count as neighbours. With k
    points or fewer the indices repeat; a single point is its own neighbour.
    """
    count = len(points_N3)
    if count == 1:
        return np.zeros((1, k), np.int64)
    wanted = min(k, count - 1)
    # Neither balanced nor compact: built in half the time, and cells of duplicates do not slow it.
    tree = KDTree(points_N3, balanced_tree=False, compact_nodes=False, leafsize=16)
    found = np.asarray(tree.query(points_N3, k=wanted + 1)[1], np.int64)
    itself = found == np.arange(count)[:, None]
    # Among more than k duplicates a point may miss itself: then the farthest goes.
    itself[~itself.any(axis=1), -1] = True
    others = found[~itself].reshape(count, wanted)
    return others if wanted == k else others[:, np.arange(k) % wanted]


def covariances(points_N3: NDArray[np.floating], neighbours_NK: NDArray[np.int64]) -> NDArray[np.float32]:
    """Covariance (N, 9) of each point's neighbours about their mean, row by row, in squared units of the points."""
    near_NK3 = np.asarray(points_N3, np.float32)[neighbours_NK]
    near_NK3 -= near_NK3.mean(axis=1, keepdims=True)
    cov_N33 = np.matmul(near_NK3.transpose(0, 2, 1), near_NK3) / np.float32(neighbours_NK.shape[1])
    return cov_N33.reshape(len(near_NK3), 9)


def local_features(
    points_N3: NDArray[np.floating], k: int = NEIGHBOURS
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (N, 12), x, y, z and the covariance of the k nearest, and those neighbours (N, K). FoldingNet, § 2.1."""
    points = np.ascontiguousarray(points_N3, np.float32)
    neighbours_NK = nearest(points, k)
    return np.concatenate([points, covariances(points, neighbours_NK)], axis=1), neighbours_NK
