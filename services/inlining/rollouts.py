"""Compiles modules under a policy and keeps their sizes: what every training method and every measurement does.

Shapes: S call sites of a module, F features, N call sites of a corpus.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inlining.channel import Decide
from services.inlining.datasets import Unit
from services.inlining.engine import compile_module
from services.inlining.features import STOCK, WIDTH
from services.inlining.policy import Policy
from services.inlining.sandbox import CompilerCrashed, CompilerRefused, LimitExceeded

log = logging.getLogger(__name__)
Ints = NDArray[np.int64]
Sizes = dict[str, dict[str, int]]  # program → module → bytes of text


@dataclass(frozen=True)
class Rollout:
    """A module's size under the decisions that were made; `stock_S` is what stock would have decided at each."""

    text: int
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


def roll(code: bytes, decide: Decide | None, options: Sequence[str] = ()) -> Rollout | None:
    """One compile; None where LLVM fails under these decisions."""
    try:
        done = compile_module(code, decide=decide, options=options)
    except (CompilerCrashed, CompilerRefused, LimitExceeded) as error:
        log.warning("a compile failed: %s", error.detail)
        return None
    return Rollout(done.text, done.features_SF[:, :WIDTH], done.stock_S, done.decisions_S)


def roll_all(
    units: Sequence[Unit],
    decide: Callable[[int], Decide | None],
    *,
    threads: int = 1,
    options: Sequence[str] = (),
    watch: Callable[[], Any] = lambda: None,
) -> list[Rollout | None]:
    """`roll` for each module; `decide` is asked for each module's own decider. `watch` is called between modules."""

    def one(index: int) -> Rollout | None:
        watch()
        return roll(units[index].read(), decide(index), options)

    if threads == 1:
        return [one(index) for index in range(len(units))]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(units))))


def sizes(units: Sequence[Unit], rollouts: Sequence[Rollout | None], instead: Sizes | None = None) -> Sizes:
    """Bytes by program and module; where a compile failed, `instead`'s (stock's)."""
    found: Sizes = {}
    for unit, rollout in zip(units, rollouts, strict=True):
        if rollout is None and instead is None:
            continue
        text = rollout.text if rollout is not None else (instead or {})[unit.program][unit.name]
        found.setdefault(unit.program, {})[unit.name] = text
    return found
