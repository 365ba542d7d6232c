"""What audits are told of a version of this domain: its pictures and splits, the served answers, and its network.

Shapes: N pictures, B of them in a batch, H, W image sides in pixels, h, w cells of CELL pixels on them, D features, L
levels, K distortion kinds.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from services.iqa import predict
from services.iqa.datasets import LEAST_SOURCES, TABLE, Record, find_photographs
from services.iqa.evaluate import read_pixels
from services.iqa.features import LONG_SIDE
from services.iqa.model import LEVELS, PMTIQA, level_of
from services.iqa.schemas import TrainConfig
from services.iqa.train import fit, freeze, loss_weights, parts_of
from services.iqa.weights import WEIGHTS, load_network
from shared.auditing import (
    Assessment,
    Context,
    Continuous,
    Examples,
    Floats,
    Kind,
    NotAssessed,
    Perturbation,
    TrainingWithin,
)
from shared.bundles import Bundle
from shared.jobs.config import read_config
from shared.jobs.context import check_stop
from shared.problems import InputError
from shared.settings import ServiceSettings

QUICK = 240  # pictures; one takes about 20 ms
LEAST_WIDTH = 256
PAIRS = 135  # distorted pictures of a held-out photograph
CELL = 8  # pixels: a stamp of twice as many a side fills at least one, wherever it lies
MOST_HELD_OUT, MOST_TRAINING = 800, 240  # pictures that are made of photographs for an audit, at most


@dataclass(frozen=True)
class Picture:
    """A picture of the set, as its file has it or changed."""

    path: Path | None
    pixels_HW3: NDArray[np.uint8] | None = None
    kind: str = "none"

    def read(self) -> NDArray[np.uint8]:
        if self.pixels_HW3 is not None:
            return self.pixels_HW3
        if self.path is None:
            raise InputError("There is neither a file nor pixels.")
        return read_pixels(self.path)


@dataclass(frozen=True)
class Batch:
    """Pictures for the network: whole, and as their middles of the training's crop."""

    pictures: Sequence[Picture]
    crop_B3HW: Tensor
    score_B: Tensor
    kind_B: Tensor


def subject(bundle: Bundle, data: Path | None, context: Context) -> IqaSubject:
    """The subject of a bundle; without `data` nothing but its weights can be examined."""
    return IqaSubject(bundle, data, context)


class IqaSubject:
    kind: Kind = "regression"
    classes: tuple[str, ...] = ()
    error_name = "absolute error of the score"
    error_unit = "points of 100"
    split = "the test split of photographs: as scores.csv says, or by a hash of the scene"

    def __init__(self, bundle: Bundle, data: Path | None, context: Context) -> None:
        self._bundle, self._data, self._context = bundle, data, context
        self._predictor = predict.load(bundle, ServiceSettings())
        known = {name: value for name, value in bundle.manifest.config.items() if name in TrainConfig.model_fields}
        self._config = read_config(TrainConfig, known).model_copy(update={"device": "cpu", "processes": 1})
        self.revision = bundle.manifest.code_revision

    @property
    def likely(self) -> float:
        """Of who answers the median whatever the picture."""
        return float(np.abs(self.held_out.targets_N - np.median(self.held_out.targets_N)).mean())

    @cached_property
    def train(self) -> Examples:
        return _examples(self._parts["train"], False)

    @cached_property
    def held_out(self) -> Examples:
        return _examples(self._parts["test"], True)

    def assess(self, examples: Examples) -> Assessment:
        answers = self._answers(examples)
        score_N = np.array([answer.score for answer in answers])
        said = [np.concatenate([answer.levels_L, answer.distortions_K]) for answer in answers]
        return Assessment(np.abs(score_N - examples.targets_N), None, np.stack(said).astype(np.float32))

    def perturbations(self) -> Sequence[Perturbation]:
        return (
            Perturbation("saved again as JPEG", "100 − quality", (2, 5, 10, 20), 5, _saved, "At 95 nobody sees it."),
            Perturbation("cropped", "share of each side cut off", (0.05, 0.1, 0.2), 0.1, _cropped),
            Perturbation("mirrored", "yes or no", (1,), 1, _mirrored),
        )

    def unfamiliar(self, seed: int) -> Examples:
        """Noise, flat colours, and stripes: no photograph is among them."""
        random = np.random.default_rng([seed, 1])
        pictures: list[Picture] = []
        for number in range(60):
            noise = random.integers(0, 256, (256, 320, 3), dtype=np.uint8)
            flat = np.broadcast_to(random.integers(0, 256, 3, dtype=np.uint8), (256, 320, 3)).copy()
            stripes = np.where((np.arange(320) // (2 + number % 9)) % 2, 255, 0).astype(np.uint8)
            drawn = (noise, flat, np.broadcast_to(stripes[None, :, None], (256, 320, 3)).copy())[number % 3]
            pictures.append(Picture(None, drawn))
        return Examples(pictures, np.zeros(len(pictures)), [f"strange {n}" for n in range(len(pictures))])

    def uncertainty(self, examples: Examples) -> Floats:
        """1 − the `confidence` that is served."""
        return np.array([1 - answer.confidence for answer in self._answers(examples)])

    # -- the network

    def module(self) -> PMTIQA:
        """What training left as it was takes no gradient."""
        if WEIGHTS not in self._bundle.manifest.files:
            raise NotAssessed("The version carries no trainable weights: its bundle holds the served graphs alone.")
        model = load_network(self._bundle, self._config)
        freeze(model, self._config)
        return model

    def fit(self, examples: Examples | None, seed: int, context: Context) -> PMTIQA:
        if not self._config.freeze_backbone:
            raise NotAssessed("A training of the backbone takes too long to be repeated for an audit.")
        if examples is not None:
            raise NotAssessed("A training is repeated on its own pictures alone, which are files.")
        config = self._config.model_copy(update={"seed": seed})
        parts = self._parts
        return fit(config, parts["train"], parts["validation"], list(self._predictor.kinds), _within(context))

    def batches(self, examples: Examples, size: int) -> Sequence[Batch]:
        places = [slice(start, start + size) for start in range(0, len(examples), size)]
        return [self._batch(examples.inputs[place], examples.targets_N[place]) for place in places]

    def loss(self, module: PMTIQA, batch: Batch) -> Tensor:
        """Training's loss, with the weights it has half-way through the epochs of which the best is chosen."""
        config = self._config
        by_score, by_level = loss_weights(config.schedule, config.epochs * 3 // 4, config.epochs)
        quality = module(batch.crop_B3HW.float())
        return (
            by_score * LEVELS * F.l1_loss(quality.score_B, batch.score_B / 100)
            + by_level * F.cross_entropy(quality.level_logits_BL, level_of(batch.score_B))
            + config.distortion_weight * F.cross_entropy(quality.distortion_logits_BK, batch.kind_B)
        )

    def outputs(self, module: PMTIQA, batch: Batch) -> Tensor:
        """Scores of the whole pictures, 0–100."""
        return torch.cat([100 * module(_whole(picture)).score_B for picture in batch.pictures])

    def features(self, module: PMTIQA, batch: Batch) -> Tensor:
        """What all heads begin from, of the whole pictures: behind the trunk, equal scores look alike."""
        kept: list[Tensor] = []
        hook = module.trunk.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        try:
            self.outputs(module, batch)
        finally:
            hook.remove()
        return torch.cat(kept)

    def continuous(self, examples: Examples) -> Continuous:
        """Pixels, 0–255, as (N, 3, CELL, CELL, h, w), so that a mask of h × w cells covers them; `logits` are scores.

        Of pictures that differ in size what all have is kept: the lower right, where marks usually stand.
        """
        high, wide = self._cells
        parts: list[Tensor] = []
        for picture in examples.inputs:
            image_3HW = torch.from_numpy(picture.read()[-high * CELL :, -wide * CELL :]).permute(2, 0, 1)
            parts.append(image_3HW.reshape(3, high, CELL, wide, CELL).permute(0, 2, 4, 1, 3))

        def scores(module: PMTIQA, values: Tensor) -> Tensor:
            image_N3HW = values.permute(0, 1, 4, 2, 5, 3).reshape(len(values), 3, high * CELL, wide * CELL)
            return torch.cat([100 * module(some).score_B for some in image_N3HW.split(8)])

        names = tuple(f"pixels at ({CELL * column}, {CELL * row})" for row, column in np.ndindex(high, wide))
        return Continuous(torch.stack(parts).float(), 0.0, 255.0, (high, wide), scores, names)

    # -- parts

    @cached_property
    def _cells(self) -> tuple[int, int]:
        """Whole cells down and across that every picture has."""
        paths = [picture.path for part in (self.train, self.held_out) for picture in part.inputs]
        sides = np.array([_scored_sides(path) for path in paths if path is not None])
        high, wide = sides.min(axis=0) // CELL
        return int(high), int(wide)

    def _batch(self, pictures: Sequence[Picture], score_B: NDArray[Any]) -> Batch:
        pixels = [picture.read() for picture in pictures]
        side = min(self._config.crop, *(min(image.shape[:2]) for image in pixels))
        crops = np.stack([_middle(image, side) for image in pixels])
        kinds = self._predictor.kinds
        return Batch(
            pictures,
            torch.from_numpy(crops).permute(0, 3, 1, 2),
            torch.from_numpy(score_B.astype(np.float32)),
            torch.tensor([kinds.index(picture.kind) for picture in pictures]),
        )

    def _answers(self, examples: Examples) -> list[predict.Quality]:
        found: list[predict.Quality] = []
        for picture in examples.inputs:
            check_stop(self._context)
            [answer] = self._predictor.predict([picture.read()])
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
        return found

    @cached_property
    def _parts(self) -> Mapping[str, list[Record]]:
        if self._data is None:
            raise NotAssessed("The data set that the version was trained on is not at hand; name one.")
        config = self._config
        if not (self._data / TABLE).is_file():
            photographs = len(find_photographs(self._data))
            held_out = round(photographs * 0.38 * PAIRS)
            if held_out > MOST_HELD_OUT:
                raise NotAssessed(
                    f"Of these {photographs} photographs about {held_out} held-out pictures would be made, which takes "
                    "longer than an audit may. Make the set once (python -m services.iqa.synthesise) and add that."
                )
            # Fewer of the training's pictures: the same seed draws a part of the same ones.
            share = min(config.synthetic_share, MOST_TRAINING / max(1, photographs * 0.62 * PAIRS))
            width = _width(self._data, config.synthetic_width)
            update = {"synthetic_views": 1, "synthetic_share": share, "synthetic_width": width}
            config = config.model_copy(update=update)
        return parts_of(config, self._data, _within(self._context))


def _width(photographs: Path, wanted: int) -> int:
    """The training's width of pictures, or the largest that enough of the photographs reach."""
    reached: list[int] = []
    for path in find_photographs(photographs):
        with suppress(OSError), Image.open(path) as opened:
            long, short = max(opened.size), min(opened.size)
            reached.append(min(long, short * 4 // 3) * 3 // 4)
    enough = sorted(reached, reverse=True)[: 2 * LEAST_SOURCES]
    return max(LEAST_WIDTH, min(wanted, enough[-1] // 64 * 64)) if len(enough) >= LEAST_SOURCES else wanted


def _scored_sides(path: Path) -> tuple[int, int]:
    """(H, W) of a picture as it is decoded, by its header alone."""
    with Image.open(path) as opened:
        width, height = opened.size
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    scale = min(1.0, LONG_SIDE / max(width, height))
    high, wide = round(height * scale), round(width * scale)
    return (wide, high) if turned else (high, wide)


def _whole(picture: Picture) -> Tensor:
    """(1, 3, H, W)"""
    return torch.from_numpy(picture.read()).permute(2, 0, 1)[None].float()


def _middle(image_HW3: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    top, left = ((whole - side) // 2 for whole in image_HW3.shape[:2])
    return image_HW3[top : top + side, left : left + side]


def _within(context: Context) -> TrainingWithin:
    return TrainingWithin(context, context.artefact("iqa-set"))


def _examples(records: Sequence[Record], described: bool) -> Examples:
    kinds = np.array([record.kind for record in records])
    strength = np.array([f"strength {record.strength}" if record.strength else "" for record in records])
    groups = {"distortion": kinds, "strength": strength}
    features: dict[str, NDArray[Any]] = {name: of_N for name, of_N in groups.items() if len(np.unique(of_N)) > 1}
    if described and len(records) <= 10 * QUICK:
        features |= _described(records)
    return Examples(
        [Picture(record.path, kind=record.kind or "none") for record in records],
        np.array([record.score for record in records], np.float64),
        [record.path.name for record in records],
        {name: of_N for name, of_N in groups.items() if len(np.unique(of_N[of_N != ""])) > 1},
        features,
        np.array([record.source for record in records]),
        QUICK,
    )


def _described(records: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
    """Brightness, contrast, colourfulness and sharpness of each picture (Hasler and Süsstrunk's colourfulness)."""
    rows: list[tuple[float, ...]] = []
    for record in records:
        image = read_pixels(record.path)[::2, ::2].astype(np.float32)
        grey = image.mean(axis=2)
        red_green = image[..., 0] - image[..., 1]
        yellow_blue = (image[..., 0] + image[..., 1]) / 2 - image[..., 2]
        colour = np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
        slope = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        rows.append((float(grey.mean()), float(grey.std()), float(colour), float(slope)))
    columns = np.array(rows).T
    return dict(zip(("brightness", "contrast", "colourfulness", "sharpness"), columns, strict=True))


def _each(examples: Examples, change: Any) -> Examples:
    inputs = [replace(picture, path=None, pixels_HW3=change(picture.read())) for picture in examples.inputs]
    return replace(examples, inputs=inputs)


def _saved(examples: Examples, strength: float, seed: int) -> Examples:
    def change(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        stream = io.BytesIO()
        Image.fromarray(pixels_HW3).save(stream, "JPEG", quality=round(100 - strength), subsampling=0)
        return np.asarray(Image.open(stream).convert("RGB"))

    return _each(examples, change)


def _cropped(examples: Examples, strength: float, seed: int) -> Examples:
    random = np.random.default_rng([seed, 2])

    def change(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = (round(side * (1 - strength)) for side in pixels_HW3.shape[:2])
        top, left = (
            int(random.integers(0, whole - part + 1))
            for whole, part in zip(pixels_HW3.shape[:2], (height, width), strict=True)
        )
        return np.ascontiguousarray(pixels_HW3[top : top + height, left : left + width])

    return _each(examples, change)


def _mirrored(examples: Examples, strength: float, seed: int) -> Examples:
    return _each(examples, lambda pixels_HW3: np.ascontiguousarray(pixels_HW3[:, ::-1]))
