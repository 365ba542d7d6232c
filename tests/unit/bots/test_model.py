"""The encoders: shapes, gradients, invariances, compressed rows against edge lists, and the single relation's GGCN."""

import numpy as np
import pytest
import torch

from services.bots.ggcn import GGCNLayer, adjacency
from services.bots.model import AccountNet, CompressedRows, EdgeList, SignedRelations, relations_of
from services.bots.schemas import TrainConfig
from services.bots.train import network

ENCODERS = ("mlp", "rgcn", "botrgcn", "rgt", "ggcn")
N, R, V = 30, 3, 2


def made(encoder, text=0, seed=0):
    torch.manual_seed(seed)
    config = TrainConfig(encoder=encoder, hidden=16, dropout=0.0)
    return network(config, views=V, relations=R, text=text).eval()


def given(seed=0, edges=120, accounts=N):
    random = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, accounts, (2, edges), generator=random)
    relation = torch.randint(0, R, (edges,), generator=random)
    values = torch.rand(accounts, 20, generator=random)
    known = (torch.rand(accounts, 20, generator=random) < 0.8).float()
    return values, known, ends, relation


@pytest.mark.parametrize("encoder", ENCODERS)
def test_shapes_and_gradients(encoder):
    model = made(encoder, text=6)
    values, known, ends, relation = given()
    bot, stance = model(values, known, torch.rand(N, 6), relations_of(ends, relation, R))
    assert bot.shape == (N, V, 2)
    assert stance.shape == (N, V, 3)
    (bot.square().sum() + stance.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_numbering_the_accounts_otherwise_changes_nothing(encoder):
    model = made(encoder)
    values, known, ends, relation = given()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)
    first, _ = model(values, known, None, relations_of(ends, relation, R))
    again, _ = model(values[order], known[order], None, relations_of(place[ends], relation, R))
    assert torch.allclose(first[order], again, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_graphs_without_edges_between_them_do_not_mix(encoder):
    model = made(encoder)
    values, known, ends, relation = given(1)
    others = given(2)
    alone, _ = model(values, known, None, relations_of(ends, relation, R))
    joined = [torch.cat(pair) for pair in ((values, others[0]), (known, others[1]))]
    edges, types = torch.cat([ends, others[2] + N], dim=1), torch.cat([relation, others[3]])
    together, _ = model(*joined, None, relations_of(edges, types, R))
    assert torch.allclose(alone, together[:N], atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_not_known_is_not_looked_at(encoder):
    model = made(encoder)
    values, known, ends, relation = given()
    other = torch.where(known > 0, values, torch.rand_like(values))
    first, _ = model(values, known, None, relations_of(ends, relation, R))
    again, _ = model(other, known, None, relations_of(ends, relation, R))
    assert torch.equal(first, again)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_tiny_graph_is_learnt_by_heart(encoder):
    model = made(encoder).train()
    values, known, ends, relation = given()
    label = torch.randint(0, 2, (N,), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    loss = torch.tensor(1.0)
    for _ in range(120):
        bot, _ = model(values, known, None, relations_of(ends, relation, R))
        loss = torch.nn.functional.cross_entropy(bot[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_compressed_rows_are_the_edge_lists_mean():
    values, _, ends, _ = given()
    order = torch.argsort(ends[1], stable=True)
    source, target = ends[0][order], ends[1][order]
    listed, compressed = EdgeList(source, target).mean(values), CompressedRows(source, target, N).mean(values)
    dense = torch.zeros(N, N).index_put((target, source), torch.ones(len(source)), accumulate=True)
    expected = dense @ values / dense.sum(1, keepdim=True).clamp(min=1)
    assert torch.allclose(listed, expected, atol=1e-6)
    assert torch.allclose(compressed, expected, atol=1e-6)


def test_one_signed_relation_is_the_papers_layer():
    torch.manual_seed(0)
    mine = SignedRelations(8, 1)
    paper = GGCNLayer(8, 8)
    edges = torch.randint(0, N, (2, 60))
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    edges = torch.unique(edges[:, edges[0] != edges[1]], dim=1)
    hidden = torch.randn(N, 8)
    with torch.no_grad():
        paper.linear.weight.copy_(mine.weight.weight)
        paper.linear.bias.copy_(mine.weight.bias)
    found = mine(hidden, [EdgeList(edges[0], edges[1])])
    expected = paper(hidden, adjacency(edges.T, N))
    assert torch.allclose(found, expected, atol=1e-5)


def test_dropout_acts_in_training_only():
    model = AccountNet("rgcn", properties=20, text=0, relations=R, views=V, hidden=16, layers=2, heads=2, dropout=0.5)
    values, known, ends, relation = given()
    relations = relations_of(ends, relation, R)
    assert not torch.equal(model(values, known, None, relations)[0], model(values, known, None, relations)[0])
    model.eval()
    assert np.array_equal(
        model(values, known, None, relations)[0].detach(), model(values, known, None, relations)[0].detach()
    )
