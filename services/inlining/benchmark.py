"""Compares what there is on held-out programs, in one run, and prints Markdown tables.

    python -m services.inlining.benchmark --data CORPUS --out FILE [--bundles clone=DIR imitate=DIR …] [--tune 60]

CORPUS is what corpus.py made. Rows: stock -Oz; `-inline-threshold=-10`; the fixed threshold that was best on training
programs; each policy; the smallest of eight tries of the first policy (greedy, and seven sampled); the
local search `tune`. Every size is kept in FILE as soon as it is known, so that a run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from services.inlining import evaluate
from services.inlining.datasets import Unit, load
from services.inlining.engine import inspect_module
from services.inlining.policy import Policy, load_policy
from services.inlining.rollouts import Roller, Rollout, Sizes, greedy, sampled
from services.inlining.tune import tune
from shared.bundles import write_atomically

THRESHOLDS = (-30, -20, -10, 0, 10, 25, 50)
TRIES = 8
ROLL = Roller()
FROM_TRAINING = 40  # modules that the fixed threshold is chosen on
LARGEST_TUNED = 200_000  # bytes of a module; larger ones are searched only where named


class Record:
    """Row → module → bytes, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.is_file() else {}

    def sizes(self, row: str, units: Sequence[Unit], size: Callable[[Unit], int | None]) -> Sizes:
        """The row's sizes, those that are missing measured; stock's where a compile fails."""
        known = self.rows.setdefault(row, {})
        found: Sizes = {}
        for unit in units:
            if unit.name not in known:
                text = size(unit)
                known[unit.name] = self.rows["stock -Oz"][unit.name] if text is None else text
                write_atomically(self.path, json.dumps(self.rows).encode())
            found.setdefault(unit.program, {})[unit.name] = known[unit.name]
        return found


def fixed(threshold: int) -> Callable[[Unit], int | None]:
    return lambda unit: _cost(ROLL(unit.read(), None, [f"-inline-threshold={threshold}"]))


def policy_size(policy: Policy) -> Callable[[Unit], int | None]:
    return lambda unit: _cost(ROLL(unit.read(), greedy(policy)))


def sampled_size(policy: Policy, number: int) -> Callable[[Unit], int | None]:
    def size(unit: Unit) -> int | None:
        return _cost(ROLL(unit.read(), sampled(policy, np.random.default_rng([0, number]))))

    return size


def tuned_size(policy: Policy | None, evaluations: int) -> Callable[[Unit], int | None]:
    return lambda unit: tune(inspect_module(unit.read()), policy, evaluations=evaluations).text


def best_threshold(record: Record, training: Sequence[Unit]) -> int:
    """The fixed threshold that makes the training modules smallest."""
    order = np.random.default_rng(0).permutation(len(training))[:FROM_TRAINING]
    chosen = [training[index] for index in sorted(order)]
    record.sizes("stock -Oz", chosen, lambda unit: _cost(ROLL(unit.read(), None)))
    found = {value: record.sizes(f"-inline-threshold={value}", chosen, fixed(value)) for value in THRESHOLDS}
    programs = sorted(found[THRESHOLDS[0]])
    return min(THRESHOLDS, key=lambda value: float(evaluate.totals(found[value], programs).sum()))


def row(name: str, stock: Sizes, sizes: Sizes) -> str:
    """A line of the table: as it is, and under the never-worse rule."""
    programs = sorted(stock)
    stock_P, sizes_P = evaluate.totals(stock, programs), evaluate.totals(sizes, programs)
    kept_P = evaluate.totals(evaluate.smallest([stock, sizes]), programs)
    each_P = 100 * (1 - sizes_P / stock_P)
    worst = int(np.argmin(each_P))
    low, high = evaluate.interval(stock_P, sizes_P)
    return (
        f"| {name} | {100 * evaluate.saving(stock_P, sizes_P):.2f} ({100 * low:.2f} to {100 * high:.2f}) "
        f"| {each_P.mean():.2f} | {each_P[worst]:.2f} ({programs[worst]}) | {int((each_P < -0.5).sum())} "
        f"| {100 * evaluate.saving(stock_P, kept_P):.2f} |"
    )


def compare(data: Path, out: Path, bundles: Sequence[tuple[str, Path]], evaluations: int, only: Sequence[str]) -> str:
    """The table; `only` names test programs, or all if empty."""
    units = load(data)
    test = [unit for unit in units if unit.split == "test" and (not only or unit.program in only)]
    record = Record(out)
    stock = record.sizes("stock -Oz", test, lambda unit: _cost(ROLL(unit.read(), None)))
    rows = {"-inline-threshold=-10": record.sizes("-inline-threshold=-10", test, fixed(-10))}
    best = best_threshold(record, [unit for unit in units if unit.split == "train"])
    rows[f"best fixed threshold on training programs ({best})"] = record.sizes(
        f"-inline-threshold={best}", test, fixed(best)
    )
    policies = {name: load_policy(folder) for name, folder in bundles}
    for name, policy in policies.items():
        rows[f"policy: {name}"] = record.sizes(f"policy: {name}", test, policy_size(policy))
    first = next(iter(policies.items()), None)
    if first is not None:
        name, policy = first
        tries = [rows[f"policy: {name}"]]
        tries += [record.sizes(f"{name}, try {n}", test, sampled_size(policy, n)) for n in range(1, TRIES)]
        rows[f"best of {TRIES}: {name}"] = evaluate.smallest(tries)
        rows[f"best of {TRIES}, and fixed thresholds"] = evaluate.smallest([*tries, *list(rows.values())[:2]])
    lines = [
        f"{len(stock)} programs, {sum(len(modules) for modules in stock.values())} modules, "
        f"{sum(sum(modules.values()) for modules in stock.values()):,} bytes of text under stock. Percent saved.\n",
        "| | of all text (95 %) | mean of programs | worst program | worse by > 0.5 % | never-worse rule on |",
        "|---|---|---|---|---|---|",
        *(row(name, stock, sizes) for name, sizes in rows.items()),
    ]
    if evaluations:
        searched = [unit for unit in test if only or unit.path.stat().st_size <= LARGEST_TUNED]
        title = f"tune, {evaluations} compiles a module"
        found = record.sizes(title, searched, tuned_size(first[1] if first else None, evaluations))
        within = {program: {name: stock[program][name] for name in modules} for program, modules in found.items()}
        lines.append(row(f"{title} ({len(found)} programs)", within, found))
    return "\n".join(lines)


def _cost(rollout: Rollout | None) -> int | None:
    return None if rollout is None else rollout.cost


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the corpus")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file of every size")
    parser.add_argument("--bundles", nargs="*", default=[], metavar="NAME=DIR", help="trained policies, best first")
    parser.add_argument("--tune", type=int, default=0, metavar="COMPILES", help="of each module")
    parser.add_argument("--only", nargs="*", default=[], metavar="PROGRAM")
    given = parser.parse_args()
    pairs = [item.split("=", 1) for item in given.bundles] or [["served", str(Path(__file__).parent / "pretrained")]]
    print(compare(given.data, given.out, [(name, Path(folder)) for name, folder in pairs], given.tune, given.only))


if __name__ == "__main__":
    main()
