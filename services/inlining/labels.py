"""Measures what single decisions are worth, many in each compile: the labels that imitation learns from.

Each compile turns round decisions that have no function in common whose size they could change; a function whose size
did change is then put down to the one decision that can have changed it: one of its own call sites, of what was inlined
into it, or of what it calls. Where two could have after all, neither is counted. These are the steps of `tune` (local
search, Theodoridis and others, 2022), many at once.

Shapes: N labels, F features.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inlining.engine import Compiled, Module, compile_module
from services.inlining.features import STOCK, WIDTH
from services.inlining.replay import Decision, replay_lines
from services.inlining.sandbox import CompilerCrashed, CompilerRefused, LimitExceeded

Ints = NDArray[np.int64]
Turn = tuple[Decision, ...]  # decisions that are turned round together


@dataclass(frozen=True)
class Labels:
    """`worth_N`: bytes of text that inlining adds; below zero it saves. `stock_N`: what stock decides there."""

    features_NF: Ints
    stock_N: Ints
    worth_N: NDArray[np.float64]

    @classmethod
    def join(cls, parts: Sequence[Labels]) -> Labels:
        return cls(
            np.concatenate([part.features_NF for part in parts]),
            np.concatenate([part.stock_N for part in parts]),
            np.concatenate([part.worth_N for part in parts]),
        )


def measure(module: Module, runs: int, seed: Sequence[int]) -> Labels:
    """Labels of a module around stock's decisions, from one compile that looks and at most `runs` that turn.

    A turn may be of several sites, which then share its effect; turning all calls of a callee together was tried, and
    what was learned from that did worse on validation.
    """
    base = compile_module(module.code, decide=lambda features_F: int(features_F[STOCK]), places=module.places)
    into, calling = _links(base.decisions)
    left = _turns(base.decisions)
    left = [left[index] for index in np.random.default_rng(seed).permutation(len(left))]
    rows: list[int] = []
    worth: list[float] = []
    for _ in range(runs):
        turns: list[Turn] = []
        reached: set[str] = set()
        for turn in left:
            reach = _reach(turn, into, calling)
            if not reach & reached:
                turns.append(turn)
                reached |= reach
        if not turns:
            break
        left = [turn for turn in left if turn not in turns]
        turned = {site.site: not site.inlined for turn in turns for site in turn}
        try:
            compiled = compile_module(module.code, replay=replay_lines(turned), places=module.places)
        except (CompilerCrashed, CompilerRefused, LimitExceeded):
            continue
        for turn, change in attribute(base, compiled, turns):
            rows += [site.row for site in turn]
            worth += [(-change if site.inlined else change) / len(turn) for site in turn]
    rows_NF = base.features_SF[rows]
    return Labels(rows_NF[:, :WIDTH], rows_NF[:, STOCK], np.array(worth, np.float64))


def attribute(base: Compiled, compiled: Compiled, turns: Sequence[Turn]) -> list[tuple[Turn, int]]:
    """Each turn, as the base has it, whose effect is its alone, and the bytes that it added."""
    names = base.functions.keys() | compiled.functions.keys()
    change = {name: compiled.functions.get(name, 0) - base.functions.get(name, 0) for name in names}
    changed = {name for name, bytes_ in change.items() if bytes_}
    into, calling = _links([*base.decisions, *compiled.decisions])
    touched = [_reach(turn, into, calling) & changed for turn in turns]
    claims = Counter(name for names in touched for name in names)
    return [
        (turn, sum(change[name] for name in names))
        for turn, names in zip(turns, touched, strict=True)
        if all(claims[name] == 1 for name in names)
    ]


def _turns(decisions: Sequence[Decision]) -> list[Turn]:
    """Single sites; those decided twice, in copies, are left out."""
    times = Counter(decision.site for decision in decisions)
    return [(one,) for one in decisions if one.row >= 0 and times[one.site] == 1]


def _links(decisions: Sequence[Decision]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """(function → those it was inlined into, function → those that call it)."""
    into: dict[str, set[str]] = defaultdict(set)
    calling: dict[str, set[str]] = defaultdict(set)
    for decision in decisions:
        calling[decision.site.callee].add(decision.caller)
        if decision.inlined:
            into[decision.site.callee].add(decision.caller)
    return into, calling


def _reach(turn: Turn, into: dict[str, set[str]], calling: dict[str, set[str]]) -> set[str]:
    """Functions whose size the turn can change."""
    found = {site.caller for site in turn}
    waiting = list(found)
    while waiting:
        for name in into.get(waiting.pop(), set()) - found:
            found.add(name)
            waiting.append(name)
    # A caller that grew may no longer be inlined by its own callers.
    for name in list(found):
        found |= calling.get(name, set())
    return found | {site.site.callee for site in turn}
