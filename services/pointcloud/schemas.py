"""The wire contract of point clouds: what is asked and answered, and the configurations of trainings and jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from shared.jobs.config import RecipeConfig

Precision = Literal["fp32", "fp16", "int8"]
FileForm = Literal["json", "ply", "npy", "glb"]
Triple = tuple[float, float, float]


class IndexConfig(RecipeConfig):
    """How the shapes of a data set become an index that is searched."""

    points: int = Field(default=2048, ge=64, le=16_384, description="Taken of each shape.")
    previews: int = Field(default=256, ge=16, le=1024, description="Points of each shape kept to show and compare.")


class Box(BaseModel):
    """The smallest box around the points that were taken, in the file's units."""

    low: Triple
    high: Triple


class Normalisation(BaseModel):
    """Unit-ball points · scale + centre = the file's units. Answers are in the file's units."""

    centre: Triple
    scale: float


class CloudSummary(BaseModel):
    """What was read, and how it became the points that were looked at."""

    format: str = Field(description="Found from the bytes.")
    points: int = Field(description="In the file.")
    triangles: int
    taken: int = Field(description="Points that the encoder saw.")
    reduction: Literal["none", "area", "sample", "voxel"] = Field(
        description="none; a mesh sampled by area; a large cloud sampled uniformly, or by equal cells."
    )
    seed: int = Field(description="Of the sampling.")
    box: Box
    normalisation: Normalisation
    warnings: list[str]


class Distance(BaseModel):
    """Mean distances to the nearest point of the other cloud, unsquared."""

    to_reconstruction: float = Field(description="From the input's points, in the file's units.")
    to_input: float = Field(description="From the reconstruction's points, in the file's units.")
    chamfer: float = Field(description="The larger of the two, in the file's units (FoldingNet's form).")
    relative: float = Field(description="The same over the normalisation's scale.")


class Timings(BaseModel):
    read: float = Field(description="Milliseconds: reading, sampling, neighbours; with the waiting.")
    inference: float


class Reconstruction(BaseModel):
    model: str
    input: CloudSummary
    distance: Distance | None = None
    out_of_distribution: bool | None = Field(default=None, description="Unlike the training shapes; see the card.")
    points: list[Triple] | None = Field(default=None, description="In the file's units; row by row of the surface.")
    triangles: list[tuple[int, int, int]] | None = None
    timings_ms: Timings


class Encoding(BaseModel):
    model: str
    input: CloudSummary
    codeword: list[float] = Field(description="As the decoder will see it, after rounding to the precision.")
    precision: Precision
    encoded: str = Field(description="The file that `decode` takes, base64.")
    bytes: int = Field(description="Of that file.")
    ratio: float = Field(description="Bytes of the points taken, as three float32 each, over bytes of the file.")
    distance: Distance | None = Field(default=None, description="What decoding this file will be off by.")
    timings_ms: Timings


class Decoding(BaseModel):
    model: str
    precision: Precision
    points: list[Triple]
    triangles: list[tuple[int, int, int]]


class Hit(BaseModel):
    name: str
    label: str | None
    distance: float = Field(description="Euclidean, between the codewords.")
    chamfer: float = Field(
        description="Between the shapes' previews, both in the unit ball: the sum of the two mean distances."
    )
    preview_png: str | None = Field(default=None, description="Base64.")
    preview_points: list[Triple] | None = Field(default=None, description="In the unit ball.")


class SearchAnswer(BaseModel):
    model: str
    index: str = Field(description="The job that made the index.")
    shapes: int = Field(description="In the index.")
    input: CloudSummary
    hits: list[Hit]
    timings_ms: Timings


class ClassShare(BaseModel):
    label: str
    probability: float


class Classification(BaseModel):
    model: str
    input: CloudSummary
    classes: list[ClassShare] = Field(description="Most probable first.")
    out_of_distribution: bool | None = None
    timings_ms: Timings


class ImageReconstruction(BaseModel):
    model: str
    points: list[Triple] = Field(description="In the unit ball: a single picture tells no size.")
    triangles: list[tuple[int, int, int]] | None = None
    warnings: list[str]
    timings_ms: Timings
