"""Trained networks → their bundle: ONNX graphs, weights, calibration, classifier, measured quality, card.

Shapes: S shapes, N points, D codeword, C classes, G points of the source surface. What a training did not train is
taken from the champion, as graphs alone: an autoencoder is examined in the version that it was trained for.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from services.pointcloud import surface
from services.pointcloud.calibration import FILE, Calibration, Source, Views, load_calibration
from services.pointcloud.chamfer import chamfer_max, nearest_distances
from services.pointcloud.classifier import Classifier, fit_classifier
from services.pointcloud.datasets import Shapes, capped
from services.pointcloud.evaluate import (
    Classified,
    accuracy,
    batch_of,
    encode,
    family_bootstrap,
    linear_probe,
    macro_accuracy,
    nearest_neighbour,
    reconstruction_errors,
)
from services.pointcloud.model import CODEWORD, FEATURES, Autoencoder, FoldingDecoder
from services.pointcloud.neighbours import NEIGHBOURS
from services.pointcloud.schemas import TrainConfig
from services.pointcloud.single_view import PITCH, SingleView, as_input, view_errors
from services.pointcloud.single_view import Views as Pictures
from services.pointcloud.weights import WEIGHTS, Network, save_weights
from shared.bundles import Bundle, Comparison, Metric, TensorSpec, code_revision, library_versions, write_manifest
from shared.problems import Unprocessable
from shared.sessions import OnnxSession

OPSET = 18
MOST_TESTED = 100  # test shapes whose reconstruction is measured, most


class NoAutoencoder(Unprocessable):
    code = "pointcloud-no-autoencoder"
    title = "There is no autoencoder to go with the single-view network"
    advice = "Train with `task=both`."


def export_onnx(model: Autoencoder, folder: Path) -> list[str]:
    """encoder.onnx and decoder.onnx; numbers of clouds, points and surface points stay free. Returns the names,
    a folding decoder's int8 form among them."""
    features = torch.rand(2, 40, FEATURES)
    neighbours = torch.randint(0, 40, (2, 40, NEIGHBOURS))
    free = {0: "batch", 1: "points"}
    _write(
        model.encoder,
        (features, neighbours),
        folder / "encoder.onnx",
        {"features": free, "neighbours": free},
        {"codeword": {0: "batch"}},
    )
    source = torch.rand(9, model.source_GS.shape[1])
    _write(
        model.decoder,
        (torch.rand(2, CODEWORD), source),
        folder / "decoder.onnx",
        {"codeword": {0: "batch"}, "source": {0: "surface"}},
        {"points": {0: "batch", 1: "surface"}},
    )
    if not isinstance(model.decoder, FoldingDecoder):
        return ["encoder.onnx", "decoder.onnx"]
    quantise(folder / "decoder.onnx", folder / "decoder_int8.onnx")
    return ["encoder.onnx", "decoder.onnx", "decoder_int8.onnx"]


def quantise(fp32: Path, int8: Path) -> None:
    """The decoder with int8 weights, by channel, and activations quantised as they come: three times as fast. Seven of
    the eight bits are used, since processors without VNNI add in 16 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(fp32, int8, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


def export_view(model: SingleView, folder: Path, size: int) -> list[str]:
    axes = {0: "batch", 2: "height", 3: "width"}
    _write(
        model,
        (torch.rand(2, 3, size, size),),
        folder / "single_view.onnx",
        {"image": {0: axes[0]}},
        {"points": {0: "batch"}},
    )
    return ["single_view.onnx"]


def export_bundle(
    model: Autoencoder | None,
    view: SingleView | None,
    folder: Path,
    *,
    config: TrainConfig,
    shapes: Shapes,
    split_S: NDArray[np.int64],
    dataset_digest: str | None,
    device: str,
    champion: Path | None,
) -> Path:
    """Write everything and the manifest; returns `folder`, a bundle fit to be published."""
    folder.mkdir(parents=True, exist_ok=True)
    old = Bundle.open(champion) if champion is not None else None
    metrics: dict[str, Metric] = {}
    files: list[str] = []
    notes: list[str] = []
    if model is not None:
        files += export_onnx(model, folder)
        calibration, classifier, metrics = calibrate(config, model, shapes, split_S)
        if classifier is not None:
            axes = {"codeword": {0: "batch"}}, {"probabilities": {0: "batch"}}
            _write(classifier, (torch.rand(2, CODEWORD),), folder / "classifier.onnx", *axes)
            files.append("classifier.onnx")
        save_weights(Network(model, classifier), folder)
        files.append(WEIGHTS)
    elif old is not None:
        calibration = load_calibration(old.path(FILE))
        files += _carried(old, folder, ("encoder.onnx", "decoder.onnx", "decoder_int8.onnx", "classifier.onnx"))
        notes.append("encoder, decoder and classifier")
        metrics |= {name: value for name, value in old.manifest.metrics.items() if not name.startswith("view_")}
    else:
        raise NoAutoencoder("Nothing is served yet whose autoencoder could be kept; train with task=both.")
    if view is not None:
        files += export_view(view, folder, config.image_size)
        views = Views(
            size=config.image_size,
            yaw=config.view_yaw,
            pitch=PITCH,
            frame=config.view_frame,
            decoder=config.single_view,
            up=config.up,
        )
        calibration = calibration.model_copy(update={"views": views})
        metrics |= measure_views(config, view, shapes, split_S)
    elif old is not None and "single_view.onnx" in old.manifest.files:
        files += _carried(old, folder, ("single_view.onnx",))
        notes.append("the single-view network")
        calibration = calibration.model_copy(update={"views": load_calibration(old.path(FILE)).views})
        metrics |= {name: value for name, value in old.manifest.metrics.items() if name.startswith("view_")}
    (folder / FILE).write_text(calibration.model_dump_json(indent=1))
    split = (
        f"test: {int((split_S == 2).sum())} shapes never trained on, of other families where the data set has "
        "families; intervals are 95 %, families resampled"
    )
    carried = f"Carried over from version {old.manifest.version}: {' and '.join(notes)}." if old and notes else ""
    (folder / "card.md").write_text(_card(config, shapes, split_S, metrics, carried, split))
    files += [FILE, "card.md"]
    fields: dict[str, Any] = {
        "files": files,
        "name": "pointcloud",
        "domain": "pointcloud",
        "graphs": {name.removesuffix(".onnx"): name for name in files if name.endswith(".onnx")},
        "inputs": [
            TensorSpec(name="features", dtype="float32", shape=["batch", "points", FEATURES], unit="unit ball"),
            TensorSpec(name="neighbours", dtype="int64", shape=["batch", "points", NEIGHBOURS], unit="rows"),
        ],
        "outputs": [TensorSpec(name="codeword", dtype="float32", shape=["batch", CODEWORD])],
        "metrics": metrics,
        "metrics_split": split,
        "config": config.model_dump(),
        "dataset_digest": dataset_digest,
        "parent": old.manifest.version if old is not None else None,
        "seed": config.seed,
        "code_revision": code_revision(),
        "device": device,
        "libraries": library_versions(["torch", "onnx", "onnxruntime", "numpy", "scipy", "scikit-learn"]),
        "constants": {"neighbours": NEIGHBOURS, "codeword": CODEWORD, "carried_over": notes},
    }
    write_manifest(folder, **fields)
    if model is not None and "decoder_int8.onnx" in files:
        fields["metrics"] |= {"chamfer_int8": _int8_figure(Bundle.open(folder), config, shapes, split_S)}
        write_manifest(folder, **fields)
    if old is not None:
        fields["comparison"] = beside(Bundle.open(folder), old, config, shapes, split_S)
        write_manifest(folder, **fields)
    return folder


def calibrate(
    config: TrainConfig, model: Autoencoder, shapes: Shapes, split_S: NDArray[np.int64]
) -> tuple[Calibration, Classifier | None, dict[str, Metric]]:
    """What serving needs beside the graphs, the classifier, and the held-out figures."""
    points = config.points[1]
    known = np.flatnonzero(shapes.label_S >= 0)
    codes_SD = np.zeros((len(shapes), CODEWORD), np.float32)
    if len(known):
        # Of a series a few shapes are enough to learn from; codewords of the others would cost most of the time.
        chosen = np.concatenate(
            [
                capped(shapes, known[split_S[known] == part], config.family_cap, np.random.default_rng(0))
                for part in range(3)
            ]
        )
        codes_SD[chosen] = encode([model.encoder], shapes, chosen.tolist(), min(points, 1024))[0][0]
        unseen = np.ones(len(shapes), bool)
        unseen[chosen] = False
        shapes = replace(shapes, label_S=np.where(unseen, -1, shapes.label_S))
    validation = np.random.default_rng(0).permutation(np.flatnonzero(split_S == 1))[:MOST_TESTED]
    test = _tested(split_S)
    errors = reconstruction_errors(model, shapes, test, points)
    limit = np.quantile(reconstruction_errors(model, shapes, validation.tolist(), points), 0.99)
    metrics = {
        "chamfer": _mean_metric(errors, [shapes.families[i] for i in test], "max form, unit ball, lower is better")
    }
    training = np.flatnonzero(split_S == 0)
    extents_S3 = np.stack([np.sort(np.ptp(shapes.cloud(int(index)), axis=0)) for index in training])
    low, high = np.quantile(extents_S3, [0.005, 0.995], axis=0)
    classifier, tested = None, _classes(shapes.label_S, split_S)
    if tested:
        classifier = fit_classifier(codes_SD, shapes.label_S, split_S)
        metrics |= _classified(classifier, codes_SD, shapes, split_S)
    source = None
    if config.decoder == "folding":
        learned = model.source_GS.detach().numpy().tolist() if config.source == "learned" else None
        source = Source(kind=config.source, resolution=config.resolution, half_width=surface.HALF_WIDTH, values=learned)
    calibration = Calibration(
        source=source,
        labels=shapes.labels if tested else (),
        trained_points=config.points,
        extents_low=tuple(low.tolist()),  # pyright: ignore[reportArgumentType]
        extents_high=tuple(high.tolist()),  # pyright: ignore[reportArgumentType]
        chamfer_limit=float(limit),
    )
    return calibration, classifier, metrics


def measure_views(
    config: TrainConfig, view: SingleView, shapes: Shapes, split_S: NDArray[np.int64]
) -> dict[str, Metric]:
    pictures = Pictures(shapes, config.image_size, config.view_yaw, config.view_frame, config.up)
    test = _tested(split_S)
    errors = view_errors(view, pictures, test)
    families = [shapes.families[index] for index in test]
    return {"view_chamfer": _mean_metric(errors, families, "from one rendered picture; sum form, unit ball")}


def beside(
    candidate: Bundle, champion: Bundle, config: TrainConfig, shapes: Shapes, split_S: NDArray[np.int64]
) -> Comparison:
    """By how much the candidate lowers the Chamfer distance of the test shapes, each as it is served; families are
    resampled. Above 0 the candidate is better. What a training carried over is not compared with itself."""
    test = _tested(split_S)
    pictures = config.task == "single-view"
    if pictures and "single_view.onnx" not in champion.manifest.files:
        nothing = Metric(
            value=0.0, low=0.0, high=0.0, n=len(test), description="the champion has no single-view network"
        )
        return Comparison(champion=champion.manifest.version or 1, metric="view_chamfer_reduction", difference=nothing)
    measure = served_view_errors if pictures else served_errors
    new, old = (measure(bundle, config, shapes, test) for bundle in (candidate, champion))
    difference = _mean_metric(
        old - new, [shapes.families[index] for index in test], "champion − candidate", higher=True
    )
    name = "view_chamfer_reduction" if pictures else "chamfer_reduction"
    return Comparison(champion=champion.manifest.version or 1, metric=name, difference=difference)


def served_errors(
    bundle: Bundle, config: TrainConfig, shapes: Shapes, chosen: Sequence[int], decoder_graph: str = "decoder"
) -> NDArray[np.float64]:
    """`reconstruction_errors` of a bundle's graphs."""
    encoder, decoder = (OnnxSession(bundle.path(f"{name}.onnx")) for name in ("encoder", decoder_graph))
    source = load_calibration(bundle.path(FILE)).source
    found: list[float] = []
    for index in chosen:
        features, neighbours = batch_of([shapes.cloud(index)[: config.points[1]]])
        code = encoder.infer({"features": features.numpy(), "neighbours": neighbours.numpy()})["codeword"]
        given = {"codeword": code} | ({"source": source.points()} if source is not None else {})
        found.append(chamfer_max(features[0, :, :3].numpy(), decoder.infer(given)["points"][0]))
    return np.array(found)


def served_view_errors(
    bundle: Bundle, config: TrainConfig, shapes: Shapes, chosen: Sequence[int]
) -> NDArray[np.float64]:
    """`view_errors` of a bundle's graph, on pictures of the size it takes."""
    session = OnnxSession(bundle.path("single_view.onnx"))
    views = load_calibration(bundle.path(FILE)).views
    if views is None:
        raise NoAutoencoder("The bundle does not say how its pictures were made.")
    pictures = Pictures(shapes, views.size, config.view_yaw, config.view_frame, config.up)
    found: list[float] = []
    for index in chosen:
        picture, cloud = pictures.draw(index, np.random.default_rng([0, index]))
        there, back = nearest_distances(cloud, session.infer({"image": as_input([picture]).numpy()})["points"][0])
        found.append(float(there.mean() + back.mean()))
    return np.array(found)


# -- inside


def _int8_figure(bundle: Bundle, config: TrainConfig, shapes: Shapes, split_S: NDArray[np.int64]) -> Metric:
    errors = served_errors(bundle, config, shapes, _tested(split_S), "decoder_int8")
    return _mean_metric(errors, [shapes.families[i] for i in _tested(split_S)], "as `chamfer`, int8 decoder")


def _tested(split_S: NDArray[np.int64]) -> list[int]:
    """The test shapes whose reconstruction is measured."""
    return np.sort(np.random.default_rng(0).permutation(np.flatnonzero(split_S == 2))[:MOST_TESTED]).tolist()


def _classes(label_S: NDArray[np.int64], split_S: NDArray[np.int64]) -> bool:
    """Whether there are two classes to learn and shapes of known classes to test."""
    train, test = (np.unique(label_S[(label_S >= 0) & (split_S == part)]) for part in (0, 2))
    return len(train) >= 2 and bool(np.isin(test, train).any())


def _classified(
    classifier: Classifier, codes_SD: NDArray[np.float32], shapes: Shapes, split_S: NDArray[np.int64]
) -> dict[str, Metric]:
    test = np.flatnonzero((shapes.label_S >= 0) & (split_S == 2))
    with torch.inference_mode():
        predicted = classifier(torch.from_numpy(codes_SD[test])).argmax(1).numpy()
    families = shapes.families
    found = {
        "classifier": Classified(predicted, shapes.label_S[test], [families[index] for index in test]),
        "linear_probe": linear_probe(codes_SD, shapes.label_S, split_S, families),
        "nearest_neighbour": nearest_neighbour(codes_SD, shapes.label_S, split_S, families),
    }
    metrics: dict[str, Metric] = {}
    for name, result in found.items():
        for kind, value in (("accuracy", accuracy), ("macro_accuracy", macro_accuracy)):
            low, high = result.interval(value)
            figure = value(result.predicted_S, result.label_S)
            metrics[f"{name}_{kind}"] = Metric(value=figure, low=low, high=high, n=len(test))
    return metrics


def _mean_metric(values_S: NDArray[np.float64], families: Sequence[str], words: str, *, higher: bool = False) -> Metric:
    low, high = family_bootstrap(lambda index: float(values_S[index].mean()), families)
    return Metric(
        value=float(values_S.mean()), low=low, high=high, n=len(values_S), higher_is_better=higher, description=words
    )


def _carried(old: Bundle, folder: Path, names: Sequence[str]) -> list[str]:
    found = [name for name in names if name in old.manifest.files]
    for name in found:
        shutil.copyfile(old.path(name), folder / name)
    return found


def _write(
    module: nn.Module,
    given: tuple[Tensor, ...],
    path: Path,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Mapping[str, Mapping[int, str]],
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # as in the image domain: deprecated, and ten times as fast
        torch.onnx.export(
            module.eval(),
            given,
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in (*inputs.items(), *outputs.items())},
            opset_version=OPSET,
            dynamo=False,
        )


def _card(
    config: TrainConfig,
    shapes: Shapes,
    split_S: NDArray[np.int64],
    metrics: Mapping[str, Metric],
    carried: str,
    split: str,
) -> str:
    rows = "\n".join(
        f"| {name} | {item.value:.4f} | {item.low:.4f}–{item.high:.4f} | {item.n} |"
        for name, item in metrics.items()
        if item.low is not None and item.high is not None
    )
    trained = int((split_S == 0).sum())
    return f"""# Point clouds: {config.encoder} encoder, {config.decoder} decoder, seed {config.seed}

Task: {config.task}. Trained on {trained} of {len(shapes)} shapes in {len(shapes.labels)} classes. {carried}
Measured on {split}.

| metric | value | interval | n |
|---|---|---|---|
{rows}
"""
