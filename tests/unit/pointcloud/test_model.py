from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.pointcloud import surface
from services.pointcloud.benchmark import plain_forward
from services.pointcloud.chamfer import chamfer
from services.pointcloud.evaluate import batch_of
from services.pointcloud.model import (
    Autoencoder,
    DenseDecoder,
    DGCNNEncoder,
    EdgeConv,
    FoldingDecoder,
    GraphEncoder,
    graph_max,
    linear_max,
    parameters_in,
)

ENCODERS = {"foldingnet": GraphEncoder, "dgcnn": DGCNNEncoder}


def clouds(*sizes, seed=0):
    random = np.random.default_rng(seed)
    return [random.uniform(-0.5, 0.5, (size, 3)).astype(np.float32) for size in sizes]


def test_the_folding_decoder_has_seven_percent_of_the_dense_decoders_parameters():
    folding, dense = parameters_in(FoldingDecoder()), parameters_in(DenseDecoder())
    assert (parameters_in(GraphEncoder()), folding, dense) == (937_024, 1_056_262, 15_213_568)
    assert folding <= 0.07 * dense


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("decoder", "source"), [("folding", "grid"), ("folding", "sphere"), ("folding", "learned"),
                                                 ("dense", "grid")])  # fmt: skip
def test_shapes(encoder, decoder, source):
    model = Autoencoder(encoder, decoder, source, 6)
    points = model(*batch_of(clouds(40, 30)))
    assert points.shape == (2, 36 if decoder == "folding" else 2048, 3)
    assert points.dtype == torch.float32
    assert model.source_GS.requires_grad == (source == "learned")


def test_value_and_gradient_are_those_of_the_plain_formulation():
    torch.manual_seed(0)
    model = Autoencoder(resolution=8).double()
    features, neighbours = batch_of(clouds(50, 50))
    features, source = features.double(), torch.from_numpy(surface.grid(8)).double()
    mine, theirs = model(features, neighbours, source), plain_forward(model, features, neighbours, source)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    parameters = [value for value in model.parameters() if value.requires_grad]
    target = features[..., :3]
    for a, b in zip(
        torch.autograd.grad(chamfer(mine, target).mean(), parameters),
        torch.autograd.grad(chamfer(theirs, target).mean(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


def test_maxima_are_the_same_with_and_without_a_gradient():
    torch.manual_seed(0)
    values, neighbours = torch.randn(3, 20, 8), torch.randint(0, 20, (3, 20, 5))
    layer = torch.nn.Linear(8, 11)
    gathered = torch.stack([row[index].amax(1) for row, index in zip(values, neighbours, strict=True)])
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            torch.testing.assert_close(graph_max(values, neighbours), gathered, rtol=0, atol=0)
            torch.testing.assert_close(linear_max(layer, values), layer(values).amax(1))


def test_edge_convolution_is_the_textbooks():
    torch.manual_seed(0)
    layer = EdgeConv(5, 7)
    values, neighbours = torch.randn(2, 12, 5), torch.randint(0, 12, (2, 12, 4))
    near = torch.stack([row[index] for row, index in zip(values, neighbours, strict=True)])  # B N K C
    edge = layer.difference(near - values[:, :, None]) + layer.itself(values)[:, :, None]
    expected = torch.nn.functional.leaky_relu(edge, 0.2).amax(2)
    torch.testing.assert_close(layer(values, neighbours), expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_gets_a_gradient(encoder):
    torch.manual_seed(0)
    model = Autoencoder(encoder, source="learned", resolution=6)
    features, neighbours = batch_of(clouds(60, 60))
    chamfer(model(features, neighbours), features[..., :3]).mean().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from(sorted(ENCODERS)))
def test_codewords_depend_neither_on_the_order_of_points_nor_on_padding(seed, count, kind):
    torch.manual_seed(0)
    encoder = ENCODERS[kind]().eval()
    (cloud, other) = clouds(count, count + 13, seed=seed)
    with torch.inference_mode():
        alone = encoder(*batch_of([cloud]))
        shuffled = encoder(*batch_of([np.random.default_rng(seed).permutation(cloud)]))
        padded = encoder(*batch_of([cloud, other]))[:1]
    torch.testing.assert_close(shuffled, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_duplicates_of_all_points_change_no_codeword_of_a_cloud_without_near_neighbours():
    """With each point 17 times, every neighbour is a duplicate: the graph is the point itself."""
    torch.manual_seed(0)
    encoder = GraphEncoder().eval()
    (cloud,) = clouds(9)
    with torch.inference_mode():
        few, many = (encoder(*batch_of([np.repeat(cloud, times, axis=0)])) for times in (17, 40))
    torch.testing.assert_close(few, many)


@pytest.mark.parametrize("kind", ENCODERS)
def test_before_any_training_codewords_are_no_smaller_than_clouds(kind):
    """Drawn as torch does by itself they are some hundredths, and trainings begin by standing still."""
    torch.manual_seed(0)
    encoder = ENCODERS[kind]().eval()
    with torch.inference_mode():
        codes = torch.cat([encoder(*batch_of([cloud])) for cloud in clouds(60, 60, 60, 60)])
    assert codes.square().mean() > 0.1
    assert codes.var(0).mean() > 0.01 * codes.square().mean()


def test_it_overfits_two_clouds_and_the_same_seed_gives_the_same_loss():
    features, neighbours = batch_of(clouds(80, 80))

    def losses():
        torch.manual_seed(3)
        model = Autoencoder(resolution=8)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(60):
            loss = chamfer(model(features, neighbours), features[..., :3]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    first, second = list(losses()), list(losses())
    assert first == second
    assert first[-1] < 0.6 * first[0]
    assert all(np.isfinite(first))
    assert any(a != b for a, b in pairwise(first))
