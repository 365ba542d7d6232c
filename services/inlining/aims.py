"""What a module is compiled for: machine code as small as can be, or as few executed instructions as can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.inlining.engine import Compiled, Level
from services.inlining.sandbox import CompilerRefused
from services.inlining.schemas import Goal
from services.inlining.speed import Facts, ir2perf


@dataclass(frozen=True)
class Aim:
    """`beside(stock)` tells what another compile costs beside that of stock: below zero it is better. `thresholds` are
    the fixed candidates; `profiled` is how the engine has to compile for that."""

    level: Level
    thresholds: tuple[int, ...]
    profiled: bool
    beside: Callable[[Compiled], Callable[[Compiled], float]]


def _bytes(stock: Compiled) -> Callable[[Compiled], float]:
    return lambda other: other.text - stock.text


def _predicted(stock: Compiled) -> Callable[[Compiled], float]:
    was = _facts(stock)
    return lambda other: ir2perf().change(was, _facts(other))


def _facts(compiled: Compiled) -> Facts:
    """Raises CompilerRefused where an object has no profile that can be read."""
    try:
        return Facts.of([compiled])
    except ValueError as error:
        raise CompilerRefused(f"What was compiled cannot be judged: {error}.") from None


SIZE = Aim("z", (-10, 25), False, _bytes)  # the first is the best single one known for -Oz
SPEED = Aim("3", (450, 1000, 3000), True, _predicted)
AIMS: Mapping[Goal, Aim] = {"size": SIZE, "speed": SPEED}
