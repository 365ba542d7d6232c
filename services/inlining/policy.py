"""The policy as the wrapper runs it: one call site's features → inline or not, in NumPy alone.

Shapes: F features, Q quantiles of each, I = 3F inputs, H hidden units. A feature counts as the share x of its corpus
quantiles that lie below it, and as x² and √x (MLGO, Trofin and others, 2021); then 40, 40 and 20 rectified units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from services.inlining.features import FEATURES

WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.json"
HIDDEN = (40, 40, 20)
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_FAR = 1 << 56  # no count of LLVM's comes near; 38 spans of twice as much fit an int64


class Policy:
    """`decide` for one call site; `probabilities` for many."""

    def __init__(self, quantiles_FQ: Ints, weights: Mapping[str, Floats], threshold: float = 0.5) -> None:
        """`weights`: `layer<n>.weight` (out, in) and `layer<n>.bias` for n = 0…3. `threshold`: inline from there on."""
        self.quantiles_FQ = quantiles_FQ
        self.threshold = threshold
        self.layers = [(weights[f"layer{n}.weight"], weights[f"layer{n}.bias"]) for n in range(len(HIDDEN) + 1)]
        features, quantiles = quantiles_FQ.shape
        share_K = np.arange(quantiles + 1, dtype=np.float32) / np.float32(quantiles)
        inputs_K3 = np.stack([share_K, share_K * share_K, np.sqrt(share_K)], axis=1)
        first_HF3 = self.layers[0][0].reshape(-1, 3, features).transpose(0, 2, 1)
        # What each feature adds to the first layer, by its bucket: the layer becomes a sum of looked-up rows.
        self._table_FKH = np.ascontiguousarray(np.einsum("hfc,kc->fkh", first_HF3, inputs_K3))
        self._rows_F = np.arange(features)
        # Transposed and contiguous once: a product with a vector is then as fast as it gets.
        self._rest = [(np.ascontiguousarray(weight.T), bias) for weight, bias in self.layers[1:]]
        # For one call site, where a call of NumPy costs more than its arithmetic: the quantiles of all features in one
        # ascending row, each feature's a span above the last's, and every bias the weight of a unit that is always 1.
        self._starts_F = np.arange(features, dtype=np.int64) * (2 * _FAR + 2)
        self._most_F = np.full(features, _FAR)
        self._least_F = -self._most_F
        self._ascending = (np.sort(np.clip(quantiles_FQ, -_FAR, _FAR)) + self._starts_F[:, None]).ravel()
        self._ones_F = np.ones(features, np.float32)
        table_FKH = np.pad(self._table_FKH, ((0, 0), (0, 0), (0, 1)))
        table_FKH[0] += np.append(self.layers[0][1], np.float32(1))
        self._table = table_FKH.reshape(features * (quantiles + 1), -1)
        *hidden, (last, last_bias) = self._rest
        self._hidden = [_with_bias(weight, bias) for weight, bias in hidden]
        self._last = np.append(last[:, 0], last_bias[0])

    def buckets(self, features_NF: Ints) -> Ints:
        """How many of each feature's quantiles are below it; (N, F) as given."""
        return (features_NF[:, :, None] > self.quantiles_FQ).sum(axis=2)

    def logit(self, features_F: Ints) -> float:
        near_F = np.minimum(np.maximum(features_F, self._least_F), self._most_F)
        # A feature's place is its bucket, after all quantiles of those before it, each of which has a bucket more.
        row_F = self._ascending.searchsorted(near_F + self._starts_F) + self._rows_F
        hidden = np.maximum(self._ones_F.dot(self._table.take(row_F, 0)), 0)
        for weight in self._hidden:
            hidden = np.maximum(hidden.dot(weight), 0)
        return float(hidden.dot(self._last))

    def decide(self, features_F: Ints) -> tuple[int, float]:
        """(1 to inline or 0, how sure: probability of the decision taken)."""
        probability = self.probability(features_F)
        return (1, probability) if probability >= self.threshold else (0, 1 - probability)

    def probability(self, features_F: Ints) -> float:
        """Of inlining one call site."""
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, self.logit(features_F)))))

    def probabilities(self, features_NF: Ints) -> Floats:
        """Of inlining, (N,)."""
        hidden_NH = self._table_FKH[self._rows_F, self.buckets(features_NF)].sum(axis=1) + self.layers[0][1]
        for weight, bias in self._rest:
            hidden_NH = np.maximum(hidden_NH, 0) @ weight + bias
        return (1 / (1 + np.exp(-np.clip(hidden_NH[:, 0], -60, 60)))).astype(np.float32)


def _with_bias(weight: Floats, bias: Floats) -> Floats:
    """(in + 1, out + 1): a further input that is 1 carries the bias, and is passed on as 1."""
    whole = np.zeros((weight.shape[0] + 1, weight.shape[1] + 1), np.float32)
    whole[:-1, :-1], whole[-1, :-1], whole[-1, -1] = weight, bias, 1
    return whole


def load_policy(folder: Path) -> Policy:
    """The policy of a bundle's folder; ValueError if it was trained on other features."""
    calibration = json.loads((folder / CALIBRATION).read_text())
    if tuple(calibration["features"]) != FEATURES:
        raise ValueError("the policy was trained on other features than LLVM's channel has here")
    quantiles_FQ = np.array(calibration["quantiles"], np.int64)
    return Policy(quantiles_FQ, load_file(folder / WEIGHTS), float(calibration["threshold"]))
