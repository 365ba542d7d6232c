"""Text size, or predicted instructions, against stock: the whole corpus' saving, each program's, the worst, and how
sure that is.

Shapes: P programs. Savings are shares of what stock costs; above zero is less than stock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.inlining.schemas import Goal
from shared.bundles import Metric

RESAMPLES = 2_000
SAVED: Mapping[Goal, str] = {"size": "text_saved_percent", "speed": "instructions_saved_percent"}
DESCRIBED: Mapping[Goal, str] = {
    "size": "of all programs' text together, before the never-worse rule",
    "speed": "executed instructions, as IR2Perf predicts them from the code; not counted",
}
MEASURED: Mapping[Goal, str] = {
    "size": "Bytes of machine code at -Oz, before the never-worse rule,",
    "speed": "Executed instructions at -O3 as IR2Perf predicts them, each module counting the same,",
}
BETTER: Mapping[Goal, str] = {"size": "smaller", "speed": "faster"}
WORSE: Mapping[Goal, str] = {"size": "larger", "speed": "slower"}
Sizes = Mapping[str, Mapping[str, int]]  # program → module → bytes of text
Floats = NDArray[np.float64]


def totals(sizes: Sizes, programs: Sequence[str]) -> Floats:
    """Bytes of each program, (P,)."""
    return np.array([sum(sizes[program].values()) for program in programs], np.float64)


def smallest(candidates: Sequence[Sizes]) -> dict[str, dict[str, int]]:
    """The smallest size of each module among the candidates: what is kept when all are compiled."""
    return {
        program: {module: min(sizes[program][module] for sizes in candidates) for module in modules}
        for program, modules in candidates[0].items()
    }


def saving(stock_P: Floats, sizes_P: Floats) -> float:
    """Share saved of all programs together: 1 − Σ size / Σ stock."""
    return float(1 - sizes_P.sum() / stock_P.sum())


def interval(stock_P: Floats, sizes_P: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % interval of `saving`, whole programs resampled."""
    draws_RP = np.random.default_rng(seed).integers(0, len(stock_P), (RESAMPLES, len(stock_P)))
    savings_R = 1 - sizes_P[draws_RP].sum(axis=1) / stock_P[draws_RP].sum(axis=1)
    low, high = np.percentile(savings_R, [2.5, 97.5])
    return float(low), float(high)


def metrics(stock: Sizes, sizes: Sizes, goal: Goal = "size") -> dict[str, Metric]:
    """The figures of a manifest, in percent of what stock costs."""
    programs = sorted(stock)
    stock_P, sizes_P = totals(stock, programs), totals(sizes, programs)
    each_P = 100 * (1 - sizes_P / stock_P)
    low, high = interval(stock_P, sizes_P)
    count = len(programs)
    worst = programs[int(np.argmin(each_P))]
    return {
        SAVED[goal]: Metric(
            value=100 * saving(stock_P, sizes_P),
            low=100 * low,
            high=100 * high,
            n=count,
            description=DESCRIBED[goal],
        ),
        "mean_saved_percent": Metric(value=float(each_P.mean()), n=count, description="mean over programs"),
        "worst_saved_percent": Metric(value=float(each_P.min()), n=count, description=f"of {worst}"),
        f"programs_{BETTER[goal]}": Metric(value=float((each_P > 0).mean()), n=count, description="share of programs"),
        f"programs_{WORSE[goal]}": Metric(
            value=float((each_P < 0).mean()), n=count, higher_is_better=False, description="share of programs"
        ),
    }


def paired(stock: Sizes, candidate: Sizes, champion: Sizes) -> Metric:
    """Saving of the candidate less the champion's, in percent, programs drawn together."""
    programs = sorted(stock)
    stock_P, mine_P, theirs_P = (totals(sizes, programs) for sizes in (stock, candidate, champion))
    draws_RP = np.random.default_rng(0).integers(0, len(programs), (RESAMPLES, len(programs)))
    gain_R = 100 * (theirs_P - mine_P)[draws_RP].sum(axis=1) / stock_P[draws_RP].sum(axis=1)
    low, high = np.percentile(gain_R, [2.5, 97.5])
    value = 100 * float((theirs_P - mine_P).sum() / stock_P.sum())
    return Metric(value=value, low=float(low), high=float(high), n=len(programs))
