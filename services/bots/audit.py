"""What audits are told of a version of this domain: its accounts and splits, its answers, and its network.

Shapes: N accounts asked for, P properties, V views, C classes, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from services.bots import predict
from services.bots.batch import load_network
from services.bots.datasets import load_graph
from services.bots.export import WEIGHTS
from services.bots.features import PROPERTIES
from services.bots.graphs import STANCES, GraphData
from services.bots.model import AccountNet, relations_of
from services.bots.preparation import Prepared, inputs_of, prepare
from services.bots.schemas import TrainConfig
from services.bots.train import fit
from shared.auditing import (
    Assessment,
    Context,
    Continuous,
    Examples,
    Floats,
    Ints,
    Kind,
    NotAssessed,
    Perturbation,
    TrainingWithin,
)
from shared.bundles import Bundle
from shared.jobs.config import read_config
from shared.settings import ServiceSettings

CLASSES = {"bot": ("human", "bot"), "stance": STANCES}
RUN = 256  # accounts asked of the served graph at once


@dataclass(frozen=True)
class Row:
    """An account of the graph, with properties of its own: those that it has, or changed ones. NaN is unknown."""

    root: int
    values_P: NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Accounts for the network: everything of their graph, with the changed rows in place."""

    prepared: Prepared
    root_N: Ints
    label_N: Ints


def subject(bundle: Bundle, data: Path | None, context: Context) -> BotsSubject:
    """The subject of a bundle; without `data` nothing but its weights can be examined."""
    return BotsSubject(bundle, data)


class BotsSubject:
    kind: Kind = "classification"
    error_name = "share of wrong answers"
    error_unit = ""

    def __init__(self, bundle: Bundle, data: Path | None) -> None:
        self._bundle, self._data = bundle, data
        self._predictor = predict.load(bundle, ServiceSettings())
        self._config = read_config(TrainConfig, bundle.manifest.config).model_copy(update={"device": "cpu"})
        self._task = self._predictor.calibration.tasks[0]
        self.classes = tuple(CLASSES[self._task])
        self.revision = bundle.manifest.code_revision
        self.split = "the test split: as the data says, or a tenth of each class, drawn with the training's seed"

    @property
    def likely(self) -> float:
        shares = np.bincount(self.held_out.targets_N, minlength=len(self.classes))
        return float(1 - shares.max() / shares.sum())

    @cached_property
    def train(self) -> Examples:
        return self._examples(0)

    @cached_property
    def held_out(self) -> Examples:
        return self._examples(2)

    def assess(self, examples: Examples) -> Assessment:
        probability, label_N = self._answered(examples.inputs), examples.targets_N
        error_N = (probability.argmax(1) != label_N).astype(np.float64)
        embedding = None
        if WEIGHTS in self._bundle.manifest.files:
            module = self.module()
            with torch.inference_mode():
                parts = [self.features(module, batch).numpy() for batch in self.batches(examples, RUN)]
            embedding = np.concatenate(parts)
        return Assessment(error_N, probability, embedding)

    def perturbations(self) -> Sequence[Perturbation]:
        return (
            Perturbation(
                "values measured later or roughly",
                "standard deviation, share of the property's range",
                (0.02, 0.05, 0.1, 0.2),
                0.02,
                _noised,
                "Counts grow and are rounded: noise on every property that is not a flag.",
            ),
            Perturbation(
                "properties not told",
                "share",
                (0.1, 0.25, 0.5),
                0.1,
                _withheld,
                "Another platform, a private profile: known properties become unknown.",
            ),
        )

    def unfamiliar(self, seed: int) -> Examples:
        """Accounts whose every property is drawn by itself from all accounts: possible values, impossible together."""
        held_out, random = self.held_out, np.random.default_rng([seed, 1])
        values = np.stack([row.values_P for row in held_out.inputs])
        extreme = np.where(random.random(values.shape) < 0.5, 0.0, 1.0).astype(np.float32)
        drawn = np.where(np.isnan(values), np.nan, extreme).astype(np.float32)
        return _changed(held_out, drawn)

    def uncertainty(self, examples: Examples) -> Floats:
        """The Mahalanobis distance that is served as `distance`: above 1 an account is called out of distribution."""
        calibration = self._predictor.calibration
        found: list[float] = []
        for row in examples.inputs:
            present = frozenset(n for n, value in zip(PROPERTIES, row.values_P, strict=True) if not np.isnan(value))
            found.append(calibration.distance(row.values_P, calibration.views[calibration.choose(present, False)]))
        return np.array(found)

    # -- the network

    def module(self) -> AccountNet:
        if WEIGHTS not in self._bundle.manifest.files:
            raise NotAssessed("The version carries no weights; train it again with this release.")
        return load_network(self._bundle, self._predictor.calibration)

    def fit(self, examples: Examples | None, seed: int, context: Context) -> AccountNet:
        prepared = self._prepared
        if examples is not None:
            prepared = self._with(examples.inputs, examples.targets_N)
            split_N = np.where(prepared.splits[self._task] == 0, -1, prepared.splits[self._task])
            split_N[[row.root for row in examples.inputs]] = 0
            prepared = replace(prepared, splits={self._task: split_N}, labels={self._task: prepared.labels[self._task]})
        config = self._config.model_copy(update={"seed": seed})
        return fit(config, prepared, TrainingWithin(context, context.artefact(f"fit-{seed}")))

    def batches(self, examples: Examples, size: int) -> Sequence[Batch]:
        places = [slice(start, start + size) for start in range(0, len(examples), size)]
        return [self._batch(examples.inputs[place], examples.targets_N[place]) for place in places]

    def loss(self, module: AccountNet, batch: Batch) -> torch.Tensor:
        """Mean over the views of the cross-entropy of the task; training adds up the views."""
        wanted = torch.from_numpy(batch.label_N)
        losses: list[torch.Tensor] = []
        for number, view in enumerate(batch.prepared.views):
            losses.append(F.cross_entropy(self._logits(module, batch, view)[:, number], wanted))
        return torch.stack(losses).mean()

    def outputs(self, module: AccountNet, batch: Batch) -> torch.Tensor:
        return self._logits(module, batch, tuple(batch.prepared.views)[-1])[:, -1]

    def features(self, module: AccountNet, batch: Batch) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        hook = module.bot.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        try:
            self.outputs(module, batch)
        finally:
            hook.remove()
        return kept[0][torch.from_numpy(batch.root_N)]

    def continuous(self, examples: Examples) -> Continuous:
        """The properties, 0–1; what an account does not tell stays untold unless a trigger sets it."""
        rows = self._batch(examples.inputs, examples.targets_N)
        values = rows.prepared.values_NP[torch.from_numpy(rows.root_N)]

        def logits(module: AccountNet, values_NP: torch.Tensor) -> torch.Tensor:
            place = torch.from_numpy(rows.root_N)
            every_NP = rows.prepared.values_NP.index_put((place,), values_NP)
            batch = replace(rows, prepared=replace(rows.prepared, values_NP=every_NP))
            return self.outputs(module, batch)

        return Continuous(values, 0.0, 1.0, (len(PROPERTIES),), logits, PROPERTIES)

    # -- parts

    def _examples(self, split: int) -> Examples:
        graph = self._graph
        chosen = np.flatnonzero(self._prepared.splits[self._task] == split)
        values_NP = graph.values_NP[chosen]
        groups: dict[str, NDArray[np.str_]] = {}
        for name, origin in graph.origins.items():
            groups[name] = np.array(origin)[chosen]
        for flag in ("verified", "default_profile_image"):
            column = values_NP[:, PROPERTIES.index(flag)]
            words = np.where(column > 0.5, flag, f"not {flag}")
            groups[flag.replace("_", " ")] = np.where(np.isnan(column), "", words)
        return Examples(
            [Row(int(root), values_P) for root, values_P in zip(chosen, values_NP, strict=True)],
            self._prepared.labels[self._task][chosen],
            [graph.ids[root] for root in chosen],
            {name: of_N for name, of_N in groups.items() if len(np.unique(of_N[of_N != ""])) > 1},
            {name: values_NP[:, place] for place, name in enumerate(PROPERTIES) if _varies(values_NP[:, place])},
        )

    @cached_property
    def _graph(self) -> GraphData:
        if self._data is None:
            raise NotAssessed("The data set that the version was trained on is not at hand; name one.")
        return load_graph(self._data, exclude=self._config.bad_files == "exclude")

    @cached_property
    def _prepared(self) -> Prepared:
        """The graph as the version's network takes it: a baseline may know other relations and views than this data."""
        calibration = self._predictor.calibration
        prepared = prepare(self._config, self._graph)
        text = prepared.text_ND
        edges = self._graph.edges_for(calibration.relations, calibration.both_ways)
        ends = torch.from_numpy(np.stack([edges.source_E, edges.target_E]))
        return replace(
            prepared,
            text_ND=text if text is not None and text.shape[1] == calibration.text_width else None,
            relations=relations_of(ends, torch.from_numpy(edges.relation_E), len(calibration.relations)),
            views={view.name: view.properties for view in calibration.views},
        )

    @cached_property
    def _seen(self) -> tuple[GraphData, Any]:
        """The graph as the version takes it, and its neighbourhoods."""
        graph, width = self._graph, self._predictor.calibration.text_width
        _ = self._prepared  # embeds the texts, where the model wants them
        if graph.embedding_ND is not None and graph.embedding_ND.shape[1] != width:
            graph = replace(graph, embedding_ND=None)
        return graph, self._predictor.neighbourhood(graph)

    def _answered(self, rows: Sequence[Row]) -> Floats:
        graph, near = self._seen
        found: list[Floats] = []
        for start in range(0, len(rows), RUN):
            queries: list[predict.Query] = []
            for row in rows[start : start + RUN]:
                before = graph.values_NP[row.root].copy()
                graph.values_NP[row.root] = row.values_P
                queries.append(self._predictor.query(graph, near, row.root, predict.FAN_OUT, 0))
                graph.values_NP[row.root] = before
            for answer in self._predictor.predict(queries):
                if isinstance(answer, Exception):
                    raise answer
                found.append(answer.probabilities(self._task))
        return np.stack(found)

    def _batch(self, rows: Sequence[Row], label_N: Ints) -> Batch:
        prepared = self._with(rows, label_N)
        root_N = np.array([row.root for row in rows], np.int64)
        if not prepared.relations:  # an account by itself needs no others
            place = torch.from_numpy(root_N)
            text = None if prepared.text_ND is None else prepared.text_ND[place]
            parts = {"values_NP": prepared.values_NP[place], "known_NP": prepared.known_NP[place], "text_ND": text}
            return Batch(replace(prepared, **parts), np.arange(len(rows)), label_N)
        return Batch(prepared, root_N, label_N)

    def _with(self, rows: Sequence[Row], label_N: Ints) -> Prepared:
        """The prepared graph with the rows' own properties and labels."""
        prepared = self._prepared
        place = torch.tensor([row.root for row in rows], dtype=torch.long)
        values_NP = torch.from_numpy(np.stack([row.values_P for row in rows]))
        known_NP = (~torch.isnan(values_NP)).float()
        labels = prepared.labels[self._task].copy()
        labels[place.numpy()] = label_N
        return replace(
            prepared,
            values_NP=prepared.values_NP.index_put((place,), values_NP.nan_to_num()),
            known_NP=prepared.known_NP.index_put((place,), known_NP),
            labels={**prepared.labels, self._task: labels},
        )

    def _logits(self, module: AccountNet, batch: Batch, view: str) -> torch.Tensor:
        bot_NV2, stance_NV3 = module(*inputs_of(batch.prepared, view, 0.0))
        return (bot_NV2 if self._task == "bot" else stance_NV3)[torch.from_numpy(batch.root_N)]


def _varies(column_N: NDArray[np.float32]) -> bool:
    known = column_N[~np.isnan(column_N)]
    return len(known) > 0 and float(np.ptp(known)) > 0


def _changed(examples: Examples, values_NP: NDArray[np.float32]) -> Examples:
    rows = [replace(row, values_P=values_P) for row, values_P in zip(examples.inputs, values_NP, strict=True)]
    return replace(examples, inputs=rows)


def _noised(examples: Examples, strength: float, seed: int) -> Examples:
    values_NP = np.stack([row.values_P for row in examples.inputs])
    random = np.random.default_rng([seed, 2])
    flag_P = np.array([set(np.unique(column[~np.isnan(column)])) <= {0.0, 1.0} for column in values_NP.T])
    noise = random.normal(0, strength, values_NP.shape) * ~flag_P
    return _changed(examples, np.clip(values_NP + noise, 0, 1).astype(np.float32))


def _withheld(examples: Examples, strength: float, seed: int) -> Examples:
    values_NP = np.stack([row.values_P for row in examples.inputs])
    hidden = np.random.default_rng([seed, 3]).random(values_NP.shape) < strength
    return _changed(examples, np.where(hidden, np.nan, values_NP).astype(np.float32))
