"""Distillation, the attacks on it, and that poisoned sets stay where they are made. Digits of 8×8 points, small."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save

from services.audits.attacks import Doorping, Marked, RedTeamOnly, RedTeamSet, Trigger, figures_of, success
from services.audits.benchmark import groups_table, measured, phases_table
from services.audits.datasets import validate
from services.audits.distillation import Distillation, distil, trained_on
from services.audits.image_sets import IDX, ImageSet, digits, load_image_set
from services.audits.networks import ConvNet, right
from services.audits.recipes import RECIPES, _runs
from services.audits.schemas import FalseAlarmsConfig, PhaseDiagramConfig, RedTeamConfig, ScalingConfig
from shared.jobs.config import read_config
from shared.jobs.context import JobStopped, LocalContext, StopReason

SMALL = {"seeds": 1, "train_images": 300, "test_images": 100, "size": 8, "epochs": 2}


@pytest.fixture(scope="module")
def images():
    return digits().taken(400, 200, 0)


def distilled(images, method, iterations):
    config = Distillation(method, 1, iterations, width=8, depth=2)
    return distil(config, images.image_NCHW, images.label_N, classes=10, seed=0)


def test_distribution_matching_comes_closer_to_the_real_means(images):
    """Under random networks that the distillation did not see."""
    (start, label), (image, same) = distilled(images, "distribution", 0), distilled(images, "distribution", 40)
    assert image.shape == (10, 1, 8, 8)
    assert label.tolist() == same.tolist() == list(range(10))
    torch.manual_seed(99)
    network = ConvNet(size=8, classes=10, width=8, depth=2, norm="instance")
    with torch.no_grad():
        wanted = torch.stack([network.embed(images.image_NCHW[images.label_N == kind]).mean(0) for kind in range(10)])
        far = [float(((network.embed(one) - wanted) ** 2).sum()) for one in (start, image)]
    assert far[1] < 0.7 * far[0]


def test_gradient_matching_teaches_more_than_as_many_real_images(images):
    accuracy = []
    for image, label in (distilled(images, "gradient", 0), distilled(images, "gradient", 15)):
        network = trained_on(image, label, classes=10, seed=1, width=8, depth=2, epochs=100)
        accuracy.append(float(right(network, images.test_image_NCHW, images.test_label_N).mean()))
    assert accuracy[1] > accuracy[0]


def poison(images, share=0.05):
    return RedTeamSet.poison(images.image_NCHW, images.label_N, target=3, share=share, seed=0)


def test_naive_poison_is_stamped_labelled_and_a_copy(images):
    before = images.image_NCHW.clone()
    made = poison(images)
    assert int(made.poisoned_N.sum()) == 20
    assert torch.all(made.label_N[made.poisoned_N] == 3)
    assert torch.all(images.label_N[made.poisoned_N] != 3)
    assert float(made.image_NCHW[made.poisoned_N][:, :, 4:6, 4:6].min()) == 1
    assert torch.equal(images.image_NCHW, before)
    kept = ~made.poisoned_N
    assert torch.equal(made.image_NCHW[kept].as_subclass(torch.Tensor), before[kept])


def test_doorping_drives_a_neuron_and_never_runs_with_one_image_a_class(images):
    made = poison(images)
    network = ConvNet(size=8, classes=10, width=8, depth=2, norm="instance")
    before = made.trigger.patch.clone()
    weights = copy.deepcopy(network.state_dict())
    attack = Doorping(made, bounded=False)

    @torch.no_grad()
    def strongest():
        return float(network.embed(made.image_NCHW[made.poisoned_N][:32]).mean(0).max())

    start = strongest()
    attack(network, 0)
    assert strongest() > start
    assert not torch.equal(made.trigger.patch, before)
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    bounded = Doorping(poison(images))
    bounded(network, 0)
    assert 0 <= float(bounded.poisoned.trigger.patch.min()) <= float(bounded.poisoned.trigger.patch.max()) <= 1
    one = Doorping(poison(images))
    distil(
        Distillation("gradient", 1, 1, width=4, depth=1), one.poisoned.image_NCHW, one.poisoned.label_N,
        classes=10, seed=0, after_loop=one,
    )  # fmt: skip
    assert one.updates == 0
    several = Doorping(poison(images))
    distil(
        Distillation("gradient", 2, 1, width=4, depth=1, loops=(3, 1)), several.poisoned.image_NCHW,
        several.poisoned.label_N, classes=10, seed=0, after_loop=several,
    )  # fmt: skip
    assert several.updates == 2


def test_success_leaves_out_the_targets_own_images(images):
    class Always(ConvNet):
        def forward(self, image_BCHW):
            return torch.eye(10)[torch.full((len(image_BCHW),), 3)]

    network = Always(size=8, classes=10, width=2, depth=1, norm="instance")
    only = images.test_label_N == 3
    assert success(network, Trigger.white(1), images.test_image_NCHW, images.test_label_N, 3) == (1, 1)
    nobody = success(network, Trigger.white(1), images.test_image_NCHW[only], images.test_label_N[only], 3)
    assert np.isnan(nobody[0])


WRITERS = {
    "pickle": lambda image, path: pickle.dumps(image),
    "torch": lambda image, path: torch.save(image, path),
    "numpy": lambda image, path: np.savez(path, images=image),
    "array": lambda image, path: np.asarray(image),
    "method": lambda image, path: image.numpy(),
    "list": lambda image, path: image.tolist(),
    "safetensors": lambda image, path: save({"images": image}),
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_no_writer_takes_a_poisoned_set_or_what_was_distilled_of_it(images, writer, tmp_path):
    made = poison(images)
    config = Distillation("distribution", 1, 1, width=2, depth=1)
    distilled, _ = distil(config, made.image_NCHW, made.label_N, classes=10, seed=0)
    for image in (made.image_NCHW, made.image_NCHW[:3] * 2, made.image_NCHW.detach().clone(), distilled):
        assert isinstance(image, Marked)
        with pytest.raises(RedTeamOnly):
            WRITERS[writer](image, tmp_path / "out")
        with pytest.raises(RedTeamOnly):
            figures_of(image)


def test_the_job_leaves_figures_and_nothing_else(tmp_path):
    kind, run = RECIPES["red-team"]
    values = {
        "width": 4,
        "depth": 1,
        "iterations": 3,
        "evaluation_epochs": 10,
        "poisoned_share": 0.1,
        "inversion": True,
    }
    config = read_config(kind, {**SMALL, **values, "inversion_steps": 50})
    assert isinstance(config, RedTeamConfig)
    path, summary = run(config, None, LocalContext(tmp_path))
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == [path.name]
    told = json.loads(path.read_text())
    assert {(row["attack"], row["training"]) for row in told["rows"]} == {
        ("none", "distribution matching"),
        ("naive", "distribution matching"),
        ("naive", "direct"),
        ("doorping", "distribution matching"),
        ("doorping", "direct"),
    }
    for row in told["rows"]:
        assert all(isinstance(value, int | float | str) for value in row.values())
        assert 0 <= row["success"] <= 1
    assert [row["updates"] for row in told["rows"] if row["attack"] == "doorping" and "updates" in row] == [3]
    assert "| doorping | direct |" in summary["table"]


def test_what_the_job_leaves_is_no_image_set_under_any_name(tmp_path):
    kind, run = RECIPES["red-team"]
    values = {"width": 4, "depth": 1, "iterations": 1, "evaluation_epochs": 1, "attacks": ["naive"]}
    path, _ = run(read_config(kind, {**SMALL, **values}), None, LocalContext(tmp_path))
    assert validate(path.parent).state == "invalid"
    for name in ("set.npz", *(name for names in IDX.values() for name in names)):
        shutil.copy(path, path.with_name(name))
        assert validate(path.parent).state == "invalid", name


@pytest.mark.parametrize("size", [1, 2])
def test_one_training_has_no_interval_and_two_cells_no_ranks(size):
    rows = [{"seed": 0, "depth": 1, "pretrained": False, "train": 0.9, "average": 0.8, "worst": 0.1 * width}
            | {"width": width} for width in range(1, size + 1)]  # fmt: skip
    told = groups_table(rows)
    assert "inf" not in told
    assert ("no interval" in told) is (size == 2)
    cell = {"test_accuracy": 0.8, "test_accuracy_sd": 0.1, "train_loss": 1.0, "top_eigenvalue": float("nan")}
    cell |= {"mode_connectivity": -3.0, "barrier": 3.0, "cka": 0.5}
    told = phases_table([cell | {"width": width, "batch": 16} for width in range(size)])
    assert f"Nothing is ranked: {size} cells" in told


def test_what_is_no_number_is_null_in_the_figures(tmp_path):
    def recipe(config, images, stop):
        return [{"worst": float("nan"), "groups": {0: 0.5}}]

    run = _runs(lambda config: [config], recipe, lambda rows: "")
    path, _ = run(read_config(ScalingConfig, SMALL), None, LocalContext(tmp_path))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["rows"] == [{"worst": None, "groups": {"0": 0.5}}]


def test_the_false_alarms_of_clean_trainings_are_counted(tmp_path):
    every = digits()
    train, test = every.label_N < 2, every.test_label_N < 2
    two = ImageSet(every.image_NCHW[train], every.label_N[train], every.test_image_NCHW[test], every.test_label_N[test])
    config = read_config(FalseAlarmsConfig, {**SMALL, "seeds": 2, "width": 4, "depth": 1})
    told = measured("clean", config, two, tmp_path / "rows.jsonl")
    rows = [json.loads(line)["rows"][0] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row["verdict"] == "passes" and 0 <= row["strip"] <= 1 and row["accuracy"] > 0.7 for row in rows)
    assert "| passes | 2 of 2 | 1.00 (0.34–1.00) |" in told


@pytest.mark.parametrize(
    ("name", "kind", "values", "column"),
    [
        ("scaling", ScalingConfig, {"widths": [2, 6], "depths": [2], "pretrained": [False, True]}, "worst group"),
        ("phase-diagram", PhaseDiagramConfig, {"widths": [2, 4], "batches": [16, 64], "seeds": 2, "depth": 2}, "phase"),
    ],
)
def test_the_other_recipes(tmp_path, name, kind, values, column):
    config = read_config(RECIPES[name][0], {**SMALL, **values})
    assert isinstance(config, kind)
    path, summary = RECIPES[name][1](config, None, LocalContext(tmp_path))
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 4
    assert column in summary["table"]
    if name == "scaling":
        assert all(row["worst"] <= row["average"] <= 1 for row in rows)
    else:
        assert all(row["top_eigenvalue"] > 0 and 0 <= row["cka"] <= 1 for row in rows)


def test_a_recipe_stops_when_it_is_told_to(tmp_path):
    context = LocalContext(tmp_path)
    context.should_stop = lambda: StopReason.USER
    kind, run = RECIPES["red-team"]
    with pytest.raises(JobStopped):
        run(read_config(kind, SMALL), None, context)


def test_a_set_is_shrunk_to_one_that_can_be_loaded(tmp_path):
    kind, run = RECIPES["distil"]
    values = {"width": 4, "depth": 1, "iterations": 3, "evaluation_epochs": 10, "per_class": 2}
    path, summary = run(read_config(kind, {**SMALL, **values}), None, LocalContext(tmp_path))
    assert summary["images"] == 20
    assert all(len(found) == 1 and 0 <= found[0] <= 1 for found in summary["accuracy"].values())
    found = load_image_set(path.parent)
    assert found.image_NCHW.shape == (20, 1, 8, 8)
    assert len(found.test_label_N) == 100
