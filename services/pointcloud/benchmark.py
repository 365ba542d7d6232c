"""Measures the point-cloud models, each table by one command, and prints Markdown.

    python -m services.pointcloud.benchmark probe --data SET --out DIR      Chamfer, linear probe, floors; 3 seeds
    python -m services.pointcloud.benchmark ceiling --data SET --out DIR    the same encoder when it is told the classes
    python -m services.pointcloud.benchmark decoders --data SET --out DIR   folding beside dense, equally trained
    python -m services.pointcloud.benchmark dispersion --out DIR            cube–sphere sets, 3 seeds, and a plot
    python -m services.pointcloud.benchmark step                            a training step beside the plain formulation

SET is a folder as datasets.py describes (ModelNet10/40 and ShapeNet as they are unpacked) or a file of arrays. What
was trained stays in DIR: a command that was interrupted goes on there. --set changes TrainConfig's fields.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from services.pointcloud import cube_sphere
from services.pointcloud.chamfer import chamfer
from services.pointcloud.datasets import Shapes, capped
from services.pointcloud.evaluate import (
    Classified,
    accuracy,
    batch_of,
    encode,
    family_bootstrap,
    hand_made,
    linear_probe,
    macro_accuracy,
    nearest_neighbour,
    nearest_shape_errors,
    reconstruction_errors,
)
from services.pointcloud.model import (
    CODEWORD,
    COVARIANCE_SCALE,
    Autoencoder,
    DGCNNEncoder,
    FoldingDecoder,
    GraphEncoder,
    parameters_in,
)
from services.pointcloud.plots import codeword_map
from services.pointcloud.schemas import TrainConfig
from services.pointcloud.surface import grid
from services.pointcloud.train import fit, learning_rate_share, prepare, seen
from shared.jobs.config import read_config
from shared.jobs.context import LocalContext

SEEDS = (0, 1, 2)
PROBED_POINTS = 1024
MEASURED = 100  # test shapes whose reconstruction is measured, most


def probe(data: Path, out: Path, values: Mapping[str, Any], seeds: Sequence[int] = SEEDS) -> str:
    """For each seed, another split by family and another training: Chamfer distance, and what codewords are worth
    beside a random encoder's and hand-made features. Of a family no more shapes are probed, or tested, than
    `family_cap`, else a few long series would decide everything."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        config = read_config(TrainConfig, {**values, "seed": seed})
        done = out / f"seed{seed}" / "figures.json"
        if not done.is_file():
            shapes, split_S = prepare(config, data)
            model = fit(config, shapes, split_S, LocalContext(done.parent))
            done.write_text(json.dumps(probed(config, model, shapes, split_S, done.parent)))
        rows.append(json.loads(done.read_text()))
    return _table(rows)


def probed(
    config: TrainConfig, model: Autoencoder, shapes: Shapes, split_S: NDArray[np.int64], out: Path
) -> dict[str, Any]:
    """Every figure of one seed."""
    torch.manual_seed(config.seed + 1000)
    chance = Autoencoder(config.encoder, "folding", config.source, config.resolution).eval()
    chosen, known = _probed_shapes(config, shapes, split_S)
    (mine, mine_layers), (random, random_layers) = encode(
        [model.encoder, chance.encoder], shapes, chosen.tolist(), PROBED_POINTS
    )
    inputs = {
        "codeword": mine,
        "local layers": mine_layers,
        "codeword and local layers": np.concatenate([mine, mine_layers], axis=1),
        "random encoder: codeword": random,
        "random encoder: local layers": random_layers,
        "hand-made features": np.stack([hand_made(shapes.cloud(int(index))) for index in chosen]),
    }
    figures: dict[str, Any] = {}
    for name, x_SD in inputs.items():
        figures[f"{name}, SVM"] = _figures(linear_probe(x_SD, *known))
        figures[f"{name}, nearest"] = _figures(nearest_neighbour(x_SD, *known))
    test = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(split_S == 2))[:MEASURED])
    errors = reconstruction_errors(model, shapes, test.tolist(), config.points[1])
    # A training shape at hand for each family is enough of a memory to compare with.
    memory = capped(shapes, np.flatnonzero(split_S == 0), 1, np.random.default_rng(0))
    floor = nearest_shape_errors(shapes, test[:40].tolist(), memory.tolist(), 256)
    low, high = family_bootstrap(lambda index: float(errors[index].mean()), [shapes.families[i] for i in test])
    figures["chamfer"] = {"value": float(errors.mean()), "low": low, "high": high, "n": len(errors)}
    figures["chamfer of nearest training shape"] = {"value": float(floor.mean()), "n": len(floor)}
    codeword_map(mine, known[0], shapes.labels, out / "codewords.png")
    return figures


def ceiling(data: Path, out: Path, values: Mapping[str, Any], seeds: Sequence[int] = SEEDS) -> str:
    """The same encoder trained on the classes themselves, probed as in `probe`: what a codeword of this size that is
    learnt without them can hope for on this split."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        config = read_config(TrainConfig, {**values, "seed": seed})
        done = out / f"ceiling{seed}.json"
        if not done.is_file():
            shapes, split_S = prepare(config, data)
            encoder = supervised(config, shapes, split_S)
            chosen, known = _probed_shapes(config, shapes, split_S)
            ((codes, _),) = encode([encoder], shapes, chosen.tolist(), PROBED_POINTS)
            found = {"SVM": linear_probe(codes, *known), "nearest": nearest_neighbour(codes, *known)}
            done.write_text(json.dumps({f"told the classes, {name}": _figures(each) for name, each in found.items()}))
        rows.append(json.loads(done.read_text()))
    return _table(rows)


def supervised(config: TrainConfig, shapes: Shapes, split_S: NDArray[np.int64]) -> GraphEncoder | DGCNNEncoder:
    """An encoder whose codewords a linear layer divides into the classes, by the configuration's steps."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    encoder = Autoencoder(config.encoder).encoder
    head = torch.nn.Linear(CODEWORD, len(shapes.labels))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=config.learning_rate)
    training = np.flatnonzero((split_S == 0) & (shapes.label_S >= 0))
    for epoch in range(config.epochs):
        random = np.random.default_rng([config.seed, epoch])
        order = capped(shapes, training, config.family_cap, random)
        steps = max(1, len(order) // config.batch_size)
        losses: list[float] = []
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_share((epoch + step / steps) / config.epochs)
            chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
            clouds = [seen(shapes.cloud(int(index)), 2 * config.points[0], config, random) for index in chosen]
            logits_BC = head(F.relu(encoder(*batch_of(clouds))))
            loss = F.cross_entropy(logits_BC, torch.from_numpy(shapes.label_S[chosen]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        logging.info("%d/%d loss=%.3f", epoch + 1, config.epochs, statistics.mean(losses))
    return encoder.eval()


def _probed_shapes(
    config: TrainConfig, shapes: Shapes, split_S: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64], list[str]]]:
    """Which shapes are probed, no more than `family_cap` of a family; their labels, splits and families."""
    drawing = np.random.default_rng(config.seed)
    parts = [np.flatnonzero((shapes.label_S >= 0) & (split_S == part)) for part in range(3)]
    chosen = np.sort(np.concatenate([capped(shapes, part, config.family_cap, drawing) for part in parts]))
    return chosen, (shapes.label_S[chosen], split_S[chosen], [shapes.families[index] for index in chosen])


def _figures(found: Classified) -> dict[str, Any]:
    low, high = found.interval(accuracy)
    macro_low, macro_high = found.interval(macro_accuracy)
    return {
        "accuracy": found.accuracy, "low": low, "high": high, "n": len(found.label_S), "penalty": found.penalty,
        "macro": found.macro, "macro_low": macro_low, "macro_high": macro_high,
    }  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, and the first seed's interval over families."""
    lines = ["| classified by | accuracy, % | seed 0, 95 % | macro, % | seed 0, 95 % |", "|---|---|---|---|---|"]
    for name in rows[0]:
        if "accuracy" not in rows[0][name]:
            continue
        figures = [row[name] for row in rows]
        first = figures[0]
        lines.append(
            f"| {name} | {_spread([100 * item['accuracy'] for item in figures])} "
            f"| {100 * first['low']:.1f}–{100 * first['high']:.1f} "
            f"| {_spread([100 * item['macro'] for item in figures])} "
            f"| {100 * first['macro_low']:.1f}–{100 * first['macro_high']:.1f} |"
        )
    for name in ("chamfer", "chamfer of nearest training shape"):
        if name not in rows[0]:
            continue
        lines.append(f"\n{name}: {_spread([row[name]['value'] for row in rows], 4)} (n = {rows[0][name]['n']})")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int = 1) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def decoders(data: Path, out: Path, values: Mapping[str, Any], seeds: Sequence[int] = SEEDS[:1]) -> str:
    """The folding and the dense decoder behind the same encoder, with as many steps of as many clouds."""
    lines = ["| decoder | parameters | Chamfer, test | 95 % |", "|---|---|---|---|"]
    for decoder in ("folding", "dense"):
        for seed in seeds:
            config = read_config(TrainConfig, {**values, "decoder": decoder, "seed": seed})
            done = out / f"{decoder}{seed}" / "figures.json"
            if not done.is_file():
                shapes, split_S = prepare(config, data)
                model = fit(config, shapes, split_S, LocalContext(done.parent))
                test = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(split_S == 2))[:MEASURED])
                errors = reconstruction_errors(model, shapes, test.tolist(), config.points[1])
                low, high = family_bootstrap(lambda i, e=errors: float(e[i].mean()), [shapes.families[i] for i in test])
                figures = {"value": float(errors.mean()), "low": low, "high": high}
                figures["parameters"] = parameters_in(model.decoder)
                done.write_text(json.dumps(figures))
            item = json.loads(done.read_text())
            lines.append(
                f"| {decoder}, seed {seed} | {item['parameters']:,} | {item['value']:.4f} "
                f"| {item['low']:.4f}–{item['high']:.4f} |"
            )
    return "\n".join(lines)


# -- the training step


def step(rounds: int = 5, batch: int = 4, points: int = 2048) -> str:
    """CPU time of forward and backward at the served sizes, ours and the plain formulation in turn, in one process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Autoencoder()
    random = np.random.default_rng(0)
    clouds = [random.normal(size=(points, 3)).astype(np.float32) / 3 for _ in range(batch)]
    features, neighbours = batch_of(clouds)
    source = torch.from_numpy(grid())

    def ours() -> Tensor:
        return chamfer(features[..., :3], model(features, neighbours, source)).mean()

    def plain() -> Tensor:
        return chamfer(features[..., :3], plain_forward(model, features, neighbours, source)).mean()

    spent: dict[str, list[float]] = {"ours": [], "plain": []}
    losses: dict[str, float] = {}
    for _ in range(rounds + 1):
        for name, call in (("ours", ours), ("plain", plain)):
            model.zero_grad()
            started = time.process_time()
            loss = call()
            loss.backward()
            spent[name].append((time.process_time() - started) / batch * 1000)
            losses[name] = loss.item()
    mine, theirs = (statistics.median(spent[name][1:]) for name in ("ours", "plain"))
    return (
        "| training step, 2,048 points | CPU-ms a cloud | loss |\n|---|---|---|\n"
        f"| ours | {mine:.0f} | {losses['ours']:.6f} |\n| plain formulation | {theirs:.0f} | {losses['plain']:.6f} |\n"
        f"\n{theirs / mine:.2f} times as fast; medians of {rounds} rounds in turn, forward, loss and backward"
    )


def plain_forward(model: Autoencoder, features: Tensor, neighbours: Tensor, source: Tensor) -> Tensor:
    """The same network as it is usually written: neighbours gathered, codeword repeated beside every point."""
    encoder, decoder = model.encoder, model.decoder
    if not isinstance(encoder, GraphEncoder) or not isinstance(decoder, FoldingDecoder):
        raise ValueError("Written out for FoldingNet alone.")
    values = encoder.points(torch.cat([features[..., :3], features[..., 3:] * COVARIANCE_SCALE], -1))
    rows = torch.arange(len(values))[:, None, None]
    values = F.relu(encoder.graph(values[rows, neighbours].amax(2)))
    code = encoder.head(encoder.whole(values[rows, neighbours].amax(2)).amax(1))
    points = source.expand(len(code), -1, -1)
    for fold in (decoder.first, decoder.second):
        weight = torch.cat([fold.source.weight, fold.codeword.weight], 1)
        beside = torch.cat([points, code[:, None].expand(-1, points.shape[1], -1)], -1)
        points = fold.out(F.relu(fold.hidden(F.relu(F.linear(beside, weight, fold.codeword.bias)))))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", choices=("probe", "ceiling", "decoders", "dispersion", "step"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("measured"))
    parser.add_argument("--seeds", type=int, nargs="*", default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="TrainConfig fields")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    values: dict[str, Any] = dict(item.split("=", 1) for item in given.set)
    if "points" in values:
        values["points"] = values["points"].split(",")
    given.out.mkdir(parents=True, exist_ok=True)
    seeds = {} if given.seeds is None else {"seeds": given.seeds}
    tables: dict[str, Callable[[], str]] = {
        "probe": lambda: probe(given.data, given.out, values, **seeds),
        "ceiling": lambda: ceiling(given.data, given.out, values, **seeds),
        "decoders": lambda: decoders(given.data, given.out, values, **seeds),
        "dispersion": lambda: cube_sphere.experiment(given.out, **seeds),
        "step": step,
    }
    print(tables[given.table]())


if __name__ == "__main__":
    main()
