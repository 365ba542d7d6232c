"""Scores every account of an uploaded graph in one pass, with sparse matrices in the worker, and writes Parquet.

Shapes: N accounts, P properties, D text width, V views.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors.torch import load_file

from services.bots.calibration import FILE, REGULARISER, Calibration, load_calibration
from services.bots.datasets import load_graph
from services.bots.evaluate import softmax, with_prior
from services.bots.export import WEIGHTS
from services.bots.features import PROPERTIES
from services.bots.graphs import STANCES, Edges, GraphData
from services.bots.model import AccountNet, CompressedRows, Relation
from services.bots.schemas import GraphConfig, TrainConfig
from services.bots.text import PACKAGED, WrongEncoder, encoder
from shared.bundles import Bundle
from shared.jobs.context import TrainingContext, check_stop


def score_graph(
    config: GraphConfig, data: Path, bundle: Bundle, context: TrainingContext
) -> tuple[Path, dict[str, Any]]:
    """`scores.parquet`: a row an account, in the order of the data set, and how many there are of each label."""
    torch.set_num_threads(max(config.threads, os.cpu_count() or 1))
    graph = load_graph(data, exclude=config.bad_files == "exclude")
    context.report(step=1, total=3, accounts=len(graph.ids), edges=len(graph.edges))
    calibration = load_calibration(bundle.path(FILE))
    model = load_network(bundle, calibration)
    check_stop(context)
    columns = score_arrays(model, calibration, graph, prior=config.prior, min_confidence=config.min_confidence)
    context.report(step=2, total=3)
    path = context.artefact("scores.parquet")
    parquet.write_table(arrow.table({"id": graph.ids, **columns}), path)
    context.report(step=3, total=3)
    labels, counts = np.unique(columns.get("label", np.zeros(0, str)), return_counts=True)
    return path, {
        "rows": len(graph.ids),
        "labels": dict(zip(labels.tolist(), counts.tolist(), strict=True)),
        "repairs": graph.repairs | unknown_relations(graph, calibration),
    }


def load_network(bundle: Bundle, calibration: Calibration) -> AccountNet:
    """The bundle's network, in evaluation mode."""
    config = TrainConfig.model_validate(bundle.manifest.config)
    weights = load_file(bundle.path(WEIGHTS))
    model = AccountNet(
        config.encoder,
        properties=len(PROPERTIES),
        text=calibration.text_width,
        relations=len(calibration.relations),
        views=len(calibration.views),
        hidden=config.hidden,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
    )
    model.load_state_dict(weights)
    return model.eval()


def score_arrays(
    model: AccountNet,
    calibration: Calibration,
    graph: GraphData,
    *,
    prior: float | None = None,
    min_confidence: float = 0.5,
) -> dict[str, NDArray[Any]]:
    """Column → values (N,) for every account, each by the view that its evidence allows."""
    text_ND = _embedding(calibration, graph)
    edges = graph.edges_for(calibration.relations, calibration.both_ways)
    known_NP = ~np.isnan(graph.values_NP)
    view_N = _views(calibration, known_NP, edges, len(graph.ids))
    bot_N2 = np.zeros((len(graph.ids), 2), np.float32)
    stance_N3 = np.zeros((len(graph.ids), len(STANCES)), np.float32)
    temperature_N = {task: np.ones(len(graph.ids), np.float32) for task in calibration.tasks}
    values = torch.from_numpy(np.nan_to_num(graph.values_NP))
    relations = relations_by_rows(edges, len(calibration.relations), len(graph.ids))
    none = relations_by_rows(Edges.none(), len(calibration.relations), len(graph.ids))
    full_P = np.any([view.columns_P for view in calibration.views], axis=0)
    for number, view in enumerate(calibration.views):
        mine = view_N == number
        if not mine.any():
            continue
        # As when served: the account itself is seen through its view, its neighbours in full.
        columns_NP = np.where(mine[:, None], view.columns_P, full_P) & known_NP
        with torch.inference_mode():
            known = torch.from_numpy(columns_NP.astype(np.float32))
            bot, stance = model(values, known, text_ND, relations if view.edges else none)
        bot_N2[mine], stance_N3[mine] = bot[mine, number].numpy(), stance[mine, number].numpy()
        for task, of_task in temperature_N.items():
            of_task[mine] = view.temperatures[task]
    columns: dict[str, NDArray[Any]] = {}
    if "bot" in calibration.tasks and calibration.prior is not None:
        probability = softmax(bot_N2 / temperature_N["bot"][:, None])[:, 1]
        adjusted = with_prior(probability, calibration.prior, prior or calibration.prior)
        confidence = np.maximum(adjusted, 1 - adjusted)
        label = np.where(confidence < min_confidence, "abstain", np.where(adjusted > 0.5, "bot", "human"))
        columns |= {"probability": probability, "adjusted_probability": adjusted}
        columns |= {"confidence": confidence, "label": label}
    if "stance" in calibration.tasks:
        shares = softmax(stance_N3 / temperature_N["stance"][:, None])
        columns |= {f"stance_{name}": shares[:, number] for number, name in enumerate(STANCES)}
    columns["view"] = np.array([view.name for view in calibration.views])[view_N]
    columns["distance"] = distances(calibration, graph.values_NP, view_N)
    columns["out_of_distribution"] = columns["distance"] > 1
    return columns


def unknown_relations(graph: GraphData, calibration: Calibration) -> dict[str, int]:
    """How many edges are left out because the model was trained without their relation; empty if none are."""
    strange = [number for number, name in enumerate(graph.relations) if name not in calibration.relations]
    count = int(np.isin(graph.edges.relation_E, strange).sum())
    return {"edges_of_unknown_relations": count} if count else {}


def relations_by_rows(edges: Edges, count: int, accounts: int) -> list[Relation]:
    """Each relation as compressed rows, of edges ordered by relation and target, as `Edges.cleaned` leaves them."""
    bounds = np.searchsorted(edges.relation_E, np.arange(count + 1))
    ends = torch.from_numpy(edges.source_E), torch.from_numpy(edges.target_E)
    parts = [slice(start, end) for start, end in pairwise(bounds.tolist())]
    return [CompressedRows(ends[0][part], ends[1][part], accounts) for part in parts]


def distances(
    calibration: Calibration, values_NP: NDArray[np.float32], view_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """`Calibration.distance` of every account (N,); accounts that know the same properties are taken together."""
    mean_P, covariance_PP = np.array(calibration.mean), np.array(calibration.covariance)
    columns_VP = np.stack([view.columns_P for view in calibration.views])
    limit_V = np.array([max(view.limit, 1e-9) for view in calibration.views])
    known_NP = ~np.isnan(values_NP) & columns_VP[view_N]
    code_N = known_NP @ (1 << np.arange(len(PROPERTIES)))
    found = np.zeros(len(values_NP))
    for code in np.unique(code_N):
        members = np.flatnonzero(code_N == code)
        columns_P = known_NP[members[0]]
        if columns_P.any():
            part = covariance_PP[np.ix_(columns_P, columns_P)] + REGULARISER * np.eye(int(columns_P.sum()))
            off = values_NP[members][:, columns_P] - mean_P[columns_P]
            found[members] = np.sqrt((off * np.linalg.solve(part, off.T).T).mean(axis=1))
    return found / limit_V[view_N]


def _views(calibration: Calibration, known_NP: NDArray[np.bool_], edges: Edges, accounts: int) -> NDArray[np.int64]:
    """`Calibration.choose` for every account (N,)."""
    reached = np.zeros(accounts, bool)
    reached[edges.target_E] = True
    view_N = np.zeros(accounts, np.int64)
    for number, view in enumerate(calibration.views):
        whole = known_NP[:, view.columns_P].all(axis=1)
        view_N[whole & reached if view.edges else whole] = number
    return view_N


def _embedding(calibration: Calibration, graph: GraphData) -> torch.Tensor | None:
    if not calibration.text_width:
        return None
    if graph.embedding_ND is not None:
        if calibration.text_encoder == PACKAGED or calibration.text_width != graph.embedding_ND.shape[1]:
            raise WrongEncoder(
                f"The data set's vectors have {graph.embedding_ND.shape[1]} numbers; the model takes "
                f"{calibration.text_width} of {calibration.text_encoder}."
            )
        return torch.from_numpy(graph.embedding_ND)
    rows = np.zeros((len(graph.ids), calibration.text_width), np.float32)
    if calibration.text_encoder == PACKAGED:
        texts = encoder(PACKAGED)
        for row, items in zip(rows, graph.texts, strict=True):
            if items:
                row[:] = texts.encode(items).mean(axis=0)
    return torch.from_numpy(rows)


BATCHES: Mapping[str, Any] = {"graphs": (GraphConfig, score_graph)}
