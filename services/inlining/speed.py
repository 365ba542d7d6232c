"""IR2Perf (MLGOPerf): predicts how inlining changes the instructions that are executed, from two compiles.

A ridge regression on what the compiles' static profiles say (static_profile.py): nothing is run. It was fitted on
programs whose executed instructions were counted (perf.py), and its weights are in ir2perf.json.

Shapes: V pairs of compiles, X inputs of the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inlining.engine import Compiled
from services.inlining.static_profile import Work, profile
from shared.bundles import write_atomically

Floats = NDArray[np.float64]
FILE = Path(__file__).with_name("ir2perf.json")
INPUTS = ("calls",)
FEW_CALLS, MOST_CHANGE = 0.1, 1.0  # a function without calls that gets one has not changed without bound


@dataclass(frozen=True)
class Facts:
    """Of a program's objects: its functions' expected work."""

    works: dict[tuple[int, str], Work]

    @classmethod
    def of(cls, modules: Sequence[Compiled]) -> Facts:
        """Of compiles that were `profiled`."""
        return cls(
            {(number, name): work for number, one in enumerate(modules) for name, work in profile(one.object).items()}
        )


def inputs(stock: Facts, other: Facts) -> Floats:
    """(X,): the mean, over the functions that both have, of the change of the logarithm of expected calls inside the
    object. Expected bytes and all machine code were tried beside it, and helped on no programs unseen."""
    both = stock.works.keys() & other.works.keys()
    changes = [math.log((other.works[name].calls + FEW_CALLS) / (stock.works[name].calls + FEW_CALLS)) for name in both]
    return np.array([np.clip(changes, -MOST_CHANGE, MOST_CHANGE).mean() if both else 0.0])


@dataclass(frozen=True)
class IR2Perf:
    """`predict`: (V, X) → log of executed instructions over stock's; below zero is fewer."""

    scale_X: Floats
    weights_X: Floats
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def fit(cls, inputs_VX: Floats, logs_V: Floats, penalty: float, about: dict[str, Any] | None = None) -> IR2Perf:
        """Ridge regression without a constant: no change changes nothing."""
        scale_X = np.sqrt((inputs_VX**2).mean(axis=0)) + 1e-9
        scaled = inputs_VX / scale_X
        weights_X = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(scaled.shape[1]), scaled.T @ logs_V)
        return cls(scale_X, weights_X, about or {})

    def predict(self, inputs_VX: Floats) -> Floats:
        return inputs_VX / self.scale_X @ self.weights_X

    def change(self, stock: Facts, other: Facts) -> float:
        """Predicted log of executed instructions over stock's."""
        return float(self.predict(inputs(stock, other)[None])[0])

    def save(self, path: Path) -> None:
        numbers = {"inputs": INPUTS, "scale": self.scale_X.tolist(), "weights": self.weights_X.tolist()}
        write_atomically(path, json.dumps({**numbers, "about": self.about}, indent=1).encode())


@cache
def ir2perf() -> IR2Perf:
    """The model that is shipped."""
    found = json.loads(FILE.read_text())
    return IR2Perf(np.array(found["scale"]), np.array(found["weights"]), found["about"])
