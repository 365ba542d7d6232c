"""What audits are told of a version of this domain: its shapes and splits, reconstructions, codewords, its network.

Shapes: S shapes asked for, N points, W numbers of the codeword, L classes, B clouds, K neighbours, A cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.pointcloud import predict, surface
from services.pointcloud.cells import Cells, middles, served
from services.pointcloud.chamfer import chamfer, chamfer_max
from services.pointcloud.classifier import fit_classifier
from services.pointcloud.datasets import Shapes
from services.pointcloud.evaluate import batch_of, encode
from services.pointcloud.features import Cloud
from services.pointcloud.neighbours import local_features, normalise
from services.pointcloud.render import turned_about
from services.pointcloud.schemas import TrainConfig, Up
from services.pointcloud.train import fit, prepare
from services.pointcloud.weights import WEIGHTS, Network, load_network
from shared.auditing import (
    Assessment,
    Context,
    Continuous,
    Examples,
    Floats,
    Ints,
    Kind,
    NotAssessed,
    Perturbation,
    TrainingWithin,
)
from shared.bundles import Bundle
from shared.jobs.config import read_config
from shared.jobs.context import check_stop
from shared.settings import ServiceSettings

QUICK = {0: 480, 2: 120}  # shapes of the training and the test split; to reconstruct one takes about 50 ms
POINTS = 1_024
TOGETHER = 32  # clouds that the network is given at once, for the memory they take
RESOLUTION = 32  # of the folded surface that is compared
Points = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Clouds for the network, in the unit ball, and how many rows of each are points."""

    features_BN12: Tensor
    neighbours_BNK: Tensor
    count_B: Tensor


def subject(bundle: Bundle, data: Path | None, context: Context) -> PointcloudSubject:
    """The subject of a bundle; without `data` nothing but its weights can be examined."""
    return PointcloudSubject(bundle, data, context)


class PointcloudSubject:
    kind: Kind = "regression"  # of the reconstruction; the classes are those of the codewords' classifier
    error_name = "Chamfer distance of the reconstruction"
    error_unit = "of the shape's radius"
    split = "test shapes: as the data says, or of other families than the training's"

    def __init__(self, bundle: Bundle, data: Path | None, context: Context) -> None:
        self._bundle, self._data, self._context = bundle, data, context
        self._predictor = predict.load(bundle, ServiceSettings())
        self._config = read_config(TrainConfig, bundle.manifest.config).model_copy(update={"device": "cpu"})
        self.classes = self._predictor.calibration.labels
        self.revision = bundle.manifest.code_revision

    @cached_property
    def likely(self) -> float:
        """Of who answers one shape whatever the cloud: the training cloud that is nearest to all of a sample."""
        shapes, split_S = self._prepared
        random = np.random.default_rng(0)
        candidates = random.permutation(np.flatnonzero(split_S == 0))[:8]
        tested = random.permutation(np.flatnonzero(split_S == 2))[:40]
        means = [
            np.mean([chamfer_max(shapes.cloud(int(one))[:512], shapes.cloud(int(other))[:512]) for other in tested])
            for one in candidates
        ]
        return float(min(means))

    @cached_property
    def train(self) -> Examples:
        return self._examples(0)

    @cached_property
    def held_out(self) -> Examples:
        return self._examples(2)

    def assess(self, examples: Examples) -> Assessment:
        """The Chamfer distance, max form, between each cloud and its reconstruction; the codewords."""
        error_N: list[float] = []
        codewords: list[Points] = []
        for points_N3, answer in self._answers(examples):
            if answer.points_G3 is None or answer.codeword_W is None:
                raise NotAssessed("The version reconstructs nothing.")
            error_N.append(chamfer_max(points_N3, answer.points_G3))
            codewords.append(answer.codeword_W)
        return Assessment(np.array(error_N), None, np.stack(codewords))

    def perturbations(self) -> Sequence[Perturbation]:
        """Errors are against the cloud as it was before the change."""

        def turned(examples: Examples, strength: float, seed: int) -> Examples:
            return _turned(examples, strength, self._config.up)

        return (
            Perturbation("sensor noise", "standard deviation, of the radius", (0.01, 0.02, 0.05), 0.01, _noised),
            Perturbation("fewer points", "share left out", (0.25, 0.5, 0.75), 0.5, _thinned),
            Perturbation("a side unseen", "share left out", (0.1, 0.2, 0.4), 0.1, _occluded),
            Perturbation("turned about the vertical", "degrees", (5, 15, 45, 90), 5, turned),
        )

    def unfamiliar(self, seed: int) -> Examples:
        """Points drawn evenly in a ball, and clouds of two shapes pushed into each other."""
        random, held_out = np.random.default_rng([seed, 1]), self.held_out
        clouds: list[Any] = []
        for number in range(min(40, len(held_out))):
            ball = random.normal(size=(POINTS, 3))
            ball *= (random.random((POINTS, 1)) ** (1 / 3)) / np.linalg.norm(ball, axis=1, keepdims=True)
            one, other = (
                held_out.inputs[int(place)][0][: POINTS // 2] for place in random.integers(0, len(held_out), 2)
            )
            mixed = np.concatenate([one, other[:, ::-1] * np.array([1, -1, 1], np.float32)])
            chosen = _unit(ball if number % 2 else mixed)
            clouds.append((chosen, chosen))
        return Examples(clouds, np.full(len(clouds), -1), [f"strange {number}" for number in range(len(clouds))])

    def uncertainty(self, examples: Examples) -> Floats:
        """How badly the version reconstructs what it is given: the `error` that is served."""
        return self.assess(examples).error_N

    # -- the network

    def module(self) -> Network:
        if WEIGHTS not in self._bundle.manifest.files:
            if self._config.task == "single-view":
                raise NotAssessed("The version's autoencoder was carried over; examine the version that trained it.")
            raise NotAssessed("The version carries no trainable weights: its bundle holds the served graphs alone.")
        return load_network(self._bundle)

    def fit(self, examples: Examples | None, seed: int, context: Context) -> Network:
        """The autoencoder and the classifier of its codewords; the single-view network has no part in these checks."""
        shapes, split_S = self._prepared
        label_S = _numbers(np.array([*shapes.labels, ""])[shapes.label_S], self.classes)
        shapes = replace(shapes, labels=self.classes, label_S=label_S)
        if examples is not None:
            kept = np.flatnonzero(split_S == 1)
            units = examples.names if examples.unit_N is None else examples.unit_N
            split_S = np.repeat([0, 1], [len(examples), len(kept)])
            shapes = Shapes(
                [given_N3 for _, given_N3 in examples.inputs] + [shapes.points[int(index)] for index in kept],
                [*examples.names, *(shapes.names[index] for index in kept)],
                self.classes,
                np.concatenate([examples.targets_N, label_S[kept]]),
                [*map(str, units), *(shapes.families[index] for index in kept)],
                split_S,
            )
        config = self._config.model_copy(update={"seed": seed})
        model = fit(config, shapes, split_S, TrainingWithin(context, context.artefact(f"fit-{seed}")))
        if not self.classes:
            return Network(model, None)
        [(codes_SW, _)] = encode([model.encoder], shapes, range(len(shapes)), POINTS)
        return Network(model, fit_classifier(codes_SW, shapes.label_S, split_S)).eval()

    def batches(self, examples: Examples, size: int) -> Sequence[Batch]:
        found: list[Batch] = []
        for start in range(0, len(examples), size):
            check_stop(self._context)
            part = [normalise(given_N3).points_N3 for _, given_N3 in examples.inputs[start : start + size]]
            found.append(Batch(*batch_of(part), torch.tensor([len(cloud_N3) for cloud_N3 in part])))
        return found

    def loss(self, module: Network, batch: Batch) -> Tensor:
        """The training's Chamfer distance, max form, of as many points of the surface as a step folds, evenly spread.
        The classifier has no part in it: it is fitted to the finished codewords."""
        folded = module.autoencoder(batch.features_BN12, batch.neighbours_BNK, self._source(module))
        return chamfer(batch.features_BN12[..., :3], folded, x_counts_B=batch.count_B).mean()

    def outputs(self, module: Network, batch: Batch) -> Tensor:
        return self._logits(module, batch.features_BN12, batch.neighbours_BNK)

    def features(self, module: Network, batch: Batch) -> Tensor:
        """The codewords."""
        return module(batch.features_BN12, batch.neighbours_BNK)

    def continuous(self, examples: Examples) -> Continuous:
        """What lies in each cell of the ball (cells.py), so that a knot of points that clouds have in common is a
        number or a few. Neighbours, covariances and the unit ball are taken anew from whatever is put in."""
        count = max(len(given_N3) for _, given_N3 in examples.inputs)  # smaller clouds have points twice
        clouds = [Cells(torch.from_numpy(np.resize(given_N3, (count, 3)))) for _, given_N3 in examples.inputs]

        def logits(module: Network, values_SA4: Tensor) -> Tensor:
            found: list[Tensor] = []
            for start in range(0, len(clouds), TOGETHER):
                part = slice(start, start + TOGETHER)
                pairs = zip(clouds[part], values_SA4[part], strict=True)
                points_BN3 = torch.stack([cloud.with_values(values_A4) for cloud, values_A4 in pairs])
                found.append(self._logits(module, *served(points_BN3)))
            return torch.cat(found)

        values_SA4 = torch.stack([cloud.values_A4 for cloud in clouds])
        words = ("mean x", "mean y", "mean z", "root of the share of points")
        names = [f"{word} around ({x:.1f}, {y:.1f}, {z:.1f})" for x, y, z in middles().tolist() for word in words]
        return Continuous(values_SA4, -1.0, 1.0, tuple(values_SA4.shape[1:]), logits, tuple(names))

    # -- parts

    def _logits(self, module: Network, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        if module.classifier is None:
            raise NotAssessed("The version has no classifier: its training set had no classes.")
        return module.classifier.linear(module(features_BN12, neighbours_BNK))

    def _source(self, module: Network) -> Tensor | None:
        config, learned_GS = self._config, module.autoencoder.source_GS
        if config.decoder == "dense":
            return None
        if config.source == "learned":
            rows = np.linspace(0, len(learned_GS) - 1, min(config.train_resolution**2, len(learned_GS)))
            return learned_GS[torch.from_numpy(rows.round().astype(np.int64))]
        return torch.from_numpy(surface.points(config.source, config.train_resolution))

    @cached_property
    def _prepared(self) -> tuple[Shapes, Ints]:
        if self._data is None:
            raise NotAssessed("The data set that the version was trained on is not at hand; name one.")
        return prepare(self._config, self._data)

    def _examples(self, split: int) -> Examples:
        shapes, split_S = self._prepared
        chosen = np.flatnonzero(split_S == split)
        clouds = [_unit(shapes.cloud(int(index))[:POINTS]) for index in chosen]
        labels = np.array([*shapes.labels, ""])[shapes.label_S[chosen]]
        groups = {"category": labels} if len(np.unique(labels[labels != ""])) > 1 else {}
        features: dict[str, NDArray[Any]] = dict(groups)
        if split == 2:
            extents = np.sort(np.array([np.ptp(cloud, axis=0) for cloud in clouds]).reshape(-1, 3), axis=1)
            features |= {"longest extent": extents[:, 2], "flatness": extents[:, 0] / extents[:, 2].clip(1e-6)}
            features["slenderness"] = extents[:, 1] / extents[:, 2].clip(1e-6)
        return Examples(
            [(cloud, cloud) for cloud in clouds],
            _numbers(labels, self.classes),
            [shapes.names[index] for index in chosen],
            groups,
            features,
            np.array([shapes.families[index] for index in chosen]),
            QUICK[split],
        )

    def _answers(self, examples: Examples) -> list[tuple[Points, predict.Answer]]:
        found: list[tuple[Points, predict.Answer]] = []
        for wanted_N3, given_N3 in examples.inputs:
            check_stop(self._context)
            # As served: a cloud is moved into the unit ball, and its reconstruction back.
            moved = normalise(given_N3)
            cloud = Cloud(*local_features(moved.points_N3), moved.centre_3, moved.scale)
            [answer] = self._predictor.predict([predict.Query(cloud, points=True, resolution=self._resolution)])
            if isinstance(answer, Exception):
                raise answer
            if answer.points_G3 is not None:
                answer = replace(answer, points_G3=(answer.points_G3 * moved.scale + moved.centre_3).astype(np.float32))
            found.append((wanted_N3, answer))
        return found

    @property
    def _resolution(self) -> int | None:
        source = self._predictor.calibration.source
        return RESOLUTION if source is not None and source.values is None else None


def _numbers(label_S: NDArray[np.str_], classes: Sequence[str]) -> Ints:
    """Places of the labels among the version's classes, −1 of what is none of them: another data set has others."""
    number = {label: place for place, label in enumerate(classes)}
    return np.array([number.get(str(label), -1) for label in label_S], np.int64)


def _unit(points_N3: NDArray[Any]) -> Points:
    return normalise(points_N3).points_N3


def _each(examples: Examples, change: Callable[[Points], NDArray[Any]]) -> Examples:
    """The changed cloud is what the version is given; what it is measured against stays."""
    inputs = [(wanted, change(given).astype(np.float32)) for wanted, given in examples.inputs]
    return replace(examples, inputs=inputs)


def _noised(examples: Examples, strength: float, seed: int) -> Examples:
    random = np.random.default_rng([seed, 2])
    return _each(examples, lambda points: points + random.normal(0, strength, points.shape))


def _thinned(examples: Examples, strength: float, seed: int) -> Examples:
    random = np.random.default_rng([seed, 3])
    return _each(
        examples, lambda points: points[random.permutation(len(points))[: max(32, round(len(points) * (1 - strength)))]]
    )


def _occluded(examples: Examples, strength: float, seed: int) -> Examples:
    random = np.random.default_rng([seed, 4])

    def change(points_N3: Points) -> Points:
        side = random.normal(size=3)
        order = np.argsort(points_N3 @ (side / np.linalg.norm(side)))
        return points_N3[order[: max(32, round(len(points_N3) * (1 - strength)))]]

    return _each(examples, change)


def _turned(examples: Examples, strength: float, up: Up) -> Examples:
    """Both are turned: the reconstruction of a turned shape is the turned reconstruction."""
    inputs = [tuple(turned_about(points_N3, up, strength) for points_N3 in pair) for pair in examples.inputs]
    return replace(examples, inputs=inputs)
