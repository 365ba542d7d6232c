"""The recipes that are jobs of audits: their configuration, and what runs them over an image set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from services.audits.benchmark import (
    attacks_table,
    groups_table,
    phases_table,
    pieces_of_attacks,
    pieces_of_phases,
    pieces_of_scaling,
)
from services.audits.distillation import Distillation, distil, trained_on
from services.audits.image_sets import digits, load_image_set
from services.audits.networks import right
from services.audits.phase_diagram import phase_diagram
from services.audits.red_team import red_team
from services.audits.scaling import scaling
from services.audits.schemas import DistilConfig, ImageRecipe, PhaseDiagramConfig, RedTeamConfig, ScalingConfig
from shared.jobs.context import TrainingContext, check_stop

FILE = "figures.json"
Run = Callable[[Any, Path | None, TrainingContext], tuple[Path, dict[str, Any]]]


def _runs(
    pieces: Callable[[Any], Any], recipe: Callable[..., list[dict[str, Any]]], table: Callable[[Any], str]
) -> Run:
    def run(config: ImageRecipe, data: Path | None, context: TrainingContext) -> tuple[Path, dict[str, Any]]:
        """`figures.json` with the rows of the recipe over the image set in `data` (scikit-learn's digits if None), and
        a summary with the same as a table. Raises BadImageSet or JobStopped."""
        torch.set_num_threads(config.threads)
        images = digits() if data is None else load_image_set(data)
        parts = list(pieces(config))
        rows: list[dict[str, Any]] = []
        for number, part in enumerate(parts):
            rows += recipe(part, images, partial(check_stop, context))
            context.report(step=number + 1, total=len(parts))
        told = {"config": config.model_dump(mode="json"), "images": len(images.label_N), "rows": rows}
        path = context.artefact(FILE)
        # What is not a number is null, as in every other answer; groups are numbered.
        path.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
        return path, {"rows": len(rows), "table": table(rows)}

    return run


def distilled(config: DistilConfig, data: Path | None, context: TrainingContext) -> tuple[Path, dict[str, Any]]:
    """`distilled.npz`: an image set of `per_class` synthetic images a class, as bytes, beside the test images that it
    was measured on; the summary has the accuracy of networks trained on it and on as many real images."""
    stop = partial(check_stop, context)

    def share(done: float) -> None:
        context.report(step=int(100 * done), total=100)

    torch.set_num_threads(config.threads)
    images = digits() if data is None else load_image_set(data)
    images = images.resized(config.size).taken(config.train_images, config.test_images, config.seed)
    how = Distillation(
        config.method, config.per_class, config.iterations, width=config.width, depth=config.depth, loops=config.loops
    )
    real = [torch.nonzero(images.label_N == kind).squeeze(1)[: config.per_class] for kind in range(images.classes)]
    rows_S = torch.cat(real)
    made_SCHW, label_S = distil(
        how, images.image_NCHW, images.label_N, classes=images.classes, seed=config.seed, stop=stop, progress=share
    )
    byte_SCHW = (made_SCHW.clamp(0, 1) * 255).round().byte()
    sets = {
        "distilled": (byte_SCHW.float() / 255, label_S),
        "as many real": (images.image_NCHW[rows_S], images.label_N[rows_S]),
    }
    accuracy: dict[str, list[float]] = {name: [] for name in sets}
    for seed in range(config.seed, config.seed + config.seeds):
        for name, (image_SCHW, kind_S) in sets.items():
            network = trained_on(
                image_SCHW,
                kind_S,
                classes=images.classes,
                seed=seed,
                width=config.width,
                depth=config.depth,
                epochs=config.evaluation_epochs,
                stop=stop,
            )
            accuracy[name].append(float(right(network, images.test_image_NCHW, images.test_label_N).mean()))
    path = context.artefact("distilled.npz")
    test = (images.test_image_NCHW * 255).round().byte().numpy()
    np.savez_compressed(
        path,
        images=byte_SCHW.numpy(),
        labels=label_S.numpy(),
        test_images=test,
        test_labels=images.test_label_N.numpy(),
    )
    return path, {"images": len(label_S), "of": len(images.label_N), "accuracy": accuracy}


RECIPES: Mapping[str, tuple[type[ImageRecipe], Run]] = {
    "scaling": (ScalingConfig, _runs(pieces_of_scaling, scaling, groups_table)),
    "phase-diagram": (PhaseDiagramConfig, _runs(pieces_of_phases, phase_diagram, phases_table)),
    "distil": (DistilConfig, distilled),
    "red-team": (RedTeamConfig, _runs(pieces_of_attacks, red_team, attacks_table)),
}
