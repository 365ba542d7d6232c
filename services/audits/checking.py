"""What every check is given besides the subject: seed, budget, progress and a stop; and the table's type."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.audits.report import Check
from shared.audit_report import Budget
from shared.auditing import Context, Examples, Subject
from shared.jobs.context import StopReason, check_stop


@dataclass(frozen=True)
class Checking:
    """A check's surroundings. It is a `shared.auditing.Context` too, so that a subject's `fit` can be given it."""

    within: Context
    seed: int
    progress: Callable[[float], None]  # told the share of this check that is done, 0–1

    @property
    def logger(self) -> logging.Logger:
        return self.within.logger

    def should_stop(self) -> StopReason | None:
        return self.within.should_stop()

    def artefact(self, name: str) -> Path:
        return self.within.artefact(name)

    def check_stop(self) -> None:
        """Raise JobStopped where the audit is to end; ask it every step."""
        check_stop(self.within)

    def random(self, *purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose, from the audit's seed."""
        return np.random.default_rng([self.seed, *purpose])


FULL = 10  # times as many examples as in a quick audit
CheckFunction = Callable[[Subject, Subject | None, Budget, Checking], Check]  # (subject, baseline, budget, context)
Stop = Callable[[], None]  # raises when the work is to end


def go_on() -> None:
    """The Stop of work that nobody cancels."""


def sample(examples: Examples, budget: Budget, context: Checking, *, times: int = 1) -> Examples:
    """The examples, or as many of them as the budget looks at (`times` as many), drawn with the audit's seed."""
    most = examples.quick if budget == "quick" else FULL * examples.quick
    most *= times
    if len(examples) <= most:
        return examples
    return examples.take(np.sort(context.random(0).permutation(len(examples))[:most]))
