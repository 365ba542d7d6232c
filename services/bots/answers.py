"""From a request to queries of the model, and from the model's answers to what the caller reads."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from services.bots.calibration import Calibration
from services.bots.evaluate import with_prior
from services.bots.explain import Explained
from services.bots.features import PROPERTIES, Account, BadAccount, read_account
from services.bots.graphs import RELATIONS, STANCES, Edges, GraphData
from services.bots.predict import Answer, BotsPredictor, Query
from services.bots.schemas import (
    AccountScore,
    Contribution,
    EdgeImportance,
    Evidence,
    Explanation,
    Fidelity,
    ScoreRequest,
    StanceScore,
)
from services.bots.text import WrongEncoder, encoder
from shared.problems import FourfoldError, Unprocessable


class BadEdge(Unprocessable):
    """An edge that cannot be taken; `row` and `field` say where."""

    code = "bots-bad-edge"
    title = "An edge cannot be taken"
    advice = "Name a relation of the list in the detail, and accounts that are in the request."


@dataclass
class Reading:
    """A request as the model takes it. Rows that cannot be read are in `problems`, the others in `queries`."""

    accounts: dict[int, Account]
    graph: GraphData
    queries: dict[int, Query]
    problems: dict[int, FourfoldError]
    nodes: dict[int, list[str]]  # ids of a query's accounts
    repairs: dict[str, int] = field(default_factory=dict[str, int])


def read_request(asked: ScoreRequest, predictor: BotsPredictor) -> Reading:
    """Read every account, the neighbourhood and the texts; raises BadAccount or BadEdge for the neighbourhood's."""
    calibration = predictor.calibration
    roots: dict[int, Account] = {}
    problems: dict[int, FourfoldError] = {}
    for row, given in enumerate(asked.accounts):
        try:
            roots[row] = read_account(given, asked.form, row)
        except FourfoldError as error:
            problems[row] = error
    around = [] if asked.neighbourhood is None else asked.neighbourhood.accounts
    others = [_neighbour(given, asked, row) for row, given in enumerate(around)]
    members = [*roots.values(), *others]
    graph = _graph(asked, calibration, members)
    near = predictor.neighbourhood(graph)
    queries: dict[int, Query] = {}
    nodes: dict[int, list[str]] = {}
    for place, row in enumerate(roots):
        try:
            query = predictor.query(graph, near, place, asked.fan_out, asked.seed)
            queries[row] = query
            nodes[row] = [graph.ids[node] for node in near.ego(np.array([place]), asked.fan_out, asked.seed).nodes_M]
        except FourfoldError as error:
            problems[row] = error
    return Reading(roots, graph, queries, problems, nodes, graph.repairs)


def _neighbour(given: dict[str, object], asked: ScoreRequest, row: int) -> Account:
    try:
        account = read_account(given, asked.form, row)
    except BadAccount as error:
        error.detail = f"Neighbourhood: {error.detail}"
        raise
    if not account.id:
        raise BadAccount(f"Neighbourhood: account {row} has no id, so that no edge can name it.", row=row, field="id")
    return account


def _graph(asked: ScoreRequest, calibration: Calibration, members: list[Account]) -> GraphData:
    places: dict[str, int] = {}
    for place, account in enumerate(members):
        if account.id and account.id in places:
            raise BadAccount(f"The account {account.id!r} is there twice.", row=place, field="id")
        places[account.id or f"row {place}"] = place
    relations = calibration.relations or RELATIONS
    given = [] if asked.neighbourhood is None else asked.neighbourhood.edges
    columns: list[tuple[int, int, int]] = []
    for row, edge in enumerate(given):
        for name, end in (("source", edge.source), ("target", edge.target)):
            if end not in places:
                raise BadEdge(f"Edge {row}, {name}: there is no account {end!r}.", row=row, field=name)
        if edge.relation not in relations:
            near = difflib.get_close_matches(edge.relation, relations, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there is {', '.join(relations)}."
            raise BadEdge(f"Edge {row}, relation: unknown {edge.relation!r}{hint}", row=row, field="relation")
        columns.append((places[edge.source], places[edge.target], relations.index(edge.relation)))
    ends = np.array(columns, np.int64).reshape(-1, 3).T
    edges, repairs = Edges(ends[0], ends[1], ends[2]).cleaned(max(1, len(members)))
    none = np.full(len(members), -1, np.int64)
    values = [account.values_P for account in members]
    return GraphData(
        ids=list(places),
        values_NP=np.stack(values) if values else np.zeros((0, len(PROPERTIES)), np.float32),
        texts=[],
        edges=edges,
        relations=tuple(relations),
        bot_N=none,
        stance_N=none,
        split_N=none,
        embedding_ND=_texts(asked, calibration, members),
        repairs={name: count for name, count in repairs.items() if count},
    )


def _texts(asked: ScoreRequest, calibration: Calibration, members: list[Account]) -> np.ndarray | None:
    """The texts' vectors (N, D), zeros where there is none; None for a model that looks at no text."""
    for account_id, given in asked.embeddings.items():
        if given.encoder != calibration.text_encoder:
            raise WrongEncoder(
                f"The vector of {account_id!r} comes from {given.encoder!r}; the model takes "
                f"{calibration.text_encoder or 'no text'}."
            )
        if len(given.values) != calibration.text_width or not np.isfinite(given.values).all():
            raise WrongEncoder(f"The vector of {account_id!r} is not {calibration.text_width} finite numbers.")
    if not calibration.text_width or calibration.text_encoder is None:
        return None
    rows = np.zeros((len(members), calibration.text_width), np.float32)
    for row, account in zip(rows, members, strict=True):
        texts = [*account.texts, *asked.tweets.get(account.id, [])]
        if account.id in asked.embeddings:
            row[:] = asked.embeddings[account.id].values
        elif account.embedding_D is not None:
            if len(account.embedding_D) != calibration.text_width:
                raise WrongEncoder(f"The model's text vectors have {calibration.text_width} numbers.")
            row[:] = account.embedding_D
        elif texts and not calibration.text_encoder.startswith("given-"):
            folder = os.environ.get("FOURFOLD_TEXT_ENCODER")
            row[:] = encoder(calibration.text_encoder, Path(folder) if folder else None).encode(texts).mean(axis=0)
        elif asked.tweets.get(account.id):
            raise WrongEncoder("The model was trained on vectors that came with its data; send embeddings.")
    return rows


def score_of(asked: ScoreRequest, predictor: BotsPredictor, reading: Reading, row: int, answer: Answer) -> AccountScore:
    """What the caller reads of one account."""
    calibration, account, query = predictor.calibration, reading.accounts[row], reading.queries[row]
    probability = adjusted = confidence = None
    label = None
    if "bot" in calibration.tasks and calibration.prior is not None:
        probability = float(answer.probabilities("bot")[1])
        shares = with_prior(np.array([probability]), calibration.prior, asked.prior or calibration.prior)
        adjusted = float(shares[0])
        confidence = max(adjusted, 1 - adjusted)
        label = "abstain" if confidence < asked.min_confidence else "bot" if adjusted > 0.5 else "human"
    stance = None
    if "stance" in calibration.tasks:
        shares = answer.probabilities("stance")
        named = {str(name): round(float(share), 6) for name, share in zip(STANCES, shares, strict=True)}
        stance = StanceScore(label=STANCES[int(shares.argmax())], probabilities=named)
    known = {name for view in calibration.views for name in view.properties}
    seen = account.present & set(answer.view.properties)
    distance = calibration.distance(account.values_P, answer.view)
    return AccountScore(
        id=account.id,
        probability=probability,
        adjusted_probability=adjusted,
        label=label,
        confidence=confidence,
        stance=stance,
        evidence=Evidence(
            view=answer.view.name,
            used=[name for name in PROPERTIES if name in seen],
            missing=[name for name in PROPERTIES if name in known - account.present],
            text=query.text_MD is not None and bool(query.text_MD[0].any()),
            accounts=len(query.values_MP) - 1,
            edges=len(query.edges),
            declared_automated=account.declared_automated,
        ),
        out_of_distribution=distance > 1,
        distance=distance,
    )


def explanation_of(predictor: BotsPredictor, reading: Reading, row: int, found: Explained) -> Explanation:
    """What the caller reads of one explanation, the strongest first."""
    account, query, ids = reading.accounts[row], reading.queries[row], reading.nodes[row]
    order = sorted(found.contributions, key=lambda name: -abs(found.contributions[name][0]))
    values = dict(zip(PROPERTIES, account.values_P.tolist(), strict=True))
    relations = predictor.calibration.relations
    edges = [
        EdgeImportance(
            source=ids[query.edges.source_E[number]],
            relation=relations[query.edges.relation_E[number]],
            target=account.id,
            importance=importance,
        )
        for number, importance in sorted(found.edges.items(), key=lambda item: -abs(item[1]))
    ]
    return Explanation(
        id=account.id,
        probability=found.probability,
        baseline=found.baseline,
        view=predictor.calibration.views[query.view].name,
        contributions=[
            Contribution(
                property=name,
                value=values[name],
                contribution=found.contributions[name][0],
                error=found.contributions[name][1],
            )
            for name in order
        ],
        edges=edges,
        fidelity=Fidelity(without_top=found.without_top, without_random=found.without_random, only_top=found.only_top),
    )
