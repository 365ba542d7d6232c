"""Trains the autoencoder of point clouds, the single-view network, or both, and makes their bundle.

    python -m services.pointcloud.train --data DIR --out DIR [--set task=both epochs=40 …]

DIR is a folder as datasets.py describes, or one file of arrays. Shapes: B clouds, N points, G points of the surface.
Each step sees its clouds with a number of points drawn anew, so that the encoder serves any density, and folds points
of the surface drawn anew, fewer than are served, so that the decoder knows the whole surface.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from services.pointcloud import surface
from services.pointcloud.chamfer import chamfer
from services.pointcloud.checkpoints import State, load_weights, part_of, restore, state_of, weights_of
from services.pointcloud.datasets import BadShapes, Shapes, capped, known_labels, load_shapes, with_splits
from services.pointcloud.evaluate import batch_of, reconstruction_errors
from services.pointcloud.export import beside, export_bundle
from services.pointcloud.model import Autoencoder
from services.pointcloud.render import turned_about
from services.pointcloud.schemas import TrainConfig
from services.pointcloud.single_view import fit_single_view
from shared.bundles import Bundle, Comparison
from shared.datasets import folder_digest
from shared.jobs.config import read_config
from shared.jobs.context import TrainingContext, check_stop
from shared.jobs.shell import run_from_shell
from shared.problems import FourfoldError

VALIDATED_POINTS = 512


class TrainingDiverged(FourfoldError):
    """The loss stopped being a number; the detail names the step."""

    code = "training-diverged"
    title = "The training diverged"
    advice = "Lower `learning_rate`, or look at the data for values far out."


def train(config: TrainConfig, data: Path, context: TrainingContext) -> Path:
    """Train on the shapes of `data` (see datasets.py) and return the bundle's folder.

    The test split is looked at once, by the export. Raises BadShapes, TrainingDiverged or JobStopped.
    """
    shapes, split_S = prepare(config, data)
    champion = context.champion()
    model = fit(config, shapes, split_S, context) if config.task != "single-view" else None
    view = fit_single_view(config, shapes, split_S, context) if config.task != "autoencoder" else None
    return export_bundle(
        model,
        view,
        context.artefact("bundle"),
        config=config,
        shapes=shapes,
        split_S=split_S,
        dataset_digest=folder_digest("pointcloud", data) if data.is_dir() else None,
        device=str(device_of(config.device)),
        champion=champion,
    )


def compare(candidate: Path, champion: Path, data: Path, context: TrainingContext) -> Comparison:
    """The candidate beside the champion (folders of bundles) on the test split of the candidate's data set."""
    bundle = Bundle.open(candidate)
    config = read_config(TrainConfig, bundle.manifest.config)
    shapes, split_S = prepare(config, data)
    return beside(bundle, Bundle.open(champion), config, shapes, split_S)


def prepare(config: TrainConfig, data: Path) -> tuple[Shapes, NDArray[np.int64]]:
    """The shapes, classes that are too small without label, and the split (S,) of each."""
    shapes = load_shapes(
        data, points=max(2048, config.points[1]), seed=config.seed, exclude=config.bad_files == "exclude"
    )
    shapes = known_labels(shapes, config.least_shapes)
    split_S = with_splits(shapes, config.seed, config.split)
    if (split_S == 0).sum() < config.batch_size:
        raise BadShapes(f"{int((split_S == 0).sum())} training shapes do not fill a batch of {config.batch_size}.")
    return shapes, split_S


def fit(config: TrainConfig, shapes: Shapes, split_S: NDArray[np.int64], context: TrainingContext) -> Autoencoder:
    """The network of the epoch with the least validation Chamfer distance, on the CPU in evaluation mode.

    A training resumed from the context's checkpoint ends with the same weights as one that was never interrupted.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = device_of(config.device)
    model = Autoencoder(config.encoder, config.decoder, config.source, config.resolution).to(device)
    optimizer = torch.optim.Adam(
        [value for value in model.parameters() if value.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    validation = np.random.default_rng(0).permutation(np.flatnonzero(split_S == 1))[: config.validation_clouds]
    best: State = {}
    best_error, first = math.inf, 0
    if (state := context.restore()) is not None and "epoch" in state:
        first, best_error = int(state["epoch"].item()), state["best_error"].item()
        best = part_of(state, "best.")
        restore(model, optimizer, state)
    for epoch in range(first, config.epochs):
        started = time.monotonic()
        loss, clouds = _train_epoch(model, optimizer, config, shapes, split_S, epoch, context)
        seconds = time.monotonic() - started
        error = float(reconstruction_errors(model, shapes, validation.tolist(), VALIDATED_POINTS).mean())
        if error < best_error:
            best_error, best = error, weights_of(model)
        state = {"epoch": np.array([epoch + 1]), "best_error": np.array([best_error])}
        context.checkpoint(state | state_of(model, optimizer) | {f"best.{name}": value for name, value in best.items()})
        context.report(
            step=epoch + 1, total=config.epochs, loss=loss, validation_chamfer=error, clouds_per_second=clouds / seconds
        )
    load_weights(model, best)
    return model.cpu().eval()


def seen(cloud_N3: NDArray[np.float32], count: int, config: TrainConfig, random: np.random.Generator) -> NDArray[Any]:
    """A cloud as a step sees it: `count` of its points, turned and stretched as configured, in the unit ball."""
    # Independent samples of a surface: any part of them is a sample too.
    points = cloud_N3[random.permutation(len(cloud_N3))[:count]]
    if config.yaw:
        points = turned_about(points, config.up, random.uniform(-config.yaw / 2, config.yaw / 2))
    if config.stretch:
        points = points * random.uniform(1 - config.stretch, 1 + config.stretch, 3).astype(np.float32)
    points = points - points.mean(axis=0)
    return points / max(float(np.linalg.norm(points, axis=1).max()), 1e-9)


def drawn_source(config: TrainConfig, random: np.random.Generator) -> NDArray[np.float32]:
    """Points (G, S) spread over the source surface, none where it is a lattice: each cell has one, at random."""
    side = config.train_resolution
    if config.source == "sphere":
        # The lattice itself, turned at random.
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        return (surface.sphere(side) @ turn).astype(np.float32)
    cell = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    place = (cell + random.random((side * side, 2))) / side  # 0–1
    # Cells overhang by half of one on each side, so that the edge is not the rarest place.
    stretched = np.clip((place - 0.5) * (1 + 1 / side), -0.5, 0.5)
    return (2 * surface.HALF_WIDTH * stretched).astype(np.float32)


def _train_epoch(
    model: Autoencoder,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    shapes: Shapes,
    split_S: NDArray[np.int64],
    epoch: int,
    context: TrainingContext,
) -> tuple[float, int]:
    """One pass over the training shapes; (mean loss, clouds seen)."""
    # All randomness of an epoch comes from its own generator, so a resumed training repeats it exactly.
    random = np.random.default_rng([config.seed, epoch])
    order = capped(shapes, np.flatnonzero(split_S == 0), config.family_cap, random)
    steps = max(1, len(order) // config.batch_size)
    device = next(model.parameters()).device
    losses: list[float] = []
    model.train()
    for step in range(steps):
        check_stop(context)
        share = (epoch + step / steps) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_share(share)
        chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
        # Every density, the cheaper ones far more often; one number a batch, so that nothing is padded.
        low, high = np.log(config.points)
        count = round(float(np.exp(low + (high - low) * random.random() ** 4)))
        clouds = [seen(shapes.cloud(int(index)), count, config, random) for index in chosen]
        if config.contrast:
            clouds += [seen(shapes.cloud(int(index)), count, config, random) for index in chosen]
        features, neighbours = (part.to(device) for part in batch_of(clouds))
        source = model.source_GS
        if config.source == "learned":
            picked = random.permutation(config.resolution**2)[: config.train_resolution**2]
            source = source[torch.from_numpy(picked).to(device)]
        elif config.decoder == "folding":
            source = torch.from_numpy(drawn_source(config, random)).to(device)
        codeword_BD = model.encoder(features, neighbours)
        first_BD, second_BD = codeword_BD[: len(chosen)], codeword_BD[len(chosen) :]
        loss = chamfer(features[: len(chosen), :, :3], model.decoder(first_BD, source)).mean()
        if config.contrast:
            loss = loss + config.contrast * contrast(first_BD, second_BD)
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"The loss is not finite at step {step} of epoch {epoch + 1}.", step=step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses)), steps * config.batch_size


def contrast(first_BD: Tensor, second_BD: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of two samples of each cloud: each finds its partner by cosine among all others of the batch (NT-Xent,
    Chen et al., SimCLR, ICML 2020), here on the codewords themselves."""
    both = F.normalize(torch.cat([first_BD, second_BD]), dim=-1)
    alike = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    count = len(first_BD)
    partner = torch.arange(2 * count, device=both.device).roll(count)
    return F.cross_entropy(alike, partner)


def learning_rate_share(share: float, warm_up: float = 0.02) -> float:
    """Of the full rate, when `share` of the training is done: up in a straight line, then down a half cosine."""
    return (
        share / warm_up + 0.01 if share < warm_up else 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))
    )


def device_of(wanted: str) -> torch.device:
    return torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu"))


def main() -> None:
    run_from_shell(
        "services.pointcloud.train",
        TrainConfig,
        __doc__,
        "a folder as datasets.py describes, or a file of arrays",
        ("points",),
    )


if __name__ == "__main__":
    main()
