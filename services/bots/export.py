"""A trained network → its bundle: the ONNX graph, its weights, the calibration, the measured quality, and a card."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.bots.calibration import FILE, Calibration
from services.bots.features import PROPERTIES
from services.bots.model import AccountNet, ServedGraph
from services.bots.schemas import TrainConfig
from shared.bundles import Comparison, Metric, TensorSpec, code_revision, library_versions, write_manifest

OPSET = 18
WEIGHTS = "weights.safetensors"
_TENSORS = {
    "edges": ("int64", [2, "edges"], "accounts' numbers: source, target"),
    "relations": ("int64", ["edges"], "relation's number"),
    "values": ("float32", ["accounts", len(PROPERTIES)], "0–1, as features.py scales"),
    "known": ("float32", ["accounts", len(PROPERTIES)], "1 where the value counts"),
    "text": ("float32", ["accounts", 0], "unit vector or zeros"),
    "roots": ("int64", ["roots"], "accounts' numbers"),
}


def export_onnx(model: AccountNet, path: Path, text: int) -> list[str]:
    """Write the served graph; the numbers of accounts, edges and roots stay free. Returns the inputs it has."""
    # Several edges of each relation, of another number each: the exporter takes sizes of 0 and 1 for constants.
    relation = torch.repeat_interleave(torch.arange(model.relations), torch.arange(model.relations) + 2)
    edges = torch.stack([torch.arange(len(relation)) % 5, torch.arange(len(relation)) % 3 + 5])
    values = torch.rand(8, len(PROPERTIES))
    given = (edges, relation, values, torch.ones_like(values), torch.rand(8, max(1, text)), torch.tensor([0, 1]))
    axes = {"edges": {1: "edges"}, "relations": {0: "edges"}, "roots": {0: "roots"}}
    axes |= {name: {0: "accounts"} for name in ("values", "known", "text")}
    axes |= {name: {0: "roots"} for name in ("bot_logits", "stance_logits")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in the image domain: deprecated, and ten times as fast
        torch.onnx.export(
            ServedGraph(model).eval(),
            given,
            path,
            input_names=list(_TENSORS),
            output_names=["bot_logits", "stance_logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    import onnx

    return [tensor.name for tensor in onnx.load(path).graph.input]


def export_bundle(
    model: AccountNet,
    folder: Path,
    *,
    config: TrainConfig,
    calibration: Calibration,
    metrics: Mapping[str, Metric],
    split: str,
    card: str,
    dataset_digest: str | None,
    comparison: Comparison | None,
    device: str,
) -> Path:
    """Write everything and the manifest; returns `folder`, a bundle fit to be published."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = export_onnx(model, folder / "model.onnx", calibration.text_width)
    # Copies: a layer that is used twice would be refused as shared memory.
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    (folder / FILE).write_text(calibration.model_dump_json(indent=1))
    (folder / "card.md").write_text(card)
    views = len(calibration.views)
    write_manifest(
        folder,
        files=["model.onnx", WEIGHTS, FILE, "card.md"],
        name="bots",
        domain="bots",
        graphs={"fp32": "model.onnx"},
        inputs=[_spec(name, calibration.text_width) for name in inputs],
        outputs=[
            TensorSpec(name="bot_logits", dtype="float32", shape=["roots", views, 2], unit="by view: human, bot"),
            TensorSpec(name="stance_logits", dtype="float32", shape=["roots", views, 3], unit="by view"),
        ],
        metrics=dict(metrics),
        comparison=comparison,
        metrics_split=split,
        config=config.model_dump(),
        dataset_digest=dataset_digest,
        seed=config.seed,
        code_revision=code_revision(),
        device=device,
        libraries=library_versions(["torch", "onnx", "onnxruntime", "numpy", "scikit-learn"]),
        constants={"views": [view.name for view in calibration.views], "relations": list(calibration.relations)},
    )
    return folder


def _spec(name: str, text: int) -> TensorSpec:
    dtype, shape, unit = _TENSORS[name]
    return TensorSpec(name=name, dtype=dtype, shape=[text if size == 0 else size for size in shape], unit=unit)
