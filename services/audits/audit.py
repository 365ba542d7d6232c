"""Makes an audit: the checks one after the other, each by itself, and their report."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Protocol

from services.audits import groups, robustness
from services.audits.checking import Budget, CheckFunction, Checking
from services.audits.report import Check, DatasetUsed, Report, Verdict, not_assessed, worst
from shared.auditing import Context, OnOtherData, Subject
from shared.bundles import Bundle, code_revision, library_versions
from shared.jobs.context import JobStopped
from shared.problems import FourfoldError, Unprocessable

LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "onnxruntime")


def _heavy(module: str) -> CheckFunction:
    """A check whose module is imported when it runs: it brings torch."""

    def check(*given: Any) -> Check:
        return import_module(module).check(*given)

    return check


CHECKS: Mapping[str, CheckFunction] = {
    "groups": groups.check,
    "robustness": robustness.check,
    "landscape": _heavy("services.audits.landscape"),
    "backdoor": _heavy("services.audits.backdoor"),
}


class Reporting(Context, Protocol):
    """A context that is told of progress."""

    def report(self, *, step: int, total: int, **metrics: float) -> None: ...


def audit(
    subject: Subject,
    baseline: Subject | None,
    context: Reporting,
    *,
    checks: Sequence[str] = (),
    seed: int = 0,
    budget: Budget = "quick",
) -> tuple[Check, ...]:
    """The checks asked for, or all. One that fails is told so and the others go on; raises Unprocessable for an
    unknown name, and JobStopped."""
    names = list(dict.fromkeys(checks or CHECKS))
    for name in names:
        if name not in CHECKS:
            raise Unprocessable(f"There is no check {name!r}; there are {', '.join(CHECKS)}.")
    made: list[Check] = []
    for number, name in enumerate(names):
        context.report(step=100 * number, total=100 * len(names))
        told = [0]

        def progress(share: float, number: int = number, told: list[int] = told) -> None:
            step = int(100 * min(1.0, max(0.0, share)))
            if step >= told[0] + 5:  # a row of the database each
                told[0] = step
                context.report(step=100 * number + step, total=100 * len(names))

        made.append(_made(name, subject, baseline, budget, Checking(context, seed, progress)))
        context.logger.info("%s: %s (%.1f s)", name, made[-1].verdict, made[-1].seconds)
    context.report(step=100 * len(names), total=100 * len(names))
    return tuple(made)


def _made(name: str, subject: Subject, baseline: Subject | None, budget: Budget, context: Checking) -> Check:
    started = time.monotonic()
    context.check_stop()
    try:
        check = _believable(CHECKS[name](subject, baseline, budget, context))
    except JobStopped:
        raise
    except FourfoldError as error:
        check = not_assessed(name, error.detail)
    except Exception as error:
        context.logger.error("%s", traceback.format_exc())
        reason = f"The check failed: {type(error).__name__}. The job's log has the details."
        check = not_assessed(name, reason, advice="Report it with the log, or look at what the version answers.")
    return check.model_copy(update={"seconds": round(time.monotonic() - started, 2)})


def _believable(check: Check) -> Check:
    """A check whose numbers are none must not pass."""
    lost = [item.name for item in check.evidence if item.value is None or not math.isfinite(item.value)]
    if not lost or check.verdict is not Verdict.PASSES:
        return check
    note = f"Not a number: {', '.join(lost[:5])}. The check diverged there."
    return check.model_copy(update={"verdict": Verdict.LOOK, "notes": (*check.notes, note)})


def report(
    bundle: Bundle,
    subject: Subject,
    checks: tuple[Check, ...],
    *,
    id: str,
    baseline: int | None,
    command: str,
    seed: int,
    budget: Budget,
    seconds: float,
    dataset: tuple[str | None, str | None],
    at_hand: bool,
) -> Report:
    """The checks with everything that it takes to repeat them. `dataset` is its name and digest, if it is at hand."""
    name, digest = dataset
    trained = bundle.manifest.dataset_digest
    notes: list[str] = []
    if not at_hand:
        which = (
            "The version does not say what it was trained on"
            if trained is None
            else (f"The data set {trained[:12]}, which the version was trained on, is not at hand")
        )
        notes.append(
            f"{which}: add it, or name another. With another one remain groups and robustness (but for memory); the "
            "training set's scan and the landscape need the training's own."
        )
    elif isinstance(subject, OnOtherData):
        notes.append(
            "The data set is not the one that the version was trained on: what needs the training split is left out, "
            "and what was held out of this data set the version may have seen."
        )
    elif trained is None:
        notes.append("The version does not say what it was trained on; the data set at hand is taken for it.")
    used = None
    if at_hand and any(check.verdict is not Verdict.NOT_ASSESSED for check in checks):
        used = DatasetUsed(name=name, digest=digest, split=subject.split, n=len(subject.held_out))
    return Report(
        id=id,
        model=bundle.manifest.name,
        version=bundle.manifest.version or 1,
        baseline=baseline,
        verdict=worst(check.verdict for check in checks),
        created_at=datetime.now(UTC),
        seconds=round(seconds, 2),
        command=command,
        seed=seed,
        budget=budget,
        revision=code_revision(),
        bundle={file: entry.sha256 for file, entry in bundle.manifest.files.items()},
        libraries=library_versions(LIBRARIES),
        dataset=used,
        notes=tuple(notes),
        checks=checks,
    )
