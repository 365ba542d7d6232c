"""What audits are told of a version of this domain: its shapes and splits, reconstructions, codewords and classes.

Shapes: S shapes asked for, N points, W numbers of the codeword, L classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.pointcloud import predict
from services.pointcloud.chamfer import chamfer_max
from services.pointcloud.features import Cloud
from services.pointcloud.neighbours import local_features, normalise
from services.pointcloud.schemas import TrainConfig
from services.pointcloud.train import prepare
from shared.auditing import Assessment, Context, Examples, Floats, Kind, NotAssessed, Perturbation, ServedAlone
from shared.bundles import Bundle
from shared.jobs.config import read_config
from shared.jobs.context import check_stop
from shared.settings import ServiceSettings

QUICK = 120  # shapes; one takes about 50 ms
POINTS = 1_024
RESOLUTION = 32  # of the folded surface that is compared
Points = NDArray[np.float32]


def subject(bundle: Bundle, data: Path | None, context: Context) -> PointcloudSubject:
    """The subject of a bundle; without `data` nothing can be examined."""
    return PointcloudSubject(bundle, data, context)


class PointcloudSubject(ServedAlone):
    kind: Kind = "regression"
    classes: tuple[str, ...] = ()
    error_name = "Chamfer distance of the reconstruction"
    error_unit = "of the shape's radius"
    split = "test shapes: as the data says, or of other families than the training's"

    def __init__(self, bundle: Bundle, data: Path | None, context: Context) -> None:
        self._data, self._context = data, context
        self._predictor = predict.load(bundle, ServiceSettings())
        self._config = read_config(TrainConfig, bundle.manifest.config)
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
        return (
            Perturbation("sensor noise", "standard deviation, of the radius", (0.01, 0.02, 0.05), 0.01, _noised),
            Perturbation("fewer points", "share left out", (0.25, 0.5, 0.75), 0.5, _thinned),
            Perturbation("a side unseen", "share left out", (0.1, 0.2, 0.4), 0.1, _occluded),
            Perturbation("turned about the vertical", "degrees", (5, 15, 45, 90), 5, _turned),
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
        return Examples(clouds, np.zeros(len(clouds)), [f"strange {number}" for number in range(len(clouds))])

    def uncertainty(self, examples: Examples) -> Floats:
        """How badly the version reconstructs what it is given: the `error` that is served."""
        return self.assess(examples).error_N

    # -- parts

    @cached_property
    def _prepared(self) -> Any:
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
            np.zeros(len(chosen)),
            [shapes.names[index] for index in chosen],
            groups,
            features,
            np.array([shapes.families[index] for index in chosen]),
            QUICK,
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


def _turned(examples: Examples, strength: float, seed: int) -> Examples:
    """Both are turned: the reconstruction of a turned shape is the turned reconstruction."""
    angle = np.deg2rad(strength)
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]], np.float32)
    return replace(examples, inputs=[(wanted @ turn, given @ turn) for wanted, given in examples.inputs])
