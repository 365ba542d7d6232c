"""An account graph → the tensors that a training works on, and what the network is given for each view.

Shapes: N accounts, P properties, D text width, C classes of a task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.bots.calibration import views_of
from services.bots.datasets import SPLITS, BadGraph, with_splits
from services.bots.features import PROPERTIES
from services.bots.graphs import GraphData
from services.bots.model import STANCE_CLASSES, AccountNet, EdgeList, Relation, relations_of
from services.bots.schemas import TrainConfig
from services.bots.text import PACKAGED, encoder

CLASSES = {"bot": 2, "stance": STANCE_CLASSES}
LEAST_LABELLED = 20  # accounts of a split
TEXT_SHARE = 0.7  # of the steps of a view in which an account's texts are shown


@dataclass(frozen=True)
class Prepared:
    """A graph as tensors on the training device."""

    values_NP: Tensor
    known_NP: Tensor
    text_ND: Tensor | None
    relations: list[Relation]
    labels: dict[str, NDArray[np.int64]]
    splits: dict[str, NDArray[np.int64]]
    views: dict[str, tuple[str, ...]]
    text_encoder: str | None

    @property
    def text_width(self) -> int:
        return 0 if self.text_ND is None else self.text_ND.shape[1]


def prepare(config: TrainConfig, graph: GraphData) -> Prepared:
    """The graph as tensors, with the tasks that it has labels for; raises BadGraph if they are too few."""
    name, graph.embedding_ND = _embedded(config, graph)
    device = device_of(config.device)
    labels = {"bot": graph.bot_N, "stance": graph.stance_N}
    tasks = config.tasks or tuple(task for task in CLASSES if (labels[task] >= 0).any())
    splits: dict[str, NDArray[np.int64]] = {}
    for task in tasks:
        splits[task] = with_splits(graph, labels[task], config.seed)
        for number, split in enumerate(SPLITS):
            chosen = splits[task] == number
            if chosen.sum() < LEAST_LABELLED or len(np.unique(labels[task][chosen])) < 2:
                raise BadGraph(
                    f"The split {split!r} has {int(chosen.sum())} accounts with a label for {task}; it takes "
                    f"{LEAST_LABELLED} of two classes."
                )
    if not tasks:
        raise BadGraph("No account has a label (a column bot or stance).")
    known_NP = ~np.isnan(graph.values_NP)
    edges = graph.edges.both_ways() if config.direction == "both" else graph.edges
    ends = torch.from_numpy(np.stack([edges.source_E, edges.target_E])).to(device)
    relation_E = torch.from_numpy(edges.relation_E).to(device)
    labelled = np.any([labels[task] >= 0 for task in tasks], axis=0)
    return Prepared(
        values_NP=torch.from_numpy(np.nan_to_num(graph.values_NP)).to(device),
        known_NP=torch.from_numpy(known_NP.astype(np.float32)).to(device),
        text_ND=None if graph.embedding_ND is None else torch.from_numpy(graph.embedding_ND).to(device),
        relations=relations_of(ends, relation_E, len(graph.relations)),
        labels={task: labels[task] for task in tasks},
        splits=splits,
        views=views_of(known_NP[labelled], len(graph.edges) > 0 and config.encoder != "mlp"),
        text_encoder=name,
    )


def _embedded(config: TrainConfig, graph: GraphData) -> tuple[str | None, NDArray[np.float32] | None]:
    if config.text_encoder == "none":
        return None, None
    if config.text_encoder == "given":
        if graph.embedding_ND is None:
            raise BadGraph("The data set has no vectors of texts; choose another text_encoder.")
        return config.given_encoder or f"given-{graph.embedding_ND.shape[1]}", graph.embedding_ND
    texts = encoder(PACKAGED)
    rows = [texts.encode(items).mean(axis=0) if items else np.zeros(texts.width, np.float32) for items in graph.texts]
    return texts.name, np.stack(rows).astype(np.float32)


def inputs_of(prepared: Prepared, view: str, hidden: float) -> tuple[Tensor, Tensor, Tensor | None, list[Relation]]:
    """What the network is given for a view; with `hidden`, that share of the properties is withheld at random."""
    names = prepared.views[view]
    columns_P = torch.tensor([name in names for name in PROPERTIES], device=prepared.values_NP.device)
    known_NP = prepared.known_NP * columns_P
    text_ND = prepared.text_ND
    if hidden:
        known_NP = known_NP * (torch.rand_like(known_NP) >= hidden)
        if text_ND is not None:
            text_ND = text_ND * (torch.rand_like(text_ND[:, :1]) < TEXT_SHARE)
    if view == "graph":
        return prepared.values_NP, known_NP, text_ND, prepared.relations
    none = torch.zeros(0, dtype=torch.long, device=known_NP.device)
    return prepared.values_NP, known_NP, text_ND, [EdgeList(none, none) for _ in prepared.relations]


@torch.inference_mode()
def logits_of(model: AccountNet, prepared: Prepared, number: int, view: str) -> dict[str, NDArray[np.float32]]:
    """Task → logits (N, C) of every account under a view."""
    values_NP, known_NP, text_ND, relations = inputs_of(prepared, view, 0.0)
    device = next(model.parameters()).device
    if device != values_NP.device:
        model = model.to(values_NP.device)
    bot_NV2, stance_NV3 = model(values_NP, known_NP, text_ND, relations)
    model.to(device)
    return {"bot": bot_NV2[:, number].cpu().numpy(), "stance": stance_NV3[:, number].cpu().numpy()}


def device_of(wanted: str) -> torch.device:
    return torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu"))
