"""What turns a network's logits into answers: views, temperatures, the training's share of bots, and its limits.

Shapes: P properties. Kept in a bundle as `calibration.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from services.bots.features import PROFILE, PROPERTIES, X_V2
from shared.bundles import BundleRejected

FILE = "calibration.json"
REGULARISER = 1e-3  # added to the variances: a flag that never varies would make every other value infinitely far
LIMIT_QUANTILE = 0.99


class View(BaseModel):
    """One head: which properties it looks at, whether at edges, and its calibration."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    properties: tuple[str, ...]
    edges: bool
    temperatures: dict[str, float]
    limit: float  # the distance that 99 % of the validation accounts stay below

    @property
    def columns_P(self) -> NDArray[np.bool_]:
        return np.array([name in self.properties for name in PROPERTIES])


class Calibration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    views: tuple[View, ...]
    tasks: tuple[str, ...]
    prior: float | None  # share of bots in the training
    relations: tuple[str, ...]
    both_ways: bool
    text_encoder: str | None
    text_width: int
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    coverage: dict[str, dict[str, list[dict[str, float]]]]

    def choose(self, present: frozenset[str], edges: bool) -> int:
        """The number of the view with the most evidence that an account has all of; the first where none is whole."""
        best = 0
        for number, view in enumerate(self.views):
            if set(view.properties) <= present and (edges or not view.edges):
                best = number
        return best

    def distance(self, values_P: NDArray[np.float32], view: View) -> float:
        """Mahalanobis distance from the training's accounts over the view's limit, on the properties that are known.

        √(dᵀ C⁻¹ d / k) of k properties, with C regularised.
        """
        known = ~np.isnan(values_P) & view.columns_P
        return distance(values_P, known, np.array(self.mean), np.array(self.covariance)) / max(view.limit, 1e-9)


def distance(
    values_P: NDArray[np.floating], known_P: NDArray[np.bool_], mean_P: NDArray[Any], covariance_PP: NDArray[Any]
) -> float:
    """√(dᵀ C⁻¹ d / k) over the k known properties; 0 of none."""
    if not known_P.any():
        return 0.0
    off = values_P[known_P].astype(np.float64) - mean_P[known_P]
    part = covariance_PP[np.ix_(known_P, known_P)] + REGULARISER * np.eye(int(known_P.sum()))
    return float(np.sqrt(off @ np.linalg.solve(part, off) / len(off)))


def views_of(present_NP: NDArray[np.bool_], edges: bool) -> dict[str, tuple[str, ...]]:
    """View → properties, from the least evidence to the most, of a training set's known values.

    A property that fewer than half of the accounts tell is in none; views that come out the same are one.
    """
    full = tuple(name for name, share in zip(PROPERTIES, present_NP.mean(axis=0), strict=True) if share >= 0.5)
    found: dict[str, tuple[str, ...]] = {}
    for name, wanted in (("profile", PROFILE), ("x-v2", X_V2), ("full", full)):
        properties = tuple(item for item in full if item in wanted)
        if properties and properties not in found.values():
            found[name] = properties
    if edges and found:
        found["graph"] = full
    return found


def load_calibration(path: Path) -> Calibration:
    """Raises BundleRejected."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleRejected("The bundle's calibration is missing or not valid.") from error
