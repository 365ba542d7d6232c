"""Trigger inversion: the smallest patch that turns every input into a class (Neural Cleanse, Wang and others, 2019).

Shapes: N inputs, X the shape of one input, M the shape of the mask, which broadcasts to X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.audits.checking import Stop, go_on

SUCCESS = 0.99  # share of inputs that the patch has to turn
PATIENCE = 4  # checks without a smaller mask before it counts as converged
SHRUNK = 0.97  # a mask counts as smaller below this share of the best
COST = 1e-2  # of an entry of the mask, to begin with; it adapts
CHECKED = 50  # steps between checks
OUTLIER = 2.0  # anomaly index above which a class is suspect, as published
LEAST_CLASSES = 5  # a median deviation of fewer says nothing


class Inversion(NamedTuple):
    """A patch for one class. `size` is the mask's L1 norm, in entries; `converged` where the size stopped falling with
    `success` reached. Claim nothing from one that did not."""

    target: int
    mask_M: Tensor
    pattern_X: Tensor
    size: float
    success: float
    converged: bool
    steps: int


def invert(
    logits: Callable[[Tensor], Tensor],
    values_NX: Tensor,
    target: int,
    *,
    mask_shape: Sequence[int],
    low: float,
    high: float,
    seed: int,
    steps: int = 2000,
    batch: int = 128,
    rate: float = 0.1,
    stop: Stop = go_on,
) -> Inversion:
    """Minimise cross-entropy to `target` plus c·‖mask‖₁ over mask and pattern by Adam; c rises by half while the patch
    turns SUCCESS of the inputs and falls while it does not. `values_NX` should hold no inputs of the target's class.
    """
    generator = torch.Generator().manual_seed(seed)
    raw_mask = (torch.rand(tuple(mask_shape), generator=generator) - 1).requires_grad_()
    raw_pattern = torch.randn(values_NX.shape[1:], generator=generator).mul_(0.1).requires_grad_()
    optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=rate, betas=(0.5, 0.9))
    wanted_N = torch.full((len(values_NX),), target)

    def patch() -> tuple[Tensor, Tensor]:
        return torch.sigmoid(raw_mask * 2), low + (high - low) * torch.sigmoid(raw_pattern * 2)

    def applied(values: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
        return values * (1 - mask) + pattern * mask

    def drawn() -> Tensor:
        if batch >= len(values_NX):
            return values_NX
        return values_NX[torch.randint(len(values_NX), (batch,), generator=generator)]

    best: tuple[float, float, Tensor, Tensor] | None = None
    cost, stale, taken, converged, success = COST, 0, 0, False, 0.0
    while taken < steps and not converged:
        for _ in range(CHECKED):
            stop()
            mask, pattern = patch()
            loss = F.cross_entropy(logits(applied(drawn(), mask, pattern)), wanted_N[:batch])
            gradients = torch.autograd.grad(loss + cost * mask.abs().sum(), [raw_mask, raw_pattern])
            raw_mask.grad, raw_pattern.grad = gradients
            optimizer.step()
            taken += 1
        with torch.no_grad():
            mask, pattern = patch()
            turned = torch.cat(
                [logits(applied(part, mask, pattern)).argmax(1) == target for part in values_NX.split(max(batch, 500))]
            )
        success, size = float(turned.float().mean()), float(mask.sum())
        if success >= SUCCESS:
            if best is None or size < SHRUNK * best[0]:
                best, stale = (size, success, mask.clone(), pattern.clone()), 0
            else:
                stale += 1
            cost *= 1.5
        else:
            stale += best is not None
            cost /= 1.5**1.5
        converged = best is not None and stale >= PATIENCE
    if best is None:
        with torch.no_grad():
            mask, pattern = patch()
        return Inversion(target, mask, pattern, float(mask.sum()), success, False, taken)
    return Inversion(target, best[2], best[3], best[0], best[1], converged, taken)


def anomaly_index(sizes_K: Sequence[float]) -> np.ndarray:
    """(K,) how far each size lies below the median, in median absolute deviations × 1.4826; a backdoor's mask is small.
    Above OUTLIER is suspect. Nothing but zeros below LEAST_CLASSES sizes."""
    found = np.asarray(sizes_K, np.float64)
    if len(found) < LEAST_CLASSES:
        return np.zeros(len(found))
    middle = np.median(found)
    spread = 1.4826 * np.median(np.abs(found - middle))
    return np.maximum(middle - found, 0) / max(spread, 1e-9)
