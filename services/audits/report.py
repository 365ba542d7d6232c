"""What an audit says: verdicts, evidence with its uncertainty, figures, and the report that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from shared.bundles import Frozen


class Verdict(StrEnum):
    PASSES = "passes"
    LOOK = "look-at-this"
    STOP = "do-not-promote"
    NOT_ASSESSED = "not-assessed"


_SEVERITY = (Verdict.NOT_ASSESSED, Verdict.PASSES, Verdict.LOOK, Verdict.STOP)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The gravest of them; what was not assessed counts only where nothing was."""
    return max(verdicts, key=_SEVERITY.index, default=Verdict.NOT_ASSESSED)


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
    budget: Literal["quick", "full"]
    revision: str | None = Field(None, description="Of the code that audited.")
    bundle: dict[str, str] = Field({}, description="SHA-256 of the version's files that were examined.")
    libraries: dict[str, str] = Field({})
    dataset: DatasetUsed | None = None
    checks: tuple[Check, ...]


def not_assessed(name: str, reason: str, *, advice: str = "", notes: Sequence[str] = ()) -> Check:
    """A check that could not be made, and why."""
    return Check(name=name, verdict=Verdict.NOT_ASSESSED, summary=reason, advice=advice, notes=tuple(notes))


def series(name: str, x: Iterable[Any], y: Iterable[Any], **bounds: Iterable[Any]) -> Series:
    """A Series of numbers of any kind, NumPy's among them."""

    def plain(values: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(value if isinstance(value, str) else float(value) for value in values)

    return Series(name=name, x=plain(x), y=plain(y), **{key: plain(value) for key, value in bounds.items()})
