"""Scans of a training set for backdoors: spectral signatures, activation clustering, and STRIP's entropy.

Shapes: N examples, D width of the embedding, K classes, T inputs that one is mixed with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEAST = 20  # examples of a class that are scanned, at least
COMPONENTS = 10  # of the embedding that are clustered (Chen and others, 2018)
SILHOUETTE_EXAMPLES = 2000


class Clusters(NamedTuple):
    """Two clusters of one class: `small_N` is true in the smaller; `share` of it; `silhouette` −1–1, higher is further
    apart."""

    small_N: NDArray[np.bool_]
    share: float
    silhouette: float


def spectral_scores(embedding_ND: NDArray[np.floating]) -> Floats:
    """(N,) squared projection on the top right singular vector of the centred embeddings of one class (Tran and others,
    2018). Poisoned examples of a class have the largest."""
    centred_ND = np.asarray(embedding_ND, np.float64) - np.mean(embedding_ND, axis=0, dtype=np.float64)
    if len(centred_ND) < 2:
        return np.zeros(len(centred_ND))
    _, _, right_DD = np.linalg.svd(centred_ND, full_matrices=False)
    return (centred_ND @ right_DD[0]) ** 2


def spectral_scan(embedding_ND: NDArray[np.floating], label_N: Ints) -> Floats:
    """(N,) each class's spectral scores over that class's median, so that classes compare; 0 in classes below LEAST."""
    found = np.zeros(len(label_N))
    for kind in np.unique(label_N[label_N >= 0]):
        rows = np.flatnonzero(label_N == kind)
        if len(rows) >= LEAST:
            scores = spectral_scores(embedding_ND[rows])
            found[rows] = scores / max(float(np.median(scores)), 1e-12)
    return found


def clusters(embedding_ND: NDArray[np.floating], seed: int) -> Clusters:
    """The examples of one class as two clusters of their reduced embeddings (activation clustering, Chen and others,
    2018; principal instead of independent components, which do not always converge)."""
    embedding_ND = np.asarray(embedding_ND, np.float64)
    count = min(COMPONENTS, embedding_ND.shape[1], len(embedding_ND) - 1)
    reduced = PCA(count, svd_solver="full").fit_transform(embedding_ND)
    found_N = KMeans(2, n_init="auto", random_state=seed).fit_predict(reduced)
    small = int(found_N.mean() < 0.5)
    small_N = found_N == small
    if not 0 < small_N.sum() < len(small_N):
        return Clusters(np.zeros(len(found_N), bool), 0.0, 0.0)
    size = min(SILHOUETTE_EXAMPLES, len(found_N))
    silhouette = float(silhouette_score(reduced, found_N, sample_size=size, random_state=seed))
    return Clusters(small_N, float(small_N.mean()), silhouette)


def clustering_scan(embedding_ND: NDArray[np.floating], label_N: Ints, seed: int) -> Floats:
    """(N,) a score that ranks examples by activation clustering: the silhouette of their class's two clusters times how
    small the cluster is (1 − its share), in the smaller cluster, else 0."""
    found = np.zeros(len(label_N))
    for kind in np.unique(label_N[label_N >= 0]):
        rows = np.flatnonzero(label_N == kind)
        if len(rows) >= LEAST:
            parts = clusters(embedding_ND[rows], seed)
            found[rows[parts.small_N]] = max(parts.silhouette, 0.0) * (1 - parts.share)
    return found


def entropy(probability_TK: NDArray[np.floating]) -> Floats:
    """(…,) in nats, over the last axis."""
    p = np.clip(np.asarray(probability_TK, np.float64), 1e-12, 1)
    return -(p * np.log(p)).sum(-1)


def strip_scores(probability_NTK: NDArray[np.floating]) -> Floats:
    """(N,) minus the mean entropy of an input's answers when it is mixed with T clean ones (STRIP, Gao and others,
    2019): a trigger survives the mixing, so that the answers stay sure and the score is high."""
    return -entropy(probability_NTK).mean(axis=1)


class Detection(NamedTuple):
    """Share of poisoned examples above a threshold that `false_alarms` of the clean ones pass, and the area under the
    curve (0.5: chance)."""

    rate: float
    auc: float
    false_alarms: float


def detection(score_N: Floats, poisoned_N: NDArray[np.bool_], false_alarms: float) -> Detection:
    """What a scan finds when its threshold is the clean examples' (1 − false_alarms) quantile. Ties with the threshold
    are not found."""
    clean, dirty = score_N[~poisoned_N], score_N[poisoned_N]
    limit = float(np.quantile(clean, 1 - false_alarms, method="higher"))
    ranks = np.searchsorted(np.sort(clean), dirty, "left"), np.searchsorted(np.sort(clean), dirty, "right")
    auc = float((ranks[0] + ranks[1]).mean() / 2 / max(len(clean), 1))
    return Detection(float((dirty > limit).mean()), auc, float((clean > limit).mean()))
