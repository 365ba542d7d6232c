"""The field's metrics of account classifiers: accuracy, macro-F1, AUC, calibration, and coverage under abstention.

Shapes: N accounts, C classes. Probabilities sum to 1 over the classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
BINS = 15


def softmax(logits_NC: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Probabilities (N, C) of logits divided by the temperature."""
    scaled = np.asarray(logits_NC, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def accuracy(probability_NC: Floats, label_N: Labels) -> float:
    """Share of accounts whose most probable class is the label, 0–1."""
    return float((probability_NC.argmax(1) == label_N).mean())


def macro_f1(probability_NC: Floats, label_N: Labels) -> float:
    """Mean over the classes of F1 = 2 tp / (2 tp + fp + fn), 0–1; a class that never occurs counts 0."""
    chosen = probability_NC.argmax(1)
    scores: list[float] = []
    for number in range(probability_NC.shape[1]):
        hit = int(((chosen == number) & (label_N == number)).sum())
        wrong = int(((chosen == number) ^ (label_N == number)).sum())
        scores.append(2 * hit / (2 * hit + wrong) if hit else 0.0)
    return float(np.mean(scores))


def roc_auc(score_N: Floats, label_N: Labels) -> float:
    """Area under the ROC curve of a score for class 1, by ranks (ties count half); NaN with one class only."""
    positive, negative = score_N[label_N == 1], np.sort(score_N[label_N == 0])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / (2 * len(positive) * len(negative)))


def calibration_error(probability_NC: Floats, label_N: Labels) -> float:
    """Expected calibration error, 0–1: Σ_b n_b/n · |accuracy_b − confidence_b| over 15 equal bins of confidence.

    Guo and others, "On calibration of modern neural networks" (2017).
    """
    confidence, right = probability_NC.max(1), probability_NC.argmax(1) == label_N
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    total = 0.0
    for number in range(BINS):
        chosen = bins == number
        if chosen.any():
            total += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    return float(total)


def fit_temperature(logits_NC: NDArray[np.floating], label_N: Labels) -> float:
    """The temperature with the least negative log-likelihood, 0.05–20, by golden-section search over its logarithm."""
    if not len(label_N):
        return 1.0

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits_NC, np.exp(log_temperature))[np.arange(len(label_N)), label_N]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    low, high = np.log(0.05), np.log(20.0)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def coverage_curve(probability_NC: Floats, label_N: Labels) -> list[dict[str, float]]:
    """For each least confidence: the share of accounts that are answered, and the accuracy on those."""
    confidence, right = probability_NC.max(1), probability_NC.argmax(1) == label_N
    rows: list[dict[str, float]] = []
    for least in np.arange(0.5, 1.0, 0.05):
        answered = confidence >= least
        if answered.any():
            row = {"min_confidence": float(least), "coverage": float(answered.mean())}
            rows.append(row | {"accuracy": float(right[answered].mean())})
    return rows


def with_prior(probability_N: Floats, trained: float, wanted: float) -> Floats:
    """The probability of class 1 under another share of it: odds · (w/(1−w)) / (t/(1−t)), by Bayes."""
    odds = probability_N / np.maximum(1 - probability_N, 1e-12)
    odds = odds * (wanted / (1 - wanted)) / (trained / (1 - trained))
    return odds / (1 + odds)


def interval(
    metric: Callable[[Floats, Labels], float], probability_NC: Floats, label_N: Labels, *, rounds: int = 300
) -> tuple[float, float]:
    """95 % percentile bootstrap of a metric over accounts."""
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(label_N), len(label_N)) for _ in range(rounds)]
    values = [metric(probability_NC[index], label_N[index]) for index in drawn]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def bot_auc(probability_NC: Floats, label_N: Labels) -> float:
    """`roc_auc` of the probability of class 1."""
    return roc_auc(probability_NC[:, 1], label_N)


METRICS: dict[str, Callable[[Floats, Labels], float]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "auc": bot_auc,
    "ece": calibration_error,
}
