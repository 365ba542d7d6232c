"""How alike the functions of several trainings are: linear CKA of their softmax outputs on mixed-up training data.

Shapes: N examples, D width of a representation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIXUP_ALPHA = 16.0


class Similarity(NamedTuple):
    """Mean over the pairs, its standard error (0 for one pair), and the number of pairs."""

    value: float
    error: float
    pairs: int


def linear_cka(first_ND: NDArray[np.floating], second_ND: NDArray[np.floating]) -> float:
    """‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) of centred columns (Kornblith and others, 2019): 0–1; not a number where one of the
    two is constant."""
    x, y = (np.asarray(one, np.float64) - np.mean(one, axis=0, dtype=np.float64) for one in (first_ND, second_ND))
    across = np.linalg.norm(y.T @ x) ** 2
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(across / scale) if scale > 1e-18 else math.nan


def similarity(outputs: Sequence[NDArray[np.floating]]) -> Similarity:
    """The mean CKA of all pairs of trainings: what the taxonomy of loss landscapes takes, on softmax outputs. Logits
    give other values (.94 against .6), which its cuts do not fit."""
    found = [linear_cka(one, other) for one, other in itertools.combinations(outputs, 2)]
    error = float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else 0.0
    return Similarity(float(np.mean(found)), error, len(found))


def mixed(inputs_N: Tensor, *, seed: int, alpha: float = MIXUP_ALPHA) -> Tensor:
    """λ x_i + (1−λ) x_j with j a shuffled i and λ ~ Beta(α, α) for each row (Zhang and others, 2018)."""
    rng = np.random.default_rng(seed)
    share_N = torch.from_numpy(rng.beta(alpha, alpha, len(inputs_N)).astype(np.float32)).to(inputs_N)
    share = share_N.reshape(-1, *[1] * (inputs_N.ndim - 1))
    other_N = torch.from_numpy(rng.permutation(len(inputs_N)))
    return share * inputs_N + (1 - share) * inputs_N[other_N]
