"""Measures the bot models on whole data sets, each by one command, and prints Markdown tables.

    python -m services.bots.benchmark accounts --path DIR     a labelled table of accounts, 5 seeds, floors beside it
    python -m services.bots.benchmark twibot --path DIR       the TwiBot-22 sample's tensors and metadata
    python -m services.bots.benchmark mgtab --path DIR        MGTAB's protocol on its files, every encoder
    python -m services.bots.benchmark scale [--accounts N]    a synthetic graph scored whole, and single accounts

MGTAB's protocol: seeds 0–4, a 70/20/10 split of a shuffle that is not stratified, the epoch chosen on validation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from services.bots.batch import load_network, score_arrays
from services.bots.datasets import load_graph
from services.bots.features import PROPERTIES
from services.bots.graphs import RELATIONS, Edges, GraphData
from services.bots.predict import BotsPredictor, load
from services.bots.schemas import TrainConfig
from services.bots.train import train_graph
from shared.bundles import Bundle, Manifest
from shared.jobs.context import LocalContext
from shared.settings import ServiceSettings

SEEDS = range(5)
Encoder = Literal["mlp", "rgcn", "botrgcn", "rgt", "ggcn"]
ENCODERS: tuple[Encoder, ...] = get_args(Encoder)
FIGURES = ("accuracy", "macro_f1", "auc", "ece")
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
PUBLISHED = {"bot": "RGT 92.12 / 90.41", "stance": "RGT 87.78 / 86.86"}
MGTAB_CONFIG = TrainConfig(
    hidden=256, dropout=0.3, learning_rate=1e-3, weight_decay=5e-4, text_encoder="given", direction="as-given"
)


def accounts(
    graph: GraphData,
    encoders: Sequence[Encoder],
    out: Path | None,
    *,
    epochs: int | None = None,
    seeds: Sequence[int] = SEEDS,
) -> str:
    """Bot detection on a table of accounts: mean ± standard deviation of the test figures over the seeds."""
    results: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for encoder in encoders:
            config = TrainConfig(encoder=encoder, seed=seed, floors=encoder == encoders[0])
            manifest = _trained(graph, config.model_copy(update={"epochs": epochs or config.epochs}))
            for view in manifest.constants["views"]:
                _note(results, f"{encoder}, view {view}", manifest, f"bot_{view}_")
            if encoder == encoders[0]:
                for floor in ("gradient_boosting", "random_forest", "MLP"):
                    _note(results, f"floor: {floor.replace('_', ' ')}", manifest, f"floor_bot_{floor}_")
    share = max(graph.bot_N.mean(), 1 - graph.bot_N.mean())
    results["floor: majority class"] = [{"accuracy": float(share)}]
    return _told(results, out)


def mgtab(
    path: Path, encoders: Sequence[Encoder], out: Path | None, *, epochs: int = 200, seeds: Sequence[int] = SEEDS
) -> str:
    """MGTAB's protocol for both tasks."""
    graph = load_graph(path)
    results: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        split_N = np.full(len(graph.ids), -1, np.int64)
        order = np.random.default_rng(seed).permutation(len(graph.ids))
        split_N[order] = np.searchsorted((0.7 * len(order), 0.9 * len(order)), np.arange(len(order)) + 0.5)
        seeded = replace(graph, split_N=split_N)
        for encoder in encoders:
            config = MGTAB_CONFIG.model_copy(
                update={"encoder": encoder, "seed": seed, "epochs": epochs, "floors": encoder == encoders[0]}
            )
            manifest = _trained(seeded, config)
            for task in ("bot", "stance"):
                _note(results, f"{task}: {encoder}", manifest, f"{task}_")
                for floor in ("gradient_boosting", "random_forest") if config.floors else ():
                    _note(results, f"{task}: floor {floor.replace('_', ' ')}", manifest, f"floor_{task}_{floor}_")
    table = _told(results, out)
    return table + "\nPublished (accuracy / macro-F1): " + "; ".join(f"{k} {v}" for k, v in PUBLISHED.items()) + "\n"


def twibot(path: Path) -> GraphData:
    """The TwiBot-22 sample: its twenty numbers have no names, so it is for floors and the MLP encoder only.

    They are scaled to 0–1 by their quantiles. The sample's own masks are not used: a third of its training accounts are
    bots and 72 % of its test accounts, so that they measure the shift of the share more than the model.
    """
    tensors = {
        name: torch.load(path / f"{name}_10k.pt", weights_only=True).numpy()
        for name in ("num_properties_tensor", "label")
    }
    values = tensors["num_properties_tensor"].astype(np.float32)
    ranks = np.stack([np.searchsorted(np.sort(column), column) for column in values.T], axis=1)
    return GraphData(
        ids=[str(number) for number in range(len(values))],
        values_NP=(ranks / len(values)).astype(np.float32),
        texts=[[] for _ in values],
        edges=Edges.none(),
        relations=(),
        bot_N=tensors["label"].astype(np.int64),
        stance_N=np.full(len(values), -1, np.int64),
        split_N=np.full(len(values), -1, np.int64),
    )


def scale(sizes: Sequence[tuple[int, int]], encoder: Encoder, rounds: int = 3) -> str:
    """Time and memory of whole graphs, and of single accounts with a fan-out of 25 × 10; nothing is read from disk.

    The least of the rounds counts. The CPU time of one thread shows whether the cost grows linearly: two threads spin
    where they wait for each other.
    """
    os.environ.setdefault(LARGE_PAGES, "1")  # as the workers have it; torch looks when it first takes memory
    bundle = _synthetic_bundle(encoder)
    predictor = load(bundle, ServiceSettings())
    model = load_network(bundle, predictor.calibration)
    lines = ["| accounts | edges | seconds | CPU, ns an edge | peak memory, MB |", "|---|---|---|---|---|"]
    found: list[tuple[int, float]] = []
    for count, edges in sizes:
        graph = synthetic(count, edges)
        wall, cpu = math.inf, math.inf
        for _ in range(rounds):
            torch.set_num_threads(2)
            started = time.perf_counter()
            score_arrays(model, predictor.calibration, graph)
            wall = min(wall, time.perf_counter() - started)
            torch.set_num_threads(1)
            spent = time.process_time()
            score_arrays(model, predictor.calibration, graph)
            cpu = min(cpu, time.process_time() - spent)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        each = 1e9 * cpu / len(graph.edges)
        lines.append(f"| {count:,} | {len(graph.edges):,} | {wall:.2f} | {each:.0f} | {peak:,.0f} |")
        found.append((len(graph.edges), cpu))
    p50, p95, nodes = single_account(predictor, synthetic(20_000, 2_000_000))
    lines.append(f"\nOne account, fan-out 25 × 10 ({nodes} accounts): p50 {p50:.1f} ms, p95 {p95:.1f} ms\n")
    return "\n".join([*lines, *_chart(found[1:])])


def _chart(found: Sequence[tuple[int, float]]) -> list[str]:
    """A Mermaid plot of CPU seconds over edges; the sizes are evenly spaced, as its axis is."""
    return [
        "```mermaid",
        "xychart-beta",
        f'    x-axis "million edges" [{", ".join(f"{edges / 1e6:.1f}" for edges, _ in found)}]',
        '    y-axis "CPU seconds" 0 --> ' + f"{math.ceil(max(cpu for _, cpu in found))}",
        f"    line [{', '.join(f'{cpu:.2f}' for _, cpu in found)}]",
        "```",
    ]


def single_account(predictor: BotsPredictor, graph: GraphData, rounds: int = 200) -> tuple[float, float, int]:
    """(p50, p95) in milliseconds of sampling and scoring one account, and the accounts in a sample."""
    near = predictor.neighbourhood(graph)
    spent: list[float] = []
    nodes = 0
    for root in range(rounds):
        started = time.perf_counter()
        query = predictor.query(graph, near, root, (25, 10), 0)
        predictor.predict([query])
        spent.append((time.perf_counter() - started) * 1000)
        nodes = max(nodes, len(query.values_MP))
    return float(np.percentile(spent[10:], 50)), float(np.percentile(spent[10:], 95)), nodes


def synthetic(accounts: int, edges: int, seed: int = 0) -> GraphData:
    """A random graph of seven relations with two kinds of accounts whose properties differ a little. Not real."""
    random = np.random.default_rng(seed)
    bot_N = (random.random(accounts) < 0.3).astype(np.int64)
    values = random.random((accounts, len(PROPERTIES)), np.float32)
    values[:, 3] = np.clip(values[:, 3] * 0.5 + 0.3 * bot_N, 0, 1)
    source = random.integers(0, accounts, edges)
    # Most edges stay among accounts of one kind, as most follows do.
    target = random.integers(0, accounts, edges)
    same = random.permutation(accounts)
    kind = bot_N[same]
    ordered = same[np.argsort(kind, kind="stable")]
    humans = int((bot_N == 0).sum())
    near = random.random(edges) < 0.6
    of_kind = np.where(bot_N[source] == 1, random.integers(humans, accounts, edges), random.integers(0, humans, edges))
    target = np.where(near, ordered[of_kind], target)
    relation = random.integers(0, len(RELATIONS), edges)
    return GraphData(
        ids=[str(number) for number in range(accounts)],
        values_NP=values,
        texts=[],
        edges=Edges(source, target, relation).cleaned(accounts)[0],
        relations=RELATIONS,
        bot_N=bot_N,
        stance_N=random.integers(0, 3, accounts),
        split_N=np.full(accounts, -1, np.int64),
    )


def _synthetic_bundle(encoder: Encoder) -> Bundle:
    folder = Path(tempfile.mkdtemp(prefix="fourfold-scale-"))
    config = TrainConfig(encoder=encoder, epochs=2, floors=False, direction="as-given")
    return Bundle.open(train_graph(config, synthetic(2_000, 40_000), LocalContext(folder)))


def _trained(graph: GraphData, config: TrainConfig) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        return Bundle.open(train_graph(config, replace(graph), LocalContext(Path(folder)))).manifest


def _note(results: dict[str, list[dict[str, float]]], name: str, manifest: Manifest, prefix: str) -> None:
    found = {
        figure: manifest.metrics[prefix + figure].value for figure in FIGURES if prefix + figure in manifest.metrics
    }
    if found:
        results.setdefault(name, []).append(found)


def _told(results: dict[str, list[dict[str, float]]], out: Path | None) -> str:
    if out is not None:
        out.write_text(json.dumps(results, indent=1))
    lines = [f"| | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 1) + "|"]
    for name, runs in results.items():
        lines.append(f"| {name} | {' | '.join(_mean(runs, figure) for figure in FIGURES)} |")
    return "\n".join(lines) + "\n"


def _mean(runs: Sequence[dict[str, float]], figure: str) -> str:
    values: NDArray[Any] = np.array([run[figure] for run in runs if figure in run])
    return (
        f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"
        if len(values) > 1
        else f"{values.mean():.4f}"
        if len(values)
        else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["accounts", "twibot", "mgtab", "scale"])
    parser.add_argument("--path", type=Path, help="where the data are")
    parser.add_argument("--encoders", nargs="*", default=None, choices=ENCODERS)
    parser.add_argument("--accounts", type=int, default=1_000_000, help="of the largest synthetic graph")
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    given = parser.parse_args()
    if given.what == "scale":
        parts = [given.accounts * part // 5 for part in range(1, 6)]
        sizes = [
            (min(10_199, given.accounts), 167 * min(10_199, given.accounts)),
            *((count, 20 * count) for count in parts),
        ]
        print(scale(sizes, given.encoders[0] if given.encoders else "rgcn"))
        return
    if given.path is None:
        parser.error("--path is needed")
    if given.what == "mgtab":
        print(mgtab(given.path, given.encoders or ENCODERS, given.out))
    else:
        graph = twibot(given.path) if given.what == "twibot" else load_graph(given.path, exclude=True)
        print(accounts(graph, given.encoders or ("mlp",), given.out))


if __name__ == "__main__":
    main()
