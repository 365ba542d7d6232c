"""The wire contract of image quality: what is asked and answered, and the training configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from shared.jobs.config import DistributedConfig


class TrainConfig(DistributedConfig):
    """How the network is trained."""

    backbone: Literal["efficientnet-lite0", "resnet50"] = "efficientnet-lite0"
    weights: str | None = Field(default=None, description="ImageNet weights file; the Lite0 package's own if unset.")
    pretrained: bool = Field(default=True, description="Start from ImageNet weights; False is the control.")
    freeze_backbone: bool = Field(default=False, description="Train the heads only; a floor.")
    multi_scale: bool = Field(default=True, description="Use all four scales, or the last only.")
    schedule: Literal["progressive", "fixed", "regression"] = Field(
        default="progressive",
        description="Weights of score and level: from level to score, equal throughout, or the score alone.",
    )
    frozen_blocks: int = Field(
        default=3, ge=0, le=100, description="Blocks that stay as they are, with the stem; 0 trains all."
    )
    epochs: int = Field(default=12, ge=1, le=500)
    images_per_epoch: int | None = Field(
        default=None, ge=1, description="A fresh random subset an epoch; all if unset."
    )
    batch_size: int = Field(default=24, ge=2, le=512)
    validation_images: int = Field(default=256, ge=8, description="Validation images looked at after an epoch.")
    crop: int = Field(default=192, ge=64, le=512, description="Side of the training crops, in pixels.")
    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="Of the backbone.")
    head_learning_rate: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    distortion_weight: float = Field(default=0.1, ge=0, le=10, description="Of the distortion-kind loss.")
    synthetic_width: int = Field(
        default=512, ge=256, le=512, multiple_of=64, description="Of pictures made from pristine photographs."
    )
    synthetic_share: float = Field(
        default=0.25, gt=0, le=1, description="Part of all distortions made from a training picture."
    )
    synthetic_views: int = Field(default=12, ge=1, le=100, description="Pictures from one training photograph.")

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> TrainConfig:
        if self.batch_size % self.processes:
            raise ValueError("batch_size must be a multiple of processes")
        return self


class Size(BaseModel):
    """In pixels, after the image is turned upright."""

    width: int
    height: int


class Level(BaseModel):
    value: float = Field(description="The level's place on the 0–100 scale.")
    probability: float


class Distortion(BaseModel):
    kind: str = Field(description='The most probable kind, "none" for a clean image.')
    probabilities: dict[str, float]


class QualityMap(BaseModel):
    """Quality by place: each value is the score of the 7 × 7 cells around its cell."""

    cell: int = Field(default=32, description="Side of a cell, in pixels of the scored size.")
    values: list[list[float]] | None = Field(default=None, description="Rows of scores, 0–100, top row first.")
    overlay_png: str | None = Field(default=None, description="Base64 PNG of the scored size: blue bad, yellow good.")


class Timings(BaseModel):
    """Milliseconds of wall time."""

    decode: float
    inference: float = Field(description="Including the wait in the queue.")


class ImageScore(BaseModel):
    """One image's quality. The score is a full-reference proxy learnt from generated distortions, not an opinion."""

    model: str = Field(description="Name and version of the model that answered.", examples=["iqa/1"])
    score: float = Field(ge=0, le=100)
    direction: Literal["higher-is-better"] = "higher-is-better"
    levels: list[Level] = Field(description="Distribution over quality levels; its mean is the score.")
    confidence: float = Field(description="1 − spread of the levels / 50; a tendency, not a calibrated probability.")
    distortion: Distortion
    original: Size
    scored: Size
    format: str
    warnings: list[str] = Field(description="What the decoder had to decide.")
    timings_ms: Timings
    map: QualityMap | None = None


class FileResult(BaseModel):
    """One file of a multipart request: a score, or the problem that this file alone has."""

    name: str
    result: ImageScore | None = None
    problem: dict[str, Any] | None = None


class ScoreList(BaseModel):
    results: list[FileResult]
