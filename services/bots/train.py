"""Trains a bot and stance detector on an account graph or a table of accounts and makes its bundle.

    python -m services.bots.train --data DIR --out DIR [--set encoder=ggcn …]

Shapes: N accounts, P properties, D text width, V views, C classes of a task. Each epoch passes over the whole graph
once for each view, with that view's properties (and edges, for the view `graph`) and its head; some properties and
texts are hidden at random, so that each head knows gaps. The loss is the sum of the cross-entropies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from services.bots import predict
from services.bots.calibration import LIMIT_QUANTILE, Calibration, View, distance
from services.bots.datasets import load_graph, with_splits
from services.bots.evaluate import METRICS, coverage_curve, fit_temperature, interval, softmax
from services.bots.export import export_bundle
from services.bots.features import PROPERTIES
from services.bots.floors import floors
from services.bots.graphs import GraphData
from services.bots.model import AccountNet
from services.bots.preparation import Prepared, device_of, inputs_of, logits_of, prepare
from services.bots.schemas import TrainConfig
from shared.bundles import Bundle, Comparison, Metric
from shared.datasets import folder_digest
from shared.jobs.config import read_config
from shared.jobs.context import TrainingContext, check_stop
from shared.jobs.shell import run_from_shell
from shared.problems import FourfoldError
from shared.settings import ServiceSettings

CHECKPOINT_EPOCHS = 10
COMPARED = 2_000  # test accounts that a comparison looks at, most


class TrainingDiverged(FourfoldError):
    """The loss stopped being a number; the detail names the step."""

    code = "training-diverged"
    title = "The training diverged"
    advice = "Lower `learning_rate`, or look at the data for values far out."


def train(config: TrainConfig, data: Path, context: TrainingContext) -> Path:
    """Train on the data set in the folder `data` (see datasets.py) and return the bundle's folder.

    The test split is looked at once, after the epoch and the temperatures were chosen on validation. Raises BadGraph,
    TrainingDiverged or JobStopped.
    """
    graph = load_graph(data, exclude=config.bad_files == "exclude")
    return train_graph(config, graph, context, folder_digest("bots", data))


def train_graph(config: TrainConfig, graph: GraphData, context: TrainingContext, digest: str | None = None) -> Path:
    """`train` for a graph that is read already."""
    prepared = prepare(config, graph)
    model = fit(config, prepared, context)
    calibration = calibrate(config, graph, prepared, model)
    metrics = measure(prepared, model, calibration)
    if config.floors:
        metrics |= _floors(config, graph, prepared)
    champion = context.champion()
    bundle = export_bundle(
        model,
        context.artefact("bundle"),
        config=config,
        calibration=calibration,
        metrics=metrics,
        split=_split_words(prepared),
        card=_card(config, graph, prepared, metrics),
        dataset_digest=digest,
        comparison=None,
        device=str(device_of(config.device)),
    )
    if champion is None:
        return bundle
    comparison = _beside(Bundle.open(bundle), Bundle.open(champion), config, graph)
    manifest = Bundle.open(bundle).manifest.model_copy(update={"comparison": comparison})
    (bundle / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    return bundle


def compare(candidate: Path, champion: Path, data: Path, context: TrainingContext) -> Comparison:
    """The candidate beside the champion (folders of bundles) on the test split of the candidate's data set."""
    bundle = Bundle.open(candidate)
    config = read_config(TrainConfig, bundle.manifest.config)
    graph = load_graph(data, exclude=config.bad_files == "exclude")
    prepare(config, graph)  # embeds the texts, where the model wants them
    return _beside(bundle, Bundle.open(champion), config, graph)


def network(config: TrainConfig, *, views: int, relations: int, text: int) -> AccountNet:
    return AccountNet(
        config.encoder,
        properties=len(PROPERTIES),
        text=text,
        relations=relations,
        views=views,
        hidden=config.hidden,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
    )


def fit(config: TrainConfig, prepared: Prepared, context: TrainingContext) -> AccountNet:
    """The network of the epoch with the least validation loss, on the CPU in evaluation mode.

    A training resumed from the context's checkpoint ends with the same weights as one that was never interrupted.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = prepared.values_NP.device
    model = network(config, views=len(prepared.views), relations=len(prepared.relations), text=prepared.text_width).to(
        device
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best: dict[str, NDArray[Any]] = {}
    best_loss, best_epoch, first = math.inf, 0, 0
    if (state := context.restore()) is not None:
        first, best_epoch, best_loss = (state[name].item() for name in ("epoch", "best_epoch", "best_loss"))
        best = _part(state, "best.")
        _restore(model, optimizer, state)
    for epoch in range(int(first), config.epochs):
        check_stop(context)
        torch.manual_seed(config.seed * 1_000_003 + epoch)  # so that a resumed training repeats the epoch exactly
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for number, view in enumerate(prepared.views):
            part = _loss(model, prepared, number, view, 0, config.property_dropout)
            part.backward()
            loss += part.item()
        if not math.isfinite(loss):
            raise TrainingDiverged(f"The loss is not finite at step {epoch} (epoch {epoch + 1}).", step=epoch)
        optimizer.step()
        model.eval()
        with torch.inference_mode():
            parts = [_loss(model, prepared, number, view, 1, 0.0) for number, view in enumerate(prepared.views)]
        validation = float(sum(part.item() for part in parts))
        if validation < best_loss:
            best_loss, best_epoch = validation, epoch
            best = {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}
        over = epoch + 1 == config.epochs or epoch - best_epoch >= config.patience
        if over or (epoch + 1) % CHECKPOINT_EPOCHS == 0:
            context.checkpoint(_state(model, optimizer, epoch + 1, int(best_epoch), best_loss, best))
            context.report(step=epoch + 1, total=config.epochs, loss=loss, validation_loss=validation)
        if over:
            break
    model.load_state_dict({name: torch.from_numpy(value) for name, value in best.items()})
    return model.cpu().eval()


def _loss(model: AccountNet, prepared: Prepared, number: int, view: str, split: int, hidden: float) -> Tensor:
    """Sum over the tasks of a view's cross-entropy on one split."""
    bot_NV2, stance_NV3 = model(*inputs_of(prepared, view, hidden))
    logits = {"bot": bot_NV2[:, number], "stance": stance_NV3[:, number]}
    total = torch.zeros((), device=prepared.values_NP.device)
    for task, label_N in prepared.labels.items():
        chosen = torch.from_numpy(np.flatnonzero(prepared.splits[task] == split)).to(total.device)
        wanted = torch.from_numpy(label_N).to(total.device)[chosen]
        total = total + F.cross_entropy(logits[task][chosen], wanted)
    return total


def calibrate(config: TrainConfig, graph: GraphData, prepared: Prepared, model: AccountNet) -> Calibration:
    """Temperatures, coverage and the limit of the known, on the validation accounts."""
    training = np.any([split_N == 0 for split_N in prepared.splits.values()], axis=0)
    validating = np.any([split_N == 1 for split_N in prepared.splits.values()], axis=0)
    values = graph.values_NP.astype(np.float64)
    mean_P = np.nan_to_num(_column_means(values[training]))
    filled = np.where(np.isnan(values[training]), mean_P, values[training])
    covariance_PP = np.cov(filled, rowvar=False)
    views: list[View] = []
    coverage: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number, (name, properties) in enumerate(prepared.views.items()):
        logits = logits_of(model, prepared, number, name)
        temperatures: dict[str, float] = {}
        coverage[name] = {}
        for task, label_N in prepared.labels.items():
            chosen = prepared.splits[task] == 1
            temperatures[task] = fit_temperature(logits[task][chosen], label_N[chosen])
            probability = softmax(logits[task][chosen], temperatures[task])
            coverage[name][task] = coverage_curve(probability, label_N[chosen])
        columns_P = np.array([item in properties for item in PROPERTIES])
        far = [distance(row, ~np.isnan(row) & columns_P, mean_P, covariance_PP) for row in values[validating]]
        limit = float(np.quantile(far, LIMIT_QUANTILE))
        view = View(name=name, properties=properties, edges=name == "graph", temperatures=temperatures, limit=limit)
        views.append(view)
    bots = prepared.labels["bot"][prepared.splits["bot"] == 0] if "bot" in prepared.labels else None
    return Calibration(
        views=tuple(views),
        tasks=tuple(prepared.labels),
        prior=None if bots is None else float(bots.mean()),
        relations=graph.relations if prepared.relations and config.encoder != "mlp" else (),
        both_ways=config.direction == "both",
        text_encoder=prepared.text_encoder,
        text_width=prepared.text_width,
        mean=tuple(mean_P.tolist()),
        covariance=tuple(tuple(row) for row in covariance_PP.tolist()),
        coverage=coverage,
    )


def _column_means(values_NP: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values_NP)
    return np.where(known, values_NP, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def measure(prepared: Prepared, model: AccountNet, calibration: Calibration) -> dict[str, Metric]:
    """The test figures of every view and task, as `<task>_<view>_<metric>`; the fullest view also without its name."""
    found: dict[str, Metric] = {}
    for number, view in enumerate(calibration.views):
        logits = logits_of(model, prepared, number, view.name)
        for task, label_N in prepared.labels.items():
            chosen = prepared.splits[task] == 2
            probability = softmax(logits[task][chosen], view.temperatures[task])
            figures = _figures(probability, label_N[chosen], task)
            found |= {f"{task}_{view.name}_{name}": figure for name, figure in figures.items()}
            if view is calibration.views[-1]:
                found = {f"{task}_{name}": figure for name, figure in figures.items()} | found
    return found


def _figures(probability_NC: NDArray[np.float64], label_N: NDArray[np.int64], task: str) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for name, metric in METRICS.items():
        if name == "auc" and task != "bot":
            continue
        low, high = interval(metric, probability_NC, label_N)
        value = metric(probability_NC, label_N)
        found[name] = Metric(value=value, low=low, high=high, n=len(label_N), higher_is_better=name != "ece")
    return found


def _floors(config: TrainConfig, graph: GraphData, prepared: Prepared) -> dict[str, Metric]:
    parts = [graph.values_NP] if graph.embedding_ND is None else [graph.values_NP, graph.embedding_ND]
    features = np.concatenate(parts, axis=1)
    found: dict[str, Metric] = {}
    for task, label_N in prepared.labels.items():
        split_N = prepared.splits[task]
        test = split_N == 2
        for name, probability in floors(features, label_N, split_N == 0, config.seed).items():
            figures = _figures(probability[test], label_N[test], task)
            found |= {f"floor_{task}_{name.replace(' ', '_')}_{key}": figure for key, figure in figures.items()}
    return found


def _beside(candidate: Bundle, champion: Bundle, config: TrainConfig, graph: GraphData) -> Comparison:
    """Test accuracy of the candidate less the champion's, each as it would be served; accounts drawn together."""
    settings = ServiceSettings()
    mine, theirs = predict.load(candidate, settings), predict.load(champion, settings)
    shared = [task for task in mine.calibration.tasks if task in theirs.calibration.tasks]
    task = shared[0] if shared else mine.calibration.tasks[0]
    label_N = graph.bot_N if task == "bot" else graph.stance_N
    test = np.flatnonzero(with_splits(graph, label_N, config.seed) == 2)[:COMPARED]
    right = [_right(predictor, graph, task, test, label_N) for predictor in (mine, theirs)]
    gain = right[0] - right[1]
    random = np.random.default_rng(0)
    means = [gain[random.integers(0, len(gain), len(gain))].mean() for _ in range(500)]
    low, high = np.percentile(means, [2.5, 97.5])
    difference = Metric(value=float(gain.mean()), low=float(low), high=float(high), n=len(test))
    return Comparison(champion=champion.manifest.version or 1, metric=f"{task}_accuracy", difference=difference)


def _right(
    predictor: predict.BotsPredictor, graph: GraphData, task: str, chosen: NDArray[np.int64], label_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    if task not in predictor.calibration.tasks:
        return np.zeros(len(chosen))
    fits = graph.embedding_ND is None or graph.embedding_ND.shape[1] == predictor.calibration.text_width
    seen = graph if fits else replace(graph, embedding_ND=None)
    near = predictor.neighbourhood(seen)
    queries = [predictor.query(seen, near, int(root), predict.FAN_OUT, 0) for root in chosen]
    answers = predictor.predict(queries)
    found = [int(np.argmax(a.probabilities(task))) if isinstance(a, predict.Answer) else -1 for a in answers]
    return (np.array(found) == label_N[chosen]).astype(np.float64)


def _split_words(prepared: Prepared) -> str:
    parts = [f"{int((split_N == 2).sum())} accounts for {task}" for task, split_N in prepared.splits.items()]
    return f"test: {', '.join(parts)}, never trained on; intervals are 95 %, accounts resampled"


def _card(config: TrainConfig, graph: GraphData, prepared: Prepared, metrics: Mapping[str, Metric]) -> str:
    rows = "\n".join(
        f"| {name} | {item.value:.4f} | {item.low:.4f}–{item.high:.4f} | {item.n} |"
        for name, item in metrics.items()
        if item.low is not None and item.high is not None
    )
    edges = f"{len(graph.edges)} edges of {len(graph.relations)} relations" if len(graph.edges) else "no edges"
    return f"""# Bots: {config.encoder}, seed {config.seed}

Trained on {len(graph.ids)} accounts with {edges}; views {", ".join(prepared.views)}. Probabilities are calibrated on
validation accounts by temperature. {_split_words(prepared)[0].upper()}{_split_words(prepared)[1:]}.

| metric | value | interval | n |
|---|---|---|---|
{rows}
"""


def _state(
    model: AccountNet,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    best_epoch: int,
    best_loss: float,
    best: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    state: dict[str, NDArray[Any]] = {"epoch": np.array([epoch]), "best_epoch": np.array([best_epoch])}
    state["best_loss"] = np.array([best_loss])
    state |= {f"model.{name}": value.cpu().numpy() for name, value in model.state_dict().items()}
    state |= {f"best.{name}": value for name, value in best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": torch.as_tensor(value).cpu().numpy() for name, value in moments.items()}
    return state


def _part(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _restore(model: AccountNet, optimizer: torch.optim.Optimizer, state: Mapping[str, NDArray[Any]]) -> None:
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in _part(state, "model.").items()})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(state, "optimizer.").items():
        index, _, key = name.partition(".")
        tensor = torch.from_numpy(np.array(value))
        # The count of steps has no dimension; not every store keeps that.
        moments.setdefault(int(index), {})[key] = tensor.reshape(()) if key == "step" else tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def main() -> None:
    run_from_shell("services.bots.train", TrainConfig, __doc__, "a folder as datasets.py describes")


if __name__ == "__main__":
    main()
