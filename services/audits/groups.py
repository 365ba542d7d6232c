"""The check `groups`: whether the version keeps its skill in every group, given or found, and beside the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.audits import found, rules
from services.audits.checking import Budget, Checking, sample
from services.audits.intervals import Mean, corrected, in_words, kept, mean_error, paired
from services.audits.report import Check, Evidence, Figure, Verdict, series, worst
from shared.auditing import Examples, Subject

NAME = "groups"
SHOWN = 24  # groups in a figure
FOUND = "found"


@dataclass(frozen=True)
class Group:
    """One group with its error: at 95 %, and at the level at which all judged groups hold together."""

    grouping: str
    name: str
    error: Mean
    strict: Mean
    guess: float  # the error of who knows nothing, there
    worse: Mean | None = None  # than the baseline, at the strict level

    @property
    def title(self) -> str:
        return f"{self.grouping}: {self.name}"

    @property
    def judged(self) -> bool:
        return self.error.n >= rules.LEAST_GROUP and np.isfinite(self.strict.high)


def check(subject: Subject, baseline: Subject | None, budget: Budget, context: Checking) -> Check:
    """Per-group and worst-group error on the held-out split, with intervals that hold for all groups together."""
    examples = sample(subject.held_out, budget, context, times=2)
    assessed = subject.assess(examples)
    error_N = assessed.error_N
    context.progress(0.5)
    before_N = None if baseline is None else baseline.assess(examples).error_N
    context.progress(0.8)
    context.check_stop()
    members = dict(_given(subject, examples))
    half_N = context.random(1).random(len(examples)) < 0.5
    for number, rule in enumerate(
        found.find(error_N, assessed.embedding_ND, examples.features, half_N, context.seed), start=1
    ):
        members[(FOUND, f"{number}, {rule.rule}")] = rule.member_N & ~half_N
    unit_N = examples.unit_N
    whole = mean_error(error_N, unit_N=unit_N)
    judged = sum(
        int(member_N.sum() >= rules.LEAST_GROUP and _units(unit_N, member_N) > 1) for member_N in members.values()
    )
    level = corrected(judged)
    groups = [
        Group(
            grouping,
            name,
            mean_error(error_N[member_N], unit_N=_of(unit_N, member_N)),
            mean_error(error_N[member_N], level, _of(unit_N, member_N)),
            1 - 1 / len(subject.classes) if grouping == "class" else subject.likely,
            None if before_N is None else paired(error_N[member_N], before_N[member_N], level, _of(unit_N, member_N)),
        )
        for (grouping, name), member_N in members.items()
        if member_N.any()
    ]
    return _verdict(
        subject,
        whole,
        groups,
        budget,
        context.seed,
        None if before_N is None else paired(error_N, before_N, unit_N=unit_N),
    )


def _of(unit_N: NDArray[Any] | None, member_N: NDArray[np.bool_]) -> NDArray[Any] | None:
    return None if unit_N is None else unit_N[member_N]


def _units(unit_N: NDArray[Any] | None, member_N: NDArray[np.bool_]) -> int:
    """How many independent things a group has."""
    return int(member_N.sum()) if unit_N is None else len(np.unique(unit_N[member_N]))


def _given(subject: Subject, examples: Examples) -> Mapping[tuple[str, str], NDArray[np.bool_]]:
    """(grouping, group) → its members; classes are groups where there are classes."""
    groupings = dict(examples.groups)
    if subject.kind == "classification":
        known = examples.targets_N >= 0
        groupings["class"] = np.where(known, np.array(subject.classes)[np.maximum(examples.targets_N, 0)], "")
    return {
        (grouping, str(name)): group_N == name
        for grouping, group_N in groupings.items()
        for name in np.unique(group_N[group_N != ""])
    }


def _judge(group: Group, whole: Mean) -> tuple[Verdict, str]:
    """What one group alone says."""
    share = kept(group.strict, whole.value, group.guess)
    reasons: list[tuple[Verdict, str]] = [(Verdict.PASSES, "")]
    n = group.error.n
    if group.grouping == FOUND:
        # Near a decision boundary anything errs often; only what is worse than guessing is a fault for certain.
        if share.high < 0:
            reasons.append((Verdict.STOP, f"{group.title}: worse than a guess, on {n} examples it was not found on"))
        elif share.high < rules.STOP_KEPT:
            reasons.append((Verdict.LOOK, f"{group.title}: most of the skill is lost ({n} examples)"))
    elif share.high < rules.STOP_KEPT:
        reasons.append((Verdict.STOP, f"{group.title}: {in_words(share.value)} of the skill is left ({n} examples)"))
    elif share.value < rules.LOOK_KEPT and group.strict.low > whole.value:
        reasons.append((Verdict.LOOK, f"{group.title}: {in_words(share.value)} of the skill is left ({n} examples)"))
    if group.worse is not None and group.worse.low > 0:
        grave = group.worse.low > rules.STOP_WORSE * group.guess
        told = f"{group.title}: its error is {group.worse.value:.3g} above the baseline's"
        reasons.append((Verdict.STOP if grave else Verdict.LOOK, told))
    gravest = worst(verdict for verdict, _ in reasons)
    return gravest, next(told for verdict, told in reasons if verdict is gravest)


def _verdict(subject: Subject, whole: Mean, groups: list[Group], budget: str, seed: int, change: Mean | None) -> Check:
    judged = [group for group in groups if group.judged]
    small = [group for group in groups if not group.judged]
    given = [group for group in judged if group.grouping != FOUND]
    notes: list[str] = []
    if named := [f"{group.title} ({group.error.n})" for group in small if group.grouping != FOUND]:
        notes.append(f"Too few examples, or all of one source, to judge: {', '.join(named)}.")
    if not any(group.grouping != FOUND for group in groups):
        notes.append("The data set names no groups (and has no classes); found groups are all there is.")
    evidence = [_evidence("error, all examples", whole, subject, budget, seed)]
    if change is not None:
        evidence.append(_evidence("error less the baseline's, all examples", change, subject, budget, seed))
    if subject.likely - whole.value <= 0:
        return Check(
            name=NAME,
            verdict=Verdict.STOP,
            summary=f"The version errs as much as a guess ({whole.value:.3g} against {subject.likely:.3g}); no group "
            "has skill to lose.",
            advice="Train again; look at the training's curves and labels first.",
            notes=tuple(notes),
            evidence=tuple(evidence),
        )
    found_ = sorted(
        ((*_judge(group, whole), group) for group in judged), key=lambda item: -item[2].error.value / item[2].guess
    )
    verdict = worst([Verdict.PASSES, *(item[0] for item in found_)])
    reasons = [told for kind, told, _ in found_ if kind is verdict and told]
    if not judged:
        return Check(
            name=NAME,
            verdict=Verdict.NOT_ASSESSED,
            summary=f"No group has {rules.LEAST_GROUP} held-out examples that are of two sources at least.",
            advice="Hold out more examples, or name groups in the data set.",
            notes=tuple(notes),
            evidence=tuple(evidence),
        )
    unsure = [
        group.title for _, _, group in found_ if kept(group.strict, whole.value, group.guess).low < rules.STOP_KEPT
    ]
    if unsure:
        notes.append(
            f"Not cleared: the interval of {len(unsure)} of the judged groups also reaches below half of the skill "
            f"({', '.join(unsure[:6])}); more held-out examples would tell."
        )
    for _, _, group in found_:
        threshold = group.guess - rules.STOP_KEPT * (group.guess - whole.value)
        evidence.append(
            _evidence(f"error, {group.title}", group.error, subject, budget, seed, threshold, rules.KEPT_SOURCE)
        )
        if group.worse is not None:
            evidence.append(
                _evidence(
                    f"error less the baseline's, {group.title}",
                    group.worse,
                    subject,
                    budget,
                    seed,
                    0.0,
                    rules.WORSE_SOURCE,
                )
            )
    notes.append(
        f"Verdicts use intervals that hold for all judged groups together ({len(judged)}, Bonferroni); shown are 95 %."
    )
    summary = "; ".join(reasons[:3]) + "." if reasons else _fine(whole, found_[0][2], len(given), len(judged))
    return Check(
        name=NAME,
        verdict=verdict,
        summary=summary,
        advice=_advice(verdict, any(group.grouping == FOUND for kind, _, group in found_ if kind is verdict)),
        notes=tuple(notes),
        evidence=tuple(evidence),
        figures=_figures(subject, whole, sorted(groups, key=lambda g: g.grouping == FOUND)),
    )


def _fine(whole: Mean, group: Group, given: int, judged: int) -> str:
    return (
        f"No group of {judged} ({given} given, {judged - given} found) loses its skill. Worst: {group.title}, error "
        f"{group.error.value:.3g} ({group.error.low:.3g} to {group.error.high:.3g}, n {group.error.n}) against "
        f"{whole.value:.3g} overall."
    )


def _advice(verdict: Verdict, by_rule: bool) -> str:
    if verdict is Verdict.PASSES:
        return ""
    more = "Add examples of the named groups to the training set, or check their labels"
    if verdict is Verdict.STOP:
        return f"Do not promote. {more}; then train and audit again."
    return f"Look at examples of {'the rule' if by_rule else 'the group'}. {more}, if the group matters to you."


def _evidence(
    name: str,
    found_: Mean,
    subject: Subject,
    budget: str,
    seed: int,
    threshold: float | None = None,
    source: str | None = None,
) -> Evidence:
    return Evidence(
        name=name,
        value=found_.value,
        low=found_.low,
        high=found_.high,
        n=found_.n,
        unit=f"{subject.error_name}{', ' if subject.error_unit else ''}{subject.error_unit}",
        budget=budget,
        seeds=(seed,),
        threshold=threshold,
        threshold_source=source,
    )


def _figures(subject: Subject, whole: Mean, groups: list[Group]) -> tuple[Figure, ...]:
    figures: list[Figure] = []
    for grouping in dict.fromkeys(group.grouping for group in groups):
        chosen = sorted((group for group in groups if group.grouping == grouping), key=lambda g: -g.error.value)[:SHOWN]
        names = [f"{group.name} (n {group.error.n})" for group in chosen]
        bars = series(
            "error",
            names,
            [group.error.value for group in chosen],
            low=[group.error.low for group in chosen],
            high=[group.error.high for group in chosen],
        )
        line = series("all examples", names, [whole.value] * len(names))
        figures.append(
            Figure(
                title=f"Error by {grouping}" if grouping != FOUND else "Error of found groups, on the other half",
                kind="bar",
                y_label=subject.error_name,
                series=(bars, line),
            )
        )
    return tuple(figures)
