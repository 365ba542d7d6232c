"""What the recipes of audits are configured with: red team, scaling and phase diagram."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.jobs.config import RecipeConfig

Width = Annotated[int, Field(ge=1, le=256)]
Depth = Annotated[int, Field(ge=1, le=5)]


class ImageRecipe(RecipeConfig):
    """What every recipe over an image set has."""

    seeds: int = Field(default=3, ge=1, le=20, description="Repetitions, with seeds from `seed` on.")
    train_images: int = Field(default=2000, ge=50, le=1_000_000)
    test_images: int = Field(default=2000, ge=50, le=1_000_000)
    size: int = Field(
        default=28, ge=8, le=64, description="Side of the images; larger ones are averaged down to it, never up."
    )
    epochs: int = Field(default=20, ge=1, le=1000)
    learning_rate: float = Field(default=0.05, gt=0, le=10)


class ScalingConfig(ImageRecipe):
    """A family of widths and depths over two classes with a misleading stripe (image_sets.striped)."""

    widths: list[Width] = Field(default=[2, 4, 8, 16, 32], min_length=1, max_length=12)
    depths: list[Depth] = Field(default=[3], min_length=1, max_length=5)
    pretrained: list[bool] = Field(
        default=[False], min_length=1, max_length=2, description="Whether the network first learns the other classes."
    )
    correlation: float = Field(
        default=0.85, ge=0.5, lt=1, description="Share of training images whose stripe agrees with their class."
    )
    batch: int = Field(default=64, ge=2, le=4096)


class PhaseDiagramConfig(ImageRecipe):
    """Widths (load) × batch sizes (temperature), each with several seeds, and what the loss landscape says of each."""

    widths: list[Width] = Field(default=[2, 4, 8, 16], min_length=1, max_length=12)
    batches: list[Annotated[int, Field(ge=2, le=4096)]] = Field(default=[16, 64, 256], min_length=1, max_length=12)
    depth: Depth = 3
    curve_epochs: int = Field(default=10, ge=1, le=1000)
    curve_rate: float = Field(default=3e-3, gt=0, le=1)
    curvature_images: int = Field(default=500, ge=50, le=100_000)
    seeds: int = Field(default=3, ge=2, le=20, description="Repetitions of each cell; two networks make a curve.")


class FalseAlarmsConfig(ImageRecipe):
    """Clean trainings, each put to the check `backdoor`. For the benchmark alone; no job."""

    seeds: int = Field(default=30, ge=1, le=1000, description="Trainings, each with a draw of images of its own.")
    size: int = Field(default=14, ge=8, le=64)
    width: Width = 8
    depth: Depth = 2
    batch: int = Field(default=64, ge=2, le=4096)
    train_images: int = Field(default=1000, ge=50, le=1_000_000)
    test_images: int = Field(default=500, ge=50, le=1_000_000)


class DistilConfig(ImageRecipe):
    """A set shrunk to a few synthetic images a class, for fast retraining. `seeds` networks tell what it is worth."""

    method: Literal["distribution", "gradient"] = Field(
        default="distribution", description="Gradient matching costs some ten times more."
    )
    per_class: int = Field(default=10, ge=1, le=200)
    iterations: int = Field(default=100, ge=1, le=100_000)
    loops: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=200)]] | None = Field(
        default=None, description="Outer and inner loops of gradient matching; the paper's for `per_class` if unset."
    )
    width: Width = 16
    depth: Depth = 3
    evaluation_epochs: int = Field(
        default=300, ge=1, le=10_000, description="Of the networks trained on what comes out."
    )


class RedTeamConfig(DistilConfig):
    """Distillation of a set with and without a backdoor in it, and what the scans catch."""

    attacks: list[Literal["none", "naive", "doorping"]] = Field(
        default=["none", "naive", "doorping"], min_length=1, max_length=3
    )
    target: int = Field(default=0, ge=0, lt=1000, description="The class that the trigger is to mean.")
    poisoned_share: float = Field(default=0.01, gt=0, le=0.5, description="Of all training images.")
    trigger_bounded: bool = Field(
        default=True, description="Whether DOORPING's patch stays among the values that a picture can have."
    )
    trigger_steps: int = Field(default=20, ge=1, le=1000)
    false_alarms: float = Field(default=0.05, gt=0, lt=0.5, description="Share of clean images a scan may suspect.")
    inversion: bool = Field(default=False, description="Also invert triggers from the networks that come out.")
    inversion_steps: int = Field(default=1500, ge=50, le=100_000)
