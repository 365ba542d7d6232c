"""The cube–sphere experiment: how the dispersion of training pictures and shapes decides what a network learns to do.

Shapes are interpolated from a cube (0) to a sphere (1). A training set has two clusters of them, one at each end, of
`spread` shapes each: with 1 there are two shapes in all, with 35 the clusters meet and every shape occurs. Pictures
are drawn from a range of yaws, while the clouds stand still (object-centred). Each setting trains a small network of
its own; what counts is the dispersion of its predictions for pictures of every shape between cube and sphere. (The
nearest training shape is no evidence here: between two ends everything is near to something.)
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from services.pointcloud import surface
from services.pointcloud.datasets import Shapes
from services.pointcloud.dispersion import Evidence, examine
from services.pointcloud.plots import curves
from services.pointcloud.schemas import TrainConfig
from services.pointcloud.single_view import SingleView, Views, as_input, train_epoch

LEVERS: Mapping[str, Sequence[float]] = {"cluster size": (1, 8, 35), "yaw range": (0.0, 90.0, 360.0)}
FIXED_SPREAD, FIXED_YAW = 8, 45.0
WIDEST = 35  # the largest cluster; WIDEST steps from either end meet in the middle
SIZES = (70, 36)  # training and test shapes
POINTS = 256


@dataclass(frozen=True)
class Setting:
    lever: str
    value: float
    seed: int
    evidence: Evidence


def interpolated(share: float, points: int = POINTS) -> NDArray[np.float32]:
    """Points (N, 3) of the cube (share 0) pulled towards the sphere inside it (share 1), in the unit ball.

    The same places on every shape: else the chance of where points fall would outweigh how shapes differ.
    """
    direction = surface.sphere(round(points**0.5), 1.0)
    sphere = direction / np.sqrt(3)
    cube = sphere / np.abs(direction).max(axis=1, keepdims=True)
    return ((1 - share) * cube + share * sphere).astype(np.float32)


def training_shares(spread: int, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Which shapes (count,) a training set holds: `spread` different ones at each end, equally often."""
    step = 0.5 * random.integers(0, spread, count) / WIDEST
    return np.where(np.arange(count) % 2 == 0, step, 1 - step)


def experiment(
    out: Path,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 60,
    levers: Mapping[str, Sequence[float]] = LEVERS,
    sizes: tuple[int, int] = SIZES,
) -> str:
    """A table and `dispersion.png`; settings that `dispersion.json` has already are not run again."""
    path = out / "dispersion.json"
    known: list[Setting] = []
    if path.is_file():
        for item in json.loads(path.read_text()):
            known.append(Setting(item["lever"], item["value"], item["seed"], Evidence(**item["evidence"])))
    for seed in seeds:
        for lever, values in levers.items():
            for value in values:
                if any((item.lever, item.value, item.seed) == (lever, value, seed) for item in known):
                    continue
                spread = int(value) if lever == "cluster size" else FIXED_SPREAD
                yaw = value if lever == "yaw range" else FIXED_YAW
                known.append(Setting(lever, value, seed, run(spread, yaw, seed, epochs, sizes)))
                path.write_text(json.dumps([asdict(item) for item in known]))
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    lines = [
        "| lever | value | training pictures | training shapes | predictions | of the true shapes' | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for lever, values in levers.items():
        series: dict[str, dict[float, list[float]]] = {"training shapes": {}, "predictions": {}, "true shapes": {}}
        for value in values:
            found = [item.evidence for item in known if (item.lever, item.value) == (lever, value)]
            series["training shapes"][value] = [item.input_shapes for item in found]
            series["predictions"][value] = [item.output_shapes for item in found]
            series["true shapes"][value] = [item.true_shapes for item in found]
            share = [item.output_shapes / item.true_shapes for item in found]
            lines.append(
                f"| {lever} | {value:g} | {_mean([item.input_images for item in found])} "
                f"| {_mean([item.input_shapes for item in found])} | {_mean([item.output_shapes for item in found])} "
                f"| {_mean(share)} | {_mean([item.error for item in found])} |"
            )
        panels[lever] = series
    curves(panels, out / "dispersion.png")
    return "\n".join(lines)


def run(spread: int, yaw: float, seed: int, epochs: int, sizes: tuple[int, int] = SIZES) -> Evidence:
    """Train on one setting, predict pictures of every shape, and examine."""
    torch.manual_seed(seed)
    random = np.random.default_rng([seed, spread, int(yaw)])
    training = _shapes(training_shares(spread, sizes[0], random))
    test = _shapes(np.linspace(0, 1, sizes[1]))
    config = TrainConfig(
        image_size=32, single_view="psgn", bottleneck=128, width=8, single_view_points=POINTS, batch_size=4,
        single_view_epochs=epochs, seed=seed,
    )  # fmt: skip
    model = SingleView(config.single_view, config.bottleneck, config.width, config.single_view_points)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    views, test_views = (Views(shapes, config.image_size, yaw, "object") for shapes in (training, test))
    for epoch in range(epochs):
        train_epoch(model, optimizer, views, random.permutation(len(training)), config, epoch, random)
    model.eval()
    shown = [views.draw(index, random) for index in range(len(training))]
    asked = [test_views.draw(index, random) for index in range(len(test))]
    with torch.inference_mode():
        predicted = model(as_input([picture for picture, _ in asked])).numpy()
    return examine(shown, asked, list(predicted), test.names, 2, seed)


def _shapes(share_S: NDArray[np.float64]) -> Shapes:
    clouds = [interpolated(float(share)) for share in share_S]
    nothing = np.full(len(clouds), -1)
    names = [f"{index}" for index in range(len(clouds))]
    return Shapes(clouds, names, (), nothing, names, nothing)


def _mean(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"
