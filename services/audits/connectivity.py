"""Mode connectivity: how the training error changes along a trained curve between two networks.

γ(t) = (1−t)²θ + 2t(1−t)φ + t²θ′ with φ trained (Garipov and others, 2018); mc = ½(L(θ) + L(θ′)) − L(γ(t*)), L the
training error in per cent and t* the point of the largest deviation (Yang and others, 2021). Negative: a barrier.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from services.audits.checking import Stop, go_on
from services.audits.curvature import Gradients, Loss
from shared.problems import FourfoldError

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
Error = Callable[[Any, Any], float]  # (module, batch) → the batch's mean error in per cent
Batches = Callable[[int], Sequence[Any]]  # epoch → its training batches, of one size


class CurveDiverged(FourfoldError):
    """The loss along the curve is not a number, or the two networks differ in their weights' shapes."""

    code = "audits-curve-diverged"
    title = "The curve between two networks could not be trained"


class Connectivity(NamedTuple):
    """`value` in error points; `error_T` the training error (%) at POINTS; `epochs` the curve's budget."""

    value: float
    error_T: list[float]
    epochs: int


def connectivity(
    first: nn.Module,
    second: nn.Module,
    loss: Loss,
    error: Error,
    batches: Batches,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    stop: Stop = go_on,
) -> Connectivity:
    """The batches of epoch 0 also serve the measuring.

    Batch-normalisation statistics are taken anew at each t, at the ends as well. The straight line is never used: it
    shows barriers of tens of points where the curve shows none. Raises CurveDiverged.
    """
    curve = Curve(first, second)
    curve.train(loss, batches, epochs=epochs, learning_rate=learning_rate, seed=seed, stop=stop)
    errors: list[float] = []
    for t in POINTS:
        module = curve.at(t)
        measured = batches(0)
        _take_statistics(module, loss, measured, stop)
        module.eval()
        with torch.no_grad():
            errors.append(sum(error(module, batch) for batch in measured) / len(measured))
    ends = (errors[0] + errors[-1]) / 2
    value = max((ends - one for one in errors[1:-1]), key=abs)
    return Connectivity(value, errors, epochs)


class Curve:
    """A quadratic Bézier curve in the space of a network's weights."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        self.module = copy.deepcopy(first)
        self._weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        self._ends = [
            [weight.detach().clone() for weight in module.parameters() if weight.requires_grad]
            for module in (first, second)
        ]
        if [one.shape for one in self._ends[0]] != [one.shape for one in self._ends[1]]:
            raise CurveDiverged("The two networks differ in their weights' shapes.")
        self._control = [((one + other) / 2).requires_grad_() for one, other in zip(*self._ends, strict=True)]

    def at(self, t: float) -> nn.Module:
        """The module itself with the weights of γ(t); the next call changes it."""
        with torch.no_grad():
            for weight, start, control, end in zip(
                self._weights, self._ends[0], self._control, self._ends[1], strict=True
            ):
                weight.copy_((1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end)
        return self.module

    def train(
        self,
        loss: Loss,
        batches: Batches,
        *,
        epochs: int,
        learning_rate: float,
        seed: int,
        stop: Stop,
    ) -> None:
        """Minimise the loss at a uniformly drawn t for each batch, by Adam along a cosine."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self._control, lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
        for epoch in range(epochs):
            for batch in batches(epoch):
                stop()
                t = float(torch.rand((), generator=generator))
                module = self.at(t).train()
                found = loss(module, batch)
                if not torch.isfinite(found):
                    raise CurveDiverged(f"The loss at t = {t:.2f} is not finite.")
                gradients = cast(Gradients, torch.autograd.grad(found, self._weights, allow_unused=True))
                for control, gradient in zip(self._control, gradients, strict=True):
                    control.grad = None if gradient is None else 2 * t * (1 - t) * gradient
                optimizer.step()
            schedule.step()


def _take_statistics(module: nn.Module, loss: Loss, batches: Sequence[Any], stop: Stop) -> None:
    """Batch-normalisation statistics over all batches, as a plain average; what else there is stays in evaluation."""
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]  # pyright: ignore[reportPrivateUsage]
    if not norms:
        return
    kept = [part.momentum for part in norms]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None
        part.train()
    with torch.no_grad():
        for batch in batches:
            stop()
            loss(module, batch)
    for part, momentum in zip(norms, kept, strict=True):
        part.momentum = momentum
