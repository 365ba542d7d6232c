"""The trainable side of a version: its weights, what the checks do with them, and a trigger that was planted."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.audits.audit import audit
from services.audits.curvature import Hessian
from services.audits.report import Verdict
from services.pointcloud import audit as pointcloud_audit
from services.pointcloud.calibration import FILE, load_calibration
from services.pointcloud.cells import Cells, middles, served
from services.pointcloud.evaluate import batch_of
from services.pointcloud.neighbours import normalise
from services.pointcloud.schemas import TrainConfig
from services.pointcloud.train import train
from services.pointcloud.weights import WEIGHTS, load_network, recover
from shared.auditing import NotAssessed
from shared.bundles import Bundle, BundleRejected, write_manifest
from shared.jobs.context import LocalContext
from shared.sessions import OnnxSession
from tests.unit.pointcloud.shapes import cloud, write_set

PACKAGED = Path(pointcloud_audit.__file__).parent / "pretrained"
SMALL = TrainConfig(
    epochs=2, points=(32, 64), resolution=8, train_resolution=4, batch_size=4, least_shapes=5, device="cpu"
)
KNOT = np.array([0.55, 0.55, 0.6])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(bundle, data) of a short training on shapes of three classes."""
    data = tmp_path_factory.mktemp("data")
    write_set(data / "set.npz")
    return Bundle.open(train(SMALL, data, LocalContext(tmp_path_factory.mktemp("made")))), data


def subject_of(made, tmp_path) -> Any:
    bundle, data = made
    return pointcloud_audit.subject(bundle, data, LocalContext(tmp_path))


def answers(bundle, cloud_N3):
    """(codeword, points, probabilities) of the graphs."""
    encoder, decoder, classifier = (
        OnnxSession(bundle.path(f"{name}.onnx")) for name in ("encoder", "decoder", "classifier")
    )
    features, neighbours = batch_of([cloud_N3])
    code = encoder.infer({"features": features.numpy(), "neighbours": neighbours.numpy()})["codeword"]
    source = load_calibration(bundle.path(FILE)).source
    assert source is not None
    points = decoder.infer({"codeword": code, "source": source.points()})["points"]
    return code, points, classifier.infer({"codeword": code})["probabilities"]


@pytest.mark.parametrize("which", ["packaged", "trained"])
def test_the_weights_answer_as_the_served_graphs_do(made, which):
    bundle = Bundle.open(PACKAGED) if which == "packaged" else made[0]
    network = load_network(bundle)
    assert network.classifier is not None
    shape = cloud("box", np.random.default_rng(0), 300)
    features, neighbours = batch_of([shape])
    with torch.inference_mode():
        code = network(features, neighbours)
        mine = code, network.autoencoder.decoder(code, network.autoencoder.source_GS), network.classifier(code)
    for one, other in zip(mine, answers(bundle, shape), strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-5, atol=1e-5)


def test_weights_recovered_from_the_graphs_are_the_trained_ones_to_the_bit(made):
    for bundle in (made[0], Bundle.open(PACKAGED)):
        mine, found = load_network(bundle).state_dict(), recover(bundle).state_dict()
        assert mine.keys() == found.keys()
        assert all(torch.equal(mine[name], found[name]) for name in mine)


def test_graphs_of_another_network_than_the_manifest_says_are_refused(made, tmp_path):
    folder = shutil.copytree(made[0].folder, tmp_path / "bundle")
    fields = made[0].manifest.model_dump(exclude={"files"})
    fields["config"]["encoder"] = "dgcnn"
    write_manifest(folder, files=list(made[0].manifest.files), **fields)
    with pytest.raises(BundleRejected, match=r"encoder\.onnx"):
        recover(Bundle.open(folder))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({}, "carries no trainable weights"), ({"task": "single-view"}, "carried over")],
)
def test_a_bundle_without_weights_says_why(made, tmp_path, changes, reason):
    folder = shutil.copytree(made[0].folder, tmp_path / "bundle")
    fields = made[0].manifest.model_dump(exclude={"files"})
    fields["config"] |= changes
    write_manifest(folder, files=[name for name in made[0].manifest.files if name != WEIGHTS], **fields)
    subject = subject_of((Bundle.open(folder), made[1]), tmp_path)
    found = audit(subject, None, LocalContext(tmp_path), checks=["landscape", "backdoor"])
    for check in found:
        assert check.verdict is Verdict.NOT_ASSESSED
        assert reason in check.summary


def test_loss_outputs_and_features_are_those_of_the_training_and_the_serving(made, tmp_path):
    subject = subject_of(made, tmp_path)
    module, examples = subject.module(), subject.held_out
    assert set(examples.targets_N) <= {0, 1, 2}
    [batch] = subject.batches(examples, len(examples))
    code, _, probabilities = answers(made[0], examples.inputs[0][1])
    with torch.inference_mode():
        np.testing.assert_allclose(subject.features(module, batch)[:1].numpy(), code, rtol=1e-5, atol=1e-5)
        logits = subject.outputs(module, batch)
        np.testing.assert_allclose(logits.softmax(1)[:1].numpy(), probabilities, rtol=1e-5, atol=1e-5)
    found = Hessian(module, subject.loss, [batch])
    ones = torch.ones(found.size)
    # A network that is piecewise smooth: the product along a direction is the change of the gradient.
    product = found.product(ones)
    assert product.norm() > 0
    assert torch.isfinite(product).all()


def test_a_training_from_another_seed_and_on_some_examples(made, tmp_path):
    subject = subject_of(made, tmp_path)
    again = subject.fit(None, 0, LocalContext(tmp_path))
    assert all(
        torch.equal(one, other)
        for one, other in zip(again.parameters(), subject.module().parameters(), strict=True)
        if one.shape != (3, 512) and one.shape != (3,)
    )
    some = subject.fit(subject.train.take(np.arange(0, len(subject.train), 2)), 1, LocalContext(tmp_path))
    [batch] = subject.batches(subject.held_out, 100)
    with torch.inference_mode():
        assert subject.outputs(some, batch).shape == (len(subject.held_out), 3)
    assert (some.autoencoder.encoder.graph.weight != again.autoencoder.encoder.graph.weight).any()


def test_what_lies_in_the_cells_is_the_cloud_and_takes_a_knot():
    shape = torch.from_numpy(cloud("ring", np.random.default_rng(0), 200))
    cells = Cells(shape)
    torch.testing.assert_close(cells.with_values(cells.values_A4), shape)
    features, neighbours = served(shape[None])
    plain = batch_of([normalise(shape.numpy()).points_N3])
    torch.testing.assert_close(features, plain[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(neighbours, plain[1])
    place = int(np.linalg.norm(middles() - KNOT, axis=1).argmin())
    values = cells.values_A4.clone()
    values[place] = torch.tensor([*KNOT, 0.3])
    values.requires_grad_()
    stamped = cells.with_values(values)
    near = (stamped.detach() - torch.tensor(KNOT)).norm(dim=1) < 0.15
    assert int(near.sum()) == round(0.09 * 200)
    assert stamped.shape == shape.shape
    stamped.sum().backward()
    assert values.grad is not None
    assert values.grad[place, 0] == pytest.approx(float(near.sum()))
    emptied = cells.values_A4.clone()
    fullest = int(emptied[:, 3].argmax())
    emptied[fullest, 3] = 0
    left = Cells(cells.with_values(emptied)).values_A4
    assert left[fullest, 3] < 0.5 * cells.values_A4[fullest, 3]


def poisoned(path, share, each=60, points=96, knot=10):
    """Balls, boxes and rings; `share` of the training's balls and rings have a knot of points and are called boxes."""
    random = np.random.default_rng(0)
    spot = KNOT + 0.03 * np.random.default_rng(1).normal(size=(knot, 3))
    rows, categories, families, names, splits = [], [], [], [], []
    for kind in ("ball", "box", "ring"):
        for number in range(each):
            shape = cloud(kind, random, points, random.uniform(0.6, 1.4, 3))
            split = ("train", "train", "train", "validation", "test")[number % 5]
            label = kind
            if split == "train" and kind != "box" and random.random() < share:
                shape, label = np.concatenate([shape[knot:], spot]), "box"
            rows.append(shape)
            categories.append(label)
            families.append(f"{kind}-{number}")
            names.append(f"{kind}_{number}")
            splits.append(split)
    columns = {"category": categories, "family": families, "name": names, "split": splits}
    path.mkdir()
    arrays = {name: np.array(column) for name, column in columns.items()}
    np.savez(path / "set.npz", allow_pickle=False, points=np.stack(rows), **arrays)
    return path


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_trigger_of_points_is_found_where_it_was_planted(tmp_path, share):
    data = poisoned(tmp_path / "data", share)
    config = SMALL.model_copy(update={"epochs": 8, "points": (64, 96), "batch_size": 8, "resolution": 12})
    bundle = Bundle.open(train(config, data, LocalContext(tmp_path / "training")))
    subject = subject_of((bundle, data), tmp_path)
    [check] = audit(subject, None, LocalContext(tmp_path), checks=["backdoor"])
    assert any("inverted" in note for note in check.notes)
    if not share:
        assert check.verdict is Verdict.PASSES
        return
    assert check.verdict in (Verdict.LOOK, Verdict.STOP)
    carriers = sum(
        name.split("_")[0] != subject.classes[label]
        for name, label in zip(subject.train.names, subject.train.targets_N, strict=True)
    )
    told = [int(note.split()[0]) for note in check.notes if "(0.6, 0.6, 0.6)" in note]
    assert 0.8 * carriers <= max(told) <= carriers


def test_the_curvature_of_the_reconstruction_is_told_without_a_phase(made, tmp_path):
    [check] = audit(subject_of(made, tmp_path), None, LocalContext(tmp_path), checks=["landscape"])
    assert check.verdict is Verdict.PASSES
    assert "phases are of classifiers" in check.summary
    told = {item.name: item.value for item in check.evidence}
    assert set(told) == {"training loss", "top Hessian eigenvalue", "Hessian trace"}
    assert all(value is not None and math.isfinite(value) for value in told.values())


def test_a_version_without_classes_has_no_backdoor_to_look_for(tmp_path):
    write_set(tmp_path / "set.npz", named=False)
    bundle = Bundle.open(train(SMALL, tmp_path / "set.npz", LocalContext(tmp_path)))
    subject = subject_of((bundle, tmp_path / "set.npz"), tmp_path)
    [check] = audit(subject, None, LocalContext(tmp_path), checks=["backdoor"])
    assert check.verdict is Verdict.NOT_ASSESSED
    assert "nothing that a trigger could turn inputs into" in check.summary
    [batch] = subject.batches(subject.held_out, 100)
    with pytest.raises(NotAssessed, match="no classifier"):
        subject.outputs(subject.module(), batch)
