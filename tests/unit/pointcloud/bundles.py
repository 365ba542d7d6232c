"""A bundle of networks with random weights: all that serving needs, made in a second."""

from typing import Any

import numpy as np
import torch

from services.pointcloud.calibration import FILE, Calibration, Source, Views
from services.pointcloud.classifier import Classifier
from services.pointcloud.export import _write, export_onnx, export_view
from services.pointcloud.model import CODEWORD, Autoencoder
from services.pointcloud.single_view import SingleView
from shared.bundles import TensorSpec, write_manifest

LABELS = ("ball", "box", "torus")


def bundle(folder, *, seed=0, decoder: Any = "folding", only_autoencoder=False):
    """Resolution 12; pictures of 32 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = Autoencoder("foldingnet", decoder, "grid", 12).eval()
    files = export_onnx(model, folder)
    views = None
    if not only_autoencoder:
        files += export_view(SingleView("folding", 64, 8, 32).eval(), folder, 32)
        views = Views(size=32, yaw=180, pitch=25, frame="object", decoder="folding")
        random = np.random.default_rng(seed)
        weight = random.normal(size=(len(LABELS), CODEWORD)).astype(np.float32)
        classifier = Classifier(weight, np.zeros(len(LABELS), np.float32))
        axes = {"codeword": {0: "batch"}}, {"probabilities": {0: "batch"}}
        _write(classifier, (torch.rand(2, CODEWORD),), folder / "classifier.onnx", *axes)
        files.append("classifier.onnx")
    source = Source(kind="grid", resolution=12, half_width=0.3) if decoder == "folding" else None
    calibration = Calibration(
        source=source,
        labels=() if only_autoencoder else LABELS,
        trained_points=(64, 2048),
        extents_low=(0.2, 0.4, 0.6),
        extents_high=(2.0, 2.0, 2.0),
        chamfer_limit=10.0,
        views=views,
    )
    (folder / FILE).write_text(calibration.model_dump_json())
    (folder / "card.md").write_text("Random weights, for tests.")
    write_manifest(
        folder,
        files=[*files, FILE, "card.md"],
        name="pointcloud",
        domain="pointcloud",
        graphs={name.removesuffix(".onnx"): name for name in files},
        inputs=[TensorSpec(name="features", dtype="float32", shape=["batch", "points", 12])],
        outputs=[TensorSpec(name="codeword", dtype="float32", shape=["batch", CODEWORD])],
    )
    return folder
