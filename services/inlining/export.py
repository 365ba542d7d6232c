"""A trained policy → its bundle: the ONNX graph, the same weights for NumPy, the quantiles, a card."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.numpy import save_file

from services.inlining.features import FEATURES, WIDTH
from services.inlining.model import PolicyNet, ServedPolicy
from services.inlining.policy import CALIBRATION, WEIGHTS, Policy
from services.inlining.schemas import TrainConfig
from shared.bundles import Comparison, Metric, TensorSpec, code_revision, library_versions, write_manifest

OPSET = 18
GRAPH = "model.onnx"


def numpy_policy(net: PolicyNet, threshold: float = 0.5) -> Policy:
    """The network as the wrapper runs it."""
    return Policy(net.quantiles_FQ.numpy(), net.weights(), threshold)


def export_onnx(net: PolicyNet, path: Path) -> None:
    """Write the graph `features` (B, F) int64 → `probability` (B,) float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in the other domains: deprecated, and ten times as fast
        torch.onnx.export(
            ServedPolicy(net).eval(),
            (torch.zeros(3, WIDTH, dtype=torch.int64),),
            path,
            input_names=["features"],
            output_names=["probability"],
            dynamic_axes={"features": {0: "batch"}, "probability": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


def export_bundle(
    net: PolicyNet,
    folder: Path,
    *,
    threshold: float,
    config: TrainConfig,
    metrics: Mapping[str, Metric],
    split: str,
    card: str,
    dataset_digest: str | None,
    comparison: Comparison | None,
) -> Path:
    """Write everything and the manifest; returns `folder`, a bundle fit to be published."""
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(net, folder / GRAPH)
    save_file(net.weights(), folder / WEIGHTS)
    calibration = {"features": list(FEATURES), "threshold": threshold, "quantiles": net.quantiles_FQ.tolist()}
    (folder / CALIBRATION).write_text(json.dumps(calibration))
    (folder / "card.md").write_text(card)
    write_manifest(
        folder,
        files=[GRAPH, WEIGHTS, CALIBRATION, "card.md"],
        name="inlining",
        domain="inlining",
        graphs={"fp32": GRAPH},
        inputs=[
            TensorSpec(
                name="features", dtype="int64", shape=["batch", WIDTH], unit="counts, as LLVM's channel has them"
            )
        ],
        outputs=[TensorSpec(name="probability", dtype="float32", shape=["batch"], unit="of inlining")],
        metrics=dict(metrics),
        comparison=comparison,
        metrics_split=split,
        config=config.model_dump(mode="json"),
        dataset_digest=dataset_digest,
        seed=config.seed,
        code_revision=code_revision(),
        device="cpu",
        libraries=library_versions(["torch", "onnx", "onnxruntime", "numpy", "ziglang", "llvmlite"]),
        constants={"features": list(FEATURES), "threshold": threshold},
    )
    return folder
