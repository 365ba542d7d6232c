"""The policy as the service runs it: features of call sites → probability of inlining, on ONNX Runtime.

Shapes: N call sites of one item, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.inlining.features import FEATURES, WIDTH
from services.inlining.policy import load_policy
from services.inlining.schemas import Goal
from shared.bundles import Bundle, BundleRejected
from shared.sessions import OnnxSession
from shared.settings import ServiceSettings

INPUT, OUTPUT = "features", "probability"


class InliningPredictor:
    """The served graph, the probability from which it says to inline, and the goal that it was trained for."""

    def __init__(self, session: OnnxSession, threshold: float, goal: Goal = "size") -> None:
        self.session = session
        self.threshold = threshold
        self.goal: Goal = goal

    def predict(self, batch: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32] | Exception]:
        """Probabilities (N,) for each item (N, F)."""
        answers = self.session.infer_many([{INPUT: item} for item in batch])
        return [answer if isinstance(answer, Exception) else answer[OUTPUT].reshape(-1) for answer in answers]

    def probability(self, features_F: NDArray[np.int64]) -> float:
        """Of inlining one call site; for a compile under way, which waits for it, past the queue."""
        return float(self.session.infer({INPUT: features_F[None]})[OUTPUT].reshape(-1)[0])

    def warm_up(self) -> None:
        answer = self.predict([np.zeros((2, WIDTH), np.int64)])[0]
        if isinstance(answer, Exception) or not np.isfinite(answer).all() or not ((answer >= 0) & (answer <= 1)).all():
            raise BundleRejected("The graph does not answer with probabilities.")


def load(bundle: Bundle, settings: ServiceSettings) -> InliningPredictor:
    """The predictor of `bundle`; raises BundleRejected when it is not an inlining policy for these features."""
    try:
        policy = load_policy(bundle.folder)
    except (ValueError, KeyError, OSError) as error:
        raise BundleRejected(f"The policy's calibration cannot be used: {error}") from None
    session = OnnxSession(bundle.graph("fp32"), device=settings.device)
    inputs = {tensor.name: tensor.shape for tensor in session.inputs}
    if inputs != {INPUT: (-1, len(FEATURES))} or OUTPUT not in {tensor.name for tensor in session.outputs}:
        raise BundleRejected("The graph's inputs and outputs are not those of an inlining policy.")
    return InliningPredictor(session, policy.threshold, bundle.manifest.config.get("goal", "size"))
