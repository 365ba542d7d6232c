"""A recipe for tests: adds random numbers, slowly if asked, and can go wrong in every way that recipes do."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from shared.bundles import Comparison, Metric
from shared.jobs.config import DistributedConfig
from shared.jobs.context import JobStopped
from shared.problems import Unprocessable
from shared.testing import toy_bundle


class TrainConfig(DistributedConfig):
    epochs: int = Field(default=3, ge=1)
    seconds: float = Field(default=0.0, ge=0, description="Of an epoch.")
    fail: str = Field(default="", description="memory, disk, diverged, bug, kill or deaf")
    quality: float = 0.0  # beside the champion
    odd: str = Field(default="", description="a number to report beside the loss, such as nan")


def add_up(config, context, seconds, *, deaf=False, after=lambda epoch: None):
    """A sum of random numbers (4,), an epoch's at a time: resumable, and the same for the same seed."""
    total = np.zeros(4, np.float32)
    first = 0
    if (state := context.restore()) is not None:
        first, total = int(state["epoch"].item()), state["total"]
    for epoch in range(first, config.epochs):
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(0.01)
            if (reason := context.should_stop()) is not None and not deaf:
                raise JobStopped(reason)
        total = total + np.random.default_rng([config.seed, epoch]).random(4, np.float32)
        context.checkpoint({"epoch": np.array([epoch + 1]), "total": total})
        odd = {"odd": float(config.odd)} if getattr(config, "odd", "") else {}
        context.report(step=epoch + 1, total=config.epochs, loss=1 / (epoch + 1), **odd)
        after(epoch)
    return total


def train(config, data, context) -> Path:
    def after(epoch):
        context.logger.info("epoch %d done", epoch + 1)
        if epoch == 1:
            _fail(config.fail)

    total = add_up(config, context, config.seconds, deaf=config.fail == "deaf", after=after)
    champion = context.champion()
    version = int(champion.name) if champion is not None else 1
    difference = Metric(value=config.quality, low=config.quality - 0.1, high=config.quality + 0.1)
    return toy_bundle(
        context.artefact("bundle"),
        factor=float(total.sum()),
        comparison=Comparison(champion=version, metric="accuracy", difference=difference),
        config=config.model_dump(),
    )


def compare(candidate, champion, data, context):
    difference = Metric(value=0.2, low=0.1, high=0.3)
    return Comparison(champion=int(champion.name), metric="accuracy", difference=difference)


def _fail(how):
    match how:
        case "memory":
            raise MemoryError
        case "disk":
            raise OSError(28, "No space left on device")
        case "diverged":
            raise Unprocessable("The loss is not finite at step 2.", step=2)
        case "gpu":
            torch.zeros(1, device="cuda")
        case "bug":
            raise KeyError("secret /path")
        case "kill":
            os.kill(os.getpid(), 9)
        case _:
            pass
