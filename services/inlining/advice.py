"""Advice on a module: stock and every candidate are compiled, and the best wins: the smallest, which is measured, or
the one that is predicted to execute the fewest instructions.

A candidate is a set of decisions: stock's own under another threshold, or the policy's, greedy or sampled. It counts
with what its replay file yields, since that is what the user will apply. Ties go to stock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.inlining.aims import SIZE, Aim
from services.inlining.engine import Compiled, Module, compile_module
from services.inlining.features import FEATURES, WIDTH
from services.inlining.replay import Decision, Site, as_mapping, replay_lines
from services.inlining.sandbox import SANDBOX, CompilerCrashed, CompilerRefused, Limits

MOST_AT_ONCE = 4


class Policy(Protocol):
    """What decides: a probability of inlining for a site's features (F,)."""

    threshold: float

    def probability(self, features_F: NDArray[np.int64]) -> float: ...


@dataclass
class Candidate:
    """Decisions with the compile that they come from."""

    name: str
    compiled: Compiled
    probabilities: list[float] = field(default_factory=list[float])

    @property
    def decisions(self) -> list[Decision]:
        return self.compiled.decisions

    @property
    def mapping(self) -> dict[Site, bool]:
        return as_mapping(self.decisions)


@dataclass(frozen=True)
class Advice:
    """The winner beside stock. `advised` is the compile under the winner's replay file, or stock's own."""

    winner: str
    stock: Compiled
    advised: Compiled
    decisions: list[Decision]
    candidates: list[tuple[str, int, float]]  # name, bytes of machine code, cost beside stock
    seen: dict[Site, tuple[dict[str, int], float]]  # features, and the policy's probability of inlining
    compiles: int
    cpu_seconds: float
    cost: float = 0.0  # of `advised` beside stock, as the aim counts it

    @property
    def mapping(self) -> dict[Site, bool]:
        return as_mapping(self.decisions)

    @property
    def replay(self) -> str:
        """Every decision of the winner; an empty file is stock."""
        return "" if self.winner == "stock" else replay_lines(self.mapping)


def advise(
    module: Module,
    policy: Policy | None,
    *,
    aim: Aim = SIZE,
    best_of: int = 1,
    seed: int = 0,
    limits: Limits | None = None,
) -> Advice:
    """Compile stock and the candidates; the best by the aim wins. The policy has to be one of that aim."""

    def compiled(**how: Any) -> Compiled:
        how |= {"places": module.places, "level": aim.level, "profiled": aim.profiled, "target": module.triple}
        return compile_module(module.code, limits=limits, **how)

    def fixed(threshold: int) -> Candidate | None:
        return _unless_it_fails(
            f"inline-threshold={threshold}", lambda: compiled(options=[f"-inline-threshold={threshold}"])
        )

    def tried(number: int) -> Candidate | None:
        if policy is None:
            return None
        told = policy
        random = np.random.default_rng([seed, number])
        probabilities: list[float] = []

        def decide(features_F: NDArray[np.int64]) -> int:
            probability = told.probability(features_F[:WIDTH])
            probabilities.append(probability)
            return int(probability >= told.threshold if number == 0 else random.random() < probability)

        name = "policy" if number == 0 else f"policy-sample-{number}"
        found = _unless_it_fails(name, lambda: compiled(decide=decide))
        return None if found is None else Candidate(name, found.compiled, probabilities)

    stock = compiled()
    if not stock.decisions:
        return Advice("stock", stock, stock, [], [("stock", stock.text, 0.0)], {}, 1, stock.cpu_seconds)
    with ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
        running = [pool.submit(fixed, threshold) for threshold in aim.thresholds]
        running += [pool.submit(tried, number) for number in range(best_of if policy is not None else 0)]
        candidates = [candidate for future in running if (candidate := future.result()) is not None]
    compiles = [stock, *(candidate.compiled for candidate in candidates)]
    beside = aim.beside(stock)
    costed = [(beside(candidate.compiled), candidate) for candidate in candidates]
    winner, advised, cost = _best(stock, costed, beside, compiled, compiles)
    return Advice(
        winner.name if winner else "stock",
        stock,
        advised,
        winner.decisions if winner else stock.decisions,
        [("stock", stock.text, 0.0), *((one.name, one.compiled.text, cost) for cost, one in costed)],
        _seen(candidates, winner),
        len(compiles),
        sum(one.cpu_seconds for one in compiles),
        cost,
    )


def _unless_it_fails(name: str, compile_it: Any) -> Candidate | None:
    """A candidate that LLVM cannot compile is none; stock's own failure is the caller's to see."""
    try:
        return Candidate(name, compile_it())
    except (CompilerCrashed, CompilerRefused):
        return None


def _best(
    stock: Compiled,
    costed: Sequence[tuple[float, Candidate]],
    beside: Callable[[Compiled], float],
    compiled: Any,
    compiles: list[Compiled],
) -> tuple[Candidate | None, Compiled, float]:
    """(winner, its compile, its cost) under its replay file, tried from the most promising on; stock unless one is
    better."""
    winner, best, least = None, stock, 0.0
    for cost, candidate in sorted(costed, key=lambda one: one[0]):
        if cost >= least:
            break
        try:
            replayed: Compiled = compiled(replay=replay_lines(candidate.mapping))
        except (CompilerCrashed, CompilerRefused):
            continue
        compiles.append(replayed)
        if (found := beside(replayed)) < least:
            winner, best, least = candidate, replayed, found
    return winner, best, least


def _seen(candidates: Sequence[Candidate], winner: Candidate | None) -> dict[Site, tuple[dict[str, int], float]]:
    """What the policy saw at each site, in the winner's compile if that was the policy's."""
    found: dict[Site, tuple[dict[str, int], float]] = {}
    advised = [candidate for candidate in candidates if candidate.probabilities and candidate is not winner]
    if winner is not None and winner.probabilities:
        advised.append(winner)  # the last word
    for candidate in advised:
        rows = candidate.compiled.features_SF
        for decision in candidate.decisions:
            if 0 <= decision.row < len(rows):
                features = dict(zip(FEATURES, rows[decision.row].tolist(), strict=False))
                found[decision.site] = (features, candidate.probabilities[decision.row])
    return found


def annotated(
    module: Module, advice: Advice, *, aim: Aim = SIZE, limits: Limits | None = None
) -> tuple[str, int, Compiled]:
    """The module's IR with calls marked where the advice differs from stock; marks made; and what it compiles to.

    A call that was inlined into several places may be decided differently in each; it is marked where they agree.
    The unmarked module comes back when marks, which LLVM obeys earlier than an advisor, make it no better.
    """
    plain = module.code if module.code[:2] != b"BC" and module.code[:4] != b"\xde\xc0\x17\x0b" else None
    limits = limits or Limits()
    if plain is None:
        out = SANDBOX.run({"task": "inspect"}, module.code, limits=limits)
        plain = out.data.partition(b"\n")[2]
    wanted = _marks(module, advice)
    if advice.winner != "stock" and wanted:
        order = {"task": "annotate", "wanted": [[*key, inline] for key, inline in wanted.items()]}
        count, _, marked = SANDBOX.run(order, plain, limits=limits).data.partition(b"\n")
        compiled = compile_module(marked, level=aim.level, profiled=aim.profiled, target=module.triple, limits=limits)
        if aim.beside(advice.stock)(compiled) < 0:
            return marked.decode("utf-8", "replace"), int(count), compiled
    return plain.decode("utf-8", "replace"), 0, advice.stock


def _marks(module: Module, advice: Advice) -> dict[tuple[str, str, int, int], bool]:
    stock = as_mapping(advice.stock.decisions)
    by_name = {place["name"]: function for function, place in module.places.functions.items() if place}
    votes: dict[tuple[str, str, int, int], set[bool]] = {}
    differs: set[tuple[str, str, int, int]] = set()
    for site, inline in advice.mapping.items():
        name, offset, column = site.place.partition(" @ ")[0].rsplit(":", 2)
        function = by_name.get(name)
        start = module.places.functions.get(function or "")
        if function is None or start is None:
            continue
        key = (function, site.callee, (int(offset) + int(start["line"])) % 2**32, int(column.partition(".")[0]))
        votes.setdefault(key, set()).add(inline)
        if stock.get(site) is not inline:
            differs.add(key)
    return {key: next(iter(said)) for key, said in votes.items() if len(said) == 1 and key in differs}


def changed_functions(advice: Advice) -> list[tuple[str, int, int]]:
    """(name, bytes stock, bytes advised) of every function whose size changed, the most saved first."""
    stock: Mapping[str, int] = advice.stock.functions
    advised: Mapping[str, int] = advice.advised.functions
    rows = [(name, stock.get(name, 0), advised.get(name, 0)) for name in stock.keys() | advised.keys()]
    return sorted((row for row in rows if row[1] != row[2]), key=lambda row: (row[2] - row[1], row[0]))
