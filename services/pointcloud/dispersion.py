"""Does a single-view network reconstruct or merely recognise? Dispersion of its inputs and outputs, with a verdict.

Shapes: S items, N points, K medoids. After Zhou et al., A Dataset-Dispersion Perspective on Reconstruction Versus
Recognition in Single-View 3D Reconstruction Networks (3DV 2021). The dispersion score of items is the sum of their
distances to the medoid of their own cluster, here divided by S. Shapes are as far apart as their Chamfer distance (sum
form) says; pictures as the mean squared difference of their pixels, 56 × 56 grey, 0–1: the paper compares VGG16's
features, whose weights we cannot ship, so our pictures' scores compare with each other alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import kmedoids
import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from services.pointcloud.calibration import FILE, load_calibration
from services.pointcloud.chamfer import nearest_distances
from services.pointcloud.datasets import BadShapes, Shapes, load_shapes, with_splits
from services.pointcloud.evaluate import family_bootstrap
from services.pointcloud.schemas import DispersionConfig
from services.pointcloud.single_view import Views, as_input
from shared.bundles import Bundle
from shared.jobs.context import TrainingContext, check_stop
from shared.problems import Unprocessable
from shared.sessions import OnnxSession

Floats = NDArray[np.float64]
Verdict = Literal["recognises", "reconstructs"]

COMPARED_PIXELS = 56
# Below this part of the dispersion that the true shapes have, predictions are taken for a few remembered shapes. Our
# own choice; the paper compares scores and draws no line.
COLLAPSED = 0.5
RESTARTS = 5
LEAST_TESTED = 2


class NoSingleView(Unprocessable):
    code = "pointcloud-no-single-view"
    title = "The model has no single-view network"
    advice = "Train with `task=single-view`, promote, repeat."


def shape_distances(
    clouds: Sequence[NDArray[np.floating]], others: Sequence[NDArray[np.floating]] | None = None
) -> Floats:
    """Chamfer distance, sum form, of every pair (S, S), or of clouds and others."""
    trees = [KDTree(cloud) for cloud in clouds]
    if others is not None:
        columns = [KDTree(other) for other in others]
        return np.array([[_sum_of_means(one, other) for other in columns] for one in trees])
    found = np.zeros((len(trees), len(trees)))
    for i, first in enumerate(trees):
        for j in range(i):
            found[i, j] = found[j, i] = _sum_of_means(first, trees[j])
    return found


def _sum_of_means(first: KDTree, second: KDTree) -> float:
    return float(np.mean(second.query(first.data)[0]) + np.mean(first.query(second.data)[0]))


def image_distances(pictures: Sequence[NDArray[np.uint8]], others: Sequence[NDArray[np.uint8]] | None = None) -> Floats:
    """Mean squared difference of the pixels of every pair (S, S), or of pictures and others."""
    rows, columns = _pixels(pictures), _pixels(pictures if others is None else others)
    norm = (rows**2).sum(1)[:, None] + (columns**2).sum(1) - 2 * rows @ columns.T
    found = np.maximum(norm, 0) / rows.shape[1]
    if others is None:
        np.fill_diagonal(found, 0.0)
    return found


def dispersion(distance_SS: Floats, clusters: int, seed: int = 0) -> float:
    """The dispersion score over S: mean distance to the own medoid, the best of a few k-medoids++ starts."""
    clusters = min(clusters, len(distance_SS))
    if clusters == len(distance_SS):
        return 0.0
    random = np.random.default_rng(seed)
    found = [
        kmedoids.fasterpam(distance_SS, _spread_start(distance_SS, clusters, random)).loss for _ in range(RESTARTS)
    ]
    return float(min(found)) / len(distance_SS)


def _spread_start(distance_SS: Floats, clusters: int, random: np.random.Generator) -> NDArray[np.int64]:
    """k-medoids++: each next medoid is drawn with the square of its distance to those before."""
    chosen = [int(random.integers(len(distance_SS)))]
    while len(chosen) < clusters:
        weight_S = distance_SS[:, chosen].min(1) ** 2
        weight_S[chosen] = 0
        if weight_S.sum() == 0:  # all that are left lie on a medoid
            weight_S = np.ones(len(distance_SS))
            weight_S[chosen] = 0
        chosen.append(int(random.choice(len(distance_SS), p=weight_S / weight_S.sum())))
    return np.array(chosen)


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on. Distances are Chamfer, sum form, unit ball; dispersions are means."""

    input_images: float  # dispersion of the training's pictures
    input_shapes: float  # of the training's shapes
    true_shapes: float  # of the shapes that the test pictures show
    output_shapes: float  # of what the network predicts from those pictures
    error: float  # of the predictions
    gain_low: float  # 95 % interval of (error of the shape of the most alike training picture) − (the network's)
    gain_high: float
    most_alike: float  # error of the training shape whose picture is most alike: recognition pure
    nearest_shape: float  # error of the training shape nearest to the truth: the best that recognition could do
    nearer_to_memory: float  # share of predictions that lie nearer to a training shape than to the truth

    @property
    def verdict(self) -> Verdict:
        """Recognises: the predictions have collapsed on a few shapes, or are no better than looking up the most alike
        training picture."""
        collapsed = self.output_shapes < COLLAPSED * self.true_shapes
        return "recognises" if collapsed or self.gain_low <= 0 else "reconstructs"

    def told(self) -> dict[str, Any]:
        known = {name: round(value, 6) for name, value in self.__dict__.items()}
        # Of shapes that are all the same, or each a medoid, there is no share.
        share = round(self.output_shapes / self.true_shapes, 4) if self.true_shapes else None
        return {"verdict": self.verdict, "output_over_true_dispersion": share, **known}


def examine(
    training: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]],
    test: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]],
    predicted: Sequence[NDArray[np.float32]],
    families: Sequence[str],
    clusters: int,
    seed: int = 0,
) -> Evidence:
    """The evidence on a network from (picture (H, W), cloud (N, 3)) pairs and its predictions for the test pictures."""
    memory_ST = shape_distances([cloud for _, cloud in test], [cloud for _, cloud in training])
    alike_S = image_distances([picture for picture, _ in test], [picture for picture, _ in training]).argmin(1)
    looked_up_S = memory_ST[np.arange(len(test)), alike_S]
    pairs = [nearest_distances(mine, truth) for mine, (_, truth) in zip(predicted, test, strict=True)]
    error_S = np.array([there.mean() + back.mean() for there, back in pairs])
    to_memory_S = shape_distances(predicted, [cloud for _, cloud in training]).min(1)
    low, high = family_bootstrap(lambda index: float((looked_up_S - error_S)[index].mean()), families)
    return Evidence(
        input_images=dispersion(image_distances([picture for picture, _ in training]), clusters, seed),
        input_shapes=dispersion(shape_distances([cloud for _, cloud in training]), clusters, seed),
        true_shapes=dispersion(shape_distances([cloud for _, cloud in test]), clusters, seed),
        output_shapes=dispersion(shape_distances(predicted), clusters, seed),
        error=float(error_S.mean()),
        gain_low=low,
        gain_high=high,
        most_alike=float(looked_up_S.mean()),
        nearest_shape=float(memory_ST.min(1).mean()),
        nearer_to_memory=float((to_memory_S < error_S).mean()),
    )


def disperse(
    config: DispersionConfig, data: Path, bundle: Bundle, context: TrainingContext
) -> tuple[Path, dict[str, Any]]:
    """`dispersion.json`: the data set's dispersions, and the verdict on the champion's single-view network.

    Half of the shapes looked at come from the training part of the data set's split, half from its test part.
    """
    if "single_view.onnx" not in bundle.manifest.files:
        raise NoSingleView("The served version was trained without one; train with task=single-view.")
    session = OnnxSession(bundle.path("single_view.onnx"))
    seen = load_calibration(bundle.path(FILE)).views
    if seen is None:
        raise NoSingleView("The served version does not say how its pictures were made.")
    shapes = load_shapes(data, points=2048, seed=config.seed, exclude=config.bad_files == "exclude")
    split_S = with_splits(shapes, config.seed)
    views = Views(shapes, seen.size, seen.yaw, seen.frame, seen.up)
    random = np.random.default_rng(config.seed)
    parts: list[list[tuple[NDArray[np.uint8], NDArray[np.float32]]]] = []
    chosen: NDArray[np.int64] = np.zeros(0, np.int64)
    for number, part in enumerate((0, 2)):
        context.report(step=number, total=4)
        chosen = random.permutation(np.flatnonzero(split_S == part))[: config.shapes // 2]
        drawn = [views.draw(int(index), random) for index in chosen]
        parts.append([(picture, cloud[: config.points]) for picture, cloud in drawn])
    training, test = parts
    if len(test) < LEAST_TESTED:
        raise BadShapes(f"The test part has {len(test)} shape: its dispersion takes {LEAST_TESTED}.", file=".")
    # As many medoids as shapes have no dispersion: two shapes for each at least, in every score alike.
    clusters = min(config.clusters, min(len(training), len(test)) // 2)
    predicted: list[NDArray[np.float32]] = []
    for picture, _ in test:
        check_stop(context)
        points = session.infer({"image": as_input([picture]).numpy()})["points"][0]
        predicted.append(points[random.permutation(len(points))[: config.points]])
    context.report(step=3, total=4)
    evidence = examine(training, test, predicted, _families(shapes, chosen), clusters, config.seed)
    told = evidence.told()
    told["measured_on"] = {"training_shapes": len(training), "test_shapes": len(test), "clusters": clusters}
    told["pictures_compared_by"] = f"pixels, {COMPARED_PIXELS}×{COMPARED_PIXELS} grey"
    path = context.artefact("dispersion.json")
    path.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    context.report(step=4, total=4)
    kept = ("verdict", "error", "most_alike", "output_over_true_dispersion")
    return path, {name: told[name] for name in kept} | told["measured_on"]


def _families(shapes: Shapes, chosen: NDArray[np.int64]) -> list[str]:
    return [f"{shapes.label_S[index]}/{shapes.families[index]}" for index in chosen]


def _pixels(pictures: Sequence[NDArray[np.uint8]]) -> Floats:
    side = (COMPARED_PIXELS, COMPARED_PIXELS)
    scaled = [
        np.asarray(Image.fromarray(picture).resize(side, Image.Resampling.BOX), np.float64) for picture in pictures
    ]
    return np.stack(scaled).reshape(len(pictures), -1) / 255
