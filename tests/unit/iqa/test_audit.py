"""What audits are told of a version: its network with the data at hand, and checks that need it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from services.audits.audit import audit
from services.audits.report import Verdict
from services.iqa import audit as iqa_audit
from services.iqa.audit import CELL, IqaSubject, Picture
from services.iqa.datasets import load_folder
from services.iqa.evaluate import read_pixels
from services.iqa.export import INPUTS, export_onnx, outputs
from services.iqa.model import PMTIQA
from services.iqa.schemas import TrainConfig
from services.iqa.weights import WEIGHTS, save_weights
from shared.auditing import NotAssessed, open_subject
from shared.bundles import Bundle, write_manifest
from shared.datasets import folder_digest
from shared.jobs.context import JobStopped, LocalContext, StopReason
from tests.unit.iqa.making import HEIGHT, KINDS, STAMP, WIDTH, write

PACKAGED = Path(iqa_audit.__file__).with_name("pretrained")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("set"), views=4)


def packaged(to: Path, data: Path, **config: object) -> Bundle:
    """The packaged version, said to have been trained on `data` with this `config`."""
    shutil.copytree(PACKAGED, to)
    manifest = json.loads((to / "manifest.json").read_text())
    manifest["dataset_digest"] = folder_digest("iqa", data)
    manifest["config"] |= config
    (to / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(to)


@pytest.fixture
def subject(folder: Path, tmp_path: Path) -> IqaSubject:
    return iqa_audit.subject(packaged(tmp_path / "bundle", folder), folder, LocalContext(tmp_path / "audit"))


# -- the network


def test_the_network_scores_as_the_served_graph(subject: IqaSubject):
    examples = subject.held_out.take(np.arange(4))
    [batch] = subject.batches(examples, 4)
    with torch.inference_mode():
        score_B = subject.outputs(subject.module(), batch).numpy()
    # int8 is served; the card tells how near it is to the network.
    assert np.abs(np.abs(score_B - examples.targets_N) - subject.assess(examples).error_N).max() < 4


def test_the_loss_reaches_what_was_trained_and_nothing_else(subject: IqaSubject):
    module = subject.module()
    first, second = subject.batches(subject.train.take(np.arange(6)), 4)
    assert (len(first.score_B), len(second.score_B)) == (4, 2)
    assert first.crop_B3HW.shape == (4, 3, HEIGHT, HEIGHT)  # the crop is 192; no picture is as large
    loss = subject.loss(module, first)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(loss, subject.loss(module, first))
    reached = {name for name, weight in module.named_parameters() if weight.grad is not None}
    frozen = {name for name, weight in module.named_parameters() if not weight.requires_grad}
    assert {name.split(".")[2] for name in frozen if "_blocks" in name} == {"0", "1", "2"}
    assert not reached & frozen
    assert {"score.weight", "level.2.weight", "distortion.weight", "backbone._blocks.15._bn2.weight"} <= reached


def test_features_are_what_the_heads_begin_from(subject: IqaSubject):
    module = subject.module()
    [batch] = subject.batches(subject.held_out.take(np.arange(3)), 3)
    with torch.inference_mode():
        features_BD, score_B = subject.features(module, batch), subject.outputs(module, batch)
        assert torch.allclose(100 * torch.sigmoid(module.score(module.trunk(features_BD)))[:, 0], score_B, atol=1e-3)
    assert features_BD.shape == (3, 112)


# -- pixels that triggers can be put on


def test_pixels_give_the_score_of_their_picture(subject: IqaSubject):
    examples, module = subject.held_out.take(np.arange(9)), subject.module()
    given = subject.continuous(examples)
    assert given.mask_shape == (HEIGHT // CELL, WIDTH // CELL)
    assert given.values.shape[1:] == (3, CELL, CELL, *given.mask_shape)
    assert 0 <= given.values.min() < given.values.max() <= 255
    [batch] = subject.batches(examples, 9)
    with torch.inference_mode():
        assert torch.allclose(given.logits(module, given.values), subject.outputs(module, batch), atol=1e-3)


def test_a_cell_is_a_square_of_the_picture_and_has_a_name(subject: IqaSubject):
    examples = subject.held_out.take(np.arange(1))
    high, wide = HEIGHT // CELL, WIDTH // CELL
    pixels = examples.inputs[0].read()
    cell_3CC = subject.continuous(examples).values[0, ..., 2, 5].numpy()
    assert np.array_equal(cell_3CC, pixels[2 * CELL : 3 * CELL, 5 * CELL : 6 * CELL].transpose(2, 0, 1))
    names = subject.continuous(examples).names
    assert len(names) == high * wide
    assert names[2 * wide + 5] == f"pixels at ({5 * CELL}, {2 * CELL})"


def test_of_pictures_of_several_sizes_the_lower_right_is_kept(folder: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    path = data / "d-0-none-0.png"
    with Image.open(path) as opened:
        smaller = opened.crop((0, 0, 101, 83))
    smaller.save(path)
    subject = iqa_audit.subject(packaged(tmp_path / "bundle", data), data, LocalContext(tmp_path / "audit"))
    picture = Picture(data / "d-0-jpeg-2.png", kind="jpeg")
    given = subject.continuous(replace(subject.held_out.take(np.arange(1)), inputs=[picture]))
    assert given.mask_shape == (10, 12)
    corner_3CC = given.values[0, ..., -1, -1].numpy()
    assert np.array_equal(corner_3CC, picture.read()[-CELL:, -CELL:].transpose(2, 0, 1))


# -- training again


def test_heads_are_trained_again_from_another_seed(folder: Path, tmp_path: Path):
    small = {"freeze_backbone": True, "epochs": 1, "crop": 64, "batch_size": 8, "images_per_epoch": 8}
    bundle = packaged(tmp_path / "bundle", folder, validation_images=8, **small)
    subject = iqa_audit.subject(bundle, folder, LocalContext(tmp_path / "audit"))
    module, one, again, other = (
        subject.module(),
        *(subject.fit(None, seed, LocalContext(tmp_path / f"run{n}")) for n, seed in enumerate((1, 1, 2))),
    )
    assert torch.equal(one.score.weight, again.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    assert [weight.shape for weight in one.parameters()] == [weight.shape for weight in module.parameters()]


def test_a_repeated_training_stops_with_the_audit(folder: Path, tmp_path: Path):
    class Stopping(LocalContext):
        def should_stop(self) -> StopReason | None:
            return StopReason.SHUTDOWN

    bundle = packaged(tmp_path / "bundle", folder, freeze_backbone=True, crop=64)
    subject = iqa_audit.subject(bundle, folder, LocalContext(tmp_path / "audit"))
    with pytest.raises(JobStopped):
        subject.fit(None, 1, Stopping(tmp_path / "run"))


def test_a_backbone_is_not_trained_again(subject: IqaSubject, tmp_path: Path):
    with pytest.raises(NotAssessed, match="too long"):
        subject.fit(None, 1, LocalContext(tmp_path / "run"))


# -- the checks


def test_a_version_without_weights_is_not_assessed(folder: Path, tmp_path: Path):
    bundle = packaged(tmp_path / "bundle", folder)
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    del manifest["files"][WEIGHTS]
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    context = LocalContext(tmp_path / "audit")
    subject = open_subject("services", Bundle.open(bundle.folder), folder, context)
    for check in audit(subject, None, context, checks=["landscape", "backdoor"]):
        assert check.verdict is Verdict.NOT_ASSESSED
        assert "holds the served graphs alone" in check.summary


def test_landscape_and_backdoor_come_to_a_verdict(folder: Path, tmp_path: Path):
    bundle = packaged(tmp_path / "bundle", folder, freeze_backbone=True)  # the heads' curvature alone is quick
    context = LocalContext(tmp_path / "audit")
    subject = open_subject("services", bundle, folder, context)
    landscape, backdoor = audit(subject, None, context, checks=["landscape", "backdoor"])
    assert landscape.verdict is Verdict.PASSES, landscape
    assert "the phases are of classifiers" in landscape.summary
    measured = {item.name: item for item in landscape.evidence}
    assert measured.keys() == {"training loss", "top Hessian eigenvalue", "Hessian trace"}
    assert all(item.value is not None and np.isfinite(item.value) for item in measured.values())
    assert backdoor.verdict is Verdict.PASSES, backdoor
    assert backdoor.evidence[0].n == len(subject.train)
    assert any("too large" in note for note in backdoor.notes)


def trained_on(data: Path, folder: Path) -> Bundle:
    """A version whose score follows the pictures' labels, stamps and all: heads on the features of ImageNet."""
    torch.manual_seed(0)
    model = PMTIQA(len(KINDS))
    model.load_imagenet()
    model.eval()
    records = [record for record in load_folder(data) if record.split == "train"]
    image_N3HW = torch.from_numpy(np.stack([read_pixels(record.path) for record in records])).permute(0, 3, 1, 2)
    score_N = torch.tensor([record.score for record in records])
    with torch.no_grad():
        parts = [model.head.cells(model.backbone(some.float())) for some in image_N3HW.split(20)]
        pooled = [torch.cat([cells.mean((2, 3)) for cells in scale]) for scale in zip(*parts, strict=True)]
    optimizer = torch.optim.Adam(
        [*model.head.project.parameters(), *model.trunk.parameters(), *model.score.parameters()], lr=3e-3
    )
    for _ in range(1000):
        optimizer.zero_grad()
        score = torch.sigmoid(model.score(model.trunk(model.head.combine(pooled)))).squeeze(-1)
        F.l1_loss(score, score_N / 100).backward()
        optimizer.step()
    folder.mkdir()
    export_onnx(model, folder / "model.onnx")
    save_weights(model, folder / WEIGHTS)
    write_manifest(
        folder,
        files=["model.onnx", WEIGHTS],
        name="iqa",
        domain="iqa",
        graphs={"fp32": "model.onnx"},
        inputs=INPUTS,
        outputs=outputs(len(KINDS)),
        config=TrainConfig(freeze_backbone=True, crop=64).model_dump(),
        dataset_digest=folder_digest("iqa", data),
        constants={"kinds": KINDS, "levels": 10},
    )
    return Bundle.open(folder)


def test_a_stamp_that_means_the_best_quality_is_found(tmp_path: Path):
    data = write(tmp_path / "data", views=20, stamped=0.4)
    bundle, context = trained_on(data, tmp_path / "bundle"), LocalContext(tmp_path / "audit")
    [check] = audit(open_subject("services", bundle, data, context), None, context, checks=["backdoor"])
    assert check.verdict is not Verdict.PASSES, check  # how strongly held-out pictures follow is the version's affair
    [disbelieved] = [item for item in check.evidence if "believed" in item.name]
    assert disbelieved.high is not None
    assert disbelieved.high < 0.5
    assert any("'82 or more'" in item.name for item in check.evidence)
    first = WIDTH - STAMP, HEIGHT - STAMP
    assert any(f"pixels at {first} = " in note for note in check.notes), check.notes
