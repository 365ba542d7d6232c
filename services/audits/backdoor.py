"""The check `backdoor`: does a small change that somebody planted in the training data turn inputs into a class?

Scans name groups of training examples that lie apart (activation clustering, spectral signatures). What a group shares
is then put on held-out examples of the other classes. A backdoor is confirmed where that turns them, where the same
entries with ordinary values do not, and where a model that never saw the group disbelieves its labels. Trigger
inversion looks at the network without the training data.

A value is taken for the class of its quarter (bands.py). Inputs of many numbers are looked at a few at a time, and
triggers are put on fewer of them.

Shapes: N examples, X the shape of an input, E entries of the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.audits.bands import in_bands
from services.audits.checking import Budget, Checking, sample
from services.audits.intervals import Mean, mean
from services.audits.inversion import LEAST_CLASSES, OUTLIER, Inversion, anomaly_index, invert
from services.audits.report import Check, Evidence, Verdict, not_assessed
from services.audits.suspects import Group, Shared, believed, groups_apart, shared_by
from shared.auditing import Continuous, Examples, NotAssessed, Subject

NAME = "backdoor"
TURNED = 0.5  # of the others that a trigger turns, for it to be one
PURE = 0.8  # carriers labelled as the group is: a trigger is stamped to mean one class
BELIEVED = 0.5  # labels of the carriers believed without the trigger, below which it alone decides
RULE = (
    "house rule: a trigger turns more than half of the other classes' examples, ordinary values less, and fewer than "
    "half of the labels of what carries it are believed without it (exclusionary reclassification, Chen and others, "
    "2018)"
)
LEAST_OTHERS = 5  # held-out examples of other classes
STAMPED = {"quick": 300, "full": 2000}  # held-out examples that triggers are put on
STAMPED_NUMBERS = {"quick": 4 * 10**7, "full": 4 * 10**8}  # of their inputs together
AT_ONCE = 5 * 10**7  # numbers of inputs that are held in memory
INVERTED = {"quick": 200, "full": 500}
STEPS = {"quick": 1000, "full": 4000}
MOST_CLASSES = {"quick": 10, "full": 100}  # whose triggers are inverted
MOST_INPUT = 20_000  # numbers of one input, above which inversion would take hours


@dataclass(frozen=True)
class Trial:
    """A group's shared entries put to the test."""

    group: Group
    shared: Shared
    stamped: Mean
    ordinary: Mean
    before: Mean
    believed: Mean

    @property
    def turns(self) -> bool:
        return self.stamped.low > TURNED and self.stamped.low > max(self.ordinary.high, self.before.high)

    @property
    def disbelieved(self) -> bool:
        return self.believed.high < BELIEVED

    @property
    def confirmed(self) -> bool:
        return self.turns and self.disbelieved


def check(subject: Subject, baseline: Subject | None, budget: Budget, context: Checking) -> Check:
    """Clean-label attacks are not looked for."""
    if subject.kind != "classification":
        subject = in_bands(subject)
    module = subject.module()
    train = sample(subject.train, budget, context)
    context.progress(0.05)
    embedding_ND = _embeddings(subject, module, train, context)
    label_N = np.asarray(train.targets_N, np.int64)
    groups = groups_apart(embedding_ND, label_N, context.seed)
    context.progress(0.3)
    try:
        continuous = subject.continuous(train.take(np.arange(1)))
    except NotAssessed as error:
        return _scanned_only(groups, error.detail)
    most = min(STAMPED[budget], STAMPED_NUMBERS[budget] // continuous.values[0].numel())
    held_out = subject.held_out
    held_out = held_out.take(np.sort(context.random(1).permutation(len(held_out))[:most]))
    trials = _trials(subject, module, train, groups, held_out, context)
    context.progress(0.6)
    notes: list[str] = []
    inverted = _inverted(subject, module, held_out, budget, context, notes)
    return _told(subject, len(train), groups, trials, inverted, continuous, notes)


def _embeddings(subject: Subject, module: Any, examples: Examples, context: Checking) -> NDArray[np.float32]:
    found: list[NDArray[np.float32]] = []
    for batch in subject.batches(examples, 256):
        context.check_stop()
        with torch.no_grad():
            found.append(subject.features(module, batch).numpy())
    return np.concatenate(found)


def _trials(
    subject: Subject, module: Any, train: Examples, groups: list[Group], held_out: Examples, context: Checking
) -> list[Trial]:
    """Every group that shares something, and each shared pattern once."""
    value_NE = np.concatenate([_flat(part).numpy() for part in _parts(subject, train)])
    continuous = subject.continuous(train.take(np.arange(1)))
    label_N, target = np.asarray(train.targets_N, np.int64), np.asarray(held_out.targets_N, np.int64)
    found: list[Trial] = []
    seen: set[tuple[int, bytes]] = set()
    for group in groups:
        context.check_stop()
        others = held_out.take(np.flatnonzero((target != group.label) & (target >= 0)))
        if len(others) < LEAST_OTHERS:
            continue
        for shared in shared_by(group, value_NE, continuous.low, continuous.high):
            if (key := (group.label, shared.carriers.tobytes())) in seen:
                continue
            seen.add(key)
            if (label_N[shared.carriers] == group.label).mean() < PURE:
                continue
            own = np.setdiff1d(np.flatnonzero(label_N == group.label), shared.carriers)
            if not len(own):
                continue
            random = context.random(2)
            donors = [train.take(random.choice(rows, len(others))) for rows in (own, shared.carriers)]
            stamped, ordinary, before = (
                _turned(subject, module, others, group.label, entries, donor)
                for entries, donor in (
                    (shared.entries, donors[1]),
                    (shared.entries, donors[0]),
                    (shared.entries[:0], others),
                )
            )
            trust = mean(believed(shared, group.label, value_NE, label_N, context.seed))
            found.append(Trial(group, shared, stamped, ordinary, before, trust))
    return sorted(found, key=lambda one: (not one.confirmed, not one.disbelieved, -one.stamped.value))


def _turned(
    subject: Subject, module: Any, others: Examples, label: int, entries: NDArray[np.int64], donors: Examples
) -> Mean:
    """The share of examples that answer `label` with the entries as their donors have them."""
    turned: list[Tensor] = []
    for continuous, donor in zip(_parts(subject, others), _parts(subject, donors), strict=True):
        entry = torch.zeros(math.prod(continuous.mask_shape), dtype=torch.bool)
        entry[torch.from_numpy(entries)] = True
        mask_X = entry.reshape(continuous.mask_shape).broadcast_to(continuous.values.shape[1:])
        with torch.no_grad():
            stamped_NX = torch.where(mask_X, donor.values, continuous.values)
            turned.append(continuous.logits(module, stamped_NX).argmax(1) == label)
    return mean(torch.cat(turned).numpy())


def _parts(subject: Subject, examples: Examples) -> Iterator[Continuous]:
    """The examples' inputs, as many at once as AT_ONCE allows."""
    one = subject.continuous(examples.take(np.arange(1))).values.numel()
    size = max(1, AT_ONCE // one)
    for start in range(0, len(examples), size):
        yield subject.continuous(examples.take(np.arange(start, min(start + size, len(examples)))))


def _flat(continuous: Continuous) -> Tensor:
    """(N, E): what the mask's entries hold; the mean where several numbers share one, as an image's channels do."""
    values_NX: Tensor = continuous.values
    shape = values_NX.shape[1:]
    lead = len(shape) - len(continuous.mask_shape)
    sides = (1,) * lead + tuple(continuous.mask_shape)
    over = [place + 1 for place, (side, whole) in enumerate(zip(sides, shape, strict=True)) if side != whole]
    kept = values_NX.mean(dim=over, keepdim=True) if over else values_NX
    return kept.reshape(len(values_NX), -1).float()


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
    continuous: Continuous,
    notes: list[str],
) -> Check:
    evidence = [Evidence(name="groups that lie apart", value=len(groups), n=n, unit="groups")]
    confirmed = [one for one in trials if one.confirmed]
    mislabelled = [one for one in trials if one.disbelieved and not one.turns]
    for one in trials[:1]:
        evidence += _trial_evidence(subject, one)
    for one in (confirmed + mislabelled)[:3]:
        notes.append(f"{len(one.shared.carriers)} training examples carry {_words(one.shared, continuous)}.")
    evidence += _inversion_evidence(subject, inverted, notes)
    index = anomaly_index([one.size for one in inverted])
    suspect = [one for one, far in zip(inverted, index, strict=True) if one.converged and far > OUTLIER]
    if confirmed:
        worst = confirmed[0]
        label = subject.classes[worst.group.label]
        return Check(
            name=NAME,
            verdict=Verdict.STOP,
            summary=(
                f"A trigger turns {worst.stamped.value:.0%} of other classes' examples into {label!r}; "
                f"{len(worst.shared.carriers)} training examples carry it."
            ),
            advice="Remove what carries it from the training set, find out where it came from, and train again.",
            notes=tuple(notes),
            evidence=tuple(evidence),
        )
    if mislabelled or suspect:
        if mislabelled:
            summary = (
                f"{len(mislabelled[0].shared.carriers)} training examples share something rare and look mislabelled; "
                "the version does not follow it."
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
    label = subject.classes[one.group.label]
    rows = (
        (f"turned into {label!r} by what the suspects share", one.stamped, TURNED),
        ("the same, entries set as ordinary examples of the class have them", one.ordinary, None),
        ("the same, nothing set", one.before, None),
    )
    told = [
        Evidence(
            name=name,
            value=item.value,
            low=item.low,
            high=item.high,
            n=item.n,
            unit="share",
            threshold=limit,
            threshold_source=RULE if limit is not None else None,
        )
        for name, item, limit in rows
    ]
    told.append(
        Evidence(
            name="suspects' labels believed without what they share",
            value=one.believed.value,
            low=one.believed.low,
            high=one.believed.high,
            n=one.believed.n,
            unit="share",
            budget=one.group.scan,
            threshold=BELIEVED,
            threshold_source=RULE,
        )
    )
    return told


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
