"""A small convolutional classifier of adjustable width and depth, and its training: what scaling, phase diagrams and
the red team train by the dozen.

Shapes: B batch, N images, C channels, H height, W width of the image, D embedding, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.audits.checking import Stop, go_on

Norm = Literal["batch", "instance"]
EVALUATED = 500  # images at once


class ConvNet(nn.Module):
    """`depth` blocks of 3×3 convolution, normalisation, ReLU and 2×2 average pooling, and a linear head.

    The network of the dataset-distillation literature (Zhao and others, 2021), which takes instance normalisation;
    batch normalisation is for what is said about batch-normalised networks.
    """

    def __init__(
        self, *, channels: int = 1, size: int = 28, classes: int = 10, width: int = 16, depth: int = 3, norm: Norm
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for number in range(depth):
            blocks.append(nn.Conv2d(channels if number == 0 else width, width, 3, padding=1))
            blocks.append(nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width, width))
            blocks.append(nn.ReLU())
            if size >= 2:
                blocks.append(nn.AvgPool2d(2))
                size //= 2
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width * size * size, classes)

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """The penultimate layer (B, D)."""
        return self.blocks(image_BCHW).flatten(1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.head(self.embed(image_BCHW))


Batch = tuple[Tensor, Tensor]  # images (B, C, H, W), labels (B,)


def classify(module: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(module(batch[0]), batch[1])


def error_percent(module: nn.Module, batch: Batch) -> float:
    """Share of wrong classes in per cent."""
    return 100 * float((module(batch[0]).argmax(1) != batch[1]).float().mean())


def batches_of(image_NCHW: Tensor, label_N: Tensor, size: int, seed: int) -> list[Batch]:
    """Shuffled batches of exactly `size`; what is left over is left out."""
    order_N = torch.randperm(len(label_N), generator=torch.Generator().manual_seed(seed))
    return [
        (image_NCHW[part], label_N[part])
        for part in order_N.split(min(size, len(label_N)))
        if len(part) == min(size, len(label_N))
    ]


def fit(
    module: nn.Module,
    image_NCHW: Tensor,
    label_N: Tensor,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    weight_decay: float = 0.0,
    decay: bool = True,
    stop: Stop = go_on,
) -> nn.Module:
    """Train in place by SGD with momentum 0.9, along a cosine if `decay`; returns the module in evaluation mode."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) if decay else None
    module.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(label_N), generator=order).split(batch):
            stop()
            if len(chosen) == 1 and len(label_N) > 1:
                continue  # batch normalisation has no statistics of one image
            optimizer.zero_grad(set_to_none=True)
            classify(module, (image_NCHW[chosen], label_N[chosen])).backward()
            optimizer.step()
        if schedule is not None:
            schedule.step()
    return module.eval()


@torch.no_grad()
def logits_of(module: nn.Module, image_NCHW: Tensor) -> Tensor:
    """(N, K), in evaluation mode."""
    module.eval()
    return torch.cat([module(part) for part in image_NCHW.split(EVALUATED)])


def right(module: nn.Module, image_NCHW: Tensor, label_N: Tensor) -> Tensor:
    """(N,) 1 where the module's class is the label, else 0."""
    return (logits_of(module, image_NCHW).argmax(1) == label_N).float()


@torch.no_grad()
def embeddings_of(module: ConvNet, image_NCHW: Tensor) -> Tensor:
    """(N, D), in evaluation mode."""
    module.eval()
    return torch.cat([module.embed(part) for part in image_NCHW.split(EVALUATED)])
