"""Scored pixels → quality, on ONNX Runtime and NumPy.

Shapes: H, W image sides in pixels; L levels; K distortion kinds; h = H//32, w = W//32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.bundles import Bundle, BundleRejected
from shared.sessions import OnnxSession
from shared.settings import ServiceSettings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """`score` 0–100, higher is better; `levels_L` sums to 1 and its mean over `level_values` is the score."""

    score: float
    levels_L: Floats
    confidence: float
    distortions_K: Floats
    map_hw: NDArray[np.float32]


class IqaPredictor:
    """The served graph with what is needed to read its outputs."""

    def __init__(self, session: OnnxSession, kinds: Sequence[str], levels: int) -> None:
        self.session = session
        self.kinds = tuple(kinds)
        self.level_values: Floats = np.linspace(0.0, 100.0, levels)

    def predict(self, batch: Sequence[NDArray[np.uint8]]) -> list[Quality | Exception]:
        """Quality of each image, uint8 (H, W, 3) of any sides ≥ 32; images of unequal size may share a batch."""
        answers = self.session.infer_many([{"image": pixels_HW3[None]} for pixels_HW3 in batch])
        return [answer if isinstance(answer, Exception) else self._quality(answer) for answer in answers]

    def warm_up(self) -> None:
        result = self.predict([np.full((384, 512, 3), 128, np.uint8)])[0]
        if isinstance(result, Exception):
            raise BundleRejected("The graph does not run on a plain image.") from result

    def _quality(self, outputs: dict[str, NDArray[Any]]) -> Quality:
        score = float(np.clip(outputs["score"][0], 0, 100))
        levels = tilt(outputs["level_probabilities"][0].astype(np.float64), self.level_values, score)
        spread = float(np.sqrt(levels @ (self.level_values - score) ** 2))
        return Quality(
            score,
            levels,
            max(0.0, 1 - spread / 50),
            outputs["distortion_probabilities"][0].astype(np.float64),
            outputs["quality_map"][0],
        )


def load(bundle: Bundle, settings: ServiceSettings) -> IqaPredictor:
    """The predictor of `bundle`; raises BundleRejected when its graph or constants are not this domain's."""
    session = OnnxSession(bundle.graph(settings.precision), device=settings.device)
    constants = bundle.manifest.constants
    names = {output.name for output in session.outputs}
    wanted = {"score", "level_probabilities", "distortion_probabilities", "quality_map"}
    if not wanted <= names or [tensor.name for tensor in session.inputs] != ["image"]:
        raise BundleRejected("The graph's inputs and outputs are not those of an image quality model.")
    if not isinstance(constants.get("kinds"), list) or not isinstance(constants.get("levels"), int):
        raise BundleRejected("The manifest does not name the distortion kinds and levels.")
    return IqaPredictor(session, constants["kinds"], constants["levels"])


def tilt(probabilities_L: Floats, values_L: Floats, mean: float) -> Floats:
    """The distribution nearest to `probabilities_L` (in relative entropy) whose mean over `values_L` is `mean`.

    It is p·exp(θ·v) normalised; θ is found by bisection, since the mean grows with θ.
    """
    logs = np.log(np.maximum(probabilities_L, 1e-9))
    scale = float(np.ptp(values_L))
    unit = (values_L - values_L[0]) / scale
    wanted = float(np.clip((mean - values_L[0]) / scale, 1e-6, 1 - 1e-6))
    low, high = -400.0, 400.0
    tilted = probabilities_L
    for _ in range(60):
        theta = (low + high) / 2
        exponent = logs + theta * unit
        weights = np.exp(exponent - exponent.max())
        tilted = weights / weights.sum()
        if tilted @ unit < wanted:
            low = theta
        else:
            high = theta
    return tilted
