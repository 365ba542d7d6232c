"""Measures contrastive pre-training of graph embeddings beside what costs nothing.

    python -m services.bots.pretrain --data DIR_OR_FILE --set-name MUTAG [--epochs 20 …] [--out results.json]

Shapes: B graphs, D features, F folds. The protocol: frozen encoder and a linear SVM on standardised columns, whose C
is chosen on an inner split of the training folds; stratified folds, mean ± standard deviation over seeds. The encoder
is trained on all graphs without labels, as in the published work; the SVM and its scaling see the training folds only.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_array, issparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from services.bots.contrastive import (
    GIN,
    Augmentation,
    ContrastSettings,
    Synonyms,
    augmentations,
    contrast,
    embed,
    pair_agreement,
)
from services.bots.graph_sets import DEGREE_CAP, BadGraphSet, Graph, GraphSet, load_set
from shared.jobs.config import ConfigInvalid, RecipeConfig, read_config
from shared.jobs.context import LocalContext, TrainingContext, check_stop

AugmentationName = Literal["nodes", "edges", "mask", "subgraph", "text", "none"]
PENALTIES = tuple(10.0**power for power in range(-3, 4))
BASELINES = {"untrained": "the untrained encoder", "histogram": "the histogram", "majority": "the majority class"}
MEASURES = ("pairs_learned", "pairs_untrained", "label_kept")
LEAST_OF_A_CLASS = 10

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
Features = NDArray[np.float32] | csr_array


class PretrainConfig(RecipeConfig):
    """The configuration of the `pretrain` recipe; GraphCL's values where it has them."""

    set_name: str = "MUTAG"
    augmentations: tuple[AugmentationName, ...] = Field(default=(), description="Empty: all that suit the set.")
    epochs: int = Field(default=20, ge=1, le=1000)
    seeds: int = Field(default=3, ge=1, le=100)
    folds: int = Field(default=10, ge=3, le=20)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)
    temperature: float = Field(default=0.2, gt=0)
    ratio: float = Field(default=0.2, ge=0, lt=1, description="The share of nodes, edges or words that is changed.")
    hidden: int = Field(default=32, ge=1)
    layers: int = Field(default=3, ge=1)


def pretrain(config: PretrainConfig, data: Path, context: TrainingContext) -> Path:
    """Measure on the set in `data` (see `load_set`); return the folder with report.json and report.md.

    A run resumed from the context's checkpoint goes on after the last encoder that was measured. Raises BadGraphSet,
    ConfigInvalid or JobStopped.
    """
    graph_set = load_set(data, config.set_name)
    _check_classes(graph_set, config.folds)
    table = _table(config, graph_set)
    torch.set_num_threads(config.threads)
    results = context.restore() or {}
    total = config.seeds * (len(BASELINES) + len(table))
    for seed in range(config.seed, config.seed + config.seeds):
        folds = _folds(graph_set.labels(), config.folds, seed)
        for variant in (*BASELINES, *table):
            if f"accuracy.{seed}.{variant}" in results:
                continue
            results |= _measure(config, graph_set, table, folds, seed, variant, context)
            context.checkpoint(results)
            done = sum(name.startswith("accuracy.") for name in results)
            accuracy = float(results[f"accuracy.{seed}.{variant}"].mean())
            context.logger.info("%s, seed %d, %s: %.2f %%", graph_set.name, seed, variant, 100 * accuracy)
            context.report(step=done, total=total, accuracy=accuracy)
    folder = context.artefact("report")
    folder.mkdir(parents=True, exist_ok=True)
    report = summarise(config, graph_set, tuple(table), results)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    return folder


def _check_classes(graph_set: GraphSet, folds: int) -> None:
    least = max(folds, LEAST_OF_A_CLASS)
    counts = np.bincount(graph_set.labels())
    if len(counts) < 2 or counts.min() < least:
        raise BadGraphSet(
            f"{graph_set.name}: it takes two classes or more, and {least} graphs of each; there are {counts.tolist()}."
        )


def _table(config: PretrainConfig, graph_set: GraphSet) -> dict[str, Augmentation]:
    """The augmentations that are wanted, in the order of the configuration."""
    synonyms = Synonyms.load(graph_set.vocabulary) if graph_set.vocabulary else None
    known = augmentations(graph_set.width, synonyms, config.ratio)
    wanted = config.augmentations or tuple(known)
    for name in wanted:
        if name not in known:
            problem = f"the set {graph_set.name} has no texts to change"
            raise ConfigInvalid(f"augmentations: {problem}", errors=[{"field": "augmentations", "problem": problem}])
    return {name: known[name] for name in wanted}


def _folds(labels_B: NDArray[np.int64], folds: int, seed: int) -> list[Fold]:
    """Rows of training and test, stratified; the same for every variant of a seed."""
    return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels_B[:, None], labels_B))


def _measure(
    config: PretrainConfig,
    graph_set: GraphSet,
    table: Mapping[str, Augmentation],
    folds: Sequence[Fold],
    seed: int,
    variant: str,
    context: TrainingContext,
) -> dict[str, NDArray[Any]]:
    """`accuracy.SEED.VARIANT` (F,), and `MEASURE.SEED.AUGMENTATION` (1,) of what the variant tells."""
    graphs, labels_B = graph_set.graphs, graph_set.labels()
    key = f"accuracy.{seed}.{variant}"
    if variant == "majority":
        common = [np.bincount(labels_B[rows]).argmax() for rows, _ in folds]
        return {key: np.array([(labels_B[rows] == most).mean() for most, (_, rows) in zip(common, folds, strict=True)])}
    if variant == "histogram":
        return {key: cross_validate(histogram(graph_set), labels_B, folds, seed)[0]}
    torch.manual_seed(seed)
    device = torch.device(
        "cuda" if config.device == "auto" and torch.cuda.is_available() else config.device.replace("auto", "cpu")
    )
    encoder = GIN(graph_set.width, config.hidden, config.layers).to(device)
    if variant == "untrained":
        views = {name: [embed(encoder, view) for view in _views(graphs, table, name, seed)] for name in table}
        accuracy_F, kept = cross_validate(
            embed(encoder, graphs), labels_B, folds, seed, {name: first_BD for name, (first_BD, _) in views.items()}
        )
        found = {key: accuracy_F}
        for name, (first_BD, second_BD) in views.items():
            found[f"pairs_untrained.{seed}.{name}"] = np.array([pair_agreement(first_BD, second_BD)])
            found[f"label_kept.{seed}.{name}"] = np.array([kept[name]])
        return found

    def watch(epoch: int, loss: float) -> None:
        context.logger.debug("epoch %d loss %.4f", epoch, loss)
        check_stop(context)

    settings = ContrastSettings(config.epochs, config.batch_size, config.learning_rate, config.temperature)
    contrast(encoder, graphs, table[variant], settings, np.random.default_rng(seed), watch)
    first_BD, second_BD = (embed(encoder, view) for view in _views(graphs, table, variant, seed))
    return {
        key: cross_validate(embed(encoder, graphs), labels_B, folds, seed)[0],
        f"pairs_learned.{seed}.{variant}": np.array([pair_agreement(first_BD, second_BD)]),
    }


def _views(graphs: Sequence[Graph], table: Mapping[str, Augmentation], name: str, seed: int) -> list[list[Graph]]:
    """Two views of every graph; the same for the learned and the untrained encoder."""
    rng = np.random.default_rng([seed, *name.encode()])
    return [[table[name](graph, rng) for graph in graphs] for _ in range(2)]


def histogram(graph_set: GraphSet) -> Features:
    """(B, D) counts of each tag (or word, or capped degree) and of each degree up to 64; sparse if D > B."""
    rows = [
        np.concatenate(
            [
                np.bincount(graph.tags, minlength=graph_set.width + 1),
                np.bincount(np.minimum(graph.degrees(), DEGREE_CAP), minlength=DEGREE_CAP + 1),
            ]
        )
        for graph in graph_set.graphs
    ]
    counts_BD = np.array(rows, np.float32)
    counts_BD = counts_BD[:, counts_BD.any(0)]
    return csr_array(counts_BD) if counts_BD.shape[1] > len(counts_BD) else counts_BD


def cross_validate(
    features_BD: Features,
    labels_B: NDArray[np.int64],
    folds: Sequence[Fold],
    seed: int,
    altered: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Accuracy of each fold (F,); and for each of `altered`, (B, D) of the same graphs after an augmentation, the share
    of held-out graphs that the classifier puts in the same class as before. Sparse features are not centred.
    """
    altered = altered or {}
    accuracies: list[float] = []
    kept: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in altered}
    for train, test in folds:
        inner = StratifiedKFold(5, shuffle=True, random_state=seed)
        fitting, choosing = next(inner.split(features_BD[train], labels_B[train]))
        scores = [
            _svm(penalty, features_BD[train[fitting]], labels_B[train[fitting]]).score(
                features_BD[train[choosing]], labels_B[train[choosing]]
            )
            for penalty in PENALTIES
        ]
        model = _svm(PENALTIES[int(np.argmax(scores))], features_BD[train], labels_B[train])
        predicted = model.predict(features_BD[test])
        accuracies.append(float((predicted == labels_B[test]).mean()))
        for name, changed_BD in altered.items():
            kept[name].append(model.predict(changed_BD[test]) == predicted)
    return np.array(accuracies), {name: float(np.concatenate(shares).mean()) for name, shares in kept.items()}


def _svm(penalty: float, features_BD: Features, labels_B: NDArray[np.int64]) -> Pipeline:
    model = make_pipeline(
        StandardScaler(with_mean=not issparse(features_BD)),
        LinearSVC(C=penalty, dual="auto", tol=1e-3, max_iter=100, random_state=0),
    )
    with warnings.catch_warnings():
        # A large C on correlated columns converges slowly; the inner split judges what 100 steps reach.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features_BD, labels_B)


def summarise(
    config: PretrainConfig, graph_set: GraphSet, learned: Sequence[str], results: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """The report as JSON values: accuracies and measures in 0–1, and the comparisons with their words."""
    seeds = range(config.seed, config.seed + config.seeds)
    accuracies = {
        variant: np.stack([results[f"accuracy.{seed}.{variant}"] for seed in seeds])
        for variant in (*BASELINES, *learned)
    }
    comparisons = [
        compare(name, accuracies[name], baseline, accuracies[baseline]) for name in learned for baseline in BASELINES
    ]
    counts = np.bincount(graph_set.labels())
    return {
        "set": graph_set.name,
        "graphs": len(graph_set.graphs),
        "classes": dict(zip(graph_set.classes, counts.tolist(), strict=True)),
        "config": config.model_dump(mode="json"),
        "accuracy": {
            variant: {
                "mean": float(found.mean()),
                "std": _spread(found.mean(1)),
                "by_seed": found.mean(1).tolist(),
            }
            for variant, found in accuracies.items()
        },
        "augmentations": {
            name: {
                measure: float(np.mean([results[f"{measure}.{seed}.{name}"] for seed in seeds])) for measure in MEASURES
            }
            for name in learned
        },
        "comparisons": comparisons,
        "findings": findings(comparisons),
    }


def _spread(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def compare(
    learned: str, learned_SF: NDArray[np.float64], baseline: str, baseline_SF: NDArray[np.float64]
) -> dict[str, Any]:
    """The paired difference of accuracies (seeds, folds), and whether it is more than its one standard deviation.

    The pairs are the seeds' means over the same folds; the folds, where there is one seed.
    """
    difference_SF = learned_SF - baseline_SF
    pairs = difference_SF.mean(1) if len(difference_SF) > 1 else difference_SF[0]
    difference, spread = float(pairs.mean()), _spread(pairs)
    beats = difference > max(spread, 1e-9)
    return {"learned": learned, "baseline": baseline, "difference": difference, "std": spread, "beats": beats}


def findings(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the figures allow to say: one sentence for each learned encoder."""
    sentences: list[str] = []
    for name in dict.fromkeys(item["learned"] for item in comparisons):
        beaten, missed = (
            [
                f"{BASELINES[item['baseline']]} ({100 * item['difference']:+.2f} ± {100 * item['std']:.2f})"
                for item in comparisons
                if item["learned"] == name and item["beats"] is beats
            ]
            for beats in (True, False)
        )
        said = f"beats {' and '.join(beaten)}" if beaten else ""
        said += ", but " if beaten and missed else ""
        said += f"does not beat {' or '.join(missed)}" if missed else ""
        sentences.append(
            f"The encoder learned with `{name}` {said}, by more than one standard deviation of the paired difference "
            "in points."
        )
    return sentences


def markdown(report: Mapping[str, Any]) -> str:
    """The report for reading."""
    config = report["config"]
    lines = [
        f"## {report['set']}",
        "",
        f"{report['graphs']} graphs in {len(report['classes'])} classes. Frozen encoder and linear SVM, "
        f"{config['folds']} folds, {config['seeds']} seeds, {config['epochs']} epochs; "
        "accuracy in %, mean ± standard deviation over seeds.",
        "",
        "| | accuracy | pairs agree, learned | pairs agree, untrained | label kept, % |",
        "|---|---|---|---|---|",
    ]
    for variant, found in report["accuracy"].items():
        measures = report["augmentations"].get(variant)
        told = (
            f"{measures['pairs_learned']:.3f} | {measures['pairs_untrained']:.3f} | {100 * measures['label_kept']:.1f}"
            if measures
            else "| | "
        )
        name = f"learned, `{variant}`" if measures else BASELINES[variant].removeprefix("the ")
        lines.append(f"| {name} | {100 * found['mean']:.2f} ± {100 * found['std']:.2f} | {told} |")
    lines += [
        "",
        "Pairs agree: mean cosine of two views of the same graph less that of different graphs. Label kept: held-out "
        "graphs that the untrained encoder's classifier puts in the same class after the augmentation.",
        "",
        *(f"- {sentence}" for sentence in report["findings"]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(), help="a set's file, or a folder of them")
    parser.add_argument("--set-name", nargs="+", default=["MUTAG"], help="one or more; scipy-docs needs no data")
    parser.add_argument("--augmentation", nargs="*", default=[], help="nodes edges mask subgraph text none; or all")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file, added to; the Markdown goes beside it")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    reports: dict[str, Any] = {}
    if given.out is not None and given.out.exists():
        reports = json.loads(given.out.read_text(encoding="utf-8"))
    for name in given.set_name:
        config = read_config(
            PretrainConfig,
            {
                "set_name": name,
                "augmentations": tuple(given.augmentation),
                "epochs": given.epochs,
                "seeds": given.seeds,
            },
        )
        with tempfile.TemporaryDirectory() as folder:
            found = pretrain(config, given.data, LocalContext(Path(folder)))
            reports[name] = json.loads((found / "report.json").read_text(encoding="utf-8"))
        print(markdown(reports[name]), flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
            text = "\n".join(markdown(report) for report in reports.values())
            given.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
