"""What groups of training examples share, put on examples of other classes: is it a trigger?

It is one where it turns them into the group's class, where the same entries with ordinary values do not, and where a
model that never saw the group disbelieves its labels. Inputs of many numbers are looked at a few at a time.

Shapes: N examples, M held-out examples of other classes, C carriers, X the shape of an input, E entries of the mask.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.audits.checking import Budget, Checking
from services.audits.intervals import corrected, mean
from services.audits.suspects import Group, Shared, believed, shared_by
from shared.auditing import Continuous, Examples, Subject

TURNED = 0.5  # of the others that a trigger turns, for it to be one
PURE = 0.8  # carriers labelled as the group is: a trigger is stamped to mean one class
BELIEVED = 0.5  # labels of the carriers believed without the trigger, below which it alone decides
LEAST_OTHERS = 5  # held-out examples of other classes
STAMPING_SECONDS = {"quick": 60.0, "full": 1800.0}  # beyond which only what is disbelieved is put on them
AT_ONCE = 5 * 10**7  # numbers of inputs that are held in memory


class Suspicion(NamedTuple):
    """What a group shares; who else is of its class; and, of those that carry it, whose label (1 or 0) is believed
    without it. `level` is that of the verdict."""

    group: Group
    shared: Shared
    own: NDArray[np.int64]
    believed_C: NDArray[Any]
    level: float

    @property
    def disbelieved(self) -> bool:
        return mean(self.believed_C, self.level).high < BELIEVED


@dataclass(frozen=True)
class Trial:
    """A suspicion put to the test: which examples (1 or 0) answer the group's label with what it shares, with ordinary
    values there, and as they are."""

    suspicion: Suspicion
    stamped_M: NDArray[Any]
    ordinary_M: NDArray[Any]
    before_M: NDArray[Any]

    @property
    def turns(self) -> bool:
        three = (self.stamped_M, self.ordinary_M, self.before_M)
        stamped, ordinary, before = (mean(one, self.suspicion.level) for one in three)
        return stamped.low > TURNED and stamped.low > max(ordinary.high, before.high)

    @property
    def confirmed(self) -> bool:
        return self.turns and self.suspicion.disbelieved


def _suspicions(subject: Subject, train: Examples, groups: list[Group], context: Checking) -> list[Suspicion]:
    """What groups share, each pattern once, the least believed first."""
    value_NE = np.concatenate([_flat(part).numpy() for part in _parts(subject, train)])
    continuous = subject.continuous(train.take(np.arange(1)))
    label_N = np.asarray(train.targets_N, np.int64)
    patterns: dict[tuple[int, bytes], tuple[Group, Shared, NDArray[np.int64]]] = {}
    for group in groups:
        for shared in shared_by(group, value_NE, continuous.low, continuous.high):
            context.check_stop()
            own = np.setdiff1d(np.flatnonzero(label_N == group.label), shared.carriers)
            if len(own) and (label_N[shared.carriers] == group.label).mean() >= PURE:
                patterns.setdefault((group.label, shared.carriers.tobytes()), (group, shared, own))
    found: list[Suspicion] = []
    for group, shared, own in patterns.values():
        context.check_stop()
        trust_C = believed(shared, group.label, value_NE, label_N, context.seed)
        found.append(Suspicion(group, shared, own, trust_C, corrected(len(patterns))))
    return sorted(found, key=lambda one: (not one.disbelieved, one.believed_C.mean()))


def trials_of(
    subject: Subject,
    module: Any,
    train: Examples,
    groups: list[Group],
    held_out: Examples,
    budget: Budget,
    context: Checking,
    notes: list[str],
) -> list[Trial]:
    """Every suspicion, or as many as there is time for: none can be confirmed whose carriers' labels are believed."""
    target = np.asarray(held_out.targets_N, np.int64)
    found: list[Trial] = []
    before: dict[int, NDArray[np.bool_]] = {}
    deadline, untried = time.monotonic() + STAMPING_SECONDS[budget], 0
    for one in _suspicions(subject, train, groups, context):
        context.check_stop()
        label, shared = one.group.label, one.shared
        others = held_out.take(np.flatnonzero((target != label) & (target >= 0)))
        if len(others) < LEAST_OTHERS:
            continue
        if not one.disbelieved and time.monotonic() > deadline:
            untried += 1
            continue
        if label not in before:
            before[label] = _turned(subject, module, others, label, shared.entries[:0], others)
        random = context.random(2)
        usual, carriers = (train.take(random.choice(rows, len(others))) for rows in (one.own, shared.carriers))
        stamped_M = _turned(subject, module, others, label, shared.entries, carriers)
        ordinary_M = _turned(subject, module, others, label, shared.entries, usual)
        found.append(Trial(one, stamped_M, ordinary_M, before[label]))
    if untried:
        notes.append(
            f"{untried} more patterns were not put on other examples, for the time that takes: the labels of what "
            "carries them are believed without them, so that none of them could be called a trigger."
        )
    return sorted(found, key=lambda one: (not one.confirmed, not one.suspicion.disbelieved, -one.stamped_M.mean()))


def _turned(
    subject: Subject, module: Any, others: Examples, label: int, entries: NDArray[np.int64], donors: Examples
) -> NDArray[np.bool_]:
    """(M,) which examples answer `label` with the entries as their donors have them."""
    turned: list[Tensor] = []
    for continuous, donor in zip(_parts(subject, others), _parts(subject, donors), strict=True):
        entry = torch.zeros(math.prod(continuous.mask_shape), dtype=torch.bool)
        entry[torch.from_numpy(entries)] = True
        mask_X = entry.reshape(continuous.mask_shape).broadcast_to(continuous.values.shape[1:])
        with torch.no_grad():
            stamped_NX = torch.where(mask_X, donor.values, continuous.values)
            turned.append(continuous.logits(module, stamped_NX).argmax(1) == label)
    return torch.cat(turned).numpy()


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
