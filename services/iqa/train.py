"""Trains the quality network from a labelled folder and makes its bundle.

    python -m services.iqa.train --data DIR --out DIR [--set epochs=12 …]

Shapes: B batch, H height, W width. Progressive multi-task loss, from easy (level) to hard (score):
λ₁ L1(score) + λ₂ CE(level) + distortion_weight × CE(kind), λ₁ = t/(T−1), λ₂ = 1 − λ₁ at epoch t of T. The score's
error is counted in levels (tenths of the range), so that both losses are of one size when they meet half-way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from services.iqa.datasets import (
    LEAST_SOURCES,
    SAME_NAME,
    SPLITS,
    TABLE,
    BadDataset,
    Record,
    find_photographs,
    load_folder,
    readable_records,
    source_of,
    with_splits,
)
from services.iqa.evaluate import read_pixels, srcc
from services.iqa.export import beside, export_bundle
from services.iqa.model import LEVELS, PMTIQA, level_of
from services.iqa.schemas import TrainConfig
from services.iqa.synthesise import is_photographic, least_width, pristine_views, synthesise
from shared.bundles import Bundle, Comparison
from shared.datasets import folder_digest
from shared.jobs.config import read_config
from shared.jobs.context import TrainingContext, check_stop
from shared.jobs.shell import run_from_shell
from shared.problems import FourfoldError


class TrainingDiverged(FourfoldError):
    """The loss stopped being a number; the detail names the step."""

    code = "training-diverged"
    title = "The training diverged"
    advice = "Lower `learning_rate`, or look at the data for values far out."


def train(config: TrainConfig, data: Path, context: TrainingContext) -> Path:
    """Train on the folder `data`, with a scores.csv (see `load_folder`) or pristine photographs, which are distorted
    first; return the bundle's folder.

    The test split is looked at once, by the export. Raises BadDataset, TrainingDiverged or JobStopped.
    """
    parts = parts_of(config, data, context)
    kinds = ["none", *sorted({record.kind for part in parts.values() for record in part} - {"", "none"})]
    model = fit(config, parts["train"], parts["validation"], kinds, context)
    if _rank() != 0:
        return context.artefact("bundle")  # the first process makes it
    return export_bundle(
        model,
        context.artefact("bundle"),
        config=config,
        kinds=kinds,
        train=parts["train"],
        test=parts["test"],
        dataset_digest=folder_digest("iqa", data),
        device=str(_device(config.device)),
        champion=context.champion(),
    )


def compare(candidate: Path, champion: Path, data: Path, context: TrainingContext) -> Comparison:
    """The candidate beside the champion (folders of bundles) on the test split of the candidate's data set."""
    bundle = Bundle.open(candidate)
    config = read_config(TrainConfig, bundle.manifest.config)
    return beside(bundle.graph("fp32"), Bundle.open(champion), parts_of(config, data, context)["test"])


def parts_of(config: TrainConfig, data: Path, context: TrainingContext) -> dict[str, list[Record]]:
    """Split → its records, none empty."""
    if not (data / TABLE).is_file():
        data = _synthetic(config, data, context)
    records = with_splits(readable_records(data) if config.bad_files == "exclude" else load_folder(data))
    parts = {name: [record for record in records if record.split == name] for name in SPLITS}
    for name, part in parts.items():
        if not part:
            raise BadDataset(f"No image of scores.csv has the split {name!r}.", file="scores.csv")
    return parts


def _synthetic(config: TrainConfig, photographs: Path, context: TrainingContext) -> Path:
    """The folder of a set made from the pristine photographs; the same seed makes the same set."""
    usable: dict[Path, str] = {}
    seen: set[str] = set()
    for path, scene in find_photographs(photographs).items():
        if source_of(path) in seen:
            if config.bad_files == "refuse":
                raise BadDataset(f"{path.name}: {SAME_NAME}.", file=path.name)
            continue
        seen.add(source_of(path))
        try:
            views = pristine_views(path, 1, np.random.default_rng(0), config.synthetic_width)
        except OSError as error:
            if config.bad_files == "refuse":
                raise BadDataset(f"{path.name} cannot be read as an image.", file=path.name) from error
            continue
        if views and is_photographic(views[0]):
            usable[path] = scene
        else:
            context.logger.info("%s is left out: too small, or no photograph", path.name)
    if len(usable) < LEAST_SOURCES:
        least = least_width(config.synthetic_width)
        raise BadDataset(
            f"{len(usable)} of the pictures are photographs at least {least} pixels wide; it takes {LEAST_SOURCES}. "
            "Send larger ones, or set a smaller synthetic_width."
        )
    folder = context.artefact("set")
    if _rank() == 0:
        context.logger.info("making distorted pictures of %d photographs", len(usable))
        synthesise(
            usable,
            folder,
            views=config.synthetic_views,
            share=config.synthetic_share,
            seed=config.seed,
            width=config.synthetic_width,
            watch=lambda: check_stop(context),
        )
    if distributed.is_initialized():
        distributed.barrier()
    return folder


def _rank() -> int:
    """This process's number among those that share the training; 0 is the only one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def fit(
    config: TrainConfig, training: list[Record], validation: list[Record], kinds: list[str], context: TrainingContext
) -> PMTIQA:
    """The network of the epoch with the best validation SRCC, on the CPU in evaluation mode.

    Only the last half of the epochs is asked, where the score carries the loss. A training resumed from the context's
    checkpoint ends with the same weights as one that was never interrupted. In a process group each process takes its
    share of every batch; only the first knows, and returns, the best epoch.
    """
    device = _device(config.device)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = PMTIQA(len(kinds), config.backbone, config.multi_scale)
    if config.pretrained:
        model.load_imagenet(Path(config.weights) if config.weights else None)
    model.to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    freeze(model, config)
    optimizer = _optimizer(model, config)
    images = Images(training)
    validation = _subset(validation, config.validation_images)
    best: dict[str, NDArray[Any]] = {}
    best_srcc = -math.inf
    first = 0
    if (state := context.restore()) is not None:
        first, best_srcc = int(state["epoch"].item()), state["best_srcc"].item()
        best = {name.removeprefix("best."): value for name, value in state.items() if name.startswith("best.")}
        _restore(model, optimizer, state)
    network = DistributedDataParallel(model) if distributed.is_initialized() else model
    for epoch in range(first, config.epochs):
        started = time.monotonic()
        losses = _train_epoch(network, model, optimizer, images, kinds, config, epoch, device, context)
        seconds = time.monotonic() - started
        metrics = {"loss": float(np.mean(losses)), "images_per_second": len(losses) * config.processes / seconds}
        if _rank() == 0 and epoch >= config.epochs // 2:
            metrics["validation_srcc"] = _validate(model, validation, device)
            if metrics["validation_srcc"] > best_srcc:
                best_srcc = metrics["validation_srcc"]
                best = {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}
        context.checkpoint(_state(model, optimizer, epoch + 1, best_srcc, best))
        context.report(step=epoch + 1, total=config.epochs, **metrics)
    if _rank() == 0:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in best.items()})
    return model.cpu().eval()


class Images:
    """The training images, decoded once and kept while they are few; items are uint8 (H, W, 3)."""

    LIMIT = 8192  # images kept, 0.6 MB each

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if (kept := self._kept.get(index)) is not None:
            return kept
        image = read_pixels(self.records[index].path)
        if len(self._kept) < self.LIMIT:
            self._kept[index] = image
        return image

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) of an image, as decoded."""
        if index not in self._sizes:
            self._sizes[index] = self[index].shape[:2]
        return self._sizes[index]


def loss_weights(schedule: str, epoch: int, epochs: int) -> tuple[float, float]:
    """(score, level) weights of an epoch, counted from 0, under a schedule of TrainConfig."""
    if schedule == "progressive":
        share = epoch / max(1, epochs - 1)
        return share, 1 - share
    return (0.5, 0.5) if schedule == "fixed" else (1.0, 0.0)


def _train_epoch(
    network: Module,
    model: PMTIQA,
    optimizer: torch.optim.Optimizer,
    images: Images,
    kinds: list[str],
    config: TrainConfig,
    epoch: int,
    device: torch.device,
    context: TrainingContext,
) -> list[float]:
    """One pass over a fresh random subset; returns the loss of each image's batch, one entry an image of this process.

    `network` is `model`, or what averages its gradients over the processes.
    """
    # All randomness of an epoch comes from its own generator, so a resumed training repeats it exactly.
    random = np.random.default_rng([config.seed, epoch])
    order = random.permutation(len(images.records))[: config.images_per_epoch]
    if len(order) < config.batch_size:
        raise BadDataset(f"{len(order)} training images do not fill a batch of {config.batch_size}.")
    by_score, by_level = loss_weights(config.schedule, epoch, config.epochs)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    model.train()
    if config.pretrained:
        model.backbone.eval()  # ImageNet's batch statistics: crops of a few photographs are too alike for new ones
    losses: list[float] = []
    for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
        check_stop(context)
        batch = order[start : start + config.batch_size]
        # Every process draws every crop, so that any number of them sees the same batches.
        places = [_place(images.size(index), config.crop, random) for index in batch]
        mine = slice(_rank(), None, distributed.get_world_size() if distributed.is_initialized() else 1)
        chosen = batch[mine]
        pairs = zip(chosen, places[mine], strict=True)
        crops = np.stack([_crop(images[index], config.crop, place) for index, place in pairs])
        image = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float()
        picked = [images.records[index] for index in chosen]
        score = torch.tensor([record.score for record in picked], device=device)
        kind = torch.tensor([kinds.index(record.kind or "none") for record in picked], device=device)
        quality = network(image.contiguous(memory_format=torch.channels_last))
        loss = (
            by_score * LEVELS * F.l1_loss(quality.score_B, score / 100)
            + by_level * F.cross_entropy(quality.level_logits_BL, level_of(score))
            + config.distortion_weight * F.cross_entropy(quality.distortion_logits_BK, kind)
        )
        if not torch.isfinite(loss):
            step = epoch * (len(order) // config.batch_size) + start // config.batch_size
            raise TrainingDiverged(f"The loss is not finite at step {step} (epoch {epoch + 1}).", step=step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * len(chosen)
    return losses


def _place(size: tuple[int, int], side: int, random: np.random.Generator) -> tuple[int, int, bool]:
    """(top, left, mirrored) of a random side × side crop; neither changes the quality."""
    height, width = size
    if min(height, width) < side:
        raise BadDataset(f"An image of {width}×{height} is smaller than the crop of {side}.")
    top, left = int(random.integers(0, height - side + 1)), int(random.integers(0, width - side + 1))
    return top, left, random.random() < 0.5


def _crop(image_HW3: NDArray[np.uint8], side: int, place: tuple[int, int, bool]) -> NDArray[np.uint8]:
    top, left, mirrored = place
    crop = image_HW3[top : top + side, left : left + side]
    return crop[:, ::-1] if mirrored else crop


@torch.inference_mode()
def _validate(model: PMTIQA, records: list[Record], device: torch.device) -> float:
    """SRCC on whole images; −1 where the network scores them all alike."""
    model.eval()
    predicted: list[float] = []
    for record in records:
        image = torch.from_numpy(read_pixels(record.path)).to(device).permute(2, 0, 1)[None].float()
        predicted.append(float(model(image.contiguous(memory_format=torch.channels_last)).score_B))
    found = srcc(np.array(predicted), np.array([record.score for record in records]))
    return -1.0 if math.isnan(found) else found


def _subset(records: list[Record], size: int) -> list[Record]:
    order = np.random.default_rng(0).permutation(len(records))[:size]
    return [records[index] for index in sorted(order)]


def _device(wanted: str) -> torch.device:
    """`cuda` is the process's own GPU where several share the training."""
    return torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu"))


def freeze(model: PMTIQA, config: TrainConfig) -> None:
    """Take what the training leaves as it is out of what is learnt."""
    if config.freeze_backbone:
        model.backbone.requires_grad_(False)
    for module in model.backbone.first(config.frozen_blocks) if config.frozen_blocks else ():
        module.requires_grad_(False)


def _optimizer(model: PMTIQA, config: TrainConfig) -> torch.optim.Optimizer:
    backbone = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    heads = [value for name, value in model.named_parameters() if not name.startswith("backbone.")]
    groups: list[dict[str, Any]] = [{"params": heads, "lr": config.head_learning_rate}]
    if backbone:
        groups.append({"params": backbone, "lr": config.learning_rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.Adam(groups, weight_decay=config.weight_decay)


def _state(
    model: PMTIQA, optimizer: torch.optim.Optimizer, epoch: int, best_srcc: float, best: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    state: dict[str, NDArray[Any]] = {"epoch": np.array([epoch]), "best_srcc": np.array([best_srcc])}
    state |= {f"model.{name}": value.cpu().numpy() for name, value in model.state_dict().items()}
    state |= {f"best.{name}": value for name, value in best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": torch.as_tensor(value).cpu().numpy() for name, value in moments.items()}
    return state


def _restore(model: PMTIQA, optimizer: torch.optim.Optimizer, state: Mapping[str, NDArray[Any]]) -> None:
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            # The count of steps has no dimension; not every store keeps that.
            moments.setdefault(int(index), {})[key] = value.reshape(()) if key == "step" else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def main() -> None:
    run_from_shell("services.iqa.train", TrainConfig, __doc__, "a folder with scores.csv")


if __name__ == "__main__":
    main()
