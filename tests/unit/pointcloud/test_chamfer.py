import numpy as np
import pytest
import torch

from services.pointcloud.chamfer import BLOCK, chamfer, nearest_distances

FORMS = ("max", "sum", "squared")


def reference(x, y, form):
    """From the full distance matrix, with a gradient through it."""
    squared = (x[:, None] - y[None]).square().sum(-1)
    there, back = squared.min(1).values, squared.min(0).values
    if form == "squared":
        return there.mean() + back.mean()
    there, back = (there + 1e-6).sqrt().mean(), (back + 1e-6).sqrt().mean()
    return torch.maximum(there, back) if form == "max" else there + back


def drawn(*sizes, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(size, 3, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("search", ["tree", "blocks"])
def test_value_and_gradient_are_the_references(form, search):
    x, y = drawn(40, 55)
    mine = chamfer(x[None], y[None], form, search=search)
    assert mine.shape == (1,)
    theirs = reference(x, y, form)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-9)
    for a, b in zip(torch.autograd.grad(mine.sum(), (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing_and_gets_no_gradient(form):
    x, y = drawn(30, 20)
    padded_x = torch.cat([x, torch.full((7, 3), 1e3, dtype=torch.float64)])[None].detach().requires_grad_()
    padded_y = torch.cat([y, torch.zeros(9, 3, dtype=torch.float64)])[None]
    found = chamfer(padded_x, padded_y, form, x_counts_B=torch.tensor([30]), y_counts_B=torch.tensor([20]))
    assert found.item() == pytest.approx(reference(x, y, form).item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), padded_x)
    assert (gradient[0, 30:] == 0).all()


def test_a_batch_is_its_pairs():
    x, y = torch.randn(3, 10, 3), torch.randn(3, 12, 3)
    alone = torch.cat([chamfer(a[None], b[None]) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(chamfer(x, y), alone)


def test_equal_clouds_with_duplicates_have_no_distance_and_a_finite_gradient():
    x = torch.zeros(1, 50, 3, requires_grad=True)
    found = chamfer(x, torch.zeros(1, 8, 3))
    assert found.item() == pytest.approx(1e-3)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(gradient).all()


def test_blocks_find_what_trees_find_where_the_matrix_would_not_fit_one_block():
    torch.manual_seed(0)
    x, y = torch.rand(1, 4200, 3), torch.rand(1, 4100, 3)
    assert x.shape[1] * y.shape[1] > BLOCK
    torch.testing.assert_close(chamfer(x, y, search="blocks"), chamfer(x, y, search="tree"))


def test_without_torch_the_same():
    x, y = drawn(15, 25)
    there, back = nearest_distances(x.detach().numpy(), y.detach().numpy())
    assert np.mean(there**2) + np.mean(back**2) == pytest.approx(reference(x, y, "squared").item())


def test_an_empty_cloud_is_refused():
    with pytest.raises(ValueError, match="without points"):
        chamfer(torch.zeros(1, 0, 3), torch.zeros(1, 3, 3))
