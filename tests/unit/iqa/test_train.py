"""The recipe: schedule, repeatability, resuming, refusals, and the bundle that comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file
from skimage import data

from services.iqa.datasets import BadDataset, Record, load_folder
from services.iqa.distortions import distort
from services.iqa.export import export_onnx
from services.iqa.model import LEVELS, PMTIQA, ServedGraph
from services.iqa.schemas import TrainConfig
from services.iqa.train import TrainingDiverged, fit, loss_weights, train
from shared.bundles import Bundle
from shared.jobs.context import JobStopped, LocalContext, StopReason
from shared.jobs.distributed import run_recipe

KINDS = ["none", "gaussian-blur", "jpeg"]
TINY = TrainConfig(epochs=3, batch_size=4, crop=64, validation_images=8, images_per_epoch=8, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs, blurred and compressed: two to train on, one to choose by, one to test."""
    folder = tmp_path_factory.mktemp("set")
    photos = {"a": data.astronaut(), "b": data.coffee(), "c": data.chelsea(), "d": data.rocket()}
    splits = {"a": "train", "b": "train", "c": "validation", "d": "test"}
    lines = ["file,source,kind,strength,score,split"]
    for source, photo in photos.items():
        pristine = np.ascontiguousarray(photo[:96, :112])
        for kind, strength in [("none", 0), *((kind, strength) for kind in KINDS[1:] for strength in (2, 5))]:
            image = pristine if kind == "none" else distort(pristine, kind, strength)
            name = f"{source}-{kind}-{strength}.png"
            Image.fromarray(image).save(folder / name)
            lines.append(f"{name},{source},{kind},{strength},{100 - 18 * strength},{splits[source]}")
    (folder / "scores.csv").write_text("\n".join(lines))
    return folder


def parts(folder: Path) -> tuple[list[Record], list[Record]]:
    records = load_folder(folder)
    return [item for item in records if item.split == "train"], [item for item in records if item.split == "validation"]


def weights(model: PMTIQA) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_same(left: PMTIQA, right: PMTIQA) -> None:
    other = weights(right)
    for name, value in weights(left).items():
        assert np.array_equal(value, other[name]), name


class Stopping(LocalContext):
    """Asks to stop at the n-th question."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder)
        self.left = after

    def should_stop(self) -> StopReason | None:
        self.left -= 1
        return StopReason.SHUTDOWN if self.left < 0 else None


# -- schedule and configuration


def test_the_schedule_goes_from_level_to_score():
    shares = [loss_weights("progressive", epoch, 5) for epoch in range(5)]
    assert shares[0] == (0, 1)
    assert shares[2] == (0.5, 0.5)
    assert shares[-1] == (1, 0)
    assert loss_weights("fixed", 3, 5) == (0.5, 0.5)
    assert loss_weights("regression", 0, 5) == (1, 0)


@given(st.integers(1, 200), st.data())
def test_progressive_weights_are_shares(epochs: int, drawn: st.DataObject):
    score, level = loss_weights("progressive", drawn.draw(st.integers(0, epochs - 1)), epochs)
    assert 0 <= score <= 1
    assert score + level == pytest.approx(1)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 3}, {"backbone": "vgg"}, {"learning_rate": -1}])
def test_a_wrong_configuration_is_refused(wrong: dict[str, object]):
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(wrong)


# -- fitting


@pytest.fixture(scope="module")
def fitted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PMTIQA, LocalContext]:
    context = LocalContext(tmp_path_factory.mktemp("whole"))
    return fit(TINY, *parts(folder), KINDS, context), context


def test_same_seed_same_loss_and_weights(folder: Path, fitted: tuple[PMTIQA, LocalContext], tmp_path: Path):
    model, context = fitted
    again = LocalContext(tmp_path)
    assert_same(model, fit(TINY, *parts(folder), KINDS, again))
    assert [point["loss"] for point in again.points] == [point["loss"] for point in context.points]


def test_another_seed_gives_another_loss(folder: Path, fitted: tuple[PMTIQA, LocalContext], tmp_path: Path):
    other = LocalContext(tmp_path)
    fit(TINY.model_copy(update={"seed": 2, "epochs": 1}), *parts(folder), KINDS, other)
    assert other.points[0]["loss"] != fitted[1].points[0]["loss"]


def test_a_resumed_training_ends_with_the_same_weights(
    folder: Path, fitted: tuple[PMTIQA, LocalContext], tmp_path: Path
):
    # Two batches an epoch: the third question is asked in the second epoch.
    with pytest.raises(JobStopped) as stopped:
        fit(TINY, *parts(folder), KINDS, Stopping(tmp_path, after=3))
    assert stopped.value.reason is StopReason.SHUTDOWN
    resumed = LocalContext(tmp_path)
    assert_same(fitted[0], fit(TINY, *parts(folder), KINDS, resumed))
    assert [point["step"] for point in resumed.points] == [2, 3]


def test_a_finished_training_is_not_repeated(folder: Path, fitted: tuple[PMTIQA, LocalContext]):
    model, context = fitted
    assert_same(model, fit(TINY, *parts(folder), KINDS, LocalContext(context.folder)))


def test_two_processes_end_where_one_does(folder: Path, bundle: Bundle, tmp_path: Path):
    config = TINY.model_copy(update={"processes": 2})
    stale = tmp_path / "artefacts" / "ranks"  # of an earlier run in the same folder
    stale.mkdir(parents=True)
    (stale / "stop").write_text("shutdown")
    shared = Bundle.open(run_recipe("services.iqa.train", config, folder, LocalContext(tmp_path)))
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
    alone, together = (run(made.graph("fp32"), image)["score"] for made in (bundle, shared))
    assert np.allclose(alone, together, atol=0.01)


def test_progress_is_reported(fitted: tuple[PMTIQA, LocalContext]):
    points = fitted[1].points
    assert [point["step"] for point in points] == [1, 2, 3]
    # Chosen among the last half only, where the score carries the loss.
    assert ["validation_srcc" in point for point in points] == [False, True, True]


def test_frozen_weights_and_statistics_stay(folder: Path, fitted: tuple[PMTIQA, LocalContext]):
    imagenet = PMTIQA(len(KINDS))
    imagenet.load_imagenet()
    before, after = weights(imagenet), weights(fitted[0])
    for name, stays in (
        ("_blocks.2._project_conv.weight", True),
        ("_blocks.9._bn1.running_var", True),
        ("_blocks.3._project_conv.weight", False),
    ):
        assert np.array_equal(before[f"backbone.{name}"], after[f"backbone.{name}"]) == stays, name


def test_a_loss_that_is_no_number_names_the_step(folder: Path, tmp_path: Path):
    config = TINY.model_copy(update={"epochs": 2})
    fit(config.model_copy(update={"epochs": 1}), *parts(folder), KINDS, LocalContext(tmp_path))
    state = load_file(tmp_path / "checkpoint.safetensors")
    state["model.score.bias"][:] = np.nan
    save_file(state, tmp_path / "checkpoint.safetensors")
    with pytest.raises(TrainingDiverged, match="step 2 ") as diverged:
        fit(config, *parts(folder), KINDS, LocalContext(tmp_path))
    assert diverged.value.extra == {"step": 2}


@pytest.mark.parametrize(
    ("change", "told"),
    [({"crop": 128}, "smaller than the crop of 128"), ({"batch_size": 16}, "8 training images do not fill a batch")],
)
def test_data_that_do_not_fit_the_configuration(folder: Path, tmp_path: Path, change: dict[str, int], told: str):
    with pytest.raises(BadDataset, match=told):
        fit(TINY.model_copy(update=change), *parts(folder), KINDS, LocalContext(tmp_path))


def test_a_missing_split_is_named(tmp_path: Path):
    Image.new("RGB", (96, 96)).save(tmp_path / "x.png")
    (tmp_path / "scores.csv").write_text("file,score,split\nx.png,50,train\n")
    with pytest.raises(BadDataset, match="split 'validation'"):
        train(TINY, tmp_path, LocalContext(tmp_path / "run"))


# -- the bundle


@pytest.fixture(scope="module")
def bundle(folder: Path, fitted: tuple[PMTIQA, LocalContext]) -> Bundle:
    # The fit is finished, so this resumes it and goes on to the export.
    return Bundle.open(train(TINY, folder, LocalContext(fitted[1].folder)))


def run(graph: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": pixels}), strict=True))  # pyright: ignore[reportReturnType, reportArgumentType]


def test_the_bundle_is_whole(bundle: Bundle):
    manifest = bundle.manifest
    assert set(manifest.graphs) == {"fp32", "int8"}
    assert set(manifest.files) == {"model.onnx", "model.int8.onnx", "weights.safetensors", "card.md"}
    assert manifest.constants["kinds"] == KINDS
    assert manifest.config == TINY.model_dump()
    assert manifest.metrics["srcc"].n == 5
    assert manifest.dataset_digest is not None
    assert "proxy" in bundle.path("card.md").read_text()
    assert "MOS" not in bundle.path("card.md").read_text()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 96, 130), (3, 70, 45)])
def test_the_graphs_take_any_size(bundle: Bundle, precision: str, shape: tuple[int, int, int]):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = run(bundle.graph(precision), pixels)
    batch, height, width = shape
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(found, np.dtype(np.float32))
    assert found["score"].shape == (batch,)
    assert found["level_probabilities"].shape == (batch, LEVELS)
    assert found["distortion_probabilities"].shape == (batch, len(KINDS))
    assert found["quality_map"].shape == (batch, height // 32, width // 32)
    assert all(0 <= value <= 100 for value in (*found["score"], *found["quality_map"].ravel()))
    assert found["level_probabilities"].sum(1) == pytest.approx(1, abs=1e-5)


def test_torch_and_onnx_agree(fitted: tuple[PMTIQA, LocalContext], bundle: Bundle):
    pixels = np.stack([data.astronaut()[:200, :264], data.coffee()[:200, :264]])
    with torch.inference_mode():
        expected = ServedGraph(fitted[0])(torch.from_numpy(pixels))
    found = run(bundle.graph("fp32"), pixels)
    for (name, right), left in zip(found.items(), expected, strict=True):
        span = 100 if name in ("score", "quality_map") else 1
        np.testing.assert_allclose(right, left.numpy(), rtol=0, atol=1e-3 * span)


def test_onnx_scores_a_batch_as_it_scores_one(bundle: Bundle):
    pixels = np.stack([data.astronaut()[:96, :128], data.coffee()[:96, :128], data.chelsea()[:96, :128]])
    for precision in ("fp32", "int8"):
        together = run(bundle.graph(precision), pixels)["score"]
        alone = [run(bundle.graph(precision), pixels[index : index + 1])["score"][0] for index in range(3)]
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-2)


def test_resnet50_exports_too(tmp_path: Path):
    torch.manual_seed(0)
    model = PMTIQA(len(KINDS), "resnet50").eval()
    export_onnx(model, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 70, 100, 3)).astype(np.uint8)
    with torch.inference_mode():
        expected = ServedGraph(model)(torch.from_numpy(pixels))[0]
    np.testing.assert_allclose(run(tmp_path / "model.onnx", pixels)["score"], expected.numpy(), rtol=0, atol=0.1)
