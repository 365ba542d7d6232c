"""Measures GGCN and its usual rivals on the heterophily benchmark's networks, on their ten official splits.

    python -m services.bots.heterophily --data DIR --out results.json

trains every model on every split, stops on the validation loss, tests once and prints a table beside the published
figures. With several `--scalings` of the features each model is trained with each, and the one of the least validation
loss counts. Results go to `--out` as they come; a second run does what is missing there, so after a change of the
protocol begin a new file.

Shapes: N nodes, F features, H hidden units, C classes, K propagation steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from services.bots.ggcn import GGCN, Adjacency, adjacency, dropped
from services.bots.networks import SCALINGS, Network, Scaling, load_network

MODELS = ("ggcn", "ggcn-unsigned", "gcn", "gat", "sage", "gprgnn", "linkx", "mlp", "boosting")
HIDDEN, LAYERS, DROPOUT, WEIGHT_DECAY = 64, 2, 0.5, 5e-4  # of the rivals
RATE, EPOCHS, PATIENCE = 0.01, 1500, 100

Result = dict[str, Any]


class Setting(NamedTuple):
    """GGCN's hyper-parameters on one network, and the published accuracy (mean and deviation, %)."""

    layers: int
    hidden: int
    weight_decay: float
    dropout: float
    decay: float
    published: tuple[float, float] | None = None


# Table 1 of the GGCN paper and the settings released with it. The filtered networks came later and take their
# originals' settings; those of the last two are ours. The published figures may not be of the same data: the released
# loader leaves links directed, while the files here hold no directions.
SETTINGS = {
    "texas": Setting(2, 16, 1e-3, 0.4, 1.0, (84.86, 4.55)),
    "wisconsin": Setting(5, 16, 6e-4, 0.0, 1.0, (86.86, 3.29)),
    "cornell": Setting(6, 16, 1e-3, 0.5, 0.7, (85.68, 6.63)),
    "chameleon": Setting(5, 32, 1e-2, 0.3, 0.8, (71.14, 1.84)),
    "squirrel": Setting(2, 32, 4e-3, 0.5, 1.0, (55.17, 1.58)),
    "actor": Setting(4, 32, 7e-3, 0.0, 1.2, (37.54, 1.56)),
    "cora": Setting(32, 16, 1e-3, 0.5, 0.9, (87.95, 1.05)),
    "citeseer": Setting(10, 80, 1e-7, 0.5, 0.02, (77.14, 1.45)),
    "chameleon_filtered": Setting(5, 32, 1e-2, 0.3, 0.8),
    "squirrel_filtered": Setting(2, 32, 4e-3, 0.5, 1.0),
    "tolokers": Setting(2, 32, 1e-5, 0.3, 1.0),
    "minesweeper": Setting(5, 32, 1e-5, 0.3, 1.0),
}


class GPRGNN(nn.Module):
    """Σ_k γ_k Âᵏ MLP(x), γ learned from personalised PageRank's α(1−α)ᵏ (Chien et al., ICLR 2021): logits (N, C)."""

    def __init__(self, features: int, classes: int, *, steps: int = 10, alpha: float = 0.1) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(features, HIDDEN),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, classes),
            nn.Dropout(DROPOUT),
        )
        gamma_K = alpha * (1 - alpha) ** torch.arange(steps + 1)
        gamma_K[-1] = (1 - alpha) ** steps
        self.gamma_K = nn.Parameter(gamma_K)

    def forward(self, features_NF: Tensor, graph: Adjacency) -> Tensor:
        hop_NC = self.mlp(dropped(features_NF, DROPOUT, self.training))
        total_NC = self.gamma_K[0] * hop_NC
        for gamma in self.gamma_K[1:]:
            hop_NC = graph.loop_N.unsqueeze(-1) * hop_NC + graph.collect(graph.weight_E, hop_NC)
            total_NC = total_NC + gamma * hop_NC
        return total_NC


def compressed(features_NF: Tensor) -> Tensor:
    """The same features, as compressed rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compressed rows are called a beta feature
        return features_NF.to_sparse_csr()


def build(model: str, network: Network, setting: Setting) -> tuple[nn.Module, tuple[Any, ...], float]:
    """The untrained network, what it is called with, and its weight decay."""
    nodes, features = network.features_NF.shape
    classes = network.classes
    features_NF = network.features_NF
    if model != "sage" and features_NF.count_nonzero() < 0.05 * features_NF.numel():
        features_NF = compressed(features_NF)  # words: a product with them takes a twentieth of the time
    if model in ("ggcn", "ggcn-unsigned", "gprgnn"):
        graph = adjacency(network.edge_E2, nodes)
        if model == "gprgnn":
            return GPRGNN(features, classes), (features_NF, graph), WEIGHT_DECAY
        ours = GGCN(
            features,
            classes,
            hidden=setting.hidden,
            layers=setting.layers,
            dropout=setting.dropout,
            decay=setting.decay,
            signed=model == "ggcn",
        )
        return ours, (features_NF, graph), setting.weight_decay
    with warnings.catch_warnings():
        # The library compiles scripts as it is imported, which torch now advises against.
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch_geometric.nn import models
    rivals: dict[str, Callable[[], nn.Module]] = {
        "gcn": lambda: models.GCN(features, HIDDEN, LAYERS, classes, DROPOUT, cached=True),
        "gat": lambda: models.GAT(features, HIDDEN, LAYERS, classes, DROPOUT, heads=8),
        "sage": lambda: models.GraphSAGE(features, HIDDEN, LAYERS, classes, DROPOUT),
        "linkx": lambda: models.LINKX(nodes, features, HIDDEN, classes, LAYERS, dropout=DROPOUT),
        "mlp": lambda: models.MLP([features, HIDDEN, classes], dropout=DROPOUT, norm=None),
    }
    if model == "mlp":
        return rivals[model](), (features_NF,), WEIGHT_DECAY
    # Compressed rows, of which the library makes one product; of a list of edges it would gather a row for each. It
    # warns unless the checks of such rows are refused or wanted aloud; these come ordered from `adjacency`.
    torch.sparse.check_sparse_tensor_invariants.disable()
    graph = adjacency(network.edge_E2, nodes)
    return rivals[model](), (features_NF, graph.rows(torch.ones_like(graph.weight_E))), WEIGHT_DECAY


def measure(logits_NC: Tensor, label_N: Tensor) -> dict[str, float]:
    """Accuracy (0–1); with two classes ROC-AUC and average precision of the second, which is the rare one."""
    if logits_NC.shape[1] > 2:
        return {"accuracy": float((logits_NC.argmax(1) == label_N).double().mean())}
    score_N, truth_N = (logits_NC[:, 1] - logits_NC[:, 0]).numpy(), label_N.numpy()
    return {
        "roc_auc": float(roc_auc_score(truth_N, score_N)),
        "average_precision": float(average_precision_score(truth_N, score_N)),
    }


def train(model: str, network: Network, setting: Setting, split: int, epochs: int = EPOCHS) -> Result:
    """One training from seed `split`: the epoch of the least validation loss is tested, once."""
    torch.manual_seed(split)
    chosen = {part: mask[split].nonzero().squeeze(1) for part, mask in network.masks.items()}
    label = {part: network.label_N[index] for part, index in chosen.items()}
    if model == "boosting":
        return _boosted(network, chosen, label, split)
    module, inputs, weight_decay = build(model, network, setting)
    optimiser = torch.optim.Adam(module.parameters(), lr=RATE, weight_decay=weight_decay)
    start, best, best_epoch, best_state = time.monotonic(), float("inf"), 0, copy.deepcopy(module.state_dict())
    for epoch in range(epochs):
        module.train()
        optimiser.zero_grad()
        F.cross_entropy(module(*inputs)[chosen["train"]], label["train"]).backward()
        optimiser.step()
        module.eval()
        with torch.no_grad():
            loss = float(F.cross_entropy(module(*inputs)[chosen["val"]], label["val"]))
        if loss < best:
            best, best_epoch, best_state = loss, epoch, copy.deepcopy(module.state_dict())
        elif epoch - best_epoch >= PATIENCE:
            break
    module.load_state_dict(best_state)
    with torch.no_grad():
        scores = measure(module(*inputs)[chosen["test"]], label["test"])
    return {**scores, "val_loss": best, "epoch": best_epoch, "seconds": round(time.monotonic() - start, 1)}


def _boosted(network: Network, chosen: dict[str, Tensor], label: dict[str, Tensor], split: int) -> Result:
    """The floor: gradient-boosted trees on the features alone, with the library's settings."""
    start = time.monotonic()
    floor = HistGradientBoostingClassifier(random_state=split)
    floor.fit(network.features_NF[chosen["train"]].numpy(), label["train"].numpy())
    found = {
        part: torch.from_numpy(floor.predict_proba(network.features_NF[index].numpy())).log()
        for part, index in chosen.items()
        if part != "train"
    }
    return {
        **measure(found["test"], label["test"]),
        "val_loss": float(F.nll_loss(found["val"], label["val"])),
        "epoch": 0,
        "seconds": round(time.monotonic() - start, 1),
    }


def run(
    data: Path,
    out: Path | None,
    networks: Sequence[str],
    models: Sequence[str],
    splits: int,
    epochs: int = EPOCHS,
    scalings: Sequence[Scaling] = ("own",),
) -> list[Result]:
    """Trains what `out` does not hold yet, and keeps it up to date; all its results, old and new."""
    results: list[Result] = json.loads(out.read_bytes()) if out and out.exists() else []
    done = {(result["network"], result["model"], result["scaling"], result["split"]) for result in results}
    for model in models:
        for name, scaling in product(networks, scalings):
            missing = [split for split in range(splits) if (name, model, scaling, split) not in done]
            if not missing:
                continue
            network = load_network(data / f"{name}.npz", scaling)
            if model == "boosting" and network.classes > 2:
                continue  # thousands of words and many classes: hours for a floor that the MLP gives
            for split in missing:
                result = train(model, network, SETTINGS[name], split, epochs)
                results.append({"network": name, "model": model, "scaling": scaling, "split": split, **result})
                print(json.dumps(results[-1]), flush=True)
                if out:
                    # Replaced whole, so that an interruption never leaves half a result.
                    part = out.with_name(f"{out.name}.part")
                    part.write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n")
                    part.replace(out)
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown: means ± deviations over the splits in %; "within" is at most one published deviation away.

    Of several scalings the one of the least validation loss counts, split by split; how often each did is told.
    """
    lines = ["| network | model | scalings | splits | measured | published | within 1 sd |", "|---" * 7 + "|"]
    groups = dict.fromkeys((result["network"], result["model"]) for result in results)
    for name, model in sorted(groups, key=lambda key: (list(SETTINGS).index(key[0]), MODELS.index(key[1]))):
        chosen: dict[int, Result] = {}
        for result in results:
            if (result["network"], result["model"]) == (name, model):
                chosen[result["split"]] = min(
                    chosen.get(result["split"], result), result, key=lambda one: one["val_loss"]
                )
        of_group = list(chosen.values())
        measured: list[str] = []
        mean = float("nan")
        for metric in ("accuracy", "roc_auc", "average_precision"):
            if metric in of_group[0]:
                values = 100 * np.array([result[metric] for result in of_group])
                mean = float(values.mean())
                measured.append(f"{metric.replace('_', ' ')} {mean:.2f} ± {values.std():.2f}")
        published = SETTINGS[name].published if model == "ggcn" else None
        beside = f"{published[0]:.2f} ± {published[1]:.2f}" if published else ""
        within = ("yes" if abs(mean - published[0]) <= published[1] else "no") if published else ""
        scalings = Counter(result["scaling"] for result in of_group)
        words = ", ".join(f"{scaling} {count}" for scaling, count in scalings.most_common())
        lines.append(f"| {name} | {model} | {words} | {len(of_group)} | {', '.join(measured)} | {beside} | {within} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the networks' .npz files")
    parser.add_argument("--networks", nargs="+", choices=SETTINGS, help="default: those that are there")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--splits", type=int, default=10, choices=range(1, 11), metavar="1-10")
    parser.add_argument("--scalings", nargs="+", choices=SCALINGS, default=["own"], help="own: as the paper's code")
    parser.add_argument("--out", type=Path, help="JSON file of results, continued where it ended")
    given = parser.parse_args()
    networks = given.networks or [name for name in SETTINGS if (given.data / f"{name}.npz").exists()]
    if not networks:
        parser.error(f"no network in {given.data}")
    print(table(run(given.data, given.out, networks, given.models, given.splits, scalings=given.scalings)))


if __name__ == "__main__":
    main()
