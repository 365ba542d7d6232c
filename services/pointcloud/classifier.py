"""The served classifier: a calibrated logistic regression on codewords.

Shapes: S shapes, B codewords, D their width, C classes.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)


class Classifier(nn.Module):
    """codeword (B, 512) → probabilities (B, C): a logistic regression on standardised codewords."""

    def __init__(self, weight_CD: NDArray[np.float32], bias_C: NDArray[np.float32]) -> None:
        super().__init__()
        self.linear = nn.Linear(weight_CD.shape[1], weight_CD.shape[0])
        self.linear.load_state_dict({"weight": torch.from_numpy(weight_CD), "bias": torch.from_numpy(bias_C)})

    def forward(self, codeword_BD: Tensor) -> Tensor:
        return self.linear(codeword_BD).softmax(-1)


def fit_classifier(codes_SD: NDArray[np.float32], label_S: NDArray[np.int64], split_S: NDArray[np.int64]) -> Classifier:
    """Penalty and temperature have the least log loss on validation; then both splits are fitted with them.

    Classes without shapes to learn from keep a probability of 0.
    """
    known = label_S >= 0
    train = np.flatnonzero(known & (split_S == 0))
    validation = np.flatnonzero(known & (split_S == 1) & np.isin(label_S, label_S[train]))
    scaler = StandardScaler().fit(codes_SD[train])
    x_SD = scaler.transform(codes_SD)

    def fitted(penalty: float, rows: NDArray[np.int64]) -> LogisticRegression:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged: the loss on validation judges it
            return LogisticRegression(C=penalty, max_iter=300).fit(x_SD[rows], label_S[rows])

    penalty, temperature = 0.1, 1.0
    if len(validation):
        found: list[tuple[float, float, float]] = []
        for candidate in INVERSE_PENALTIES:
            model = fitted(candidate, train)
            logits_SC = np.asarray(model.predict_log_proba(x_SD[validation]))
            column_S = np.searchsorted(model.classes_, label_S[validation])
            found.append((*_temperature(logits_SC, column_S), candidate))
        _, temperature, penalty = min(found)
    model = fitted(penalty, np.concatenate([train, validation]))
    weight = np.zeros((int(label_S.max()) + 1, codes_SD.shape[1]), np.float32)
    bias = np.full(len(weight), -1e4, np.float32)
    coefficients, intercepts = np.asarray(model.coef_) / temperature, np.asarray(model.intercept_) / temperature
    if len(model.classes_) == 2:  # one row tells them apart
        coefficients, intercepts = np.concatenate([-coefficients, coefficients]) / 2, np.r_[-intercepts, intercepts] / 2
    scale = np.asarray(scaler.scale_)
    weight[model.classes_] = coefficients / scale
    bias[model.classes_] = intercepts - (coefficients / scale) @ np.asarray(scaler.mean_)
    return Classifier(weight, bias)


def _temperature(logits_SC: NDArray[np.float64], column_S: NDArray[np.int64]) -> tuple[float, float]:
    """(least log loss, temperature that has it) of logits divided by a temperature."""

    def loss(logarithm: float) -> float:
        return float(-log_softmax(logits_SC / np.exp(logarithm), axis=1)[np.arange(len(column_S)), column_S].mean())

    found: Any = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(found.fun), float(np.exp(found.x))
