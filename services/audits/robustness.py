"""The check `robustness`: unseen data, natural changes of the input, calibration, and inputs from another world.

Shapes: N examples, C classes, B bins of confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.audits import rules
from services.audits.checking import Budget, Checking, sample
from services.audits.intervals import Mean, in_words, kept, mean, mean_error, paired
from services.audits.report import Check, Evidence, Figure, Verdict, series, worst
from shared.auditing import Assessment, Examples, NotAssessed, Subject

NAME = "robustness"
Floats = NDArray[np.float64]
BINS = 10
ROUNDS = 500


@dataclass
class Findings:
    """What the parts of the check found, gathered."""

    subject: Subject
    budget: str
    seed: int
    judged: list[tuple[Verdict, str]] = field(default_factory=list[tuple[Verdict, str]])
    evidence: list[Evidence] = field(default_factory=list[Evidence])
    figures: list[Figure] = field(default_factory=list[Figure])
    notes: list[str] = field(default_factory=list[str])

    def judge(self, verdict: Verdict, told: str) -> None:
        self.judged.append((verdict, told))

    def note(
        self, name: str, value: Mean, unit: str = "", threshold: float | None = None, source: str | None = None
    ) -> None:
        self.evidence.append(
            Evidence(
                name=name,
                value=value.value,
                low=value.low,
                high=value.high,
                n=value.n,
                unit=unit
                or f"{self.subject.error_name}{', ' if self.subject.error_unit else ''}{self.subject.error_unit}",
                budget=self.budget,
                seeds=(self.seed,),
                threshold=threshold,
                threshold_source=source,
            )
        )


def check(subject: Subject, baseline: Subject | None, budget: Budget, context: Checking) -> Check:
    """Each part by itself; one that cannot be made is named, and the others count."""
    examples = sample(subject.held_out, budget, context)
    clean = subject.assess(examples)
    findings = Findings(subject, budget, context.seed)
    unit_N = examples.unit_N
    whole = mean_error(clean.error_N, unit_N=unit_N)
    if not np.isfinite(whole.high):
        raise NotAssessed("The held-out examples all come from one source; what holds for others cannot be known.")
    findings.note("error, held-out examples", whole)
    if baseline is not None:
        change = paired(clean.error_N, baseline.assess(examples).error_N, unit_N=unit_N)
        findings.note("error less the baseline's, held-out examples", change, "", 0.0, rules.WORSE_SOURCE)
        if change.low > 0:
            grave = change.low > rules.STOP_WORSE * subject.likely
            findings.judge(
                Verdict.STOP if grave else Verdict.LOOK, f"its error is {change.value:.3g} above the baseline's"
            )
    parts: list[tuple[str, Callable[[], None]]] = [
        ("memory", lambda: _memory(findings, whole, budget, context)),
        ("changed inputs", lambda: _changes(findings, examples, clean, whole, baseline, context)),
        ("calibration", lambda: _calibration(findings, examples, clean, context)),
        ("strange inputs", lambda: _strange(findings, examples, context)),
    ]
    for number, (name, part) in enumerate(parts, start=1):
        context.check_stop()
        try:
            part()
        except NotAssessed as error:
            findings.notes.append(f"Not assessed, {name}: {error.detail}")
        context.progress(number / len(parts))
    verdict = worst([Verdict.PASSES, *(kind for kind, _ in findings.judged)])
    reasons = [told for kind, told in findings.judged if kind is verdict and kind is not Verdict.PASSES]
    fine = [told for kind, told in findings.judged if kind is Verdict.PASSES]
    told = "; ".join(reasons or fine) or "nothing speaks against it"
    return Check(
        name=NAME,
        verdict=verdict,
        summary=f"{told[:1].upper()}{told[1:].rstrip('.')}.",
        advice=_advice(verdict, findings.judged),
        notes=tuple(findings.notes),
        evidence=tuple(findings.evidence),
        figures=tuple(findings.figures),
    )


_CURES = {
    "memory": "train on more data, for fewer epochs, with a smaller network or more regularisation",
    "changed": "train with such changes as augmentation",
    "probabilities": "fit the calibration again on validation data, or train less long",
    "strange": "do not rely on the answer for inputs unlike the training's; have the service abstain",
    "guess": "the version knows nothing: look at the labels, the features and the training's curves",
    "baseline's": "keep the baseline unless you know why the version errs more",
}


def _advice(verdict: Verdict, judged: Sequence[tuple[Verdict, str]]) -> str:
    if verdict is Verdict.PASSES:
        return ""
    told = " ".join(reason for kind, reason in judged if kind is verdict)
    cures = [cure for word, cure in _CURES.items() if word in told]
    start = "Do not promote: " if verdict is Verdict.STOP else "Before a promotion: "
    return start + "; ".join(cures) + "."


def _memory(findings: Findings, whole: Mean, budget: Budget, context: Checking) -> None:
    """Whether the skill on the training split is skill, or memory."""
    subject = findings.subject
    guess = subject.likely
    if whole.low >= guess or whole.value >= guess:
        findings.judge(
            Verdict.STOP, f"on unseen examples it is no better than a guess ({whole.value:.3g} against {guess:.3g})"
        )
    training = sample(subject.train, budget, context)
    trained = mean_error(subject.assess(training).error_N, unit_N=training.unit_N)
    findings.note("error, training examples", trained)
    share = kept(whole, trained.value, guess)
    findings.note("skill kept on unseen examples", share, "share", rules.STOP_KEPT, rules.KEPT_SOURCE)
    findings.figures.append(
        Figure(
            title="Seen and unseen examples",
            kind="bar",
            y_label=subject.error_name,
            series=(
                series(
                    "error",
                    ("training", "held out", "a guess"),
                    (trained.value, whole.value, guess),
                    low=(trained.low, whole.low, guess),
                    high=(trained.high, whole.high, guess),
                ),
            ),
        )
    )
    told = (
        f"{in_words(share.value)} of the skill on training examples is kept on unseen ones "
        f"(error {trained.value:.3g}, then {whole.value:.3g})"
    )
    if share.low < rules.STOP_KEPT < share.high:
        findings.notes.append("Not cleared: the interval of the skill kept on unseen examples reaches below half.")
    if share.high < rules.STOP_KEPT:
        findings.judge(Verdict.STOP, f"most of what it learnt is memory: {told}")
    elif share.high < 1 and share.value < rules.LOOK_KEPT:
        findings.judge(Verdict.LOOK, f"part of what it learnt is memory: {told}")
    else:
        findings.judge(Verdict.PASSES, told)


def _changes(
    findings: Findings,
    examples: Examples,
    clean: Assessment,
    whole: Mean,
    baseline: Subject | None,
    context: Checking,
) -> None:
    """The error at each strength of each perturbation; judged at the mild one."""
    subject = findings.subject
    for number, change in enumerate(subject.perturbations()):
        curve, before = [whole], []
        for strength in change.strengths:
            context.check_stop()
            changed = change.apply(examples, strength, context.seed)
            error_N = subject.assess(changed).error_N
            curve.append(mean_error(error_N, unit_N=examples.unit_N))
            if baseline is not None:
                before.append(mean_error(baseline.assess(changed).error_N, unit_N=examples.unit_N))
            if strength != change.mild:
                continue
            added = paired(error_N, clean.error_N, unit_N=examples.unit_N)
            error = Mean(whole.value + added.value, whole.value + added.low, whole.value + added.high, added.n)
            share = kept(error, whole.value, subject.likely)
            name = f"skill kept, {change.name} ({strength:g}, {change.unit})"
            findings.note(name, share, "share", rules.STOP_KEPT, rules.KEPT_SOURCE)
            told = f"{in_words(share.value)} of the skill is kept when inputs are changed: {change.name}, {strength:g}"
            if share.high < rules.STOP_KEPT:
                findings.judge(Verdict.STOP, told)
            elif share.high < 1 and share.value < rules.LOOK_KEPT:
                findings.judge(Verdict.LOOK, told)
        x = (0.0, *change.strengths)
        lines = [
            series(
                "version",
                x,
                [point.value for point in curve],
                low=[point.low for point in curve],
                high=[point.high for point in curve],
            )
        ]
        if before:
            lines.append(series("baseline", change.strengths, [point.value for point in before]))
        lines.append(series("a guess", (x[0], x[-1]), (subject.likely, subject.likely)))
        findings.figures.append(
            Figure(
                title=f"Error under change {number + 1}: {change.name}",
                kind="line",
                x_label=change.unit,
                y_label=subject.error_name,
                series=tuple(lines),
            )
        )


def _calibration(findings: Findings, examples: Examples, clean: Assessment, context: Checking) -> None:
    """Whether probabilities mean what they say."""
    if clean.probability_NC is None:
        raise NotAssessed("the version gives no class probabilities.")
    known = examples.targets_N >= 0
    confidence = clean.probability_NC.max(1)[known]
    right = clean.probability_NC.argmax(1)[known] == examples.targets_N[known]
    excess, error, chance = excess_calibration_error(confidence, right, context.random(2))
    findings.note("calibration error, beyond chance", excess, "share", rules.STOP_CALIBRATION, rules.CALIBRATION_SOURCE)
    findings.notes.append(
        f"Calibration error {error:.3f} in {BINS} bins; a calibrated version of this n would show {chance:.3f}."
    )
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    filled = [number for number in range(BINS) if (bins == number).any()]
    shares = [mean(right[bins == number]) for number in filled]
    x = [float(confidence[bins == number].mean()) for number in filled]
    findings.figures.append(
        Figure(
            title="Calibration",
            kind="line",
            x_label="confidence",
            y_label="share of right answers",
            series=(
                series(
                    "version",
                    x,
                    [share.value for share in shares],
                    low=[share.low for share in shares],
                    high=[share.high for share in shares],
                ),
                series("perfect", (0, 1), (0, 1)),
            ),
        )
    )
    told = f"its probabilities are off by {excess.value:.3f} beyond chance"
    if excess.low > rules.STOP_CALIBRATION:
        findings.judge(Verdict.STOP, told)
    elif excess.low > 0 and excess.value > rules.LOOK_CALIBRATION:
        findings.judge(Verdict.LOOK, told)


def excess_calibration_error(
    confidence_N: Floats, right_N: NDArray[np.bool_], random: np.random.Generator
) -> tuple[Mean, float, float]:
    """Expected calibration error less what chance alone makes of n examples, its 95 % interval (examples resampled);
    the error itself; and chance's mean. Chance: answers drawn right with the probability that the version says."""
    n = len(confidence_N)
    error = calibration_error(confidence_N, right_N)
    null = [calibration_error(confidence_N, random.random(n) < confidence_N) for _ in range(ROUNDS)]
    chance = float(np.mean(null))
    # Resampling adds chance's error a second time; half-way from the middle of the draws is taken off them.
    drawn = [calibration_error(confidence_N[i], right_N[i]) for i in random.integers(0, n, (ROUNDS, n))]
    spread = np.percentile(drawn, [2.5, 97.5]) - np.mean(drawn)
    value = error - chance
    return Mean(value, value + float(spread[0]), value + float(spread[1]), n), error, chance


def calibration_error(confidence_N: Floats, right_N: NDArray[np.bool_]) -> float:
    """Σ_b n_b/n · |accuracy_b − confidence_b| over equal bins of confidence (Guo and others, 2017)."""
    bins = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right_N - confidence_N, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence_N))


def _strange(findings: Findings, examples: Examples, context: Checking) -> None:
    """Whether inputs from another world are told from usual ones."""
    subject = findings.subject
    usual = subject.uncertainty(examples)
    strange = subject.uncertainty(subject.unfamiliar(context.seed))
    area = area_under_curve(strange, usual)
    random = context.random(3)
    drawn = [
        area_under_curve(random.choice(strange, len(strange)), random.choice(usual, len(usual))) for _ in range(200)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    found = Mean(area, float(low), float(high), len(usual) + len(strange))
    findings.note("strange told from usual inputs", found, "area under ROC", rules.LOOK_STRANGE, rules.STRANGE_SOURCE)
    cuts = np.quantile(np.concatenate([usual, strange]), np.linspace(0, 1, 21))
    findings.figures.append(
        Figure(
            title="How strange the version finds its inputs",
            kind="line",
            x_label="strangeness (or doubt), as served",
            y_label="share of inputs above it",
            series=(
                series("held out", cuts, [(usual > cut).mean() for cut in cuts]),
                series("another world", cuts, [(strange > cut).mean() for cut in cuts]),
            ),
        )
    )
    if found.high < rules.LOOK_STRANGE:
        findings.judge(Verdict.LOOK, f"strange inputs do not stand out (area under the ROC curve {area:.2f})")


def area_under_curve(positive_N: Floats, negative_N: Floats) -> float:
    """Probability that a positive lies above a negative; ties count half."""
    ordered = np.sort(negative_N)
    below = np.searchsorted(ordered, positive_N, "left") + np.searchsorted(ordered, positive_N, "right")
    return float(below.mean() / (2 * len(ordered)))
