"""Groups that nobody named: clusters of errors in embedding space, told by a rule on features that a reader knows.

Found on one half of the held-out examples and measured on the other, so that chance is not taken for a group. Shapes:
N examples, D width of the embedding, F features as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

Bools = NDArray[np.bool_]
LEAST_ERRORS = 12  # in the half that is searched
MOST_CLUSTERS = 4
SHARE = 0.05  # of the examples: a rule for fewer is an anecdote


@dataclass(frozen=True)
class Found:
    """A rule, and which examples of the other half it picks."""

    rule: str
    member_N: Bools


def find(
    error_N: NDArray[np.float64],
    embedding_ND: NDArray[Any] | None,
    features: Mapping[str, NDArray[Any]],
    half_N: Bools,
    seed: int,
) -> list[Found]:
    """Rules found on the examples in `half_N`, each with all examples (N,) that it picks. Without an embedding the
    features stand for it; without features nothing can be told and nothing is found."""
    names, x_NF = as_numbers(features)
    wrong_N = error_N > max(0.0, float(np.quantile(error_N[half_N], 0.8))) if not _shares(error_N) else error_N > 0.5
    searched_wrong = np.flatnonzero(half_N & wrong_N)
    if len(searched_wrong) < LEAST_ERRORS or not names:
        return []
    space = StandardScaler().fit_transform(x_NF if embedding_ND is None else embedding_ND.astype(np.float64))
    space = PCA(min(8, *space.shape), random_state=seed).fit_transform(space)
    count = int(np.clip(len(searched_wrong) // LEAST_ERRORS, 1, MOST_CLUSTERS))
    cluster = KMeans(count, random_state=seed).fit_predict(space[searched_wrong])
    found: dict[str, Found] = {}
    for number in range(count):
        member = np.zeros(len(error_N), bool)
        member[searched_wrong[cluster == number]] = True
        told = _told(names, x_NF, member, half_N, seed)
        if told is not None:
            found.setdefault(told.rule, told)
    return list(found.values())


def as_numbers(features: Mapping[str, NDArray[Any]]) -> tuple[list[str], NDArray[np.float64]]:
    """Names and columns (N, F): numbers as they are, unknown as the median; each frequent word a column of 0 and 1."""
    names: list[str] = []
    columns: list[NDArray[np.float64]] = []
    for name, value_N in features.items():
        if value_N.dtype.kind in "fiub":
            column = value_N.astype(np.float64)
            known = column[np.isfinite(column)]
            if len(known) and np.ptp(known) > 0:
                names.append(name)
                columns.append(np.where(np.isfinite(column), column, np.median(known)))
            continue
        words, counts = np.unique(value_N, return_counts=True)
        for word in words[np.argsort(-counts)][:20]:
            names.append(f"{name} is {word or 'unknown'}")
            columns.append((value_N == word).astype(np.float64))
    return names, np.stack(columns, axis=1) if columns else np.zeros((0, 0))


def _told(names: list[str], x_NF: NDArray[np.float64], member_N: Bools, half_N: Bools, seed: int) -> Found | None:
    """The leaf of a small tree with the greatest share of the cluster, as a rule."""
    least = max(10, int(SHARE * half_N.sum()))
    tree = DecisionTreeClassifier(max_depth=2, min_samples_leaf=least, class_weight="balanced", random_state=seed)
    tree.fit(x_NF[half_N], member_N[half_N])
    leaf_N = tree.apply(x_NF)
    leaves = [leaf for leaf in np.unique(leaf_N[half_N]) if member_N[half_N & (leaf_N == leaf)].any()]
    best = max(leaves, key=lambda leaf: member_N[half_N & (leaf_N == leaf)].mean(), default=None)
    if best is None or tree.get_n_leaves() < 2:
        return None
    return Found(_path(tree, int(best), names, x_NF), leaf_N == best)


def _path(tree: DecisionTreeClassifier, leaf: int, names: list[str], x_NF: NDArray[np.float64]) -> str:
    """The conditions from the root to a leaf."""
    inner: Any = tree.tree_
    parent = {int(child): (node, side) for node in range(inner.node_count) for side, child in _children(inner, node)}
    conditions: list[str] = []
    node = leaf
    while node in parent:
        node, side = parent[node]
        name, cut = names[inner.feature[node]], float(inner.threshold[node])
        binary = set(np.unique(x_NF[:, inner.feature[node]])) <= {0.0, 1.0}
        if binary and " is " in name:
            conditions.append(name if side == ">" else name.replace(" is ", " is not ", 1))
        elif binary:
            conditions.append(name if side == ">" else f"not {name}")
        else:
            conditions.append(f"{name} {'≤' if side == '≤' else '>'} {cut:.3g}")
    return " and ".join(reversed(conditions))


def _children(inner: Any, node: int) -> list[tuple[str, int]]:
    left, right = int(inner.children_left[node]), int(inner.children_right[node])
    return [] if left < 0 else [("≤", left), (">", right)]


def _shares(error_N: NDArray[np.float64]) -> bool:
    return bool(np.isin(error_N, (0.0, 1.0)).all())
