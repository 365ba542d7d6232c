"""Intervals of means, and the one scale on which groups, changed inputs and overfitting are judged: skill that is kept.

Shapes: N examples. Skill is how much less a version errs than one that knows nothing: K = E₀ − E, with E₀ the error of
the guess (a subject's `likely`). The share of it that is kept in a group, under a change or on unseen data is
(E₀ − E′) / (E₀ − E): 1 is all of it, 0 is guessing, below 0 is worse than guessing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

Floats = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean with its interval over `n` examples."""

    value: float
    low: float
    high: float
    n: int


def mean_error(error_N: NDArray[Any], level: float = LEVEL, unit_N: NDArray[Any] | None = None) -> Mean:
    """The mean of errors, which are never negative: no more is the end of its interval."""
    found = mean(error_N, level, unit_N)
    return Mean(found.value, max(0.0, found.low), found.high, found.n)


def mean(value_N: NDArray[Any], level: float = LEVEL, unit_N: NDArray[Any] | None = None) -> Mean:
    """The mean and its interval: Wilson's for shares, Student's for anything else (wide for few).

    Where `unit_N` (N,) says which examples belong together, whole units are what is independent: Student's interval
    with the cluster-robust variance of their sums, Σ_u (Σ_{i∈u} r_i)² · U/(U−1) / n², U − 1 degrees of freedom.
    """
    value_N, n = np.asarray(value_N, np.float64), len(value_N)
    if n == 0:
        return Mean(float("nan"), float("nan"), float("nan"), 0)
    found = float(value_N.mean())
    if unit_N is not None:
        half = _half_width(value_N - found, level, unit_N)
        return Mean(found, found - half, found + half, n)
    if np.isin(value_N, (0.0, 1.0)).all():
        z = norm.ppf(0.5 + level / 2)
        centre = (found + z * z / (2 * n)) / (1 + z * z / n)
        half = z * np.sqrt(found * (1 - found) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return Mean(found, float(max(0.0, centre - half)), float(min(1.0, centre + half)), n)
    if n == 1:
        return Mean(found, float("-inf"), float("inf"), 1)
    half = _half_width(value_N - found, level, np.arange(n))
    return Mean(found, found - half, found + half, n)


def _half_width(residual_N: Floats, level: float, unit_N: NDArray[Any]) -> float:
    sums_U = np.bincount(np.unique(unit_N, return_inverse=True)[1], weights=residual_N)
    units, n = len(sums_U), len(residual_N)
    if units < 2:
        return float("inf")
    return float(t.ppf(0.5 + level / 2, units - 1) * np.sqrt((sums_U**2).sum() * units / (units - 1)) / n)


def paired(new_N: NDArray[Any], old_N: NDArray[Any], level: float = LEVEL, unit_N: NDArray[Any] | None = None) -> Mean:
    """Mean of new − old over the same examples, Student's interval; of whole units as in `mean`."""
    difference_N = np.asarray(new_N, np.float64) - np.asarray(old_N, np.float64)
    n = len(difference_N)
    if n < 2 or not difference_N.any():
        found = float(difference_N.mean()) if n else float("nan")
        return Mean(found, found, found, n)
    found = float(difference_N.mean())
    half = _half_width(difference_N - found, level, np.arange(n) if unit_N is None else unit_N)
    return Mean(found, found - half, found + half, n)


def kept(error: Mean, whole: float, guess: float) -> Mean:
    """The share of the skill that is kept where the error is `error` instead of `whole`; NaN without any skill."""
    skill = guess - whole
    if skill <= 0:
        return Mean(float("nan"), float("nan"), float("nan"), error.n)
    return Mean((guess - error.value) / skill, (guess - error.high) / skill, (guess - error.low) / skill, error.n)


def in_words(share: float) -> str:
    """A share of the skill, for a sentence."""
    return f"{share:.0%}" if share > 0 else "none"


def corrected(comparisons: int) -> float:
    """The level at which each of several intervals is taken so that all hold together (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, comparisons)
