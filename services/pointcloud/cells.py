"""A cloud as what lies in each cell of the unit ball: numbers that have the same meaning for every cloud, and back.

Shapes: N points, A cells, B clouds, K neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.pointcloud.neighbours import nearest

SIDE = 6  # cells along each axis of the cube around the ball
KNOT = 0.03  # standard deviation of points that are put into an empty cell
UNCHANGED = 1e-4  # in the root of a share


def middles() -> NDArray[np.float32]:
    """(A, 3) of the cells: a lattice of the unit ball and its rim."""
    line = np.linspace(-1, 1, SIDE)
    lattice = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
    return lattice[np.linalg.norm(lattice, axis=1) <= 1.25].astype(np.float32)


class Cells:
    """A cloud by the cell that each point is nearest to.

    `values_A4` has the mean of each cell's points, its middle where it is empty, and the square root of their share
    of all points: of a knot of few points it is still visible.
    """

    def __init__(self, points_N3: Tensor) -> None:
        middle_A3 = torch.from_numpy(middles())
        self._points_N3 = points_N3
        self._cell_N = torch.cdist(points_N3, middle_A3).argmin(1)
        self._count_A = torch.bincount(self._cell_N, minlength=len(middle_A3))
        sum_A3 = torch.zeros_like(middle_A3).index_add_(0, self._cell_N, points_N3)
        mean_A3 = torch.where(self._count_A[:, None] > 0, sum_A3 / self._count_A[:, None].clamp(min=1), middle_A3)
        share_A = self._count_A / len(points_N3)
        self.values_A4 = torch.cat([mean_A3, share_A.sqrt()[:, None]], dim=1)

    def with_values(self, values_A4: Tensor) -> Tensor:
        """The cloud (N, 3) with other contents, itself where they are its own. Gradients go to the means; a share is
        rounded to points, and has none."""
        root_A = values_A4[:, 3].detach().clamp(0, 1)
        asked_A = (root_A**2 * len(self._points_N3)).round().long()
        changed_A = (root_A - self.values_A4[:, 3]).abs() > UNCHANGED
        cell_N = self._moved(torch.where(changed_A, asked_A, self._count_A))
        offset_N3 = self._points_N3 - self.values_A4[self._cell_N, :3]
        # Points that came from elsewhere lie as the cell's own do, or in a knot where it had none.
        knot_N3 = KNOT * torch.randn(offset_N3.shape, generator=torch.Generator().manual_seed(0))
        for place in torch.nonzero(cell_N != self._cell_N)[:, 0].tolist():
            own = torch.nonzero(self._cell_N == cell_N[place])[:, 0]
            offset_N3[place] = offset_N3[own[place % len(own)]] if len(own) else knot_N3[place]
        return values_A4[cell_N, :3] + offset_N3

    def _moved(self, wanted_A: Tensor) -> Tensor:
        """The cell (N,) of each point when each cell has as many as are wanted: points leave where there are too many
        for where there are too few. Cells that want no change give what else it takes, and take what is left over."""
        cell_N = self._cell_N.clone()
        order_N = torch.randperm(len(cell_N), generator=torch.Generator().manual_seed(1))
        free: list[int] = []
        for cell in torch.nonzero(wanted_A < self._count_A)[:, 0].tolist():
            free += order_N[self._cell_N[order_N] == cell][int(wanted_A[cell]) :].tolist()
        spare: list[int] = order_N[(wanted_A == self._count_A)[self._cell_N[order_N]]].tolist()
        for cell in torch.nonzero(wanted_A > self._count_A)[:, 0].tolist():
            for _ in range(int(wanted_A[cell] - self._count_A[cell])):
                if free or spare:
                    cell_N[free.pop() if free else spare.pop()] = cell
        for number, place in enumerate(free):
            if spare:
                cell_N[place] = self._cell_N[spare[number % len(spare)]]
        return cell_N


def served(points_BN3: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, N, 12) and neighbours (B, N, K) of clouds moved into the unit ball, as they are served, with
    gradients to the points."""
    moved_BN3 = points_BN3 - points_BN3.mean(dim=1, keepdim=True)
    moved_BN3 = moved_BN3 / moved_BN3.norm(dim=2).amax(dim=1).clamp(min=1e-9)[:, None, None]
    found = [torch.from_numpy(nearest(points_N3)) for points_N3 in moved_BN3.detach().numpy()]
    near_BNK3 = torch.stack([points_N3[index_NK] for points_N3, index_NK in zip(moved_BN3, found, strict=True)])
    near_BNK3 = near_BNK3 - near_BNK3.mean(dim=2, keepdim=True)
    covariance_BN33 = near_BNK3.transpose(2, 3) @ near_BNK3 / near_BNK3.shape[2]
    return torch.cat([moved_BN3, covariance_BN33.flatten(2)], dim=2), torch.stack(found)
