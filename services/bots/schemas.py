"""The wire contract of bots: what is asked and answered, and the training configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.jobs.config import RecipeConfig

Form = Literal["auto", "x-v1.1", "x-v2", "mastodon", "bluesky", "mgtab"]
MOST_ACCOUNTS = 1_000
MOST_NEIGHBOURS = 20_000
MOST_EDGES = 200_000
Text = Annotated[str, Field(max_length=10_000)]


class TrainConfig(RecipeConfig):
    """How a network over an account graph, or a table of accounts, is trained."""

    encoder: Literal["mlp", "rgcn", "botrgcn", "rgt", "ggcn"] = Field(
        default="rgcn", description="mlp looks at no edges; it is what any becomes without edges."
    )
    tasks: tuple[Literal["bot", "stance"], ...] = Field(
        default=(), max_length=2, description="Those that the data set has labels for, if empty."
    )
    hidden: int = Field(default=64, ge=4, le=1024)
    layers: int = Field(default=2, ge=1, le=16, description="Rounds of messages.")
    heads: int = Field(default=4, ge=1, le=16, description="Of the attention, in rgt.")
    dropout: float = Field(default=0.3, ge=0, lt=1)
    epochs: int = Field(default=200, ge=1, le=5000)
    patience: int = Field(default=40, ge=1, description="Epochs without a better validation loss.")
    learning_rate: float = Field(default=1e-2, gt=0, le=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    property_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Part of the properties hidden at random, so that gaps do no harm."
    )
    text_encoder: Literal["none", "packaged", "given"] = Field(
        default="none", description="Of descriptions and tweets; `given` takes the data set's own vectors (MGTAB)."
    )
    given_encoder: str = Field(
        default="", max_length=100, description="Which encoder made the given vectors, to serve with it (see text.py)."
    )
    direction: Literal["both", "as-given"] = Field(
        default="both", description="Whether an edge also carries messages against its direction."
    )
    floors: bool = Field(default=True, description="Measure boosted trees, a forest and an MLP on the same splits.")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EdgeIn(Strict):
    source: str = Field(max_length=200)
    relation: str = Field(max_length=64)
    target: str = Field(max_length=200)


class NeighbourhoodIn(Strict):
    """Accounts around those asked about, and the edges among them all."""

    accounts: list[dict[str, Any]] = Field(default=[], max_length=MOST_NEIGHBOURS)
    edges: list[EdgeIn] = Field(default=[], max_length=MOST_EDGES)


class EmbeddingIn(Strict):
    """A vector of an account's texts, from the encoder that the model was trained with."""

    encoder: str = Field(max_length=100)
    values: list[float] = Field(max_length=4096)


class ScoreRequest(Strict):
    accounts: list[dict[str, Any]] = Field(
        min_length=1, max_length=MOST_ACCOUNTS, description="Account objects as the platform's API has them."
    )
    form: Form = Field(default="auto", description="Of the accounts; found by their members if `auto`.")
    neighbourhood: NeighbourhoodIn | None = None
    tweets: dict[str, list[Text]] = Field(default={}, description="Account id → texts.")
    embeddings: dict[str, EmbeddingIn] = Field(default={}, description="Account id → vector of its texts.")
    prior: float | None = Field(
        default=None, gt=0, lt=1, description="The share of bots that you expect; the training's if unset."
    )
    min_confidence: float = Field(default=0.5, ge=0.5, le=1, description="Abstain below it.")
    fan_out: list[Annotated[int, Field(ge=0, le=1000)]] = Field(
        default=[25, 10], max_length=4, description="Most incoming edges followed from each account, by hop."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Of the sampled neighbourhood.")


class ExplainRequest(ScoreRequest):
    accounts: list[dict[str, Any]] = Field(min_length=1, max_length=16)
    permutations: int = Field(default=32, ge=2, le=128, description="More make the contributions more exact.")


class Evidence(BaseModel):
    """What an answer rests on."""

    view: str = Field(description="profile, x-v2, full or graph: the calibrated head that answered.")
    used: list[str] = Field(description="Properties that were known and that the view looks at.")
    missing: list[str] = Field(description="Properties that the model knows and the account does not tell.")
    text: bool = Field(description="Whether texts were looked at.")
    accounts: int = Field(description="Accounts in the sampled neighbourhood, itself left out.")
    edges: int
    declared_automated: bool = Field(description="The platform itself says so; the score does not look at it.")


class StanceScore(BaseModel):
    label: str
    probabilities: dict[str, float]


class AccountScore(BaseModel):
    id: str
    probability: float | None = Field(description="Of a bot, calibrated for the training's share of bots.")
    adjusted_probability: float | None = Field(description="The same for the prior asked for.")
    label: Literal["bot", "human", "abstain"] | None
    confidence: float | None = Field(description="Probability of the label, after the prior.")
    stance: StanceScore | None
    evidence: Evidence
    out_of_distribution: bool = Field(description="Further from the training accounts than 99 % of them.")
    distance: float = Field(description="Mahalanobis distance over the limit; above 1 is out of distribution.")


class AccountResult(BaseModel):
    """One account's answer, or its problem."""

    row: int
    result: AccountScore | None = None
    problem: dict[str, Any] | None = None


class ScoreResponse(BaseModel):
    model: str
    prior: float | None
    results: list[AccountResult]
    repairs: dict[str, int] = Field(description="Edges left out: self-loops and duplicates.")


class Contribution(BaseModel):
    property: str
    value: float = Field(description="As the model sees it, 0–1.")
    contribution: float = Field(description="Shapley value, to the logit of a bot; positive speaks for a bot.")
    error: float = Field(description="Standard error of the sampled value.")


class EdgeImportance(BaseModel):
    source: str
    relation: str
    target: str
    importance: float = Field(description="How much the logit of a bot falls without it.")


class Fidelity(BaseModel):
    """How far the explanation can be trusted, in probability."""

    without_top: float = Field(description="Change of the probability without the three strongest: large is good.")
    without_random: float = Field(description="The same for three drawn at random, on average: the floor.")
    only_top: float = Field(description="Change of the probability with nothing but the three: small is good.")


class Explanation(BaseModel):
    id: str
    probability: float
    baseline: float = Field(description="Probability when nothing is known of the account.")
    view: str
    contributions: list[Contribution]
    edges: list[EdgeImportance]
    fidelity: Fidelity


class ExplainResult(BaseModel):
    row: int
    result: Explanation | None = None
    problem: dict[str, Any] | None = None


class ExplainResponse(BaseModel):
    model: str
    results: list[ExplainResult]


class GraphConfig(RecipeConfig):
    """How a whole graph is scored."""

    prior: float | None = Field(default=None, gt=0, lt=1)
    min_confidence: float = Field(default=0.5, ge=0.5, le=1)
