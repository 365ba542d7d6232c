"""The heterophily benchmark's networks: one .npz each, with features, classes, edges and ten official splits.

Shapes: N nodes, M edges as stored, E directed edges (both directions), F features, S splits.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.problems import InputError

SPLITS = ("train", "val", "test")
Scaling = Literal["own", "rows", "none"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)


class BadNetwork(InputError):
    """A network file that cannot be read; names the file."""

    code = "bots-bad-network"
    title = "The network file is not valid"
    advice = "Mend the file that the detail names."


class Network(NamedTuple):
    """`edge_E2` holds every edge in both directions, once, without loops; `masks` has a (S, N) for each of SPLITS."""

    features_NF: Tensor
    label_N: Tensor
    edge_E2: Tensor
    masks: dict[str, Tensor]

    @property
    def classes(self) -> int:
        return int(self.label_N.max()) + 1


def undirected(edge_M2: NDArray[np.int64]) -> NDArray[np.int64]:
    """Both directions of every edge, each once, in order of the receiver; loops and duplicates are dropped: (E, 2)."""
    edge_M2 = edge_M2[edge_M2[:, 0] != edge_M2[:, 1]]
    return np.unique(np.concatenate([edge_M2, edge_M2[:, ::-1]]), axis=0)


def row_normalised(features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every node's features over their sum, as the GGCN paper does; a node without features keeps zeros."""
    total_N1 = features_NF.sum(1, keepdims=True)
    return (features_NF / np.where(total_N1 == 0, 1, total_N1)).astype(np.float32)


def standardised(features_NF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every feature to mean 0 and deviation 1; a constant one becomes 0."""
    deviation_F = features_NF.std(0)
    scaled_NF = (features_NF - features_NF.mean(0)) / np.where(deviation_F == 0, 1, deviation_F)
    return scaled_NF.astype(np.float32)


def load_network(path: Path, scaling: Scaling = "own") -> Network:
    """Reads the file. With the scaling "own" two classes get standardised features (a few account properties), more get
    normalised rows (bags of words), as "rows" gives them to all; "none" leaves them. Raises BadNetwork naming the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
        features_NF = arrays["node_features"].astype(np.float32)
        label_N = arrays["node_labels"].astype(np.int64)
        edge_E2 = undirected(arrays["edges"].astype(np.int64).reshape(-1, 2))
        masks = {split: arrays[f"{split}_masks"].astype(bool) for split in SPLITS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadNetwork(f"{path.name}: {error}", file=path.name) from None
    nodes = len(label_N)
    if len(features_NF) != nodes or any(mask.ndim != 2 or mask.shape[1] != nodes for mask in masks.values()):
        raise BadNetwork(f"{path.name}: features, labels and masks differ in nodes", file=path.name)
    if edge_E2.size and not 0 <= edge_E2.min() <= edge_E2.max() < nodes:
        raise BadNetwork(f"{path.name}: an edge names a node that is not there", file=path.name)
    if scaling == "own" and label_N.max() == 1:
        features_NF = standardised(features_NF)
    elif scaling != "none":
        features_NF = row_normalised(features_NF)
    return Network(
        torch.from_numpy(features_NF),
        torch.from_numpy(label_N),
        torch.from_numpy(edge_E2),
        {split: torch.from_numpy(mask) for split, mask in masks.items()},
    )
