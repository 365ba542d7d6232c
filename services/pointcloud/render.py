"""Pictures of point clouds: shaded discs with a depth buffer, in NumPy.

Shapes: N points, H and W pixels. z is up (`upright` turns other shapes so); yaw turns around it, 0 is seen from +x,
which is the front; pitch looks down from above.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.pointcloud.schemas import Up

BACKGROUND = 255
LIGHT = np.array([0.35, 0.45, 0.82])  # in the camera's frame: over its left shoulder


def upright(points_N3: NDArray[np.floating], up: Up) -> NDArray[np.floating]:
    """Points as the pictures take them, z up and +x in front. Where y is up, as in glTF, +z is in front."""
    return points_N3[:, [2, 0, 1]] if up == "y" else points_N3


def turned_about(points_N3: NDArray[np.float32], up: Up, degrees: float) -> NDArray[np.float32]:
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    turn_33 = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
    return points_N3 @ (turn_33 if up == "z" else turn_33[np.ix_([1, 2, 0], [1, 2, 0])])


def turned(points_N3: NDArray[np.floating], yaw: float, pitch: float = 0.0) -> NDArray[np.float32]:
    """Points seen by a camera at yaw and pitch (degrees): x to the right, y upwards, z towards the camera."""
    a, b = np.deg2rad(yaw), np.deg2rad(pitch)
    right = (-np.sin(a), np.cos(a), 0.0)
    towards = (np.cos(a) * np.cos(b), np.sin(a) * np.cos(b), np.sin(b))
    upwards = np.cross(towards, right)
    return (np.asarray(points_N3, np.float32) @ np.array([right, upwards, towards], np.float32).T).astype(np.float32)


def render(
    points_N3: NDArray[np.floating],
    size: int = 64,
    yaw: float = 30.0,
    pitch: float = 25.0,
    normals_N3: NDArray[np.floating] | None = None,
) -> NDArray[np.uint8]:
    """A grey picture (size, size, 3), 0–255 on white, of points in the unit ball.

    Discs as wide as the points lie apart hide what is behind them. They are shaded by their normals, where those are
    given (see `normals`), else by their depth.
    """
    seen_N3 = turned(points_N3, yaw, pitch)
    scale = size * 0.48
    column_N = np.floor(size / 2 + seen_N3[:, 0] * scale).astype(np.int64)
    row_N = np.floor(size / 2 - seen_N3[:, 1] * scale).astype(np.int64)
    if normals_N3 is None:
        shade_N = 130 + 70 * np.clip(seen_N3[:, 2], -1, 1)
    else:
        # A fitted plane has two sides: the one towards the camera is meant.
        turned_N3 = turned(normals_N3, yaw, pitch)
        turned_N3 *= np.where(turned_N3[:, 2:] < 0, -1.0, 1.0)
        shade_N = 50 + 170 * np.clip(turned_N3 @ LIGHT, 0, 1)
    # Half as wide again as the points of a surface of the ball's size lie apart.
    radius = max(0, min(size // 8, round(1.5 * scale * np.sqrt(2.0 / max(1, len(seen_N3))))))
    image = np.full((size + 2 * radius, size + 2 * radius), BACKGROUND, np.uint8)
    order = np.argsort(seen_N3[:, 2], kind="stable")  # far ones first: the nearest is written last
    inside = (column_N >= 0) & (column_N < size) & (row_N >= 0) & (row_N < size)
    order = order[inside[order]]
    steps = np.arange(-radius, radius + 1)
    down, across = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    disc = down**2 + across**2 <= radius**2 + radius
    rows = (row_N[order, None] + radius + down[disc]).ravel()
    columns = (column_N[order, None] + radius + across[disc]).ravel()
    # A point hides its neighbours' discs only where it is nearer; written in the order of depth, that needs no buffer.
    image[rows, columns] = np.repeat(shade_N[order].astype(np.uint8), int(disc.sum()))
    image = image[radius : radius + size, radius : radius + size]
    return np.repeat(image[:, :, None], 3, axis=2)


def normals(covariance_N9: NDArray[np.floating]) -> NDArray[np.float32]:
    """Unit normals (N, 3), of either sign, from the covariances of neighbours: the direction of least spread."""
    return np.linalg.eigh(np.asarray(covariance_N9, np.float64).reshape(-1, 3, 3))[1][:, :, 0].astype(np.float32)
