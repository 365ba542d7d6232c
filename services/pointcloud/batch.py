"""The domain's jobs besides training: an index of a data set's shapes, and the dispersion of a data set.

Shapes: S shapes, N points, P points of a preview, W numbers of a codeword.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.pointcloud.datasets import iter_shapes
from services.pointcloud.dispersion import disperse
from services.pointcloud.features import Cloud
from services.pointcloud.index import FILE, write_index
from services.pointcloud.neighbours import local_features, normalise
from services.pointcloud.predict import load
from services.pointcloud.schemas import DispersionConfig, IndexConfig
from shared.bundles import Bundle, file_digest
from shared.jobs.context import TrainingContext, check_stop
from shared.problems import Unprocessable
from shared.settings import ServiceSettings

REPORT_EVERY = 50  # shapes
CHECKPOINT_EVERY = 1000
MOST_SHAPES = 1_000_000


def build_index(
    config: IndexConfig, data: Path, bundle: Bundle, context: TrainingContext
) -> tuple[Path, dict[str, Any]]:
    """`index.safetensors` of every shape of the data set, encoded by the champion; how many there are, and its SHA-256.

    A job that goes on after an interruption reads the shapes again and encodes only those that it had not.
    """
    predictor = load(bundle, ServiceSettings(device="cpu"))
    kept = context.restore() or {}
    codewords = list(kept.get("codewords", np.zeros((0, predictor.width), np.float32)))
    previews = list(kept.get("previews", np.zeros((0, config.previews, 3), np.float32)))
    names: list[str] = []
    labels: list[str | None] = []
    shapes = iter_shapes(data, points=config.points, seed=config.seed, exclude=config.bad_files == "exclude")
    for shape in shapes:
        if len(names) >= MOST_SHAPES:
            raise Unprocessable(f"An index holds at most {MOST_SHAPES} shapes.")
        names.append(shape.name)
        labels.append(shape.label)
        if len(names) <= len(codewords):
            continue
        unit = normalise(shape.points_N3[: config.points])
        features, neighbours = local_features(unit.points_N3)
        codewords.append(predictor.encode(Cloud(features, neighbours, unit.centre_3, unit.scale)))
        order = np.random.default_rng(config.seed).permutation(len(unit.points_N3))
        previews.append(np.resize(unit.points_N3[order], (config.previews, 3)))
        if len(names) % REPORT_EVERY == 0:
            check_stop(context)
            context.report(step=len(names), total=len(names), shapes=len(names))
        if len(names) % CHECKPOINT_EVERY == 0:
            context.checkpoint({"codewords": np.stack(codewords), "previews": np.stack(previews)})
    if not names:
        raise Unprocessable("The data set holds no shape.")
    path = context.artefact(FILE)
    write_index(
        path,
        codewords_SW=np.stack(codewords),
        previews_SP3=np.stack(previews),
        names=names,
        labels=labels,
        fingerprint=predictor.fingerprint,
    )
    context.report(step=len(names), total=len(names), shapes=len(names))
    return path, {"shapes": len(names), "sha256": file_digest(path)}


BATCHES: Mapping[str, Any] = {"index": (IndexConfig, build_index), "dispersion": (DispersionConfig, disperse)}
