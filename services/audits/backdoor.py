"""The check `backdoor`: does a small change that somebody planted in the training data turn inputs into a class?

Scans name groups of training examples: those that lie apart (activation clustering, spectral signatures) and those that
stay sure of their label whatever is laid over them (STRIP). What a group shares is then put on held-out examples of the
other classes. A backdoor is confirmed where that turns them, where the same entries with ordinary values do not, and
where a model that never saw the group disbelieves its labels. Trigger inversion looks at the network without the
training data.

Shapes: N examples, M held-out examples of other classes, X the shape of an input, E entries of the mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.audits.checking import Budget, Checking, sample
from services.audits.intervals import corrected, mean
from services.audits.inversion import LEAST_CLASSES, OUTLIER, Inversion, anomaly_index, invert
from services.audits.report import Check, Evidence, Verdict, not_assessed
from services.audits.scans import LEAST
from services.audits.strip import ALARMS as STRIP_ALARMS
from services.audits.strip import SOURCE, Strip, strip
from services.audits.suspects import Group, Shared, believed, groups_apart, shared_by
from shared.auditing import Continuous, Examples, NotAssessed, Subject

NAME = "backdoor"
TURNED = 0.5  # of the others that a trigger turns, for it to be one
PURE = 0.8  # carriers labelled as the group is: a trigger is stamped to mean one class
BELIEVED = 0.5  # labels of the carriers believed without the trigger, below which it alone decides
RULE = (
    "house rule: a trigger turns more than half of the other classes' examples, ordinary values less, and fewer than "
    "half of the labels of what carries it are believed without it (exclusionary reclassification, Chen and others, "
    "2018); by intervals that hold for all patterns that were tried together (Bonferroni), shown are 95 %"
)
LEAST_OTHERS = 5  # held-out examples of other classes
STAMPED = {"quick": 300, "full": 2000}  # held-out examples that triggers are put on
INVERTED = {"quick": 200, "full": 500}
STEPS = {"quick": 1000, "full": 4000}
MOST_CLASSES = {"quick": 10, "full": 100}  # whose triggers are inverted
MOST_INPUT = 20_000  # numbers of one input, above which inversion would take hours


@dataclass(frozen=True)
class Trial:
    """A group's shared entries put to the test: which examples (1 or 0) answer the group's label with them, with
    ordinary values there, and as they are; and whose label is believed without them. `level` is that of the verdict."""

    group: Group
    shared: Shared
    stamped_M: NDArray[Any]
    ordinary_M: NDArray[Any]
    before_M: NDArray[Any]
    believed_C: NDArray[Any]
    level: float

    @property
    def turns(self) -> bool:
        stamped, ordinary, before = (mean(one, self.level) for one in (self.stamped_M, self.ordinary_M, self.before_M))
        return stamped.low > TURNED and stamped.low > max(ordinary.high, before.high)

    @property
    def disbelieved(self) -> bool:
        return mean(self.believed_C, self.level).high < BELIEVED

    @property
    def confirmed(self) -> bool:
        return self.turns and self.disbelieved


def check(subject: Subject, baseline: Subject | None, budget: Budget, context: Checking) -> Check:
    """Backdoors of a regression have no class to turn inputs into; clean-label attacks are not looked for."""
    if subject.kind != "classification":
        return not_assessed(NAME, "The version answers with a value, not a class: these scans ask which class.")
    module = subject.module()
    train = sample(subject.train, budget, context)
    context.progress(0.05)
    embedding_ND = _embeddings(subject, module, train, context)
    label_N = np.asarray(train.targets_N, np.int64)
    groups = groups_apart(embedding_ND, label_N, context.seed)
    context.progress(0.2)
    try:
        continuous = subject.continuous(train)
    except NotAssessed as error:
        return _scanned_only(groups, error.detail)
    held_out = subject.held_out
    sure = strip(subject, module, train, sample(held_out, budget, context), budget, context)
    groups += sure.groups if sure is not None else []
    context.progress(0.4)
    held_out = held_out.take(np.sort(context.random(1).permutation(len(held_out))[: STAMPED[budget]]))
    trials = _trials(subject, module, continuous, groups, label_N, held_out, context)
    context.progress(0.6)
    notes: list[str] = []
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


def _trials(
    subject: Subject,
    module: Any,
    continuous: Continuous,
    groups: list[Group],
    label_N: NDArray[np.int64],
    held_out: Examples,
    context: Checking,
) -> list[Trial]:
    """What the groups share, each pattern once."""
    value_NE = _flat(continuous).numpy()
    target = np.asarray(held_out.targets_N, np.int64)
    others = {label: held_out.take(np.flatnonzero((target != label) & (target >= 0))) for label in set(label_N)}
    patterns: dict[tuple[int, bytes], tuple[Group, Shared, NDArray[np.int64]]] = {}
    for group in groups:
        context.check_stop()
        if len(others[group.label]) < LEAST_OTHERS:
            continue
        for shared in shared_by(group, value_NE, continuous.low, continuous.high):
            own = np.setdiff1d(np.flatnonzero(label_N == group.label), shared.carriers)
            if len(own) and (label_N[shared.carriers] == group.label).mean() >= PURE:
                patterns.setdefault((group.label, shared.carriers.tobytes()), (group, shared, own))
    found: list[Trial] = []
    for group, shared, own in patterns.values():
        context.check_stop()
        asked, entries = others[group.label], shared.entries
        ordinary_ME = value_NE[np.ix_(context.random(2).choice(own, len(asked)), entries)]
        stamped_M, ordinary_M, before_M = (
            _turned(subject, module, asked, group.label, places, values)
            for places, values in (
                (entries, shared.values_E[None]),
                (entries, ordinary_ME),
                (entries[:0], shared.values_E[None, :0]),
            )
        )
        trust_C = believed(shared, group.label, value_NE, label_N, context.seed)
        found.append(Trial(group, shared, stamped_M, ordinary_M, before_M, trust_C, corrected(len(patterns))))
    return sorted(found, key=lambda one: (not one.confirmed, not one.disbelieved, -one.stamped_M.mean()))


def _turned(
    subject: Subject, module: Any, others: Examples, label: int, entries: NDArray[np.int64], values: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """(M,) which examples answer `label` with `values` (1 or N, E) put on the entries."""
    continuous = subject.continuous(others)
    shape = tuple(continuous.values.shape[1:])
    entry = torch.zeros(math.prod(continuous.mask_shape))
    entry[torch.from_numpy(entries)] = 1
    mask_X = entry.reshape(continuous.mask_shape).broadcast_to(shape)
    values_NE = torch.zeros(len(values), len(entry))
    values_NE[:, torch.from_numpy(entries)] = torch.from_numpy(np.ascontiguousarray(values))
    pattern_NX = values_NE.reshape(len(values), *continuous.mask_shape).broadcast_to(len(values), *shape)
    stamped_NX = continuous.values * (1 - mask_X) + pattern_NX * mask_X
    with torch.no_grad():
        answer_N = continuous.logits(module, stamped_NX).argmax(1)
    return (answer_N == label).numpy()


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
    module.requires_grad_(False)
    try:
        for kind in range(classes):
            others = held_out.take(np.flatnonzero((target != kind) & (target >= 0))[: INVERTED[budget]])
            if len(others) < LEAST_OTHERS:
                continue
            continuous = subject.continuous(others)
            if continuous.values[0].numel() > MOST_INPUT:
                notes.append("No trigger was inverted: the inputs are too large for it.")
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
                f"A trigger turns {worst.stamped_M.mean():.0%} of other classes' examples into {label!r}; "
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
        (f"turned into {label!r} by what the suspects share", one.stamped_M, TURNED, ""),
        ("the same, entries set as ordinary examples of the class have them", one.ordinary_M, None, ""),
        ("the same, nothing set", one.before_M, None, ""),
        ("suspects' labels believed without what they share", one.believed_C, BELIEVED, one.group.scan),
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
