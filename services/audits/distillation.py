"""Dataset distillation: a few synthetic images a class that a network can be trained on in place of the real ones.

Distribution matching (Zhao and Bilen, 2023) matches the mean embedding of each class under random networks; gradient
matching (Zhao and others, 2021) the gradients that a training network takes from real and synthetic images. The first
costs a fraction of the second and is the default on a CPU.

Shapes: N real images, S synthetic images, C channels, H height, W width, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from services.audits.checking import Stop, go_on
from services.audits.networks import ConvNet, classify, fit

Method = Literal["distribution", "gradient"]
# (outer, inner) loops of gradient matching by images a class, after the paper's table; between them the smaller.
LOOPS = {1: (1, 1), 10: (10, 50), 50: (50, 10)}
REAL_BATCH = 256
INNER_BATCH = 256


@dataclass(frozen=True)
class Distillation:
    """How a set is distilled. Rates as published: images 0.1 with momentum 0.5 for gradient matching, 1.0 for
    distribution matching; networks 0.01."""

    method: Method = "distribution"
    per_class: int = 10
    iterations: int = 100
    real_batch: int = REAL_BATCH
    width: int = 16
    depth: int = 3
    loops: tuple[int, int] | None = None  # of gradient matching; the paper's if None

    @property
    def image_rate(self) -> float:
        return 1.0 if self.method == "distribution" else 0.1

    @property
    def outer_inner(self) -> tuple[int, int]:
        if self.loops is not None:
            return self.loops
        return LOOPS[max((known for known in LOOPS if known <= self.per_class), default=1)]


# Called with the network at hand after each inner loop (each iteration of distribution matching); what it changes of
# the real images is seen by the next. Attacks that look at the distillation use it.
AfterLoop = Callable[[ConvNet, int], None]


def distil(
    config: Distillation,
    image_NCHW: Tensor,
    label_N: Tensor,
    *,
    classes: int,
    seed: int,
    stop: Stop = go_on,
    progress: Callable[[float], None] = lambda share: None,
    after_loop: AfterLoop | None = None,
) -> tuple[Tensor, Tensor]:
    """The synthetic images (S, C, H, W) and their labels (S,), begun from real images of the class drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the networks' weights
    of_class = [torch.nonzero(label_N == kind).squeeze(1) for kind in range(classes)]
    if any(not len(rows) for rows in of_class):
        raise ValueError("A class has no images.")

    def drawn(kind: int, count: int) -> Tensor:
        rows = of_class[kind]
        return rows[torch.randint(len(rows), (count,), generator=generator)]

    start = torch.cat([drawn(kind, config.per_class) for kind in range(classes)])
    synthetic_SCHW = image_NCHW[start].clone().requires_grad_()
    synthetic_S = torch.arange(classes).repeat_interleave(config.per_class)
    optimizer = torch.optim.SGD([synthetic_SCHW], lr=config.image_rate, momentum=0.5)
    size, channels = image_NCHW.shape[-1], image_NCHW.shape[1]

    def real(kind: int) -> Tensor:
        return image_NCHW[drawn(kind, min(config.real_batch, len(of_class[kind])))]

    def own(kind: int) -> Tensor:
        return synthetic_SCHW[kind * config.per_class : (kind + 1) * config.per_class]

    for iteration in range(config.iterations):
        network = ConvNet(
            channels=channels, size=size, classes=classes, width=config.width, depth=config.depth, norm="instance"
        ).train()
        if config.method == "distribution":
            stop()
            loss = torch.zeros(())
            for kind in range(classes):
                with torch.no_grad():
                    wanted_D = network.embed(real(kind)).mean(0)
                loss = loss + ((network.embed(own(kind)).mean(0) - wanted_D) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after_loop is not None:
                after_loop(network, iteration)
        else:
            outer, inner = config.outer_inner
            weights = [weight for weight in network.parameters() if weight.requires_grad]
            for turn in range(outer):
                stop()
                loss = torch.zeros(())
                for kind in range(classes):
                    loss = loss + _gradient_distance(network, weights, real(kind), own(kind), kind)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if turn == outer - 1:
                    break  # with one image a class this is before the first inner loop, and after_loop never runs
                fit(
                    network,
                    synthetic_SCHW.detach(),
                    synthetic_S,
                    epochs=inner,
                    batch=INNER_BATCH,
                    learning_rate=0.01,
                    seed=seed + turn,
                    decay=False,
                    stop=stop,
                )
                network.train()
                if after_loop is not None:
                    after_loop(network, iteration)
        progress((iteration + 1) / config.iterations)
    return synthetic_SCHW.detach(), synthetic_S


def _gradient_distance(
    network: nn.Module, weights: Sequence[Tensor], real_NCHW: Tensor, synthetic_SCHW: Tensor, kind: int
) -> Tensor:
    """Σ over the layers' output rows of 1 − cos of the two gradients; what has one dimension (biases, norms) is left
    out."""
    wanted = torch.autograd.grad(classify(network, (real_NCHW, torch.full((len(real_NCHW),), kind))), weights)
    loss = classify(network, (synthetic_SCHW, torch.full((len(synthetic_SCHW),), kind)))
    mine = torch.autograd.grad(loss, weights, create_graph=True)
    total = torch.zeros(())
    for one, other in zip(mine, wanted, strict=True):
        if one.ndim > 1:
            rows, real_rows = one.flatten(1), other.detach().flatten(1)
            cosine = (rows * real_rows).sum(1) / (rows.norm(dim=1) * real_rows.norm(dim=1) + 1e-6)
            total = total + (1 - cosine).sum()
    return total


def trained_on(
    image_SCHW: Tensor,
    label_S: Tensor,
    *,
    classes: int,
    seed: int,
    width: int = 16,
    depth: int = 3,
    epochs: int = 300,
    stop: Stop = go_on,
) -> ConvNet:
    """A fresh network trained on a (distilled) set, as the papers evaluate one: 300 epochs."""
    torch.manual_seed(seed)
    network = ConvNet(
        channels=image_SCHW.shape[1],
        size=image_SCHW.shape[-1],
        classes=classes,
        width=width,
        depth=depth,
        norm="instance",
    )
    fit(
        network,
        image_SCHW,
        label_S,
        epochs=epochs,
        batch=256,
        learning_rate=0.01,
        seed=seed,
        weight_decay=5e-4,
        stop=stop,
    )
    return network
