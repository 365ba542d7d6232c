"""Accounts with their neighbourhoods → logits and calibrated probabilities, on ONNX Runtime and NumPy.

Shapes: M accounts of one query (the roots first), P properties, D text width, E edges, V views, B roots in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.bots.calibration import FILE, Calibration, View, load_calibration
from services.bots.evaluate import softmax
from services.bots.features import PROPERTIES
from services.bots.graphs import Edges, GraphData, Neighbourhood
from shared.bundles import Bundle, BundleRejected
from shared.sessions import OnnxSession
from shared.settings import ServiceSettings

MOST_NODES = 200_000  # accounts in one run
FAN_OUT = (25, 10)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Query:
    """One account to score, the first of its ego graph's; NaN where a value is not known, zero rows without text."""

    values_MP: Floats
    text_MD: Floats | None
    edges: Edges
    view: int


@dataclass(frozen=True)
class Answer:
    """Logits of the query's own view."""

    bot_2: Floats
    stance_3: Floats
    view: View

    def probabilities(self, task: str) -> NDArray[np.float64]:
        """Calibrated class probabilities of `bot` (2,) or `stance` (3,)."""
        return softmax(self.bot_2 if task == "bot" else self.stance_3, self.view.temperatures[task])


class BotsPredictor:
    """The served graph with its calibration."""

    def __init__(self, session: OnnxSession, calibration: Calibration) -> None:
        self.session = session
        self.calibration = calibration
        self._inputs = {tensor.name for tensor in session.inputs}
        self._columns_VP = np.stack([view.columns_P for view in calibration.views])
        self._full_P = self._columns_VP.any(axis=0)

    def predict(self, batch: Sequence[Query]) -> list[Answer | Exception]:
        """The answer of each query; several share a run as one graph without edges between them."""
        answers: list[Answer | Exception] = []
        start = 0
        while start < len(batch):
            end, nodes = start + 1, len(batch[start].values_MP)
            while end < len(batch) and nodes + len(batch[end].values_MP) <= MOST_NODES:
                nodes += len(batch[end].values_MP)
                end += 1
            answers += self._run(batch[start:end])
            start = end
        return answers

    def warm_up(self) -> None:
        values = np.full((2, len(PROPERTIES)), 0.5, np.float32)
        one = np.zeros(1, np.int64)
        edges = Edges(one + 1, one, one) if self.calibration.relations else Edges.none()
        answer = self.predict([Query(values, None, edges, len(self.calibration.views) - 1)])[0]
        if isinstance(answer, Exception) or not np.isfinite(answer.bot_2).all():
            raise BundleRejected("The graph does not run on a plain account.")

    def query(self, graph: GraphData, near: Neighbourhood, root: int, fan_out: Sequence[int], seed: int) -> Query:
        """The query for an account of a graph, whose edges go the way that the model was trained with."""
        ego = near.ego(np.array([root]), fan_out, seed)
        values_MP = graph.values_NP[ego.nodes_M]
        present = frozenset(name for name, value in zip(PROPERTIES, values_MP[0], strict=True) if not np.isnan(value))
        view = self.calibration.choose(present, len(ego.edges) > 0)
        text_MD = None if graph.embedding_ND is None else graph.embedding_ND[ego.nodes_M]
        if not self.calibration.views[view].edges:
            return Query(values_MP[:1], None if text_MD is None else text_MD[:1], Edges.none(), view)
        return Query(values_MP, text_MD, ego.edges, view)

    def neighbourhood(self, graph: GraphData) -> Neighbourhood:
        """The graph's edges as the model takes them: of its relations, both ways if it was trained so."""
        edges = graph.edges_for(self.calibration.relations, self.calibration.both_ways)
        return Neighbourhood(edges, len(graph.ids))

    def _run(self, queries: Sequence[Query]) -> list[Answer | Exception]:
        sizes = [len(query.values_MP) for query in queries]
        offsets = np.cumsum([0, *sizes[:-1]]).astype(np.int64)
        values = np.concatenate([query.values_MP for query in queries])
        known = ~np.isnan(values) & self._full_P
        views = np.array([query.view for query in queries])
        known[offsets] &= self._columns_VP[views]
        width = max(1, self.calibration.text_width)
        texts = [
            np.zeros((size, width), np.float32) if query.text_MD is None else query.text_MD
            for query, size in zip(queries, sizes, strict=True)
        ]
        pairs = zip(queries, offsets, strict=True)
        ends = [np.stack([query.edges.source_E, query.edges.target_E]) + offset for query, offset in pairs]
        feeds: dict[str, NDArray[Any]] = {
            "edges": np.concatenate(ends, axis=1),
            "relations": np.concatenate([query.edges.relation_E for query in queries]),
            "values": np.nan_to_num(values).astype(np.float32),
            "known": known.astype(np.float32),
            "text": np.concatenate(texts),
            "roots": offsets,
        }
        out = self.session.infer({name: value for name, value in feeds.items() if name in self._inputs})
        rows = np.arange(len(queries))
        bot, stance = out["bot_logits"][rows, views], out["stance_logits"][rows, views]
        return [
            Answer(bot[row], stance[row], self.calibration.views[view]) for row, view in zip(rows, views, strict=True)
        ]


def load(bundle: Bundle, settings: ServiceSettings) -> BotsPredictor:
    """The predictor of `bundle`; raises BundleRejected when its graph or calibration is not this domain's."""
    calibration = load_calibration(bundle.path(FILE))
    session = OnnxSession(bundle.graph("fp32"), device=settings.device)
    names = {tensor.name for tensor in session.inputs}
    if not {"values", "known", "roots"} <= names or {item.name for item in session.outputs} != {
        "bot_logits",
        "stance_logits",
    }:
        raise BundleRejected("The graph's inputs and outputs are not those of a bot detector.")
    return BotsPredictor(session, calibration)
