"""GGCN and the heterophily measurement: a dense reference, symmetry, gradients, and the command on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from services.bots import heterophily
from services.bots.ggcn import GGCN, GGCNLayer, adjacency, dropped
from services.bots.networks import BadNetwork, load_network, undirected

NODES, FEATURES, CLASSES = 12, 7, 3
CONFIGURATIONS = [(True, True), (True, False), (False, True), (False, False)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def edges(nodes: int = NODES, seed: int = 0) -> Tensor:
    """A random graph of uneven degrees; the last node is alone."""
    random = np.random.default_rng(seed)
    hub = [(0, other) for other in range(1, nodes - 1)]
    return torch.from_numpy(undirected(np.array([*hub, *random.integers(0, nodes - 1, (nodes, 2))])))


def dense_layer(layer: GGCNLayer, state: Tensor, edge: Tensor) -> Tensor:
    """The paper's equations, one entry of the N × N matrices at a time."""
    nodes = len(state)
    a = torch.eye(nodes)
    for i, j in edge.tolist():
        a[i, j] = 1
    d = a.sum(1)
    a_hat = a / torch.sqrt(d[:, None] * d[None, :])
    moved = state @ layer.linear.weight.T + layer.linear.bias
    positive, negative, plain = (torch.zeros(nodes, nodes) for _ in range(3))
    for i in range(nodes):
        for j in range(nodes):
            if a[i, j] == 0:
                continue
            tau = torch.tensor(1.0)
            if layer.correction is not None:
                d0, d1 = layer.correction
                tau = torch.log1p(torch.exp(d0 * (a_hat[i, i] / a_hat[i, j] - 1) + d1))
            sign = moved[i] @ moved[j] / (moved[i].norm() * moved[j].norm()) if i != j else torch.tensor(0.0)
            plain[i, j] = a_hat[i, j] * tau
            positive[i, j] = max(sign * a_hat[i, j] * tau, torch.tensor(0.0))
            negative[i, j] = min(sign * a_hat[i, j] * tau, torch.tensor(0.0))
    if layer.coefficients is None or layer.scale is None:
        return plain @ moved
    c = torch.exp(layer.coefficients) / torch.exp(layer.coefficients).sum()
    scale = torch.log1p(torch.exp(layer.scale))
    return scale * (c[0] * positive @ moved + c[1] * negative @ moved + c[2] * moved)


@pytest.mark.parametrize(("signed", "degree"), CONFIGURATIONS)
def test_sparse_layer_equals_the_dense_equations(signed: bool, degree: bool):
    torch.manual_seed(0)
    layer = GGCNLayer(FEATURES, 5, signed, degree)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    state = torch.randn(NODES, FEATURES)
    with torch.no_grad():
        sparse, dense = layer(state, adjacency(edges(), NODES)), dense_layer(layer, state, edges())
    assert sparse.abs().max() > 0.1
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=0)


def test_starts_where_the_paper_says():
    layer = GGCNLayer(FEATURES, 5)
    assert layer.correction is not None
    assert layer.coefficients is not None
    assert layer.correction.tolist() == [0.5, 0.0]
    assert layer.coefficients.softmax(-1).tolist() == pytest.approx([1 / 3] * 3)
    assert layer.scale == 2
    network = GGCN(FEATURES, CLASSES, layers=4, decay=0.7)
    assert network.residual == pytest.approx([1, np.log(0.7 / 27 + 1), np.log(0.7 / 64 + 1)])


def test_degree_term_is_the_ratio_of_the_diagonal():
    graph = adjacency(edges(), NODES)
    ratio = graph.loop_N[graph.receiver_E] / graph.weight_E - 1
    torch.testing.assert_close(graph.degree_E, ratio)
    # The hub's neighbours hear from a better connected node, and the other way round.
    assert (graph.degree_E[graph.sender_E == 0] > 0).all()
    assert (graph.degree_E[graph.receiver_E == 0] < 0).all()


def test_self_loops_and_too_few_layers_are_refused():
    with pytest.raises(ValueError, match="self-loops"):
        adjacency(torch.tensor([[0, 1], [1, 1]]), 2)
    with pytest.raises(ValueError, match="two layers"):
        GGCN(FEATURES, CLASSES, layers=1)


@pytest.mark.parametrize(("signed", "degree"), CONFIGURATIONS)
def test_relabelling_the_nodes_relabels_the_answer(signed: bool, degree: bool):
    torch.manual_seed(0)
    network = GGCN(FEATURES, CLASSES, hidden=8, layers=4, signed=signed, degree=degree).eval()
    features, edge, new_of_old = torch.randn(NODES, FEATURES), edges(), torch.randperm(NODES)
    moved = torch.empty_like(features)
    moved[new_of_old] = features
    with torch.no_grad():
        before = network(features, adjacency(edge, NODES))
        after = network(moved, adjacency(new_of_old[edge], NODES))
    assert before.shape == (NODES, CLASSES)
    torch.testing.assert_close(after[new_of_old], before, atol=1e-5, rtol=1e-5)


def test_the_sparse_sums_and_products_have_the_right_derivatives():
    torch.manual_seed(0)
    # Not symmetric, so that rows and columns cannot be taken for each other.
    graph = adjacency(torch.tensor([[2, 0], [0, 1], [3, 1], [0, 3], [1, 0]]), 4)
    weight = torch.randn(5, dtype=torch.double, requires_grad=True)
    left, right = (torch.randn(4, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(graph.collect, (weight, left))
    assert torch.autograd.gradcheck(graph.dot, (left, right))
    by_edge = torch.zeros_like(left).index_add(0, graph.receiver_E, weight[:, None] * left[graph.sender_E])
    torch.testing.assert_close(graph.collect(weight, left), by_edge)
    torch.testing.assert_close(graph.dot(left, right), (left[graph.receiver_E] * right[graph.sender_E]).sum(-1))


def test_words_as_compressed_rows_are_the_same_features():
    torch.manual_seed(0)
    words = (torch.rand(NODES, FEATURES) < 0.3).float()
    network, graph = GGCN(FEATURES, CLASSES, dropout=0.5), adjacency(edges(), NODES)
    rows = heterophily.compressed(words)
    torch.testing.assert_close(network.eval()(rows, graph), network(words, graph))
    seen = dropped(rows, 0.5, training=True).to_dense()
    kept = seen[words > 0]
    assert 0 < (kept == 0).sum() < len(kept)
    assert set(seen.unique().tolist()) == {0, 2}
    assert (seen[words == 0] == 0).all()


def test_a_graph_without_edges_and_zero_features_stay_finite():
    network = GGCN(FEATURES, CLASSES, layers=3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    for edge in (edges(), torch.empty(0, 2, dtype=torch.long)):
        logits = network(torch.zeros(NODES, FEATURES), adjacency(edge, NODES))
        network.zero_grad()
        logits.sum().backward()
        assert logits.isfinite().all()
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()


def fit(seed: int, steps: int = 150) -> tuple[GGCN, float, Tensor]:
    torch.manual_seed(seed)
    features, label = torch.randn(NODES, FEATURES), torch.arange(NODES) % CLASSES
    graph = adjacency(edges(), NODES)
    network = GGCN(FEATURES, CLASSES, hidden=16, layers=3, dropout=0.0)
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(network(features, graph), label)
        loss.backward()
        optimiser.step()
    return network, loss.item(), network(features, graph).argmax(1) == label


def test_every_parameter_learns_and_a_tiny_graph_is_learned_by_heart():
    network, loss, right = fit(0)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert loss < 0.05
    assert right.all()


def test_the_same_seed_gives_the_same_loss():
    assert fit(1, 5)[1] == fit(1, 5)[1] != fit(2, 5)[1]


def write_network(path: Path, classes: int, changes: dict[str, NDArray] | None = None, nodes: int = 40) -> None:
    random = np.random.default_rng(0)
    part = random.permuted(np.tile(np.arange(nodes) % 4, (2, 1)), axis=1)
    arrays: dict[str, NDArray] = {
        "node_features": random.integers(0, 2, (nodes, 6)).astype(np.float32),
        "node_labels": np.arange(nodes) % classes,
        "edges": random.integers(0, nodes, (80, 2)),
        "train_masks": part < 2,
        "val_masks": part == 2,
        "test_masks": part == 3,
    }
    np.savez(path, allow_pickle=True, **{**arrays, **(changes or {})})


def test_duplicates_and_loops_are_dropped_and_edges_go_both_ways(tmp_path: Path):
    stored = np.array([[0, 1], [1, 0], [0, 1], [2, 2], [3, 1]])
    write_network(tmp_path / "a.npz", 3, {"edges": stored})
    network = load_network(tmp_path / "a.npz")
    assert network.edge_E2.tolist() == [[0, 1], [1, 0], [1, 3], [3, 1]]
    assert network.classes == 3


def test_features_are_scaled_by_the_kind_of_network(tmp_path: Path):
    features = np.array([[1, 3, 0, 0, 0, 0]] * 39 + [[0] * 6], np.float32)
    write_network(tmp_path / "many.npz", 3, {"node_features": features})
    write_network(tmp_path / "two.npz", 2, {"node_features": features})
    many, two = load_network(tmp_path / "many.npz").features_NF, load_network(tmp_path / "two.npz").features_NF
    assert many[0].tolist() == [0.25, 0.75, 0, 0, 0, 0]
    assert many[39].tolist() == [0] * 6
    torch.testing.assert_close(two.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(two.std(0, correction=0), torch.tensor([1.0, 1, 0, 0, 0, 0]))
    assert load_network(tmp_path / "two.npz", "none").features_NF[0].tolist() == features[0].tolist()
    assert load_network(tmp_path / "two.npz", "rows").features_NF[0].tolist() == many[0].tolist()


def test_of_several_scalings_the_least_validation_loss_counts():
    common = {"network": "texas", "model": "mlp", "epoch": 1, "seconds": 1.0}
    results = [
        {**common, "scaling": "rows", "split": 0, "accuracy": 0.9, "val_loss": 2.0},
        {**common, "scaling": "none", "split": 0, "accuracy": 0.5, "val_loss": 1.0},
        {**common, "scaling": "rows", "split": 1, "accuracy": 0.7, "val_loss": 1.0},
        {**common, "scaling": "none", "split": 1, "accuracy": 0.1, "val_loss": 3.0},
    ]
    assert "| texas | mlp | none 1, rows 1 | 2 | accuracy 60.00 ± 10.00 |" in heterophily.table(results)


@pytest.mark.parametrize(
    "changes",
    [
        {"edges": np.array([[0, 40]])},
        {"edges": np.array([[-1, 0]])},
        {"node_features": np.zeros((3, 6), np.float32)},
        {"node_labels": np.array([None] * 40)},
        {"val_masks": np.ones(40, bool)},
    ],
    ids=["edge-beyond", "edge-negative", "features", "pickled-objects", "masks"],
)
def test_a_bad_file_is_named(tmp_path: Path, changes: dict[str, NDArray]):
    write_network(tmp_path / "bad.npz", 3, changes)
    with pytest.raises(BadNetwork, match=r"bad\.npz"):
        load_network(tmp_path / "bad.npz")


def test_a_missing_or_foreign_file_is_named(tmp_path: Path):
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("text.npz", "none.npz"):
        with pytest.raises(BadNetwork, match=name):
            load_network(tmp_path / name)


def test_the_command_trains_every_model_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_network(tmp_path / "texas.npz", 3)
    write_network(tmp_path / "tolokers.npz", 2)
    out = tmp_path / "results.json"
    names = ["texas", "tolokers"]
    first = heterophily.run(tmp_path, out, names, heterophily.MODELS, 1, epochs=3)
    assert len(first) == len(names) * len(heterophily.MODELS) - 1  # boosted trees are for few properties only
    assert json.loads(out.read_text()) == first
    assert all(0 <= result["accuracy"] <= 1 for result in first if result["network"] == "texas")
    assert all(0 <= result["roc_auc"] <= 1 for result in first if result["network"] == "tolokers")
    capsys.readouterr()
    both = heterophily.run(tmp_path, out, names, ["mlp"], 2, epochs=3)
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert both[: len(first)] == first
    again = heterophily.run(tmp_path, None, ["texas"], ["ggcn"], 1, epochs=3)
    assert again[0]["val_loss"] == first[0]["val_loss"]
    table = heterophily.table(both)
    assert "| texas | ggcn | own 1 | 1 | accuracy " in table
    assert "| 84.86 ± 4.55 |" in table
    assert "average precision" in table


def test_measures():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    assert heterophily.measure(logits, torch.tensor([0, 0, 1, 1])) == {
        "roc_auc": pytest.approx(0.75),
        "average_precision": pytest.approx((1 + 2 / 3) / 2),
    }
    three = torch.eye(3)
    assert heterophily.measure(three, torch.tensor([0, 1, 1])) == {"accuracy": pytest.approx(2 / 3)}
