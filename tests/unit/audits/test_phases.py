"""The labeller of phases: its cuts, their fit, and the file that is shipped."""

import csv
import json
from importlib.resources import files

import numpy as np
import pytest

from services.audits import phases
from services.audits.phases import ADVICE, BY_HAND, PHASES, BadCells, Cuts, agreement, explained, fit_cuts, load_cells


@pytest.mark.parametrize(
    ("loss", "mc", "cka", "phase"),
    [
        (1.0, -10, 0.9, "I"),
        (1.0, 3, 0.9, "II"),
        (0.01, 4, 0.9, "II"),
        (0.01, -10, 0.9, "III"),
        (0.01, -1, 0.4, "IV-A"),
        (0.01, -1, float("nan"), "IV-A"),
        (0.01, 1, 0.9, "IV-B"),
    ],
)
def test_labels(loss, mc, cka, phase):
    assert BY_HAND.label(loss, mc, cka) == phase


def cells_file(path, count=240):
    """Cells whose accuracy is decided by hidden cuts, and noise."""
    random = np.random.default_rng(0)
    hidden = Cuts(0.2, 3.0, 0.65)
    accuracy: dict[str, int] = dict(zip(PHASES, (60, 75, 70, 82, 90), strict=True))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["test_accuracy_percent", "train_loss", "cka_softmax", "mode_connectivity_error_points"])
        for _ in range(count):
            loss, mc, cka = 10 ** random.uniform(-3, 0), random.uniform(-10, 6), random.uniform(0.3, 0.9)
            writer.writerow([accuracy[hidden.label(loss, mc, cka)] + random.normal(), loss, cka, mc])
    return hidden


def test_the_fit_finds_hidden_cuts_and_reports_on_the_other_half(tmp_path):
    hidden = cells_file(tmp_path / "cells.csv")
    cells = load_cells(tmp_path / "cells.csv")
    assert fit_cuts(cells) == hidden
    assert explained(cells, hidden) > explained(cells, BY_HAND)
    found = agreement(cells, range(3))
    assert found["cells_fitted"] == 120
    assert found["explained"]["mean"] > found["explained_by_hand"]["mean"]
    assert found["agreement"]["low"] <= found["agreement"]["mean"] <= found["agreement"]["high"] < 1


def test_the_shipped_cuts_say_how_they_were_made():
    shipped = json.loads(files("services.audits").joinpath(phases.FILE).read_text())
    assert phases.load_cuts() == Cuts(**shipped["cuts"])
    assert "--write" in shipped["made"]
    assert shipped["other half"]["agreement"]["low"] < shipped["other half"]["agreement"]["high"]
    assert set(ADVICE) == set(PHASES)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "test_accuracy_percent,train_loss\nx,y\n"])
def test_a_bad_file_is_named(tmp_path, text):
    (tmp_path / "cells.csv").write_text(text)
    with pytest.raises(BadCells, match=r"cells\.csv"):
        load_cells(tmp_path / "cells.csv")
