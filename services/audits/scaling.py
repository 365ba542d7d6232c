"""Recipe: does size help or hurt the worst group? Trains a family of widths and depths, pretrained and not.

After Pham and others, "The effect of model size on worst-group generalization" (2021). The data are two classes that a
stripe mostly gives away and sometimes contradicts; groups are class × stripe, and the worst is that of the least
accuracy. Every row is one training.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from services.audits.checking import Stop, go_on
from services.audits.image_sets import ImageSet, striped
from services.audits.networks import ConvNet, fit, right
from services.audits.schemas import ScalingConfig


def scaling(config: ScalingConfig, images: ImageSet, stop: Stop = go_on) -> list[dict[str, Any]]:
    """A row for each seed, width, depth and pretraining: training accuracy, average accuracy with groups weighted as in
    training, and the accuracy of the worst group and of each."""
    rows: list[dict[str, Any]] = []
    for number in range(config.seeds):
        seed = config.seed + number
        part = images.resized(config.size).taken(len(images.label_N), config.test_images * 5, seed)
        two = striped(part, correlation=config.correlation, seed=seed).taken(
            config.train_images, config.test_images, seed
        )
        for width, depth, pretrained in itertools.product(config.widths, config.depths, config.pretrained):
            torch.manual_seed(seed)
            network = _pretrained(config, part, width, depth, seed, stop) if pretrained else None
            if network is None:
                network = ConvNet(
                    channels=two.channels, size=two.size, classes=2, width=width, depth=depth, norm="batch"
                )
            fit(
                network,
                two.image_NCHW,
                two.label_N,
                epochs=config.epochs,
                batch=config.batch,
                learning_rate=config.learning_rate,
                seed=seed,
                stop=stop,
            )
            rows.append(
                {"seed": seed, "width": width, "depth": depth, "pretrained": pretrained} | _groups(network, two)
            )
    return rows


def _pretrained(
    config: ScalingConfig, images: ImageSet, width: int, depth: int, seed: int, stop: Stop
) -> ConvNet | None:
    """A network that has learnt the classes that are not asked about, with a new head; None where there are none."""
    pair = (2, 6) if images.classes > 6 else (0, 1)
    others = (images.label_N != pair[0]) & (images.label_N != pair[1])
    if not others.any():
        return None
    image_NCHW, label_N = images.image_NCHW[others], images.label_N[others]
    chosen = torch.randperm(len(label_N), generator=torch.Generator().manual_seed(seed))[: config.train_images]
    network = ConvNet(
        channels=images.channels, size=images.size, classes=images.classes, width=width, depth=depth, norm="batch"
    )
    fit(
        network,
        image_NCHW[chosen],
        label_N[chosen],
        epochs=config.epochs,
        batch=config.batch,
        learning_rate=config.learning_rate,
        seed=seed,
        stop=stop,
    )
    network.head = torch.nn.Linear(network.head.in_features, 2)
    return network


def _groups(network: ConvNet, two: ImageSet) -> dict[str, Any]:
    if two.group_N is None or two.test_group_N is None:
        raise ValueError("The image set has no groups.")
    right_N = right(network, two.test_image_NCHW, two.test_label_N)
    by_group = {int(group): float(right_N[two.test_group_N == group].mean()) for group in two.test_group_N.unique()}
    return {
        "train": float(right(network, two.image_NCHW, two.label_N).mean()),
        "average": sum(_share(two.group_N, group) * accuracy for group, accuracy in by_group.items()),
        "worst": min(by_group.values()),
        "groups": by_group,
    }


def _share(group_N: Tensor, group: int) -> float:
    return float((group_N == group).float().mean())
