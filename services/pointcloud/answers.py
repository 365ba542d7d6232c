"""Predictions → what is sent back: JSON for small answers, files otherwise, with the same summary in a header."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.responses import Response

from services.pointcloud import writers
from services.pointcloud.calibration import Calibration
from services.pointcloud.features import Cloud
from services.pointcloud.schemas import Box, CloudSummary, Distance, FileForm, Normalisation
from shared.problems import Unprocessable

MOST_IN_JSON = 4096  # points
SUMMARY_HEADER = "Fourfold-Summary"
MEDIA_TYPES_OF = {"stl": "stl", "ply": "ply", "obj": "obj", "gltf-binary": "glb", "vnd.las": "las"}


class AnswerTooLong(Unprocessable):
    code = "pointcloud-answer-too-long"
    title = "The answer is too long for JSON"
    advice = "Ask for a file (`out=ply`, `npy` or `glb`), or a smaller `resolution`."


def summary_of(cloud: Cloud, content_type: str) -> CloudSummary:
    """What was read; a content type that names another format is a warning."""
    warnings = list(cloud.notes)
    said = MEDIA_TYPES_OF.get(content_type.partition("/")[2].removeprefix("x.").removeprefix("x-"))
    if said is not None and said != cloud.format:
        warnings.append(f"the content type says {said}, the bytes are {cloud.format}")
    if len(cloud.unit_N3) < 256:
        warnings.append(f"{len(cloud.unit_N3)} points are fewer than the networks were trained with")
    return CloudSummary.model_validate(
        {
            "format": cloud.format,
            "points": cloud.points,
            "triangles": cloud.triangles,
            "taken": len(cloud.unit_N3),
            "reduction": cloud.reduction,
            "seed": cloud.seed,
            "box": Box.model_validate({"low": cloud.low_3, "high": cloud.high_3}),
            "normalisation": Normalisation.model_validate(
                {"centre": tuple(cloud.centre_3.tolist()), "scale": cloud.scale}
            ),
            "warnings": warnings,
        }
    )


def distance_of(there: float, back: float, scale: float) -> Distance:
    """From mean distances in the unit ball."""
    larger = max(there, back)
    return Distance(to_reconstruction=there * scale, to_input=back * scale, chamfer=larger * scale, relative=larger)


def unusual(calibration: Calibration, cloud: Cloud, distance: Distance | None) -> bool:
    """Whether the cloud's extents, or the error of its reconstruction, are beyond 99 % of what the training saw."""
    far = distance is not None and distance.relative > calibration.chamfer_limit
    return far or calibration.unusual_extents(cloud.unit_N3)


def json_response(tag: str, body: BaseModel, **arrays: NDArray[Any] | None) -> Response:
    """The body with its arrays, which need no validation a second time."""
    content = {**body.model_dump(exclude_none=True), **{name: a for name, a in arrays.items() if a is not None}}
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, media_type="application/json", headers={"Fourfold-Model": tag})


def points_response(
    tag: str,
    form: FileForm,
    body: BaseModel,
    points_G3: NDArray[np.float64],
    triangles_T3: NDArray[np.int64] | None,
    input_N3: NDArray[np.float64] | None = None,
) -> Response:
    """Points, and the mesh between them, in the form asked for; raises AnswerTooLong for much JSON.

    `input_N3`: the points that they were made of, which JSON alone takes along.
    """
    if form == "json":
        most = max(len(points_G3), 0 if input_N3 is None else len(input_N3))
        if most > MOST_IN_JSON:
            raise AnswerTooLong(f"{most} points are many for JSON; ask for out=ply, npy or glb.")
        return json_response(tag, body, points=points_G3, triangles=triangles_T3, input_points=input_N3)
    summary = orjson.dumps(body.model_dump(exclude_none=True))
    data = encode_points(form, points_G3, triangles_T3, orjson.loads(summary))
    # Headers are Latin-1: file names and notes are not in it, and the rest is ASCII.
    headers = {"Fourfold-Model": tag, SUMMARY_HEADER: summary.decode().encode("ascii", "replace").decode()}
    return Response(data, media_type=writers.MEDIA_TYPES[form], headers=headers)


def encode_points(
    form: FileForm, points_G3: NDArray[np.float64], triangles_T3: NDArray[np.int64] | None, about: dict[str, Any]
) -> bytes:
    match form:
        case "ply":
            return writers.ply(points_G3, triangles_T3, f"Fourfold {about.get('model', '')}")
        case "npy":
            return writers.npy(points_G3)
        case _:
            return writers.glb(points_G3, triangles_T3, about)
