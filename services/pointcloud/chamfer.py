"""Chamfer distance between point clouds, in every form that is in use, with its gradient.

Shapes: B pairs, N and M points. Nearest points are looked for without a gradient, by k-d trees on a CPU and in blocks
of a distance matrix on a GPU; then their distances are taken again, with one. So memory is linear in the points.

    max       max(mean d(x→y), mean d(y→x)), d = √(d² + 1e-6): FoldingNet's loss
    sum       mean d(x→y) + mean d(y→x), d = √(d² + 1e-6): of the dispersion score
    squared   mean d²(x→y) + mean d²(y→x): what most tables show
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

Form = Literal["max", "sum", "squared"]
EPSILON = 1e-6  # keeps the gradient of a distance of 0 finite
BLOCK = 1 << 24  # elements of the distance matrix held at once on a GPU: 64 MB


def chamfer(
    x_BN3: Tensor,
    y_BM3: Tensor,
    form: Form = "max",
    *,
    x_counts_B: Tensor | None = None,
    y_counts_B: Tensor | None = None,
    search: Literal["auto", "tree", "blocks"] = "auto",
) -> Tensor:
    """Distance (B,) of each pair, in units of the points (squared for `squared`).

    Where clouds of unequal size are padded to one length, the counts say how many rows of each are points; what is in
    the others does not matter. Raises ValueError for a cloud without points.
    """
    x_counts = _counts(x_BN3, x_counts_B)
    y_counts = _counts(y_BM3, y_counts_B)
    tree = search == "tree" or (search == "auto" and x_BN3.device.type == "cpu")
    there = _one_way(x_BN3, y_BM3, x_counts, y_counts, form, tree)
    back = _one_way(y_BM3, x_BN3, y_counts, x_counts, form, tree)
    return torch.maximum(there, back) if form == "max" else there + back


def nearest_distances(x_N3: NDArray[np.floating], y_M3: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    """Distances of each x to the nearest y (N,), and of each y to the nearest x (M,), unsquared, without torch."""
    there = np.asarray(KDTree(y_M3).query(x_N3)[0], np.float64)
    return there, np.asarray(KDTree(x_N3).query(y_M3)[0], np.float64)


def chamfer_max(x_N3: NDArray[np.floating], y_M3: NDArray[np.floating]) -> float:
    """The `max` form of one pair in units of the points, without torch, gradient and the 1e-6."""
    there, back = nearest_distances(x_N3, y_M3)
    return max(float(there.mean()), float(back.mean()))


def _counts(points_BN3: Tensor, counts_B: Tensor | None) -> list[int]:
    counts = [points_BN3.shape[1]] * points_BN3.shape[0] if counts_B is None else [int(count) for count in counts_B]
    if min(counts, default=1) < 1:
        raise ValueError("A cloud without points has no Chamfer distance.")
    return counts


def _one_way(x: Tensor, y: Tensor, x_counts: list[int], y_counts: list[int], form: Form, tree: bool) -> Tensor:
    """Mean distance (B,) from each point of x to its nearest of y."""
    means: list[Tensor] = []
    for item, (n, m) in enumerate(zip(x_counts, y_counts, strict=True)):
        x_N3, y_M3 = x[item, :n], y[item, :m]
        with torch.no_grad():
            index_N = _by_tree(x_N3, y_M3) if tree else _by_blocks(x_N3, y_M3)
        # index_select's gradient is a plain sum; that of y[index] sorts first.
        squared_N = (x_N3 - y_M3.index_select(0, index_N)).square().sum(-1)
        means.append((squared_N if form == "squared" else (squared_N + EPSILON).sqrt()).mean())
    return torch.stack(means)


def _by_tree(x_N3: Tensor, y_M3: Tensor) -> Tensor:
    tree = KDTree(y_M3.detach().cpu().numpy(), balanced_tree=False, compact_nodes=False)
    found = tree.query(x_N3.detach().cpu().numpy())[1]
    return torch.from_numpy(np.asarray(found, np.int64)).to(x_N3.device)


def _by_blocks(x_N3: Tensor, y_M3: Tensor) -> Tensor:
    """As `_by_tree`, a block of x and one of y at a time."""
    columns = min(len(y_M3), BLOCK)
    rows = max(1, BLOCK // columns)
    found: list[Tensor] = []
    for block_R3 in x_N3.split(rows):
        best_R = torch.full((len(block_R3),), torch.inf, device=x_N3.device, dtype=x_N3.dtype)
        index_R = torch.zeros(len(block_R3), dtype=torch.int64, device=x_N3.device)
        for start in range(0, len(y_M3), columns):
            far_RM = torch.cdist(block_R3, y_M3[start : start + columns], compute_mode="donot_use_mm_for_euclid_dist")
            near_R, at_R = far_RM.min(1)
            index_R = torch.where(near_R < best_R, at_R + start, index_R)
            best_R = torch.minimum(near_R, best_R)
        found.append(index_R)
    return torch.cat(found)
