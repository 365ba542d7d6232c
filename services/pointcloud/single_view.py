"""One picture → a point cloud: a residual image encoder with a PSGN, a folding or an AtlasNet decoder.

Shapes: B pictures, V views, N points, M predicted points, Z bottleneck, H and W pixels, C channels. Pictures are made
from the training's own clouds (render.py), anew for every step. Loss: Chamfer distance, sum form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from services.pointcloud import surface
from services.pointcloud.chamfer import chamfer
from services.pointcloud.checkpoints import State, load_weights, part_of, restore, state_of, weights_of
from services.pointcloud.datasets import Shapes, capped
from services.pointcloud.model import FoldingDecoder, he_initialised
from services.pointcloud.neighbours import local_features
from services.pointcloud.render import normals, render, turned_about, upright
from services.pointcloud.schemas import TrainConfig, Up
from shared.jobs.context import TrainingContext, check_stop

ViewDecoder = Literal["psgn", "folding", "atlasnet"]
PATCHES = 4  # of AtlasNet
PITCH = 25.0
RENDERED_POINTS = 1024


class _Block(nn.Module):
    """Two 3×3 convolutions around which the input is added (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return F.relu(self.layers(map_BCHW) + self.skip(map_BCHW))


class ImageEncoder(nn.Module):
    """image (B, 3, H, W), 0–1 → (B, Z). Four stages of one block each, halved at each, twice as wide from each to the
    next."""

    def __init__(self, bottleneck: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), _Block(width, width, 1)
        )
        self.stages = nn.Sequential(*(_Block(width << stage, width << (stage + 1), 2) for stage in range(3)))
        # Where in the picture something is matters here, so a map of 2×2 is kept.
        self.out = nn.Linear(4 * (width << 3), bottleneck)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        map_BCHW = self.stages(self.stem(1 - image_B3HW))  # white, the background, becomes 0
        return self.out(F.relu(F.adaptive_avg_pool2d(map_BCHW, 2).flatten(1)))


class PSGNDecoder(nn.Module):
    """Fan et al. 2017, the fully connected branch: Z→Z→2Z→3M."""

    def __init__(self, bottleneck: int, points: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(bottleneck, bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, 2 * bottleneck),
            nn.ReLU(),
            nn.Linear(2 * bottleneck, 3 * points),
        )
        he_initialised(self.layers[:-1])

    def forward(self, code_BZ: Tensor) -> Tensor:
        return self.layers(code_BZ).unflatten(-1, (-1, 3))


class FoldedView(nn.Module):
    """FoldingNet's decoder on a fixed lattice."""

    def __init__(self, bottleneck: int, points: int) -> None:
        super().__init__()
        self.fold = FoldingDecoder(2, bottleneck, bottleneck)
        self.register_buffer("lattice_M2", torch.from_numpy(surface.grid(round(math.sqrt(points)))))

    def forward(self, code_BZ: Tensor) -> Tensor:
        return self.fold(code_BZ, self.lattice_M2)


class AtlasDecoder(nn.Module):
    """Groueix et al. 2018: several squares, each deformed by a network of its own, Z→Z/2→Z/4→3 with tanh."""

    def __init__(self, bottleneck: int, points: int) -> None:
        super().__init__()
        half, quarter = max(4, bottleneck // 2), max(4, bottleneck // 4)
        self.codes = nn.ModuleList(nn.Linear(bottleneck, bottleneck) for _ in range(PATCHES))
        self.squares = nn.ModuleList(nn.Linear(2, bottleneck, bias=False) for _ in range(PATCHES))
        rest = [
            nn.Sequential(
                nn.ReLU(), nn.Linear(bottleneck, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(),
                nn.Linear(quarter, 3), nn.Tanh(),
            )
            for _ in range(PATCHES)
        ]  # fmt: skip
        self.rest = nn.ModuleList(rest)
        he_initialised(self.codes, self.squares, *(layers[:-2] for layers in rest))
        self.register_buffer("lattice_M2", torch.from_numpy(surface.grid(round(math.sqrt(points / PATCHES)), 0.5)))

    def forward(self, code_BZ: Tensor) -> Tensor:
        parts = zip(self.codes, self.squares, self.rest, strict=True)
        patches = [rest(square(self.lattice_M2) + code(code_BZ)[:, None]) for code, square, rest in parts]
        return torch.cat(patches, 1)


DECODERS: dict[ViewDecoder, type[PSGNDecoder] | type[FoldedView] | type[AtlasDecoder]] = {
    "psgn": PSGNDecoder,
    "folding": FoldedView,
    "atlasnet": AtlasDecoder,
}


class SingleView(nn.Module):
    """image (B, 3, H, W), 0–1 → points (B, M, 3) in the unit ball."""

    def __init__(self, decoder: ViewDecoder = "folding", bottleneck: int = 256, width: int = 16, points: int = 1024):
        super().__init__()
        self.encoder = ImageEncoder(bottleneck, width)
        self.decoder = DECODERS[decoder](bottleneck, points)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.decoder(self.encoder(image_B3HW))


class Views:
    """Pictures of shapes, rendered when they are asked for; the normals are computed once a shape."""

    def __init__(self, shapes: Shapes, size: int, yaw: float, frame: str, up: Up = "z") -> None:
        self.shapes, self.size, self.yaw, self.frame = shapes, size, yaw, frame
        self.up: Up = up
        self._normals: dict[int, NDArray[np.float16]] = {}

    def draw(self, index: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(picture (H, W), the cloud (N, 3) that is to be predicted) of a shape from a yaw drawn at random."""
        return self.at(index, float(random.uniform(-self.yaw / 2, self.yaw / 2)))

    def at(self, index: int, yaw: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        cloud = self.shapes.cloud(index)[:RENDERED_POINTS]
        standing = np.ascontiguousarray(upright(cloud, self.up))
        if index not in self._normals:
            self._normals[index] = normals(local_features(standing)[0][:, 3:]).astype(np.float16)
        picture = render(standing, self.size, yaw, PITCH, self._normals[index].astype(np.float32))
        return picture[:, :, 0], cloud if self.frame == "object" else turned_about(standing, "z", -yaw)


def as_input(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Grey pictures (H, W), 0–255 → (B, 3, H, W), 0–1."""
    return torch.from_numpy(np.stack(pictures)).float().div_(255)[:, None].expand(-1, 3, -1, -1)


def fit_single_view(
    config: TrainConfig, shapes: Shapes, split_S: NDArray[np.int64], context: TrainingContext
) -> SingleView:
    """The network of the epoch with the least validation error, on the CPU in evaluation mode; resumable.

    What another stage of the training left in the checkpoint is kept in it.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    model = SingleView(config.single_view, config.bottleneck, config.width, config.single_view_points).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    views = Views(shapes, config.image_size, config.view_yaw, config.view_frame, config.up)
    training, validation = np.flatnonzero(split_S == 0), np.flatnonzero(split_S == 1)
    validation = np.random.default_rng(0).permutation(validation)[: config.validation_clouds]
    kept = context.restore() or {}
    best: State = {}
    best_error, first = math.inf, 0
    if "view.epoch" in kept:
        first, best_error = int(kept["view.epoch"].item()), kept["view.best_error"].item()
        best = part_of(kept, "view.best.")
        restore(model, optimizer, kept, "view.")
    kept = {name: value for name, value in kept.items() if not name.startswith("view.")}
    for epoch in range(first, config.single_view_epochs):
        random = np.random.default_rng([config.seed, epoch, 1])
        order = capped(shapes, training, config.family_cap, random)
        losses = train_epoch(model, optimizer, views, order, config, epoch, random, context)
        error = float(view_errors(model, views, validation.tolist()).mean())
        if error < best_error:
            best_error, best = error, weights_of(model)
        state: dict[str, Any] = {"view.epoch": np.array([epoch + 1]), "view.best_error": np.array([best_error])}
        state |= state_of(model, optimizer, "view.") | {f"view.best.{name}": value for name, value in best.items()}
        context.checkpoint(kept | state)
        context.report(
            step=epoch + 1,
            total=config.single_view_epochs,
            view_loss=float(np.mean(losses)),
            validation_view_chamfer=error,
        )
    load_weights(model, best)
    return model.cpu().eval()


def train_epoch(
    model: SingleView,
    optimizer: torch.optim.Optimizer,
    views: Views,
    order: NDArray[np.int64],
    config: TrainConfig,
    epoch: int,
    random: np.random.Generator,
    context: TrainingContext | None = None,
) -> list[float]:
    """One pass, a picture a shape; the loss of each step."""
    device = next(model.parameters()).device
    size = min(max(2, 2 * config.batch_size), len(order))
    losses: list[float] = []
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * epoch / config.single_view_epochs))
    for start in range(0, len(order) - size + 1, size):
        if context is not None:
            check_stop(context)
        drawn = [views.draw(int(index), random) for index in order[start : start + size]]
        points = min(512, min(len(cloud) for _, cloud in drawn))
        target = torch.from_numpy(np.stack([random.permutation(cloud)[:points] for _, cloud in drawn])).to(device)
        loss = chamfer(model(as_input([picture for picture, _ in drawn]).to(device)), target, "sum").mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def view_errors(model: SingleView, views: Views, chosen: Sequence[int], seed: int = 0) -> NDArray[np.float64]:
    """Chamfer distance (S,), sum form, predicted from one picture of each shape; the seed draws its yaw."""
    model.eval()
    device = next(model.parameters()).device
    found: list[float] = []
    for start in range(0, len(chosen), 32):
        drawn = [views.draw(index, np.random.default_rng([seed, index])) for index in chosen[start : start + 32]]
        predicted = model(as_input([picture for picture, _ in drawn]).to(device)).cpu()
        pairs = zip(predicted, (cloud for _, cloud in drawn), strict=True)
        found += [float(chamfer(mine[None], torch.from_numpy(cloud)[None], "sum")) for mine, cloud in pairs]
    return np.array(found)
