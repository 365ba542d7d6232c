"""A trained network → its bundle: ONNX graphs in fp32 and int8, weights, figures of the test split, manifest, card."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from services.iqa.datasets import Record
from services.iqa.evaluate import bootstrap, monotone_share, read_pixels, score_records, srcc, summary, widened
from services.iqa.model import LEVELS, PMTIQA, ServedGraph
from services.iqa.schemas import TrainConfig
from services.iqa.weights import WEIGHTS, save_weights
from shared.bundles import Bundle, Comparison, Metric, TensorSpec, code_revision, library_versions, write_manifest

OPSET = 18
INPUTS = [TensorSpec(name="image", dtype="uint8", shape=["batch", "height", "width", 3], unit="sRGB, 0–255")]
OUTPUT_NAMES = ("score", "level_probabilities", "distortion_probabilities", "quality_map")
CALIBRATION_IMAGES = 64
FLOAT_CONVOLUTIONS = 6  # at the front: with them in int8 every score shifts by 4 points, without by less than 1


def outputs(kinds: int) -> list[TensorSpec]:
    """The graph's outputs as the manifest tells them."""
    return [
        TensorSpec(name="score", dtype="float32", shape=["batch"], unit="0–100, higher is better"),
        TensorSpec(name="level_probabilities", dtype="float32", shape=["batch", LEVELS], unit="probability"),
        TensorSpec(name="distortion_probabilities", dtype="float32", shape=["batch", kinds], unit="probability"),
        TensorSpec(name="quality_map", dtype="float32", shape=["batch", "height/32", "width/32"], unit="0–100"),
    ]


def export_onnx(model: PMTIQA, path: Path) -> None:
    """Write the served graph; batch, height and width stay free."""
    free = {0: "batch", 1: "height", 2: "width"}
    with warnings.catch_warnings():
        # It is deprecated, and says that borders are not folded; the newer exporter needs ten times as long for the
        # same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            # In evaluation mode itself, since the exporter gives everything inside the mode of the outermost module.
            ServedGraph(model).eval(),
            (torch.zeros(2, 256, 320, 3, dtype=torch.uint8),),
            path,
            input_names=["image"],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes={"image": free, **{name: {0: "batch"} for name in OUTPUT_NAMES}, "quality_map": dict(free)},
            opset_version=OPSET,
            dynamo=False,
        )


class _Calibration(CalibrationDataReader):
    def __init__(self, records: list[Record]) -> None:
        self._images: Iterator[Record] = iter(records)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        record = next(self._images, None)
        return None if record is None else {"image": read_pixels(record.path)[None]}


def quantise(fp32: Path, int8: Path, calibration: list[Record]) -> None:
    """Write the int8 QDQ graph: per channel; the first convolutions, the biases and the heads stay in float."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        quantize_static(
            prepared,
            int8,
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Clip"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=convolutions[:FLOAT_CONVOLUTIONS],
            extra_options={"QuantizeBias": False},
        )


def measure(fp32: Path, int8: Path, test: list[Record]) -> dict[str, Metric]:
    """The held-out figures of both graphs; intervals draw whole source photographs."""
    labels = np.array([record.score for record in test])
    sources = [record.source for record in test]
    predicted, quantised = score_records(fp32, test), score_records(int8, test)
    figures = {
        name: Metric(value=item["value"], low=item["low"], high=item["high"], n=int(item["n"]))
        for name, item in summary(predicted, labels, sources).items()
    }
    low, high = bootstrap(srcc, quantised, labels, sources)
    figures["srcc_int8"] = Metric(value=srcc(quantised, labels), low=low, high=high, n=len(test))
    figures["srcc_fp32_int8"] = Metric(value=srcc(predicted, quantised), n=len(test))
    distorted = [index for index, record in enumerate(test) if record.kind != "none"]
    series = [(test[index].source, test[index].kind) for index in distorted]
    strengths = [test[index].strength for index in distorted]
    figures["monotone_share"] = Metric(
        value=monotone_share(predicted[distorted], series, strengths),
        n=len(distorted),
        description="share of neighbouring strengths whose score falls",
    )
    figures["monotone_share_of_labels"] = Metric(
        value=monotone_share(labels[distorted], series, strengths),
        n=len(distorted),
        description="the same share for the labels themselves: what is there to reach",
    )
    return figures


def beside(fp32: Path, champion: Bundle, test: list[Record]) -> Comparison:
    """The new graph's SRCC less the champion's on the same test images, photographs resampled together.

    The champion is a published bundle.
    """
    new, old = score_records(fp32, test), score_records(champion.graph("fp32"), test)
    labels = np.array([record.score for record in test])

    def difference(chosen_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> float:
        index = chosen_N.astype(int)
        return srcc(new[index], label_N) - srcc(old[index], label_N)

    everything = np.arange(len(test), dtype=float)
    sources = [record.source for record in test]
    value, photographs = difference(everything, labels), len(set(sources))
    # One photograph cannot be resampled; then its images are, and the interval says nothing of other photographs.
    interval = bootstrap(difference, everything, labels, sources if photographs > 1 else None)
    low, high = widened(value, *interval, photographs)
    about = "of one photograph" if photographs == 1 else f"{photographs} photographs resampled"
    figure = Metric(value=value, low=low, high=high, n=len(test), description=about)
    return Comparison(champion=champion.manifest.version or 1, metric="srcc", difference=figure)


def export_bundle(
    model: PMTIQA,
    folder: Path,
    *,
    config: TrainConfig,
    kinds: list[str],
    train: list[Record],
    test: list[Record],
    dataset_digest: str,
    device: str,
    champion: Path | None = None,
) -> Path:
    """Export, quantise, measure and write the manifest; returns `folder`, a bundle fit to be published."""
    folder.mkdir(parents=True, exist_ok=True)
    fp32, int8 = folder / "model.onnx", folder / "model.int8.onnx"
    export_onnx(model, fp32)
    save_weights(model, folder / WEIGHTS)
    order = np.random.default_rng(0).permutation(len(train))[:CALIBRATION_IMAGES]
    quantise(fp32, int8, [train[index] for index in order])
    metrics = measure(fp32, int8, test)
    comparison = beside(fp32, Bundle.open(champion), test) if champion is not None else None
    card = folder / "card.md"
    card.write_text(_card(config, metrics, train, test))
    write_manifest(
        folder,
        files=[fp32.name, int8.name, WEIGHTS, card.name],
        name="iqa",
        domain="iqa",
        graphs={"int8": int8.name, "fp32": fp32.name},
        inputs=INPUTS,
        outputs=outputs(len(kinds)),
        metrics=metrics,
        comparison=comparison,
        metrics_split=f"test: {len({record.source for record in test})} source photographs never trained on; "
        "labels are a full-reference proxy",
        config=config.model_dump(),
        dataset_digest=dataset_digest,
        seed=config.seed,
        code_revision=code_revision(),
        device=device,
        libraries=library_versions(["torch", "onnx", "onnxruntime", "numpy", "pillow"]),
        constants={"kinds": kinds, "levels": LEVELS, "long_side": 512, "direction": "higher-is-better"},
    )
    return folder


def _card(config: TrainConfig, metrics: dict[str, Metric], train: list[Record], test: list[Record]) -> str:
    def line(name: str, metric: Metric) -> str:
        interval = f"{metric.low:.3f}–{metric.high:.3f}" if metric.low is not None and metric.high is not None else ""
        return f"| {name} | {metric.value:.4f} | {interval} | {metric.n} |"

    rows = "\n".join(line(name, metric) for name, metric in metrics.items())
    return f"""# Image quality: {config.backbone}, seed {config.seed}

Scores are a **full-reference proxy** (mean rank of MDSI, VSI, HaarPSI and MS-GMSDc), not opinion scores.
Trained on {len(train)} images of {len({r.source for r in train})} photographs with generated distortions; measured once
on {len(test)} images of {len({r.source for r in test})} other photographs. Intervals are 95 %, photographs resampled.

| metric | value | interval | n |
|---|---|---|---|
{rows}
"""
