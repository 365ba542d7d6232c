"""The floors that a graph model has to beat: boosted trees, a random forest and an MLP on each account's features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def floors(
    features_NF: NDArray[np.float32], label_N: NDArray[np.int64], train_N: NDArray[np.bool_], seed: int
) -> dict[str, NDArray[np.float64]]:
    """Name → class probabilities (N, C) of models fitted on the training accounts; features are NaN where missing."""
    seen = features_NF[:, ~np.isnan(features_NF[train_N]).all(axis=0)]
    filled = np.nan_to_num(seen, nan=-1.0)
    models: dict[str, Any] = {
        "gradient boosting": HistGradientBoostingClassifier(random_state=seed),
        "random forest": RandomForestClassifier(300, random_state=seed, n_jobs=1),
        "MLP": make_pipeline(StandardScaler(), MLPClassifier((64,), alpha=0.1, max_iter=100, random_state=seed)),
    }
    found: dict[str, NDArray[np.float64]] = {}
    for name, model in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a floor may stop at its hundredth epoch
            found[name] = model.fit(filled[train_N], label_N[train_N]).predict_proba(filled)
    return found
