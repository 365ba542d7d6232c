"""From scans to a trigger: which examples of a class lie apart, what they share, and whether that alone decides.

Shapes: N examples, D width of an embedding, E entries of an input that a trigger may set, flattened.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from services.audits.scans import COMPONENTS, LEAST, spectral_scores

Ints = NDArray[np.int64]
SPLITS = (2, 4, 8, 16)  # clusters that a class is cut into, one cutting after the other
LARGEST_SHARE = 0.35  # of its class that a suspect group is, at most: the majority is what the class is
LEAST_GROUP = 8
SPECTRAL_SHARE = 0.02  # of a class with the largest spectral scores: one more group
CLOSE = 0.02  # of an entry's range: as good as equal
CORES = 3  # of a group, by how much commoner their value is in it
CORE = 0.1  # of a group that has one value in common, to be its core: clusters are seldom pure
SHARED = 0.8  # of a core that has an entry's value, for the core to share it
RARE = 0.1  # of all other examples that have it, at most
MOST_ENTRIES = 12  # that a trigger has, by rarity
WIDE = 64  # entries from which on a linear model is fitted to principal components


class Group(NamedTuple):
    """Examples (places among all N) of the class `label` that lie apart, and the scan that said so."""

    label: int
    rows: Ints
    scan: str


class Shared(NamedTuple):
    """Entries that a group shares and the others lack: places, values, and all examples that carry them all."""

    entries: Ints
    values_E: NDArray[np.float32]
    carriers: Ints


def groups_apart(embedding_ND: NDArray[np.floating], label_N: Ints, seed: int) -> list[Group]:
    """The small clusters of each class's embeddings, at several finenesses (activation clustering), and those with the
    largest spectral scores."""
    found: list[Group] = []
    for kind in np.unique(label_N[label_N >= 0]):
        rows = np.flatnonzero(label_N == kind)
        if len(rows) < LEAST:
            continue
        own_ND = np.asarray(embedding_ND[rows], np.float64)
        count = min(COMPONENTS, own_ND.shape[1], len(rows) - 1)
        reduced = PCA(count, svd_solver="full").fit_transform(own_ND)
        for parts in SPLITS:
            if len(rows) < parts * LEAST_GROUP:
                break
            cluster_N = KMeans(parts, n_init="auto", random_state=seed).fit_predict(reduced)
            for number in range(parts):
                mine = rows[cluster_N == number]
                if LEAST_GROUP <= len(mine) <= LARGEST_SHARE * len(rows):
                    found.append(Group(int(kind), mine, f"activation clustering, {parts} clusters"))
        most = max(LEAST_GROUP, round(SPECTRAL_SHARE * len(rows)))
        found.append(Group(int(kind), rows[np.argsort(-spectral_scores(own_ND))[:most]], "spectral signature"))
    return found


def shared_by(group: Group, value_NE: NDArray[np.float32], low: float, high: float) -> list[Shared]:
    """What cores of the group share, where it is rare elsewhere.

    A core carries the value of one entry that is common in the group and rare elsewhere.
    """
    width = 2 * CLOSE * (high - low)
    outside = np.ones(len(value_NE), bool)
    outside[group.rows] = False

    def common(rows: Ints) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        """The commonest value of each entry among the rows, its share there, and its share outside the group."""
        start_E, share_E = _densest(value_NE[rows], width)
        inside_NE = _held(value_NE[outside], start_E, width)
        return start_E, share_E, inside_NE.mean(axis=0) if outside.any() else np.zeros(len(start_E))

    found: list[Shared] = []
    first_E, share_E, elsewhere_E = common(group.rows)
    lift_E = np.where((share_E >= CORE) & (elsewhere_E <= RARE), share_E / (elsewhere_E + 0.01), 0)
    for first in np.argsort(-lift_E, kind="stable")[:CORES].tolist():
        if lift_E[first] == 0:
            break
        own_NE = value_NE[group.rows][:, [first]]
        core = group.rows[_held(own_NE, first_E[[first]], width)[:, 0]]
        start_E, share_E, elsewhere_E = common(core)
        entries = np.flatnonzero((share_E >= SHARED) & (elsewhere_E <= RARE))
        entries = entries[np.argsort(elsewhere_E[entries], kind="stable")][:MOST_ENTRIES]
        carriers = np.flatnonzero(_held(value_NE[:, entries], start_E[entries], width).all(axis=1))
        if len(entries) and len(carriers) >= LEAST_GROUP:
            value_E = np.median(value_NE[np.ix_(carriers, entries)], axis=0).astype(np.float32)
            found.append(Shared(entries, value_E, carriers))
    return found


def _held(value_NE: NDArray[np.float32], start_E: NDArray[np.float32], width: float) -> NDArray[np.bool_]:
    return (value_NE >= start_E) & (value_NE <= start_E + width)


def _densest(value_NE: NDArray[np.float32], width: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """(E,) where the interval of that width begins that holds most values of each entry, and the share it holds."""
    ordered_NE = np.sort(value_NE, axis=0)
    start_E, share_E = ordered_NE[0].copy(), np.zeros(value_NE.shape[1])
    for entry, column in enumerate(ordered_NE.T):
        held = np.searchsorted(column, column + width, "right") - np.arange(len(column))
        start_E[entry], share_E[entry] = column[held.argmax()], held.max() / len(column)
    return start_E, share_E


def believed(
    shared: Shared, label: int, value_NE: NDArray[np.float32], label_N: Ints, seed: int
) -> NDArray[np.float64]:
    """1 or 0 for each carrier that is labelled `label`: whether a model believes it that never saw the carriers, nor
    the shared entries (exclusionary reclassification, Chen and others, 2018). What a trigger was stamped on looks like
    another class to it.
    """
    asked = shared.carriers[label_N[shared.carriers] == label]
    others = np.setdiff1d(np.flatnonzero(label_N >= 0), shared.carriers)
    if not len(asked) or len(np.unique(label_N[others])) < 2:
        return np.ones(len(asked))
    return _called(shared, label, value_NE, label_N, others, asked, seed)


def _called(
    shared: Shared, label: int, value_NE: NDArray[np.float32], label_N: Ints, seen: Ints, asked: Ints, seed: int
) -> NDArray[np.float64]:
    """1 or 0 for each of `asked`: whether a model of the examples `seen`, without the shared entries, calls it so."""
    rest = np.setdiff1d(np.arange(value_NE.shape[1]), shared.entries)
    if not len(rest):
        return np.ones(len(asked))
    if len(rest) > WIDE:
        count = min(50, len(seen) - 1)
        model = make_pipeline(StandardScaler(), PCA(count, random_state=seed), LogisticRegression(max_iter=500))
    else:
        model = HistGradientBoostingClassifier(max_iter=60, class_weight="balanced", random_state=seed)
    model.fit(value_NE[np.ix_(seen, rest)], label_N[seen])
    return (model.predict(value_NE[np.ix_(asked, rest)]) == label).astype(np.float64)
