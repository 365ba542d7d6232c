"""How often does the check `backdoor` alarm at a training that nobody poisoned? Trains small classifiers, each from
another seed on another draw of a real image set, and puts each to the check as it is.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from services.audits import backdoor
from services.audits.checking import Checking, Stop, go_on
from services.audits.image_sets import ImageSet
from services.audits.networks import ConvNet, embeddings_of, fit, right
from services.audits.schemas import FalseAlarmsConfig
from shared.auditing import Continuous, Examples, Kind, Subject
from shared.jobs.context import StopReason


def false_alarms(config: FalseAlarmsConfig, images: ImageSet, stop: Stop = go_on) -> list[dict[str, Any]]:
    """A row for each seed: the network's accuracy, the check's verdict and summary, and the share that STRIP names."""
    rows: list[dict[str, Any]] = []
    for seed in range(config.seed, config.seed + config.seeds):
        part = images.resized(config.size).taken(config.train_images, config.test_images, seed)
        torch.manual_seed(seed)
        network = ConvNet(
            channels=part.channels,
            size=part.size,
            classes=part.classes,
            width=config.width,
            depth=config.depth,
            norm="instance",
        )
        fit(
            network,
            part.image_NCHW,
            part.label_N,
            epochs=config.epochs,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=seed,
            stop=stop,
        )
        subject = cast(Subject, TrainedClassifier(network, part))
        check = backdoor.check(subject, None, "quick", Checking(_Alone(stop), seed, lambda share: None))
        strip = [item.value for item in check.evidence if item.name.endswith("(STRIP)")]
        rows.append(
            {
                "seed": seed,
                "train": float(right(network, part.image_NCHW, part.label_N).mean()),
                "accuracy": float(right(network, part.test_image_NCHW, part.test_label_N).mean()),
                "verdict": check.verdict,
                "summary": check.summary,
                "strip": strip[0] if strip else None,
            }
        )
    return rows


class TrainedClassifier:
    """What the check asks of a subject, of a network and its images: no more of `Subject` than that."""

    kind: Kind = "classification"

    def __init__(self, network: ConvNet, images: ImageSet) -> None:
        self._network, self._images = network, images
        self.classes = tuple(str(kind) for kind in range(images.classes))
        self.train = _examples(images.image_NCHW, images.label_N)
        self.held_out = _examples(images.test_image_NCHW, images.test_label_N)

    def module(self) -> ConvNet:
        return self._network

    def batches(self, examples: Examples, size: int) -> Sequence[Tensor]:
        return torch.from_numpy(examples.inputs).split(size)

    def features(self, module: ConvNet, image_NCHW: Tensor) -> Tensor:
        return embeddings_of(module, image_NCHW)

    def continuous(self, examples: Examples) -> Continuous:
        size = self._images.size
        return Continuous(
            torch.from_numpy(examples.inputs), 0.0, 1.0, (1, size, size), lambda module, values: module(values)
        )


def _examples(image_NCHW: Tensor, label_N: Tensor) -> Examples:
    return Examples(image_NCHW.numpy(), label_N.numpy(), [str(place) for place in range(len(label_N))])


@dataclass(frozen=True)
class _Alone:
    """The surroundings of a check that runs by itself."""

    stop: Stop

    @property
    def logger(self) -> logging.Logger:
        return logging.getLogger(__name__)

    def should_stop(self) -> StopReason | None:
        self.stop()
        return None

    def artefact(self, name: str) -> Path:
        raise NotImplementedError("The check leaves no files.")
