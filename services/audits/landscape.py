"""The check `landscape`: curvature at the version's weights, and, with a second training, connectivity, similarity and
the phase, with what to do about it.

Shapes: N examples, B batch, C classes, T points along the curve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from services.audits.checking import Budget, Checking, sample
from services.audits.connectivity import POINTS, Connectivity, CurveDiverged, connectivity
from services.audits.curvature import CurvatureDiverged, Estimate, Hessian, top_eigenvalue, trace
from services.audits.phases import ADVICE, Cuts, load_cuts
from services.audits.report import Check, Evidence, Figure, Verdict, not_assessed, series
from services.audits.similarity import Similarity, mixed, similarity
from shared.auditing import Examples, NotAssessed, Subject
from shared.jobs.context import JobStopped, StopReason

NAME = "landscape"
BATCH = 64
PRODUCTS = 100  # with the Hessian, for the eigenvalue, most
PROBES = 30  # for the trace
LEAST_CURVED = 8  # examples that both are measured on, whatever it takes
CURVE_EPOCHS = {"quick": 10, "full": 50}  # 50 as published
CURVE_RATE = 1e-3
SIBLINGS = {"quick": 1, "full": 2}  # trainings besides the version
CURVATURE_SECONDS = {"quick": 60.0, "full": 900.0}
SIBLING_SECONDS = {"quick": 120.0, "full": 3600.0}
CUTS_SOURCE = (
    "cut fitted to half of 182 published cells of one family (ResNet-18 on CIFAR-10; services/audits/phases.json); for "
    "another family it is a guide"
)


class Landscape(NamedTuple):
    """What was measured; a part that could not be is None, and a note says why."""

    loss: Evidence
    eigenvalue: Estimate | None
    trace: Estimate | None
    curves: list[Connectivity]
    alike: Similarity | None
    curvature_examples: int


@dataclass(frozen=True)
class _Until:
    """A context that ends a retraining when its time is up."""

    within: Checking
    deadline: float

    @property
    def logger(self) -> Any:
        return self.within.logger

    def should_stop(self) -> StopReason | None:
        if (reason := self.within.should_stop()) is not None:
            return reason
        return StopReason.TIME_LIMIT if time.monotonic() > self.deadline else None

    def artefact(self, name: str) -> Path:
        return self.within.artefact(name)


def check(subject: Subject, baseline: Subject | None, budget: Budget, context: Checking) -> Check:
    """Curvature alone tells no phase: that takes a second training of the same kind on the same data."""
    module, train = subject.module(), sample(subject.train, budget, context)
    notes: list[str] = []
    batches = _batches(subject, train, BATCH)
    loss = _training_loss(subject, module, batches, context)
    if loss.value is None or not np.isfinite(loss.value):
        return not_assessed(NAME, "The training loss at the version's weights is not a number.")
    context.progress(0.1)
    top, total, examples = _curvature(subject, module, train, budget, context, notes)
    context.progress(0.4)
    siblings, seeds = _siblings(subject, baseline, module, budget, context, notes)
    context.progress(0.6)
    curves = _curves(subject, [module, *siblings], train, budget, context, notes)
    context.progress(0.9)
    alike = _similarity(subject, [module, *siblings], train, context, notes) if siblings else None
    found = Landscape(loss, top, total, curves, alike, examples)
    return _told(subject, found, seeds, budget, notes)


def _batches(subject: Subject, examples: Examples, size: int) -> list[tuple[Any, NDArray[Any]]]:
    """Batches of one size with their targets; what is left over is left out."""
    size = min(size, len(examples))
    whole = len(examples) // size * size
    kept = examples.take(np.arange(whole))
    targets = [kept.targets_N[start : start + size] for start in range(0, whole, size)]
    return list(zip(subject.batches(kept, size), targets, strict=True))


def _training_loss(subject: Subject, module: Any, batches: Sequence[tuple[Any, Any]], context: Checking) -> Evidence:
    losses: list[float] = []
    module.eval()
    for batch, _ in batches:
        context.check_stop()
        with torch.no_grad():
            losses.append(float(subject.loss(module, batch)))
    value = float(np.mean(losses))
    half = 1.96 * float(np.std(losses, ddof=1)) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
    n = sum(len(targets) for _, targets in batches)
    unit = "nats" if subject.kind == "classification" else ""
    return Evidence(name="training loss", value=value, low=value - half, high=value + half, n=n, unit=unit)


def _curvature(
    subject: Subject, module: Any, train: Examples, budget: Budget, context: Checking, notes: list[str]
) -> tuple[Estimate | None, Estimate | None, int]:
    """Over as many examples as the time allows, in two batches at least, else the eigenvalue has no error bar; and how
    many they were."""
    least = min(LEAST_CURVED, len(train))
    shuffled = train.take(context.random(4).permutation(len(train)))
    few = [batch for batch, _ in _batches(subject, shuffled.take(np.arange(least)), least)]
    started = time.process_time()  # of the processor: on a busy machine the examples would shrink to a few
    try:
        one = Hessian(module, subject.loss, few, context.check_stop)
        one.product(torch.randn(one.size, generator=torch.Generator().manual_seed(context.seed)))
        each = max(time.process_time() - started, 1e-4) / least
        affordable = max(least, int(CURVATURE_SECONDS[budget] / (each * (PRODUCTS / 3 + PROBES))))
        size = max(1, min(BATCH, affordable // 2, len(train) // 2))
        examples = min(affordable, len(train)) // size * size
        inputs = [batch for batch, _ in _batches(subject, shuffled.take(np.arange(examples)), size)]
        hessian = Hessian(module, subject.loss, inputs, context.check_stop)
        if examples < len(train) // size * size:
            notes.append(f"Curvature on {examples} examples: more would take too long.")
        top = top_eigenvalue(hessian, seed=context.seed, products=PRODUCTS)
        return top, trace(hessian, seed=context.seed, probes=PROBES), examples
    except CurvatureDiverged as error:
        notes.append(error.detail)
        return None, None, 0


def _siblings(
    subject: Subject,
    baseline: Subject | None,
    module: Any,
    budget: Budget,
    context: Checking,
    notes: list[str],
) -> tuple[list[Any], list[int]]:
    """Modules trained as the version was, from other seeds; else the baseline's, where it is of the same shape.

    None for a regression, which has no phase.
    """
    if subject.kind != "classification":
        return [], []
    seeds = [context.seed + 1 + number for number in range(SIBLINGS[budget])]
    deadline = time.monotonic() + SIBLING_SECONDS[budget]
    made: list[Any] = []
    try:
        for seed in seeds:
            made.append(subject.fit(None, seed, _Until(context, deadline)))
    except NotAssessed as error:
        notes.append(error.detail)
    except JobStopped:
        context.check_stop()
        notes.append(f"Training it again takes longer than {SIBLING_SECONDS[budget]:.0f} s.")
    if made:
        return made, seeds[: len(made)]
    if baseline is not None:
        try:
            other = baseline.module()
        except NotAssessed as error:
            notes.append(error.detail)
            return [], []
        shapes = [[tuple(weight.shape) for weight in one.parameters()] for one in (module, other)]
        if shapes[0] == shapes[1] and any(
            not torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True)
        ):
            notes.append("The baseline is taken for a second seed: it has the same shape, its data may differ.")
            return [other], []
    return [], []


def _curves(
    subject: Subject, modules: Sequence[Any], train: Examples, budget: Budget, context: Checking, notes: list[str]
) -> list[Connectivity]:
    if len(modules) < 2:
        return []

    def shuffled(epoch: int) -> list[tuple[Any, NDArray[Any]]]:
        order = np.random.default_rng([context.seed, epoch]).permutation(len(train))
        return _batches(subject, train.take(order), BATCH)

    found: list[Connectivity] = []
    for other in modules[1:]:
        try:
            found.append(
                connectivity(
                    modules[0],
                    other,
                    lambda module, batch: subject.loss(module, batch[0]),
                    lambda module, batch: _error_percent(subject, module, batch),
                    shuffled,
                    epochs=CURVE_EPOCHS[budget],
                    learning_rate=CURVE_RATE,
                    seed=context.seed,
                    stop=context.check_stop,
                )
            )
        except CurveDiverged as error:
            notes.append(error.detail)
    return found


def _error_percent(subject: Subject, module: Any, batch: tuple[Any, NDArray[Any]]) -> float:
    answer_B = subject.outputs(module, batch[0]).argmax(1).numpy()
    return 100 * float((answer_B != batch[1]).mean())


def _similarity(
    subject: Subject, modules: Sequence[Any], train: Examples, context: Checking, notes: list[str]
) -> Similarity | None:
    """On mixed-up inputs, where the domain's inputs can be mixed; else on the training's own, which look more alike."""
    try:
        continuous = subject.continuous(train)
    except NotAssessed:
        notes.append("Inputs cannot be mixed here: similarity is on the training's own and comes out larger.")
        batches = _batches(subject, train, BATCH)

        def plain(module: Any) -> Any:
            return torch.cat([subject.outputs(module, batch) for batch, _ in batches])

        return _alike(plain, modules, context)
    values_NX = mixed(continuous.values, seed=context.seed)
    return _alike(lambda module: continuous.logits(module, values_NX), modules, context)


def _alike(logits: Callable[[Any], Any], modules: Sequence[Any], context: Checking) -> Similarity:
    outputs: list[NDArray[Any]] = []
    for module in modules:
        context.check_stop()
        module.eval()
        with torch.no_grad():
            outputs.append(torch.softmax(logits(module), 1).numpy())
    return similarity(outputs)


def _told(subject: Subject, found: Landscape, seeds: Sequence[int], budget: Budget, notes: Sequence[str]) -> Check:
    evidence = [found.loss, *_curvature_evidence(found)]
    figures: list[Figure] = []
    if found.eigenvalue is None and not found.curves:
        return not_assessed(NAME, "Neither curvature nor a curve could be measured.", notes=notes)
    if not found.curves:
        phased = subject.kind == "classification"
        return Check(
            name=NAME,
            verdict=Verdict.PASSES if found.eigenvalue is not None else Verdict.NOT_ASSESSED,
            summary=(
                "Only the curvature is told: a phase takes a second training on the same data."
                if phased
                else "Only the curvature is told: the phases are of classifiers' errors, and this loss is of values."
            ),
            advice=(
                "Train the version again with another seed and name it as the baseline to have the phase told."
                if phased
                else "Nothing need be done: a curvature says something beside that of another version, not by itself."
            ),
            notes=tuple(notes),
            evidence=tuple(evidence),
        )
    cuts = load_cuts()
    values = [curve.value for curve in found.curves]
    mc, worst = float(np.mean(values)), min(values)
    used = f"{found.curves[0].epochs} epochs of the curve, {len(POINTS)} points"
    evidence.append(
        Evidence(
            name="mode connectivity",
            value=mc,
            low=min(values),
            high=max(values),
            n=len(values),
            unit="error points",
            budget=f"{used}; low and high are the least and the largest of the curves",
            seeds=tuple(seeds),
            threshold=-cuts.barrier,
            threshold_source=CUTS_SOURCE,
        )
    )
    if found.alike is not None:
        evidence.append(
            Evidence(
                name="similarity (CKA of softmax outputs)",
                value=found.alike.value,
                low=found.alike.value - 1.96 * found.alike.error if found.alike.pairs > 1 else None,
                high=found.alike.value + 1.96 * found.alike.error if found.alike.pairs > 1 else None,
                n=found.alike.pairs,
                unit="0–1",
                budget="pairs of trainings",
                seeds=tuple(seeds),
                threshold=cuts.similarity,
                threshold_source=CUTS_SOURCE,
            )
        )
    figures.append(
        Figure(
            title="Training error along the curve between two trainings",
            kind="line",
            x_label="t",
            y_label="training error, %",
            series=tuple(
                series(f"to another seed, {number + 1}", POINTS, curve.error_T)
                for number, curve in enumerate(found.curves)
            ),
        )
    )
    phase = cuts.label(float(found.loss.value or 0.0), mc, found.alike.value if found.alike else float("nan"))
    blocked = worst < -cuts.barrier
    summary = f"Phase {phase}: {_words(cuts, found, mc)}."
    if budget == "quick":
        notes = [*notes, f"One pair of trainings and {used}: the full budget takes three and 50 epochs, as published."]
    return Check(
        name=NAME,
        verdict=Verdict.LOOK if blocked else Verdict.PASSES,
        summary=summary,
        advice=ADVICE[phase],
        notes=(*notes, "The phase advises; only a barrier between two trainings asks for a look."),
        evidence=tuple(evidence),
        figures=tuple(figures),
    )


def _curvature_evidence(found: Landscape) -> list[Evidence]:
    told: list[Evidence] = []
    for name, one in (("top Hessian eigenvalue", found.eigenvalue), ("Hessian trace", found.trace)):
        if one is not None:
            low, high = one.interval
            used = f"{one.products} products with the Hessian"
            told.append(
                Evidence(name=name, value=one.value, low=low, high=high, n=found.curvature_examples, budget=used)
            )
    return told


def _words(cuts: Cuts, found: Landscape, mc: float) -> str:
    loss = "large" if (found.loss.value or 0.0) > cuts.loss else "small"
    path = "a barrier between two trainings" if mc < -cuts.barrier else "no barrier between two trainings"
    alike = "" if found.alike is None else f", {'like' if found.alike.value >= cuts.similarity else 'unlike'} functions"
    return f"a {loss} training loss, {path}{alike}"
