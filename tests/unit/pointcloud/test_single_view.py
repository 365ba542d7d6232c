import json

import numpy as np
import pytest
import torch

from services.pointcloud.cube_sphere import POINTS, experiment, interpolated, training_shares
from services.pointcloud.datasets import BadShapes, load_shapes
from services.pointcloud.dispersion import (
    Evidence,
    NoSingleView,
    disperse,
    dispersion,
    examine,
    image_distances,
    shape_distances,
)
from services.pointcloud.schemas import DispersionConfig
from services.pointcloud.single_view import DECODERS, SingleView, Views, as_input
from shared.bundles import Bundle
from shared.jobs.context import LocalContext
from tests.unit.pointcloud.bundles import bundle
from tests.unit.pointcloud.shapes import cloud, write_set


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_every_decoder_learns_two_pictures_by_heart(decoder):
    torch.manual_seed(0)
    model = SingleView(decoder, 32, 4, 64)
    image = torch.rand(2, 3, 32, 32)
    target = torch.stack([torch.zeros(64, 3) + 0.3, torch.zeros(64, 3) - 0.3])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses, points = [], model(image)
    for _ in range(60):
        points = model(image)
        loss = (points - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert points.shape == (2, 64, 3)
    assert losses[-1] < 0.1 * losses[0]
    assert all(value.grad is not None for value in model.parameters())


def test_pictures_show_the_shape_from_the_yaw_and_the_cloud_stands_in_its_frame(tmp_path):
    shapes = load_shapes(write_set(tmp_path / "set.npz"))
    still, moving = (Views(shapes, 32, 180.0, frame) for frame in ("object", "viewer"))
    picture, target = still.at(20, 60.0)
    assert picture.shape == (32, 32)
    np.testing.assert_array_equal(target, shapes.cloud(20))
    again, turned = moving.at(20, 60.0)
    np.testing.assert_array_equal(again, picture)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(target, axis=1), atol=1e-6)
    assert np.abs(turned - target).max() > 0.1
    assert (still.at(20, -60.0)[0] != picture).any()
    assert as_input([picture]).shape == (1, 3, 32, 32)


def test_a_picture_of_a_shape_with_y_up_is_that_of_the_shape_stood_up(tmp_path):
    """And what is to be predicted keeps the file's axes."""
    rows = [cloud("ring", np.random.default_rng(number)) for number in range(4)]  # flat along z
    np.savez(tmp_path / "z.npz", points=np.stack(rows))
    np.savez(tmp_path / "y.npz", points=np.stack(rows)[:, :, [1, 2, 0]])
    standing, lying = (load_shapes(tmp_path / f"{up}.npz") for up in "zy")
    picture, _ = Views(standing, 32, 180.0, "object").at(1, 20.0)
    turned, target = Views(lying, 32, 180.0, "object", "y").at(1, 20.0)
    np.testing.assert_array_equal(turned, picture)
    np.testing.assert_array_equal(target, lying.cloud(1))
    assert (Views(lying, 32, 180.0, "object").at(1, 20.0)[0] != picture).any()


def test_the_dispersion_of_two_tight_groups():
    place = np.array([0.0, 0.1, 0.2, 10.0, 10.1, 10.2])
    distance = np.abs(place[:, None] - place)
    assert dispersion(distance, 2) == pytest.approx(4 * 0.1 / 6)
    assert dispersion(distance, 1) > 1
    assert dispersion(distance, 6) == 0
    assert dispersion(np.zeros((4, 4)), 2) == 0


def test_distances_are_zero_on_the_diagonal_symmetric_and_those_of_the_pairs():
    random = np.random.default_rng(0)
    clouds = [cloud(kind, random) for kind in ("ball", "box", "ring")]
    found = shape_distances(clouds)
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 0).all()
    np.testing.assert_allclose(shape_distances(clouds[:1], clouds), found[:1])
    far = np.linalg.norm(clouds[0][:, None] - clouds[1], axis=-1)
    assert found[0, 1] == pytest.approx(far.min(0).mean() + far.min(1).mean(), rel=1e-6)
    pictures = [np.full((56, 56), value, np.uint8) for value in (0, 51, 255)]
    np.testing.assert_allclose(image_distances(pictures)[0], [0, 0.04, 1], atol=1e-9)


def evidence_of(predict):
    """Of a network that is a function of (true cloud, training clouds)."""
    random = np.random.default_rng(0)
    blank = np.zeros((8, 8), np.uint8)

    def items(count):
        sizes = random.uniform(0.3, 1.0, (count, 3))
        return [(blank + index, cloud("box", random, 128, sizes[index])) for index in range(count)]

    training, test = items(12), items(10)
    predicted = [predict(truth, [shape for _, shape in training]) for _, truth in test]
    return examine(training, test, predicted, [str(index) for index in range(10)], 2)


def test_a_network_that_returns_one_shape_recognises_and_one_that_returns_the_truth_reconstructs():
    memory = evidence_of(lambda truth, training: training[0])
    assert memory.verdict == "recognises"
    assert memory.output_shapes == 0
    assert memory.nearer_to_memory == 1
    perfect = evidence_of(lambda truth, training: truth)
    assert perfect.verdict == "reconstructs"
    assert perfect.error == 0
    assert perfect.output_shapes == pytest.approx(perfect.true_shapes)
    assert perfect.gain_low > 0
    assert perfect.nearest_shape <= perfect.most_alike
    assert perfect.told()["verdict"] == "reconstructs"


def test_the_job_examines_the_champion(tmp_path):
    write_set(tmp_path / "set.npz")
    context = LocalContext(tmp_path / "job")
    config = DispersionConfig(clusters=2, shapes=16, points=64)
    path, told = disperse(config, tmp_path, Bundle.open(bundle(tmp_path / "random")), context)
    whole = json.loads(path.read_bytes())
    assert whole["verdict"] == told["verdict"] == "recognises"  # random weights know nothing
    assert whole["measured_on"] == {"training_shapes": 8, "test_shapes": 8, "clusters": 2}
    assert told["clusters"] == 2
    assert {"input_images", "input_shapes", "output_shapes", "nearest_shape", "most_alike"} <= set(whole)
    lonely = bundle(tmp_path / "lonely", only_autoencoder=True)
    with pytest.raises(NoSingleView):
        disperse(config, tmp_path, Bundle.open(lonely), context)


def test_few_shapes_have_a_dispersion_and_one_has_none(tmp_path):
    """With a medoid for each test shape both dispersions would be 0, and their share nothing."""
    write_set(tmp_path / "set.npz", each=8)  # 24 shapes: fewer test shapes than the default has medoids
    config = DispersionConfig(points=64)
    made = Bundle.open(bundle(tmp_path / "random"))
    path, told = disperse(config, tmp_path, made, LocalContext(tmp_path / "job"))
    whole = json.loads(path.read_bytes())
    assert told["test_shapes"] < config.clusters
    assert told["clusters"] == told["test_shapes"] // 2
    assert whole["true_shapes"] > 0
    assert told["output_over_true_dispersion"] == pytest.approx(whole["output_shapes"] / whole["true_shapes"], abs=1e-4)
    parts = np.array(["train"] * 5 + ["validation", "test"])
    rows = [cloud("box", np.random.default_rng(number)) for number in range(7)]
    (tmp_path / "lone").mkdir()
    np.savez(tmp_path / "lone" / "set.npz", points=np.stack(rows), split=parts)
    with pytest.raises(BadShapes, match="1 shape: its dispersion takes 2"):
        disperse(config, tmp_path / "lone", made, LocalContext(tmp_path / "job"))


def test_the_share_of_shapes_that_are_all_the_same_is_none():
    same = [(np.zeros((8, 8), np.uint8), cloud("box", np.random.default_rng(0)))] * 4
    evidence = examine(same, same, [shape for _, shape in same], list("abcd"), 2)
    assert evidence.told()["output_over_true_dispersion"] is None


def test_shapes_between_cube_and_sphere():
    cube, ball = interpolated(0.0), interpolated(1.0)
    assert cube.shape == (POINTS, 3)
    np.testing.assert_allclose(np.abs(cube).max(axis=1), 1 / np.sqrt(3), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ball, axis=1), 1 / np.sqrt(3), rtol=1e-5)
    np.testing.assert_allclose(interpolated(0.5), (cube + ball) / 2, atol=1e-6)
    random = np.random.default_rng(0)
    assert set(training_shares(1, 70, random)) == {0.0, 1.0}
    wide = training_shares(35, 70, random)
    assert wide[::2].max() < 0.5 < wide[1::2].min()


def test_the_experiment_goes_on_where_it_stopped(tmp_path):
    levers = {"cluster size": (1,), "yaw range": (90.0,)}
    table = experiment(tmp_path, seeds=(0,), epochs=1, levers=levers, sizes=(12, 8))
    assert (tmp_path / "dispersion.png").stat().st_size > 5000
    assert table.count("\n") == 3
    kept = (tmp_path / "dispersion.json").read_bytes()
    assert experiment(tmp_path, seeds=(0,), epochs=1, levers=levers, sizes=(12, 8)) == table
    assert (tmp_path / "dispersion.json").read_bytes() == kept
    assert Evidence(**json.loads(kept)[0]["evidence"]).input_shapes == 0  # a cluster of one shape at each end
