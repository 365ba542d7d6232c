"""The wire contract of inlining: what is asked and answered, and the configurations of its jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.jobs.config import RecipeConfig

MOST_CHARACTERS = 48 << 20
Goal = Literal["size", "speed"]
Artefact = Literal["replay", "annotated-ir", "object"]


class TuneConfig(RecipeConfig):
    """How decisions are searched for."""

    module: str = Field(default="", max_length=300, description="Which file of the data set; its only one if empty.")
    evaluations: int = Field(default=200, ge=1, le=100_000, description="Compiles that may be spent.")
    flags: tuple[Annotated[str, Field(max_length=200)], ...] = Field(
        default=(), max_length=200, description="Of the compiler, for C source; from the same list as for advice."
    )


class TrainConfig(RecipeConfig):
    """How a policy is trained on a corpus of modules. `threads` compiles run at once."""

    goal: Goal = Field(
        default="size",
        description="size: bytes of machine code at -Oz. speed: executed instructions at -O3, as IR2Perf predicts.",
    )
    method: Literal["clone", "imitate", "evolution", "ppo"] = Field(
        default="imitate",
        description="clone: stock's own decisions. imitate: the measured worth of single decisions. evolution and ppo: "
        "the goal itself, from the start that `start` names. imitate is of the goal size alone.",
    )
    start: Literal["clone", "imitate"] = Field(default="imitate", description="What evolution and ppo go on from.")
    largest_module: int = Field(
        default=150_000, ge=1, description="Bytes; larger modules are measured but not learned from."
    )
    clone_epochs: int = Field(default=40, ge=1, le=1000)
    label_runs: int = Field(default=5, ge=1, le=1000, description="Compiles a module that measure single decisions.")
    label_epochs: int = Field(default=60, ge=1, le=1000)
    anchors: tuple[Annotated[float, Field(ge=0, le=100)], ...] = Field(
        default=(0.02, 0.1), min_length=1, max_length=10, description="Pulls towards stock to try; validation chooses."
    )
    batch_size: int = Field(default=512, ge=1, le=65_536)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    generations: int = Field(default=20, ge=1, le=100_000, description="Of evolution.")
    pairs: int = Field(default=4, ge=1, le=1000, description="Of mirrored perturbations, a generation.")
    sigma: float = Field(default=0.05, gt=0, le=10, description="Of the perturbations.")
    step: float = Field(default=0.05, gt=0, le=10, description="Of evolution.")
    modules_per_step: int = Field(default=8, ge=1, le=10_000, description="Of a generation, or an iteration of ppo.")
    iterations: int = Field(default=20, ge=1, le=100_000, description="Of ppo.")
    ppo_epochs: int = Field(default=4, ge=1, le=100)
    ppo_learning_rate: float = Field(default=1e-4, gt=0, le=1)
    clip: float = Field(default=0.2, gt=0, lt=1, description="Of ppo's ratio of probabilities.")
    entropy: float = Field(default=0.003, ge=0, le=1, description="What ppo pays for staying undecided.")

    @model_validator(mode="after")
    def _bytes_are_not_speed(self) -> Self:
        imitates = self.method == "imitate" or (self.method in ("evolution", "ppo") and self.start == "imitate")
        if self.goal == "speed" and imitates:
            raise ValueError("imitate learns bytes: for speed choose evolution or ppo, with start=clone")
        return self


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AdviceRequest(Strict):
    """A module and what is wanted of it."""

    format: Literal["c", "ir", "bitcode"] = Field(
        description="C source, LLVM's textual IR, or bitcode (as Base64). IR and bitcode as `clang -Oz -Xclang "
        "-disable-llvm-passes -emit-llvm` leaves them (for the goal speed -O3): no pass has run."
    )
    content: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    name: str = Field(default="input.c", max_length=200, description="Of the C source; its places are told by it.")
    files: dict[str, Annotated[str, Field(max_length=MOST_CHARACTERS)]] = Field(
        default={}, max_length=500, description="Headers that the source includes: path → text."
    )
    flags: list[Annotated[str, Field(max_length=200)]] = Field(
        default=[], max_length=200, description="Of the compiler, for C source. The goal chooses the level: -Oz or -O3."
    )
    goal: Goal = "size"
    artefact: Artefact = "replay"
    best_of: int = Field(default=1, ge=1, le=16, description="Tries of the policy; those after the first are sampled.")
    seed: int = Field(default=0, ge=0, lt=2**31)


class SiteAdvice(BaseModel):
    """What is decided about a call site."""

    caller: str = Field(description="The function that the call is in when it is decided about.")
    callee: str
    place: str = Field(description="`f:3:9`: line 3 (from f's first) and column 9 of f; `g:1:5 @ f:3:9`: g's, in f.")
    file: str
    line: int
    column: int
    inline: bool
    stock: bool | None = Field(description="What stock does there, if it has this call site.")
    confidence: float | None = Field(description="The policy's probability of this decision, where it was asked.")
    features: dict[str, int] | None = Field(description="What the policy saw.")


class FunctionSize(BaseModel):
    """Bytes of a function's machine code; 0 where it is not left."""

    name: str
    stock: int
    advised: int


class CandidateSize(BaseModel):
    name: str = Field(description="stock, inline-threshold=N, policy, or policy-sample-N.")
    text: int = Field(description="Bytes of machine code when compiled so.")
    instructions_percent: float | None = Field(
        default=None, description="With the goal speed: predicted executed instructions, beside stock -O3."
    )


class PredictedInstructions(BaseModel):
    """What IR2Perf predicts; nothing of what was sent was run."""

    percent: float = Field(description="Executed instructions of the advised module beside stock -O3; below 0: fewer.")
    model: dict[str, Any] = Field(description="What the model was fitted on, and how well it ranks unseen programs.")


class ArtefactOut(BaseModel):
    kind: Artefact
    media_type: str
    encoding: Literal["utf-8", "base64"]
    content: str
    text: int = Field(description="Bytes of machine code that it yields, compiled.")
    options: list[str] = Field(description="What clang needs to be told to use it, FILE being the artefact.")
    calls_marked: int | None = Field(default=None, description="In annotated IR: calls with an attribute of ours.")


class AdviceResponse(BaseModel):
    model: str
    goal: Goal
    winner: str = Field(description="The candidate that was best by the goal; `stock` at a tie.")
    text_stock: int
    text_advised: int = Field(description="With the goal size never above text_stock.")
    instructions: PredictedInstructions | None = Field(default=None, description="With the goal speed.")
    functions: list[FunctionSize] = Field(description="Those whose size changed.")
    candidates: list[CandidateSize]
    sites: list[SiteAdvice]
    located: bool = Field(description="False: the input had no debug locations and was given some (`module_ir`).")
    module_ir: str | None = Field(description="The input with locations that the replay file's places are of.")
    artefact: ArtefactOut
    compiles: int
    cpu_seconds: float
