"""What a training recipe is given besides its config and data, and the implementation for a plain shell."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from shared.problems import FourfoldError


class StopReason(StrEnum):
    """Why a recipe is asked to end early."""

    USER = "user"  # cancelled: keep nothing more
    SHUTDOWN = "shutdown"  # the worker goes away: someone resumes from the last checkpoint
    TIME_LIMIT = "time limit"  # the job has had its time
    LOST = "lost"  # the job belongs to another worker by now


class JobStopped(FourfoldError):
    """A recipe raises this when it was asked to stop; `reason` says by whom."""

    code = "job-stopped"
    title = "The job was stopped"
    advice = "Nothing, if you cancelled it. Otherwise raise FOURFOLD_JOB_TIME_LIMIT_SECONDS and submit it again."

    def __init__(self, reason: StopReason) -> None:
        super().__init__(f"Stopped: {reason}.")
        self.reason = reason


class Stoppable(Protocol):
    """What can ask for an early end."""

    def should_stop(self) -> StopReason | None: ...


def check_stop(asked: Stoppable) -> None:
    """Raise JobStopped where an early end is asked for; cheap: call it every step."""
    if (reason := asked.should_stop()) is not None:
        raise JobStopped(reason)


class TrainingContext(Protocol):
    """The recipe's only door to the outside. A recipe is a plain function of (config, data, context)."""

    logger: logging.Logger

    def report(self, *, step: int, total: int, **metrics: float) -> None:
        """Record progress: `step` of `total` (epochs) and the metrics' values at that step."""
        ...

    def checkpoint(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Keep `state` (named arrays of any shape) as the newest resumable point, atomically."""
        ...

    def restore(self) -> dict[str, NDArray[Any]] | None:
        """The newest checkpoint, or None on a fresh start."""
        ...

    def should_stop(self) -> StopReason | None:
        """Cheap; ask it every step."""
        ...

    def artefact(self, name: str) -> Path:
        """A local path for a named output file or folder; gone after the job, unless the recipe returns it."""
        ...

    def champion(self) -> Path | None:
        """The verified bundle that is served now, to compare with on the held-out split; None if there is none."""
        ...


class LocalContext:
    """A TrainingContext that keeps everything in one folder; used by `python -m services.<domain>.train`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.logger = logging.getLogger("fourfold.training")
        self.points: list[dict[str, float]] = []

    def report(self, *, step: int, total: int, **metrics: float) -> None:
        self.points.append({"step": step, **metrics})
        self.logger.info("%d/%d %s", step, total, " ".join(f"{name}={value:.4g}" for name, value in metrics.items()))

    def checkpoint(self, state: Mapping[str, NDArray[Any]]) -> None:
        draft = self.folder / "checkpoint.safetensors.new"
        save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, draft)
        draft.replace(self.folder / "checkpoint.safetensors")

    def restore(self) -> dict[str, NDArray[Any]] | None:
        path = self.folder / "checkpoint.safetensors"
        return load_file(path) if path.exists() else None

    def should_stop(self) -> StopReason | None:
        return None

    def artefact(self, name: str) -> Path:
        path = self.folder / "artefacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def champion(self) -> Path | None:
        return None
