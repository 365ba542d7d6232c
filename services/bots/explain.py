"""Why an account was scored as it was: Shapley values of its properties and the weight of its edges, on the served
graph, without torch.

What a property contributes is measured against not knowing it, which the model was trained with, so that every
question asked of the model is one that it knows (Štrumbelj and Kononenko, 2014; sampled permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.bots.features import PROPERTIES
from services.bots.graphs import Edges
from services.bots.predict import Answer, BotsPredictor, Query

TOP = 3
RANDOM_SETS = 8
MOST_EDGES = 64  # of the account's own; the others stay unexplained


@dataclass(frozen=True)
class Explained:
    """Contributions to the calibrated logit of a bot. `edges`: number in the query's edges → fall without it."""

    probability: float
    baseline: float
    contributions: dict[str, tuple[float, float]]  # property → (value, standard error)
    edges: dict[int, float]
    without_top: float
    without_random: float
    only_top: float


def explain(predictor: BotsPredictor, query: Query, permutations: int, seed: int = 0) -> Explained:
    """The explanation of a query's first account; the same seed gives the same one."""
    view = predictor.calibration.views[query.view]
    players = np.flatnonzero(view.columns_P & ~np.isnan(query.values_MP[0]))
    random = np.random.default_rng(seed)
    orders = [random.permutation(players) for _ in range(-(-permutations // 2))]
    orders += [order[::-1] for order in orders]  # each order and its reverse: less variance for the same cost
    chosen = {frozenset(order[:count].tolist()) for order in orders for count in range(len(players) + 1)}
    worth = _ask(predictor, query, list(chosen))
    steps = np.zeros((len(orders), len(PROPERTIES)))
    for row, order in zip(steps, orders, strict=True):
        for count, player in enumerate(order):
            before, after = frozenset(order[:count].tolist()), frozenset(order[: count + 1].tolist())
            row[player] = worth[after] - worth[before]
    value_P = steps.mean(axis=0)
    error_P = steps.std(axis=0, ddof=1) / np.sqrt(len(orders))
    everything = frozenset(players.tolist())
    strongest = frozenset(sorted(everything, key=lambda player: -abs(value_P[player]))[:TOP])
    draws = [frozenset(random.permutation(players)[:TOP].tolist()) for _ in range(RANDOM_SETS)]
    asked = _ask(predictor, query, [strongest, everything - strongest, *(everything - draw for draw in draws)])
    whole = _share(worth[everything])
    return Explained(
        probability=whole,
        baseline=_share(worth[frozenset()]),
        contributions={PROPERTIES[player]: (float(value_P[player]), float(error_P[player])) for player in players},
        edges=_edges(predictor, query, worth[everything]),
        without_top=abs(whole - _share(asked[everything - strongest])),
        without_random=float(np.mean([abs(whole - _share(asked[everything - draw])) for draw in draws])),
        only_top=abs(whole - _share(asked[strongest])),
    )


def _ask(predictor: BotsPredictor, query: Query, known: Sequence[frozenset[int]]) -> dict[frozenset[int], float]:
    """Set of known properties → the logit of a bot."""
    queries: list[Query] = []
    for columns in known:
        values_MP = query.values_MP.copy()
        hidden = np.ones(len(PROPERTIES), bool)
        hidden[list(columns)] = False
        values_MP[0, hidden] = np.nan
        queries.append(replace(query, values_MP=values_MP))
    return dict(zip(known, _logits(predictor, queries), strict=True))


def _edges(predictor: BotsPredictor, query: Query, whole: float) -> dict[int, float]:
    own = np.flatnonzero(query.edges.target_E == 0)[:MOST_EDGES]
    queries: list[Query] = []
    for number in own:
        kept = np.arange(len(query.edges)) != number
        edges = Edges(query.edges.source_E[kept], query.edges.target_E[kept], query.edges.relation_E[kept])
        queries.append(replace(query, edges=edges))
    return {int(number): whole - logit for number, logit in zip(own, _logits(predictor, queries), strict=True)}


def _logits(predictor: BotsPredictor, queries: Sequence[Query]) -> list[float]:
    found: list[float] = []
    for answer in predictor.predict(queries):
        if not isinstance(answer, Answer):
            raise answer
        found.append(float(answer.bot_2[1] - answer.bot_2[0]) / answer.view.temperatures["bot"])
    return found


def _share(logit: float) -> float:
    scores: NDArray[np.float64] = np.exp(-np.logaddexp(0, -np.array([logit])))
    return float(scores[0])
