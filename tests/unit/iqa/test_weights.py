"""What a bundle carries of its network: with the graph, exactly the network that was trained."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file
from skimage import data

from services.iqa import weights
from services.iqa.export import OUTPUT_NAMES, export_onnx
from services.iqa.model import PMTIQA, ServedGraph
from services.iqa.schemas import TrainConfig
from services.iqa.weights import WEIGHTS, load_network, recover, save_weights
from shared.bundles import Bundle, write_manifest
from shared.problems import InputError

PACKAGED = Path(weights.__file__).with_name("pretrained")


def trained(config: TrainConfig) -> PMTIQA:
    """A network whose every weight and statistic is its own, and one of whose channels is dead."""
    torch.manual_seed(0)
    model = PMTIQA(3, config.backbone, config.multi_scale)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 0.2 * torch.rand_like(value)).add_(0.01 * torch.rand_like(value))
    norm = next(part for name, part in model.named_modules() if name.endswith(("_blocks.4._bn1", "layer2.1.bn2")))
    assert isinstance(norm, torch.nn.BatchNorm2d)
    norm.weight.data[0] = 0
    return model.eval()


def bundle_of(model: PMTIQA, folder: Path) -> Bundle:
    folder.mkdir()
    export_onnx(model, folder / "model.onnx")
    save_weights(model, folder / WEIGHTS)
    write_manifest(
        folder,
        files=["model.onnx", WEIGHTS],
        name="iqa",
        domain="iqa",
        graphs={"fp32": "model.onnx"},
        inputs=[],
        outputs=[],
        constants={"kinds": ["none", "a", "b"]},
    )
    return Bundle.open(folder)


@pytest.mark.parametrize(
    "config",
    [TrainConfig(), TrainConfig(multi_scale=False), TrainConfig(backbone="resnet50")],
    ids=["", "last", "resnet"],
)
def test_what_comes_out_is_what_was_trained(config: TrainConfig, tmp_path: Path):
    model = trained(config)
    found = load_network(bundle_of(model, tmp_path / "bundle"), config)
    assert not found.training
    other = found.state_dict()
    for name, value in model.state_dict().items():
        assert torch.allclose(other[name], value, rtol=1e-6, atol=1e-6 * float(value.abs().max())), name
    assert (tmp_path / "bundle" / WEIGHTS).stat().st_size < 0.15 * (tmp_path / "bundle" / "model.onnx").stat().st_size


def packaged(folder: Path, **config: object) -> Path:
    """The packaged bundle as it was before bundles carried weights, trained with another `config`."""
    shutil.copytree(PACKAGED, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][WEIGHTS]
    manifest["config"] |= config
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / WEIGHTS).unlink()
    return folder


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["weights", str(folder)])
    weights.main()


def test_the_packaged_weights_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = packaged(tmp_path / "bundle")
    before = Bundle.open(folder).manifest
    run(folder, monkeypatch)
    again, shipped = load_file(folder / WEIGHTS), load_file(PACKAGED / WEIGHTS)
    assert again.keys() == shipped.keys()
    for name, value in shipped.items():
        assert np.allclose(again[name], value, rtol=1e-6, atol=1e-7), name
    after = Bundle.open(folder).manifest
    assert after.model_dump(exclude={"files"}) == before.model_dump(exclude={"files"})
    assert after.files.keys() - before.files.keys() == {WEIGHTS}
    with pytest.raises(InputError, match="has its weights"):
        run(folder, monkeypatch)


def test_the_packaged_network_answers_as_its_graph():
    bundle = Bundle.open(PACKAGED)
    config = TrainConfig.model_validate(bundle.manifest.config)
    network = ServedGraph(load_network(bundle, config)).eval()
    image = np.ascontiguousarray(data.coffee()[:192, :256])[None]
    served = ort.InferenceSession(bundle.graph("fp32")).run(list(OUTPUT_NAMES), {"image": image})
    with torch.inference_mode():
        answers = network(torch.from_numpy(image))
    for name, mine, its in zip(OUTPUT_NAMES, answers, served, strict=True):
        assert np.abs(mine.numpy() - its).max() < 2e-4, name


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"pretrained": False}, "package's own"),
        ({"backbone": "resnet50"}, "package's own"),
        ({"frozen_blocks": 16}, "other weights"),
        ({"freeze_backbone": True}, "other weights"),
    ],
)
def test_what_was_trained_otherwise_cannot_be_recovered(tmp_path: Path, config: dict[str, object], why: str):
    bundle = Bundle.open(packaged(tmp_path / "bundle", **config))
    with pytest.raises(InputError, match=why):
        recover(bundle, TrainConfig.model_validate(bundle.manifest.config))
