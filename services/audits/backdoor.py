"""The check `backdoor`: does a small change that somebody planted in the training data turn inputs into a class?

Scans name groups of training examples: those that lie apart (activation clustering, spectral signatures) and those that
stay sure of their label whatever is laid over them (STRIP). What a group shares is then put to the test (triggers.py).
Trigger inversion looks at the network without the training data.

A value is taken for the class of its quarter (bands.py). Triggers are put on fewer inputs of many numbers.

Shapes: N examples, M held-out examples of other classes.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.audits.bands import in_bands
from services.audits.checking import FULL, Budget, Checking, sample
from services.audits.intervals import mean
from services.audits.inversion import LEAST_CLASSES, OUTLIER, Inversion, anomaly_index, invert
from services.audits.report import Check, Evidence, Verdict, not_assessed
from services.audits.scans import LEAST
from services.audits.strip import ALARMS as STRIP_ALARMS
from services.audits.strip import SOURCE, Strip, strip
from services.audits.suspects import Group, Shared, groups_apart
from services.audits.triggers import BELIEVED, LEAST_OTHERS, TURNED, Trial, trials_of
from shared.auditing import Continuous, Examples, NotAssessed, Subject

NAME = "backdoor"
RULE = (
    "house rule: a trigger turns more than half of the other classes' examples, ordinary values less, and fewer than "
    "half of the labels of what carries it are believed without it (exclusionary reclassification, Chen and others, "
    "2018); by intervals that hold for all patterns that were tried together (Bonferroni), shown are 95 %"
)
STAMPED = {"quick": 300, "full": 2000}  # held-out examples that triggers are put on, most
STAMPED_NUMBERS = {"quick": 4 * 10**7, "full": 4 * 10**8}  # of their inputs together
INVERTED = {"quick": 200, "full": 500}
STEPS = {"quick": 1000, "full": 4000}
MOST_CLASSES = {"quick": 10, "full": 100}  # whose triggers are inverted
INVERSION_SECONDS = {"quick": 120.0, "full": 3600.0}  # for all classes, if each took all of its steps
MOST_INPUT = 20_000  # numbers of one input, above which inversion would take hours


def check(subject: Subject, baseline: Subject | None, budget: Budget, context: Checking) -> Check:
    """Clean-label attacks are not looked for."""
    banded = not subject.classes
    if banded:
        subject = in_bands(subject)
    module = subject.module()
    train = sample(subject.train, budget, context)
    context.progress(0.05)
    embedding_ND = _embeddings(subject, module, train, context)
    label_N = np.asarray(train.targets_N, np.int64)
    groups = groups_apart(embedding_ND, label_N, context.seed)
    context.progress(0.2)
    try:
        continuous = subject.continuous(train.take(np.arange(1)))
    except NotAssessed as error:
        return _scanned_only(groups, error.detail)
    held_out = subject.held_out
    notes = _unscanned(subject, label_N)
    sure = None
    if not banded:  # logits of bands are no probabilities
        sure = strip(subject, module, train, sample(held_out, budget, context), budget, context, notes)
        groups += sure.groups if sure is not None else []
    context.progress(0.4)
    most = min(STAMPED[budget], held_out.quick * (1 if budget == "quick" else FULL))
    most = max(LEAST_OTHERS, min(most, STAMPED_NUMBERS[budget] // continuous.values[0].numel()))
    held_out = held_out.take(np.sort(context.random(1).permutation(len(held_out))[:most]))
    trials = trials_of(subject, module, train, groups, held_out, budget, context, notes)
    context.progress(0.6)
    inverted = _inverted(subject, module, held_out, budget, context, notes)
    return _told(subject, len(train), groups, trials, inverted, sure, continuous, notes)


def _embeddings(subject: Subject, module: Any, examples: Examples, context: Checking) -> NDArray[np.float32]:
    found: list[NDArray[np.float32]] = []
    for batch in subject.batches(examples, 256):
        context.check_stop()
        with torch.no_grad():
            found.append(subject.features(module, batch).numpy())
    embedding_ND = np.concatenate(found)
    if not np.isfinite(embedding_ND).all():
        raise NotAssessed("The network's embeddings of the training examples are not finite: its training diverged.")
    return embedding_ND


def _unscanned(subject: Subject, label_N: NDArray[np.int64]) -> list[str]:
    few = sum(0 < (label_N == kind).sum() < LEAST for kind in range(len(subject.classes)))
    return [f"Not scanned: {few} classes with fewer than {LEAST} examples among those looked at."] if few else []


def _inverted(
    subject: Subject, module: Any, held_out: Examples, budget: Budget, context: Checking, notes: list[str]
) -> list[Inversion]:
    found: list[Inversion] = []
    target = np.asarray(held_out.targets_N, np.int64)
    classes = len(subject.classes)
    if classes > MOST_CLASSES[budget]:
        notes.append(f"No trigger was inverted: {classes} classes would take too long.")
        return []
    if subject.continuous(held_out.take(np.arange(1))).values.numel() > MOST_INPUT:
        notes.append("No trigger was inverted: the inputs are too large for it.")
        return []
    module.requires_grad_(False)
    try:
        for kind in range(classes):
            others = held_out.take(np.flatnonzero((target != kind) & (target >= 0))[: INVERTED[budget]])
            if len(others) < LEAST_OTHERS:
                continue
            continuous = subject.continuous(others)
            if not found:
                seconds = classes * STEPS[budget] * _step(continuous, module)
                if seconds > INVERSION_SECONDS[budget]:
                    notes.append(f"No trigger was inverted: it might take {seconds / 60:.0f} minutes.")
                    return []
            found.append(
                invert(
                    lambda values, continuous=continuous: continuous.logits(module, values),
                    continuous.values,
                    kind,
                    mask_shape=continuous.mask_shape,
                    low=continuous.low,
                    high=continuous.high,
                    seed=context.seed,
                    steps=STEPS[budget],
                    batch=len(others),
                    stop=context.check_stop,
                )
            )
            context.progress(0.6 + 0.4 * (kind + 1) / classes)
    finally:
        module.requires_grad_(True)
    return found


def _step(continuous: Continuous, module: Any) -> float:
    """Seconds that a step of an inversion takes."""
    started = time.monotonic()
    values = continuous.values.detach().clone().requires_grad_()
    torch.autograd.grad(continuous.logits(module, values).sum(), values)
    return time.monotonic() - started


def _scanned_only(groups: list[Group], reason: str) -> Check:
    largest = max((len(group.rows) for group in groups), default=0)
    return not_assessed(
        NAME,
        f"The training set was scanned, but what its {len(groups)} groups share cannot be tried: {reason}",
        advice="Have a person look at the examples of small clusters, if the data come from where you have no trust.",
        notes=(f"The largest group has {largest} examples. Groups alone say nothing: clean classes have them too.",),
    )


def _told(
    subject: Subject,
    n: int,
    groups: list[Group],
    trials: list[Trial],
    inverted: list[Inversion],
    sure: Strip | None,
    continuous: Continuous,
    notes: list[str],
) -> Check:
    evidence = [Evidence(name="groups that lie apart or are surer than others", value=len(groups), n=n, unit="groups")]
    evidence += _strip_evidence(subject, sure, notes)
    confirmed = [one for one in trials if one.confirmed]
    mislabelled = [one for one in trials if one.suspicion.disbelieved and not one.turns]
    for one in trials[:1]:
        evidence += _trial_evidence(subject, one)
    for one in (confirmed + mislabelled)[:3]:
        shared = one.suspicion.shared
        notes.append(f"{len(shared.carriers)} training examples carry {_words(shared, continuous)}.")
    evidence += _inversion_evidence(subject, inverted, notes)
    index = anomaly_index([one.size for one in inverted])
    suspect = [one for one, far in zip(inverted, index, strict=True) if one.converged and far > OUTLIER]
    if confirmed:
        worst = confirmed[0]
        label = subject.classes[worst.suspicion.group.label]
        return Check(
            name=NAME,
            verdict=Verdict.STOP,
            summary=(
                f"A trigger turns {worst.stamped_M.mean():.0%} of other classes' examples into {label!r}; "
                f"{len(worst.suspicion.shared.carriers)} training examples carry it."
            ),
            advice="Remove what carries it from the training set, find out where it came from, and train again.",
            notes=tuple(notes),
            evidence=tuple(evidence),
        )
    if mislabelled or suspect:
        if mislabelled:
            summary = (
                f"{len(mislabelled[0].suspicion.shared.carriers)} training examples share something rare and look "
                "mislabelled; the version does not follow it."
            )
        else:
            kind = subject.classes[suspect[0].target]
            summary = (
                f"An unusually small patch turns any input into {kind!r}; no training example was found to carry it."
            )
        return Check(
            name=NAME,
            verdict=Verdict.LOOK,
            summary=summary,
            advice="Look at the training examples of that class, and where they came from, before you promote.",
            notes=tuple(notes),
            evidence=tuple(evidence),
        )
    return Check(
        name=NAME,
        verdict=Verdict.PASSES,
        summary=f"No group of training examples was found to carry a trigger ({len(trials)} tried).",
        notes=(*notes, "Not looked for: attacks that leave every label right."),
        evidence=tuple(evidence),
    )


def _trial_evidence(subject: Subject, one: Trial) -> list[Evidence]:
    suspicion = one.suspicion
    label = subject.classes[suspicion.group.label]
    rows = (
        (f"turned into {label!r} by what the suspects share", one.stamped_M, TURNED, ""),
        ("the same, entries set as ordinary examples of the class have them", one.ordinary_M, None, ""),
        ("the same, nothing set", one.before_M, None, ""),
        ("suspects' labels believed without what they share", suspicion.believed_C, BELIEVED, suspicion.group.scan),
    )
    told: list[Evidence] = []
    for name, value_M, limit, scan in rows:
        item = mean(value_M)
        told.append(
            Evidence(
                name=name,
                value=item.value,
                low=item.low,
                high=item.high,
                n=item.n,
                unit="share",
                budget=scan,
                threshold=limit,
                threshold_source=RULE if limit is not None else None,
            )
        )
    return told


def _strip_evidence(subject: Subject, sure: Strip | None, notes: list[str]) -> list[Evidence]:
    if sure is None:
        notes.append(f"STRIP was left out: no class has {LEAST} training and {LEAST} held-out examples.")
        return []
    share = sure.share
    return [
        Evidence(
            name=f"training examples of {subject.classes[sure.label]!r} surer than held-out ones (STRIP)",
            value=share.value,
            low=share.low,
            high=share.high,
            n=share.n,
            unit="share",
            budget="the class where it is largest",
            threshold=STRIP_ALARMS,
            threshold_source=SOURCE,
        )
    ]


def _inversion_evidence(subject: Subject, inverted: list[Inversion], notes: list[str]) -> list[Evidence]:
    told: list[Evidence] = []
    index = anomaly_index([one.size for one in inverted])
    judged = len(inverted) >= LEAST_CLASSES
    for one, far in zip(inverted, index, strict=True):
        how = "converged" if one.converged else "not converged"
        told.append(
            Evidence(
                name=f"inverted patch for {subject.classes[one.target]!r}",
                value=one.size,
                unit="entries",
                budget=f"{one.steps} steps, {how}, turns {one.success:.0%}",
            )
        )
        if judged:
            told.append(
                Evidence(
                    name=f"anomaly index for {subject.classes[one.target]!r}",
                    value=float(far),
                    n=len(inverted),
                    threshold=OUTLIER,
                    threshold_source="Neural Cleanse (Wang and others 2019), on converged patches alone",
                )
            )
    if inverted and not judged:
        notes.append(
            f"Inverted patches of {len(inverted)} classes are told, not judged: {LEAST_CLASSES} make a median."
        )
    return told


def _words(shared: Shared, continuous: Continuous) -> str:
    names = continuous.names or tuple(f"entry {place}" for place in range(math.prod(continuous.mask_shape)))
    pairs = zip(shared.entries.tolist(), shared.values_E.tolist(), strict=True)
    return ", ".join(f"{names[place]} = {value:.3g}" for place, value in pairs)
