"""Compiles modules under a policy and keeps what they cost: what every training method and every measurement does.

Shapes: S call sites of a module, F features, N call sites of a corpus.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inlining.aims import SIZE, Aim
from services.inlining.datasets import Unit
from services.inlining.engine import Compiled, compile_module
from services.inlining.features import STOCK, WIDTH, Decide
from services.inlining.policy import Policy
from services.inlining.sandbox import CompilerCrashed, CompilerRefused, LimitExceeded

log = logging.getLogger(__name__)
Ints = NDArray[np.int64]
Sizes = dict[str, dict[str, int]]  # program → module → what it costs
MILLION = 1_000_000


@dataclass(frozen=True)
class Rollout:
    """What a module costs under the decisions that were made: bytes of text, or, for speed, millionths of stock's
    executed instructions as they are predicted. `stock_S` is what stock would have decided at each site."""

    cost: int
    features_SF: Ints
    stock_S: NDArray[np.int8]
    decisions_S: NDArray[np.int8]


def stock_decision(features_F: Ints) -> int:
    return int(features_F[STOCK])


def greedy(policy: Policy) -> Decide:
    """What the served policy does."""
    return lambda features_F: policy.decide(features_F[:WIDTH])[0]


def sampled(policy: Policy, random: np.random.Generator) -> Decide:
    """Each decision drawn with the policy's probability."""

    def decide(features_F: Ints) -> int:
        return int(random.random() < policy.probability(features_F[:WIDTH]))

    return decide


class Roller:
    """Compiles for an aim; for speed it remembers of each module what stock made."""

    def __init__(self, aim: Aim = SIZE) -> None:
        self._aim = aim
        self._beside: dict[bytes, Callable[[Compiled], float]] = {}

    def __call__(self, code: bytes, decide: Decide | None, options: Sequence[str] = ()) -> Rollout | None:
        """One compile; None where LLVM fails under these decisions."""
        try:
            done = self._compile(code, decide, options)
            cost = done.text if not self._aim.profiled else self._predicted(code, done)
        except (CompilerCrashed, CompilerRefused, LimitExceeded) as error:
            log.warning("a compile failed: %s", error.detail)
            return None
        return Rollout(cost, done.features_SF[:, :WIDTH], done.stock_S, done.decisions_S)

    def _compile(self, code: bytes, decide: Decide | None, options: Sequence[str] = ()) -> Compiled:
        return compile_module(code, decide=decide, options=options, level=self._aim.level, profiled=self._aim.profiled)

    def _predicted(self, code: bytes, done: Compiled) -> int:
        key = hashlib.sha256(code).digest()
        if key not in self._beside:
            self._beside[key] = self._aim.beside(self._compile(code, stock_decision))
        return round(MILLION * math.exp(self._beside[key](done)))


def roll_all(
    units: Sequence[Unit],
    decide: Callable[[int], Decide | None],
    roll: Roller,
    *,
    threads: int = 1,
    watch: Callable[[], Any] = lambda: None,
) -> list[Rollout | None]:
    """Each module rolled; `decide` is asked for each module's own decider. `watch` is called between modules."""

    def one(index: int) -> Rollout | None:
        watch()
        return roll(units[index].read(), decide(index))

    if threads == 1:
        return [one(index) for index in range(len(units))]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(units))))


def sizes(units: Sequence[Unit], rollouts: Sequence[Rollout | None], instead: Sizes | None = None) -> Sizes:
    """Costs by program and module; where a compile failed, `instead`'s (stock's)."""
    found: Sizes = {}
    for unit, rollout in zip(units, rollouts, strict=True):
        if rollout is None and instead is None:
            continue
        cost = rollout.cost if rollout is not None else (instead or {})[unit.program][unit.name]
        found.setdefault(unit.program, {})[unit.name] = cost
    return found
