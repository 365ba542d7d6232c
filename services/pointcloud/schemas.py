"""The wire contract of point clouds: what is asked and answered, and the configurations of trainings and jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from shared.jobs.config import RecipeConfig

Precision = Literal["fp32", "fp16", "int8"]
FileForm = Literal["json", "ply", "npy", "glb"]
Up = Literal["y", "z"]
Triple = tuple[float, float, float]


class TrainConfig(RecipeConfig):
    """How an autoencoder of point clouds, a single-view network, or both are trained."""

    task: Literal["autoencoder", "single-view", "both"] = Field(
        default="autoencoder", description="What is trained; the champion's other part is carried over."
    )
    encoder: Literal["foldingnet", "dgcnn"] = "foldingnet"
    decoder: Literal["folding", "dense"] = Field(
        default="folding", description="`dense` is for comparison: fifteen times the parameters, and no mesh."
    )
    source: Literal["grid", "sphere", "learned"] = Field(default="grid", description="The surface that is folded.")
    resolution: int = Field(default=45, ge=2, le=256, description="The surface has resolution² points when served.")
    train_resolution: int = Field(
        default=16, ge=2, le=256, description="Points of the surface a training step folds, squared; drawn each step."
    )
    points: tuple[int, int] = Field(
        default=(256, 2048), description="Fewest and most points of a cloud that a step sees; drawn anew each step."
    )
    epochs: int = Field(default=40, ge=1, le=5000)
    batch_size: int = Field(default=8, ge=1, le=512)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(default=1e-6, ge=0, le=1)
    family_cap: int = Field(
        default=8, ge=1, description="Most shapes of one family an epoch sees, so that a long series counts as a few."
    )
    stretch: float = Field(
        default=0.0, ge=0, lt=1, description="Clouds are scaled along each axis by up to 1 ± this, at random."
    )
    up: Up = Field(
        default="z",
        description="The axis of the shapes that is up, for turns and pictures. `y`, as in glTF, has +z in front, `z` "
        "+x. Clouds, codewords and answers keep the axes of the files.",
    )
    yaw: float = Field(
        default=0.0, ge=0, le=360, description="Clouds are turned about `up` at random within this range."
    )
    contrast: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Weight, beside the Chamfer distance, of telling a batch's clouds apart: two samples of one are to "
        "have codewords more alike than those of others. Codewords then say more about a class.",
    )
    split: Literal["auto", "family", "shape"] = Field(
        default="auto",
        description="What stays in one split: names alike but for their digits, or single shapes. A split that the "
        "data set states is always kept. `auto` takes families where most classes have three.",
    )
    least_shapes: int = Field(default=20, ge=1, description="A class with fewer is not classified.")
    validation_clouds: int = Field(default=64, ge=1, description="Looked at after each epoch.")
    single_view: Literal["psgn", "folding", "atlasnet"] = Field(
        default="folding", description="Decoder of the single-view network."
    )
    single_view_epochs: int = Field(default=20, ge=1, le=5000)
    single_view_points: int = Field(default=1024, ge=16, le=4096)
    bottleneck: int = Field(default=256, ge=8, le=2048, description="Width between image encoder and decoder.")
    width: int = Field(default=16, ge=4, le=64, description="Channels of the image encoder's first stage.")
    image_size: int = Field(default=64, ge=16, le=224, description="Pixels of the rendered pictures.")
    view_yaw: float = Field(default=180.0, ge=0, le=360, description="Range of the pictures' yaws around the front.")
    view_frame: Literal["object", "viewer"] = Field(
        default="object", description="Whether the predicted cloud stands as the shape does or as the picture shows it."
    )

    @model_validator(mode="after")
    def _ordered(self) -> TrainConfig:
        low, high = self.points
        if not 32 <= low <= high <= 16_384:
            raise ValueError("points: two numbers from 32 to 16384, the smaller first")
        return self


class DispersionConfig(RecipeConfig):
    """How the dispersion of a data set, and of the champion's single-view predictions on it, is measured."""

    clusters: int = Field(
        default=10, ge=1, le=1000, description="Medoids, at most one for two shapes of the smaller part."
    )
    shapes: int = Field(default=200, ge=4, le=2000, description="Most shapes looked at, drawn with the seed.")
    points: int = Field(default=512, ge=64, le=4096, description="Of a shape, for its distances.")


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
    input_points: list[Triple] | None = Field(default=None, description="Those that the encoder saw, where asked for.")
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
