"""What serving must know beside the graphs: the source surface, the labels, and how far the training reached.

Kept in a bundle as `calibration.json`. Shapes: G points of the source surface, S its dimension.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.pointcloud import surface
from services.pointcloud.schemas import Up
from services.pointcloud.surface import SurfaceKind
from shared.bundles import BundleRejected

FILE = "calibration.json"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Frozen):
    """The source surface that the decoder was trained with; grid and sphere can be had at any resolution."""

    kind: SurfaceKind
    resolution: int = Field(ge=2, le=1000)
    half_width: float = Field(gt=0)
    values: list[list[float]] | None = Field(default=None, description="Of a learned surface, a row a point.")

    def points(self, resolution: int | None = None) -> NDArray[np.float32]:
        """(G, S). A learned surface has one resolution; ValueError for another."""
        if self.values is not None:
            if resolution not in (None, self.resolution):
                raise ValueError(f"The learned surface has the resolution {self.resolution} and no other.")
            return np.array(self.values, np.float32)
        return surface.points(self.kind, resolution or self.resolution, self.half_width)

    def triangles(self, resolution: int | None = None) -> NDArray[np.int64]:
        """(T, 3) of `points` of the same resolution."""
        return surface.triangles(self.kind, resolution or self.resolution)


class Views(Frozen):
    """How the pictures of a single-view network were made: square, `size` pixels, angles in degrees."""

    size: int = Field(ge=8, le=1024)
    yaw: float = Field(ge=0, le=360, description="Width of the range of yaws around the front.")
    pitch: float = Field(ge=-90, le=90)
    frame: str = Field(description="`object`: clouds as they stand; `viewer`: turned with the view.")
    decoder: str
    up: Up = Field(default="z", description="The axis of the shapes that was up in the pictures.")


class Calibration(Frozen):
    source: Source | None = Field(description="None: the decoder is dense and looks at no surface.")
    labels: tuple[str, ...] = Field(description="Of the classifier; empty where there is none.")
    trained_points: tuple[int, int] = Field(description="Fewest and most points a cloud in training.")
    extents_low: tuple[float, float, float] = Field(
        description="0.5 % (high: 99.5 %) of the training's extents in the unit ball, each cloud's smallest first."
    )
    extents_high: tuple[float, float, float]
    chamfer_limit: float = Field(
        description="Chamfer distance (max form, unit ball) within which 99 % of the validation clouds come back."
    )
    views: Views | None = None

    def unusual_extents(self, points_N3: NDArray[np.floating]) -> bool:
        """Whether a normalised cloud is flatter or fuller than nearly every cloud of the training."""
        extents = np.sort(np.ptp(points_N3, axis=0))
        slack = 0.02
        return bool(
            np.any(extents < np.array(self.extents_low) - slack)
            or np.any(extents > np.array(self.extents_high) + slack)
        )


def load_calibration(path: Path) -> Calibration:
    """Raises BundleRejected."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleRejected("The bundle's calibration is missing or not valid.") from error
