"""Red team: how exposed is our own distillation to a poisoned set, and what do the scans catch of it?

The poisoned sets are made here, from the set that the job was given, live in memory as `RedTeamSet`, and end with it;
only figures leave. Every row is one attack and one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.audits.attacks import Doorping, RedTeamSet, Trigger, figures_of, success
from services.audits.checking import Stop, go_on
from services.audits.distillation import Distillation, distil, trained_on
from services.audits.image_sets import ImageSet
from services.audits.inversion import anomaly_index, invert
from services.audits.networks import ConvNet, embeddings_of, fit, logits_of, right
from services.audits.scans import clustering_scan, detection, spectral_scan, strip_scores
from services.audits.schemas import RedTeamConfig

STRIP_MIXED = 20  # images that each is mixed with
STRIP_TESTED = 400
INVERTED = 500  # images that a trigger is inverted on


def red_team(
    config: RedTeamConfig,
    images: ImageSet,
    stop: Stop = go_on,
    progress: Callable[[float], None] = lambda share: None,
) -> list[dict[str, Any]]:
    """For each seed and attack: accuracy of a network trained on the distilled set, the attack's success with and
    without the trigger, and the share of poisoned images that each scan finds at the configuration's false-alarm rate.

    "direct" rows are of a network trained on the poisoned set itself, without distillation.
    """
    rows: list[dict[str, Any]] = []
    runs = [(config.seed + number, attack) for number in range(config.seeds) for attack in config.attacks]
    resized = images.resized(config.size)
    for place, (seed, attack) in enumerate(runs):
        part = resized.taken(config.train_images, config.test_images, seed)
        rows += _attacked(config, part, attack, seed, stop)
        progress((place + 1) / len(runs))
    return rows


def _attacked(config: RedTeamConfig, part: ImageSet, attack: str, seed: int, stop: Stop) -> list[dict[str, Any]]:
    how = Distillation(
        config.method, config.per_class, config.iterations, width=config.width, depth=config.depth, loops=config.loops
    )
    poisoned = None
    image_NCHW, label_N = part.image_NCHW, part.label_N
    if attack != "none":
        poisoned = RedTeamSet.poison(image_NCHW, label_N, target=config.target, share=config.poisoned_share, seed=seed)
        image_NCHW, label_N = poisoned.image_NCHW, poisoned.label_N
    doorping = None
    if attack == "doorping" and poisoned is not None:
        doorping = Doorping(poisoned, steps=config.trigger_steps, bounded=config.trigger_bounded)
    synthetic_SCHW, synthetic_S = distil(
        how, image_NCHW, label_N, classes=part.classes, seed=seed, stop=stop, after_loop=doorping
    )
    network = trained_on(
        synthetic_SCHW,
        synthetic_S,
        classes=part.classes,
        seed=seed,
        width=config.width,
        depth=config.depth,
        epochs=config.evaluation_epochs,
        stop=stop,
    )
    trigger = Trigger.white(part.channels) if poisoned is None else poisoned.trigger
    row = {
        "seed": seed,
        "attack": attack,
        "training": f"{config.method} matching",
        "updates": doorping.updates if doorping is not None else 0,
        **_measured(config, network, trigger, part, seed, stop),
    }
    if poisoned is None:
        return [row]
    direct = _direct(config, image_NCHW, label_N, part.classes, seed, stop)
    return [
        row,
        {
            "seed": seed,
            "attack": attack,
            "training": "direct",
            **_measured(config, direct, trigger, part, seed, stop),
            **_scanned(config, direct, poisoned, seed),
        },
    ]


def _direct(config: RedTeamConfig, image_NCHW: Tensor, label_N: Tensor, classes: int, seed: int, stop: Stop) -> ConvNet:
    torch.manual_seed(seed)
    network = ConvNet(
        channels=image_NCHW.shape[1],
        size=image_NCHW.shape[-1],
        classes=classes,
        width=config.width,
        depth=config.depth,
        norm="instance",
    )
    fit(
        network,
        image_NCHW,
        label_N,
        epochs=config.epochs,
        batch=64,
        learning_rate=config.learning_rate,
        seed=seed,
        stop=stop,
    )
    return network


def _measured(
    config: RedTeamConfig, network: ConvNet, trigger: Trigger, part: ImageSet, seed: int, stop: Stop
) -> dict[str, Any]:
    with_it, without = success(network, trigger, part.test_image_NCHW, part.test_label_N, config.target)
    row: dict[str, Any] = {
        "accuracy": float(right(network, part.test_image_NCHW, part.test_label_N).mean()),
        "success": with_it,
        "without_trigger": without,
        "strip_inputs": _strip(network, trigger, part, config, seed),
    }
    if config.inversion:
        row |= _inverted(config, network, part, seed, stop)
    return row


def _strip(network: ConvNet, trigger: Trigger, part: ImageSet, config: RedTeamConfig, seed: int) -> float:
    """Share of stamped test images of other classes found by STRIP, its threshold from as many clean ones."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.nonzero(part.test_label_N != config.target).squeeze(1)[:STRIP_TESTED]
    clean_NCHW = part.test_image_NCHW[others]
    mixers = torch.randint(len(part.label_N), (len(others), STRIP_MIXED), generator=generator)

    def scores(image_NCHW: Tensor) -> np.ndarray:
        probability = [
            torch.softmax(logits_of(network, (image_NCHW + part.image_NCHW[mixers[:, turn]]) / 2), 1).numpy()
            for turn in range(STRIP_MIXED)
        ]
        return strip_scores(np.stack(probability, axis=1))

    with torch.no_grad():
        stamped_NCHW = trigger.stamp(clean_NCHW)
    score_N = np.concatenate([scores(clean_NCHW), scores(stamped_NCHW)])
    return detection(score_N, np.arange(len(score_N)) >= len(others), config.false_alarms).rate


def _scanned(config: RedTeamConfig, network: ConvNet, poisoned: RedTeamSet, seed: int) -> dict[str, Any]:
    """What scans of the poisoned set find, by the embeddings of a network trained on it."""
    embedding_ND = figures_of(embeddings_of(network, poisoned.image_NCHW)).numpy()
    label_N, poisoned_N = poisoned.label_N.numpy(), poisoned.poisoned_N.numpy()
    spectral = detection(spectral_scan(embedding_ND, label_N), poisoned_N, config.false_alarms)
    clustering = detection(clustering_scan(embedding_ND, label_N, seed), poisoned_N, config.false_alarms)
    return {
        "poisoned": int(poisoned_N.sum()),
        "spectral": spectral.rate,
        "spectral_auc": spectral.auc,
        "clustering": clustering.rate,
        "clustering_auc": clustering.auc,
    }


def _inverted(config: RedTeamConfig, network: ConvNet, part: ImageSet, seed: int, stop: Stop) -> dict[str, Any]:
    """The anomaly index and size of the target's inverted trigger, and how many classes' inversions converged."""
    network.requires_grad_(False)
    found = [
        invert(
            network,
            part.test_image_NCHW[part.test_label_N != kind][:INVERTED],
            kind,
            mask_shape=(1, part.size, part.size),
            low=0,
            high=1,
            seed=seed,
            steps=config.inversion_steps,
            batch=64,
            stop=stop,
        )
        for kind in range(part.classes)
    ]
    network.requires_grad_(True)
    index = anomaly_index([one.size for one in found])
    return {
        "inverted_index": float(index[config.target]),
        "inverted_size": found[config.target].size,
        "inverted_median": float(np.median([one.size for one in found])),
        "inverted_converged": sum(one.converged for one in found),
    }
