"""The policy: NumPy, torch and ONNX agree; what each training method does to it; labels put down to one decision."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inlining.export import export_onnx, numpy_policy
from services.inlining.features import WIDTH
from services.inlining.labels import Labels, attribute
from services.inlining.learning import clone, evolution_step, evolved, imitate, perturbations, ppo_step, set_evolved
from services.inlining.model import PolicyNet, corpus_quantiles
from services.inlining.replay import Decision, Site
from services.inlining.schemas import TrainConfig


def some_features(count=400):
    random = np.random.default_rng(count)
    values = random.integers(-60, 300, (count, WIDTH))
    values[:, :12] *= random.random((count, 12)) < 0.2  # most counts are mostly zero
    return values


def a_net(seed=0):
    torch.manual_seed(seed)
    return PolicyNet(corpus_quantiles(some_features()))


def test_numpy_torch_and_onnx_agree(tmp_path):
    net = a_net()
    for value in net.parameters():
        value.data *= 3
    export_onnx(net, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    policy = numpy_policy(net)
    rows = some_features(300)
    by_torch = torch.sigmoid(net(torch.from_numpy(rows))).detach().numpy()
    by_onnx = np.asarray(session.run(None, {"features": rows})[0])
    assert by_onnx.shape == (300,)
    assert np.ptp(by_torch) > 0.05
    np.testing.assert_allclose(by_onnx, by_torch, atol=1e-5)
    np.testing.assert_allclose(policy.probabilities(rows), by_torch, atol=1e-5)
    single = [policy.decide(row) for row in rows]
    assert [decision for decision, _ in single] == (policy.probabilities(rows) >= 0.5).astype(int).tolist()
    np.testing.assert_allclose([sure for _, sure in single], np.maximum(by_torch, 1 - by_torch), atol=1e-5)


def test_extreme_features_are_in_the_outermost_buckets_and_nobody_elses():
    policy = numpy_policy(a_net())
    extremes = np.array([np.iinfo(np.int64).min, -(1 << 60), -1, 0, 1 << 60, np.iinfo(np.int64).max])
    rows = np.random.default_rng(0).choice(extremes, (200, WIDTH))
    rows[: len(extremes)] = extremes[:, None]
    single = [policy.probability(row) for row in rows]
    np.testing.assert_allclose(single, policy.probabilities(rows), atol=1e-6)


def test_a_decision_takes_little_cpu():
    policy, row = numpy_policy(a_net()), some_features(1)[0]
    policy.decide(row)
    started = time.process_time()
    for _ in range(200):
        policy.decide(row)
    assert (time.process_time() - started) / 200 < 1e-3  # 20 times what it takes; the card has the figure


@given(st.integers(0, WIDTH - 1), st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_a_larger_value_is_in_no_lower_bucket(column, values):
    rows = np.zeros((len(values), WIDTH), np.int64)
    rows[:, column] = sorted(values)
    buckets = numpy_policy(a_net()).buckets(rows)
    assert (np.diff(buckets[:, column]) >= 0).all()


def test_quantiles_rise_and_are_values_of_the_corpus():
    rows = some_features(1000)
    quantiles_FQ = corpus_quantiles(rows)
    assert quantiles_FQ.shape == (WIDTH, 99)
    assert (np.diff(quantiles_FQ, axis=1) >= 0).all()
    assert set(quantiles_FQ[20].tolist()) <= set(rows[:, 20].tolist())


def test_a_clone_learns_a_threshold_and_the_same_seed_the_same():
    rows = some_features(800)
    stock = (rows[:, 29] < 40).astype(np.int64)
    config = TrainConfig(clone_epochs=20, batch_size=64)
    nets = [a_net(1), a_net(1)]
    assert all(clone(net, rows, stock, config) > 0.95 for net in nets)
    assert all(torch.equal(one, other) for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_imitation_leaves_stock_where_bytes_say_so_and_an_anchor_holds_it():
    rows = some_features(800)
    stock = (rows[:, 29] < 40).astype(np.int64)
    worth = np.where(rows[:, 29] < -20, 30, np.where(rows[:, 29] < 40, -20, 25))  # stock is wrong below −20
    labels = Labels(rows, stock, worth)
    config = TrainConfig(clone_epochs=15, label_epochs=100, batch_size=64)

    def taken(anchor):
        net = a_net(2)
        clone(net, rows, stock, config)
        imitate(net, labels, rows, stock, anchor, config)
        return (net(torch.from_numpy(rows)) > 0).numpy()

    free, held = taken(0.0), taken(50.0)
    assert (free == (worth < 0)).mean() > 0.95
    assert (held == (stock == 1)).mean() > 0.95


def test_evolution_climbs():
    net = a_net(3)
    values_P = evolved(net)
    assert len(values_P) == 841
    target_P = values_P + np.random.default_rng(1).normal(0, 0.2, len(values_P)).astype(np.float32)
    config = TrainConfig(sigma=0.05, step=0.1, pairs=20)

    def closeness(point_P):
        return -float(((point_P - target_P) ** 2).sum())

    before = closeness(values_P)
    noise_KP = perturbations(config.pairs, len(values_P), [0, 0])
    for generation in range(60):
        noise_KP = perturbations(config.pairs, len(values_P), [0, generation])
        saved = [[closeness(values_P + sign * 0.05 * noise_P) for sign in (1, -1)] for noise_P in noise_KP]
        values_P = evolution_step(values_P, noise_KP, np.array(saved), config)
    assert closeness(values_P) > 0.8 * before
    set_evolved(net, values_P)
    np.testing.assert_array_equal(evolved(net), values_P)
    np.testing.assert_array_equal(evolution_step(values_P, noise_KP, np.zeros((20, 2)), config), values_P)


def test_ppo_makes_what_paid_more_likely():
    net = a_net(4)
    rows = some_features(600)
    taken = np.arange(600) % 2
    advantage = np.where(taken == 1, 1.0, -1.0)  # inlining paid, everywhere
    config = TrainConfig(ppo_learning_rate=1e-3, ppo_epochs=4, batch_size=100)
    before = torch.sigmoid(net(torch.from_numpy(rows))).mean().item()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for iteration in range(5):
        assert np.isfinite(ppo_step(net, optimizer, rows, taken, advantage, config, iteration))
    assert torch.sigmoid(net(torch.from_numpy(rows))).mean().item() > before + 0.05


def decision(caller, callee, inlined):
    return Decision(Site(callee, f"{caller}:1:1"), caller, inlined)


def test_a_change_is_put_down_to_the_only_decision_that_can_have_made_it():
    others = [decision("e", "helper", False)]
    base: Any = SimpleNamespace(functions={"a": 100, "b": 50, "c": 30, "d": 30}, decisions=others)
    flips = [(decision("a", "c", False),), (decision("b", "d", True),)]
    # a grew by 12 and c, of no use any more, went; b shrank.
    trial: Any = SimpleNamespace(functions={"a": 112, "b": 41, "d": 30}, decisions=others)
    assert attribute(base, trial, flips) == [(flips[0], 12 - 30), (flips[1], -9)]


def test_what_two_decisions_can_have_changed_counts_for_neither():
    base: Any = SimpleNamespace(functions={"a": 100, "b": 50, "c": 30}, decisions=[decision("a", "b", True)])
    flips = [(decision("a", "c", False),), (decision("b", "c", False),)]  # b was inlined into a
    trial: Any = SimpleNamespace(functions={"a": 130, "b": 50, "c": 30}, decisions=[decision("a", "b", True)])
    assert attribute(base, trial, flips) == []


@pytest.mark.parametrize("flips", [[], [(decision("a", "b", True),)]])
def test_nothing_changed_is_worth_nothing(flips):
    same: Any = SimpleNamespace(functions={"a": 1}, decisions=[])
    assert [change for _, change in attribute(same, same, flips)] == [0] * len(flips)
