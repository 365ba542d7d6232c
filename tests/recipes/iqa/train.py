"""A quick recipe in the place of the real one, so that drills can kill everything around it many times."""

import time

import numpy as np

from services.iqa.schemas import TrainConfig
from shared.jobs.context import JobStopped
from shared.testing import toy_bundle

__all__ = ["TrainConfig", "train"]
EPOCH_SECONDS = 0.3


def train(config, data, context):
    total = np.zeros(4, np.float32)
    first = 0
    if (state := context.restore()) is not None:
        first, total = int(state["epoch"].item()), state["total"]
    for epoch in range(first, config.epochs):
        ends = time.monotonic() + EPOCH_SECONDS
        while time.monotonic() < ends:
            time.sleep(0.01)
            if (reason := context.should_stop()) is not None:
                raise JobStopped(reason)
        total = total + np.random.default_rng([config.seed, epoch]).random(4, np.float32)
        context.checkpoint({"epoch": np.array([epoch + 1]), "total": total})
        context.report(step=epoch + 1, total=config.epochs, loss=1 / (epoch + 1))
    return toy_bundle(
        context.artefact("bundle"), name="iqa", factor=float(total.sum()), padding=config.batch_size << 10
    )
