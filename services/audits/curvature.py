"""The Hessian of a loss at a network's weights: its largest eigenvalue and its trace, each with an error.

Shapes: P trainable weights, all in one vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

from services.audits.checking import Stop, go_on
from shared.problems import FourfoldError

Loss = Callable[[Any, Any], Tensor]  # (module, batch) → the batch's mean loss, a scalar
Gradients = tuple[Tensor | None, ...]


class CurvatureDiverged(FourfoldError):
    """The loss or its curvature is not a number, or Lanczos did not converge within its budget."""

    code = "audits-curvature-diverged"
    title = "The curvature could not be measured"


class Estimate(NamedTuple):
    """A value, its standard error, and how many products with the Hessian it took."""

    value: float
    error: float
    products: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by the normal approximation."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error


class Hessian:
    """Products H v for the mean loss over batches, in evaluation mode, by differentiating twice (Pearlmutter, 1994).

    The batches are passed over one at a time, so that memory is that of one.
    """

    def __init__(self, module: nn.Module, loss: Loss, batches: Sequence[Any], stop: Stop = go_on) -> None:
        """The batches are of one size: they count alike."""
        self.module, self.loss, self.batches, self.stop = module, loss, batches, stop
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.size = sum(weight.numel() for weight in self.weights)
        self.products = 0

    def product(self, vector_P: Tensor) -> Tensor:
        """H v (P,)."""
        total_P = torch.zeros_like(vector_P)
        for part_P in self.by_batch(vector_P):
            total_P += part_P
        self.products += 1
        return total_P / len(self.batches)

    def by_batch(self, vector_P: Tensor) -> Iterator[Tensor]:
        """The product with the Hessian of each batch's own mean loss."""
        vectors = _like(vector_P, self.weights)
        with evaluating(self.module), torch.enable_grad():
            for batch in self.batches:
                self.stop()
                loss = self.loss(self.module, batch)
                found = torch.autograd.grad(loss, self.weights, create_graph=True, allow_unused=True)
                gradients = cast(Gradients, found)
                pairs = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g is not None and g.requires_grad]
                if not pairs:
                    yield torch.zeros_like(vector_P)
                    continue
                along = torch.stack([(gradient * vector).sum() for gradient, vector in pairs]).sum()
                found = cast(Gradients, torch.autograd.grad(along, self.weights, allow_unused=True))
                product_P = torch.cat(
                    [
                        (torch.zeros_like(weight) if one is None else one.detach()).reshape(-1)
                        for one, weight in zip(found, self.weights, strict=True)
                    ]
                )
                if not torch.isfinite(product_P).all():
                    raise CurvatureDiverged("The loss or its second derivative is not finite.")
                yield product_P


def top_eigenvalue(hessian: Hessian, *, seed: int, products: int = 100, tolerance: float = 1e-2) -> Estimate:
    """The algebraically largest eigenvalue by implicitly restarted Lanczos (ARPACK) to a relative `tolerance`.

    The error joins the residual ‖Hv − λv‖, which bounds the distance to an eigenvalue, and the standard error over the
    batches of vᵀH_b v, the first-order effect of having measured on these examples. Raises CurvatureDiverged where
    it takes more than about `products`.
    """
    start = hessian.products
    like = hessian.weights[0]

    def multiplied(vector: NDArray[Any]) -> NDArray[Any]:
        if hessian.products - start > 2 * products:
            raise CurvatureDiverged(f"Lanczos did not converge in {products} products with the Hessian.")
        vector_P = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1))).to(like)
        return hessian.product(vector_P).cpu().numpy().astype(vector.dtype)

    if hessian.size < 3:
        raise CurvatureDiverged("A network of fewer than three weights has no spectrum to speak of.")
    operator = LinearOperator((hessian.size, hessian.size), matvec=multiplied, dtype=np.float32)  # pyright: ignore[reportCallIssue]
    first = np.random.default_rng(seed).standard_normal(hessian.size).astype(np.float32)
    basis = min(12, hessian.size - 1)
    budget = {"ncv": max(basis, 2), "maxiter": max(1, products // basis), "tol": tolerance}
    try:
        values, vectors = eigsh(operator, k=1, which="LA", v0=first, **budget)  # pyright: ignore[reportArgumentType]
    except ArpackNoConvergence:
        raise CurvatureDiverged(f"Lanczos did not converge in {products} products with the Hessian.") from None
    value = float(values[0])
    vector_P = torch.from_numpy(vectors[:, 0].copy()).to(like)
    by_batch = list(hessian.by_batch(vector_P))
    hessian.products += 1
    mean_P = torch.stack(by_batch).mean(0)
    residual = float((mean_P - value * vector_P).norm())
    along = np.array([float(part @ vector_P) for part in by_batch])
    sampling = float(along.std(ddof=1) / math.sqrt(len(along))) if len(along) > 1 else 0.0
    return Estimate(value, math.hypot(residual, sampling), hessian.products - start)


def trace(hessian: Hessian, *, seed: int, probes: int = 30) -> Estimate:
    """Hutchinson's estimate: the mean of vᵀHv over vectors of random signs, with the standard error over them."""
    generator = torch.Generator().manual_seed(seed)
    like = hessian.weights[0]
    found: list[float] = []
    for _ in range(probes):
        vector_P = (torch.randint(0, 2, (hessian.size,), generator=generator) * 2 - 1).to(like)
        found.append(float(vector_P @ hessian.product(vector_P)))
    error = float(np.std(found, ddof=1) / math.sqrt(probes)) if probes > 1 else math.inf
    return Estimate(float(np.mean(found)), error, probes)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, and as it was afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _like(vector_P: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    parts = vector_P.split([weight.numel() for weight in weights])
    return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]
