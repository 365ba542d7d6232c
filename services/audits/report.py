"""Verdicts put together, and short ways to make parts of a report. The types are the kit's: the gateway answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from shared.audit_report import Check, DatasetUsed, Evidence, Figure, Report, Series, Verdict

__all__ = [
    "Check",
    "DatasetUsed",
    "Evidence",
    "Figure",
    "Report",
    "Series",
    "Verdict",
    "not_assessed",
    "series",
    "worst",
]

_SEVERITY = (Verdict.NOT_ASSESSED, Verdict.PASSES, Verdict.LOOK, Verdict.STOP)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The gravest of them; what was not assessed counts only where nothing was."""
    return max(verdicts, key=_SEVERITY.index, default=Verdict.NOT_ASSESSED)


def not_assessed(name: str, reason: str, *, advice: str = "", notes: Sequence[str] = ()) -> Check:
    """A check that could not be made, and why."""
    return Check(name=name, verdict=Verdict.NOT_ASSESSED, summary=reason, advice=advice, notes=tuple(notes))


def series(name: str, x: Iterable[Any], y: Iterable[Any], **bounds: Iterable[Any]) -> Series:
    """A Series of numbers of any kind, NumPy's among them."""

    def plain(values: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(value if isinstance(value, str) else float(value) for value in values)

    return Series(name=name, x=plain(x), y=plain(y), **{key: plain(value) for key, value in bounds.items()})
