"""Trains an inlining policy on a corpus of modules and makes its bundle.

    python -m services.inlining.train --data DIR --out DIR [--set method=evolution …]

Every method begins with a compile of each module as stock decides, which gives the corpus' quantiles, and with a clone
of stock. What is kept of a method's several networks is what made the validation programs smallest; the test programs
are compiled once, at the end. Shapes: M modules, N call sites of all, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.inlining import evaluate
from services.inlining.aims import AIMS
from services.inlining.datasets import BadCorpus, Unit, load, readable
from services.inlining.engine import inspect_module
from services.inlining.export import export_bundle, numpy_policy
from services.inlining.features import STOCK, WIDTH
from services.inlining.labels import Labels, measure
from services.inlining.learning import clone, evolution_step, evolved, imitate, perturbations, ppo_step, set_evolved
from services.inlining.model import PolicyNet, corpus_quantiles
from services.inlining.policy import HIDDEN, Policy, load_policy
from services.inlining.rollouts import Roller, Rollout, Sizes, greedy, roll_all, sampled, sizes, stock_decision
from services.inlining.sandbox import CompilerCrashed, CompilerRefused, LimitExceeded
from services.inlining.schemas import Goal, TrainConfig
from shared.bundles import Bundle, Comparison, Metric
from shared.datasets import folder_digest
from shared.jobs.config import read_config
from shared.jobs.context import TrainingContext, check_stop
from shared.jobs.shell import run_from_shell

Ints = NDArray[np.int64]
State = dict[str, NDArray[Any]]
KEPT_EVERY = 10  # modules between two checkpoints
BASELINE_DECAY = 0.8  # of a module's moving average, which ppo is paid against


@dataclass(frozen=True)
class Corpus:
    """The units of each split, with what stock makes of training and validation."""

    parts: Mapping[str, list[Unit]]
    stock: Sizes
    features_NF: Ints
    stock_N: Ints

    def learned(self, config: TrainConfig) -> list[Unit]:
        """The training modules that are compiled again and again."""
        kept = [unit for unit in self.parts["train"] if unit.path.stat().st_size <= config.largest_module]
        if not kept:
            raise BadCorpus(f"Every training module is larger than largest_module, {config.largest_module} bytes.")
        return kept


def train(config: TrainConfig, data: Path, context: TrainingContext) -> Path:
    """Train on the corpus in the folder `data` (see datasets.py); return the bundle's folder.

    Raises BadCorpus or JobStopped.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    units = load(data)
    units = _as_bitcode(readable(units) if config.bad_files == "exclude" else units, config, context)
    parts = {name: [unit for unit in units if unit.split == name] for name in ("train", "validation", "test")}
    progress = _Progress(context, config.goal)
    corpus = _stock(config, parts, progress)
    net = _fit(config, corpus, progress)
    policy = numpy_policy(net)
    validation = _validated(config, corpus, policy, progress)
    stock = _sizes_of(config, parts["test"], None, progress)
    mine = _sizes_of(config, parts["test"], policy, progress, stock)
    metrics = evaluate.metrics(stock, mine, config.goal)
    metrics |= {"validation_saved_percent": Metric(value=100 * validation, description="what the choice was made by")}
    champion = context.champion()
    comparison = None
    if champion is not None:
        comparison = _beside(config, Bundle.open(champion), parts["test"], stock, mine, progress)
    return export_bundle(
        net,
        context.artefact("bundle"),
        threshold=policy.threshold,
        config=config,
        metrics=metrics,
        split=f"{len(stock)} test programs, never trained on; intervals are 95 %, programs resampled",
        card=_card(config, corpus, metrics),
        dataset_digest=folder_digest("inlining", data),
        comparison=comparison,
    )


def compare(candidate: Path, champion: Path, data: Path, context: TrainingContext) -> Comparison:
    """The candidate beside the champion (folders of bundles) on the test programs of the candidate's corpus."""
    bundle = Bundle.open(candidate)
    config = read_config(TrainConfig, bundle.manifest.config)
    units = _as_bitcode(readable(load(data)) if config.bad_files == "exclude" else load(data), config, context)
    test = [unit for unit in units if unit.split == "test"]
    progress = _Progress(context, config.goal)
    stock = _sizes_of(config, test, None, progress)
    mine = _sizes_of(config, test, load_policy(bundle.folder), progress, stock)
    return _beside(config, Bundle.open(champion), test, stock, mine, progress)


class _Progress:
    """A training's checkpoint, arrays that are added to; its stop, asked for between compiles; and what compiles."""

    def __init__(self, context: TrainingContext, goal: Goal) -> None:
        self.context = context
        self.roll = Roller(AIMS[goal])
        self.state: State = dict(context.restore() or {})

    def check(self) -> None:
        check_stop(self.context)

    def keep(self, **arrays: NDArray[Any]) -> None:
        self.state |= arrays
        self.context.checkpoint(self.state)

    def network(self, name: str, quantiles_FQ: Ints) -> PolicyNet | None:
        """The network kept under a name, if there is one."""
        found = {key.removeprefix(f"{name}."): value for key, value in self.state.items() if key.startswith(f"{name}.")}
        if not found:
            return None
        net = PolicyNet(quantiles_FQ)
        net.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in found.items()})
        return net

    def keep_network(self, name: str, net: PolicyNet, **arrays: NDArray[Any]) -> None:
        state = net.state_dict()
        self.keep(**{f"{name}.{key}": value.numpy().copy() for key, value in state.items()}, **arrays)


def _as_bitcode(units: Sequence[Unit], config: TrainConfig, context: TrainingContext) -> list[Unit]:
    """C source compiled once, so that each later reading is of bitcode; raises BadCorpus for bitcode that was compiled
    for size where speed is the goal."""
    folder = context.artefact("bitcode")
    found: list[Unit] = []
    for unit in units:
        if unit.path.suffix == ".c":
            path = folder / f"{unit.name}.bc"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(unit.read(AIMS[config.goal].level))
            unit = replace(unit, path=path)
        elif config.goal == "speed" and inspect_module(unit.read()).minsize:
            raise BadCorpus(
                f"{unit.name} was compiled for size (minsize); for speed compile it with -O3.", file=unit.name
            )
        found.append(unit)
    return found


def _stock(config: TrainConfig, parts: Mapping[str, list[Unit]], progress: _Progress) -> Corpus:
    """Compile training and validation as stock decides; a checkpoint holds what was compiled so far."""
    units = [*parts["train"], *parts["validation"]]
    done = len(progress.state.get("stock.text", ()))
    for start in range(done, len(units), KEPT_EVERY):
        batch = units[start : start + KEPT_EVERY]
        rolled = _roll(config, batch, lambda _: stock_decision, progress)
        rows = [one for unit, one in zip(batch, rolled, strict=True) if one is not None and unit.split == "train"]
        added = {
            "stock.text": np.array([-1 if rollout is None else rollout.cost for rollout in rolled]),
            "stock.features": np.concatenate([np.zeros((0, WIDTH), np.int64), *(one.features_SF for one in rows)]),
            "stock.decisions": np.concatenate([np.zeros(0, np.int64), *(one.stock_S for one in rows)]),
        }
        before = progress.state if start else {}
        progress.keep(**{name: np.concatenate([before.get(name, new[:0]), new]) for name, new in added.items()})
        progress.context.report(step=min(start + KEPT_EVERY, len(units)), total=len(units))
    if not len(progress.state["stock.features"]):
        raise BadCorpus("No call site of the training modules is the inliner's to decide.")
    text = progress.state["stock.text"]
    bad = {unit.name for unit, size in zip(units, text, strict=True) if size < 0}
    if bad:
        progress.context.logger.info("stock fails on %d modules, which are left out", len(bad))
    kept = {name: [unit for unit in part if unit.name not in bad] for name, part in parts.items()}
    stock: Sizes = {}
    for unit, size in zip(units, text, strict=True):
        if size >= 0:
            stock.setdefault(unit.program, {})[unit.name] = int(size)
    if not kept["train"] or not kept["validation"]:
        raise BadCorpus("Stock compiles no module of a split.")
    return Corpus(kept, stock, progress.state["stock.features"], progress.state["stock.decisions"])


def _fit(config: TrainConfig, corpus: Corpus, progress: _Progress) -> PolicyNet:
    quantiles_FQ = corpus_quantiles(corpus.features_NF)
    net = progress.network("clone", quantiles_FQ)
    if net is None:
        torch.manual_seed(config.seed)
        net = PolicyNet(quantiles_FQ)
        agreed = clone(net, corpus.features_NF, corpus.stock_N, config)
        progress.context.report(step=1, total=2, agreement_with_stock=agreed)
        progress.keep_network("clone", net)
    if config.method == "clone":
        return net
    if "imitate" in (config.method, config.start if config.method != "imitate" else ""):
        net = _imitate(config, corpus, net, progress)
    match config.method:
        case "evolution":
            return _evolve(config, corpus, net, progress)
        case "ppo":
            return _ppo(config, corpus, net, progress)
        case _:
            return net


def _imitate(config: TrainConfig, corpus: Corpus, start: PolicyNet, progress: _Progress) -> PolicyNet:
    quantiles_FQ = start.quantiles_FQ.numpy()
    if (kept := progress.network("imitate", quantiles_FQ)) is not None:
        return kept
    labels = _labels(config, corpus.learned(config), progress)
    best, best_saved = start, -np.inf
    for number, anchor in enumerate(config.anchors):
        progress.check()
        net = PolicyNet(quantiles_FQ)
        net.load_state_dict(start.state_dict())
        imitate(net, labels, corpus.features_NF, corpus.stock_N, anchor, config)
        saved = _validated(config, corpus, numpy_policy(net), progress)
        progress.context.report(step=number + 1, total=len(config.anchors), anchor=anchor, validation_saved=saved)
        if saved > best_saved:
            best, best_saved = net, saved
    progress.keep_network("imitate", best)
    return best


def _labels(config: TrainConfig, units: Sequence[Unit], progress: _Progress) -> Labels:
    """Labels of every module; a checkpoint holds those of the modules so far."""
    state = progress.state
    done = int(state["labels.done"].item()) if "labels.done" in state else 0
    found: list[Labels] = []
    if done:
        found = [Labels(state["labels.features"], state["labels.stock"], state["labels.worth"])]
    for number in range(done, len(units)):
        progress.check()
        found.append(_labels_of(config, units[number], number))
        if (number + 1) % KEPT_EVERY == 0 or number + 1 == len(units):
            found = [Labels.join(found)]
            progress.keep(
                **{
                    "labels.done": np.array([number + 1]),
                    "labels.features": found[0].features_NF,
                    "labels.stock": found[0].stock_N,
                    "labels.worth": found[0].worth_N,
                }
            )
            progress.context.report(step=number + 1, total=len(units), labels=len(found[0].worth_N))
    labels = Labels.join(found)
    if not len(labels.worth_N):
        raise BadCorpus("No decision of the training modules could be measured alone; add modules or label_runs.")
    return labels


def _labels_of(config: TrainConfig, unit: Unit, number: int) -> Labels:
    try:
        module = inspect_module(unit.read())
        return measure(module, config.label_runs, [config.seed, number])
    except (CompilerCrashed, CompilerRefused, LimitExceeded):
        return Labels(np.zeros((0, WIDTH), np.int64), np.zeros(0, np.int64), np.zeros(0))


def _evolve(config: TrainConfig, corpus: Corpus, net: PolicyNet, progress: _Progress) -> PolicyNet:
    """Evolution strategies; of the mean networks that validation saw, the best."""
    units = corpus.learned(config)
    values_P = progress.state.get("evolution.values", evolved(net))
    best_P = progress.state.get("evolution.best", values_P)
    first = int(progress.state["evolution.done"].item()) if "evolution.done" in progress.state else 0
    saved = progress.state.get("evolution.saved")
    best_saved = float(saved.item()) if saved is not None else _validated(config, corpus, numpy_policy(net), progress)
    every = max(1, config.generations // 5)
    for generation in range(first, config.generations):
        chosen = _drawn(config, units, generation)
        noise_KP = perturbations(config.pairs, len(values_P), [config.seed, generation])
        saved_K2 = np.zeros((config.pairs, 2))
        for pair in range(config.pairs):
            for side, sign in enumerate((1, -1)):
                set_evolved(net, values_P + np.float32(sign * config.sigma) * noise_KP[pair])
                saved_K2[pair, side] = _saved(config, corpus, chosen, numpy_policy(net), progress)
        values_P = evolution_step(values_P, noise_KP, saved_K2, config)
        set_evolved(net, values_P)
        figures = {"training_saved": float(saved_K2.mean())}
        if (generation + 1) % every == 0 or generation + 1 == config.generations:
            found = _validated(config, corpus, numpy_policy(net), progress)
            figures["validation_saved"] = found
            if found > best_saved:
                best_P, best_saved = values_P, found
        progress.keep(
            **{
                "evolution.values": values_P,
                "evolution.best": best_P,
                "evolution.saved": np.array([best_saved]),
                "evolution.done": np.array([generation + 1]),
            }
        )
        progress.context.report(step=generation + 1, total=config.generations, **figures)
    set_evolved(net, best_P)
    return net


def _ppo(config: TrainConfig, corpus: Corpus, net: PolicyNet, progress: _Progress) -> PolicyNet:
    """PPO; each module's reward is its size against a moving average of its own."""
    units = corpus.learned(config)
    quantiles_FQ = net.quantiles_FQ.numpy()
    best, best_saved = net, _validated(config, corpus, numpy_policy(net), progress)
    average = {unit.name: float(corpus.stock[unit.program][unit.name]) for unit in units}
    first = 0
    if (kept := progress.network("ppo", quantiles_FQ)) is not None:
        net, best = kept, progress.network("ppo_best", quantiles_FQ) or kept
        first, best_saved = int(progress.state["ppo_at"][0]), float(progress.state["ppo_at"][1])
        average = dict(zip(sorted(average), progress.state["ppo_average"].tolist(), strict=True))
    else:
        best = PolicyNet(quantiles_FQ)
        best.load_state_dict(net.state_dict())
    every = max(1, config.iterations // 5)
    for iteration in range(first, config.iterations):
        # Its moments begin anew in each iteration, so that a resumed training repeats it exactly.
        optimizer = torch.optim.Adam(net.parameters(), lr=config.ppo_learning_rate)
        policy = numpy_policy(net)
        rolled: list[tuple[Rollout, float]] = []
        for number, unit in enumerate(_drawn(config, units, iteration)):
            progress.check()
            random = np.random.default_rng([config.seed, iteration, number])
            rollout = progress.roll(unit.read(), sampled(policy, random))
            if rollout is None or not len(rollout.decisions_S):
                continue
            stock = max(1, corpus.stock[unit.program][unit.name])
            rolled.append((rollout, (average[unit.name] - rollout.cost) / stock))
            average[unit.name] += (1 - BASELINE_DECAY) * (rollout.cost - average[unit.name])
        if not rolled:
            continue
        rewards = np.array([reward for _, reward in rolled])
        spread = float(np.sqrt((rewards**2).mean())) or 1.0
        loss = ppo_step(
            net,
            optimizer,
            np.concatenate([rollout.features_SF for rollout, _ in rolled]),
            np.concatenate([rollout.decisions_S for rollout, _ in rolled]).astype(np.int64),
            np.concatenate([np.full(len(rollout.decisions_S), reward / spread) for rollout, reward in rolled]),
            config,
            iteration,
        )
        figures = {"reward": float(rewards.mean()), "loss": loss}
        if (iteration + 1) % every == 0 or iteration + 1 == config.iterations:
            found = _validated(config, corpus, numpy_policy(net), progress)
            figures["validation_saved"] = found
            if found > best_saved:
                best_saved = found
                best.load_state_dict(net.state_dict())
        progress.keep_network("ppo_best", best)
        arrays = {
            "ppo_at": np.array([iteration + 1, best_saved]),
            "ppo_average": np.array([average[k] for k in sorted(average)]),
        }
        progress.keep_network("ppo", net, **arrays)
        progress.context.report(step=iteration + 1, total=config.iterations, **figures)
    return best


def _drawn(config: TrainConfig, units: Sequence[Unit], number: int) -> list[Unit]:
    """The modules of a generation or iteration."""
    random = np.random.default_rng([config.seed, 7, number])
    return [units[index] for index in random.permutation(len(units))[: config.modules_per_step]]


def _roll(config: TrainConfig, units: Sequence[Unit], decide: Any, progress: _Progress) -> list[Rollout | None]:
    return roll_all(units, decide, progress.roll, threads=config.threads, watch=progress.check)


def _sizes_of(
    config: TrainConfig, units: Sequence[Unit], policy: Policy | None, progress: _Progress, stock: Sizes | None = None
) -> Sizes:
    decider = None if policy is None else greedy(policy)
    known = [unit for unit in units if stock is None or unit.name in stock.get(unit.program, {})]
    return sizes(known, _roll(config, known, lambda _: decider, progress), stock)


def _saved(config: TrainConfig, corpus: Corpus, units: Sequence[Unit], policy: Policy, progress: _Progress) -> float:
    """Share of the modules' stock text that the policy saves."""
    found = _sizes_of(config, units, policy, progress, corpus.stock)
    names = sorted(found)
    stock = {name: {module: corpus.stock[name][module] for module in found[name]} for name in names}
    return evaluate.saving(evaluate.totals(stock, names), evaluate.totals(found, names))


def _validated(config: TrainConfig, corpus: Corpus, policy: Policy, progress: _Progress) -> float:
    return _saved(config, corpus, corpus.parts["validation"], policy, progress)


def _beside(
    config: TrainConfig, champion: Bundle, test: Sequence[Unit], stock: Sizes, mine: Sizes, progress: _Progress
) -> Comparison:
    theirs = _sizes_of(config, test, load_policy(champion.folder), progress, stock)
    difference = evaluate.paired(stock, mine, theirs)
    return Comparison(
        champion=champion.manifest.version or 1, metric=evaluate.SAVED[config.goal], difference=difference
    )


def _card(config: TrainConfig, corpus: Corpus, metrics: Mapping[str, Metric]) -> str:
    rows = "\n".join(
        f"| {name} | {item.value:.3f} | {'' if item.low is None else f'{item.low:.3f} – {item.high:.3f}'} |"
        for name, item in metrics.items()
    )
    counts = ", ".join(
        f"{len({unit.program for unit in part})} programs ({len(part)} modules) for {name}"
        for name, part in corpus.parts.items()
    )
    return (
        f"# Inlining policy, method {config.method}\n\nLearned on {counts}; {len(corpus.stock_N)} call sites in "
        f"training. {evaluate.MEASURED[config.goal]} against stock clang's; above zero is better.\n\n"
        f"| | value | 95 % interval |\n|---|---|---|\n{rows}\n\n"
        f"Network {'-'.join(str(width) for width in HIDDEN)} on the quantiles of LLVM's {WIDTH} features; the default "
        f"decision (feature {STOCK + 1}) is not seen.\n"
    )


def main() -> None:
    run_from_shell("services.inlining.train", TrainConfig, __doc__, "a folder of .bc, .ll or .c files")


if __name__ == "__main__":
    main()
