"""Measures the papers' claims in small on a real image set, each table by one command, and prints Markdown.

    python -m services.audits.benchmark groups --images DIR --out FILE    worst group by width, 3 seeds
    python -m services.audits.benchmark phases --images DIR --out FILE    what ranks test accuracy, 3 seeds a cell
    python -m services.audits.benchmark attacks --images DIR --out FILE   NAIVEATTACK, DOORPING and the scans, 3 seeds
    python -m services.audits.benchmark clean --images DIR --out FILE     the check backdoor's false alarms, 30 times

DIR is a folder as image_sets.py describes, such as Debian's /usr/share/datasets/fashion-mnist; scikit-learn's digits
if it is left out. The rows are kept in FILE as they come: a command that was interrupted goes on there. --set changes
the recipe's fields.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.audits.false_alarms import false_alarms
from services.audits.image_sets import ImageSet, digits, load_image_set
from services.audits.intervals import mean
from services.audits.phase_diagram import phase_diagram, predictors
from services.audits.phases import load_cuts
from services.audits.red_team import red_team
from services.audits.report import Verdict
from services.audits.scaling import scaling
from services.audits.schemas import FalseAlarmsConfig, ImageRecipe, PhaseDiagramConfig, RedTeamConfig, ScalingConfig
from shared.jobs.config import read_config

Rows = list[dict[str, Any]]
LEAST_CELLS = 5  # of a phase diagram; the ranks of fewer are mostly chance


def pieces_of_scaling(config: ScalingConfig) -> Iterator[ScalingConfig]:
    """The recipe in pieces that are kept one by one: a seed and a width each."""
    for number in range(config.seeds):
        for width in config.widths:
            yield config.model_copy(update={"seed": config.seed + number, "seeds": 1, "widths": [width]})


def pieces_of_phases(config: PhaseDiagramConfig) -> Iterator[PhaseDiagramConfig]:
    for width in config.widths:
        for batch in config.batches:
            yield config.model_copy(update={"widths": [width], "batches": [batch]})


def pieces_of_attacks(config: RedTeamConfig) -> Iterator[RedTeamConfig]:
    for number in range(config.seeds):
        for attack in config.attacks:
            yield config.model_copy(update={"seed": config.seed + number, "seeds": 1, "attacks": [attack]})


def pieces_of_clean(config: FalseAlarmsConfig) -> Iterator[FalseAlarmsConfig]:
    for number in range(config.seeds):
        yield config.model_copy(update={"seed": config.seed + number, "seeds": 1})


def groups_table(rows: Rows) -> str:
    """Average and worst-group accuracy by width, depth and pretraining; whether the worst group gains with width."""
    lines = [
        "| width | depth | pretrained | training | average | worst group | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for width, depth, pretrained in sorted({(row["width"], row["depth"], row["pretrained"]) for row in rows}):
        mine = [row for row in rows if (row["width"], row["depth"], row["pretrained"]) == (width, depth, pretrained)]
        cells = " | ".join(_spread(mine, name) for name in ("train", "average", "worst"))
        lines.append(f"| {width} | {depth} | {'yes' if pretrained else 'no'} | {cells} | {len(mine)} |")
    for pretrained in sorted({row["pretrained"] for row in rows}):
        mine = [row for row in rows if row["pretrained"] == pretrained]
        ends = min(row["width"] for row in mine), max(row["width"] for row in mine)
        if ends[0] == ends[1]:
            continue
        worst = {
            end: {(row["seed"], row["depth"]): row["worst"] for row in mine if row["width"] == end} for end in ends
        }
        gain = mean(np.array([worst[ends[1]][key] - value for key, value in worst[ends[0]].items()]))
        interval = f"{gain.low:+.3f} to {gain.high:+.3f}, {gain.n} seeds" if gain.n > 1 else "one training, no interval"
        lines.append(
            f"\nWorst group, width {ends[1]} less width {ends[0]}, {'' if pretrained else 'not '}pretrained: "
            f"{gain.value:+.3f} ({interval})."
        )
    return "\n".join(lines)


def phases_table(rows: Rows) -> str:
    """Every cell, and the rank correlations with test accuracy."""
    cuts = load_cuts()
    lines = [
        "| width | batch | test accuracy | training loss | top eigenvalue | connectivity | CKA | phase |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda one: (one["width"], one["batch"])):
        phase = cuts.label(row["train_loss"], row["mode_connectivity"], row["cka"])
        lines.append(
            f"| {row['width']} | {row['batch']} | {row['test_accuracy']:.3f} ± {row['test_accuracy_sd']:.3f} | "
            f"{row['train_loss']:.3f} | {row['top_eigenvalue']:.1f} | {row['mode_connectivity']:+.1f} | "
            f"{row['cka']:.2f} | {phase} |"
        )
    if len(rows) < LEAST_CELLS:
        return "\n".join([*lines, "", f"Nothing is ranked: {len(rows)} cells, and it takes {LEAST_CELLS}."])
    lines += ["", "| measure | Spearman with test accuracy | with width held fixed |", "|---|---|---|"]
    for name, found in predictors(rows).items():
        cells = [f"{value:+.2f} ({low:+.2f} to {high:+.2f})" for value, low, high in found.values()]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def attacks_table(rows: Rows) -> str:
    """Accuracy and success of each attack and training, and what each scan finds."""
    names = ["accuracy", "success", "without_trigger", "strip_inputs", "spectral", "clustering"]
    if any("inverted_index" in row for row in rows):
        names.append("inverted_index")
    lines = [f"| attack | training | {' | '.join(name.replace('_', ' ') for name in names)} | seeds |"]
    lines.append("|" + "---|" * (len(names) + 3))
    for attack, training in sorted({(row["attack"], row["training"]) for row in rows}, reverse=True):
        mine = [row for row in rows if (row["attack"], row["training"]) == (attack, training)]
        cells = " | ".join(_spread(mine, name) for name in names)
        lines.append(f"| {attack} | {training} | {cells} | {len(mine)} |")
    return "\n".join(lines)


def clean_table(rows: Rows) -> str:
    """How many of the clean trainings got each verdict, with Wilson's interval, and what STRIP alone would name."""
    lines = ["| verdict | trainings | share (95 % interval) |", "|---|---|---|"]
    for verdict in (Verdict.PASSES, Verdict.LOOK, Verdict.STOP, Verdict.NOT_ASSESSED):
        share = mean(np.array([row["verdict"] == verdict for row in rows]))
        count = sum(row["verdict"] == verdict for row in rows)
        lines.append(f"| {verdict} | {count} of {share.n} | {share.value:.2f} ({share.low:.2f}–{share.high:.2f}) |")
    named = [row["strip"] for row in rows if row["strip"] is not None]
    spread = f"{np.mean(named):.2f} (at most {max(named):.2f})" if named else "not asked"
    lines.append(f"\nAccuracy {_spread(rows, 'accuracy')}; named by STRIP, of the class where most are: {spread}.")
    lines += [f"- seed {row['seed']}: {row['summary']}" for row in rows if row["verdict"] != Verdict.PASSES]
    return "\n".join(lines)


def _spread(rows: Rows, name: str) -> str:
    found = [row[name] for row in rows if name in row]
    if not found:
        return ""
    if len(found) == 1:
        return f"{found[0]:.3f}"
    return f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}"


Piece = Callable[[Any, ImageSet], Rows]
TABLES: dict[str, tuple[type[ImageRecipe], Callable[[Any], Iterator[Any]], Piece, Callable[[Rows], str]]] = {
    "groups": (ScalingConfig, pieces_of_scaling, scaling, groups_table),
    "phases": (PhaseDiagramConfig, pieces_of_phases, phase_diagram, phases_table),
    "attacks": (RedTeamConfig, pieces_of_attacks, red_team, attacks_table),
    "clean": (FalseAlarmsConfig, pieces_of_clean, false_alarms, clean_table),
}


def measured(name: str, config: Any, images: ImageSet, out: Path) -> str:
    """The table's Markdown; every piece of the recipe is kept in `out` (JSON lines) as soon as it is there."""
    _, pieces, run, table = TABLES[name]
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    kept = {entry["config"]: entry for entry in known}
    rows: Rows = []
    seconds = 0.0
    for piece in pieces(config):
        key = piece.model_dump_json()
        if key not in kept:
            start = time.process_time()
            kept[key] = {"config": key, "rows": run(piece, images), "cpu_seconds": time.process_time() - start}
            with out.open("a") as file:
                file.write(json.dumps(kept[key]) + "\n")
        rows += kept[key]["rows"]
        seconds += kept[key]["cpu_seconds"]
    return f"{table(rows)}\n\n{seconds:.0f} s of processor time, one thread."


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--images", type=Path, help="an image set, as image_sets.py describes; digits if left out")
    parser.add_argument("--out", type=Path, required=True, help="where rows are kept, as JSON lines")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields of the recipe; JSON values")
    given = parser.parse_args(words)
    values = {key: _value(value) for key, value in (item.split("=", 1) for item in given.set)}
    config = read_config(TABLES[given.table][0], values)
    torch.set_num_threads(config.threads)
    images = digits() if given.images is None else load_image_set(given.images)
    print(measured(given.table, config, images, given.out))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
