"""The field's metrics of a quality score against labels: rank and linear correlation, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Scores = NDArray[np.float64]


def srcc(predicted_N: Scores, label_N: Scores) -> float:
    """Spearman rank correlation, −1 to 1."""
    return float(stats.spearmanr(predicted_N, label_N).statistic)


def krcc(predicted_N: Scores, label_N: Scores) -> float:
    """Kendall rank correlation (tau-b), −1 to 1."""
    return float(stats.kendalltau(predicted_N, label_N).statistic)


def plcc(predicted_N: Scores, label_N: Scores) -> float:
    """Pearson correlation after the 4-parameter logistic that the field fits first (VQEG), −1 to 1.

    y = (b1 − b2) / (1 + exp(−(x − b3)/|b4|)) + b2. Without a fit (fewer than 5 points, or no convergence) it is
    the plain Pearson correlation.
    """

    def logistic(x: Scores, high: float, low: float, middle: float, width: float) -> Scores:
        return low + (high - low) / (1 + np.exp(-np.clip((x - middle) / (abs(width) + 1e-9), -60, 60)))

    start = (label_N.max(), label_N.min(), predicted_N.mean(), predicted_N.std() / 4 + 1e-6)
    mapped = predicted_N
    if len(predicted_N) >= 5:
        try:
            fitted, _ = optimize.curve_fit(logistic, predicted_N, label_N, p0=start, maxfev=20_000)
            mapped = logistic(predicted_N, *fitted)
        except RuntimeError:
            mapped = predicted_N
    return float(stats.pearsonr(mapped, label_N).statistic)


METRICS: dict[str, Callable[[Scores, Scores], float]] = {"srcc": srcc, "plcc": plcc, "krcc": krcc}


def bootstrap(
    metric: Callable[[Scores, Scores], float],
    predicted_N: Scores,
    label_N: Scores,
    group_N: Sequence[Any] | None = None,
    *,
    rounds: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of `metric`. With `group_N`, whole groups (source photographs) are drawn, since
    images of one photograph are not independent."""
    random = np.random.default_rng(seed)
    groups = np.arange(len(predicted_N)) if group_N is None else np.unique(np.asarray(group_N), return_inverse=True)[1]
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    values: list[float] = []
    for _ in range(rounds):
        drawn = np.concatenate([members[index] for index in random.integers(0, len(members), len(members))])
        values.append(metric(predicted_N[drawn], label_N[drawn]))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def monotone_share(predicted_N: Scores, series_N: Sequence[Any], strength_N: Sequence[int]) -> float:
    """Share of neighbouring strengths of one series (source and kind) whose score falls as the strength grows, 0–1."""
    by_series: dict[Any, list[tuple[int, float]]] = {}
    for value, series, strength in zip(predicted_N, series_N, strength_N, strict=True):
        by_series.setdefault(series, []).append((strength, float(value)))
    falls = [weaker[1] > stronger[1] for points in by_series.values() for weaker, stronger in pairwise(sorted(points))]
    return float(np.mean(falls)) if falls else float("nan")


def summary(predicted_N: Scores, label_N: Scores, group_N: Sequence[Any] | None = None) -> dict[str, dict[str, float]]:
    """Every metric with its interval: {"srcc": {"value", "low", "high", "n"}, …}."""
    result: dict[str, dict[str, float]] = {}
    for name, metric in METRICS.items():
        rounds = 200 if metric is plcc else 500
        low, high = bootstrap(metric, predicted_N, label_N, group_N, rounds=rounds)
        result[name] = {"value": metric(predicted_N, label_N), "low": low, "high": high, "n": len(predicted_N)}
    return result
