"""Local search over inlining decisions, after Theodoridis and others (2022), many call sites in each compile.

A move turns one decision, or makes all calls of one function the same, so that it goes when it is inlined everywhere.
It changes the size of the functions that the calls are in, and of the one called. So one compile makes moves in many
functions at once; those whose functions shrank are made again together, and the module's size, the only judge, confirms
it. When many at once find nothing more, fewer are made, down to one at a time; then some decisions are turned at random
and the search goes on from there (iterated local search).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inlining.advice import Policy, advise
from services.inlining.engine import Compiled, Module, compile_module
from services.inlining.replay import Site, as_mapping, read_replay, replay_lines
from services.inlining.sandbox import CompilerCrashed, CompilerRefused, LimitExceeded, Limits

PATIENCE = 3  # compiles without success before fewer sites are turned at once
CALLEES = 0.3  # of the compiles try functions, the others single calls
KICK = 0.03  # of the sites, turned at random when nothing more is found one at a time


@dataclass
class Search:
    """Where a search stands; `as_arrays` and `from_arrays` are its checkpoint."""

    best: dict[Site, bool]
    best_text: int
    base: dict[Site, bool]  # where it goes on from; behind the best after a kick
    stock_text: int
    spent: int  # compiles
    at_once: int
    failures: int = 0
    tried: set[str] = field(default_factory=set[str])  # moves made alone since the base changed

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        numbers = [self.best_text, self.stock_text, self.spent, self.at_once, self.failures]
        tried = json.dumps(sorted(self.tried))
        texts = {"best": replay_lines(self.best), "base": replay_lines(self.base), "tried": tried}
        arrays: dict[str, NDArray[Any]] = {
            # A tensor of no bytes cannot be kept.
            name: np.frombuffer(f"{text}\n".encode(), np.uint8)
            for name, text in texts.items()
        }
        return {**arrays, "numbers": np.array(numbers, np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Search:
        best, base = (read_replay(arrays[name].tobytes().decode()) for name in ("best", "base"))
        tried = set(json.loads(arrays["tried"].tobytes()))
        best_text, stock_text, spent, at_once, failures = arrays["numbers"].tolist()
        return cls(best, best_text, base, stock_text, spent, at_once, failures, tried)


@dataclass(frozen=True)
class Tuned:
    """`decisions` yield `text` under their replay file; none, and stock's size, where nothing was better."""

    decisions: dict[Site, bool]
    text: int
    stock_text: int
    compiles: int

    @property
    def replay(self) -> str:
        return replay_lines(self.decisions)


def tune(
    module: Module,
    policy: Policy | None,
    *,
    evaluations: int,
    seed: int = 0,
    limits: Limits | None = None,
    resume: Search | None = None,
    after: Callable[[Search], bool] = lambda _: True,
) -> Tuned:
    """Search until `evaluations` compiles are spent. `after` sees the search after each step, and ends it by False."""

    def compiled(wanted: Mapping[Site, bool]) -> Compiled | None:
        search.spent += 1
        how: dict[str, Any] = {"places": module.places, "target": module.triple, "limits": limits}
        try:
            return compile_module(module.code, replay=replay_lines(wanted), **how)
        except (CompilerCrashed, CompilerRefused, LimitExceeded):
            return None

    if resume is None:
        advice = advise(module, policy, seed=seed, limits=limits)
        callers = len({decision.caller for decision in advice.decisions})
        start = advice.mapping
        resume = Search(start, advice.advised.text, start, advice.stock.text, advice.compiles, max(1, callers))
    search = resume
    base = compiled(search.base) if search.best else None
    going = after(search) and base is not None
    while going and base is not None and search.spent < evaluations:
        random = np.random.default_rng([seed, search.spent])
        moves = _choose(base, search, random)
        if moves:
            better, wanted = _step(base, search.base, moves, compiled)
            search.tried.update(moves if len(moves) == 1 else ())
        else:
            # Nothing is left to turn: on from the best with some decisions turned at random.
            wanted = {**search.best, **_kick(search.best, random)}
            better = compiled(wanted)
        if better is not None:
            # What was asked for, not what the compile says of itself: the former alone yields this size again.
            base, search.base, search.failures = better, wanted, 0
            search.tried.clear()
            if better.text < search.best_text:
                search.best, search.best_text = search.base, better.text
        else:
            search.failures += 1
            if search.failures >= PATIENCE and search.at_once > 1:
                search.at_once, search.failures = max(1, search.at_once // 2), 0
        going = after(search)
    if search.best_text >= search.stock_text:
        return Tuned({}, search.stock_text, search.stock_text, search.spent)
    return Tuned(search.best, search.best_text, search.stock_text, search.spent)


Move = Mapping[Site, bool]


def _choose(base: Compiled, search: Search, random: np.random.Generator) -> dict[str, Move]:
    """Moves in as many functions as are turned at once, none of them tried alone; by name."""
    mapping = as_mapping(base.decisions)
    singles: dict[str, Move] = {}
    wholes: dict[str, Move] = {}
    home: dict[str, str] = {}  # the function that a move is counted as in
    by_callee: dict[str, list[Site]] = defaultdict(list)
    for decision in base.decisions:
        name = f"{decision.site.callee} at {decision.site.place}"
        singles[name], home[name] = {decision.site: not mapping[decision.site]}, decision.caller
        by_callee[decision.site.callee].append(decision.site)
    for callee, sites in by_callee.items():
        wanted = not all(mapping[site] for site in sites)
        move = {site: wanted for site in sites if mapping[site] is not wanted}
        if len(move) > 1:
            wholes[callee], home[callee] = move, callee
    first, second = (wholes, singles) if random.random() < CALLEES else (singles, wholes)
    for moves in (first, second):
        names = [name for name in moves if name not in search.tried]
        chosen: dict[str, str] = {}
        for index in random.permutation(len(names)).tolist():
            chosen.setdefault(home[names[index]], names[index])
            if len(chosen) >= search.at_once:
                break
        if chosen:
            return {name: moves[name] for name in chosen.values()}
    return {}


def _step(
    base: Compiled,
    before: dict[Site, bool],
    moves: Mapping[str, Move],
    compiled: Callable[[Mapping[Site, bool]], Compiled | None],
) -> tuple[Compiled | None, dict[Site, bool]]:
    """A compile smaller than the base with the decisions it was of: all moves, or those that made their own functions
    smaller; or None."""

    def together(names: Iterable[str]) -> dict[Site, bool]:
        return {**before, **{site: inline for name in names for site, inline in moves[name].items()}}

    wanted = together(moves)
    trial = compiled(wanted)
    if trial is None:
        return None, before
    callers = {decision.site: decision.caller for decision in base.decisions}
    helped = [name for name, move in moves.items() if _saved(base, trial, move, callers) > 0]
    found = [(trial, wanted)]
    if 0 < len(helped) < len(moves):
        wanted = together(helped)
        again = compiled(wanted)
        found += [(again, wanted)] if again is not None else []
    best, wanted = min(found, key=lambda one: one[0].text)
    return (best, wanted) if best.text < base.text else (None, before)


def _saved(base: Compiled, trial: Compiled, move: Move, callers: Mapping[Site, str]) -> int:
    """Bytes that the functions of a move's calls, and those called, have lost."""
    names = {name for site in move for name in (callers[site], site.callee)}
    return sum(base.functions.get(name, 0) - trial.functions.get(name, 0) for name in names)


def _kick(best: Mapping[Site, bool], random: np.random.Generator) -> dict[Site, bool]:
    sites = list(best)
    count = max(2, round(KICK * len(sites)))
    return {sites[index]: not best[sites[index]] for index in random.permutation(len(sites))[:count].tolist()}
