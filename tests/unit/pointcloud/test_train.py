import json

import numpy as np
import pytest
import torch

from services.pointcloud import train as recipe
from services.pointcloud.calibration import FILE, load_calibration
from services.pointcloud.evaluate import batch_of
from services.pointcloud.export import NoAutoencoder
from services.pointcloud.schemas import TrainConfig
from services.pointcloud.train import compare, contrast, drawn_source, fit, learning_rate_share, prepare, train
from shared.bundles import Bundle
from shared.jobs.config import ConfigInvalid, read_config
from shared.jobs.context import JobStopped, LocalContext, StopReason
from shared.sessions import OnnxSession
from tests.unit.pointcloud.shapes import write_set

SMALL = TrainConfig(
    epochs=3, points=(32, 64), resolution=8, train_resolution=4, batch_size=4, least_shapes=5, single_view_epochs=2,
    single_view_points=64, bottleneck=32, width=4, image_size=32, device="cpu",
)  # fmt: skip


class Context(LocalContext):
    """Stops after some questions; has a champion."""

    def __init__(self, folder, stop_after=None, champion=None):
        super().__init__(folder)
        self.left = stop_after
        self.served = champion

    def should_stop(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                return StopReason.SHUTDOWN
        return None

    def champion(self):
        return self.served


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_set(folder / "set.npz")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    config = SMALL.model_copy(update={"task": "both"})
    return train(config, data, LocalContext(tmp_path_factory.mktemp("trained")))


def test_the_bundle_holds_every_part_and_its_figures(trained):
    bundle = Bundle.open(trained)
    assert set(bundle.manifest.graphs) == {"encoder", "decoder", "decoder_int8", "classifier", "single_view"}
    figures = bundle.manifest.metrics
    assert {"chamfer", "view_chamfer", "classifier_accuracy", "linear_probe_macro_accuracy"} <= set(figures)
    low, high = figures["chamfer"].low or 0, figures["chamfer"].high or 0
    assert low <= figures["chamfer"].value <= high
    calibration = load_calibration(bundle.path(FILE))
    assert calibration.labels == ("ball", "box", "ring")
    assert calibration.source is not None
    assert calibration.source.points().shape == (64, 2)
    assert calibration.views is not None
    assert calibration.views.size == 32
    assert "linear_probe" in (trained / "card.md").read_text()
    assert bundle.manifest.dataset_digest
    assert figures["chamfer_int8"].value == pytest.approx(figures["chamfer"].value, rel=0.2)


@pytest.mark.parametrize("encoder", ["foldingnet", "dgcnn"])
@pytest.mark.parametrize("source", ["grid", "sphere", "learned"])
def test_onnx_gives_what_torch_gives_on_trained_weights(data, tmp_path, encoder, source):
    config = SMALL.model_copy(update={"encoder": encoder, "source": source, "epochs": 2})
    shapes, split_S = prepare(config, data)
    model = fit(config, shapes, split_S, LocalContext(tmp_path))
    from services.pointcloud.export import export_onnx

    export_onnx(model, tmp_path)
    served = [OnnxSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder")]
    for sizes in ((64,), (50, 64, 20)):
        features, neighbours = batch_of([shapes.cloud(number)[:size] for number, size in enumerate(sizes)])
        with torch.inference_mode():
            code = model.encoder(features, neighbours)
            points = model.decoder(code, model.source_GS)
        given = {"features": features.numpy(), "neighbours": neighbours.numpy()}
        mine = served[0].infer(given)["codeword"]
        np.testing.assert_allclose(mine, code.numpy(), rtol=0, atol=1e-5 * max(1, float(code.abs().max())))
        folded = served[1].infer({"codeword": mine, "source": model.source_GS.detach().numpy()})["points"]
        np.testing.assert_allclose(folded, points.numpy(), rtol=0, atol=1e-5 * max(1, float(points.abs().max())))


def test_training_lowers_the_loss_and_the_same_seed_gives_the_same(data, tmp_path):
    config = SMALL.model_copy(update={"epochs": 6})
    shapes, split_S = prepare(config, data)
    contexts = [LocalContext(tmp_path / name) for name in "ab"]
    for context in contexts:
        fit(config, shapes, split_S, context)
    first, second = ([point["loss"] for point in context.points] for context in contexts)
    assert first == second
    assert first[-1] < 0.8 * first[0]


def test_contrast_is_least_where_each_cloud_is_most_like_its_own_other_sample():
    first = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    second = first + 0.1 * torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    both = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    plain = []
    for row in range(10):
        others = [other for other in range(10) if other != row]
        logits = torch.stack([both[row] @ both[other] / 0.1 for other in others])
        plain.append(logits.logsumexp(0) - both[row] @ both[(row + 5) % 10] / 0.1)
    torch.testing.assert_close(contrast(first, second), torch.stack(plain).mean())
    assert contrast(first, second) < contrast(first, second.roll(1, 0))


def test_contrast_is_part_of_the_loss_and_falls(data, tmp_path):
    config = SMALL.model_copy(update={"epochs": 12, "points": (32, 32), "batch_size": 8})
    shapes, split_S = prepare(config, data)
    losses = {}
    for weight in (0.0, 1.0):
        context = LocalContext(tmp_path / str(weight))
        fit(config.model_copy(update={"contrast": weight}), shapes, split_S, context)
        losses[weight] = [point["loss"] for point in context.points]
    first, last = (losses[1.0][epoch] - losses[0.0][epoch] for epoch in (0, -1))
    assert 1 < first < 2 * np.log(15)
    assert last < 0.8 * first


@pytest.mark.parametrize("stop_after", [6, 15])
def test_an_interrupted_training_ends_with_the_same_files(data, tmp_path, trained, stop_after):
    """The first is stopped in the autoencoder's second epoch, the other in the single view's."""
    config = SMALL.model_copy(update={"task": "both"})
    with pytest.raises(JobStopped):
        train(config, data, Context(tmp_path, stop_after))
    bundle = train(config, data, LocalContext(tmp_path))
    for name in ("encoder.onnx", "decoder.onnx", "classifier.onnx", "single_view.onnx"):
        assert Bundle.open(bundle).manifest.files[name].sha256 == Bundle.open(trained).manifest.files[name].sha256


def test_a_training_replaces_its_own_part_and_keeps_the_champions_other(data, tmp_path, trained):
    old = Bundle.open(trained).manifest.files
    config = SMALL.model_copy(update={"task": "single-view", "single_view": "atlasnet", "seed": 1})
    new = Bundle.open(train(config, data, Context(tmp_path / "view", champion=trained)))
    assert new.manifest.files["encoder.onnx"] == old["encoder.onnx"]
    assert new.manifest.files["single_view.onnx"] != old["single_view.onnx"]
    assert new.manifest.comparison is not None
    assert new.manifest.comparison.metric == "view_chamfer_reduction"
    assert "Carried over" in new.path("card.md").read_text()
    config = SMALL.model_copy(update={"seed": 1, "encoder": "dgcnn"})
    new = Bundle.open(train(config, data, Context(tmp_path / "auto", champion=trained)))
    assert new.manifest.files["encoder.onnx"] != old["encoder.onnx"]
    assert new.manifest.files["single_view.onnx"] == old["single_view.onnx"]
    assert new.manifest.constants["carried_over"] == ["the single-view network"]
    assert new.manifest.comparison is not None
    assert new.manifest.comparison.metric == "chamfer_reduction"
    assert "view_chamfer" in new.manifest.metrics


def test_a_single_view_network_alone_needs_a_champion(data, tmp_path):
    config = SMALL.model_copy(update={"task": "single-view", "single_view_epochs": 1})
    with pytest.raises(NoAutoencoder, match="task=both"):
        train(config, data, LocalContext(tmp_path))


def test_a_candidate_beside_itself_is_no_better(data, tmp_path, trained):
    found = compare(trained, trained, data, LocalContext(tmp_path))
    assert found.difference.value == 0
    assert found.difference.low == found.difference.high == 0


def test_a_data_set_without_classes_makes_a_bundle_without_classifier(tmp_path):
    write_set(tmp_path / "set.npz", named=False)
    bundle = Bundle.open(
        train(SMALL.model_copy(update={"decoder": "dense"}), tmp_path / "set.npz", LocalContext(tmp_path))
    )
    assert set(bundle.manifest.graphs) == {"encoder", "decoder"}
    calibration = load_calibration(bundle.path(FILE))
    assert calibration.labels == ()
    assert calibration.source is None
    assert set(bundle.manifest.metrics) == {"chamfer"}


def test_drawn_surfaces_stay_on_the_surface_and_differ():
    random = np.random.default_rng(0)
    first, second = (drawn_source(SMALL, random) for _ in range(2))
    assert first.shape == (16, 2)
    assert np.abs(first).max() <= 0.3
    assert (first != second).any()
    ball = drawn_source(SMALL.model_copy(update={"source": "sphere"}), random)
    np.testing.assert_allclose(np.linalg.norm(ball, axis=1), 0.3, rtol=1e-5)


def test_the_learning_rate_rises_and_falls():
    shares = [learning_rate_share(share) for share in np.linspace(0, 1, 101)]
    assert max(shares) == pytest.approx(1, abs=0.02)
    assert shares[-1] == pytest.approx(0, abs=1e-9)
    assert min(shares[:100]) > 0


@pytest.mark.parametrize("points", [[16, 64], [128, 64], [64, 100_000]])
def test_impossible_point_counts_are_refused(points):
    with pytest.raises(ConfigInvalid, match="points"):
        read_config(TrainConfig, {"points": points})


def test_it_runs_from_a_shell(data, tmp_path, monkeypatch, capsys):
    settings = json.loads(SMALL.model_dump_json())
    settings |= {"epochs": 1, "points": "32,64"}
    values = [f"{name}={value}" for name, value in settings.items()]
    monkeypatch.setattr("sys.argv", ["train", "--data", str(data), "--out", str(tmp_path), "--set", *values])
    recipe.main()
    assert Bundle.open(tmp_path / "artefacts" / "bundle").manifest.name == "pointcloud"
    assert "bundle" in capsys.readouterr().out
