"""The job kind `tune`: searches decisions for a module of an uploaded data set and leaves a replay file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.inlining.datasets import module_bytes, modules
from services.inlining.engine import inspect_module
from services.inlining.policy import Policy, load_policy
from services.inlining.sandbox import Limits
from services.inlining.schemas import TuneConfig
from services.inlining.tune import Search, tune
from shared.bundles import Bundle
from shared.jobs.context import JobStopped, StopReason, TrainingContext
from shared.problems import Unprocessable

LIMITS = Limits(cpu_seconds=300, seconds=600.0)
CHECKPOINT_EVERY = 10  # compiles


def tune_module(
    config: TuneConfig, data: Path, bundle: Bundle, context: TrainingContext
) -> tuple[Path, dict[str, Any]]:
    """`replay.txt`, for stock clang, and how much smaller it makes the module."""
    path = _chosen(data, config.module)
    module = inspect_module(module_bytes(path, data, config.flags), limits=LIMITS)
    policy = load_policy(bundle.folder)
    state = context.restore()
    search = Search.from_arrays(state) if state is not None else None
    kept = 0
    stopped: StopReason | None = None

    def after(now: Search) -> bool:
        nonlocal kept, stopped
        saved = 100 * (1 - now.best_text / now.stock_text) if now.stock_text else 0.0
        step = min(now.spent, config.evaluations)
        context.report(
            step=step, total=config.evaluations, text=now.best_text, text_stock=now.stock_text, saved_percent=saved
        )
        if now.spent >= kept + CHECKPOINT_EVERY:
            kept = now.spent
            context.checkpoint(now.as_arrays())
        stopped = context.should_stop()
        if stopped is not None:
            context.checkpoint(now.as_arrays())
        return stopped is None

    tuned = tune(
        module,
        _Deciding(policy),
        evaluations=config.evaluations,
        seed=config.seed,
        limits=LIMITS,
        resume=search,
        after=after,
    )
    if stopped is not None:
        raise JobStopped(stopped)
    replay = context.artefact("replay.txt")
    replay.write_text(tuned.replay)
    return replay, {
        "module": path.relative_to(data).as_posix(),
        "text_stock": tuned.stock_text,
        "text_tuned": tuned.text,
        "sites": len(tuned.decisions),
        "compiles": tuned.compiles,
    }


class _Deciding:
    """The bundle's policy as `advise` asks it."""

    def __init__(self, policy: Policy) -> None:
        self.threshold = policy.threshold
        self._policy = policy

    def probability(self, features_F: Any) -> float:
        return float(self._policy.probabilities(features_F[None])[0])


def _chosen(data: Path, name: str) -> Path:
    found = modules(data)
    if name:
        chosen = [path for path in found if path.relative_to(data).as_posix() == name]
        if not chosen:
            raise Unprocessable(f"The data set has no module {name[:100]!r}; it has {_listed(data, found)}.")
        return chosen[0]
    if len(found) != 1:
        raise Unprocessable(f"Say which module (`module`): the data set has {_listed(data, found)}.")
    return found[0]


def _listed(data: Path, found: list[Path]) -> str:
    names = [path.relative_to(data).as_posix() for path in found]
    return ", ".join(names[:10]) + (" and others" if len(names) > 10 else "") if names else "no .c, .bc or .ll file"


BATCHES: Mapping[str, Any] = {"tune": (TuneConfig, tune_module)}
