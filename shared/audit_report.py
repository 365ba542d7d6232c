"""What an audit says, as it is kept and answered: verdicts, evidence with its uncertainty, figures, the report."""

from __future__ import annotations

import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from shared.bundles import Frozen

CheckName = Literal["groups", "robustness", "landscape", "backdoor"]
CHECK_NAMES: tuple[CheckName, ...] = get_args(CheckName)
Budget = Literal["quick", "full"]


class Verdict(StrEnum):
    PASSES = "passes"
    LOOK = "look-at-this"
    STOP = "do-not-promote"
    NOT_ASSESSED = "not-assessed"


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


# JSON has neither NaN nor infinity: what is not a number is null.
Number = Annotated[float | None, AfterValidator(_finite)]


class Evidence(Frozen):
    """One number and what it rests on. `low` and `high` are its 95 % interval over `n` things."""

    name: str
    value: Number
    low: Number = None
    high: Number = None
    n: int | None = None
    unit: str = ""
    budget: str = ""
    seeds: tuple[int, ...] = ()
    threshold: Number = None
    threshold_source: str | None = None


class Series(Frozen):
    """One line, set of bars or points. `x` may be words."""

    name: str = ""
    x: tuple[Number | str, ...]
    y: tuple[Number, ...] = ()
    low: tuple[Number, ...] | None = None
    high: tuple[Number, ...] | None = None


class Figure(Frozen):
    """A plot. A heatmap has one series, with the columns' names in `x`, and `z` in rows, whose names are `rows`."""

    title: str
    kind: Literal["line", "bar", "scatter", "heatmap"]
    x_label: str = ""
    y_label: str = ""
    series: tuple[Series, ...] = ()
    z: tuple[tuple[Number, ...], ...] | None = None
    rows: tuple[str, ...] = ()


class Check(Frozen):
    """What one check found. `advice` says what to do, in a sentence or two."""

    name: str
    verdict: Verdict
    summary: str
    advice: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    figures: tuple[Figure, ...] = ()


class DatasetUsed(Frozen):
    name: str | None = None
    digest: str | None = None
    split: str = ""
    n: int = 0


class Report(Frozen):
    """An audit of one version. `command` computes it again."""

    format: Literal[1] = 1
    id: str
    model: str
    version: int
    baseline: int | None = None
    verdict: Verdict
    created_at: datetime
    seconds: float
    command: str
    seed: int
    budget: Budget
    revision: str | None = Field(default=None, description="Of the code that audited.")
    bundle: dict[str, str] = Field(default={}, description="SHA-256 of the version's files that were examined.")
    libraries: dict[str, str] = Field(default={})
    dataset: DatasetUsed | None = None
    notes: tuple[str, ...] = Field(
        default=(), description="What holds for the whole audit, for example which data it lacked."
    )
    checks: tuple[Check, ...]
