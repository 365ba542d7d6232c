"""Curvature against a dense Hessian, curves and similarity against what is known of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from services.audits.connectivity import POINTS, Curve, CurveDiverged, connectivity
from services.audits.curvature import CurvatureDiverged, Hessian, top_eigenvalue, trace
from services.audits.similarity import linear_cka, mixed, similarity


def network(seed, width=4, norm=False):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, width), *([nn.BatchNorm1d(width)] if norm else []), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, 2)
    )


def loss(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1])


def error(module, batch):
    return 100 * float((module(batch[0]).argmax(1) != batch[1]).float().mean())


def batches(count=4, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        inputs = torch.randn(size, 3, generator=generator)
        found.append((inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()))
    return found


def dense(module, given):
    """The whole matrix, row by row, of the mean loss."""
    module.eval()
    weights = list(module.parameters())
    mean = torch.stack([loss(module, batch) for batch in given]).mean()
    gradient = torch.cat([one.reshape(-1) for one in torch.autograd.grad(mean, weights, create_graph=True)])
    rows = [
        torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        for one in gradient
    ]
    flat = [torch.cat([part.reshape(-1) for part in row]) for row in rows]
    return torch.stack(flat).detach().numpy().astype(np.float64)


@pytest.mark.parametrize("norm", [False, True])
def test_eigenvalue_and_trace_are_the_dense_hessians(norm):
    module, given = network(0, norm=norm), batches()
    matrix = dense(module, given)
    values = np.linalg.eigvalsh(matrix)
    module.train()
    top = top_eigenvalue(Hessian(module, loss, given), seed=1, tolerance=1e-4)
    assert top.value == pytest.approx(values[-1], rel=1e-3)
    assert top.interval[0] < values[-1] < top.interval[1]
    found = trace(Hessian(module, loss, given), seed=1, probes=400)
    assert abs(found.value - np.trace(matrix)) < 4 * found.error
    assert found.error < 0.2 * np.trace(matrix)
    assert module.training  # as it was, although measured in evaluation mode


def test_the_eigenvalues_error_tells_of_few_examples():
    module = network(0)
    few, many = (top_eigenvalue(Hessian(module, loss, batches(n, 8)), seed=0) for n in (3, 48))
    assert many.error < few.error


def test_a_loss_that_is_no_number_is_said():
    module = network(0)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(CurvatureDiverged):
        top_eigenvalue(Hessian(module, loss, batches()), seed=0)


def test_lanczos_ends_with_its_budget():
    with pytest.raises(CurvatureDiverged, match="did not converge"):
        top_eigenvalue(Hessian(network(0, width=64), loss, batches()), seed=0, products=1, tolerance=1e-12)


def trained(seed, norm=False):
    module = network(seed, width=16, norm=norm)
    for part in module:
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for epoch in range(60):
        for batch in batches(seed=epoch % 3):
            optimizer.zero_grad()
            loss(module, batch).backward()
            optimizer.step()
    return module.eval()


@pytest.mark.parametrize("norm", [False, True])
def test_the_curve_connects_what_the_straight_line_does_not(norm):
    first, second = trained(0, norm), trained(1, norm)
    with torch.no_grad():  # the same function with its units in another order: the line between is far from either
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        second.load_state_dict(first.state_dict())
        for name, weight in second.state_dict().items():
            if weight.ndim and name.split(".")[0] in ("0", "1"):
                weight.copy_(weight[order])
        last = [weight for weight in second.parameters() if weight.ndim == 2][-1]
        last.copy_(last[:, order])
    given = batches(8)
    line, curve = (
        connectivity(first, second, loss, error, lambda epoch: given, epochs=n, learning_rate=0.02, seed=0)
        for n in (0, 60)
    )
    assert line.value < -5
    assert curve.value > line.value / 2
    assert len(curve.error_T) == len(POINTS)
    assert curve.error_T[0] == pytest.approx(curve.error_T[-1])


def test_the_curves_ends_are_the_networks():
    first, second = trained(0), trained(1)
    curve = Curve(first, second)
    for t, module in ((0.0, first), (1.0, second)):
        pairs = zip(curve.at(t).parameters(), module.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_curve_takes_two_networks_of_one_shape_and_a_loss_that_is_a_number():
    with pytest.raises(CurveDiverged, match="shapes"):
        Curve(network(0), network(0, width=5))
    broken = network(0)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("inf"))
    with pytest.raises(CurveDiverged, match="not finite"):
        connectivity(broken, network(1), loss, error, lambda _: batches(), epochs=1, learning_rate=0.1, seed=0)


def test_cka_does_not_see_rotations_and_sees_noise():
    random = np.random.default_rng(0)
    first = random.normal(size=(200, 6))
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    assert linear_cka(first, 3 * first @ rotation + 1) == pytest.approx(1)
    assert linear_cka(first, random.normal(size=(200, 6))) < 0.1
    assert np.isnan(linear_cka(first, np.ones((200, 2))))
    three = similarity([first, first + random.normal(size=first.shape), random.normal(size=first.shape)])
    assert three.pairs == 3
    assert 0.05 < three.value < 0.5
    assert three.error > 0


def test_mixed_inputs_lie_between():
    inputs = torch.tensor([[0.0, 0.0], [1.0, 10.0], [0.5, 5.0]])
    found = mixed(inputs, seed=0)
    assert torch.all((found >= 0) & (found <= torch.tensor([1.0, 10.0])))
    assert torch.equal(found, mixed(inputs, seed=0))
    assert torch.allclose(found[:, 1], 10 * found[:, 0])
