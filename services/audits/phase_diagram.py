"""Recipe: a small phase diagram of load (width) × temperature (batch size), and what predicts test accuracy in it.

After Yang and others, "Taxonomizing local versus global structure in neural network loss landscapes" (2021). A row is a
cell: the mean over seeds of test accuracy and training loss, the largest Hessian eigenvalue, the connectivity of each
pair of neighbouring seeds along a trained curve, and the CKA of all pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from services.audits.checking import Stop, go_on
from services.audits.connectivity import connectivity
from services.audits.curvature import CurvatureDiverged, Hessian, top_eigenvalue
from services.audits.image_sets import ImageSet
from services.audits.networks import (
    ConvNet,
    batches_of,
    classify,
    error_percent,
    fit,
    logits_of,
    right,
)
from services.audits.schemas import PhaseDiagramConfig
from services.audits.similarity import mixed, similarity

MEASURES = ("top_eigenvalue", "barrier", "cka", "train_loss")
CURVE_BATCH = 100
BOOTSTRAPS = 1000


def phase_diagram(config: PhaseDiagramConfig, images: ImageSet, stop: Stop = go_on) -> list[dict[str, Any]]:
    """A row for each width and batch size. All cells train on the same images."""
    part = images.resized(config.size).taken(config.train_images, config.test_images, config.seed)
    return [
        _cell(config, part, width, batch, stop) for width, batch in itertools.product(config.widths, config.batches)
    ]


def _cell(config: PhaseDiagramConfig, part: ImageSet, width: int, batch: int, stop: Stop) -> dict[str, Any]:
    networks: list[ConvNet] = []
    for number in range(config.seeds):
        torch.manual_seed(config.seed + number)
        network = ConvNet(
            channels=part.channels, size=part.size, classes=part.classes, width=width, depth=config.depth, norm="batch"
        )
        fit(
            network,
            part.image_NCHW,
            part.label_N,
            epochs=config.epochs,
            batch=batch,
            learning_rate=config.learning_rate,
            seed=config.seed + number,
            stop=stop,
        )
        networks.append(network)
    accuracy = [float(right(one, part.test_image_NCHW, part.test_label_N).mean()) for one in networks]
    with torch.no_grad():
        losses = [float(classify(one, (part.image_NCHW, part.label_N))) for one in networks]
    measured = batches_of(part.image_NCHW, part.label_N, 250, config.seed)[: max(1, config.curvature_images // 250)]
    sharpness: list[float] = []
    for one in networks:
        try:
            sharpness.append(top_eigenvalue(Hessian(one, classify, measured, stop), seed=config.seed).value)
        except CurvatureDiverged:
            continue
    curves = [
        connectivity(
            one,
            other,
            classify,
            error_percent,
            lambda epoch: batches_of(part.image_NCHW, part.label_N, CURVE_BATCH, epoch),
            epochs=config.curve_epochs,
            learning_rate=config.curve_rate,
            seed=config.seed,
            stop=stop,
        ).value
        for one, other in itertools.pairwise(networks)
    ]
    mixed_NCHW = mixed(part.image_NCHW, seed=config.seed)
    alike = similarity([torch.softmax(logits_of(one, mixed_NCHW), 1).numpy() for one in networks])
    mc = float(np.mean(curves))
    return {
        "width": width,
        "batch": batch,
        "seeds": config.seeds,
        "test_accuracy": float(np.mean(accuracy)),
        "test_accuracy_sd": float(np.std(accuracy, ddof=1)) if len(accuracy) > 1 else 0.0,
        "train_loss": float(np.mean(losses)),
        "top_eigenvalue": float(np.mean(sharpness)) if sharpness else float("nan"),
        "mode_connectivity": mc,
        "barrier": abs(mc),
        "cka": alike.value,
    }


def predictors(rows: Sequence[dict[str, Any]], *, seed: int = 0) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Spearman's rank correlation of each measure with test accuracy, with a 95 % interval of cells resampled: over all
    cells, and with width held fixed (ranks less their width's mean), since width moves everything at once."""
    accuracy = np.array([row["test_accuracy"] for row in rows])
    width = np.array([row["width"] for row in rows])
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name in MEASURES:
        value = np.array([row[name] for row in rows])
        known = np.isfinite(value)
        found[name] = {
            "all cells": _interval(_spearman, value[known], accuracy[known], width[known], seed),
            "width fixed": _interval(_within, value[known], accuracy[known], width[known], seed),
        }
    return found


def _spearman(value: np.ndarray, accuracy: np.ndarray, width: np.ndarray) -> float:
    if len(np.unique(value)) < 2 or len(np.unique(accuracy)) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(value), rankdata(accuracy))[0, 1])


def _within(value: np.ndarray, accuracy: np.ndarray, width: np.ndarray) -> float:
    centred = [_ranks(one) for one in (value, accuracy)]
    for one in centred:
        for kind in np.unique(width):
            one[width == kind] -= one[width == kind].mean()
    scale = np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])
    return float(centred[0] @ centred[1] / scale) if scale > 0 else float("nan")


def _ranks(value: np.ndarray) -> np.ndarray:
    return rankdata(value).astype(np.float64)


def _interval(
    statistic: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    value: np.ndarray,
    accuracy: np.ndarray,
    width: np.ndarray,
    seed: int,
) -> tuple[float, float, float]:
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(value), len(value)) for _ in range(BOOTSTRAPS)]
    found = np.array([statistic(value[rows], accuracy[rows], width[rows]) for rows in draws])
    low, high = np.nanpercentile(found, [2.5, 97.5]) if np.isfinite(found).any() else (float("nan"), float("nan"))
    return statistic(value, accuracy, width), float(low), float(high)
