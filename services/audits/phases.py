"""Labels a network's phase in the taxonomy of loss landscapes, by cuts that were fitted to published measurements.

    python -m services.audits.phases --cells FILE [--write]   fits the cuts and says how well they agree

FILE: a CSV with the columns test_accuracy_percent, train_loss, cka_softmax and mode_connectivity_error_points, a row a
trained cell (Yang and others, 2021: ResNet-18 on CIFAR-10, width × batch size). I: large loss, a barrier. II: no
barrier, but the loss is large, or the error falls along the curve. III: small loss, a barrier. IV-A: small loss, none,
unlike functions. IV-B: the same with like functions.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from shared.problems import InputError

PHASES = ("I", "II", "III", "IV-A", "IV-B")
FILE = "phases.json"
SPLITS = 20  # halvings whose agreement is reported
LOSSES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # nats
BARRIERS = (0.5, 1.0, 2.0, 3.0, 5.0)  # error points
SIMILARITIES = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)

ADVICE: Mapping[str, str] = {
    "I": "Widen the network and train longer.",
    "II": "Train longer, or lower the temperature: a larger batch or a smaller learning rate.",
    "III": "Widen the network, or stop earlier.",
    "IV-A": "Lower the load: more data, or cleaner labels.",
    "IV-B": "The landscape asks for nothing; better data is what is left.",
}


class BadCells(InputError):
    """The file of measurements cannot be read."""

    code = "audits-bad-cells"
    title = "The file of measured cells is not valid"


class Cuts(NamedTuple):
    """Training loss in nats, |connectivity| in error points, CKA of softmax outputs."""

    loss: float
    barrier: float
    similarity: float

    def label(self, train_loss: float, connectivity: float, cka: float) -> str:
        """The phase; a CKA that is not a number counts as unlike."""
        if train_loss > self.loss:
            return "I" if connectivity < 0 else "II"
        if abs(connectivity) > self.barrier:
            return "III" if connectivity < 0 else "II"
        return "IV-B" if cka >= self.similarity else "IV-A"


BY_HAND = Cuts(0.1, 2.0, 0.6)  # put on all 182 cells by eye, before this fit


class Cells(NamedTuple):
    """Columns of the measurements, (M,) each."""

    accuracy_M: NDArray[np.float64]
    loss_M: NDArray[np.float64]
    connectivity_M: NDArray[np.float64]
    cka_M: NDArray[np.float64]

    def take(self, index: NDArray[np.int64]) -> Cells:
        return Cells(*(column[index] for column in self))

    def labels(self, cuts: Cuts) -> NDArray[np.str_]:
        columns = zip(self.loss_M, self.connectivity_M, self.cka_M, strict=True)
        return np.array([cuts.label(float(loss), float(mc), float(cka)) for loss, mc, cka in columns])


def load_cells(path: Path) -> Cells:
    """Raises BadCells."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = ("test_accuracy_percent", "train_loss", "mode_connectivity_error_points", "cka_softmax")
        columns = [np.array([float(row[name]) for row in rows]) for name in names]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BadCells(f"{path.name}: {error}") from None
    if len(columns[0]) < 20:
        raise BadCells(f"{path.name}: {len(columns[0])} cells are too few to fit anything.")
    return Cells(*columns)


def explained(cells: Cells, cuts: Cuts) -> float:
    """The share of the variance of test accuracy's ranks that lies between the phases (0–1). Ranks, because a few cells
    of width one, 40 points below the rest, would decide everything else."""
    label_M, rank_M = cells.labels(cuts), rankdata(cells.accuracy_M)
    total = ((rank_M - rank_M.mean()) ** 2).sum()
    within = sum(float(rank_M[label_M == one].var() * (label_M == one).sum()) for one in np.unique(label_M))
    return float(1 - within / total) if total > 0 else math.nan


def fit_cuts(cells: Cells) -> Cuts:
    """Of a grid, the cuts whose phases explain test accuracy best; the first of equals.

    Published are the measurements, not the labels: what a good cut is has to be said by something else than itself.
    """
    return max(
        (Cuts(*one) for one in itertools.product(LOSSES, BARRIERS, SIMILARITIES)), key=lambda one: explained(cells, one)
    )


def agreement(cells: Cells, seeds: Sequence[int]) -> dict[str, Any]:
    """For each seed: fit on a random half; on the other half, the share of cells that get the same label as by the
    cuts put by hand, Cohen's kappa, and the share of test accuracy's variance explained by either."""
    found: list[dict[str, float]] = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(cells.accuracy_M))
        half = len(order) // 2
        cuts, other = fit_cuts(cells.take(order[:half])), cells.take(order[half:])
        mine, theirs = other.labels(cuts), other.labels(BY_HAND)
        same = float((mine == theirs).mean())
        chance = sum(float((mine == one).mean() * (theirs == one).mean()) for one in PHASES)
        found.append(
            {
                "agreement": same,
                "kappa": (same - chance) / (1 - chance) if chance < 1 else math.nan,
                "explained": explained(other, cuts),
                "explained_by_hand": explained(other, BY_HAND),
            }
        )
    summary: dict[str, Any] = {}
    for name in found[0]:
        values = np.array([one[name] for one in found])
        low, high = np.quantile(values, [0.025, 0.975])
        figures = {"mean": values.mean(), "low": low, "high": high}
        summary[name] = {key: round(float(value), 4) for key, value in figures.items()}
    return {"seeds": list(seeds), "cells_fitted": len(cells.accuracy_M) // 2, **summary}


def load_cuts() -> Cuts:
    """The cuts that `main --write` left beside this file."""
    return Cuts(**json.loads(files(__package__ or "").joinpath(FILE).read_text())["cuts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", type=Path, required=True, help="the CSV of measured cells")
    parser.add_argument("--write", action="store_true", help=f"replace {FILE}")
    given = parser.parse_args()
    cells = load_cells(given.cells)
    order = np.random.default_rng(0).permutation(len(cells.accuracy_M))
    cuts = fit_cuts(cells.take(order[: len(order) // 2]))
    command = f"python -m services.audits.phases --cells {given.cells.name} --write"
    found = {
        "cuts": cuts._asdict(),
        "made": f"{command}; fitted on half of the cells, seed 0",
        "source": "published measurements of Yang and others (2021), ResNet-18 on CIFAR-10, means of 5 seeds",
        "other half": agreement(cells, range(SPLITS)),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.write:
        Path(__file__).with_name(FILE).write_text(text + "\n")


if __name__ == "__main__":
    main()
