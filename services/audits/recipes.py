"""The recipes that are jobs of audits: their configuration, and what runs them over an image set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from services.audits.benchmark import (
    attacks_table,
    groups_table,
    phases_table,
    pieces_of_attacks,
    pieces_of_phases,
    pieces_of_scaling,
)
from services.audits.image_sets import digits, load_image_set
from services.audits.phase_diagram import phase_diagram
from services.audits.red_team import red_team
from services.audits.scaling import scaling
from services.audits.schemas import ImageRecipe, PhaseDiagramConfig, RedTeamConfig, ScalingConfig
from shared.jobs.context import JobStopped, TrainingContext

FILE = "figures.json"
Run = Callable[[Any, Path | None, TrainingContext], tuple[Path, dict[str, Any]]]


def _runs(
    pieces: Callable[[Any], Any], recipe: Callable[..., list[dict[str, Any]]], table: Callable[[Any], str]
) -> Run:
    def run(config: ImageRecipe, data: Path | None, context: TrainingContext) -> tuple[Path, dict[str, Any]]:
        """`figures.json` with the rows of the recipe over the image set in `data` (scikit-learn's digits if None), and
        a summary with the same as a table. Raises BadImageSet or JobStopped."""

        def stop() -> None:
            if (reason := context.should_stop()) is not None:
                raise JobStopped(reason)

        torch.set_num_threads(config.threads)
        images = digits() if data is None else load_image_set(data)
        parts = list(pieces(config))
        rows: list[dict[str, Any]] = []
        for number, part in enumerate(parts):
            rows += recipe(part, images, stop)
            context.report(step=number + 1, total=len(parts))
        told = {"config": config.model_dump(mode="json"), "images": len(images.label_N), "rows": rows}
        path = context.artefact(FILE)
        path.write_text(json.dumps(told, indent=1))
        return path, {"rows": len(rows), "table": table(rows)}

    return run


RECIPES: Mapping[str, tuple[type[ImageRecipe], Run]] = {
    "scaling": (ScalingConfig, _runs(pieces_of_scaling, scaling, groups_table)),
    "phase-diagram": (PhaseDiagramConfig, _runs(pieces_of_phases, phase_diagram, phases_table)),
    "red-team": (RedTeamConfig, _runs(pieces_of_attacks, red_team, attacks_table)),
}
