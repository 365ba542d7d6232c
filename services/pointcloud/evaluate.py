"""How good codewords and reconstructions are: Chamfer distance, linear probe, nearest neighbour, and their floors.

Shapes: S shapes, N points, D width of what is probed, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from services.pointcloud.chamfer import chamfer, chamfer_max
from services.pointcloud.datasets import Shapes
from services.pointcloud.model import Autoencoder, DGCNNEncoder, GraphEncoder
from services.pointcloud.neighbours import local_features

Floats = NDArray[np.floating]
Labels = NDArray[np.int64]

PENALTIES = (0.001, 0.01, 0.1)
PAIR_BINS, AXIS_BINS = 32, 17


@dataclass(frozen=True)
class Classified:
    """What a classifier said of the test shapes, and how it was chosen."""

    predicted_S: Labels
    label_S: Labels
    family_S: list[str]
    penalty: float | None = None

    @property
    def accuracy(self) -> float:
        return float((self.predicted_S == self.label_S).mean())

    @property
    def macro(self) -> float:
        return macro_accuracy(self.predicted_S, self.label_S)

    def interval(self, metric: Callable[[Labels, Labels], float], rounds: int = 500) -> tuple[float, float]:
        """95 % percentile bootstrap over whole families: shapes of one are not independent."""
        return family_bootstrap(
            lambda index: metric(self.predicted_S[index], self.label_S[index]), self.family_S, rounds
        )


def accuracy(predicted_S: Labels, label_S: Labels) -> float:
    return float((predicted_S == label_S).mean())


def macro_accuracy(predicted_S: Labels, label_S: Labels) -> float:
    """Mean over the classes that occur of the share of their shapes that were recognised."""
    right = predicted_S == label_S
    return float(np.mean([right[label_S == label].mean() for label in np.unique(label_S)]))


def family_bootstrap(
    value: Callable[[NDArray[np.int64]], float], families: Sequence[str], rounds: int = 500
) -> tuple[float, float]:
    """95 % interval of value(indices), families drawn with replacement."""
    names, member_S = np.unique(np.array(families), return_inverse=True)
    members = [np.flatnonzero(member_S == number) for number in range(len(names))]
    random = np.random.default_rng(0)
    drawn = [
        value(np.concatenate([members[number] for number in random.integers(0, len(names), len(names))]))
        for _ in range(rounds)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


# -- classification


def linear_probe(x_SD: Floats, label_S: Labels, split_S: Labels, families: list[str]) -> Classified:
    """A linear SVM on standardised inputs; its penalty is chosen on validation, then train and validation are fitted.

    Shapes without a class (−1) are left out. Test shapes are looked at once.
    """
    train, validation, test = (_chosen(label_S, split_S, part) for part in range(3))

    def score(penalty: float) -> float:
        found = _svm(penalty).fit(x_SD[train], label_S[train]).predict(x_SD[validation])
        return macro_accuracy(found, label_S[validation])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalty = max(PENALTIES, key=score) if len(validation) else 1.0
        both = np.concatenate([train, validation])
        predicted = _svm(penalty).fit(x_SD[both], label_S[both]).predict(x_SD[test])
    return Classified(predicted, label_S[test], [families[index] for index in test], penalty)


def nearest_neighbour(x_SD: Floats, label_S: Labels, split_S: Labels, families: list[str]) -> Classified:
    """The class of the nearest training or validation shape, on standardised inputs."""
    train, test = np.flatnonzero((label_S >= 0) & (split_S < 2)), _chosen(label_S, split_S, 2)
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(1)).fit(x_SD[train], label_S[train])
    return Classified(model.predict(x_SD[test]), label_S[test], [families[index] for index in test])


def _svm(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LinearSVC(C=penalty, random_state=0, max_iter=500))


def _chosen(label_S: Labels, split_S: Labels, part: int) -> NDArray[np.int64]:
    return np.flatnonzero((label_S >= 0) & (split_S == part))


# -- what is probed


def hand_made(points_N3: Floats) -> NDArray[np.float32]:
    """86 numbers of a cloud in the unit ball: histograms of pair distances and along the axes, sorted extents."""
    points = np.asarray(points_N3, np.float32)
    random = np.random.default_rng(0)
    first, second = random.integers(0, len(points), (2, 4096))
    pairs = np.linalg.norm(points[first] - points[second], axis=1)
    parts = [np.histogram(pairs, PAIR_BINS, (0, 2))[0] / len(pairs), np.sort(np.ptp(points, axis=0))]
    parts += [np.histogram(points[:, axis], AXIS_BINS, (-1, 1))[0] / len(points) for axis in range(3)]
    return np.concatenate(parts).astype(np.float32)


@torch.inference_mode()
def encode(
    encoders: Sequence[GraphEncoder | DGCNNEncoder], shapes: Shapes, chosen: Sequence[int], points: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(codewords (S, 512), local layers (S, 3·C)) of each encoder; the first `points` points of a shape.

    Points of a shape are drawn by area and independent, so the first of them are a sample too. Local layers are the
    mean, the standard deviation and the maximum over the points of the encoder's channels before its global maximum.
    """
    device = next(encoders[0].parameters()).device
    found: list[tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]] = [([], []) for _ in encoders]
    for index in chosen:
        features, neighbours = (part.to(device) for part in batch_of([shapes.cloud(index)[:points]]))
        for encoder, (codes, layers) in zip(encoders, found, strict=True):
            codes.append(encoder(features, neighbours).cpu().numpy())
            local_BNC = encoder.local(features, neighbours)
            spread_BC = local_BNC.std(1, correction=0)
            layers.append(torch.cat([local_BNC.mean(1), spread_BC, local_BNC.amax(1)], -1).cpu().numpy())
    return [(np.concatenate(codes), np.concatenate(layers)) for codes, layers in found]


def batch_of(clouds: Sequence[Floats]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, N, 12) and neighbours (B, N, 16) of clouds of any sizes; the shorter are padded with their row 0,
    which maxima ignore."""
    parts = [local_features(cloud) for cloud in clouds]
    longest = max(len(features) for features, _ in parts)
    index = [np.where(np.arange(longest) < len(features), np.arange(longest), 0) for features, _ in parts]
    features_BN12 = np.stack([features[rows] for (features, _), rows in zip(parts, index, strict=True)])
    neighbours_BNK = np.stack([neighbours[rows] for (_, neighbours), rows in zip(parts, index, strict=True)])
    return torch.from_numpy(features_BN12), torch.from_numpy(neighbours_BNK)


@torch.inference_mode()
def reconstruction_errors(
    model: Autoencoder, shapes: Shapes, chosen: Sequence[int], points: int, batch: int = 8
) -> NDArray[np.float64]:
    """Chamfer distance (S,), max form in the unit ball, between each shape and its reconstruction."""
    device = next(model.parameters()).device
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(chosen), batch):
        features, neighbours = batch_of([shapes.cloud(index)[:points] for index in chosen[start : start + batch]])
        folded = model(features.to(device), neighbours.to(device))
        # Padding repeats points of the cloud, which would count twice in a mean: each cloud by its own size.
        counts = torch.tensor([min(points, len(shapes.points[index])) for index in chosen[start : start + batch]])
        found.append(chamfer(features[..., :3].to(device), folded, x_counts_B=counts).cpu().numpy().astype(np.float64))
    return np.concatenate(found)


def nearest_shape_errors(
    shapes: Shapes, test: Sequence[int], training: Sequence[int], points: int = 512
) -> NDArray[np.float64]:
    """Chamfer distance (max form) from each test shape to the training shape nearest to it: what a perfect memory
    without any reconstruction would reach."""
    found: list[float] = []
    for index in test:
        cloud = shapes.cloud(index)[:points]
        found.append(min(chamfer_max(cloud, shapes.cloud(other)[:points]) for other in training))
    return np.array(found)
