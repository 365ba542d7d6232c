"""Measures what single decisions are worth, many in each compile: the labels that imitation learns from.

Each compile turns some decisions round, at random. A function whose size changed is put down to the one turned decision
that can have changed it: one of its own call sites, of what was inlined into it, or of what it calls. Where two could
have, neither is counted. These are the steps of `tune` (local search, Theodoridis and others, 2022), many at once.

Shapes: N labels, F features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inlining.channel import Decide
from services.inlining.engine import Compiled, Module, compile_module
from services.inlining.features import STOCK, WIDTH
from services.inlining.replay import Decision

Ints = NDArray[np.int64]
SHARE = 0.04  # of the decisions that a compile turns round
LEAST = 1.5  # and at least so many on average


@dataclass(frozen=True)
class Labels:
    """`worth_N`: bytes of text that inlining adds; below zero it saves. `stock_N`: what stock decides there."""

    features_NF: Ints
    stock_N: Ints
    worth_N: Ints

    @classmethod
    def join(cls, parts: Sequence[Labels]) -> Labels:
        return cls(
            np.concatenate([part.features_NF for part in parts]),
            np.concatenate([part.stock_N for part in parts]),
            np.concatenate([part.worth_N for part in parts]),
        )


def measure(module: Module, base: Compiled, policy: Decide, runs: int, seed: Sequence[int]) -> Labels:
    """Labels of a module around `policy`, whose own compile, by name, is `base`."""
    features: list[Ints] = []
    worth: list[int] = []
    share = min(0.5, max(SHARE, LEAST / max(1, len(base.decisions))))
    for number in range(runs):
        random = np.random.default_rng([*seed, number])
        turned: list[bool] = []

        def decide(features_F: Ints, random: np.random.Generator = random, turned: list[bool] = turned) -> int:
            turned.append(bool(random.random() < share))
            return policy(features_F) ^ turned[-1]

        compiled = compile_module(module.code, decide=decide, places=module.places)
        flips = [
            decision for decision in compiled.decisions if 0 <= decision.row < len(turned) and turned[decision.row]
        ]
        for decision, change in attribute(base, compiled, flips):
            features.append(compiled.features_SF[decision.row])
            worth.append(change if decision.inlined else -change)
    rows_NF = np.array(features, np.int64).reshape(-1, WIDTH + 1)
    return Labels(rows_NF[:, :WIDTH], rows_NF[:, STOCK], np.array(worth, np.int64))


def attribute(base: Compiled, compiled: Compiled, flips: Sequence[Decision]) -> list[tuple[Decision, int]]:
    """Each turned decision whose effect is its alone, with the bytes by which it changed the module."""
    names = base.functions.keys() | compiled.functions.keys()
    change = {name: compiled.functions.get(name, 0) - base.functions.get(name, 0) for name in names}
    changed = {name for name, bytes_ in change.items() if bytes_}
    into: dict[str, set[str]] = defaultdict(set)  # function → those it was inlined into, in either compile
    calling: dict[str, set[str]] = defaultdict(set)
    for decision in (*base.decisions, *compiled.decisions):
        calling[decision.site.callee].add(decision.caller)
        if decision.inlined:
            into[decision.site.callee].add(decision.caller)
    touched = [_reach(flip, into, calling) & changed for flip in flips]
    claims: dict[str, int] = defaultdict(int)
    for names in touched:
        for name in names:
            claims[name] += 1
    return [
        (flip, sum(change[name] for name in names))
        for flip, names in zip(flips, touched, strict=True)
        if all(claims[name] == 1 for name in names)
    ]


def _reach(flip: Decision, into: dict[str, set[str]], calling: dict[str, set[str]]) -> set[str]:
    """Functions whose size the decision can change."""
    found = {flip.caller}
    waiting = [flip.caller]
    while waiting:
        for name in into[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    # A caller that grew may no longer be inlined by its own callers.
    for name in list(found):
        found |= calling[name]
    return found | {flip.site.callee}
