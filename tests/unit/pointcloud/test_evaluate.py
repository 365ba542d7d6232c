import numpy as np
import pytest
import torch

from services.pointcloud import benchmark
from services.pointcloud.classifier import fit_classifier
from services.pointcloud.datasets import Shapes, load_shapes
from services.pointcloud.evaluate import (
    accuracy,
    batch_of,
    encode,
    family_bootstrap,
    hand_made,
    linear_probe,
    macro_accuracy,
    nearest_neighbour,
    nearest_shape_errors,
    reconstruction_errors,
)
from services.pointcloud.model import Autoencoder
from tests.unit.pointcloud.shapes import cloud, write_set


def separable(classes=3, each=30):
    random = np.random.default_rng(0)
    label_S = np.arange(classes * each) % classes
    x_SD = random.normal(size=(len(label_S), 8)).astype(np.float32)
    x_SD[np.arange(len(label_S)), label_S] += 6
    split_S = np.arange(len(label_S)) // classes % 3
    return x_SD, label_S, split_S, [str(index // 2) for index in range(len(label_S))]


def test_macro_accuracy_counts_every_class_alike():
    label, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert accuracy(predicted, label) == 0.75
    assert macro_accuracy(predicted, label) == 0.5


def test_probes_find_what_is_there_and_nothing_where_there_is_nothing():
    x, label, split, families = separable()
    for probe in (linear_probe, nearest_neighbour):
        found = probe(x, label, split, families)
        assert found.accuracy > 0.95
        low, high = found.interval(accuracy)
        assert low <= found.accuracy <= high
        noise = probe(np.random.default_rng(1).normal(size=x.shape), label, split, families)
        assert noise.accuracy < 0.7
    # Shapes without a class are left out.
    label = np.where(np.arange(len(label)) < 30, -1, label)
    assert len(linear_probe(x, label, split, families).label_S) == 21


@pytest.mark.parametrize("classes", [2, 3])
def test_the_classifier_gives_probabilities_and_none_to_classes_it_never_saw(classes):
    x, label, split, _ = separable(classes)
    label = np.where(label == classes - 1, classes, label)  # a class between, without shapes
    model = fit_classifier(x, label, split)
    with torch.inference_mode():
        found = model(torch.from_numpy(x)).numpy()
    assert found.shape == (len(x), classes + 1)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert (found[:, classes - 1] == 0).all()
    assert (found.argmax(1) == label).mean() > 0.95


def test_whole_families_are_resampled():
    families = ["a"] * 50 + ["b"] * 50
    value = np.repeat([0.0, 1.0], 50)
    low, high = family_bootstrap(lambda index: float(value[index].mean()), families)
    assert (low, high) == (0.0, 1.0)  # of two families one may be drawn twice


def test_hand_made_features_tell_kinds_apart_and_not_the_order_of_points():
    random = np.random.default_rng(0)
    ball, ring = cloud("ball", random, 512), cloud("ring", random, 512)
    assert hand_made(ball).shape == (86,)
    assert np.abs(hand_made(ball) - hand_made(ring)).sum() > 1
    np.testing.assert_allclose(hand_made(ball)[35:], hand_made(ball[::-1])[35:])


def test_errors_of_unequal_clouds_in_a_batch_are_those_of_each_alone(tmp_path):
    shapes = load_shapes(write_set(tmp_path / "set.npz", points=40))
    two = [shapes.cloud(0), shapes.cloud(1)[:25]]
    shapes = Shapes(two, shapes.names[:2], shapes.labels, shapes.label_S[:2], shapes.families[:2], shapes.split_S[:2])
    torch.manual_seed(0)
    model = Autoencoder(resolution=6).eval()
    together = reconstruction_errors(model, shapes, [0, 1], 40)
    alone = np.concatenate([reconstruction_errors(model, shapes, [index], 40) for index in (0, 1)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    ((codes, layers),) = encode([model.encoder], shapes, [0, 1], 40)
    assert codes.shape == (2, 512)
    assert layers.shape == (2, 384)
    with torch.inference_mode():
        np.testing.assert_allclose(
            codes, model.encoder(*batch_of([shapes.cloud(0), shapes.cloud(1)])), rtol=1e-4, atol=1e-4
        )
    assert nearest_shape_errors(shapes, [0], [0, 1]).tolist() == [0]


def test_the_benchmarks_tables(tmp_path):
    data = write_set(tmp_path / "set.npz", each=16)
    small = {
        "epochs": 1, "points": (32, 64), "resolution": 6, "train_resolution": 4, "batch_size": 4, "least_shapes": 5,
    }  # fmt: skip
    table = benchmark.probe(data, tmp_path / "probe", small, seeds=(0, 1))
    assert "hand-made features, SVM" in table
    assert "random encoder: codeword" in table
    assert (tmp_path / "probe" / "seed1" / "codewords.png").stat().st_size > 5000
    assert benchmark.probe(data, tmp_path / "probe", small, seeds=(0, 1)) == table
    told = {**small, "epochs": 12, "learning_rate": 1e-3}
    right = benchmark.ceiling(data, tmp_path, told, seeds=(0,)).splitlines()[2]
    assert right.startswith("| told the classes, SVM | ")
    assert float(right.split("|")[2].split()[0]) > 60  # of three classes
    table = benchmark.decoders(data, tmp_path / "decoders", small)
    assert "15,213,568" in table


def test_the_training_step_is_measured_beside_the_plain_formulation():
    table = benchmark.step(rounds=1, batch=1, points=64)
    ours, plain = (line.split("|")[3].strip() for line in table.splitlines()[2:4])
    assert float(ours) == pytest.approx(float(plain), rel=1e-5)  # the same loss
