"""STRIP (Gao and others, 2019) of a trained version: which training examples stay sure of their label whatever is laid
over them? A trigger outlasts what is laid over it, and a class's own features do not.

It is asked of the training examples, among which poisoned ones sit if there are any: held-out inputs that carry no
trigger can tell of none. They are what is laid over, and what the threshold comes from. What it names are suspects: a
version is surer of what it learnt than of what it did not, poisoned or not.

Shapes: N examples, T inputs that are laid over one, X the shape of an input, K classes.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from services.audits.checking import Budget, Checking
from services.audits.intervals import Mean, mean
from services.audits.scans import LEAST, Floats, strip_scores
from services.audits.suspects import LARGEST_SHARE, LEAST_GROUP, Group
from shared.auditing import Examples, Subject

ALARMS = 0.05  # of the held-out examples of a class that are surer than its threshold
SOURCE = (
    "STRIP (Gao and others, 2019): as sure as all but 5 % of the class's held-out examples, so that chance gives 5 %; "
    "more than that is no verdict, but names whose shared values are tried"
)
LAID_OVER = {"quick": 20, "full": 100}  # T
SECONDS = {"quick": 60.0, "full": 1800.0}  # that it may take
RUN = 256  # examples at once


class Strip(NamedTuple):
    """`groups` are the suspects of each class; `share` is that of the class `label` that is surer than the threshold,
    of the class where it is largest."""

    groups: list[Group]
    label: int
    share: Mean


def strip(
    subject: Subject,
    module: Any,
    train: Examples,
    held_out: Examples,
    budget: Budget,
    context: Checking,
    notes: list[str],
) -> Strip | None:
    """The training examples that are surer than all but ALARMS of their class's held-out ones. None where no class has
    LEAST held-out and LEAST training examples, and others to lay over them; or, said in `notes`, for want of time."""
    label_N, held_N = (np.asarray(part.targets_N, np.int64) for part in (train, held_out))
    kinds = [
        int(kind)
        for kind in np.unique(label_N[label_N >= 0])
        if (label_N == kind).sum() >= LEAST <= (held_N == kind).sum() and ((held_N != kind) & (held_N >= 0)).any()
    ]
    if kinds and (seconds := _seconds(subject, module, train, held_out, kinds, budget)) > SECONDS[budget]:
        notes.append(f"STRIP was not run: it might take {seconds / 60:.0f} minutes.")
        return None
    groups: list[Group] = []
    shares: list[tuple[int, Mean]] = []
    for kind in kinds:
        over = held_out.take(np.flatnonzero((held_N != kind) & (held_N >= 0)))
        rows = np.flatnonzero(label_N == kind)
        score_N = _sureness(subject, module, train.take(rows), over, budget, context)
        usual_N = _sureness(subject, module, held_out.take(np.flatnonzero(held_N == kind)), over, budget, context)
        surer_N = score_N > np.quantile(usual_N, 1 - ALARMS, method="higher")
        shares.append((kind, mean(surer_N)))
        most = min(int(surer_N.sum()), int(LARGEST_SHARE * len(rows)))
        if most >= LEAST_GROUP:
            groups.append(Group(kind, np.sort(rows[np.argsort(-score_N, kind="stable")[:most]]), "STRIP"))
    if not shares:
        return None
    label, share = max(shares, key=lambda one: one[1].value)
    return Strip(groups, label, share)


def _seconds(
    subject: Subject, module: Any, train: Examples, held_out: Examples, kinds: list[int], budget: Budget
) -> float:
    """What it would take, by a few examples."""
    asked = sum(int(np.isin(part.targets_N, kinds).sum()) for part in (train, held_out))
    few = subject.continuous(train.take(np.arange(min(len(train), 8))))
    started = time.monotonic()
    with torch.no_grad():
        few.logits(module, few.values)
    return (time.monotonic() - started) / len(few.values) * asked * LAID_OVER[budget]


def _sureness(
    subject: Subject, module: Any, examples: Examples, over: Examples, budget: Budget, context: Checking
) -> Floats:
    """(N,) STRIP's score of each example, T drawn from `over` laid over it. They are added and cut off at the ends of
    the range, as STRIP adds pictures: a mean would halve the trigger too."""
    over_MX = subject.continuous(over).values
    random = context.random(3)
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(examples), RUN):
        continuous = subject.continuous(examples.take(np.arange(start, min(start + RUN, len(examples)))))
        values_NX, low, high = continuous.values, continuous.low, continuous.high
        answers: list[NDArray[np.float32]] = []
        for _ in range(LAID_OVER[budget]):
            context.check_stop()
            drawn_NX = over_MX[torch.from_numpy(random.integers(len(over_MX), size=len(values_NX)))]
            with torch.no_grad():
                logit_NK = continuous.logits(module, (values_NX + drawn_NX - low).clamp(low, high))
            answers.append(torch.softmax(logit_NK, 1).numpy())
        found.append(strip_scores(np.stack(answers, axis=1)))
    return np.concatenate(found)
